"""Multiboot 1 kernels. Source: Multiboot Specification 0.6.96.

:mod:`emu.boot.multiboot_header` has the header. Its flags: bit 0 modules on page boundaries, bit 1 memory information,
bit 2 video mode, bit 16 addresses, also for files other than ELF.

A kernel gets all memory information and page-aligned modules whether it asks or not. It gets the graphics mode that it
asks for, or the nearest thing to it, with framebuffer and VBE information; else the screen is in text mode. The command
line begins with the kernel's name, without folders, as where a file lies on the host is none of a guest's business; the
boot device is the first hard disk. ELF files may be of 64 bits, and are entered in 32-bit protected mode all the same.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from emu.boot import multiboot_header
from emu.boot.e820 import memory_map
from emu.boot.elf import Sections, read_elf
from emu.boot.framebuffer import (
    colour_fields,
    framebuffer_fields,
    vesa_information,
    vesa_mode_information,
    vesa_number,
    wanted_mode,
)
from emu.boot.guest import Guest
from emu.boot.kinds import DESCRIPTIONS, ELF_MAGIC, Kind
from emu.boot.loader import NAME, Loader, Module, Program, address_program, c_string
from emu.devices.vbe import VideoMode
from emu.errors import BadInput

BOOT_MAGIC = 0x2BAD_B002  # EAX at the entry point
KNOWN_FLAGS = 0x0007  # of the low 16 bits, which a boot loader must not ignore
BOOT_DEVICE = 0x8000_FFFF  # drive 0x80, first partition, no partitions in that

MEMORY, DEVICE, COMMAND_LINE, MODULES = 1 << 0, 1 << 1, 1 << 2, 1 << 3  # flags: which fields are valid
ELF_SECTIONS, MEMORY_MAP, LOADER_NAME = 1 << 5, 1 << 6, 1 << 9
VBE, FRAMEBUFFER = 1 << 11, 1 << 12
# flags; mem_lower, mem_upper; boot_device; cmdline; mods_count, mods_addr; ELF section headers: number, bytes of one,
# address, index of the names; mmap_length, mmap_addr; drives (2), config table; boot_loader_name; APM; VBE: control
# information, mode information, mode, protected mode interface (3 u16); framebuffer: 22 bytes, colours
INFO = "<I 2I I I 2I 4I 2I 12x I 4x 2I H 6x 22s 6s"
WANTS_VIDEO = 1 << 2  # flag of the header: video fields are valid
VIDEO_AT = 32  # offset of mode_type (0: linear graphics, 1: text), width, height, depth in the header
LINEAR_GRAPHICS = 0
MODULE = "<4I"  # first gpa, gpa behind it, string, reserved
MMAP_ENTRY_SIZE = 20  # bytes that follow an entry's size


def multiboot_guest(path: Path, ram: int, append: str = "", modules: Sequence[str] = ()) -> Guest:
    """A guest from a multiboot 1 kernel.

    Args:
        path: the kernel.
        ram: bytes of guest memory.
        append: its arguments.
        modules: "FILE" or "FILE arguments" each; a module's string is that without the file's folders.

    Raises:
        BadInput: the files are broken, do not fit, or the kernel demands what is not offered.
    """
    loader = Loader(path, ram)
    program, sections = _read_kernel(path, loader)
    loader.load(program)
    loaded = loader.load_modules(modules)
    elf = _place_sections(loader, sections) if sections else (0, 0, 0, 0)
    command_line = loader.place(c_string(f"{path.name} {append}".rstrip(" ")))
    mods = _place_modules(loader, loaded)
    entries = b"".join(struct.pack("<I", MMAP_ENTRY_SIZE) + entry.pack() for entry in memory_map(ram))
    mmap = loader.place(entries)
    name = loader.place(NAME)
    asks, mode = _wanted_mode(loader)
    vbe = _place_vbe(loader, mode)
    screen = (framebuffer_fields(mode), colour_fields(mode)) if asks else (b"", b"")
    flags = MEMORY | DEVICE | COMMAND_LINE | MODULES | MEMORY_MAP | LOADER_NAME
    flags |= (ELF_SECTIONS if sections else 0) | (VBE if mode else 0) | (FRAMEBUFFER if asks else 0)
    fields = (flags, loader.lower, loader.upper, BOOT_DEVICE, command_line, len(loaded), mods, *elf)
    info = loader.place(struct.pack(INFO, *fields, len(entries), mmap, name, *vbe, *screen))
    return replace(loader.guest(DESCRIPTIONS[Kind.MULTIBOOT], program.entry, BOOT_MAGIC, info), video=mode)


def _wanted_mode(loader: Loader) -> tuple[bool, VideoMode | None]:
    """Whether the header asks for a mode; and the graphics mode, None for text."""
    head = loader.file.read(0, multiboot_header.SEARCH)
    at = multiboot_header.find_header(head)
    if at is None or len(head) < at + VIDEO_AT + 16 or not struct.unpack_from("<I", head, at + 4)[0] & WANTS_VIDEO:
        return False, None
    kind, *size = struct.unpack_from("<4I", head, at + VIDEO_AT)
    return True, wanted_mode(*size) if kind == LINEAR_GRAPHICS else None


def _place_vbe(loader: Loader, mode: VideoMode | None) -> tuple[int, int, int]:
    """What a BIOS would tell about a mode; returns where, and the mode's number."""
    if mode is None:
        return 0, 0, 0
    return loader.place(vesa_information()), loader.place(vesa_mode_information(mode)), vesa_number(mode)


def _read_kernel(path: Path, loader: Loader) -> tuple[Program, Sections | None]:
    head = loader.file.read(0, multiboot_header.SEARCH)
    at = multiboot_header.find_header(head)
    if at is None:
        raise BadInput(str(path), f"there is no multiboot header in its first {multiboot_header.SEARCH} bytes")
    (flags,) = struct.unpack_from("<I", head, at + 4)
    unknown = flags & 0xFFFF & ~KNOWN_FLAGS
    if unknown:
        raise BadInput(str(path), f"its multiboot header demands what emu does not know (flags {unknown:#06x})")
    if multiboot_header.has_addresses(head, at):
        if len(head) < at + multiboot_header.HEADER_END:
            raise BadInput(str(path), f"its multiboot header at offset {at:#x} is truncated")
        *addresses, entry = struct.unpack_from("<5I", head, at + multiboot_header.ADDRESSES_AT)
        header, load, load_end, bss_end = addresses
        return address_program(path, at, len(loader.file), (header, load, load_end, bss_end), entry), None
    if not head.startswith(ELF_MAGIC):
        raise BadInput(str(path), "it is no ELF file, and its multiboot header does not tell where to load it")
    kernel = read_elf(path)
    return kernel.program, kernel.sections


def _place_modules(loader: Loader, modules: list[Module]) -> int:
    """The module list; returns its gpa."""
    fields = ((part.gpa, part.gpa + part.size, loader.place(c_string(part.text)), 0) for part in modules)
    table = b"".join(struct.pack(MODULE, *module) for module in fields)
    return loader.place(table) if table else 0


def _place_sections(loader: Loader, sections: Sections) -> tuple[int, int, int, int]:
    """The section headers and what belongs to them; returns their four fields."""
    table = loader.place(sections.load(loader))
    return sections.count, sections.entry_size, table, sections.names
