"""The tables in the BIOS area that tell a kernel what hardware there is, for guests that start without a BIOS."""

from __future__ import annotations

from emu.boot import acpi, mptable
from emu.boot.image import GuestImage
from emu.devices import layout

ACPI = layout.BIOS_AREA  # gpa of the RSDP
MP_TABLE = layout.BIOS_AREA + 0x8000


def pci_interrupts() -> tuple[tuple[int, int, int], ...]:
    """Slot, pin and I/O APIC input of each PCI interrupt, as QEMU's i440FX wires them."""
    inputs = (10, 10, 11, 11)
    return tuple((slot, pin, inputs[(slot - 1 + pin) & 3]) for slot in range(1, 32) for pin in range(4))


def place_tables(image: GuestImage, cpus: int, rsdp: int = ACPI) -> None:
    """Add ACPI and MP tables to ``image``.

    Args:
        cpus: number of processors of the machine.
        rsdp: gpa of the RSDP, with which the ACPI tables begin; at most 0x3000 bytes.
    """
    hardware = acpi.Hardware(
        cpus=cpus, lapic=layout.LOCAL_APIC, ioapic=layout.IO_APIC, hpet=layout.HPET,
        pm_port=layout.ACPI_PM_PORT, sci_irq=layout.IRQ_ACPI, pci_window=(0xE000_0000, layout.VIRTIO - 1),
        pci_interrupts=pci_interrupts(), virtio=layout.virtio_slots(),
    )  # fmt: skip
    image.add(rsdp, acpi.tables(rsdp, hardware))
    mp_table = mptable.table(MP_TABLE, pci_interrupts(), lapic=layout.LOCAL_APIC, ioapic=layout.IO_APIC, cpus=cpus)
    image.add(MP_TABLE, mp_table)
