"""Kernel files made by hand: ELF, multiboot headers, and assembled code. Knows nothing of the loader under test."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

from emu.asm.assembler import assemble_image
from emu.boot import firmware

EM_386, EM_X86_64 = 3, 62
NULL, PROGBITS, SYMTAB, STRTAB, NOBITS = 0, 1, 2, 3, 8  # types of sections
ALLOC = 2  # flag of a section


@dataclass(frozen=True)
class Load:
    """A PT_LOAD segment."""

    paddr: int
    data: bytes
    memory: int | None = None  # bytes
    vaddr: int | None = None


@dataclass(frozen=True)
class Section:
    """A section with contents of its own, in no segment unless it is ALLOC."""

    name: str
    kind: int
    data: bytes = b""
    flags: int = 0
    address: int = 0


def elf(
    loads: list[Load],
    entry: int,
    bits: int = 32,
    machine: int = EM_386,
    kind: int = 2,
    sections: tuple[Section, ...] = (),
) -> bytes:
    """An ELF file: header, program headers, segments from 0x100 on, sections, section headers."""
    wide = bits == 64
    ehdr, phdr, shdr = (64, 56, 64) if wide else (52, 32, 40)
    body = bytearray(ehdr + phdr * len(loads))
    body += bytes(max(0x100 - len(body), 0))
    headers = b""
    for load in loads:
        vaddr = load.paddr if load.vaddr is None else load.vaddr
        memory = len(load.data) if load.memory is None else load.memory
        if wide:
            headers += struct.pack("<IIQQQQQQ", 1, 7, len(body), vaddr, load.paddr, len(load.data), memory, 1)
        else:
            headers += struct.pack("<8I", 1, len(body), vaddr, load.paddr, len(load.data), memory, 7, 1)
        body += load.data
    body[ehdr : ehdr + len(headers)] = headers
    shoff = 0
    table = b""
    if sections:
        names = b"\0" + b"".join(section.name.encode() + b"\0" for section in sections) + b".shstrtab\0"
        every = (Section("", NULL), *sections, Section(".shstrtab", STRTAB, names))
        for section in every:
            name = names.index(section.name.encode() + b"\0")
            fields = (name, section.kind, section.flags, section.address, len(body), len(section.data), 0, 0, 1, 0)
            table += struct.pack("<IIQQQQIIQQ" if wide else "<10I", *fields)
            body += section.data
        body += bytes(-len(body) % 8)
        shoff = len(body)
    counts = (ehdr, phdr, len(loads), shdr if table else 0, len(table) // shdr, max(len(table) // shdr - 1, 0))
    ident = b"\x7fELF" + bytes((2 if wide else 1, 1, 1)) + bytes(9)
    form = "<HHIQQQI6H" if wide else "<HHIIIII6H"
    body[:ehdr] = ident + struct.pack(form, kind, machine, 1, entry, ehdr, shoff, 0, *counts)
    return bytes(body) + table


def header1(flags: int = 3, *fields: int) -> bytes:
    """A multiboot 1 header."""
    return struct.pack(f"<{3 + len(fields)}I", 0x1BADB002, flags, -(0x1BADB002 + flags) & 0xFFFF_FFFF, *fields)


def header2(*tags: bytes, architecture: int = 0, length: int | None = None) -> bytes:
    """A multiboot 2 header with an end tag."""
    body = b"".join(tags) + tag(0)
    length = 16 + len(body) if length is None else length
    return (
        struct.pack("<4I", 0xE85250D6, architecture, length, -(0xE85250D6 + architecture + length) & 0xFFFF_FFFF) + body
    )


def tag(kind: int, *words: int, optional: bool = False) -> bytes:
    """A multiboot 2 header tag of dwords, aligned."""
    data = struct.pack(f"<HHI{len(words)}I", kind, optional, 8 + 4 * len(words), *words)
    return data + bytes(-len(data) % 8)


def code(tmp_path: Path, source: str, load: int) -> bytes:
    """Assembled 32-bit code, entered at its first byte at ``load``, with the firmware's include files."""
    path = tmp_path / "kernel.s"
    prologue = '.code32\n jmp start\n.include "platform.inc"\n.include "console.inc"\n'
    path.write_text(prologue + source)
    return assemble_image(path, load=load, include_directories=[firmware.firmware_directory() / "include"]).data
