"""The bus between I/O APIC, devices with MSIs and local APICs. Source: Intel SDM vol. 3A, sections 11.6 to 11.11.

Every interrupt message goes through here: it finds the local APICs that are meant, and hands it to them. With lowest
priority delivery one of those that take vectors gets it: the one with the lowest PPR, and of equals the one with the
lowest ID. That is QEMU's choice among equals, and it needs no state, so that a run can be repeated from any snapshot.

    delivery mode      fixed  lowest priority  SMI  NMI  INIT  SIPI  ExtINT
    processors send    yes    yes              -    yes  yes   yes   -
    devices send       yes    yes              -    yes  yes   -     -        (ExtINT is wired to LINT0)

INIT comes when the ICR asks for it edge-triggered or asserted. The level-triggered de-assertion, with which early
processors synchronised their arbitration IDs, does nothing (SDM vol. 3A, 11.6.1).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from emu.devices import lapic_registers as reg
from emu.devices.apic_destination import is_meant, wide_destination
from emu.devices.cpu_pins import CpuPins
from emu.devices.device import Clock
from emu.devices.lapic import LocalApic

SENT_BY_CPUS = frozenset((reg.FIXED, reg.LOWEST, reg.NMI, reg.INIT, reg.SIPI))  # delivery modes
SENT_BY_DEVICES = SENT_BY_CPUS - {reg.SIPI}
MSI_REDIRECT, MSI_LOGICAL = 1 << 3, 1 << 2  # address of an MSI: one of the destinations is enough; logical


class ApicBus:
    """The bus and the local APICs on it.

    Args:
        cpus: number of processors.
        pins: their inputs.
        acknowledge_pic: the 8259's INTA cycle, gives its vector.
        broadcast_eoi: gets the vector at the EOI of a level-triggered interrupt.
        clock: virtual time.

    Attributes:
        apics: the local APICs; the index is the processor's and the APIC ID at reset.
    """

    def __init__(
        self,
        cpus: int,
        pins: CpuPins,
        acknowledge_pic: Callable[[], int],
        broadcast_eoi: Callable[[int], None],
        clock: Clock,
    ) -> None:
        self.apics = [
            LocalApic(cpu, pins, partial(self.send_ipi, cpu), acknowledge_pic, broadcast_eoi, clock)
            for cpu in range(cpus)
        ]

    def message(self, destination: int, logical: bool, vector: int, mode: int, level_triggered: bool) -> bool:
        """An interrupt message from the I/O APIC or another device, with an 8-bit destination.

        Returns whether an APIC accepted it.
        """
        if mode not in SENT_BY_DEVICES:
            return False
        wide = wide_destination(destination)
        return self._deliver(self._addressed(wide, logical), vector, mode, level_triggered)

    def message_write(self, gpa: int, data: int) -> bool:
        """An MSI: a device's write of ``data`` to 0xFEExxxxx (SDM vol. 3A, 11.11). Returns as ``message``."""
        mode = data >> 8 & 7
        if mode == reg.FIXED and gpa & MSI_REDIRECT:
            mode = reg.LOWEST
        return self.message(gpa >> 12 & 0xFF, bool(gpa & MSI_LOGICAL), data & 0xFF, mode, bool(data & reg.LEVEL))

    def send_ipi(self, sender: int, destination: int, command: int) -> None:
        """An interrupt from processor ``sender``.

        Args:
            sender: its index.
            destination: 32 bits; means nothing when the command has a shorthand.
            command: lower half of the ICR.
        """
        mode, shorthand = command >> 8 & 7, command >> reg.SHORTHAND & 3
        if mode not in SENT_BY_CPUS or mode == reg.INIT and command & (reg.LEVEL | reg.ASSERT) == reg.LEVEL:
            return
        if shorthand == reg.NO_SHORTHAND:
            targets = self._addressed(destination, bool(command & reg.LOGICAL))
        elif shorthand == reg.TO_SELF:
            targets = [self.apics[sender]]
        else:
            targets = self._addressed(reg.X2APIC_BROADCAST, False)
            if shorthand == reg.TO_OTHERS:
                targets = [apic for apic in targets if apic is not self.apics[sender]]
        self._deliver(targets, command & 0xFF, mode, False)

    def _addressed(self, destination: int, logical: bool) -> list[LocalApic]:
        return [apic for apic in self.apics if is_meant(apic.base, apic.registers, destination, logical)]

    def _deliver(self, targets: list[LocalApic], vector: int, mode: int, level_triggered: bool) -> bool:
        """Hand a message to those that are meant. Returns whether one accepted it."""
        if mode == reg.LOWEST and len(targets) > 1:
            willing = [apic for apic in targets if apic.software_enabled]
            targets = [min(willing, key=lambda apic: apic.registers[reg.PPR])] if willing else []
        accepted = False
        for apic in targets:
            accepted |= apic.deliver(vector, mode, level_triggered)
        return accepted
