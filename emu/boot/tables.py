"""The tables that tell a kernel what hardware there is: in the upper half of the BIOS area, on every machine.

A kernel that searches finds them on a 16-byte boundary within 0xF0000 to 0xFFFFF: "_MP_" (:mod:`emu.boot.mptable`),
"RSD PTR " (:mod:`emu.boot.acpi`), "_SM_" and "_SM3_" (:mod:`emu.boot.smbios`).
"""

from __future__ import annotations

from emu.boot import acpi, mptable, smbios
from emu.boot.image import GuestImage
from emu.devices import layout
from emu.devices.pci import PIRQ_ROUTES
from emu.devices.pci_interrupts import pirq_of

MP_TABLE = layout.BIOS_AREA + 0x8000  # gpas; up to the end of these ROM images have nothing
SMBIOS = layout.BIOS_AREA + 0xA000
ACPI = layout.BIOS_AREA + 0xC000  # of the RSDP
END = layout.BIOS_AREA + 0xF000
RSDP_SIZE = 36  # bytes
WAKING_VECTOR = ACPI + acpi.ALIGNMENT + acpi.WAKING_VECTOR  # of the field in the FACS, which follows the RSDP


def pci_interrupts() -> tuple[tuple[int, int, int], ...]:
    """Slot, pin and I/O APIC input of each PCI interrupt, as QEMU's i440FX wires them."""
    return tuple((slot, pin, PIRQ_ROUTES[pirq_of(slot, pin)]) for slot in range(1, 32) for pin in range(4))


def place_tables(image: GuestImage, ram: int, cpus: int) -> None:
    """Add all tables to ``image``.

    Args:
        ram: bytes of guest memory.
        cpus: number of processors of the machine.
    """
    mp_table = mptable.table(MP_TABLE, pci_interrupts(), lapic=layout.LOCAL_APIC, ioapic=layout.IO_APIC, cpus=cpus)
    for gpa, data, end in (
        (MP_TABLE, mp_table, SMBIOS),
        (SMBIOS, smbios.tables(SMBIOS, ram, cpus), ACPI),
        (ACPI, _acpi(cpus), END),
    ):
        if gpa + len(data) > end:
            raise ValueError(f"the tables at {gpa:#x} have {len(data):#x} bytes")
        image.add(gpa, data)


def rsdp(cpus: int) -> bytes:
    """The root pointer of the ACPI tables, RSDP_SIZE bytes, for boot protocols that have a copy of it."""
    return _acpi(cpus)[:RSDP_SIZE]


def _acpi(cpus: int) -> bytes:
    hardware = acpi.Hardware(
        cpus=cpus, lapic=layout.LOCAL_APIC, ioapic=layout.IO_APIC, hpet=layout.HPET,
        pm_port=layout.ACPI_PM_PORT, sci_irq=layout.IRQ_ACPI, pci_window=(0xE000_0000, layout.VIRTIO - 1),
        pci_interrupts=pci_interrupts(), virtio=layout.virtio_slots(),
    )  # fmt: skip
    return acpi.tables(ACPI, hardware)
