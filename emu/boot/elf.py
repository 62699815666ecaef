"""ELF kernels: their segments and section headers. Source: System V ABI, chapters 4 and 5; parsed by pyelftools.

A kernel is loaded at the physical addresses of its segments, whatever the virtual ones are. Its entry point may be
either: one within a segment's virtual addresses is virtual.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from elftools.common.exceptions import ELFError
from elftools.common.utils import struct_parse
from elftools.elf.constants import SH_FLAGS
from elftools.elf.elffile import ELFFile

from emu.boot.loader import Loader, Part, Program, Segment
from emu.errors import BadInput

MACHINES = ("EM_386", "EM_X86_64")
TYPES = ("ET_EXEC", "ET_DYN")
_SECTION_ALIGNMENT = 16  # bytes; symbols and debugging information need no more
_PHYS32_ENTRY = 18  # type of Xen's note that tells the entry point for PVH
_MAX_NOTES = 1 << 20  # bytes of notes that are looked at
_SH_ADDR = {32: (12, "<I"), 64: (16, "<Q")}  # by class: where a section header has its address


@dataclass(frozen=True)
class Sections:
    """The section headers of a file.

    Attributes:
        count: their number.
        entry_size: bytes of one.
        names: index of the section that has their names.
        table: the headers as in the file.
        unloaded: offset in ``table`` of the address, offset in the file and bytes of each section with contents that
            no segment loads: symbols, strings, debugging information.
        form: of an address, as for :mod:`struct`.
    """

    count: int
    entry_size: int
    names: int
    table: bytes
    unloaded: tuple[tuple[int, int, int], ...]
    form: str

    def load(self, loader: Loader) -> bytes:
        """Place the sections that no segment loads at the end of memory; returns the headers with their addresses.

        Kernels take what lies behind them for their heap, so nothing is placed there that they did not ask for.

        Where there is no room for them, their addresses remain 0, which means that they are not loaded.
        """
        table = bytearray(self.table)
        places, size = [], 0
        for address_at, offset, length in self.unloaded:
            places.append((address_at, offset, length, size))
            size += -(-length // _SECTION_ALIGNMENT) * _SECTION_ALIGNMENT
        gpa = loader.room_at_end(size, _SECTION_ALIGNMENT)
        if gpa is not None:
            for address_at, offset, length, distance in places:
                loader.put(gpa + distance, Part(loader.file, offset, length))
                struct.pack_into(self.form, table, address_at, gpa + distance)
        return bytes(table)


@dataclass(frozen=True)
class ElfKernel:
    """An ELF file.

    Attributes:
        program: what is loaded and entered.
        sections: its section headers, if it has any.
        pvh_entry: gpa of the entry point for PVH (a note of Xen), if it has one.
        bits: its class, 32 or 64.
    """

    program: Program
    sections: Sections | None
    pvh_entry: int | None
    bits: int


def read_elf(path: Path) -> ElfKernel:
    """Read the headers of an x86 kernel, of either class.

    Raises:
        BadInput: it is broken, truncated, not linked, or for another architecture.
    """
    try:
        with path.open("rb") as stream:
            elf = ELFFile(stream)
            _check_kind(path, elf)
            headers = _table(path, elf, stream, "program", elf["e_phoff"], elf["e_phentsize"], elf["e_phnum"])
            sections = _sections(path, elf, stream)
            return ElfKernel(_program(path, elf, headers), sections, _pvh_entry(elf, stream, headers), elf.elfclass)
    except ELFError as error:
        raise BadInput(str(path), f"the ELF file is broken: {error}") from None
    except OSError as error:
        raise BadInput(str(path), f"cannot be read: {error.strerror}") from None


def _check_kind(path: Path, elf: ELFFile) -> None:
    machine = elf["e_machine"]
    if machine not in MACHINES or not elf.little_endian:
        name = machine.removeprefix("EM_") if isinstance(machine, str) else f"machine {machine}"
        order = "" if elf.little_endian else ", big-endian"
        raise BadInput(str(path), f"this is a kernel for another architecture ({name}{order}), not for x86")
    if elf["e_type"] not in TYPES:
        raise BadInput(str(path), f"this ELF file is no executable but of type {elf['e_type']}")


def _table(
    path: Path, elf: ELFFile, stream: IO[bytes], kind: str, offset: int, entry_size: int, count: int
) -> list[Any]:
    """Parsed program or section headers."""
    form = elf.structs.Elf_Phdr if kind == "program" else elf.structs.Elf_Shdr
    if count and entry_size < form.sizeof():
        raise BadInput(str(path), f"the ELF file is broken: {kind} headers of {entry_size} bytes")
    if offset + count * entry_size > elf.stream_len:
        wanted = offset + count * entry_size
        raise BadInput(str(path), f"the ELF file is truncated: {elf.stream_len} of {wanted} bytes ({kind} headers)")
    return [struct_parse(form, stream, offset + index * entry_size) for index in range(count)]


def _program(path: Path, elf: ELFFile, headers: list[Any]) -> Program:
    segments = []
    entry = None
    for header in headers:
        if header.p_type != "PT_LOAD" or not header.p_memsz:
            continue
        if header.p_filesz > header.p_memsz:
            raise BadInput(str(path), f"its segment at {header.p_paddr:#x} has more bytes in the file than in memory")
        _check_extent(path, elf, header.p_offset, header.p_filesz)
        segments.append(Segment(header.p_paddr, header.p_offset, header.p_filesz, header.p_memsz))
        if header.p_vaddr <= elf["e_entry"] < header.p_vaddr + header.p_memsz and entry is None:
            entry = elf["e_entry"] - header.p_vaddr + header.p_paddr
    if not segments:
        raise BadInput(str(path), "this ELF file has no segments to load")
    return Program(tuple(segments), elf["e_entry"] if entry is None else entry)


def _pvh_entry(elf: ELFFile, stream: IO[bytes], headers: list[Any]) -> int | None:
    """The descriptor of Xen's note XEN_ELFNOTE_PHYS32_ENTRY (xen/include/public/elfnote.h)."""
    for header in headers:
        if header.p_type == "PT_NOTE":
            stream.seek(header.p_offset)
            notes = stream.read(min(header.p_filesz, _MAX_NOTES))
            for name, kind, data in _notes(notes):
                if name == b"Xen\0" and kind == _PHYS32_ENTRY and len(data) >= 4:
                    return int.from_bytes(data[:4], "little")
    return None


def _notes(data: bytes) -> Iterator[tuple[bytes, int, bytes]]:
    """Name, type and descriptor of each note; all are padded to four bytes."""
    at = 0
    while at + 12 <= len(data):
        name_size, size, kind = struct.unpack_from("<III", data, at)
        name = at + 12
        descriptor = name + -(-name_size // 4) * 4
        at = descriptor + -(-size // 4) * 4
        if at > len(data):
            return
        yield data[name : name + name_size], kind, data[descriptor : descriptor + size]


def _sections(path: Path, elf: ELFFile, stream: IO[bytes]) -> Sections | None:
    offset, entry_size, count = elf["e_shoff"], elf["e_shentsize"], elf["e_shnum"]
    if not offset or not count:
        return None
    address_at, form = _SH_ADDR[elf.elfclass]
    unloaded = []
    for index, header in enumerate(_table(path, elf, stream, "section", offset, entry_size, count)):
        if header.sh_type in ("SHT_NULL", "SHT_NOBITS") or not header.sh_size:
            continue
        _check_extent(path, elf, header.sh_offset, header.sh_size)
        if not header.sh_flags & SH_FLAGS.SHF_ALLOC and not header.sh_addr:
            unloaded.append((index * entry_size + address_at, header.sh_offset, header.sh_size))
    stream.seek(offset)
    return Sections(count, entry_size, elf["e_shstrndx"], stream.read(count * entry_size), tuple(unloaded), form)


def _check_extent(path: Path, elf: ELFFile, offset: int, size: int) -> None:
    if offset + size > elf.stream_len:
        raise BadInput(str(path), f"the ELF file is truncated: {elf.stream_len} of {offset + size} bytes")
