"""The ACPI tables that tell a kernel what hardware there is. Source: ACPI specification 6.5, chapters 5 and 6.

    RSDP -> RSDT, XSDT -> FADT -> FACS, DSDT
                       -> MADT   interrupt controllers
                       -> HPET

A kernel finds the RSDP on a 16-byte boundary within 0xE0000 to 0xFFFFF, unless its boot protocol tells. Everything lies
in one block that begins with it. The guest may write the FACS, the rest is constant. All is as on QEMU's ``pc``
machine, except that the machine is always in ACPI mode: SMI command port 0.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from emu.boot import aml
from emu.errors import BadInput

ALIGNMENT = 64  # bytes, that of the FACS
OEM_ID, OEM_TABLE_ID, CREATOR_ID = b"EMU   ", b"EMUPC   ", b"EMU "
HEADER = "<4sIBB6s8sI4sI"  # signature, length, revision, checksum, OEM, table, revision, creator, revision
RSDP = "<8sB6sBIIQBxxx"  # signature, checksum of 20 bytes, OEM, revision, RSDT, length, XSDT, checksum of all
GAS = "<BBBBQ"  # generic address: space, bits, first bit, access size (1 byte, 2 word, 3 dword), address
SPACE_MEMORY, SPACE_IO = 0, 1

FADT_REVISION = 3
FADT_FLAGS = 1 << 0 | 1 << 2 | 1 << 5 | 1 << 10  # WBINVD works, C1 works, no fixed sleep button, reset register
BOOT_ARCH = 0x3  # there are ISA devices and an i8042
DESKTOP = 1  # preferred power management profile
NO_C2, NO_C3 = 101, 1001  # us, latencies that mean the state is not there
CENTURY = 0x32  # CMOS byte of the century
PM1_EVENT_SIZE, PM1_CONTROL, PM1_CONTROL_SIZE, PM_TIMER, PM_TIMER_SIZE, PM_PORTS = (
    4,
    4,
    2,
    8,
    4,
    12,
)  # emu.devices.acpi_pm
S3_SLP_TYP, S5_SLP_TYP = 1, 0
WAKING_VECTOR = 12  # offset of the firmware waking vector, u32, in the FACS

MADT_PCAT = 1  # there are two 8259s as well
CONFORMS, LEVEL_HIGH = 0x0, 0xD  # flags of a source override: as on its bus; level-triggered, active high
HPET_ID = 0x8086_A201  # vendor, legacy replacement, 64 bits, three timers, revision 1

SERIAL, RTC, KEYBOARD, MOUSE = "PNP0501", "PNP0B00", "PNP0303", "PNP0F13"  # Plug and Play IDs
HOST_BRIDGE, MOTHERBOARD, HPET_DEVICE, VIRTIO = "PNP0A03", "PNP0C02", "PNP0103", "LNRO0005"


@dataclass(frozen=True)
class Hardware:
    """What the tables tell of; addresses are gpas.

    Attributes:
        cpus: number of processors, at most 255; they have the APIC IDs from 0 on.
        lapic, ioapic: pages of the registers.
        pm_port: first of the 12 ports of power management.
        sci_irq: its interrupt.
        reset_port, reset_value: what to write where to reset.
        pci_window: first and last gpa that a kernel may give to PCI devices.
        pci_interrupts: slot, pin (0 INTA to 3 INTD) and I/O APIC input of each PCI interrupt.
        hpet: page of the HPET, None without one.
        virtio: gpa, size and I/O APIC input of each virtio-mmio device.
    """

    cpus: int = 1
    lapic: int = 0xFEE0_0000
    ioapic: int = 0xFEC0_0000
    pm_port: int = 0x600
    sci_irq: int = 9
    reset_port: int = 0xCF9
    reset_value: int = 0x0F
    pci_window: tuple[int, int] = (0xE000_0000, 0xFEBF_FFFF)
    pci_interrupts: tuple[tuple[int, int, int], ...] = ()
    hpet: int | None = 0xFED0_0000
    virtio: tuple[tuple[int, int, int], ...] = ()


def tables(gpa: int, hardware: Hardware) -> bytes:
    """The block of all tables, made to lie at ``gpa``; the RSDP is its first 36 bytes.

    Raises BadInput when ``gpa`` is not on a 64-byte boundary or the block would not end below 4 GiB.
    """
    if gpa % ALIGNMENT or gpa < 0:
        raise BadInput(f"ACPI tables at {gpa:#x}", f"not on a boundary of {ALIGNMENT} bytes")
    block = bytearray(ALIGNMENT)  # the RSDP comes last

    def place(data: bytes) -> int:
        at = gpa + len(block)
        block.extend(data + bytes(-len(data) % ALIGNMENT))
        if gpa + len(block) > 1 << 32:
            raise BadInput(f"ACPI tables at {gpa:#x}", "do not end below 4 GiB")
        return at

    facs = place(_facs())
    dsdt = place(_table(b"DSDT", 2, _namespace(hardware)))
    others = [place(_table(b"FACP", FADT_REVISION, _fadt(hardware, facs, dsdt)))]
    others.append(place(_table(b"APIC", 3, _madt(hardware))))
    if hardware.hpet is not None:
        others.append(place(_table(b"HPET", 1, _hpet(hardware.hpet))))
    rsdt = place(_table(b"RSDT", 1, struct.pack(f"<{len(others)}I", *others)))
    xsdt = place(_table(b"XSDT", 1, struct.pack(f"<{len(others)}Q", *others)))
    rsdp = bytearray(struct.pack(RSDP, b"RSD PTR ", 0, OEM_ID, 2, rsdt, struct.calcsize(RSDP), xsdt, 0))
    rsdp[8] = _checksum(rsdp[:20])
    rsdp[32] = _checksum(rsdp)
    block[: len(rsdp)] = rsdp
    return bytes(block)


def _checksum(data: bytes | bytearray) -> int:
    """The byte that makes the sum of all 0."""
    return -sum(data) & 0xFF


def _table(signature: bytes, revision: int, body: bytes) -> bytes:
    length = struct.calcsize(HEADER) + len(body)
    header = struct.pack(HEADER, signature, length, revision, 0, OEM_ID, OEM_TABLE_ID, 1, CREATOR_ID, 1)
    table = bytearray(header + body)
    table[9] = _checksum(table)
    return bytes(table)


def _facs() -> bytes:
    """Length 64, version 1; no waking vector yet, the global lock is free (5.2.10). Has no checksum."""
    return struct.pack("<4sI24xB31x", b"FACS", 64, 1)


def _io(port: int, size: int, access: int) -> bytes:
    return struct.pack(GAS, SPACE_IO, 8 * size, 0, access, port)


def _fadt(hardware: Hardware, facs: int, dsdt: int) -> bytes:
    """5.2.9. The addresses come as 32-bit fields and again as generic addresses."""
    event, control = hardware.pm_port, hardware.pm_port + PM1_CONTROL
    timer = hardware.pm_port + PM_TIMER
    none = bytes(struct.calcsize(GAS))
    return b"".join(
        (
            struct.pack("<IIxBH", facs, dsdt, DESKTOP, hardware.sci_irq),
            bytes(8),  # SMI command port and commands: none
            struct.pack("<8I", event, 0, control, 0, 0, timer, 0, 0),  # PM1a and PM1b, twice; PM2, timer, GPE0, GPE1
            struct.pack("<8B", PM1_EVENT_SIZE, PM1_CONTROL_SIZE, 0, PM_TIMER_SIZE, 0, 0, 0, 0),  # their sizes
            struct.pack("<HHHHBB", NO_C2, NO_C3, 0, 0, 0, 0),  # no cache flush by reading, no duty cycle
            struct.pack("<BBBHx", 0, 0, CENTURY, BOOT_ARCH),  # no alarm for days and months
            struct.pack("<I", FADT_FLAGS),
            _io(hardware.reset_port, 1, 1) + struct.pack("<Bxxx", hardware.reset_value),
            struct.pack("<QQ", 0, dsdt),  # FACS, only when it is above 4 GiB
            _io(event, PM1_EVENT_SIZE, 2) + none,
            _io(control, PM1_CONTROL_SIZE, 2) + none,
            none,  # PM2
            _io(timer, PM_TIMER_SIZE, 3),
            none + none,  # GPEs
        )
    )


def _madt(hardware: Hardware) -> bytes:
    """5.2.12: the local APICs, the I/O APIC, and the interrupts that are not 1:1 and edge-triggered as on ISA."""
    gsis = {hardware.sci_irq, *(gsi for *_, gsi in hardware.pci_interrupts), *(gsi for *_, gsi in hardware.virtio)}
    overrides = [(0, 2, CONFORMS)]  # the PIT is at input 2
    overrides += [(gsi, gsi, LEVEL_HIGH) for gsi in sorted(gsis) if gsi < 16]
    return b"".join(
        (
            struct.pack("<II", hardware.lapic, MADT_PCAT),
            *(struct.pack("<BBBBI", 0, 8, cpu, cpu, 1) for cpu in range(hardware.cpus)),  # UID, APIC ID; enabled
            struct.pack("<BBBBII", 1, 12, 0, 0, hardware.ioapic, 0),  # ID 0, inputs from 0
            *(struct.pack("<BBBBIH", 2, 10, 0, source, gsi, flags) for source, gsi, flags in overrides),
            struct.pack("<BBBHB", 4, 6, 0xFF, CONFORMS, 1),  # all CPUs: NMI at LINT1
        )
    )


def _hpet(gpa: int) -> bytes:
    """IA-PC HPET specification 1.0a, 3.2.4: block 0, no least tick, no page protection."""
    return struct.pack("<I", HPET_ID) + struct.pack(GAS, SPACE_MEMORY, 64, 0, 0, gpa) + struct.pack("<BHB", 0, 0, 0)


# ---- the namespace


def _namespace(hardware: Hardware) -> bytes:
    zero = aml.integer(0)
    virtio = (_virtio(number, *place) for number, place in enumerate(hardware.virtio))
    hpet = () if hardware.hpet is None else (_device("HPET", HPET_DEVICE, aml.memory32(hardware.hpet, 0x400)),)
    return b"".join(
        (
            aml.name("PICM", zero),  # 1: the kernel uses the I/O APIC
            aml.method("\\_PIC", 1, aml.store(aml.ARG0, aml.path("PICM"))),
            aml.name("\\_S3", aml.package(aml.integer(S3_SLP_TYP), zero, zero, zero)),
            aml.name("\\_S5", aml.package(aml.integer(S5_SLP_TYP), zero, zero, zero)),
            aml.scope("\\_SB", _host_bridge(hardware), *hpet, *virtio),
        )
    )


def _host_bridge(hardware: Hardware) -> bytes:
    windows = (
        aml.word_range(aml.BUS_NUMBER, 0, 0, 255),
        aml.io(0xCF8, 8),  # configuration mechanism 1, for itself
        aml.word_range(aml.IO, aml.ENTIRE, 0x0000, 0x0CF7),
        aml.word_range(aml.IO, aml.ENTIRE, 0x0D00, 0xFFFF),
        aml.dword_range(aml.MEMORY, aml.WRITABLE, 0xA_0000, 0xB_FFFF),
        aml.dword_range(aml.MEMORY, aml.WRITABLE, *hardware.pci_window),
    )
    routes = (
        aml.package(aml.integer(slot << 16 | 0xFFFF), aml.integer(pin), aml.integer(0), aml.integer(gsi))
        for slot, pin, gsi in hardware.pci_interrupts
    )
    isa = (
        _device("COM1", SERIAL, aml.io(0x3F8, 8), aml.irq(4)),
        _device("RTC", RTC, aml.io(0x70, 2), aml.irq(8)),
        _device("KBD", KEYBOARD, aml.io(0x60, 1), aml.io(0x64, 1), aml.irq(1)),
        _device("MOU", MOUSE, aml.irq(12)),
        _device("SYSR", MOTHERBOARD, aml.io(hardware.pm_port, PM_PORTS), aml.io(0xB2, 2), aml.io(0x4D0, 2)),
    )
    return aml.device(
        "PCI0",
        aml.name("_HID", aml.eisa_id(HOST_BRIDGE)),
        aml.name("_UID", aml.integer(0)),
        aml.name("_BBN", aml.integer(0)),
        aml.name("_CRS", aml.resources(*windows)),
        aml.name("_PRT", aml.package(*routes)),
        aml.device("ISA", aml.name("_ADR", aml.integer(1 << 16)), *isa),  # slot 1, function 0
    )


def _device(text: str, hardware_id: str, *descriptors: bytes) -> bytes:
    """A device that is there and enabled."""
    return aml.device(text, aml.name("_HID", aml.eisa_id(hardware_id)), aml.name("_CRS", aml.resources(*descriptors)))


def _virtio(number: int, gpa: int, size: int, gsi: int) -> bytes:
    return aml.device(
        f"VR{number:02X}",
        aml.name("_HID", aml.string(VIRTIO)),
        aml.name("_UID", aml.integer(number)),
        aml.name("_CCA", aml.integer(1)),  # DMA is cache-coherent
        aml.name("_CRS", aml.resources(aml.memory32(gpa, size), aml.interrupt(gsi))),
    )
