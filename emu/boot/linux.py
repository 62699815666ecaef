"""Linux bzImages: the 32-bit and the 64-bit boot protocol (Linux, Documentation/arch/x86/boot.rst).

The kernel is entered without its real-mode part: the loader fills in ``boot_params`` itself. An image that wants to be
entered at its real-mode part is (:mod:`emu.boot.linux_setup`).
"""

from __future__ import annotations

from pathlib import Path

from emu.boot.entry import CODE_32, CODE_64, DATA_32, descriptor, enter_long_mode, enter_protected_mode, identity_tables
from emu.boot.guest import Guest
from emu.boot.image import GuestImage
from emu.boot.linux_header import KERNEL, SetupHeader, place_initrd, place_kernel
from emu.boot.linux_params import (
    BOOT_CS,
    BOOT_DS,
    BOOT_PARAMS,
    COMMAND_LINE,
    GDT,
    MAX_COMMAND_LINE,
    PAGE_TABLES,
    asked_mode,
    boot_params,
)
from emu.boot.linux_setup import setup_guest
from emu.devices import layout
from emu.engine.cpustate import CpuState
from emu.errors import BadInput


def linux_guest(path: Path, ram: int, append: str = "", initrd: Path | None = None) -> Guest:
    """A guest from a bzImage, or from a zImage.

    Args:
        path: the kernel.
        ram: bytes of guest memory.
        append: the kernel's command line.
        initrd: its initial RAM disk.

    Raises:
        BadInput: the files are broken, or do not fit.
    """
    name = path.name
    with path.open("rb") as file:
        header = SetupHeader(name, file.read(4096))
    if header.in_real_mode:
        return setup_guest(path, header, ram, append, initrd)
    image = GuestImage()
    kernel_size = place_kernel(image, path, header, KERNEL)
    low_end = layout.ram_ranges(ram)[0].stop
    needed = max(KERNEL + kernel_size, header.preferred + header.init_size)
    if needed > low_end:
        raise BadInput("--ram", f"{ram >> 20}M is too little: {name} needs {-(-needed >> 20)}M to start")
    command_line = append.encode()
    if len(command_line) > min(header.command_line_max, MAX_COMMAND_LINE):
        raise BadInput("--append", f"{len(command_line)} characters, {name} takes {header.command_line_max}")
    initrd_place = place_initrd(image, initrd, header.initrd_max, needed, low_end) if initrd else (0, 0)
    mode = asked_mode(append)
    image.add(BOOT_PARAMS, boot_params(header.bytes, ram, *initrd_place, mode))
    image.add(COMMAND_LINE, command_line + b"\0")
    return Guest(name, "Linux bzImage", image, Entry(image, KERNEL, header.in_long_mode), after_bios=True, video=mode)


class Entry:
    """Where a kernel is entered that gets ``boot_params``: in long mode at ``entry`` + 0x200, or in protected mode."""

    def __init__(self, image: GuestImage, entry: int, long_mode: bool) -> None:
        self._entry = entry + 0x200 if long_mode else entry
        self._long_mode = long_mode
        image.add(GDT, bytes(16) + descriptor(CODE_64 if long_mode else CODE_32) + descriptor(DATA_32))
        if long_mode:
            image.add(PAGE_TABLES, identity_tables(PAGE_TABLES))

    def __call__(self, cpu: CpuState) -> None:
        cpu.gdtr.set(0, GDT, 31, 0)
        if self._long_mode:
            enter_long_mode(cpu, BOOT_CS, BOOT_DS, PAGE_TABLES)
        else:
            enter_protected_mode(cpu, BOOT_CS, BOOT_DS)
        cpu.rip = self._entry
        cpu.rsi = BOOT_PARAMS
