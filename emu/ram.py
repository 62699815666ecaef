"""Machine memory: one anonymous mapping of fixed size that serves every VM."""

from __future__ import annotations

import mmap
from collections.abc import Iterable

import numpy as np

from emu.addr import PAGE_SIZE
from emu.errors import BadInput, EmuError
from emu.native import address_of

# what MachineMemory.flags tells of a frame
FRAME_CODE = 1  # code was translated from it (emu.mmu.fill)
FRAME_TABLE = 2  # it holds a guest table that has a shadow: stores into it are trapped (emu.mmu.shadow)


class OutOfMachineFrames(EmuError):
    """Machine memory has too few free frames.

    Attributes:
        wanted, free: frames.
    """

    def __init__(self, wanted: int, free: int) -> None:
        super().__init__(f"machine memory has {free} free frames, {wanted} wanted")
        self.wanted = wanted
        self.free = free


class MachineMemory:
    """All machine frames and who may use them: nobody (free), a pool, or a VM's shadow tables.

    Args:
        frames: number of frames.

    Attributes:
        frames: the same.
        pages: uint8 array of shape (frames, PAGE_SIZE), the contents.
        flags: uint8 array of length frames, read and written by the native plane (FRAME_CODE, FRAME_TABLE).
        at: host address of frame 0.
        void_mfn: the frame behind every gpa that has no memory: all ones, never changed.
    """

    def __init__(self, frames: int) -> None:
        if frames < 1:
            raise BadInput("machine memory", f"{frames} frames are too few")
        try:
            self._map = mmap.mmap(-1, frames * PAGE_SIZE)
        except (OSError, OverflowError, ValueError) as error:
            raise BadInput("machine memory", f"{frames} frames cannot be had from the host: {error}") from None
        self.frames = frames
        self.pages = np.frombuffer(self._map, np.uint8).reshape(frames, PAGE_SIZE)
        self.flags = np.zeros(frames, np.uint8)
        self.at = address_of(self.pages)
        self._free = list(range(frames - 1, -1, -1))  # the lowest mfn is handed out first
        self.void_mfn = self.take()
        self.pages[self.void_mfn] = 0xFF

    @property
    def free(self) -> int:
        """Frames that nobody owns."""
        return len(self._free)

    def take(self) -> int:
        """A free frame; its contents are whatever they were.

        Raises:
            OutOfMachineFrames: none is free.
        """
        if not self._free:
            raise OutOfMachineFrames(1, 0)
        return self._free.pop()

    def take_run(self, count: int) -> int:
        """The first of ``count`` free frames with consecutive numbers, from the top of memory.

        Raises:
            OutOfMachineFrames: there is no such run.
        """
        free = np.zeros(self.frames + 1, np.int64)
        free[self._free] = 1
        below = np.cumsum(free)
        in_run = below[count - 1 : -1] - below[: self.frames - count + 1] + free[: len(free) - count]
        starts = np.flatnonzero(in_run == count)
        if not len(starts):
            raise OutOfMachineFrames(count, self.free)
        first = int(starts[-1])
        self._free = [mfn for mfn in self._free if not first <= mfn < first + count]
        return first

    def give_back(self, frames: Iterable[int]) -> None:
        """Return frames that nobody uses any more."""
        self._free.extend(frames)

    def free_frames(self) -> frozenset[int]:
        """The free frames' numbers."""
        return frozenset(self._free)
