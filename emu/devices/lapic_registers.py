"""Registers of the local APIC. Source: Intel SDM vol. 3A, sections 11.4 to 11.12.

Registers are 32 bits wide and 16 bytes apart, taken only in one access of 4 bytes; other accesses read 0 and write
nothing. In x2APIC mode register n is MSR 0x800 + n instead, and a reserved bit or register is a #GP.

    02  ID (x2APIC: whole number, else bits 24-31)      20-27  IRR
    03  version, number of LVT entries - 1              28     ESR: a write moves the errors since the last one here
    08  TPR   09 APR   0A PPR                           30 31  ICR: command to send an interrupt; destination
    0B  EOI                                             32-37  LVT: timer, thermal, counters, LINT0, LINT1, error
    0D  LDR: logical ID   0E DFR: flat or cluster       38 39  timer: initial count, current count
    0F  SVR: spurious vector, bit 8 software enable     3E     timer: divide configuration, bits 0, 1, 3
    10-17  ISR   18-1F TMR                              3F     SELF IPI (x2APIC only)
"""

from __future__ import annotations

APIC_BASE_MSR = 0x1B
TSC_DEADLINE_MSR = 0x6E0
X2APIC_MSRS = range(0x800, 0x900)  # 0x800 + register number

BASE_BSP = 1 << 8  # IA32_APIC_BASE: the first CPU, read-only here
BASE_X2APIC = 1 << 10  # x2APIC mode
BASE_ENABLED = 1 << 11  # global enable
RESET_ADDRESS = 0xFEE0_0000  # gpa of the registers
PHYSICAL_BITS = 40  # physical address bits of the CPU
BASE_WRITABLE = (1 << PHYSICAL_BITS) - 0x1000 | BASE_BSP | BASE_X2APIC | BASE_ENABLED  # the others are reserved

# Bits 10 and 11 of IA32_APIC_BASE together: 0 disabled, 2 xAPIC, 3 x2APIC -> where they can go (SDM figure 11-27)
NEXT_STATES = {0: (0, 2), 2: (0, 2, 3), 3: (0, 3)}

REGISTERS = 0x40
# register numbers
ID, VERSION, TPR, APR, PPR, EOI, LDR, DFR, SVR = 0x02, 0x03, 0x08, 0x09, 0x0A, 0x0B, 0x0D, 0x0E, 0x0F
ISR, TMR, IRR, ESR, ICR, ICR_HIGH = 0x10, 0x18, 0x20, 0x28, 0x30, 0x31
LVT_TIMER, LVT_THERMAL, LVT_COUNTER, LVT_LINT0, LVT_LINT1, LVT_ERROR = range(0x32, 0x38)
TIMER_INITIAL, TIMER_CURRENT, TIMER_DIVIDE, SELF_IPI = 0x38, 0x39, 0x3E, 0x3F
LVTS = range(LVT_TIMER, LVT_ERROR + 1)
VECTORS = (*range(ISR, ISR + 8), *range(TMR, TMR + 8), *range(IRR, IRR + 8))

VERSION_VALUE = 0x14 | (len(LVTS) - 1) << 16  # integrated APIC, last LVT entry
SVR_ENABLED = 1 << 8  # software enable
FIXED, LOWEST, SMI, NMI, INIT, SIPI, EXTINT = 0, 1, 2, 4, 5, 6, 7  # delivery modes
MODE = 7 << 8  # LVT, ICR: delivery mode
LOGICAL = 1 << 11  # ICR: the destination is a logical ID
REMOTE_IRR = 1 << 14  # LVT: a level-triggered interrupt was taken and waits for its EOI
LEVEL = 1 << 15  # LVT, ICR: level-triggered
MASKED = 1 << 16  # LVT
TIMER_MODE_SHIFT = 17  # LVT timer: the mode's two bits
ASSERT = 1 << 14  # ICR: level; with LEVEL and without this, INIT is a de-assertion
SHORTHAND = 18  # ICR: lowest of two bits
NO_SHORTHAND, TO_SELF, TO_ALL, TO_OTHERS = 0, 1, 2, 3
SEND_ILLEGAL, RECEIVE_ILLEGAL, ILLEGAL_REGISTER = 1 << 5, 1 << 6, 1 << 7  # ESR: vector below 16 twice, no such register
LOWEST_VECTOR = 16  # those below are exceptions'
BROADCAST = 0xFF  # destination of 8 bits: everybody
X2APIC_BROADCAST = 0xFFFF_FFFF  # the same of 32 bits

WRITABLE = {  # register -> bits that the guest can set
    ID: 0xFF00_0000, TPR: 0xFF, EOI: 0xFFFF_FFFF, LDR: 0xFF00_0000, DFR: 0xF000_0000, SVR: 0x1FF, ESR: 0xFFFF_FFFF,
    ICR: 0xC_CFFF, ICR_HIGH: 0xFF00_0000, LVT_TIMER: 0x7_00FF, LVT_THERMAL: 0x1_07FF, LVT_COUNTER: 0x1_07FF,
    LVT_LINT0: 0x1_A7FF, LVT_LINT1: 0x1_A7FF, LVT_ERROR: 0x1_00FF, TIMER_INITIAL: 0xFFFF_FFFF, TIMER_DIVIDE: 0xB,
}  # fmt: skip
READABLE = frozenset((*WRITABLE, VERSION, APR, PPR, *VECTORS, TIMER_CURRENT))
# In x2APIC mode any other bit is a #GP; read-only ones (delivery status, remote IRR) may be written.
X2APIC_WRITABLE = {
    **{register: bits for register, bits in WRITABLE.items() if register not in (ID, LDR, DFR, ICR_HIGH)},
    **{lvt: WRITABLE[lvt] | 1 << 12 for lvt in LVTS},
    LVT_LINT0: 0x1_F7FF, LVT_LINT1: 0x1_F7FF, EOI: 0, ESR: 0, ICR: 0xFFFF_FFFF_000C_DFFF, SELF_IPI: 0xFF,
}  # fmt: skip
X2APIC_READABLE = READABLE - {EOI, APR, DFR, ICR_HIGH}
