"""The interrupt of an 82540EM: its causes, its mask, and the distance from one to the next.

Source: Intel PCI/PCI-X Family of Gigabit Ethernet Controllers Software Developer's Manual (317453), 13.4.17 to 13.4.21.
"""

from __future__ import annotations

from typing import ClassVar

from emu.devices.device import Clock, Device, IrqLine

SENT, QUEUE_EMPTY, LINK_CHANGED, FEW_BUFFERS, RECEIVED, MDIO = 0x01, 0x02, 0x04, 0x10, 0x80, 0x200
CAUSES = 0x1_FFFF
THROTTLE_NS = 256  # unit of ITR
IDLE = -1


class Interrupts(Device):
    """ICR, ITR, ICS, IMS and IMC.

    Args:
        line: INTA.
        clock: virtual time in ns.

    Attributes:
        line: the same.
        mask: causes that interrupt.
    """

    STATE: ClassVar[tuple[str, ...]] = ("causes", "mask", "throttle", "began", "delayed_to", "level")

    def __init__(self, line: IrqLine, clock: Clock) -> None:
        self.line = line
        self._clock = clock
        self.reset()

    def reset(self) -> None:
        """As after power-up."""
        self.causes = self.mask = self.throttle = 0
        self.began = IDLE  # when the last interrupt began, in ns
        self.delayed_to = IDLE  # when the next one may
        self._drive(False)

    def cause(self, causes: int) -> None:
        """Something has happened; also a write to ICS."""
        self.causes |= causes & CAUSES
        self._update()

    def take(self) -> int:
        """ICR is read, which clears it."""
        causes, self.causes = self.causes, 0
        self._update()
        return causes

    def clear(self, causes: int) -> None:
        """ICR is written."""
        self.causes &= ~causes
        self._update()

    def set_mask(self, causes: int) -> None:
        """IMS is written."""
        self.mask |= causes & CAUSES
        self._update()

    def clear_mask(self, causes: int) -> None:
        """IMC is written."""
        self.mask &= ~causes
        self._update()

    def deadline(self) -> int | None:
        return None if self.delayed_to == IDLE else self.delayed_to

    def tick(self, now_ns: int) -> None:
        if self.delayed_to != IDLE and self.delayed_to <= now_ns:
            self._assert(now_ns)

    def _update(self) -> None:
        """Drive the line; a new interrupt keeps its distance from the last one."""
        if not self.causes & self.mask:
            self.delayed_to = IDLE
            self._drive(False)
        elif not self.level and self.delayed_to == IDLE:
            now = self._clock()
            earliest = self.began + self.throttle * THROTTLE_NS
            if self.began != IDLE and now < earliest:
                self.delayed_to = earliest
            else:
                self._assert(now)

    def _assert(self, now_ns: int) -> None:
        self.delayed_to, self.began = IDLE, now_ns
        self._drive(True)

    def _drive(self, level: bool) -> None:
        self.level = level
        self.line.set(level)
