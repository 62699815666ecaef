"""Replacement algorithms against textbook results, and against models that are slow and simple."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emu.bench.policies import Replay
from emu.dmm.policies.reference_trace import ReferenceTrace, Window
from emu.dmm.policies.replacement import Pages, Victims
from emu.dmm.policies.victims import FIFO, VICTIMS, AgingLRU, Clock, Optimal, RandomChoice, TwoQueue, WSClock

BELADY = [1, 2, 3, 4, 1, 2, 5, 1, 2, 3, 4, 5]  # Belady, Nelson, Shedler 1969

Make = Callable[[Pages], Victims]

strings = st.lists(st.integers(0, 6), min_size=1, max_size=40)
frame_numbers = st.integers(1, 7)


def faults(gfns: list[int], frames: int, make: Make) -> int:
    return Replay(ReferenceTrace.of(gfns), frames, make).run()


def makers(gfns: list[int]) -> dict[str, Make]:
    """Every algorithm for a reference string whose references are 1 ns apart."""
    values = {"period": 3, "tau": 5, "seed": 1, "trace": ReferenceTrace.of(gfns)}
    return {
        name: partial(algorithm.factory, **{option: values[option] for option in algorithm.options})
        for name, algorithm in VICTIMS.items()
    }


def lru_by_ticks(pages: Pages) -> Victims:
    """Aging with a tick for each reference: LRU, as long as eight references are enough to tell."""
    return AgingLRU(pages, period=1)


class FakePages:
    """Pages whose bits a test sets."""

    def __init__(self) -> None:
        self.now = 0
        self.accessed_gfns: set[int] = set()
        self.dirty_gfns: set[int] = set()
        self.clears: list[list[int]] = []

    def accessed(self, gfn: int) -> bool:
        return gfn in self.accessed_gfns

    def dirty(self, gfn: int) -> bool:
        return gfn in self.dirty_gfns

    def take_accessed(self, gfns: Sequence[int]) -> list[bool]:
        accessed = [gfn in self.accessed_gfns for gfn in gfns]
        if any(accessed):  # what costs a flush
            self.clears.append([gfn for gfn in gfns if gfn in self.accessed_gfns])
        self.accessed_gfns.difference_update(gfns)
        return accessed


def none(gfn: int) -> bool:
    return False


def filled(factory: Callable[[Pages], Victims], gfns: Sequence[int]) -> tuple[FakePages, Victims]:
    pages = FakePages()
    victims = factory(pages)
    for gfn in gfns:
        victims.entered(gfn)
    return pages, victims


# --- textbook ---------------------------------------------------------------------------------------------------


def test_beladys_anomaly() -> None:
    optimal = partial(Optimal, trace=ReferenceTrace.of(BELADY))
    assert [faults(BELADY, frames, FIFO) for frames in (3, 4)] == [9, 10]
    assert [faults(BELADY, frames, optimal) for frames in (3, 4)] == [7, 6]
    assert [faults(BELADY, frames, lru_by_ticks) for frames in (3, 4)] == [10, 8]


# --- against models ---------------------------------------------------------------------------------------------


def lru_model(gfns: list[int], frames: int) -> int:
    stack: list[int] = []
    count = 0
    for gfn in gfns:
        if gfn in stack[-frames:]:
            stack.remove(gfn)
        else:
            count += 1
            stack = [other for other in stack if other != gfn]
        stack.append(gfn)
    return count


def clock_model(gfns: list[int], frames: int) -> int:
    """A ring of frames, a use bit each, and a hand."""
    ring: list[int | None] = [None] * frames
    used = [False] * frames
    hand = count = 0
    for gfn in gfns:
        if gfn in ring:
            used[ring.index(gfn)] = True
            continue
        count += 1
        while used[hand]:
            used[hand] = False
            hand = (hand + 1) % frames
        ring[hand], used[hand] = gfn, True
        hand = (hand + 1) % frames
    return count


def least_faults(gfns: list[int], frames: int) -> int:
    """The fewest faults of all possible schedules."""
    best = {frozenset[int](): 0}
    for gfn in gfns:
        after: dict[frozenset[int], int] = {}
        for resident, count in best.items():
            if gfn in resident:
                choices = [(resident, count)]
            elif len(resident) < frames:
                choices = [(resident | {gfn}, count + 1)]
            else:
                kept = combinations(sorted(resident), frames - 1)
                choices = [(frozenset(some) | {gfn}, count + 1) for some in kept]
            for state, total in choices:
                after[state] = min(total, after.get(state, total))
        best = after
    return min(best.values())


def two_queue_model(gfns: list[int], frames: int) -> int:
    """The paper's rules over lists; Am is a list of [gfn, use bit]."""
    a1in: list[int] = []
    a1out: list[int] = []
    am: list[list[int]] = []
    count = 0
    for gfn in gfns:
        in_am = [entry for entry in am if entry[0] == gfn]
        if in_am:
            in_am[0][1] = 1
        elif gfn not in a1in:
            count += 1
            if len(a1in) + len(am) == frames:
                if len(a1in) > frames // 4 or not am:
                    a1out.append(a1in.pop(0))
                    a1out = a1out[len(a1out) - min(len(a1out), frames // 2) :]
                else:
                    while am[0][1]:
                        am.append([am.pop(0)[0], 0])
                    am.pop(0)
            if gfn in a1out:
                a1out.remove(gfn)
                am.append([gfn, 1])
            else:
                a1in.append(gfn)
    return count


@settings(max_examples=300)
@given(strings, frame_numbers)
def test_clock_is_a_ring_with_a_hand(gfns: list[int], frames: int) -> None:
    assert faults(gfns, frames, Clock) == clock_model(gfns, frames)


@settings(max_examples=100)
@given(st.lists(st.integers(0, 9), min_size=60, max_size=120), st.integers(2, 8))
def test_two_queue_is_the_papers(gfns: list[int], frames: int) -> None:
    assert faults(gfns, frames, TwoQueue) == two_queue_model(gfns, frames)


@settings(max_examples=300)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=9), frame_numbers)
def test_aging_is_lru_where_eight_ticks_are_enough(gfns: list[int], frames: int) -> None:
    assert faults(gfns, frames, lru_by_ticks) == lru_model(gfns, frames)


@settings(max_examples=150)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=20), st.integers(1, 5))
def test_nothing_beats_the_optimum(gfns: list[int], frames: int) -> None:
    least = least_faults(gfns, frames)
    for name, make in makers(gfns).items():
        count = faults(gfns, frames, make)
        assert count == least if name == "optimal" else count >= least


@settings(max_examples=150)
@given(strings, st.integers(1, 6))
def test_more_frames_hold_all_that_fewer_hold(gfns: list[int], frames: int) -> None:
    """Inclusion (Mattson et al. 1970): no anomaly is possible."""
    strings_and_makers: list[tuple[list[int], Make]] = [
        (gfns, makers(gfns)["optimal"]),
        (gfns[:9], lru_by_ticks),
    ]
    for some, make in strings_and_makers:
        trace = ReferenceTrace.of(some)
        small, large = Replay(trace, frames, make), Replay(trace, frames + 1, make)
        for _ in zip(small.steps(), large.steps(), strict=True):
            assert small.resident <= large.resident


@settings(max_examples=150)
@given(strings, st.integers(1, 4), st.integers(0, 3))
def test_a_filtered_trace_has_the_faults_of_the_whole_one(gfns: list[int], window: int, more: int) -> None:
    """For algorithms without accessed bits, the pages in the window being resident in both."""
    recorded = Window(window)
    kept = []
    for index, gfn in enumerate(gfns):
        if gfn not in recorded:
            recorded.add(gfn)
            kept.append(index)
    whole = ReferenceTrace.of(gfns)
    filtered = ReferenceTrace(whole.time[kept], whole.gfn[kept], whole.write[kept], window)
    frames = window + more
    for make in (FIFO, RandomChoice, partial(Optimal, trace=filtered)):
        assert Replay(filtered, frames, make).run() == faults_with_window(gfns, set(kept), frames, window, make)
    least = least_faults(gfns, frames)
    assert least_faults(filtered.gfn.tolist(), frames) <= least
    if more:
        assert least <= least_faults(filtered.gfn.tolist(), more)


def faults_with_window(gfns: list[int], kept: set[int], frames: int, window: int, make: Make) -> int:
    """Faults of the whole string when the last ``window`` pages that the recorder keeps stay resident."""
    pages = FakePages()
    victims = make(pages)
    resident: set[int] = set()
    last: list[int] = []
    count = 0
    for index, gfn in enumerate(gfns):
        pages.now = index + 1
        if index in kept:
            last = ([other for other in last if other != gfn] + [gfn])[-window:]
        if gfn not in resident:
            count += 1
            if len(resident) == frames:
                victim = victims.victim(last.__contains__)
                assert victim is not None
                resident.remove(victim)
                victims.left(victim)
            resident.add(gfn)
            victims.entered(gfn)
    return count


# --- each for itself --------------------------------------------------------------------------------------------


def test_clock_clears_many_at_a_time() -> None:
    pages, victims = filled(Clock, range(5))
    pages.accessed_gfns = {0, 1, 3}
    assert victims.victim(none) == 2
    assert pages.clears == [[0, 1]]
    pages.accessed_gfns = {0, 1, 2, 3, 4}
    assert victims.victim(lambda gfn: gfn == 2) == 3
    assert pages.clears[1:] == [[3, 4, 0, 1]]


def test_aging_counts_the_latest_period_most() -> None:
    pages, victims = filled(AgingLRU, range(4))
    for used in ({0, 1, 2, 3}, {0, 1}, {0, 2}, set[int]()):
        pages.accessed_gfns = set(used)
        victims.tick()
    order = []
    for _ in range(4):
        gfn = victims.victim(none)
        assert gfn is not None
        order.append(gfn)
        victims.left(gfn)
    assert order == [3, 1, 2, 0]


def test_aging_remembers_eight_periods() -> None:
    pages, victims = filled(AgingLRU, range(2))
    pages.accessed_gfns = {0}
    for _ in range(8):
        victims.tick()
    assert victims.victim(none) == 1
    victims.tick()
    victims.left(1)
    victims.entered(1)
    victims.tick()
    assert victims.victim(none) == 0


def test_aging_spares_what_was_used_since_the_tick_and_what_is_new() -> None:
    pages, victims = filled(AgingLRU, range(3))
    victims.tick()
    victims.entered(9)
    pages.accessed_gfns = {0}
    assert victims.victim(none) == 1
    victims.left(1)
    pages.accessed_gfns = {0, 2}
    assert victims.victim(none) == 9
    assert not pages.clears


def test_wsclock_takes_old_clean_pages_then_old_dirty_ones_then_the_oldest() -> None:
    pages, victims = filled(partial(WSClock, tau=10), [0, 1, 2])
    pages.now = 5
    victims.entered(3)
    pages.now = 11
    pages.dirty_gfns = {0, 1}
    pages.accessed_gfns = {0}
    assert victims.victim(none) == 2  # clean and old; 0 was used, 1 is dirty
    victims.left(2)
    assert pages.clears == [[0]]
    assert victims.victim(none) == 1  # old and dirty
    victims.left(1)
    assert victims.victim(none) == 3  # none is old; this one's stamp is 5, that of 0 is 11
    pages.now = 16
    pages.dirty_gfns = {0, 3}
    assert victims.victim(none) == 3
    pages.accessed_gfns = {3}
    assert victims.victim(none) == 0  # 3, in the queue of dirty ones, was used in the meantime


def test_the_optimum_spares_the_window() -> None:
    string = ReferenceTrace.of([1, 2, 3, 4])
    trace = ReferenceTrace(string.time, string.gfn, string.write, 2)
    pages, victims = filled(partial(Optimal, trace=trace), [1, 2, 3, 4])
    pages.now = 2
    assert victims.victim(none) == 4  # 1 and 2 are never recorded again, but may be in use
    assert victims.victim(lambda gfn: gfn > 2) == 1
    pages.now = 4
    assert victims.victim(none) == 1
    assert victims.victim(lambda gfn: gfn == 1) == 2


def test_two_queue_does_not_let_a_scan_drive_out_what_came_again() -> None:
    hot = [0, 1, 2]
    gfns = [*hot, *range(100, 110), *hot]  # the hot pages come again and enter Am
    for start in range(200, 260, 4):
        gfns += [*hot, *range(start, start + 4)]
    assert faults(gfns, 8, FIFO) > faults(gfns, 8, TwoQueue) + 15


def test_random_depends_on_its_seed_alone() -> None:
    gfns = [index * 7 % 50 for index in range(400)]

    def counts(seed: int) -> list[int]:
        return [faults(gfns, frames, partial(RandomChoice, seed=seed)) for frames in range(10, 40)]

    assert counts(1) == counts(1) != counts(2)


@pytest.mark.parametrize("name", VICTIMS)
@settings(max_examples=60)
@given(data=st.data())
def test_a_victim_is_a_resident_page_that_may_go(name: str, data: st.DataObject) -> None:
    """Whatever comes and goes, and whatever the bits say; at most one flush a victim."""
    future = data.draw(st.lists(st.integers(0, 9), max_size=30))
    pages = FakePages()
    victims = makers(future)[name](pages)
    resident: set[int] = set()
    for _ in range(data.draw(st.integers(1, 30))):
        pages.now += data.draw(st.integers(0, 3))
        pages.accessed_gfns |= resident & data.draw(st.sets(st.integers(0, 9), max_size=4))
        pages.dirty_gfns = data.draw(st.sets(st.integers(0, 9), max_size=4))
        gfn = data.draw(st.integers(0, 9))
        if gfn in resident:
            resident.remove(gfn)
            victims.left(gfn)
        else:
            resident.add(gfn)
            victims.entered(gfn)
        if data.draw(st.booleans()):
            victims.tick()
        skipped = data.draw(st.sets(st.integers(0, 9), max_size=8))
        pages.clears.clear()
        victim = victims.victim(skipped.__contains__)
        assert len(pages.clears) <= 1
        assert all(cleared and resident.issuperset(cleared) for cleared in pages.clears)
        if victim is None:
            assert resident <= skipped
        else:
            assert victim in resident - skipped
