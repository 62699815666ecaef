"""The MP table, found and read as xv6's mpinit and Linux' mpparse do it."""

from __future__ import annotations

import struct

import pytest

from emu.boot.mptable import table
from emu.errors import BadInput

GPA = 0xF5A40
SIZES = (20, 8, 8, 8, 8)  # of an entry of each kind
PCI = ((1, 0, 10), (2, 3, 11), (3, 0, 20))


def config(block: bytes, gpa: int = GPA) -> tuple[bytes, list[bytes]]:
    """Header and entries, everything verified on the way that xv6 and Linux verify."""
    signature, address, length, revision, _, feature = struct.unpack_from("<4sIBBBB", block)
    assert (signature, length, revision, feature) == (b"_MP_", 1, 4, 0)
    assert sum(block[:16]) & 0xFF == 0
    rest = block[address - gpa :]
    signature, size, revision = struct.unpack_from("<4sHB", rest)
    assert (signature, revision, size) == (b"PCMP", 4, len(rest))
    assert sum(rest) & 0xFF == 0
    header, rest, entries = rest[:44], rest[44:], []
    while rest:
        entries.append(rest[: SIZES[rest[0]]])
        rest = rest[SIZES[rest[0]] :]
    assert len(entries) == struct.unpack_from("<H", header, 34)[0]
    return header, entries


def test_header_and_hardware() -> None:
    header, entries = config(table(GPA, PCI))
    assert struct.unpack_from("<I", header, 36) == (0xFEE00000,)
    assert [entry[0] for entry in entries] == sorted(entry[0] for entry in entries), "sorted by kind"
    (cpu,) = (entry for entry in entries if entry[0] == 0)
    assert tuple(cpu[1:4]) == (0, 0x14, 3)
    assert [entry[1:] for entry in entries if entry[0] == 1] == [b"\0PCI   ", b"\1ISA   "]
    (chip,) = (entry for entry in entries if entry[0] == 2)
    assert struct.unpack("<BBBBI", chip) == (2, 0, 0x20, 1, 0xFEC00000)


@pytest.mark.parametrize("cpus", [1, 2, 16])
def test_processors(cpus: int) -> None:
    _, entries = config(table(GPA, cpus=cpus))
    processors = [entry for entry in entries if entry[0] == 0]
    assert [tuple(entry[1:4]) for entry in processors] == [(n, 0x14, 3 if n == 0 else 1) for n in range(cpus)]


def test_interrupts() -> None:
    _, entries = config(table(GPA, PCI))
    interrupts = [struct.unpack("<BBHBBBB", entry)[1:] for entry in entries if entry[0] == 3]
    assert interrupts[:3] == [(0, 0xD, 0, 1 << 2, 0, 10), (0, 0xD, 0, 2 << 2 | 3, 0, 11), (0, 0xD, 0, 3 << 2, 0, 20)]
    isa = {source: (flags, number) for _, flags, bus, source, _, number in interrupts[3:] if bus == 1}
    assert isa.pop(0) == (0, 2), "the timer"
    assert isa.pop(9) == (0xD, 9), "ACPI"
    assert isa == {irq: (0, irq) for irq in (1, 3, 4, 5, 6, 7, 8, 12, 13, 14, 15)}


def test_local_interrupts() -> None:
    _, entries = config(table(GPA))
    local = [struct.unpack("<BBHBBBB", entry)[1:] for entry in entries if entry[0] == 4]
    assert local == [(3, 0, 1, 0, 0xFF, 0), (1, 0, 1, 0, 0xFF, 1)]


def test_other_places_and_interrupts() -> None:
    header, entries = config(table(0x9FC00, level_irqs=(5,), lapic=0xFEE10000, ioapic=0xFEC10000), 0x9FC00)
    assert struct.unpack_from("<I", header, 36) == (0xFEE10000,)
    assert [entry[4:] for entry in entries if entry[0] == 2] == [bytes((0, 0, 0xC1, 0xFE))]
    assert [entry[5] for entry in entries if entry[0] == 3 and entry[2]] == [5]


@pytest.mark.parametrize("gpa", [GPA + 8, -16, 1 << 20])
def test_the_pointer_must_be_findable(gpa: int) -> None:
    with pytest.raises(BadInput, match="MP table at"):
        table(gpa)
