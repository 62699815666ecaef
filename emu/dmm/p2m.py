"""P2M: from gfn to mfn, page type and the rights that the DMM grants at this moment.

One int64 per gfn, read by both planes and written by :mod:`emu.dmm` alone::

    bits 0-2    rights: READ, WRITE, EXECUTE; a missing right means "ask the DMM first"
    bit 3       young: was accessed when the accessed bit was cleared (as in Linux's idle page tracking)
    bits 4-7    page type
    bit 8       accessed since the DMM last looked (as in an EPT entry, SDM vol. 3C, 28.3.5)
    bit 9       dirty: the contents may differ from those that the page came with
    bits 10-11  origin: what the page was before it became resident
    bits 12-    mfn, while the type is resident

The native plane sets the accessed and dirty bits, as a processor does: at the first access or store that the engine's
TLB has no entry for.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum, IntFlag
from typing import Any

import numpy as np

from emu.addr import NO_FRAME, PAGE_SHIFT
from emu.engine.ram import sparse_zeros

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
    RAM = 2  # resident, its frame is used by this gfn alone
    EVICTED = 3  # no frame; a policy keeps the contents
    IMAGE = 4  # no frame; contents in the guest image's file
    MMIO = 5  # registers of devices: every access reaches them (emu.devices.bus)
    SHARED = 6  # resident, read-only: its frame may be used by other gfns and other VMs


_TYPES = tuple(PageType)

RESIDENT = frozenset({PageType.RAM, PageType.SHARED})

NO_MEMORY = frozenset({PageType.HOLE, PageType.MMIO})

LEGAL = {
    PageType.HOLE: {PageType.EMPTY, PageType.IMAGE, PageType.MMIO},
    PageType.MMIO: {PageType.HOLE},
    PageType.EMPTY: {PageType.RAM, PageType.IMAGE},
    PageType.IMAGE: {PageType.RAM, PageType.EMPTY},
    PageType.RAM: {PageType.RAM, PageType.SHARED, PageType.EVICTED, PageType.EMPTY, PageType.IMAGE},
    PageType.SHARED: {PageType.RAM, PageType.SHARED, PageType.EVICTED, PageType.EMPTY, PageType.IMAGE},
    PageType.EVICTED: {PageType.RAM, PageType.EMPTY},
}
"""The transitions that a gfn's type may make."""

YOUNG, ACCESSED, DIRTY = 1 << 3, 1 << 8, 1 << 9
_ORIGIN_SHIFT = 10
_ORIGINS = (PageType.EMPTY, PageType.IMAGE, PageType.EVICTED)
_MARKS = YOUNG | ACCESSED | DIRTY | 3 << _ORIGIN_SHIFT


def marks_of(origin: PageType) -> int:
    """The marks of a page that has just become resident and was ``origin`` before: neither accessed nor dirty."""
    return _ORIGINS.index(origin) << _ORIGIN_SHIFT


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
        self.entries = sparse_zeros(size, np.int64)
        self.memory = tuple(memory) if memory is not None else (range(size),)
        for gfns in self.memory:
            self.entries[gfns.start : gfns.stop] = PageType.EMPTY << 4
        self._elsewhere: set[int] = set()  # gfns outside ``memory`` that were ever set
        self._runs: list[range] | None = None

    def __len__(self) -> int:
        return len(self.entries)

    def known(self) -> Array:
        """The gfns that are or were no holes: int64, in ascending order."""
        return np.concatenate([np.arange(run.start, run.stop) for run in self.runs()])

    def runs(self) -> list[range]:
        """The gfns that are or were no holes, in ascending order."""
        if self._runs is None:
            others = np.array(sorted(gfn for gfn in self._elsewhere if not self._is_in_memory(gfn)), np.int64)
            pieces = np.split(others, np.flatnonzero(np.diff(others) != 1) + 1)
            runs = [range(int(piece[0]), int(piece[-1]) + 1) for piece in pieces if len(piece)]
            self._runs = sorted([*self.memory, *runs], key=lambda run: run.start)
        return self._runs

    def described(self) -> int:
        """How many gfns are or were no holes."""
        return sum(map(len, self.runs()))

    def count_types(self) -> Array:
        """How many of these gfns are of each :class:`PageType`."""
        return sum(
            (np.bincount(self.entries[run.start : run.stop] >> 4 & 15, minlength=16) for run in self.runs()),
            start=np.zeros(16, np.int64),
        )

    def _is_in_memory(self, gfn: int) -> bool:
        return any(gfn in gfns for gfns in self.memory)

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

    def marks(self, gfn: int) -> int:
        """The accessed and dirty bits and the origin of a resident ``gfn``, as :meth:`set` takes them."""
        return self.entries.item(gfn) & _MARKS

    def origin(self, gfn: int) -> PageType:
        """What a resident ``gfn`` was before it became resident: EMPTY, IMAGE or EVICTED."""
        return _ORIGINS[self.entries.item(gfn) >> _ORIGIN_SHIFT & 3]

    def accessed(self, gfn: int) -> bool:
        """Whether ``gfn`` is resident and was accessed since :meth:`emu.dmm.interface.DmmInterface.take_accessed`."""
        return self.entries.item(gfn) & ACCESSED != 0

    def dirty(self, gfn: int) -> bool:
        """Whether ``gfn`` is resident and may differ from what it was when it became resident."""
        return self.entries.item(gfn) & DIRTY != 0

    def mark(self, gfn: int, marks: int) -> None:
        """Set accessed or dirty bits of a resident ``gfn``."""
        self.entries[gfn] |= marks

    def resident(self) -> Array:
        """The resident gfns: int64, in ascending order."""
        found = [np.array([], np.int64)]
        for run in self.runs():
            kind = self.entries[run.start : run.stop] >> 4 & 15
            found.append(np.flatnonzero((kind == PageType.RAM) | (kind == PageType.SHARED)) + run.start)
        return np.concatenate(found)

    def set_run(self, gfns: range, kind: PageType) -> None:
        """Make EMPTY pages of holes, or holes of EMPTY pages.

        Raises:
            ValueError: one of them is something else.
        """
        before = {PageType.EMPTY: PageType.HOLE, PageType.HOLE: PageType.EMPTY}[kind]
        entries = self.entries[gfns.start : gfns.stop]
        if len(entries) != len(gfns) or (entries != before << 4).any():
            raise ValueError(f"gfns {gfns.start:#x} to {gfns.stop - 1:#x} are not all {before.name}")
        entries[:] = kind << 4
        self._elsewhere.update(gfns)
        self._runs = None

    def set(
        self, gfn: int, kind: PageType, mfn: int = NO_FRAME, rights: Intent = NO_RIGHTS, marks: int = 0
    ) -> None:
        """Give ``gfn`` a new type, frame, rights and marks.

        Raises:
            ValueError: the transition is not in LEGAL, or frame and rights do not fit the type.
        """
        before = self.type(gfn)
        if kind not in LEGAL[before]:
            raise ValueError(f"gfn {gfn:#x}: {before.name} cannot become {kind.name}")
        if before is PageType.HOLE and gfn not in self._elsewhere:
            self._elsewhere.add(gfn)
            self._runs = None
        resident = kind in RESIDENT
        if (mfn != NO_FRAME) != resident or (rights or marks) and not resident:
            raise ValueError(f"gfn {gfn:#x}: {kind.name} with mfn {mfn}, rights {rights!r} and marks {marks:#x}")
        if kind is PageType.SHARED and rights & Intent.WRITE:
            raise ValueError(f"gfn {gfn:#x}: a shared page cannot be writable")
        frame = mfn << PAGE_SHIFT if mfn != NO_FRAME else 0
        self.entries[gfn] = frame | marks | int(kind) << 4 | int(rights)
