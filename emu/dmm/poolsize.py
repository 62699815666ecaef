"""PoolSize: a VM's pool grows and shrinks while the guest runs.

The contracts are those of :mod:`emu.dmm.interface`.
"""

from __future__ import annotations

from emu.dmm.errors import NotEnoughSpare
from emu.dmm.frames import make_room
from emu.dmm.space import Space
from emu.engine import events


class PoolSize:
    """The size of one VM's pool.

    Args:
        space: of the VM.
    """

    def __init__(self, space: Space) -> None:
        self._space = space

    def grow(self, frames: int) -> None:
        """Add ``frames`` machine frames to the pool."""
        pool = self._space.pool
        before = pool.size
        pool.grow(frames)
        self._resized(before)

    def shrink(self, frames: int) -> None:
        """Give ``frames`` of the pool back to the machine; policies make room where too few are spare."""
        space, pool = self._space, self._space.pool
        make_room(space, frames)
        if pool.spare < frames:
            raise NotEnoughSpare(space.name, frames, pool.spare, sorted(space.pins))
        before = pool.size
        pool.shrink(frames)
        self._resized(before)

    def _resized(self, before: int) -> None:
        self._space.log.record(events.PoolResize, before, self._space.pool.size)
        self._space.changed()
