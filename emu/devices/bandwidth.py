"""What devices may move by themselves at a time: the bandwidth of the bus that they share.

A guest can ask for gigabytes with one store. A device that moved them within that store would keep virtual time, limits
and signals waiting. So what devices move costs virtual time, NS_PER_BYTE for each byte: at any moment they may move
what has come together since, at most BURST bytes, and what is left goes on when there is more. Guests that ask for less
see no delay.

What is not a matter of bytes counts as some: each device says as how many.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from emu.devices.device import Clock, Device, State

NS_PER_BYTE = 1  # 1 GB/s
BURST = 1 << 20  # bytes
PIECE = BURST // 4  # bytes that must have come together before what waits goes on


class Bandwidth(Device):
    """The bus. Without a ``clock`` nothing is limited.

    A device that has more to do than it may calls ``wait``, and is called back in its turn.
    """

    STATE: ClassVar[tuple[str, ...]] = ("credit", "since", "due", "turn")

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock
        self._users: list[Callable[[], None]] = []
        self.credit = BURST  # bytes that could be moved at the time ``since``
        self.since = 0  # virtual ns
        self.due: int | None = None  # when those that wait go on, in virtual ns; None: nobody waits
        self.turn = 0  # who goes on first

    def join(self, go_on: Callable[[], None]) -> None:
        """Call ``go_on`` when there is something to move again; it is harmless for those that have nothing left."""
        self._users.append(go_on)

    @property
    def left(self) -> int:
        """Bytes that may be moved now; 0 or less: none."""
        if self._clock is None:
            return BURST
        now = self._clock()
        self.credit = min(BURST, self.credit + (now - self.since) // NS_PER_BYTE)
        self.since = now
        return self.credit

    def charge(self, count: int) -> None:
        """So many bytes have been moved; they may be more than were left."""
        if self._clock is not None:
            self.credit = self.left - count

    def wait(self) -> None:
        """There is more to move, later."""
        if self.due is None:
            missing = max(PIECE - self.left, 1)
            self.due = self.since + missing * NS_PER_BYTE

    def deadline(self) -> int | None:
        return self.due

    def tick(self, now_ns: int) -> None:
        if self.due is not None and self.due <= now_ns:
            self.due = None
            self.turn = (self.turn + 1) % len(self._users)
            for go_on in self._users[self.turn :] + self._users[: self.turn]:
                go_on()

    def machine_reset(self, power_up: State) -> None:
        """What has been moved has been moved: no guest gains time by a reset."""
        self.due = None
