"""The memory of the display adapter, where its PCI region puts it: memory of the guest like any other.

It is there from the first graphics mode on, so that a guest that stays in text mode has no pages for it. What is in it
moves with the region, and waits while that is nowhere.
"""

from __future__ import annotations

from emu.addr import PAGE_SHIFT, PAGE_SIZE
from emu.devices.device import BoardMemory


class VideoMemory:
    """``size`` bytes of ``memory`` that belong to the adapter, at ``gpa`` when they are needed."""

    def __init__(self, memory: BoardMemory, size: int, gpa: int) -> None:
        self._memory = memory
        self._size = size
        self._gpa: int | None = gpa
        self._mapped: int | None = None  # where it is now
        self._wanted = False  # a graphics mode was switched on
        self._waiting: dict[int, bytes] = {}  # contents by page, while it is nowhere

    def place(self, gpa: int | None) -> None:
        """The region has come to ``gpa``, or is nowhere; where something else is, that stays."""
        self._gpa = gpa
        if self._wanted:
            self._unmap()
            self._map()

    def switch_on(self, clear: bool) -> None:
        """A graphics mode is switched on."""
        self._wanted = True
        if clear:
            self._unmap()
            self._waiting.clear()
        if self._mapped is None:
            self._map()

    def look(self, offset: int, size: int) -> bytes:
        """Read it without touching it."""
        if self._mapped is not None:
            return self._memory.peek(self._mapped + offset, size)
        first, last = offset >> PAGE_SHIFT, offset + size - 1 >> PAGE_SHIFT
        pages = b"".join(self._waiting.get(page, bytes(PAGE_SIZE)) for page in range(first, last + 1))
        return pages[offset - first * PAGE_SIZE :][:size]

    def _gfns(self, gpa: int) -> range:
        return range(gpa >> PAGE_SHIFT, gpa + self._size >> PAGE_SHIFT)

    def _map(self) -> None:
        if self._gpa is None or not self._memory.is_hole(self._gfns(self._gpa)):
            return
        self._mapped = self._gpa
        self._memory.add_memory(self._gfns(self._mapped))
        for page, data in self._waiting.items():
            self._memory.write(self._mapped + page * PAGE_SIZE, data)
        self._waiting.clear()

    def _unmap(self) -> None:
        if self._mapped is not None:
            self._waiting = self._memory.take_memory(self._gfns(self._mapped))
            self._mapped = None
