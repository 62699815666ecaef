"""The optimal replacement algorithm, which knows the future: a yardstick for all others."""

from __future__ import annotations

from heapq import heappop, heappush

import numpy as np

from emu.dmm.policies.reference_trace import ReferenceTrace, Window
from emu.dmm.policies.replacement import Pages, Skip, Victims

_NEVER = 1 << 63  # after every time of a trace


class Optimal(Victims):
    """The page whose next use lies farthest ahead: no algorithm has fewer faults.

    Belady: "A study of replacement algorithms for a virtual-storage computer", IBM Systems Journal 5(2), 1966; proved
    by Mattson, Gecsei, Slutz, Traiger, "Evaluation techniques for storage hierarchies", IBM Systems Journal 9(2), 1970.

    Pages in the window of the trace count as in use, because references to them were not recorded: they go last.

    Args:
        trace: what the guest will do, recorded in a run that was the same.
    """

    name = "optimal"

    def __init__(self, pages: Pages, trace: ReferenceTrace) -> None:
        super().__init__(pages)
        self._trace = trace
        self._window = Window(trace.window)
        self._past = 0  # references that have entered the window
        self._next: dict[int, int] = {}  # next use of each page; it may have passed
        # heaps of next uses and gfns; entries that _next contradicts are void
        self._soonest: list[tuple[int, int]] = []
        self._farthest: list[tuple[int, int]] = []

    def entered(self, gfn: int) -> None:
        use = self._trace.next_use(gfn, self._pages.now)
        self._next[gfn] = use = _NEVER if use is None else use
        heappush(self._farthest, (-use, gfn))
        if use != _NEVER:
            heappush(self._soonest, (use, gfn))

    def left(self, gfn: int) -> None:
        del self._next[gfn]

    def victim(self, skip: Skip) -> int | None:
        now = self._pages.now
        while self._soonest and self._soonest[0][0] <= now:
            use, gfn = heappop(self._soonest)
            if self._next.get(gfn) == use:
                self.entered(gfn)
        past = int(np.searchsorted(self._trace.time, now, "right"))
        for gfn in self._trace.gfn[self._past : past].tolist():
            self._window.add(gfn)
        self._past = past
        chosen = self._farthest_of(lambda gfn: gfn in self._window or skip(gfn))
        return self._farthest_of(skip) if chosen is None else chosen

    def _farthest_of(self, skip: Skip) -> int | None:
        skipped = []
        chosen = None
        while self._farthest and chosen is None:
            use, gfn = self._farthest[0]
            if self._next.get(gfn) != -use:
                heappop(self._farthest)
            elif skip(gfn):
                skipped.append(heappop(self._farthest))
            else:
                chosen = gfn
        for entry in skipped:
            heappush(self._farthest, entry)
        return chosen
