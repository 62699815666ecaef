"""Every address and interrupt number of the machine, in one place."""

# ---- I/O ports and interrupt lines: where an IBM PC/AT has them -----------------------------------------------------

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
DEBUG_CONSOLE_PORT = 0xE9  # Bochs' console
DEBUG_CONSOLE_PORTS = 1
EXIT_PORT = 0xF4  # where QEMU's isa-debug-exit usually is
EXIT_PORTS = 4

IRQ_PIT = 0  # PIT counter 0
IRQ_COM2 = 3
IRQ_COM1 = 4
