"""What a BIOS wants to know of its machine: in CMOS memory, and in QEMU's fw_cfg."""

from __future__ import annotations

import struct

from emu.devices import fw_cfg, layout, rtc
from emu.devices.fw_cfg import FwCfg
from emu.devices.rtc import Rtc


def tell_firmware(cmos: Rtc, configuration: FwCfg, ram: int, cpus: int, floppies: int, boot_order: str) -> None:
    """The sizes of the machine: bytes of memory, numbers of processors and of floppy drives with a disk.

    ``boot_order`` is what :class:`emu.devices.parts.Parts` says.
    """
    low, *high = layout.ram_ranges(ram)
    cmos.set_memory(len(low), sum(map(len, high)))
    cmos.set_cell(rtc.EQUIPMENT, (floppies - 1) << 6 | 0x07 if floppies else 0x06)  # FPU, PS/2 mouse
    cmos.set_cell(rtc.CPUS_BUT_ONE, cpus - 1)
    cmos.set_boot_order(boot_order)
    configuration.set(fw_cfg.RAM_SIZE, struct.pack("<Q", ram))
    for key in (fw_cfg.NB_CPUS, fw_cfg.MAX_CPUS):
        configuration.set(key, struct.pack("<H", cpus))
    # SeaBIOS: let INT 10h and 16h use the serial port, as there is no video BIOS
    configuration.add_file("etc/sercon-port", struct.pack("<Q", layout.COM1_PORT))
