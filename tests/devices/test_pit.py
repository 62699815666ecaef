"""The interval timer: the data sheet's diagrams, what kernels do with it, and a model that really counts."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emu.devices.bus import PortBus
from emu.devices.layout import PIT_PORT, PIT_PORTS, SYSTEM_CONTROL_PORT, SYSTEM_CONTROL_PORTS
from emu.devices.pit import HZ, NS, Pit, SystemControlPort, clocks_at, time_of
from emu.errors import BadInput

CONTROL = 0x43
LOW_BYTE, HIGH_BYTE, BOTH_BYTES = 0x10, 0x20, 0x30


class Line:
    """Counts the rises of an interrupt line."""

    def __init__(self) -> None:
        self.level = False
        self.rises = 0

    def set(self, level: bool) -> None:
        self.rises += level and not self.level
        self.level = level


class Board:
    """The timer and port 0x61 on a bus; `clock` is how many timer clocks have come."""

    def __init__(self) -> None:
        self.now_ns = 0
        self.line = Line()
        self.pit = Pit(self.line, lambda: self.now_ns)
        self.port61 = SystemControlPort(self.pit, lambda: self.now_ns)
        self.bus = PortBus()
        self.bus.register(PIT_PORT, PIT_PORTS, self.pit)
        self.bus.register(SYSTEM_CONTROL_PORT, SYSTEM_CONTROL_PORTS, self.port61)

    @property
    def clock(self) -> int:
        return clocks_at(self.now_ns)

    def step(self, clocks: int = 1) -> None:
        self.now_ns = time_of(self.clock + clocks)

    def out(self, *writes: tuple[int, int]) -> None:
        for port, value in writes:
            self.bus.write(port, 1, value)

    def inb(self, port: int) -> int:
        return self.bus.read(port, 1)

    def program(self, number: int, mode: int, count: int, bcd: bool = False) -> None:
        self.out((CONTROL, number << 6 | BOTH_BYTES | mode << 1 | bcd))
        self.out((0x40 + number, count & 0xFF), (0x40 + number, count >> 8))

    def gate(self, level: bool) -> None:
        self.out((0x61, level))

    def count(self, number: int) -> int:
        self.out((CONTROL, number << 6))
        return self.inb(0x40 + number) | self.inb(0x40 + number) << 8

    def status(self, number: int) -> int:
        self.out((CONTROL, 0xE0 | 2 << number))
        return self.inb(0x40 + number)

    def waves(self, number: int, clocks: int) -> tuple[list[int], str]:
        """Counts and OUT, as L and H, at each of the next `clocks` clocks."""
        counts, out = [], ""
        for _ in range(clocks):
            self.step()
            counts.append(self.count(number))
            out += "LH"[self.status(number) >> 7]
        return counts, out


@pytest.fixture
def board() -> Board:
    return Board()


# The data sheet's timing diagrams. The first clock after the count was written loads it.


def test_diagram_mode_0(board: Board) -> None:
    board.program(0, 0, 4)
    assert board.waves(0, 7) == ([4, 3, 2, 1, 0, 0xFFFF, 0xFFFE], "LLLLHHH")


def test_diagram_mode_0_gate_pauses(board: Board) -> None:
    board.gate(True)
    board.program(2, 0, 3)
    assert board.waves(2, 2) == ([3, 2], "LL")
    board.gate(False)
    assert board.waves(2, 2) == ([2, 2], "LL")
    board.gate(True)
    assert board.waves(2, 3) == ([1, 0, 0xFFFF], "LHH")


def test_diagram_mode_0_new_count(board: Board) -> None:
    board.program(0, 0, 3)
    assert board.waves(0, 2) == ([3, 2], "LL")
    board.out((0x40, 2), (0x40, 0))
    assert board.waves(0, 4) == ([2, 1, 0, 0xFFFF], "LLHH")


def test_mode_0_first_byte_stops_and_lowers_out(board: Board) -> None:
    board.program(0, 0, 1)
    assert board.waves(0, 2) == ([1, 0], "LH")
    board.out((0x40, 5))
    assert not board.status(0) & 0x80
    board.step(100)
    assert not board.status(0) & 0x80
    board.out((0x40, 0))
    assert board.waves(0, 6) == ([5, 4, 3, 2, 1, 0], "LLLLLH")


def test_diagram_mode_1(board: Board) -> None:
    board.program(2, 1, 3)
    board.step(10)
    assert board.status(2) & 0xC0 == 0xC0
    board.gate(True)
    assert board.status(2) & 0x80
    assert board.waves(2, 2) == ([3, 2], "LL")
    board.gate(False)
    board.gate(True)
    assert board.waves(2, 5) == ([3, 2, 1, 0, 0xFFFF], "LLLHH")


def test_diagram_mode_1_new_count_waits_for_the_trigger(board: Board) -> None:
    board.program(2, 1, 2)
    board.gate(True)
    assert board.waves(2, 1) == ([2], "L")
    board.out((0x42, 4), (0x42, 0))
    assert board.waves(2, 3) == ([1, 0, 0xFFFF], "LHH")
    board.gate(False)
    board.gate(True)
    assert board.waves(2, 5) == ([4, 3, 2, 1, 0], "LLLLH")


@pytest.mark.parametrize("number", [0, 1])
def test_diagram_mode_2(board: Board, number: int) -> None:
    board.program(number, 2, 3)
    assert board.waves(number, 7) == ([3, 2, 1, 3, 2, 1, 3], "HHLHHLH")


def test_diagram_mode_2_gate_reloads(board: Board) -> None:
    board.gate(True)
    board.program(2, 2, 3)
    assert board.waves(2, 3) == ([3, 2, 1], "HHL")
    board.gate(False)
    assert board.status(2) & 0x80, "GATE low raises OUT at once"
    assert board.waves(2, 2) == ([1, 1], "HH")
    board.gate(True)
    assert board.waves(2, 4) == ([3, 2, 1, 3], "HHLH")


def test_diagram_mode_2_new_count_waits_for_the_period(board: Board) -> None:
    board.program(0, 2, 4)
    assert board.waves(0, 2) == ([4, 3], "HH")
    board.out((0x40, 5), (0x40, 0))
    assert board.status(0) & 0x40
    assert board.waves(0, 8) == ([2, 1, 5, 4, 3, 2, 1, 5], "HLHHHHLH")
    assert not board.status(0) & 0x40


@pytest.mark.parametrize(
    ("count", "counts", "out"),
    [
        (4, [4, 2, 4, 2, 4, 2, 4, 2, 4, 2], "HHLLHHLLHH"),
        (5, [4, 2, 0, 4, 2, 4, 2, 0, 4, 2], "HHHLLHHHLL"),
        (2, [2, 2, 2, 2], "HLHL"),
        (3, [2, 0, 2, 2, 0, 2], "HHLHHL"),
    ],
)
def test_diagram_mode_3(board: Board, count: int, counts: list[int], out: str) -> None:
    board.program(0, 3, count)
    assert board.waves(0, len(out)) == (counts, out)


def test_mode_3_new_count_waits_for_the_half_period(board: Board) -> None:
    board.program(0, 3, 4)
    assert board.waves(0, 1) == ([4], "H")
    board.out((0x40, 6), (0x40, 0))
    assert board.waves(0, 9) == ([2, 6, 4, 2, 6, 4, 2, 6, 4], "HLLLHHHLL")


def test_diagram_mode_4(board: Board) -> None:
    board.program(0, 4, 3)
    assert board.waves(0, 6) == ([3, 2, 1, 0, 0xFFFF, 0xFFFE], "HHHLHH")


def test_diagram_mode_5(board: Board) -> None:
    board.program(2, 5, 3)
    board.step(5)
    board.gate(True)
    assert board.waves(2, 6) == ([3, 2, 1, 0, 0xFFFF, 0xFFFE], "HHHLHH")


def test_mode_4_strobes_once_though_the_count_wraps(board: Board) -> None:
    board.program(0, 4, 3)
    board.step(1 + 3)
    assert not board.status(0) & 0x80
    board.step(0x10000)
    assert (board.count(0), board.status(0) & 0x80) == (0, 0x80)


def test_zero_is_the_largest_count(board: Board) -> None:
    board.program(0, 2, 0)
    board.step(1)
    assert board.count(0) == 0
    board.step(1)
    assert board.count(0) == 0xFFFF
    board.step(0xFFFE)
    assert (board.count(0), board.status(0) & 0x80) == (1, 0)


def test_bcd(board: Board) -> None:
    board.program(0, 0, 0x1001, bcd=True)
    assert board.waves(0, 3)[0] == [0x1001, 0x1000, 0x0999]
    board.step(999)
    assert board.count(0) == 0
    assert board.waves(0, 1) == ([0x9999], "H")
    board.program(0, 2, 0, bcd=True)
    assert board.waves(0, 2)[0] == [0x0000, 0x9999]
    board.step(9998)
    assert board.waves(0, 1)[0] == [0x0000]


@pytest.mark.parametrize(("mode", "same_as"), [(6, 2), (7, 3)])
def test_modes_6_and_7_are_2_and_3(board: Board, mode: int, same_as: int) -> None:
    board.program(0, mode, 10)
    assert board.status(0) & 0x0E == same_as << 1


# Reading


def test_a_latched_count_waits_until_it_is_read(board: Board) -> None:
    board.program(0, 0, 0x1234)
    board.step(1)
    board.out((CONTROL, 0x00))
    board.step(5)
    board.out((CONTROL, 0x00))
    board.step(5)
    assert (board.inb(0x40), board.inb(0x40)) == (0x34, 0x12)
    assert (board.inb(0x40), board.inb(0x40)) == (0x2A, 0x12)


def test_a_latch_between_two_bytes_starts_over(board: Board) -> None:
    board.program(0, 0, 0x1234)
    board.step(1)
    assert board.inb(0x40) == 0x34
    assert board.count(0) == 0x1234
    board.out((CONTROL, 0x00))
    assert board.inb(0x40) == 0x34
    board.out((CONTROL, 0x00))
    assert board.inb(0x40) == 0x12


@pytest.mark.parametrize(("access", "loaded"), [(LOW_BYTE, 0x0034), (HIGH_BYTE, 0x3400)])
def test_one_byte_access(board: Board, access: int, loaded: int) -> None:
    board.out((CONTROL, access), (0x40, 0x34))
    board.step(1)
    assert [board.inb(0x40) for _ in range(3)] == [0x34] * 3
    board.step(loaded)
    assert board.status(0) & 0x80
    board.out((CONTROL, 0x00))
    board.step(1)
    assert (board.inb(0x40), board.inb(0x40)) == (0x00, 0xFF)


def test_read_back_of_count_and_status_of_several_counters(board: Board) -> None:
    board.program(0, 2, 0x0300)
    board.step(1)
    board.program(1, 3, 0x0400, bcd=True)
    board.out((CONTROL, 0xC0 | 0x02 | 0x04))
    board.step(3)
    assert [board.inb(0x40) for _ in range(3)] == [0xB4, 0x00, 0x03]
    assert board.inb(0x41) == 0xF7, "OUT high, the count not yet loaded"
    assert [board.inb(0x41) for _ in range(2)] == [0x00, 0x04]
    assert [board.inb(0x40) for _ in range(2)] == [0xFD, 0x02]


def test_a_second_status_latch_does_nothing_before_the_first_was_read(board: Board) -> None:
    board.program(0, 0, 1)
    board.out((CONTROL, 0xE2))
    board.step(10)
    board.out((CONTROL, 0xE2))
    assert board.inb(0x40) == 0x70
    assert board.status(0) == 0xB0


def test_the_control_word_reads_zero(board: Board) -> None:
    assert board.inb(CONTROL) == 0


# Time


def test_clock_numbers_and_times_fit() -> None:
    assert clocks_at(NS) == HZ
    for clock in (0, 1, 2, HZ - 1, HZ, HZ + 1, 10**15 + 7):
        assert clocks_at(time_of(clock)) == clock
        assert clock == 0 or clocks_at(time_of(clock) - 1) == clock - 1


def test_a_hundred_hertz_for_an_hour_does_not_drift(board: Board) -> None:
    """What hobby kernels do: mode 3, 1193182 / 100 rounded down."""
    board.program(0, 3, 11931)
    for _ in range(50):
        deadline = board.pit.deadline()
        assert deadline is not None
        board.now_ns = deadline
        board.pit.tick(deadline)
    assert board.now_ns == time_of(1 + 50 * 11931)
    board.pit.tick(3600 * NS)
    clocks_in_an_hour = 3600 * HZ - 1
    assert board.pit.deadline() == time_of(1 + (clocks_in_an_hour // 11931 + 1) * 11931)


def test_linux_one_shot(board: Board) -> None:
    """pit_next_event: mode 4 programmed once, then only counts; OUT's rise after the strobe is the interrupt."""
    board.out((CONTROL, 0x38))
    before = board.line.rises
    for count in (1000, 500):
        board.out((0x40, count & 0xFF), (0x40, count >> 8))
        written = board.clock
        for _ in range(3):
            deadline = board.pit.deadline()
            if deadline is None:
                break
            board.now_ns = deadline
            board.pit.tick(deadline)
        assert board.clock == written + 1 + count + 1
        assert board.pit.deadline() is None
    assert board.line.rises == before + 2


def test_linux_one_shot_reprogrammed_while_it_runs(board: Board) -> None:
    board.out((CONTROL, 0x38), (0x40, 0xFF), (0x40, 0xFF))
    board.step(10)
    board.out((0x40, 20), (0x40, 0))
    rises = board.line.rises
    written = board.clock
    while (deadline := board.pit.deadline()) is not None:
        board.now_ns = deadline
        board.pit.tick(deadline)
    assert (board.clock, board.line.rises) == (written + 22, rises + 1)


def test_linux_shutdown_leaves_nothing_to_do(board: Board) -> None:
    """pit_shutdown: mode 0, count 0. Nothing can be due but the one terminal count."""
    board.program(0, 2, 4772)
    board.step(10)
    board.program(0, 0, 0)
    assert board.pit.deadline() == time_of(board.clock + 1 + 0x10000)


def test_linux_calibration_through_port_61(board: Board) -> None:
    """pit_calibrate_tsc: GATE 2 on, speaker off, mode 0; bit 5 tells the end.

    quick_pit_calibrate then reads without a latch."""
    board.out((0x61, board.inb(0x61) & ~0x02 | 0x01), (CONTROL, 0xB0), (0x42, 0x9B), (0x42, 0x2E))
    board.step(0x2E9B)
    assert not board.inb(0x61) & 0x20
    board.step(1)
    assert board.inb(0x61) & 0x21 == 0x21
    board.out((CONTROL, 0xB0), (0x42, 0xFF), (0x42, 0xFF))
    board.step(1)
    highs = []
    for _ in range(4):
        board.inb(0x42)
        highs.append(board.inb(0x42))
        board.step(0x100)
    assert highs == [0xFF, 0xFE, 0xFD, 0xFC]


def test_port_61_keeps_its_switches_and_toggles_with_the_refresh(board: Board) -> None:
    board.out((0x61, 0xFF))
    assert board.inb(0x61) & 0x0F == 0x0F
    toggles, last = 0, board.inb(0x61) & 0x10
    for _ in range(HZ // 1000):
        board.step()
        now = board.inb(0x61) & 0x10
        toggles += now != last
        last = now
    assert toggles == HZ // 1000 // 18


def test_nothing_runs_after_reset(board: Board) -> None:
    assert board.pit.deadline() is None
    board.pit.tick(NS)
    assert (board.line.level, board.line.rises) == (False, 0)


def test_edges_between_two_looks_are_not_lost(board: Board) -> None:
    board.program(0, 2, 1000)
    rises = board.line.rises
    board.pit.tick(time_of(5500))
    assert (board.line.level, board.line.rises) == (True, rises + 1)


def test_count_1_in_a_periodic_mode_counts_as_2(board: Board) -> None:
    board.program(0, 2, 1)
    assert board.waves(0, 4) == ([2, 1, 2, 1], "HLHL")


def test_state_survives_json(board: Board) -> None:
    board.gate(True)
    board.program(0, 3, 999)
    board.program(2, 2, 12)
    board.out((0x42, 7), (CONTROL, 0xCE))
    board.step(3)
    other = Board()
    other.now_ns = board.now_ns
    other.pit.load_state(json.loads(json.dumps(board.pit.state())))
    other.port61.load_state(json.loads(json.dumps(board.port61.state())))
    assert other.pit.deadline() == board.pit.deadline()
    assert [other.inb(0x42) for _ in range(5)] == [board.inb(0x42) for _ in range(5)]
    for each in (board, other):
        each.out((0x42, 0))
    assert other.waves(2, 30) == board.waves(2, 30)
    with pytest.raises(BadInput):
        board.pit.load_state({})


# A counter that counts, clock by clock, as the data sheet describes each mode.


@dataclass
class NaiveCounter:
    gate: bool = True
    mode: int = 0
    bcd: bool = False
    out: bool = False
    register: int = 0
    value: int = 0
    counting: bool = False  # the counting element was loaded
    armed: bool = False
    load_next: bool = False
    done: bool = False
    half_is_high: bool = True
    odd: bool = False
    rises: list[int] = field(default_factory=list)
    clock: int = 0

    def set_out(self, out: bool) -> None:
        if out and not self.out:
            self.rises.append(self.clock)
        self.out = out

    def control(self, mode: int, bcd: bool) -> None:
        self.mode, self.bcd = mode, bcd
        self.counting = self.armed = self.load_next = False
        self.set_out(mode != 0)

    def write(self, count: int) -> None:
        self.register = int(f"{count:x}") if self.bcd else count
        self.register = self.register or (10000 if self.bcd else 65536)
        self.armed = True
        if self.mode == 0:
            self.counting = False
            self.set_out(False)
        if self.mode in (0, 4) or (self.mode in (2, 3) and not self.counting):
            self.load_next = True

    def set_gate(self, gate: bool) -> None:
        rose, fell = gate and not self.gate, self.gate and not gate
        self.gate = gate
        if rose and self.armed and self.mode in (1, 2, 3, 5):
            self.load_next = True
        if fell and self.mode in (2, 3):
            if self.counting:
                self.load_next = False
            self.set_out(True)

    def load(self) -> None:
        self.value = self.register
        if self.mode == 3:
            self.odd = bool(self.value & 1)
            self.value -= self.odd
        self.done = False

    def down(self, by: int) -> None:
        self.value = (self.value - by) % (10000 if self.bcd else 65536)

    def pulse(self) -> None:
        """One clock."""
        self.clock += 1
        if self.load_next:
            self.load_next = False
            self.counting = True
            self.half_is_high = True
            self.load()
            self.set_out(self.mode not in (0, 1))
            return
        if not self.counting or (not self.gate and self.mode in (0, 2, 3, 4)):
            if self.mode == 4:
                self.set_out(True)
            return
        if self.mode in (0, 1):
            self.down(1)
            if self.value == 0:
                self.set_out(True)
        elif self.mode == 2:
            if self.value == 1:
                self.load()
            else:
                self.value -= 1
            self.set_out(self.value != 1)
        elif self.mode == 3:
            last = 0 if self.odd and self.half_is_high else 2
            if self.value == last:
                self.half_is_high = not self.half_is_high
                self.load()
                self.set_out(self.half_is_high)
            else:
                self.value -= 2
        else:
            self.down(1)
            self.set_out(self.done or self.value != 0)
            self.done = self.done or self.value == 0

    def shown(self) -> int:
        if self.bcd:
            return int(f"{self.value % 10000}", 16)
        return self.value & 0xFFFF


COUNTS = st.integers(2, 12) | st.sampled_from([0x15, 0x99, 0x100])
PROGRAM = st.tuples(st.just("program"), st.integers(0, 5), COUNTS, st.booleans())
COUNT = st.tuples(st.just("count"), COUNTS)
GATE = st.tuples(st.just("gate"), st.booleans())
STEP = st.tuples(st.just("step"), st.integers(1, 7) | st.integers(1, 40))


def as_written(count: int, bcd: bool) -> int:
    """The same number for the count register of a BCD counter."""
    return int(str(count), 16) if bcd else count


@settings(max_examples=200, deadline=None)
@given(st.lists(PROGRAM | COUNT | GATE | STEP | STEP, min_size=10, max_size=25))
def test_counter_2_behaves_as_the_model(operations: list[tuple[object, ...]]) -> None:
    board, naive = Board(), NaiveCounter(gate=False)
    for operation in [("program", 0, 5, False), *operations]:
        match operation:
            case ("program", int(mode), int(count), bool(bcd)):
                board.program(2, mode, as_written(count, bcd), bcd)
                naive.control(mode, bcd)
                naive.write(as_written(count, bcd))
            case ("count", int(count)):
                count = as_written(count, naive.bcd)
                board.out((0x42, count & 0xFF), (0x42, count >> 8))
                naive.write(count)
            case ("gate", bool(gate)):
                if naive.mode == 4 and not naive.out:
                    continue  # a GATE that falls in the strobe's own clock
                board.gate(gate)
                naive.set_gate(gate)
            case ("step", int(clocks)):
                for _ in range(clocks):
                    board.step()
                    naive.pulse()
                    assert bool(board.inb(0x61) & 0x20) == naive.out
                    if naive.counting:
                        assert board.count(2) == naive.shown()
        assert bool(board.status(2) & 0x80) == naive.out


@settings(max_examples=200, deadline=None)
@given(st.lists(PROGRAM | COUNT | STEP | STEP, min_size=10, max_size=25))
def test_deadlines_of_counter_0_are_the_rises_of_the_model(operations: list[tuple[object, ...]]) -> None:
    """Looking only at the deadlines sees each rise of OUT in its clock, and nothing else."""
    board, naive = Board(), NaiveCounter()
    rises: list[int] = []

    def look() -> None:
        before = board.line.rises
        board.pit.tick(board.now_ns)
        rises.extend([board.clock] * (board.line.rises - before))

    for operation in operations:
        before = board.line.rises
        match operation:
            case ("program", int(mode), int(count), bool(bcd)):
                board.program(0, mode, as_written(count, bcd), bcd)
                naive.control(mode, bcd)
                naive.write(as_written(count, bcd))
            case ("count", int(count)):
                count = as_written(count, naive.bcd)
                board.out((0x40, count & 0xFF), (0x40, count >> 8))
                naive.write(count)
            case ("step", int(clocks)):
                for _ in range(clocks):
                    naive.pulse()
                end_ns = time_of(naive.clock)
                while (deadline := board.pit.deadline()) is not None and deadline <= end_ns:
                    assert deadline > board.now_ns
                    board.now_ns = deadline
                    look()
                board.now_ns = end_ns
        rises.extend([board.clock] * (board.line.rises - before) if operation[0] != "step" else [])
        assert rises == naive.rises


@settings(max_examples=200, deadline=None)
@given(st.sampled_from([0, 2, 3, 4]), st.integers(2, 50), st.lists(st.integers(1, 120), max_size=12))
def test_late_looks_see_that_there_was_a_rise(mode: int, count: int, steps: list[int]) -> None:
    board, naive = Board(), NaiveCounter()
    board.program(0, mode, count)
    naive.control(mode, False)
    naive.write(count)
    for clocks in steps:
        seen, expected = board.line.rises, len(naive.rises)
        for _ in range(clocks):
            naive.pulse()
        board.step(clocks)
        board.pit.tick(board.now_ns)
        assert board.line.rises - seen == min(1, len(naive.rises) - expected)
        assert board.line.level == naive.out


@pytest.mark.parametrize("mode", range(6))
@pytest.mark.parametrize("count", [4, 5, 8])
def test_until_when_the_native_plane_may_count_by_itself(mode: int, count: int) -> None:
    """Before the clock ``quiet`` nothing happens to counter 0."""
    board = Board()
    board.program(0, mode, count)
    board.step(3)
    board.out((CONTROL, BOTH_BYTES | mode << 1), (0x40, count + 1), (0x40, 0), (0x40, count), (0x40, 0))
    ahead = 0
    for _ in range(40):
        counter = board.pit.counters[0]
        before, quiet = (counter.out, counter.start), board.pit.quiet
        board.step()
        board.pit.tick(board.now_ns)
        happened = (counter.out, counter.start) != before
        assert quiet <= board.clock or not happened
        ahead += quiet > board.clock
    assert ahead > 5
