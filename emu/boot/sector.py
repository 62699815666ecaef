"""Boot sectors: 512 bytes at 0x7C00, entered in real mode as a BIOS does.

There is no BIOS behind it yet: INT 10h, 13h and the others lead nowhere.
"""

from __future__ import annotations

from emu.boot.flat import BOOT_SECTOR, flat_guest
from emu.boot.guest import Guest
from emu.cpustate import CpuState

SECTOR_SIZE = 512  # bytes
SIGNATURE = b"\x55\xaa"  # the last two of them
FIRST_HARD_DISK = 0x80  # what a BIOS calls the drive that it booted from


def is_boot_sector(head: bytes) -> bool:
    """Whether a file that begins with ``head`` begins with a boot sector."""
    return head[SECTOR_SIZE - 2 : SECTOR_SIZE] == SIGNATURE


def sector_guest(name: str, sector: bytes, ram: int) -> Guest:
    """A guest from a boot sector: at 0000:7C00, with DL naming the first hard disk.

    Raises:
        BadInput: it does not fit into ``ram`` bytes.
    """
    flat = flat_guest(name, sector, ram, load=BOOT_SECTOR)

    def start(cpu: CpuState) -> None:
        flat.start(cpu)
        cpu.rdx = FIRST_HARD_DISK

    return Guest(name, "boot sector", flat.image, start)
