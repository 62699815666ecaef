"""Pool: the machine frames that one VM may use now."""

from __future__ import annotations

from emu.ram import MachineMemory, OutOfMachineFrames


class Pool:
    """Frames owned by one VM, in use or spare.  It changes size by :meth:`grow` and :meth:`shrink` alone.

    Args:
        memory: where frames come from and go back to.
        size: frames to begin with.

    Raises:
        OutOfMachineFrames: the machine has fewer free frames.
    """

    def __init__(self, memory: MachineMemory, size: int) -> None:
        self._memory = memory
        self._spare: list[int] = []
        self._used: set[int] = set()
        self.grow(size)

    @property
    def size(self) -> int:
        """Frames owned."""
        return len(self._spare) + len(self._used)

    @property
    def used(self) -> int:
        """Frames behind a gfn."""
        return len(self._used)

    @property
    def spare(self) -> int:
        """Frames owned and not in use."""
        return len(self._spare)

    def take(self) -> int | None:
        """A spare frame, in use from now on; None when there is none."""
        if not self._spare:
            return None
        mfn = self._spare.pop()
        self._used.add(mfn)
        return mfn

    def give_back(self, mfn: int) -> None:
        """``mfn`` is not in use any more."""
        self._used.remove(mfn)
        self._spare.append(mfn)

    def grow(self, frames: int) -> None:
        """Own ``frames`` more.

        Raises:
            OutOfMachineFrames: the machine has fewer free frames; nothing has changed.
            ValueError: ``frames`` is negative.
        """
        if frames < 0:
            raise ValueError(f"cannot grow by {frames} frames")
        if frames > self._memory.free:
            raise OutOfMachineFrames(frames, self._memory.free)
        taken = [self._memory.take() for _ in range(frames)]
        self._spare[:0] = reversed(taken)

    def shrink(self, frames: int) -> None:
        """Own ``frames`` fewer; at least that many must be spare."""
        if not 0 <= frames <= len(self._spare):
            raise ValueError(f"cannot give up {frames} of {len(self._spare)} spare frames")
        keep = len(self._spare) - frames
        self._memory.give_back(self._spare[keep:])
        del self._spare[keep:]

    def used_frames(self) -> frozenset[int]:
        """The numbers of the frames in use."""
        return frozenset(self._used)

    def spare_frames(self) -> frozenset[int]:
        """The numbers of the spare frames."""
        return frozenset(self._spare)
