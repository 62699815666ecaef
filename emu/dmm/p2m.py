"""P2M: from gfn to mfn, page type and the rights that the DMM grants at this moment.

One int64 per gfn, read by both planes and written by :mod:`emu.dmm` alone::

    bits 0-2    rights: READ, WRITE, EXECUTE; a missing right means "ask the DMM first"
    bits 4-7    page type
    bits 12-    mfn, while the type is resident
"""

from __future__ import annotations

from enum import IntEnum, IntFlag

import numpy as np

from emu.addr import NO_FRAME, PAGE_SHIFT


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

    EMPTY = 0  # no frame and no contents: zero when first touched
    IMAGE = 1  # no frame; contents in the guest image's file
    RAM = 2  # resident, its frame belongs to this gfn alone
    EVICTED = 3  # no frame; a policy keeps the contents


_TYPES = tuple(PageType)

RESIDENT = frozenset({PageType.RAM})

LEGAL = {
    PageType.EMPTY: {PageType.RAM, PageType.IMAGE},
    PageType.IMAGE: {PageType.RAM},
    PageType.RAM: {PageType.RAM, PageType.EVICTED, PageType.EMPTY},
    PageType.EVICTED: {PageType.RAM},
}
"""The transitions that a gfn's type may make."""


class P2M:
    """The table of one VM.

    Args:
        size: number of gfns; every gfn starts EMPTY.

    Attributes:
        entries: int64 array of length ``size``, in the format above.
    """

    def __init__(self, size: int) -> None:
        self.entries = np.zeros(size, np.int64)

    def __len__(self) -> int:
        return len(self.entries)

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
        if (mfn != NO_FRAME) != (kind in RESIDENT) or (rights and kind not in RESIDENT):
            raise ValueError(f"gfn {gfn:#x}: {kind.name} with mfn {mfn} and rights {rights!r}")
        frame = mfn << PAGE_SHIFT if mfn != NO_FRAME else 0
        self.entries[gfn] = frame | int(kind) << 4 | int(rights)
