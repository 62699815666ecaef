"""ELF headers: what is loaded where, and which sections are left over. Broken files: test_multiboot.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from emu.boot.elf import read_elf
from emu.boot.loader import Loader, Segment
from emu.errors import BadInput
from tests.boot.kernels import ALLOC, EM_386, EM_X86_64, NOBITS, PROGBITS, STRTAB, SYMTAB, Load, Section, elf

BASE = 0x10_0000
SECTIONS = (
    Section(".text", PROGBITS, b"code", ALLOC, BASE),
    Section(".bss", NOBITS, b"", ALLOC, BASE + 0x1000),
    Section(".symtab", SYMTAB, b"symbols"),
    Section(".strtab", STRTAB, b"strings"),
    Section(".empty", PROGBITS),
)


@pytest.mark.parametrize(("bits", "machine", "size"), [(32, EM_386, 40), (64, EM_X86_64, 64), (32, EM_X86_64, 40)])
def test_segments_and_sections(tmp_path: Path, bits: int, machine: int, size: int) -> None:
    path = tmp_path / "kernel"
    loads = [Load(BASE, b"code"), Load(BASE + 0x1000, b"", 0x4000), Load(2 * BASE, b"", 0), Load(2 * BASE, b"data", 5)]
    path.write_bytes(elf(loads, BASE + 2, bits, machine, sections=SECTIONS))
    kernel = read_elf(path)
    offset = max(0x100, 64 + 56 * len(loads) if bits == 64 else 52 + 32 * len(loads))
    assert kernel.program.segments == (
        Segment(BASE, offset, 4, 4),
        Segment(BASE + 0x1000, offset + 4, 0, 0x4000),
        Segment(2 * BASE, offset + 4, 4, 5),
    )
    assert kernel.program.entry == BASE + 2
    sections = kernel.sections
    assert sections is not None
    assert (sections.count, sections.entry_size, sections.names, len(sections.table)) == (7, size, 6, 7 * size)
    assert [length for _, _, length in sections.unloaded] == [7, 7, 45]

    loader = Loader(path, 4 << 20)
    loader.load(kernel.program)
    table = sections.load(loader)
    at, width = (12, 4) if bits == 32 else (16, 8)
    addresses = [int.from_bytes(table[n * size + at : n * size + at + width], "little") for n in range(7)]
    at = (4 << 20) - 80  # the end of memory: kernels take what lies behind them for their heap
    assert addresses == [0, BASE, BASE + 0x1000, at, at + 16, 0, at + 32]
    assert loader.image.page(at >> 12)[at & 0xFFF :][:7] == b"symbols"
    assert loader.image.page(2 * BASE >> 12) == b"data".ljust(4096, b"\0")


@pytest.mark.parametrize(
    ("vaddrs", "entry", "expected"),
    [
        ((None, None), BASE + 1, BASE + 1),
        ((0xC000_0000, 0xC010_0000), 0xC010_0003, 2 * BASE + 3),
        ((0xC000_0000, 0xC010_0000), BASE + 3, BASE + 3),
        ((0xFFFF_FFFF_8000_0000, 0), 0xFFFF_FFFF_8000_0001, BASE + 1),
        ((None, None), 77, 77),
    ],
)
def test_entry_points(tmp_path: Path, vaddrs: tuple[int | None, int | None], entry: int, expected: int) -> None:
    path = tmp_path / "kernel"
    loads = [Load(BASE, b"code", None, vaddrs[0]), Load(2 * BASE, b"code", None, vaddrs[1])]
    path.write_bytes(elf(loads, entry, 64, EM_X86_64))
    kernel = read_elf(path)
    assert kernel.program.entry == expected
    assert kernel.sections is None


def test_a_file_that_is_gone(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="cannot be read: No such file"):
        read_elf(tmp_path / "kernel")
