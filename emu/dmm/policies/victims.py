"""Which page to evict: textbook algorithms for page replacement, by name in VICTIMS."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from random import Random

from emu.dmm.policies.optimal import Optimal
from emu.dmm.policies.replacement import Pages, Skip, Victims

__all__ = [
    "FIFO", "VICTIMS", "AgingLRU", "Algorithm", "Clock", "Optimal", "Pages", "RandomChoice", "Skip", "TwoQueue",
    "Victims", "WSClock",
]  # fmt: skip

# In an OrderedDict, unlike a dict, taking away from the front costs the same however much was there before.
_Queue = OrderedDict[int, None]


def _first(gfns: Iterable[int], skip: Skip) -> int | None:
    return next((gfn for gfn in gfns if not skip(gfn)), None)


def _front(queue: _Queue, skip: Skip) -> int | None:
    """The first page that need not be skipped; those before it go to the back, so that they are not met every time."""
    for _ in range(len(queue)):
        gfn = next(iter(queue))
        if not skip(gfn):
            return gfn
        queue.move_to_end(gfn)
    return None


class FIFO(Victims):
    """The page that has been resident longest.

    Belady, Nelson, Shedler: "An anomaly in space-time characteristics of certain programs running in a paging machine",
    CACM 12(6), 1969: more frames may mean more faults.
    """

    name = "fifo"

    def __init__(self, pages: Pages) -> None:
        super().__init__(pages)
        self._queue = _Queue()

    def entered(self, gfn: int) -> None:
        self._queue[gfn] = None

    def left(self, gfn: int) -> None:
        del self._queue[gfn]

    def victim(self, skip: Skip) -> int | None:
        return _front(self._queue, skip)


class Clock(FIFO):
    """Second chance: FIFO, but a page that was accessed goes round once more.

    Corbató: "A paging experiment with the Multics system", 1968.  The front of the queue is what the hand points to.
    """

    name = "clock"

    def victim(self, skip: Skip) -> int | None:
        return _second_chance(self._queue, self._pages, skip)


def _second_chance(queue: _Queue, pages: Pages, skip: Skip) -> int | None:
    """The first page not accessed, starting at the front; those before it go to the back, and are not accessed then."""
    cleared: list[int] = []
    chosen = None
    for _ in range(len(queue)):
        gfn = next(iter(queue))
        if not skip(gfn):
            if not pages.accessed(gfn):
                chosen = gfn
                break
            cleared.append(gfn)
        queue.move_to_end(gfn)
    if cleared:
        pages.take_accessed(cleared)
        if chosen is None:
            chosen = cleared[0]
    return chosen


class RandomChoice(Victims):
    """Any page: the baseline that an algorithm should beat (Belady: "A study of replacement algorithms", 1966).

    Where pages are to be skipped, the next one in the table is taken.

    Args:
        seed: of the random numbers.
    """

    name = "random"

    def __init__(self, pages: Pages, seed: int = 0) -> None:
        super().__init__(pages)
        self._random = Random(seed)
        self._table: list[int] = []
        self._place: dict[int, int] = {}

    def entered(self, gfn: int) -> None:
        self._place[gfn] = len(self._table)
        self._table.append(gfn)

    def left(self, gfn: int) -> None:
        place, last = self._place.pop(gfn), self._table.pop()
        if last != gfn:
            self._table[place] = last
            self._place[last] = place

    def victim(self, skip: Skip) -> int | None:
        if not self._table:
            return None
        start = self._random.randrange(len(self._table))
        places = (range(start, len(self._table)), range(start))
        return _first((self._table[place] for part in places for place in part), skip)


class AgingLRU(Victims):
    """An approximation of LRU: the page that was used least in the last eight periods, the latest counting most.

    Every page has an 8-bit counter, into which its accessed bit is shifted from above at each tick (Tanenbaum, Bos:
    "Modern operating systems", 4th edition, 3.4.7).  Pages used since the last tick are spared while there are others,
    and so are those that have entered since.

    Args:
        period: virtual time in ns between two ticks.
    """

    name = "aging"

    def __init__(self, pages: Pages, period: int = 10_000_000) -> None:
        super().__init__(pages)
        self.period: int = period
        self._counter: dict[int, int] = {}
        self._idle = _Queue()  # by counter, lowest first
        self._used = _Queue()  # known to be used since the last tick, or entered since

    def entered(self, gfn: int) -> None:
        self._counter[gfn] = 0
        self._used[gfn] = None

    def left(self, gfn: int) -> None:
        del self._counter[gfn]
        (self._idle if gfn in self._idle else self._used).pop(gfn)

    def victim(self, skip: Skip) -> int | None:
        used = []
        chosen = None
        for gfn in self._idle:
            if self._pages.accessed(gfn) or skip(gfn):
                used.append(gfn)
            else:
                chosen = gfn
                break
        for gfn in used:
            del self._idle[gfn]
            self._used[gfn] = None
        return _front(self._used, skip) if chosen is None else chosen

    def tick(self) -> None:
        counter = self._counter
        gfns = [*self._idle, *self._used]
        for gfn, accessed in zip(gfns, self._pages.take_accessed(gfns), strict=True):
            counter[gfn] = counter[gfn] >> 1 | (0x80 if accessed else 0)
        self._idle = OrderedDict.fromkeys(sorted(gfns, key=counter.__getitem__))
        self._used.clear()


class WSClock(Victims):
    """The working set by a clock: a page not used for ``tau`` is old; old clean pages go before old dirty ones.

    Carr, Hennessy: "WSClock - a simple and effective algorithm for virtual memory management", SOSP 1981.  The hand
    stamps each page that was accessed with the time.  Here pages that it has stamped go to the back, so the queue is
    in the order of stamps, and the hand need not pass pages that are too young.  Nothing is written ahead: old dirty
    pages wait in a queue of their own until no clean page is old.  When no page is old, the oldest stamp goes.

    Args:
        tau: virtual time in ns.
    """

    name = "wsclock"

    def __init__(self, pages: Pages, tau: int = 10_000_000) -> None:
        super().__init__(pages)
        self._tau = tau
        self._stamps: OrderedDict[int, int] = OrderedDict()
        self._old_dirty = _Queue()

    def entered(self, gfn: int) -> None:
        self._stamps[gfn] = self._pages.now

    def left(self, gfn: int) -> None:
        if gfn in self._stamps:
            del self._stamps[gfn]
        else:
            del self._old_dirty[gfn]

    def victim(self, skip: Skip) -> int | None:
        now, pages = self._pages.now, self._pages
        used: list[int] = []
        young: list[int] = []  # by decree: they cannot go
        dirty: list[int] = []
        chosen = oldest = None
        for gfn, stamp in self._stamps.items():
            if skip(gfn):
                young.append(gfn)
            elif pages.accessed(gfn):
                used.append(gfn)
            elif now - stamp <= self._tau:
                oldest = gfn
                break
            elif pages.dirty(gfn):
                dirty.append(gfn)
            else:
                chosen = gfn
                break
        for gfn in dirty:
            del self._stamps[gfn]
            self._old_dirty[gfn] = None
        if chosen is None:
            for gfn in self._old_dirty:
                if skip(gfn):
                    continue
                if not pages.accessed(gfn):
                    chosen = gfn
                    break
                used.append(gfn)
        for gfn in used + young:
            self._old_dirty.pop(gfn, None)
            self._stamps[gfn] = now
            self._stamps.move_to_end(gfn)
        if used:
            pages.take_accessed(used)
        if chosen is None:
            chosen = oldest
        return used[0] if chosen is None and used else chosen


class TwoQueue(Victims):
    """2Q, full version: a page that comes for the first time must not drive out those that have come again.

    Johnson, Shasha: "2Q: a low overhead high performance buffer management replacement algorithm", VLDB 1994.  A page
    enters the FIFO ``A1in``; when it leaves that, ``A1out`` remembers its gfn for a while, and when it comes back in
    that time it enters ``Am``.  The paper's sizes: a quarter of the pool for A1in, half as many gfns as pages in A1out.

    The paper's Am is an LRU list; here it is a clock.  References within A1in mean nothing to 2Q, so accessed bits
    are cleared in Am alone: fewer TLB flushes than with ARC, which wants to know of every reference.
    """

    name = "2q"

    def __init__(self, pages: Pages) -> None:
        super().__init__(pages)
        self._a1in = _Queue()
        self._a1out = _Queue()
        self._am = _Queue()

    def entered(self, gfn: int) -> None:
        if gfn in self._a1out:
            del self._a1out[gfn]
            self._am[gfn] = None
        else:
            self._a1in[gfn] = None

    def left(self, gfn: int) -> None:
        resident = len(self._a1in) + len(self._am)
        if gfn in self._am:
            del self._am[gfn]
            return
        del self._a1in[gfn]
        self._a1out[gfn] = None
        while len(self._a1out) > resident // 2:
            self._a1out.popitem(last=False)

    def victim(self, skip: Skip) -> int | None:
        resident = len(self._a1in) + len(self._am)
        chosen = _front(self._a1in, skip) if len(self._a1in) > resident // 4 else None
        if chosen is None:
            chosen = _second_chance(self._am, self._pages, skip)
        return _front(self._a1in, skip) if chosen is None else chosen


# --- by name ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Algorithm:
    """One algorithm.

    Attributes:
        factory: is called with the pages and the options as keywords.
        about: one line for people.
        options: their names.
    """

    factory: Callable[..., Victims]
    about: str
    options: tuple[str, ...] = ()


VICTIMS: dict[str, Algorithm] = {
    "fifo": Algorithm(FIFO, "the page that came first"),
    "clock": Algorithm(Clock, "second chance: the page that came first and was not accessed since the hand passed"),
    "aging": Algorithm(AgingLRU, "the page least used in the last eight periods", ("period",)),
    "wsclock": Algorithm(WSClock, "a page not used for a time tau, a clean one first", ("tau",)),
    "2q": Algorithm(TwoQueue, "the page that came first among those that have not come again"),
    "random": Algorithm(RandomChoice, "any page", ("seed",)),
    "optimal": Algorithm(Optimal, "the page whose next use is farthest, as recorded", ("trace",)),
}
