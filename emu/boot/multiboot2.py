"""Multiboot 2 kernels. Source: Multiboot2 Specification 2.0.

    header, qword-aligned in the first 32768 bytes of the file, and all of it in there
     0 magic   4 architecture (0: i386)   8 header_length   12 checksum   16 tags
    a header tag, 8-byte-aligned: u16 type, u16 flags (bit 0: a boot loader may ignore it), u32 size
     1 information request   2 address   3 entry address   4 console   5 framebuffer   6 module alignment
     7, 8, 9 EFI             10 relocatable

    boot information, 8-byte-aligned: u32 size, u32 reserved, tags; a tag: u32 type, u32 size
     1 command line    2 boot loader name   3 module              4 basic memory information   6 memory map
     8 framebuffer
     9 ELF sections   14 ACPI 1.0 RSDP     15 ACPI 2.0 RSDP      21 load base address

EFI tags are for EFI alone and mean nothing here. Modules are always page-aligned. A kernel with a framebuffer tag gets
the graphics mode that it asks for, or the nearest thing to it, any other kernel text mode. The command line begins with
the kernel's name, as for multiboot 1.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from emu.boot import multiboot_header
from emu.boot.e820 import memory_map
from emu.boot.elf import Sections, read_elf
from emu.boot.framebuffer import colour_fields, framebuffer_fields, wanted_mode
from emu.boot.guest import Guest
from emu.boot.kinds import DESCRIPTIONS, ELF_MAGIC, Kind
from emu.boot.loader import FIRST_FREE, NAME, Loader, Program, address_program, c_string
from emu.devices import layout
from emu.errors import BadInput

BOOT_MAGIC = 0x36D7_6289  # EAX at the entry point
ARCHITECTURE_I386 = 0
HEADER_SIZE = 16  # bytes before the tags
OPTIONAL = 1  # flag of a header tag

END, INFORMATION_REQUEST, ADDRESS, ENTRY, WANTED_FRAMEBUFFER = 0, 1, 2, 3, 5  # header tags that do something
RELOCATABLE = 10
BODIES = {  # of the header tags that the specification knows: bytes without the 8 of type, flags and size
    INFORMATION_REQUEST: 0, ADDRESS: 16, ENTRY: 4, 4: 4, WANTED_FRAMEBUFFER: 12, 6: 0, 7: 0, 8: 4, 9: 4,
    RELOCATABLE: 16,
}  # fmt: skip
FILE_START = 0xFFFF_FFFF  # load_addr: load from the file's beginning

COMMAND_LINE, LOADER_NAME, MODULE, BASIC_MEMORY, MEMORY_MAP, FRAMEBUFFER = 1, 2, 3, 4, 6, 8  # boot information tags
ELF_SECTIONS, ACPI_OLD, ACPI_NEW, LOAD_BASE = 9, 14, 15, 21
LAST_KNOWN = LOAD_BASE  # the highest type of boot information that the specification has
MMAP_ENTRY = "<QQII"  # gpa, bytes, type, reserved
RSDP_OLD_SIZE, RSDP_NEW_SIZE = 20, 36  # bytes


@dataclass(frozen=True)
class Header:
    """A kernel's multiboot 2 header: where it lies in the file, and the body of each tag by type."""

    at: int
    tags: dict[int, bytes] = field(default_factory=dict)

    def words(self, kind: int) -> tuple[int, ...] | None:
        """A tag's body as dwords; None without that tag."""
        if kind not in self.tags:
            return None
        return struct.unpack_from(f"<{BODIES[kind] // 4}I", self.tags[kind])


def multiboot2_guest(
    path: Path, ram: int, append: str = "", modules: Sequence[str] = (), rsdp: bytes | None = None
) -> Guest:
    """A guest from a multiboot 2 kernel.

    Args:
        path: the kernel.
        ram: bytes of guest memory.
        append: its arguments.
        modules: "FILE" or "FILE arguments" each; a module's string is that without the file's folders.
        rsdp: the root pointer of the ACPI tables, 20 bytes (ACPI 1.0) or 36.

    Raises:
        BadInput: the files are broken, do not fit, or the kernel demands what is not offered.
    """
    loader = Loader(path, ram)
    header = read_header(str(path), loader.file.read(0, multiboot_header.SEARCH_2))
    program, sections = _read_kernel(path, loader, header)
    program = _relocated(path, loader, header, program)
    loader.load(program)
    tags = [_tag(COMMAND_LINE, c_string(f"{path.name} {append}".rstrip(" "))), _tag(LOADER_NAME, NAME)]
    for module in loader.load_modules(modules):
        tags.append(_tag(MODULE, struct.pack("<II", module.gpa, module.gpa + module.size) + c_string(module.text)))
    tags.append(_tag(BASIC_MEMORY, struct.pack("<II", loader.lower, loader.upper)))
    entries = (struct.pack(MMAP_ENTRY, entry.gpa, entry.size, entry.kind, 0) for entry in memory_map(ram))
    tags.append(_tag(MEMORY_MAP, struct.pack("<II", struct.calcsize(MMAP_ENTRY), 0) + b"".join(entries)))
    wanted = header.words(WANTED_FRAMEBUFFER)
    mode = None if wanted is None else wanted_mode(*wanted)
    tags.append(_tag(FRAMEBUFFER, framebuffer_fields(mode) + bytes(2) + colour_fields(mode)))
    if sections:
        fields = struct.pack("<III", sections.count, sections.entry_size, sections.names)
        tags.append(_tag(ELF_SECTIONS, fields + sections.load(loader)))
    if rsdp:
        tags.append(_tag(ACPI_OLD, rsdp[:RSDP_OLD_SIZE]))
        if len(rsdp) >= RSDP_NEW_SIZE:
            tags.append(_tag(ACPI_NEW, rsdp))
    if RELOCATABLE in header.tags:
        tags.append(_tag(LOAD_BASE, struct.pack("<I", program.gpa)))
    body = b"".join((*tags, _tag(END, b"")))
    info = loader.place(struct.pack("<II", 8 + len(body), 0) + body, 8)
    return replace(loader.guest(DESCRIPTIONS[Kind.MULTIBOOT2], program.entry, BOOT_MAGIC, info), video=mode)


def read_header(name: str, head: bytes) -> Header:
    """The multiboot 2 header in a file's beginning.

    Args:
        name: of the file, for errors.

    Raises:
        BadInput: there is none, it is broken, or it has a demand that emu does not know.
    """
    at = multiboot_header.find_header_2(head)
    if at is None:
        raise BadInput(name, f"there is no multiboot 2 header in its first {multiboot_header.SEARCH_2} bytes")
    architecture, length = struct.unpack_from("<II", head, at + 4)
    if architecture != ARCHITECTURE_I386:
        raise BadInput(name, f"its multiboot 2 header is for architecture {architecture}, not for i386 (0)")
    if length < HEADER_SIZE or at + length > len(head):
        raise BadInput(name, f"its multiboot 2 header of {length} bytes at offset {at:#x} is truncated")
    tags: dict[int, bytes] = {}
    place, end = at + HEADER_SIZE, at + length
    while place + 8 <= end:
        kind, flags, size = struct.unpack_from("<HHI", head, place)
        if kind == END:
            break
        if size < 8 or place + size > end:
            raise BadInput(name, f"tag {kind} in its multiboot 2 header has an impossible size: {size}")
        body = head[place + 8 : place + size]
        _check_tag(name, kind, bool(flags & OPTIONAL), body)
        tags[kind] = body
        place += -(-size // 8) * 8
    return Header(at, tags)


def _check_tag(name: str, kind: int, optional: bool, body: bytes) -> None:
    least = BODIES.get(kind)
    if least is None:
        if not optional:
            raise BadInput(name, f"its multiboot 2 header demands a feature that emu does not know (tag {kind})")
    elif len(body) < least:
        raise BadInput(name, f"tag {kind} in its multiboot 2 header is too short: {8 + len(body)} of {8 + least} bytes")
    elif kind == INFORMATION_REQUEST and not optional:
        for (wanted,) in struct.iter_unpack("<I", body[: len(body) & ~3]):
            if wanted > LAST_KNOWN:
                raise BadInput(name, f"its multiboot 2 header demands unknown information (tag {wanted})")


def _read_kernel(path: Path, loader: Loader, header: Header) -> tuple[Program, Sections | None]:
    addresses, entry = header.words(ADDRESS), header.words(ENTRY)
    if addresses is not None:
        if entry is None:
            raise BadInput(str(path), "its multiboot 2 header has addresses, but no entry address")
        first, load, load_end, bss_end = addresses
        place = (first, load, load_end, bss_end)
        return address_program(path, header.at, len(loader.file), place, entry[0], FILE_START), None
    if not loader.file.read(0, len(ELF_MAGIC)) == ELF_MAGIC:
        raise BadInput(str(path), "it is no ELF file, and its multiboot 2 header does not tell where to load it")
    kernel = read_elf(path)
    program = kernel.program if entry is None else Program(kernel.program.segments, entry[0])
    return program, kernel.sections


def _relocated(path: Path, loader: Loader, header: Header, program: Program) -> Program:
    """The kernel where it was linked to if that suits it and is free, else as low above 1 MiB as it may be."""
    words = header.words(RELOCATABLE)
    if words is None:
        return program
    lowest, highest, alignment, _ = words
    size = program.end - program.gpa
    fits = max(lowest, FIRST_FREE) <= program.gpa and program.end - 1 <= highest
    if fits and loader.room(size, 1, program.gpa) == program.gpa:
        return program
    gpa = loader.room(size, alignment or 1, max(lowest, layout.EXTENDED_MEMORY))
    if gpa is None or gpa + size - 1 > highest:
        raise BadInput(str(path), f"no RAM for its {size} bytes between {lowest:#x} and {highest:#x}, where it may be")
    return program.moved(gpa - program.gpa)


def _tag(kind: int, body: bytes) -> bytes:
    """A tag of the boot information, with what aligns the next one."""
    return struct.pack("<II", kind, 8 + len(body)) + body + bytes(-len(body) % 8)
