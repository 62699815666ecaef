"""The event timers: Linux' clock source and clock events, periodic timers of teaching kernels, rules of the chip."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emu.devices.hpet import ROUTES, Hpet
from emu.errors import BadInput

CAPABILITY, PERIOD, CONFIG, STATUS, COUNTER = 0x00, 0x04, 0x10, 0x20, 0xF0
ENABLE, LEGACY = 1, 2
LEVEL, INTERRUPT, PERIODIC, SETVAL, MODE_32 = 0x02, 0x04, 0x08, 0x40, 0x100
CAPABLE = 0x30  # 64 bits, periodic
MS = 1_000_000  # ns
TICKS_MS = 100_000  # counter ticks in one ms


def config(timer: int) -> int:
    return 0x100 + 0x20 * timer


def comparator(timer: int) -> int:
    return 0x108 + 0x20 * timer


class Line:
    def __init__(self) -> None:
        self.level = False
        self.rises = 0

    def set(self, level: bool) -> None:
        self.rises += level and not self.level
        self.level = level


class Board:
    def __init__(self, now_ns: int = 0) -> None:
        self.now_ns = now_ns
        self.lines = {irq: Line() for irq in (0, 2, 8, *range(16, 24))}
        self.legacy: list[bool] = []
        self.hpet = Hpet(self.lines.__getitem__, lambda: self.now_ns, self.legacy.append)

    def get(self, offset: int, size: int = 4) -> int:
        return self.hpet.read(offset, size)

    def put(self, offset: int, value: int, size: int = 4) -> None:
        self.hpet.write(offset, size, value)

    def run(self, until_ns: int) -> int:
        """Do what a machine does: tick at each deadline. Returns how many there were."""
        ticks = 0
        while (deadline := self.hpet.deadline()) is not None and deadline <= until_ns:
            ticks += 1
            self.now_ns = max(self.now_ns, deadline)
            self.hpet.tick(self.now_ns)
        self.now_ns = until_ns
        return ticks

    def rises(self, irq: int) -> int:
        return self.lines[irq].rises


@pytest.fixture
def board() -> Board:
    return Board()


def test_linux_finds_it(board: Board) -> None:
    """hpet_enable: a period of at most 100 ns, then the capabilities, then the counter must count."""
    assert board.get(PERIOD) == 10_000_000
    assert board.get(CAPABILITY) == 0x8086A201
    assert board.get(CAPABILITY, 8) == 10_000_000 << 32 | 0x8086A201
    assert [board.get(config(n), 8) for n in range(3)] == [ROUTES << 32 | CAPABLE] * 3
    assert board.get(config(0) + 4) == 0x00FF0104
    assert [board.get(comparator(n), 8) for n in range(3)] == [(1 << 64) - 1] * 3
    board.put(CONFIG, board.get(CONFIG) & ~ENABLE)
    board.put(COUNTER, 0)
    board.put(COUNTER + 4, 0)
    board.put(CONFIG, board.get(CONFIG) | ENABLE)
    board.now_ns += 200_000
    assert board.get(COUNTER) == 20_000
    assert board.hpet.deadline() is None


def test_counter_stands_runs_and_is_written_only_while_it_stands(board: Board) -> None:
    board.run(5 * MS)
    assert board.get(COUNTER, 8) == 0
    board.put(COUNTER, 0x1_FFFF_FFFF, 8)
    board.put(CONFIG, ENABLE)
    board.now_ns += 10
    assert board.get(COUNTER, 8) == 0x2_0000_0000
    assert (board.get(COUNTER), board.get(COUNTER + 4)) == (0, 2)
    board.put(COUNTER, 77, 8)
    board.put(CONFIG, 0)
    board.now_ns += MS
    assert board.get(COUNTER, 8) == 0x2_0000_0000
    board.put(COUNTER + 4, 9)
    assert board.get(COUNTER, 8) == 0x9_0000_0000


def test_linux_one_shot_events_in_legacy_mode(board: Board) -> None:
    """hpet_clkevt_set_state_oneshot and hpet_clkevt_set_next_event: 32-bit mode, comparator a delta ahead."""
    board.put(CONFIG, ENABLE | LEGACY)
    assert board.legacy == [True] and board.hpet.legacy
    board.put(config(0), INTERRUPT | MODE_32)
    for n in range(1, 4):
        board.put(comparator(0), board.get(COUNTER) + TICKS_MS)
        assert board.hpet.deadline() == n * MS
        board.run(n * MS - 1)
        assert board.rises(0) == n - 1
        board.run(n * MS)
        assert board.rises(0) == n
        assert not board.lines[0].level, "an edge"
    assert board.get(STATUS) == 0


def test_linux_periodic_event(board: Board) -> None:
    """hpet_clkevt_set_state_periodic: SETVAL, first the comparator, a microsecond later the period."""
    board.put(CONFIG, ENABLE | LEGACY)
    board.run(7 * MS)
    board.put(CONFIG, LEGACY)
    board.put(config(0), INTERRUPT | PERIODIC | SETVAL | MODE_32)
    board.put(comparator(0), board.get(COUNTER) + TICKS_MS)
    assert board.get(config(0)) & SETVAL == 0
    board.now_ns += 1000
    board.put(comparator(0), TICKS_MS)
    board.put(CONFIG, ENABLE | LEGACY)
    start = board.now_ns
    board.run(start + 10 * MS)
    assert board.rises(0) == 10
    assert board.get(comparator(0)) == 7 * TICKS_MS + 11 * TICKS_MS
    assert board.hpet.deadline() == start + 11 * MS


def test_teaching_kernel_writes_the_comparator_once(board: Board) -> None:
    """One write after SETVAL sets both; the counter is at 0."""
    board.put(config(0), 2 << 9 | INTERRUPT | PERIODIC | SETVAL, 8)
    board.put(comparator(0), 10 * TICKS_MS, 8)
    board.put(CONFIG, ENABLE, 8)
    board.run(100 * MS)
    assert board.rises(2) == 10
    board.put(comparator(0), 5 * TICKS_MS, 8)
    board.run(200 * MS)
    assert board.rises(2) == 10 + 1 + 18, "the period that was running is kept"


def test_periodic_comparator_far_behind_a_running_counter(board: Board) -> None:
    board.put(CONFIG, ENABLE)
    board.run(1000 * MS)
    board.put(config(1), 16 << 9 | INTERRUPT | PERIODIC | SETVAL, 8)
    board.put(comparator(1), 10 * TICKS_MS, 8)
    board.run(1001 * MS)
    assert board.rises(16) == 1
    assert board.get(comparator(1), 8) == 1010 * TICKS_MS
    board.run(1100 * MS)
    assert board.rises(16) == 11


def test_specified_way_to_set_a_64_bit_periodic_comparator_in_halves(board: Board) -> None:
    board.put(config(0), 2 << 9 | INTERRUPT | PERIODIC | SETVAL)
    board.put(comparator(0), 500)
    board.put(config(0), 2 << 9 | INTERRUPT | PERIODIC | SETVAL)
    board.put(comparator(0) + 4, 0)
    assert board.get(comparator(0), 8) == 500
    assert board.hpet.timers[0].period == 500
    board.put(CONFIG, ENABLE)
    board.run(50_000)
    assert board.rises(2) == 10


def test_64_bit_comparator_in_halves_does_not_interrupt_between_them(board: Board) -> None:
    board.put(COUNTER, 0x1_8000_0000, 8)
    board.put(CONFIG, ENABLE)
    board.put(config(0), 2 << 9 | INTERRUPT)
    board.put(comparator(0), 0x10)
    board.put(comparator(0) + 4, 0)
    board.run(50)
    board.put(comparator(0), 0x8000_1000)
    board.run(100)
    board.put(comparator(0) + 4, 1)
    assert board.hpet.deadline() == 0x1000 * 10
    board.run(0x1000 * 10)
    assert board.rises(2) == 1


def test_64_bit_comparator_that_is_late_still_interrupts_once(board: Board) -> None:
    board.put(CONFIG, ENABLE)
    board.run(MS)
    board.put(config(0), 2 << 9 | INTERRUPT)
    board.put(comparator(0), 5, 8)
    assert board.hpet.deadline() == MS + 1000
    board.run(10 * MS)
    assert board.rises(2) == 1
    assert board.hpet.deadline() is None


def test_32_bit_timer_matches_each_time_round(board: Board) -> None:
    board.put(CONFIG, ENABLE)
    board.put(config(0), 2 << 9 | INTERRUPT | MODE_32)
    assert board.get(comparator(0), 8) == 0xFFFF_FFFF
    board.put(comparator(0), 1000)
    board.put(comparator(0) + 4, 5)
    assert board.get(comparator(0), 8) == 1000
    board.run(10_000)
    assert board.rises(2) == 1
    assert board.hpet.deadline() == ((1 << 32) + 1000) * 10
    board.put(comparator(0), 999)
    assert board.hpet.deadline() == ((1 << 32) + 999) * 10


def test_32_bit_periodic_timer_wraps(board: Board) -> None:
    board.put(COUNTER, 0xFFFF_F000, 8)
    board.put(config(0), 2 << 9 | INTERRUPT | PERIODIC | SETVAL | MODE_32)
    board.put(comparator(0), 0xFFFF_F800)
    board.put(comparator(0), 0x1000)
    board.put(CONFIG, ENABLE)
    board.run((0x800 + 3 * 0x1000) * 10)
    assert board.rises(2) == 4
    assert board.get(comparator(0), 8) == 0x3800


def test_level_triggered_holds_its_line_until_the_status_is_cleared(board: Board) -> None:
    board.put(CONFIG, ENABLE)
    board.put(config(2), 20 << 9 | INTERRUPT | LEVEL | PERIODIC | SETVAL)
    board.put(comparator(2), 1000, 8)
    board.run(10_000)
    assert (board.lines[20].level, board.get(STATUS)) == (True, 4)
    assert board.hpet.deadline() is None, "it interrupts already"
    board.put(STATUS, 3)
    assert board.lines[20].level
    board.put(STATUS, 4)
    assert (board.lines[20].level, board.get(STATUS)) == (False, 0)
    assert board.hpet.deadline() == 20_000
    board.run(25_000)
    board.put(config(2), LEVEL | PERIODIC | 20 << 9)
    assert (board.lines[20].level, board.get(STATUS)) == (False, 4)
    board.put(config(2), LEVEL | PERIODIC | INTERRUPT | 20 << 9)
    board.put(CONFIG, 0)
    assert not board.lines[20].level
    assert board.rises(20) == 3


def test_two_level_timers_share_a_line(board: Board) -> None:
    board.put(CONFIG, ENABLE)
    for timer, at in ((0, 100), (1, 200)):
        board.put(config(timer), 17 << 9 | INTERRUPT | LEVEL)
        board.put(comparator(timer), at, 8)
    board.run(2000)
    assert board.get(STATUS) == 3
    board.put(STATUS, 1)
    assert board.lines[17].level
    board.put(STATUS, 2)
    assert not board.lines[17].level


def test_status_works_without_an_interrupt(board: Board) -> None:
    board.put(CONFIG, ENABLE)
    board.put(config(0), LEVEL)
    board.put(comparator(0), 100, 8)
    assert board.hpet.deadline() is None
    board.run(999)
    assert board.get(STATUS) == 0
    board.run(1000)
    assert board.get(STATUS) == 1


@pytest.mark.parametrize(("timer", "irq"), [(0, 0), (1, 8), (2, 18)])
def test_legacy_replacement_overrides_the_routes_of_two_timers(board: Board, timer: int, irq: int) -> None:
    board.put(CONFIG, ENABLE | LEGACY)
    board.put(config(timer), 18 << 9 | INTERRUPT)
    board.put(comparator(timer), 100, 8)
    board.run(1000)
    assert board.rises(irq) == 1
    assert sum(line.rises for line in board.lines.values()) == 1
    board.put(CONFIG, ENABLE)
    assert board.legacy == [True, False]


@pytest.mark.parametrize("route", [0, 1, 3, 15, 24, 31])
def test_routes_that_cannot_be_had_do_not_read_back(board: Board, route: int) -> None:
    board.put(config(0), 22 << 9)
    board.put(config(0), route << 9 | INTERRUPT)
    assert board.get(config(0)) >> 9 & 0x1F == 22
    board.hpet.timers[1].configuration |= INTERRUPT
    board.put(CONFIG, ENABLE)
    board.put(comparator(1), 10, 8)
    assert board.hpet.deadline() is None, "route 0 is none"


def test_periods_below_a_microsecond_do_not_flood_the_machine(board: Board) -> None:
    board.put(config(0), 2 << 9 | INTERRUPT | PERIODIC | SETVAL)
    board.put(comparator(0), 3, 8)
    board.put(CONFIG, ENABLE)
    assert board.run(100_000) <= 100
    assert board.rises(2) > 50
    board.put(comparator(0), 0, 8)
    board.run(200_000)
    assert board.hpet.deadline() is None, "a period of 0 ends it"


def test_nonsense_is_ignored(board: Board) -> None:
    board.put(CONFIG, 0xFFFF_FFFF_FFFF_FFFC, 8)
    board.put(CAPABILITY, 0, 8)
    for size in (1, 2):
        board.put(CONFIG, 1, size)
    board.put(CONFIG + 2, 1)
    for offset in (0x28, 0x110, 0x160, 0x3F8):
        board.put(offset, 0x1234, 8)
        assert board.get(offset, 8) == 0
    assert (board.get(CONFIG, 8), board.get(CAPABILITY)) == (0, 0x8086A201)
    assert board.get(CAPABILITY + 2, 2) == 0x8086


def test_state_survives_json(board: Board) -> None:
    board.put(CONFIG, ENABLE | LEGACY)
    board.put(config(0), INTERRUPT | PERIODIC | SETVAL | MODE_32)
    board.put(comparator(0), TICKS_MS)
    board.put(config(2), 19 << 9 | INTERRUPT | LEVEL)
    board.put(comparator(2), TICKS_MS * 3 // 2, 8)
    board.run(2 * MS + 123_456)
    other = Board(board.now_ns)
    other.hpet.load_state(json.loads(json.dumps(board.hpet.state())))
    other.lines[19].level = True
    for each in (board, other):
        each.put(STATUS, 4)
        each.run(10 * MS)
    assert other.hpet.state() == board.hpet.state()
    assert not other.lines[19].level
    assert other.rises(0) == 8
    with pytest.raises(BadInput):
        other.hpet.load_state({})


OFFSETS = st.sampled_from([CONFIG, STATUS, COUNTER, *(f(n) for f in (config, comparator) for n in range(3))])
VALUES = st.integers(0, (1 << 64) - 1) | st.integers(0, 2000) | st.integers(0, 0x7FFF)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(OFFSETS, st.sampled_from([4, 8]), VALUES, st.integers(0, 20_000)), max_size=25))
def test_looking_often_changes_nothing(writes: list[tuple[int, int, int, int]]) -> None:
    """Whatever a guest writes: one block of timers is ticked at its deadlines alone, the other all the time."""
    lazy, busy = Board(), Board()
    for offset, size, value, ns in writes:
        for board in (lazy, busy):
            board.put(offset, value & (1 << 8 * size) - 1, size)
        start = lazy.now_ns
        lazy.run(start + ns)
        for n in range(1, 4):
            busy.run(start + ns * n // 3)
            busy.hpet.tick(busy.now_ns)
        for each in (CONFIG, STATUS, COUNTER, *(config(n) for n in range(3))):
            assert lazy.get(each, 8) == busy.get(each, 8)
        for irq, line in lazy.lines.items():
            assert (line.level, line.rises) == (busy.lines[irq].level, busy.rises(irq))
