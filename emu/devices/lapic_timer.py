"""The timer of the local APIC. Source: Intel SDM vol. 3A, section 11.5.4 (APIC Timer).

The count goes down at the bus clock, here 1 GHz, divided by 1 to 128. One-shot: it stops at 0. Periodic: it starts
again at the initial count. TSC-deadline: there is no count, it ends when the TSC, here virtual ns, reaches a value.
Writing the initial count starts the timer, 0 stops it. The count goes on when one-shot and periodic are exchanged.

Nothing here counts: ``expires`` is the virtual time of the end, and the count follows from it.
"""

from __future__ import annotations

from typing import ClassVar

from emu.devices.shared import Shared, record

ONE_SHOT, PERIODIC, TSC_DEADLINE = 0, 1, 2  # mode; 3 is reserved and acts as one-shot


@record
class TimerState(Shared):
    """The state of a timer, which the native plane reads, too (:mod:`emu.cpu.apic`)."""

    mode: int
    initial: int  # initial count
    shift: int  # log2 of the divisor
    end: int  # virtual ns of the end of the count, 64 bits without sign; 0: it stands at 0


class ApicTimer(TimerState):
    """One timer. All times are virtual ns."""

    STATE: ClassVar[tuple[str, ...]] = ("mode", "initial", "shift", "expires")

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """As after power-up."""
        self.mode = ONE_SHOT
        self.initial = 0
        self.shift = 1
        self.end = 0

    @property
    def expires(self) -> int | None:
        """End of the count; None: it stands at 0."""
        return self.end & (1 << 64) - 1 or None

    @expires.setter
    def expires(self, value: int | None) -> None:
        self.end = value or 0

    def expire(self, now_ns: int) -> bool:
        """Go on to ``now_ns``. True when the timer ended on the way, however often."""
        expires = self.expires
        if expires is None or expires > now_ns:
            return False
        if self.mode == PERIODIC:
            period = self.initial << self.shift
            self.expires = expires + ((now_ns - expires) // period + 1) * period
        else:
            self.expires = None
        return True

    def count(self, now_ns: int) -> int:
        """The current count; ``expire`` must have been called for ``now_ns``."""
        if self.expires is None or self.mode == TSC_DEADLINE:
            return 0
        return -(now_ns - self.expires >> self.shift)  # rounded up: the last clock belongs to 1, not to 0

    def tsc_deadline(self) -> int:
        """The TSC value that the timer waits for; 0 when it waits for none."""
        return self.expires if self.expires is not None and self.mode == TSC_DEADLINE else 0

    def set_mode(self, mode: int) -> None:
        """Going into or out of TSC-deadline mode stops the timer."""
        if mode != self.mode and TSC_DEADLINE in (mode, self.mode):
            self.expires = None
        self.mode = mode

    def set_initial(self, count: int, now_ns: int) -> None:
        """Start with ``count``; nothing happens in TSC-deadline mode."""
        if self.mode != TSC_DEADLINE:
            self.initial = count
            self.expires = now_ns + (count << self.shift) if count else None

    def set_divide(self, divide: int, now_ns: int) -> None:
        """The divide configuration register: bits 3, 1, 0 from 000 for 2, 001 for 4 up to 110 for 128, 111 for 1.

        The count goes on from where it is, at the new speed; ``expire`` must have been called for ``now_ns``.
        """
        count = self.count(now_ns)
        self.shift = (divide & 3 | divide >> 1 & 4) + 1 & 7
        if count:
            self.expires = now_ns + (count << self.shift)

    def set_tsc_deadline(self, value: int) -> None:
        """Wait for a TSC value, which may be past; 0 stops. Nothing happens in the other modes."""
        if self.mode == TSC_DEADLINE:
            self.expires = value or None
