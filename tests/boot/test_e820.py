"""The memory map that boot protocols tell."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emu.boot.e820 import RESERVED, USABLE, Entry, memory_map
from emu.devices import layout

ROM = Entry(0xFFFC_0000, 0x4_0000, RESERVED)
LOW = [Entry(0, 0x9_FC00, USABLE), Entry(0x9_FC00, 0x400, RESERVED), Entry(0xF_0000, 0x1_0000, RESERVED)]


def test_an_entry_is_20_bytes() -> None:
    entry = Entry(0x1_2345_6789, 0xABCD_EF01_2345, RESERVED).pack()
    assert entry == struct.pack("<QQI", 0x1_2345_6789, 0xABCD_EF01_2345, 2) and len(entry) == 20


@pytest.mark.parametrize(
    ("ram", "expected"),
    [
        (64 << 10, [Entry(0, 0x1_0000, USABLE)]),
        (1 << 20, LOW),
        (64 << 20, [*LOW, Entry(1 << 20, 63 << 20, USABLE)]),
        (3 << 30, [*LOW, Entry(1 << 20, 0xBFF0_0000, USABLE)]),
        ((3 << 30) + 4096, [*LOW, Entry(1 << 20, 0xBFF0_0000, USABLE), Entry(1 << 32, 4096, USABLE)]),
        (5 << 30, [*LOW, Entry(1 << 20, 0xBFF0_0000, USABLE), Entry(1 << 32, 2 << 30, USABLE)]),
    ],
)
def test_maps(ram: int, expected: list[Entry]) -> None:
    assert sorted(memory_map(ram), key=lambda entry: entry.gpa) == sorted([*expected, ROM], key=lambda e: e.gpa)


@given(pages=st.integers(16, 1 << 28))
def test_any_map(pages: int) -> None:
    """Ascending, without overlaps; all that is usable is RAM, and all RAM but the BIOS's parts is usable."""
    ram = pages << 12
    entries = memory_map(ram)
    for entry, following in zip(entries, entries[1:], strict=False):
        assert entry.size > 0 and entry.gpa + entry.size <= following.gpa
    memory = layout.ram_ranges(ram)
    usable = [entry for entry in entries if entry.kind == USABLE]
    for entry in usable:
        assert any(part.start <= entry.gpa and entry.gpa + entry.size <= part.stop for part in memory)
    bios = max(min(ram, 1 << 20) - 0x9_FC00, 0)
    assert sum(entry.size for entry in usable) == ram - bios
