"""Machine memory: one anonymous mapping of fixed size that serves every VM."""

from __future__ import annotations

import mmap
from enum import IntEnum
from typing import Any

import numpy as np

from emu.addr import NO_FRAME, PAGE_SIZE
from emu.engine.framestack import FrameStack
from emu.engine.native import address_of
from emu.errors import BadInput, EmuError

# what a VM notes about a frame that it uses (``native.frame_flags_at``, one byte a frame)
FRAME_CODE = 1  # its engine translated code from it (emu.mmu.fill)
FRAME_TABLE = 2  # it holds a guest table that has a shadow: stores into it are trapped (emu.mmu.shadow)

NOBODY = -1  # in MachineMemory.owner


class Purpose(IntEnum):
    """What a machine frame is for."""

    FREE = 0
    POOL = 1  # in the pool of its owner, spare or in use
    TABLES = 2  # for its owner's shadow tables
    VOID = 3  # behind every gpa that has no memory
    RETIRED = 4  # out of service for ever


class OutOfMachineFrames(EmuError):
    """Machine memory has too few free frames.

    Attributes:
        wanted, free: frames.
    """

    def __init__(self, wanted: int, free: int) -> None:
        super().__init__(f"machine memory has {free} free frames, {wanted} wanted")
        self.wanted = wanted
        self.free = free


def sparse_zeros(count: int, dtype: type[np.generic]) -> np.ndarray[Any, Any]:
    """An array of zeros that takes host memory only where it is written to, 4 KiB at a time.

    (numpy asks the host for 2 MiB pages, which it has to fill with zeros, at the first touch of each.)
    """
    size = max(count * np.dtype(dtype).itemsize, 1)
    memory = mmap.mmap(-1, size)
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(memory, dtype, count)


class MachineMemory:
    """All machine frames and who may use them.

    Args:
        frames: number of frames.

    Attributes:
        frames: the same.
        pages: uint8 array of shape (frames, PAGE_SIZE), the contents.
        purpose: uint8 array of length frames (:class:`Purpose`).
        owner: int32 array of length frames; the number of the VM whose pool or tables a frame is for, else NOBODY.
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
        self.purpose = sparse_zeros(frames, np.uint8)
        self.owner = np.full(frames, NOBODY, np.int32)
        self.at = address_of(self.pages)
        self._free = FrameStack(range(frames))
        self.void_mfn = NO_FRAME
        self.move_void()

    @property
    def free(self) -> int:
        """Frames that nobody owns."""
        return len(self._free)

    def take_many(self, count: int, owner: int) -> FrameStack:
        """As many free frames for a pool; their contents are whatever they were.

        Raises:
            OutOfMachineFrames: there are fewer; nothing has changed.
        """
        if count > len(self._free):
            raise OutOfMachineFrames(count, len(self._free))
        frames = self._free.take(count)
        self._assign(frames, Purpose.POOL, owner)
        return frames

    def take_run(self, count: int, owner: int) -> int:
        """The first of ``count`` free frames with consecutive numbers, from the top of memory, for shadow tables.

        Raises:
            OutOfMachineFrames: there is no such run.
        """
        first = self.frames - count
        while first >= 0:
            taken = np.flatnonzero(self.purpose[first : first + count] != Purpose.FREE)
            if not len(taken):
                break
            first += int(taken[0]) - count
        else:
            raise OutOfMachineFrames(count, self.free)
        self._free.remove(range(first, first + count))
        self.purpose[first : first + count], self.owner[first : first + count] = Purpose.TABLES, owner
        return first

    def give_back(self, frames: FrameStack) -> None:
        """Return frames that nobody uses any more."""
        self._assign(frames, Purpose.FREE, NOBODY)
        self._free.push_all(frames)

    def _assign(self, frames: FrameStack, purpose: Purpose, owner: int) -> None:
        for index in frames.indices():
            self.purpose[index], self.owner[index] = purpose, owner

    def retire(self, mfn: int) -> None:
        """Take a frame that nobody uses any more, free or not, out of service."""
        if self.purpose[mfn] == Purpose.FREE:
            self._free.remove(range(mfn, mfn + 1))
        self.purpose[mfn], self.owner[mfn] = Purpose.RETIRED, NOBODY

    def move_void(self) -> int:
        """Let another frame stand behind every gpa that has no memory.

        Returns:
            The frame that did before, which is for nothing now.

        Raises:
            OutOfMachineFrames: none is free.
        """
        if not self._free:
            raise OutOfMachineFrames(1, 0)
        before = self.void_mfn
        self.void_mfn = self._free.pop()
        self.purpose[self.void_mfn] = Purpose.VOID
        self.pages[self.void_mfn] = 0xFF
        return before

    def free_frames(self) -> frozenset[int]:
        """The free frames' numbers."""
        return frozenset(self._free)
