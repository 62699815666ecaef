"""Pool: the machine frames that one VM may use now."""

from __future__ import annotations

import numpy as np

from emu.engine.framestack import FrameStack
from emu.engine.ram import MachineMemory, Purpose

MIN_POOL = 4  # frames: two code pages and two data pages, for an instruction of a guest without paging


class Pool:
    """Frames owned by one VM, in use or spare.

    A frame is in use while a gfn of any VM uses it: one that is shared stays in the pool that it came from, or moves to
    that of another user in exchange for a spare frame (:meth:`exchange`).

    Args:
        memory: where frames come from and go back to.
        size: frames to begin with.
        owner: number of the VM.

    Raises:
        OutOfMachineFrames: the machine has fewer free frames.
    """

    def __init__(self, memory: MachineMemory, size: int, owner: int) -> None:
        self._memory = memory
        self._owner = owner
        self._spare = FrameStack()
        self.used = 0
        self.grow(size)

    @property
    def size(self) -> int:
        """Frames owned."""
        return len(self._spare) + self.used

    @property
    def spare(self) -> int:
        """Frames owned and not in use."""
        return len(self._spare)

    def take(self) -> int | None:
        """A spare frame, in use from now on; None when there is none."""
        if not self._spare:
            return None
        self.used += 1
        return self._spare.pop()

    def give_back(self, mfn: int) -> None:
        """``mfn`` is not in use any more."""
        self.used -= 1
        self._spare.push(mfn)

    def exchange(self, mfn: int, other: Pool) -> None:
        """Let ``other``, which has a spare frame, own ``mfn``, which is in use, and own that spare frame instead."""
        spare = other._spare.pop()
        self.hand_over(mfn, other)
        self._spare.push(spare)
        self._memory.owner[spare] = self._owner

    def hand_over(self, mfn: int, other: Pool) -> None:
        """Let ``other`` own ``mfn``, which is in use."""
        self.used -= 1
        other.used += 1
        self._memory.owner[mfn] = other._owner

    def lose(self, mfn: int) -> None:
        """A frame in use is taken out of service."""
        self.used -= 1
        self._memory.retire(mfn)

    def lose_spare(self, mfn: int) -> None:
        """A spare frame is taken out of service."""
        self._spare.remove(range(mfn, mfn + 1))
        self._memory.retire(mfn)

    def grow(self, frames: int) -> None:
        """Own ``frames`` more.

        Raises:
            OutOfMachineFrames: the machine has fewer free frames; nothing has changed.
            ValueError: ``frames`` is negative.
        """
        if frames < 0:
            raise ValueError(f"cannot grow by {frames} frames")
        self._spare.put_below(self._memory.take_many(frames, self._owner))

    def shrink(self, frames: int) -> None:
        """Own ``frames`` fewer; at least that many must be spare."""
        if not 0 <= frames <= len(self._spare):
            raise ValueError(f"cannot give up {frames} of {len(self._spare)} spare frames")
        self._memory.give_back(self._spare.take(frames))

    def is_spare(self, mfn: int) -> bool:
        """Whether a frame is owned and not in use."""
        return mfn in self._spare

    def spare_frames(self) -> frozenset[int]:
        """The numbers of the spare frames."""
        return frozenset(self._spare)

    def used_frames(self) -> frozenset[int]:
        """The numbers of the frames in use."""
        used = (self._memory.owner == self._owner) & (self._memory.purpose == Purpose.POOL)
        for index in self._spare.indices():
            used[index] = False
        return frozenset(np.flatnonzero(used).tolist())
