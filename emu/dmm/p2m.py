"""P2M: from gfn to mfn, page type and the rights that the DMM grants at this moment.

One int64 per gfn, read by both planes and written by :mod:`emu.dmm` alone::

    bits 0-2    rights: READ, WRITE, EXECUTE; a missing right means "ask the DMM first"
    bits 4-7    page type
    bits 12-    mfn, while the type is resident
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum, IntFlag
from typing import Any

import numpy as np

from emu.addr import NO_FRAME, PAGE_SHIFT

Array = np.ndarray[Any, Any]


class Intent(IntFlag):
    """Why a gfn is wanted, and the right that this needs."""

    READ = 1
    WRITE = 2
    EXECUTE = 4


# finding a member in a table is ten times faster than making it from its value
INTENTS = tuple(Intent(bits) for bits in range(8))

ALL_RIGHTS = Intent.READ | Intent.WRITE | Intent.EXECUTE
NO_RIGHTS = Intent(0)


class PageType(IntEnum):
    """What stands behind a gfn."""

    HOLE = 0  # no memory: reads as all ones, stores are lost
    EMPTY = 1  # no frame and no contents: zero when first touched
    RAM = 2  # resident, its frame belongs to this gfn alone
    EVICTED = 3  # no frame; a policy keeps the contents
    IMAGE = 4  # no frame; contents in the guest image's file
    MMIO = 5  # registers of devices: every access reaches them (emu.bus)


_TYPES = tuple(PageType)

RESIDENT = frozenset({PageType.RAM})

NO_MEMORY = frozenset({PageType.HOLE, PageType.MMIO})

LEGAL = {
    PageType.HOLE: {PageType.EMPTY, PageType.IMAGE, PageType.MMIO},
    PageType.MMIO: {PageType.HOLE},
    PageType.EMPTY: {PageType.RAM, PageType.IMAGE},
    PageType.IMAGE: {PageType.RAM},
    PageType.RAM: {PageType.RAM, PageType.EVICTED, PageType.EMPTY},
    PageType.EVICTED: {PageType.RAM},
}
"""The transitions that a gfn's type may make."""


class P2M:
    """The table of one VM.

    Args:
        size: number of gfns; the table takes 8 bytes of host memory each, once it has been anything but a HOLE.
        memory: the gfns that start as EMPTY; all of them by default.  All others start as HOLE.

    Attributes:
        entries: int64 array of length ``size``, in the format above.
        memory: the gfns that started as EMPTY, in ascending order.
    """

    def __init__(self, size: int, memory: Iterable[range] | None = None) -> None:
        self.entries = np.zeros(size, np.int64)
        self.memory = tuple(memory) if memory is not None else (range(size),)
        for gfns in self.memory:
            self.entries[gfns.start : gfns.stop] = PageType.EMPTY << 4
        self._elsewhere: set[int] = set()  # gfns outside `memory` that were ever set
        self._known: Array | None = None

    def __len__(self) -> int:
        return len(self.entries)

    def known(self) -> Array:
        """The gfns that are or were no holes: int64, in ascending order."""
        if self._known is None:
            parts = [np.arange(gfns.start, gfns.stop) for gfns in self.memory]
            self._known = np.unique(np.concatenate([*parts, np.array(sorted(self._elsewhere), np.int64)]))
        return self._known

    def type(self, gfn: int) -> PageType:
        return _TYPES[self.entries.item(gfn) >> 4 & 15]

    def rights(self, gfn: int) -> Intent:
        return INTENTS[self.entries.item(gfn) & 7]

    def grants(self, gfn: int, intent: Intent) -> bool:
        """Whether the rights on ``gfn`` cover all of ``intent``."""
        return not int(intent) & ~self.entries.item(gfn) & 7

    def mfn(self, gfn: int) -> int:
        """The frame behind ``gfn``, NO_FRAME when it has none."""
        entry = self.entries.item(gfn)
        return entry >> PAGE_SHIFT if _TYPES[entry >> 4 & 15] in RESIDENT else NO_FRAME

    def set(self, gfn: int, kind: PageType, mfn: int = NO_FRAME, rights: Intent = NO_RIGHTS) -> None:
        """Give ``gfn`` a new type, frame and rights.

        Raises:
            ValueError: the transition is not in LEGAL, or frame and rights do not fit the type.
        """
        before = self.type(gfn)
        if kind not in LEGAL[before]:
            raise ValueError(f"gfn {gfn:#x}: {before.name} cannot become {kind.name}")
        if before is PageType.HOLE and gfn not in self._elsewhere:
            self._elsewhere.add(gfn)
            self._known = None
        if (mfn != NO_FRAME) != (kind in RESIDENT) or (rights and kind not in RESIDENT):
            raise ValueError(f"gfn {gfn:#x}: {kind.name} with mfn {mfn} and rights {rights!r}")
        frame = mfn << PAGE_SHIFT if mfn != NO_FRAME else 0
        self.entries[gfn] = frame | int(kind) << 4 | int(rights)
