"""ELF kernels without a multiboot header: those with an entry point for PVH, and Linux's ``vmlinux``.

PVH (Xen, docs/misc/pvh.pandoc; xen/include/public/arch-x86/hvm/start_info.h): a note names the entry point, which is
entered in flat 32-bit protected mode with EBX = start info. As QEMU does, that goes before all else.

    start info                                     module                  memory range
     0 magic, version, flags, number of modules     0 gpa, bytes            0 gpa, bytes
    16 modules, command line, RSDP, memory map     16 arguments, reserved  16 type, reserved
    48 number of memory ranges, reserved

A ``vmlinux`` is what a bzImage unpacks: a 64-bit one is entered at its entry point in long mode, a 32-bit one in
protected mode, both with ``boot_params`` as if they had been unpacked (:mod:`emu.boot.linux_params`).
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

from emu.boot import multiboot_header
from emu.boot.e820 import memory_map
from emu.boot.elf import ElfKernel, read_elf
from emu.boot.guest import Guest
from emu.boot.linux import Entry
from emu.boot.linux_header import CAN_USE_HEAP, HEADER_AT, place_initrd
from emu.boot.linux_params import BOOT_PARAMS, COMMAND_LINE, MAX_COMMAND_LINE, boot_params
from emu.boot.loader import Loader, c_string, split_modules
from emu.devices import layout
from emu.errors import BadInput

START_INFO = "<IIIIQQQQII"
START_INFO_MAGIC, START_INFO_VERSION = 0x336E_C578, 1
MODULE = "<QQQQ"
RANGE = "<QQII"
_LINUX = b"Linux version "  # begins the banner that every Linux has
_HIGHEST_INITRD = 0x7FFF_FFFF  # initrd_addr_max of today's kernels
_64_BIT_ENTRY = 0x200  # from where Entry counts in long mode


def elf_guest(path: Path, ram: int, append: str = "", initrd: str | None = None, rsdp: int = 0) -> Guest:
    """A guest from an ELF file.

    Args:
        path: the kernel.
        ram: bytes of guest memory.
        append: its command line.
        initrd: modules, "FILE arguments,FILE", of which Linux's initial RAM disk is the first.
        rsdp: gpa of the root pointer of the ACPI tables.

    Raises:
        BadInput: the files are broken, do not fit, or the kernel has no entry point that emu knows.
    """
    kernel = read_elf(path)
    if kernel.pvh_entry is not None:
        return _pvh_guest(path, kernel, kernel.pvh_entry, ram, append, initrd, rsdp)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if data.find(_LINUX) < 0:
            reason = "it has no multiboot header and no PVH note, and is no Linux kernel"
            late = data.find(struct.pack("<I", multiboot_header.MAGIC))
            if late >= multiboot_header.SEARCH:
                reason = f"its multiboot header, at {late:#x}, is not in its first {multiboot_header.SEARCH} bytes"
            raise BadInput(str(path), f"emu does not know how to enter this ELF file: {reason}")
    return _linux_guest(path, kernel, ram, append, initrd)


def _pvh_guest(
    path: Path, kernel: ElfKernel, entry: int, ram: int, append: str, initrd: str | None, rsdp: int
) -> Guest:
    loader = Loader(path, ram)
    loader.load(kernel.program)
    modules = b""
    loaded = loader.load_modules(split_modules(initrd) if initrd is not None else [])
    for module in loaded:
        modules += struct.pack(MODULE, module.gpa, module.size, loader.place(c_string(module.text)), 0)
    ranges = [struct.pack(RANGE, entry.gpa, entry.size, entry.kind, 0) for entry in memory_map(ram)]
    info = struct.pack(
        START_INFO, START_INFO_MAGIC, START_INFO_VERSION, 0, len(loaded), loader.place(modules, 8) if modules else 0,
        loader.place(c_string(append), 8), rsdp, loader.place(b"".join(ranges), 8), len(ranges), 0,
    )  # fmt: skip
    return loader.guest("ELF kernel, by PVH", entry, 0, loader.place(info, 8))


def _linux_guest(path: Path, kernel: ElfKernel, ram: int, append: str, initrd: str | None) -> Guest:
    loader = Loader(path, ram)
    loader.load(kernel.program)
    command_line = append.encode()
    if len(command_line) > MAX_COMMAND_LINE:
        raise BadInput("--append", f"{len(command_line)} characters, {path.name} takes {MAX_COMMAND_LINE}")
    image = loader.image
    low_end = layout.ram_ranges(ram)[0].stop
    place = place_initrd(image, Path(initrd), _HIGHEST_INITRD, loader.top, low_end) if initrd else (0, 0)
    image.add(BOOT_PARAMS, boot_params(_setup_header(), ram, *place))
    image.add(COMMAND_LINE, command_line + b"\0")
    long_mode = kernel.bits == 64
    entry = kernel.program.entry - (_64_BIT_ENTRY if long_mode else 0)
    return Guest(path.name, "Linux vmlinux", image, Entry(image, entry, long_mode), after_bios=True)


def _setup_header() -> bytes:
    """What a kernel may look at that has no setup header of its own: protocol 2.15, loaded high."""
    header = bytearray(0x270 - HEADER_AT)
    struct.pack_into("<HH4sH", header, 0x1FE - HEADER_AT, 0xAA55, 0, b"HdrS", 0x20F)
    header[0x211 - HEADER_AT] = 1 | CAN_USE_HEAP
    struct.pack_into("<I", header, 0x22C - HEADER_AT, _HIGHEST_INITRD)
    return bytes(header)
