"""First CPU states: descriptors and page tables, read by hand."""

from __future__ import annotations

import struct

import pytest

from emu.boot import entry

TABLES = 0x3_0000


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (entry.CODE_32, 0x00CF_9B00_0000_FFFF),
        (entry.DATA_32, 0x00CF_9300_0000_FFFF),
        (entry.CODE_64, 0x00AF_9B00_0000_FFFF),
    ],
)
def test_descriptors(flags: int, expected: int) -> None:
    assert struct.unpack("<Q", entry.descriptor(flags)) == (expected,)


def walk(tables: bytes, gva: int) -> int:
    """Intel SDM vol. 3A, 4.5, for 2 MiB pages."""

    def load(table: int, index: int) -> int:
        (value,) = struct.unpack_from("<Q", tables, table - TABLES + 8 * index)
        assert value & 3 == 3, f"{gva:#x}: entry {value:#x}"
        return int(value)

    table = TABLES
    for shift in (39, 30):
        value = load(table, gva >> shift & 511)
        assert not value & 0x80
        table = value & ~0xFFF
    value = load(table, gva >> 21 & 511)
    assert value & 0x80 and not value & 0x1F_E000
    return value & ~0x1F_FFFF | gva & 0x1F_FFFF


def test_identity_tables() -> None:
    tables = entry.identity_tables(TABLES)
    assert len(tables) == entry.LONG_MODE_TABLES * 4096
    for gva in [*range(0, 1 << 32, 1 << 21), 0x10_0123, 0xFEE0_0030, 0xFFFF_FFFF]:
        assert walk(tables, gva) == gva


def test_nothing_else_is_mapped() -> None:
    tables = entry.identity_tables(TABLES)
    words = struct.unpack(f"<{len(tables) // 8}Q", tables)
    assert sum(bool(word & 1) for word in words) == 1 + 4 + 2048
    assert words[1] == 0 and words[512 + 4] == 0
