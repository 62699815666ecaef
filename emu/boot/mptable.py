"""The MP table, from which kernels without ACPI learn of the APICs. Source: Intel MultiProcessor Specification 1.4.

A floating pointer, which a kernel finds on a 16-byte boundary in the last KiB of base memory, in the EBDA or within
0xF0000 to 0xFFFFF, leads to the configuration table: a header, then entries sorted by their kind.

    0  processor    1  bus    2  I/O APIC    3  interrupt: bus source -> I/O APIC input    4  the same -> local APIC pin

An ISA and a PCI bus, one I/O APIC. Interrupts of ISA are at the input of their number, the timer at input 2. After
reset the 8259 is in charge (virtual wire mode, there is no IMCR): LINT0 is ExtINT, LINT1 is NMI.

The I/O APIC has ID 0, as the first processor has. On the bus of the first APICs all IDs had to differ (3.6.6 of the
specification); since APIC version 14H no message carries the ID of an I/O APIC. Its register holds 0 at reset, which
xv6 compares, and QEMU has it; Linux renumbers I/O APICs only where the old bus is.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

from emu.errors import BadInput

ALIGNMENT = 16  # bytes
POINTER = "<4sIBBBB4x"  # signature, table, length in 16 bytes, revision, checksum, feature byte 1: 0 a table is there
# signature, length, revision, checksum, OEM, product, OEM table and its size, entries, local APIC, extended table
HEADER = "<4sHBB8s12sIHHIHBx"
REVISION = 4  # 1.4

PROCESSOR = "<BBBBII8x"  # kind, APIC ID, APIC version, flags, signature, feature flags
BUS = "<BB6s"  # kind, bus number, type
IO_APIC = "<BBBBI"  # kind, ID, version, flags, gpa
INTERRUPT = "<BBHBBBB"  # kind, type, flags, bus, source on it, destination APIC, its input

ENABLED, BOOT_CPU = 1, 2  # flags of a processor; an I/O APIC's is 1
CPU_SIGNATURE = 0xF12  # family, model, stepping; kernels ask CPUID
CPU_FEATURES = 1 << 9 | 1 << 0  # APIC, FPU
LAPIC_VERSION, IO_APIC_VERSION = 0x14, 0x20
PCI_BUS, ISA_BUS = 0, 1  # numbers; a PCI bus has its own, 0
IO_APIC_ID, ALL_APICS = 0, 0xFF
INT, NMI, EXTINT = 0, 1, 3  # types of interrupts
CONFORMS, LEVEL_HIGH = 0x0, 0xD  # flags: as on its bus; level-triggered, active high


def table(
    gpa: int,
    pci_interrupts: Iterable[tuple[int, int, int]] = (),
    level_irqs: Iterable[int] = (9,),
    lapic: int = 0xFEE0_0000,
    ioapic: int = 0xFEC0_0000,
    cpus: int = 1,
) -> bytes:
    """Floating pointer and configuration table, made to lie at ``gpa``.

    Args:
        gpa: a multiple of 16.
        pci_interrupts: slot, pin (0 INTA to 3 INTD) and I/O APIC input of each PCI interrupt.
        level_irqs: level-triggered interrupts that are not PCI's; 9 is ACPI's.
        lapic, ioapic: gpas of the pages with their registers.
        cpus: number of processors, at most 255; they have the APIC IDs from 0 on, and 0 is the one that boots.

    Raises BadInput when ``gpa`` is none that the pointer can have.
    """
    if gpa % ALIGNMENT or not 0 <= gpa < 1 << 20:
        raise BadInput(f"MP table at {gpa:#x}", f"not a multiple of {ALIGNMENT} below 1 MiB")
    routes = tuple(pci_interrupts)
    of_pci = {number for *_, number in routes}
    level = frozenset(level_irqs)
    entries = [
        *(
            struct.pack(PROCESSOR, 0, apic_id, LAPIC_VERSION, flags, CPU_SIGNATURE, CPU_FEATURES)
            for apic_id, flags in enumerate((ENABLED | BOOT_CPU, *(ENABLED,) * (cpus - 1)))
        ),
        struct.pack(BUS, 1, PCI_BUS, b"PCI   "),
        struct.pack(BUS, 1, ISA_BUS, b"ISA   "),
        struct.pack(IO_APIC, 2, IO_APIC_ID, IO_APIC_VERSION, ENABLED, ioapic),
    ]
    for slot, pin, number in routes:
        entries.append(struct.pack(INTERRUPT, 3, INT, LEVEL_HIGH, PCI_BUS, slot << 2 | pin, IO_APIC_ID, number))
    for irq in range(16):
        if irq == 2 or irq in of_pci - level:
            continue  # the cascade is no interrupt, and one of PCI is none of ISA
        flags = LEVEL_HIGH if irq in level else CONFORMS
        entries.append(struct.pack(INTERRUPT, 3, INT, flags, ISA_BUS, irq, IO_APIC_ID, irq or 2))
    for pin, kind in enumerate((EXTINT, NMI)):
        entries.append(struct.pack(INTERRUPT, 4, kind, CONFORMS, ISA_BUS, 0, ALL_APICS, pin))

    pointer_size = struct.calcsize(POINTER)
    pointer = struct.pack(POINTER, b"_MP_", gpa + pointer_size, pointer_size // 16, REVISION, 0, 0)
    length = struct.calcsize(HEADER) + sum(map(len, entries))
    header = struct.pack(
        HEADER, b"PCMP", length, REVISION, 0, b"EMU     ", b"PC          ", 0, 0, len(entries), lapic, 0, 0
    )
    return _with_checksum(pointer, 10) + _with_checksum(header + b"".join(entries), 7)


def _with_checksum(data: bytes, offset: int) -> bytes:
    """``data`` with the byte at ``offset``, 0 till now, such that the sum of all is 0."""
    return data[:offset] + bytes((-sum(data) & 0xFF,)) + data[offset + 1 :]
