"""Swapping: when the pool is full or shrinks, pages are evicted to a store, and come back when they are touched.

Which page goes is decided by an algorithm of :mod:`emu.dmm.policies.victims`, and where its contents go by the stores
of :mod:`emu.dmm.policies.store`.  Pages of zeros, and pages that still are what the store or the guest image has, are
not written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from emu.dmm.errors import StoreFull
from emu.dmm.interface import DmmInterface
from emu.dmm.policies.store import CompressedStore, FileStore, PageStore
from emu.dmm.policies.victims import VICTIMS, Victims
from emu.dmm.policy import Policy
from emu.errors import BadInput

if TYPE_CHECKING:
    from emu.boot.image import GuestImage


class _ResidentPages:
    """:class:`emu.dmm.policies.victims.Pages` of a VM."""

    def __init__(self, dmm: DmmInterface) -> None:
        self._dmm = dmm
        self.accessed = dmm.p2m.accessed
        self.dirty = dmm.p2m.dirty

    @property
    def now(self) -> int:
        return self._dmm.now

    def take_accessed(self, gfns: Sequence[int]) -> list[bool]:
        accessed: list[bool] = self._dmm.take_accessed(np.array(gfns, np.int64)).tolist()
        return accessed


class Swap(Policy):
    """Swapping.

    Args:
        victims: the algorithm, a name in VICTIMS; ``options`` are those that it takes.
        memory: bytes for compressed pages in host memory, by default as much as the guest's memory.
        algorithm: that compresses them, "lz4" or "zstd".
        file: path of a swap file, for what does not fit there.
        size: bytes of pages that it may hold, by default as much as the guest's memory.

    Attributes:
        store: where evicted pages are, once attached.
    """

    name = "swap"
    store: PageStore

    def __init__(
        self, image: GuestImage, victims: str = "clock", memory: int | None = None, algorithm: str = "lz4",
        file: str | None = None, size: int | None = None, **options: Any,
    ) -> None:  # fmt: skip
        unknown = options.keys() - set(VICTIMS[victims].options)
        if unknown:
            raise BadInput("--policy", f"swap: {min(unknown)} is no option of victims={victims}")
        if victims == "optimal" and "trace" not in options:
            raise BadInput("--policy", "swap: victims=optimal needs trace=FILE, a recorded run")
        if size is not None and file is None:
            raise BadInput("--policy", "swap: size= is that of file=, which is missing")
        self._factory, self._options = VICTIMS[victims].factory, options
        self._memory, self._algorithm, self._file, self._size = memory, algorithm, file, size
        self._next_tick = 0
        self._copies: set[int] = set()  # stored pages that have come back and may be changed yet
        self.files = () if file is None else (file,)

    def attach(self, dmm: DmmInterface) -> None:
        super().attach(dmm)
        trace = self._options.get("trace")
        if trace is not None and dmm.pool.size < trace.window:
            what = f"the trace tells pages within a window of {trace.window} not apart: the pool is smaller"
            raise BadInput("--policy", f"swap: victims=optimal: {what}")
        everything = dmm.p2m.described() * 4096
        size = everything if self._size is None else self._size
        below = FileStore(dmm.name, self._file, size) if self._file is not None else None
        self.store = CompressedStore(
            dmm.name, everything if self._memory is None else self._memory, below, self._algorithm
        )
        self._victims: Victims = self._factory(_ResidentPages(dmm), **self._options)
        for gfn in dmm.p2m.resident().tolist():
            self._victims.entered(gfn)
        self._next_tick = dmm.now + (self._victims.period or 0)

    def detach(self) -> None:
        self.store.close()

    def forget_names(self) -> None:
        self.store.forget_names()

    def entered(self, gfn: int) -> None:
        self._victims.entered(gfn)
        if gfn in self.store:
            self._copies.add(gfn)

    def left(self, gfn: int) -> None:
        self._victims.left(gfn)
        self._copies.discard(gfn)

    def make_room(self, frames: int) -> None:
        pool = self.dmm.pool
        goal = pool.spare + frames
        while pool.spare < goal:
            gfn = self._victims.victim(self._must_stay)
            if gfn is None:
                return
            spare = pool.spare
            self.dmm.evict(gfn, self)
            if pool.spare == spare:
                return  # others use the frame, and may have to pay for it first

    def _must_stay(self, gfn: int) -> bool:
        """Evicting it is impossible, or gains nothing for this VM."""
        return not self.dmm.is_evictable(gfn)

    def keep(self, gfn: int, contents: bytes) -> None:
        try:
            self.store.put(gfn, contents)
        except StoreFull:
            if not self._drop_copies():
                raise
            self.store.put(gfn, contents)

    def _drop_copies(self) -> int:
        """Forget what is stored of pages that have come back; returns how many there were."""
        copies = sorted(self._copies)
        for gfn in copies:
            self.dmm.forget_copy(gfn)
        return len(copies)

    def restore(self, gfn: int) -> bytes:
        return self.store.get(gfn)

    def release(self, gfn: int) -> None:
        self.store.drop(gfn)
        self._copies.discard(gfn)

    def statistics(self) -> dict[str, int]:
        return asdict(self.store.statistics) | {"pages": len(self.store)}

    def deadline(self) -> int | None:
        return self._next_tick if self._victims.period is not None else None

    def epoch(self, now: int) -> None:
        assert self._victims.period is not None
        self._victims.tick()
        self._next_tick = now + self._victims.period
