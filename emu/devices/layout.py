"""Every address and interrupt number of the machine, in one place."""

from __future__ import annotations

# ---- memory --------------------------------------------------------------------------------------------------------

EBDA = 0x9_FC00  # extended BIOS data area, up to 640K
VIDEO_MEMORY = 0xA_0000
BIOS_AREA = 0xF_0000  # up to 1M: ROM BIOS and its tables
EXTENDED_MEMORY = 0x10_0000
BIOS_ROM_HIGH = 0xFFFC_0000  # up to 4G: where a BIOS image of 256K lies
LOW_RAM_END = 0xC000_0000  # RAM goes on at 4 GiB
HIGH_RAM = 1 << 32


def ram_ranges(ram: int) -> list[range]:
    """The gpas of ``ram`` bytes of guest memory; everything else is holes and device registers.

    640K to 1M belong to video memory and ROMs on a PC; here they are memory like any other.
    """
    low = range(0, min(ram, LOW_RAM_END))
    return [low, range(HIGH_RAM, HIGH_RAM + ram - LOW_RAM_END)] if ram > LOW_RAM_END else [low]


# ---- I/O ports and interrupt lines: where an IBM PC/AT has them -----------------------------------------------------

DMA_PORT = 0x00  # 8237, channels 0 to 3
DMA_PORTS = 16
DMA2_PORT = 0xC0  # 8237, channels 4 to 7
DMA2_PORTS = 32
DMA_PAGE_PORT = 0x81  # page registers
DMA_PAGE_PORTS = 15
PIC_MASTER_PORT = 0x20  # 8259, interrupts 0 to 7
PIC_MASTER_PORTS = 2  # command, data
PIC_SLAVE_PORT = 0xA0  # 8259, interrupts 8 to 15
PIC_SLAVE_PORTS = 2  # command, data
ELCR_PORT = 0x4D0  # edge or level, one bit an interrupt
ELCR_PORTS = 2  # master, slave
PIT_PORT = 0x40  # 8254
PIT_PORTS = 4  # three counters, control word
SYSTEM_CONTROL_PORT = 0x61  # gate and output of PIT counter 2, refresh toggle
SYSTEM_CONTROL_PORTS = 1
COM1_PORT = 0x3F8  # first 16550A
COM2_PORT = 0x2F8  # second 16550A
COM_PORTS = 8
KEYBOARD_DATA_PORT = 0x60  # i8042
KEYBOARD_COMMAND_PORT = 0x64
RTC_PORT = 0x70  # MC146818 and CMOS
RTC_PORTS = 2  # index, data
POST_PORT = 0x80  # diagnostic codes of a BIOS
SYSTEM_CONTROL_PORT_A = 0x92  # A20 and fast reset
SMI_PORT = 0xB2  # switches ACPI on and off
SMI_PORTS = 2
VBE_PORT = 0x1CE  # Bochs' display interface
VBE_PORTS = 4  # index, and data from the next one on
VGA_PORT = 0x3B0  # text mode
VGA_PORTS = 0x30
IDE_PORT = 0x1F0  # primary channel
IDE_PORTS = 8
IDE_CONTROL_PORT = 0x3F6
IDE2_PORT = 0x170  # secondary channel
IDE2_PORTS = 8
IDE2_CONTROL_PORT = 0x376
IDE_BUS_MASTER_PORT = 0xC040  # where a BIOS puts it; channels 8 apart
E1000_PORT = 0xC000  # the same
FLOPPY_PORT = 0x3F0  # 82077AA
FLOPPY_PORTS = 6
FLOPPY_CHANGE_PORT = 0x3F7  # its DIR and CCR
FW_CFG_PORT = 0x510  # QEMU's firmware configuration
FW_CFG_PORTS = 12
ACPI_PM_PORT = 0x600  # power management, where QEMU's PIIX4 has it
ACPI_PM_PORTS = 12
PCI_PORT = 0xCF8  # configuration mechanism 1, and the reset register at 0xCF9
PCI_PORTS = 8
DEBUG_CONSOLE_PORT = 0xE9  # Bochs' console
DEBUG_CONSOLE_PORTS = 1
EXIT_PORT = 0xF4  # where QEMU's isa-debug-exit usually is
EXIT_PORTS = 4
LOADER_PORT = 0xEC  # emu's own: loads a kernel again
BALLOON_PORT = 0xF8  # hypercall of the memory balloon; only a 286 and its coprocessor used these ports
BALLOON_PORTS = 8  # target and inflate, deflate

IRQ_PIT = 0  # PIT counter 0
IRQ_KEYBOARD = 1
IRQ_COM2 = 3
IRQ_COM1 = 4
IRQ_FLOPPY = 6
IRQ_RTC = 8
IRQ_ACPI = 9
IRQ_MOUSE = 12
IRQ_E1000 = 11  # INTA of its slot, by way of a PIRQ
IRQ_IDE = 14
IRQ_IDE2 = 15
IRQ_VIRTIO = 16  # first of eight I/O APIC inputs for virtio devices

DMA_FLOPPY = 2  # ISA DMA channel

# ---- device registers in memory --------------------------------------------------------------------------------------

IO_APIC = 0xFEC0_0000
IO_APIC_SIZE = 0x1000
HPET = 0xFED0_0000
HPET_SIZE = 0x400
LOCAL_APIC = 0xFEE0_0000
LOCAL_APIC_SIZE = 0x1000
VIDEO_FRAME_BUFFER = 0xFD00_0000  # until the guest moves it
VGA_REGISTERS = 0xFEBF_0000  # the same
E1000 = 0xFEA0_0000  # the same
VIRTIO = 0xFEB0_0000  # first virtio-mmio device; one page each
VIRTIO_SIZE = 0x200
VIRTIO_STRIDE = 0x1000
VIRTIO_SLOTS = 5

E1000_PLACE = (3, 0)  # PCI device and function


def virtio_slots() -> tuple[tuple[int, int, int], ...]:
    """gpa, size and I/O APIC input of each virtio-mmio device."""
    return tuple((VIRTIO + n * VIRTIO_STRIDE, VIRTIO_SIZE, IRQ_VIRTIO + n) for n in range(VIRTIO_SLOTS))
