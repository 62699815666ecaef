"""Whom an interrupt message is for. Source: Intel SDM vol. 3A, sections 11.6.2 and 11.12.10.

A physical destination is an APIC ID, a logical one a set of logical IDs. In the flat model each of the 8 bits is an
APIC; in the cluster model the upper 4 bits name a cluster and the lower 4 are its members; in x2APIC mode these are 16
and 16 bits, and an APIC's logical ID follows from its ID. All ones are everybody. Here a destination has 32 bits; an
xAPIC, an I/O APIC and an MSI have 8, which ``wide_destination`` extends.
"""

from __future__ import annotations

from collections.abc import Sequence

from emu.devices import lapic_registers as reg

FLAT = 0xFFFF_FFFF  # DFR of the flat model


def wide_destination(destination: int) -> int:
    """A destination of 8 bits as one of 32."""
    return reg.X2APIC_BROADCAST if destination == reg.BROADCAST else destination


def x2apic_ldr(apic_id: int) -> int:
    """The logical ID of an APIC in x2APIC mode."""
    return apic_id >> 4 << 16 | 1 << (apic_id & 0xF)


def is_meant(base: int, registers: Sequence[int], destination: int, logical: bool) -> bool:
    """Whether a destination of 32 bits means the APIC with this IA32_APIC_BASE and these registers.

    One that is globally disabled hears nothing, not even what is for everybody.
    """
    if not base & reg.BASE_ENABLED:
        return False
    if destination == reg.X2APIC_BROADCAST:
        return True
    if base & reg.BASE_X2APIC:
        apic_id, ldr, member_bits = registers[reg.ID], registers[reg.LDR], 16
    else:
        apic_id, ldr = registers[reg.ID] >> 24, registers[reg.LDR] >> 24
        member_bits = 8 if registers[reg.DFR] == FLAT else 4
    if not logical:
        return destination == apic_id
    return destination >> member_bits == ldr >> member_bits and destination & ldr & (1 << member_bits) - 1 != 0
