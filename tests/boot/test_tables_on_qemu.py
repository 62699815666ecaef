"""MP table and MADT against what QEMU's BIOS shows a guest: the same machine, compared by meaning.

What remains different is asserted, each with its reason. Not compared: who made the tables, and the processors'
signature and features, which are another CPU's. QEMU's DSDT has a Processor object for each processor, ours has none:
kernels find processors in the MADT, and there are no C- or P-states to describe.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

import pytest

from emu.boot.image import GuestImage
from emu.boot.tables import pci_interrupts, place_tables
from emu.devices import layout
from tests.oracles.qemu_guest import QEMU, have_qemu, memory_after_boot

pytestmark = pytest.mark.skipif(not have_qemu(), reason=f"{QEMU} is not installed")

PCI_SLOTS = (3, 4, 5, 6)  # QEMU gets a device with INTA in each
NMI, EXTINT = 1, 3
EVERYBODY = 0xFF
ENTRY_SIZES = (20, 8, 8, 8, 8)  # of the MP table, by kind


@dataclass
class Shown:
    """What tables say.

    Attributes:
        lapic: gpa of the local APICs.
        processors: APIC IDs, in order; the first is the one that boots.
        io_apics: ID and gpa.
        interrupts: (bus, source) -> I/O APIC input, "edge" or "level", "high" or "low".
        pins: (LINT pin, kind) -> APIC ID.
    """

    lapic: int
    processors: list[int] = field(default_factory=list)
    io_apics: list[tuple[int, int]] = field(default_factory=list)
    interrupts: dict[tuple[str, int], tuple[int, str, str]] = field(default_factory=dict)
    pins: dict[tuple[int, int], int] = field(default_factory=dict)


def how(bus: str, flags: int) -> tuple[str, str]:
    """Trigger mode and polarity of an interrupt (MP specification, table 4-10; ACPI has the same)."""
    usual = ("level", "low") if bus == "PCI" else ("edge", "high")
    return {0: usual[0], 1: "edge", 3: "level"}[flags >> 2 & 3], {0: usual[1], 1: "high", 3: "low"}[flags & 3]


def mp_table(memory: bytes) -> Shown:
    """As kernels read it: the pointer is on a 16-byte boundary within the BIOS area."""
    for at in range(layout.BIOS_AREA, layout.EXTENDED_MEMORY, 16):
        if memory[at : at + 4] == b"_MP_" and not sum(memory[at : at + 16]) & 0xFF:
            break
    else:
        raise AssertionError("no MP table")
    (at,) = struct.unpack_from("<I", memory, at + 4)
    size, count, lapic = struct.unpack_from("<4xH28xHI", memory, at)
    assert not sum(memory[at : at + size]) & 0xFF
    at += 44
    shown = Shown(lapic)
    buses = {}
    for _ in range(count):
        entry = memory[at : at + ENTRY_SIZES[memory[at]]]
        at += len(entry)
        if entry[0] == 0:
            assert entry[2] == 0x14, "version of the APIC"
            assert entry[3] == (1 if shown.processors else 3), "enabled; the first one boots"
            shown.processors.append(entry[1])
        elif entry[0] == 1:
            buses[entry[1]] = entry[2:].decode().strip()
        elif entry[0] == 2:
            assert entry[3] == 1, "enabled"
            shown.io_apics.append((entry[1], int.from_bytes(entry[4:], "little")))
        else:
            _, kind, flags, bus, source, apic, number = struct.unpack("<BBHBBBB", entry)
            if entry[0] == 3:
                assert (kind, apic) == (0, 0), "INT, at the only I/O APIC"
                shown.interrupts[buses[bus], source] = (number, *how(buses[bus], flags))
            else:
                assert (buses[bus], source, how("ISA", flags)) == ("ISA", 0, ("edge", "high"))
                shown.pins[number, kind] = apic
    return shown


def madt(memory: bytes) -> Shown:
    """As kernels read it, from the RSDP by the RSDT."""
    places = range(layout.BIOS_AREA, layout.EXTENDED_MEMORY, 16)
    rsdp = next(at for at in places if memory[at : at + 8] == b"RSD PTR " and not sum(memory[at : at + 20]) & 0xFF)
    (rsdt,) = struct.unpack_from("<I", memory, rsdp + 16)
    tables = {}
    (size,) = struct.unpack_from("<I", memory, rsdt + 4)
    for (at,) in struct.iter_unpack("<I", memory[rsdt + 36 : rsdt + size]):
        (length,) = struct.unpack_from("<I", memory, at + 4)
        tables[memory[at : at + 4]] = memory[at : at + length]
    table = tables[b"APIC"]
    assert not sum(table) & 0xFF
    lapic, flags = struct.unpack_from("<II", table, 36)
    assert flags == 1, "there are 8259s, too"
    shown = Shown(lapic)
    rest = table[44:]
    while rest:
        entry, rest = rest[: rest[1]], rest[rest[1] :]
        if entry[0] == 0:
            assert entry[2] == entry[3], "the UID is the APIC ID"
            assert entry[4] == 1, "enabled"
            shown.processors.append(entry[3])
        elif entry[0] == 1:
            _, _, number, gpa, first = struct.unpack("<BBBxII", entry)
            assert first == 0
            shown.io_apics.append((number, gpa))
        elif entry[0] == 2:
            _, _, bus, source, gsi, flags = struct.unpack("<BBBBIH", entry)
            assert bus == 0
            shown.interrupts["ISA", source] = (gsi, *how("ISA", flags))
        else:
            _, _, uid, flags, pin = struct.unpack("<BBBHB", entry)
            assert (entry[0], flags) == (4, 0)
            shown.pins[pin, NMI] = uid
    return shown


def memory_of(image: GuestImage) -> bytes:
    """The first MiB."""
    return b"".join(image.page(gfn) for gfn in range(layout.EXTENDED_MEMORY >> 12))


def ours(cpus: int) -> bytes:
    image = GuestImage()
    place_tables(image, 16 << 20, cpus)
    return memory_of(image)


def theirs(smp: str) -> bytes:
    devices = [word for slot in PCI_SLOTS for word in ("-device", f"virtio-rng-pci,addr={slot}")]
    return memory_after_boot(["-smp", smp, *devices])


@pytest.mark.parametrize("cpus", [1, 2, 4, 8])
def test_the_tables_say_what_qemus_say(cpus: int) -> None:
    here, there = ours(cpus), theirs(f"{cpus},sockets={cpus},cores=1,threads=1")
    for read in (mp_table, madt):
        assert read(here).processors == read(there).processors == list(range(cpus))
        assert read(here).io_apics == read(there).io_apics == [(0, layout.IO_APIC)]
        assert read(here).lapic == read(there).lapic == layout.LOCAL_APIC
    compare_mp_interrupts(mp_table(here), mp_table(there))
    compare_overrides(madt(here), madt(there))


def compare_mp_interrupts(here: Shown, there: Shown) -> None:
    # The pins of the slots are wired alike. QEMU lists those that a device uses, here all are listed.
    for slot in PCI_SLOTS:
        assert here.interrupts["PCI", slot << 2] == there.interrupts["PCI", slot << 2]
    used = {source for bus, source in there.interrupts if bus == "PCI"}
    pm = 1 << 2  # slot 1, INTA: power management
    assert used == {pm, *(slot << 2 for slot in PCI_SLOTS)}
    listed = {slot << 2 | pin for slot, pin, _ in pci_interrupts()}
    assert {source for bus, source in here.interrupts if bus == "PCI"} == listed
    # Power management, the only function here with a pin, drives input 9 by a wire of its own. QEMU lists that wire as
    # the function's pin and leaves ISA's 9 out; here the pin is wired as in any slot and ISA's 9 is the level-triggered
    # SCI. Both tell of the same input, trigger mode and polarity.
    assert there.interrupts["PCI", pm] == here.interrupts["ISA", 9] == (9, "level", "high")
    assert ("ISA", 9) not in there.interrupts
    # QEMU's BIOS keeps 5 for PCI, which never gets it; here it is an ISA interrupt as on a PC.
    only_here = {irq for bus, irq in here.interrupts if bus == "ISA" and (bus, irq) not in there.interrupts}
    assert only_here == {5, 9}
    for key, value in there.interrupts.items():
        assert key[0] == "PCI" or here.interrupts[key] == value
    # The 8259 is wired to LINT0 of every processor on both; QEMU's BIOS names the first one only, which is the one that
    # listens at reset.
    assert there.pins == {(0, EXTINT): 0, (1, NMI): EVERYBODY}
    assert here.pins == {(0, EXTINT): EVERYBODY, (1, NMI): EVERYBODY}


def compare_overrides(here: Shown, there: Shown) -> None:
    # QEMU's links may bring a PCI interrupt to 5, here the wiring is fixed and none goes there.
    assert there.interrupts.pop(("ISA", 5)) == (5, "level", "high")
    assert here.interrupts == there.interrupts
    assert here.pins == there.pins == {(1, NMI): EVERYBODY}


def test_qemu_lists_processors_and_packages() -> None:
    """With several processors in a package the MADT lists all, and QEMU's MP table one a package. Ours lists all: here
    each processor is a package."""
    there = theirs("4,sockets=2,cores=2,threads=1")
    assert madt(there).processors == [0, 1, 2, 3]
    assert mp_table(there).processors == [0, 2]
    assert mp_table(ours(4)).processors == [0, 1, 2, 3]
