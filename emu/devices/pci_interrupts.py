"""How the interrupt pins of PCI functions reach the interrupt controllers.

Sources: PCI Local Bus Specification 2.1, 2.2.6 (level-sensitive, shared); 82371SB (PIIX3, 290550), 2.4.4 PIRQRC.

The board wires the pins of a slot to PIRQA to PIRQD, each slot one further than the slot before it, as QEMU's i440FX. A
register of the ISA bridge for each of the four says at which interrupt of the 8259s it arrives, or at none; as on QEMU
it arrives at the same input of the I/O APIC.
"""

from __future__ import annotations

from collections.abc import Callable

from emu.devices.device import IrqLine
from emu.devices.pci import PIRQ, PIRQ_OFF, PciFunction
from emu.devices.wires import NumberedWire

ROUTABLE = (3, 4, 5, 6, 7, 9, 10, 11, 12, 14, 15)  # interrupts that a register may name
PIRQS = 4


def pirq_of(slot: int, pin: int) -> int:
    """The number of the PIRQ, 0 for PIRQA, to which a slot's pin goes (0 INTA to 3 INTD)."""
    return (slot - 1 + pin) % PIRQS


class PciInterrupts:
    """The four PIRQs.

    Args:
        bridge: the ISA bridge, with the registers.
        wire: gives the wire of an interrupt.
    """

    def __init__(self, bridge: PciFunction, wire: Callable[[int], IrqLine]) -> None:
        self._bridge = bridge
        self._wires = {irq: wire(irq) for irq in ROUTABLE}
        self._levels = [0] * PIRQS  # for each PIRQ the slots, one bit each, that assert it
        self._high: set[int] = set()  # interrupts that are asserted
        bridge.written = lambda offset, size: self._update()

    def pin(self, slot: int, pin: int) -> IrqLine:
        """The wire of one pin of a slot."""

        def drive(number: int, level: bool) -> None:
            bit = 1 << 4 * slot + pin
            self._levels[number] = self._levels[number] | bit if level else self._levels[number] & ~bit
            self._update()

        return NumberedWire(drive, pirq_of(slot, pin))

    def _update(self) -> None:
        high = set()
        for number, offset in enumerate(PIRQ):
            route = self._bridge.config[offset]
            if self._levels[number] and not route & PIRQ_OFF and route & 15 in self._wires:
                high.add(route & 15)
        for irq in sorted(self._high ^ high):
            self._wires[irq].set(irq in high)
        self._high = high
