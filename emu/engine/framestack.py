"""Frames that are handed out: the one that came last goes first, and a run of a million costs as much as one."""

from __future__ import annotations

from array import array
from collections.abc import Iterator

import numpy as np

_AT_ONCE = 256  # frames of a run that are made ready to be handed out


class FrameStack:
    """A stack of machine frame numbers, in memory in proportion to what was handed out and came back.

    Args:
        run: what is on it at first; its lowest frame is handed out first.
    """

    def __init__(self, run: range = range(0)) -> None:
        self._parts: list[range | array[int]] = (
            [run] if run else []
        )  # a range goes from its front, an array from its end
        self._size = len(run)

    def __len__(self) -> int:
        return self._size

    def __contains__(self, mfn: int) -> bool:
        return any(mfn in part for part in self._parts)

    def __iter__(self) -> Iterator[int]:
        """The frames, in the order in which they would be handed out."""
        for part in reversed(self._parts):
            yield from part if isinstance(part, range) else reversed(part)

    def indices(self) -> Iterator[slice | np.ndarray[tuple[int], np.dtype[np.int32]]]:
        """The frames as indices of arrays with an item for each frame of the machine."""
        for part in self._parts:
            yield slice(part.start, part.stop) if isinstance(part, range) else np.frombuffer(part, np.int32)

    def pop(self) -> int:
        """Hand one out; there must be one."""
        top = self._parts[-1]
        if isinstance(top, range):
            top = self._ready(top)
        self._size -= 1
        mfn = top.pop()
        if not top:
            self._parts.pop()
        return mfn

    def _ready(self, run: range) -> array[int]:
        """Put the first frames of the run on top as single ones."""
        self._parts[-1:] = [run[_AT_ONCE:]] if len(run) > _AT_ONCE else []
        ready = array("i", reversed(run[:_AT_ONCE]))
        self._parts.append(ready)
        return ready

    def push(self, mfn: int) -> None:
        """Take one back."""
        self._size += 1
        if self._parts and not isinstance(self._parts[-1], range):
            self._parts[-1].append(mfn)
        else:
            self._parts.append(array("i", [mfn]))

    def push_all(self, other: FrameStack) -> None:
        """Take back all of ``other``, in such an order that they are handed out as they would be there."""
        self._parts += other._parts
        self._size += other._size

    def put_below(self, other: FrameStack) -> None:
        """Add all of ``other``, to be handed out after those that are here already."""
        self._parts[:0] = other._parts
        self._size += other._size

    def take(self, count: int) -> FrameStack:
        """The next ``count`` frames, in the same order; there must be as many."""
        taken = FrameStack()
        while len(taken) < count:
            top = self._parts.pop()
            wanted = count - len(taken)
            if len(top) <= wanted:
                part = top
            elif isinstance(top, range):
                part = top[:wanted]
                self._parts.append(top[wanted:])
            else:
                part = top[-wanted:]
                self._parts.append(top[:-wanted])
            taken._parts.insert(0, part)
            taken._size += len(part)
        self._size -= count
        return taken

    def remove(self, frames: range) -> None:
        """Take these frames, all of which are here, from wherever they are."""
        parts: list[range | array[int]] = []
        for part in self._parts:
            if isinstance(part, range):
                parts.append(range(max(part.start, frames.stop), part.stop))
                parts.append(range(part.start, min(part.stop, frames.start)))
            else:
                parts.append(array("i", [mfn for mfn in part if mfn not in frames]))
        self._parts = [part for part in parts if part]
        self._size -= len(frames)
