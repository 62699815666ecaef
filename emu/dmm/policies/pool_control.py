"""Pool control: a VM's pool gets other sizes at set times."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from emu.addr import PAGE_SIZE
from emu.dmm.errors import DmmError
from emu.dmm.interface import DmmInterface
from emu.dmm.policy import Policy
from emu.dmm.pool import MIN_POOL
from emu.engine import events
from emu.engine.ram import OutOfMachineFrames
from emu.errors import BadInput
from emu.units import format_time

if TYPE_CHECKING:
    from emu.boot.image import GuestImage


def resize(dmm: DmmInterface, frames: int) -> None:
    """Grow or shrink the pool of a VM to ``frames``.

    Raises:
        BadInput: it would be too small for any guest, or larger than the VM's memory.
        NotEnoughSpare, StoreError, OutOfMachineFrames: it cannot; its size has not changed.
    """
    if not MIN_POOL <= frames <= dmm.p2m.described():
        raise BadInput("pool", f"{frames} frames: {dmm.name} can do with {MIN_POOL} to {dmm.p2m.described()}")
    if frames > dmm.pool.size:
        dmm.grow(frames - dmm.pool.size)
    elif frames < dmm.pool.size:
        dmm.shrink(dmm.pool.size - frames)


class PoolControl(Policy):
    """Resizes the pool by a schedule.  What cannot be done is an event, ``pool-refused``, and is not tried again.

    Args:
        schedule: (virtual time in ns, bytes that the pool is to have), in any order.

    Attributes:
        refused: what could not be done: (virtual time, reason).
    """

    name = "pool"

    def __init__(self, image: GuestImage, schedule: Sequence[tuple[int, int]] = ()) -> None:
        if not schedule:
            raise BadInput("--policy", "pool: schedule=TIME:SIZE/… is missing")
        self._schedule = sorted(schedule)
        self.refused: list[tuple[int, str]] = []

    def deadline(self) -> int | None:
        return self._schedule[0][0] if self._schedule else None

    def remarks(self) -> list[str]:
        return [f"pool, at {format_time(time)}: {reason}" for time, reason in self.refused]

    def statistics(self) -> dict[str, int]:
        return {"refused": len(self.refused)}

    def epoch(self, now: int) -> None:
        while self._schedule and self._schedule[0][0] <= now:
            _, size = self._schedule.pop(0)
            try:
                resize(self.dmm, size // PAGE_SIZE)
            except (BadInput, DmmError, OutOfMachineFrames) as error:
                self.refused.append((now, str(error)))
                self.dmm.log.record(events.PoolRefused, self.dmm.pool.size, size // PAGE_SIZE)
