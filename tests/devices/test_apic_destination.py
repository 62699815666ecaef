"""Whom a message is for: every kind of destination against the manual's words."""

from __future__ import annotations

import pytest

from emu.devices import lapic_registers as reg
from emu.devices.apic_destination import FLAT, is_meant, wide_destination, x2apic_ldr

XAPIC = reg.BASE_ENABLED
X2APIC = reg.BASE_ENABLED | reg.BASE_X2APIC
EVERYBODY = 0xFFFF_FFFF


def meant(base: int, apic_id: int, ldr: int, dfr: int, destination: int, logical: bool) -> bool:
    registers = [0] * 0x40
    shift = 0 if base & reg.BASE_X2APIC else 24
    registers[reg.ID], registers[reg.LDR], registers[reg.DFR] = apic_id << shift, ldr << shift, dfr
    return is_meant(base, registers, destination, logical)


def test_all_ones_are_everybody() -> None:
    assert [wide_destination(number) for number in (0, 0xFE, 0xFF)] == [0, 0xFE, EVERYBODY]
    for logical in (False, True):
        assert meant(XAPIC, 3, 0, FLAT, EVERYBODY, logical)
        assert meant(X2APIC, 3, x2apic_ldr(3), FLAT, EVERYBODY, logical)
        assert not meant(0, 3, 8, FLAT, EVERYBODY, logical), "globally disabled"


@pytest.mark.parametrize("base", [XAPIC, X2APIC])
def test_physical(base: int) -> None:
    assert [number for number in range(0x200) if meant(base, 5, 1, FLAT, number, False)] == [5]


def test_flat() -> None:
    """Any bit in common."""
    for ldr in (0, 1, 0x80, 0x41):
        for destination in range(0xFF):
            assert meant(XAPIC, 0, ldr, FLAT, destination, True) == bool(ldr & destination)


def test_cluster() -> None:
    """The same cluster and a member in common."""
    for ldr in (0x01, 0x08, 0x23, 0xE4):
        for destination in range(0xFF):
            expected = ldr & 0xF0 == destination & 0xF0 and bool(ldr & destination & 0xF)
            assert meant(XAPIC, 0, ldr, 0x0FFF_FFFF, destination, True) == expected


def test_x2apic_cluster() -> None:
    assert [x2apic_ldr(number) for number in (0, 1, 15, 16, 0x123)] == [1, 2, 0x8000, 0x1_0001, 0x12_0008]

    def listeners(destination: int) -> list[int]:
        return [number for number in range(40) if meant(X2APIC, number, x2apic_ldr(number), FLAT, destination, True)]

    assert listeners(0x0000_0006) == [1, 2]
    assert listeners(0x0001_8001) == [16, 31]
    assert listeners(0x0002_FFFF) == list(range(32, 40))
    assert listeners(0x0003_FFFF) == listeners(0x0001_0000) == []
