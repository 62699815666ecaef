"""The real-time clock: what Linux, SeaBIOS and memtest86+ read and set, the data sheet's timing, and the calendar."""

from __future__ import annotations

import json
from datetime import datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emu.devices.bus import PortBus
from emu.devices.rtc import Rtc, date_of, seconds_of
from emu.errors import BadInput

INDEX, DATA = 0x70, 0x71
A, B, C, D, CENTURY = 0x0A, 0x0B, 0x0C, 0x0D, 0x32
SECOND = 1_000_000_000
UIP, SET, PIE, AIE, UIE, BINARY, H24 = 0x80, 0x80, 0x40, 0x20, 0x10, 0x04, 0x02
IRQF, PF, AF, UF = 0x80, 0x40, 0x20, 0x10


class Line:
    def __init__(self) -> None:
        self.level = False
        self.rises = 0

    def set(self, level: bool) -> None:
        self.rises += level and not self.level
        self.level = level


class Board:
    def __init__(self, start: datetime = datetime(2000, 1, 1)) -> None:
        self.now_ns = 0
        self.line = Line()
        self.rtc = Rtc(self.line, lambda: self.now_ns, start)
        self.bus = PortBus()
        self.bus.register(INDEX, 2, self.rtc)

    def get(self, cell: int) -> int:
        self.bus.write(INDEX, 1, cell)
        return self.bus.read(DATA, 1)

    def put(self, cell: int, value: int) -> None:
        self.bus.write(INDEX, 1, cell)
        self.bus.write(DATA, 1, value)

    def run(self, until_ns: int) -> None:
        """Do what a machine does: tick at each deadline."""
        while (deadline := self.rtc.deadline()) is not None and deadline <= until_ns:
            assert deadline > self.now_ns or not self.line.level
            self.now_ns = max(self.now_ns, deadline)
            self.rtc.tick(self.now_ns)
        self.now_ns = until_ns

    def wait(self, ns: int) -> None:
        self.run(self.now_ns + ns)

    def time(self) -> list[int]:
        """Century, year, month, day, hours, minutes, seconds, as the cells have them."""
        return [self.get(cell) for cell in (CENTURY, 9, 8, 7, 4, 2, 0)]

    def set_time(self, *cells: int) -> None:
        """As Linux' mc146818_set_time: SET, hold the dividers, write, let go of both."""
        control, rate = self.get(B), self.get(A)
        self.put(B, control | SET)
        self.put(A, rate | 0x70)
        for cell, value in zip((CENTURY, 9, 8, 7, 4, 2, 0), cells, strict=True):
            self.put(cell, value)
        self.put(B, control)
        self.put(A, rate)


@pytest.fixture
def board() -> Board:
    return Board()


def test_after_power_on(board: Board) -> None:
    assert [board.get(cell) for cell in (A, B, C, D)] == [0x26, 0x02, 0, 0x80]
    assert board.time() == [0x20, 0x00, 1, 1, 0, 0, 0]
    assert board.get(6) == 7, "a Saturday"
    assert board.rtc.deadline() is None
    assert board.bus.read(INDEX, 1) == 0xFF


def test_time_goes_on_in_bcd_and_in_binary() -> None:
    board = Board(datetime(1999, 12, 31, 23, 59, 58))
    assert board.time() == [0x19, 0x99, 0x12, 0x31, 0x23, 0x59, 0x58]
    board.wait(2 * SECOND - 1)
    assert board.time()[-1] == 0x59
    board.wait(1)
    assert board.time() == [0x20, 0x00, 0x01, 0x01, 0, 0, 0]
    board.put(B, H24 | BINARY)
    board.wait(45 * SECOND)
    assert board.time() == [20, 0, 1, 1, 0, 0, 45]
    assert board.get(0x37) == board.get(CENTURY) == 20, "PS/2 machines have the century elsewhere"


@pytest.mark.parametrize(("hour", "cell"), [(0, 0x12), (1, 0x01), (11, 0x11), (12, 0x92), (13, 0x81), (23, 0x91)])
def test_twelve_hours(hour: int, cell: int) -> None:
    board = Board(datetime(2020, 2, 2, hour, 30))
    board.put(B, 0)
    assert board.get(4) == cell
    board.put(4, cell)
    board.put(B, H24 | BINARY)
    assert board.get(4) == hour


def test_linux_reads_the_time_away_from_an_update(board: Board) -> None:
    """mc146818_avoid_UIP: reads between two looks at UIP; the bit is never set for longer than about 2.2 ms."""
    board.run(SECOND - 2_228_142)
    assert not board.get(A) & UIP
    board.wait(1)
    assert board.get(A) & UIP
    assert board.time()[-1] == 0
    board.run(SECOND - 1)
    assert board.get(A) & UIP
    board.wait(1)
    assert not board.get(A) & UIP
    assert board.time()[-1] == 1


def test_uip_cannot_be_written_and_set_clears_it(board: Board) -> None:
    board.put(A, 0xA6)
    assert board.get(A) == 0x26
    board.run(SECOND - 1000)
    board.put(B, H24 | SET)
    assert not board.get(A) & UIP


def test_linux_sets_the_time_and_the_next_second_comes_half_a_second_later(board: Board) -> None:
    board.wait(777_777_777)
    board.set_time(0x20, 0x24, 0x02, 0x28, 0x23, 0x59, 0x59)
    assert board.time() == [0x20, 0x24, 0x02, 0x28, 0x23, 0x59, 0x59]
    board.wait(SECOND // 2 - 1)
    assert board.time()[-1] == 0x59
    board.wait(1)
    assert board.time() == [0x20, 0x24, 0x02, 0x29, 0, 0, 0]
    assert board.get(6) == 5, "29 February 2024 is a Thursday"
    board.wait(86400 * SECOND)
    assert board.time()[2:4] == [0x03, 0x01]


def test_set_stops_the_updates_but_not_the_dividers(board: Board) -> None:
    board.wait(SECOND // 4)
    board.put(B, H24 | SET)
    board.put(0, 0x30)
    board.wait(10 * SECOND)
    assert (board.get(0), board.get(C) & UF) == (0x30, 0)
    board.put(B, H24)
    board.wait(SECOND * 3 // 4 - 1)
    assert board.get(0) == 0x30
    board.wait(1)
    assert board.get(0) == 0x31


def test_while_it_stands_the_cells_are_memory(board: Board) -> None:
    board.put(B, SET | H24)
    for cell in (0, 2, 4, 6, 7, 8, 9, CENTURY):
        board.put(cell, 0xFF)
        assert board.get(cell) == 0xFF
    board.put(B, H24)
    assert all(value & 0x0F <= 9 and value >> 4 <= 9 for value in board.time())


def test_time_cells_can_be_written_without_set(board: Board) -> None:
    board.wait(SECOND // 2)
    board.put(4, 0x17)
    board.wait(SECOND // 2)
    assert board.time()[-3:] == [0x17, 0, 1]


def test_update_ended_by_polling_and_by_interrupt(board: Board) -> None:
    board.wait(SECOND)
    assert (board.get(C), board.get(C)) == (UF | PF, 0)
    assert board.line.rises == 0
    board.put(A, 0x20)
    board.put(B, H24 | UIE)
    assert board.rtc.deadline() == 2 * SECOND
    board.run(10 * SECOND)
    assert board.line.level
    assert board.rtc.deadline() is None, "nobody took the interrupt"
    assert board.get(C) == IRQF | UF
    assert not board.line.level
    assert board.rtc.deadline() == 11 * SECOND
    board.put(B, H24 | UIE | SET)
    assert board.get(B) == H24 | SET, "SET clears UIE"
    assert board.rtc.deadline() is None


def test_enabling_an_interrupt_whose_flag_is_set_requests_at_once(board: Board) -> None:
    board.wait(SECOND)
    board.put(B, H24 | UIE)
    assert board.line.level
    board.put(B, H24)
    assert not board.line.level
    assert board.get(C) & IRQF == 0


def test_alarm(board: Board) -> None:
    board.put(A, 0x20)
    for cell, value in ((5, 0x06), (3, 0x30), (1, 0x15)):
        board.put(cell, value)
    board.put(B, H24 | AIE)
    at = (6 * 3600 + 30 * 60 + 15) * SECOND
    assert board.rtc.deadline() == at
    board.run(at - 1)
    assert not board.line.level
    board.wait(1)
    assert board.line.level
    assert board.get(C) == IRQF | AF | UF
    assert board.rtc.deadline() == at + 86400 * SECOND


def test_alarm_every_minute_and_every_second(board: Board) -> None:
    for cell, value in ((5, 0xFF), (3, 0xC0), (1, 0x10)):
        board.put(cell, value)
    board.put(B, H24 | AIE)
    for minute in range(3):
        assert board.rtc.deadline() == (minute * 60 + 10) * SECOND
        board.run((minute * 60 + 10) * SECOND)
        assert board.get(C) & (IRQF | AF) == IRQF | AF
    board.put(1, 0xFF)
    assert board.rtc.deadline() == 131 * SECOND


def test_alarm_that_never_comes(board: Board) -> None:
    board.put(5, 0x25)
    board.put(B, H24 | AIE)
    assert board.rtc.deadline() is None
    board.run(3 * 86400 * SECOND)
    assert board.get(C) & AF == 0


def test_setting_the_clock_does_not_jump_over_the_alarm_flag(board: Board) -> None:
    for cell, value in ((5, 0x01), (3, 0x00), (1, 0x00)):
        board.put(cell, value)
    board.put(B, H24 | AIE)
    board.set_time(0x20, 0x30, 1, 1, 2, 0, 0)
    assert board.get(C) & AF == 0
    board.set_time(0x20, 0x30, 1, 1, 0, 0x59, 0x59)
    assert board.rtc.deadline() == board.now_ns + SECOND // 2


@pytest.mark.parametrize(
    ("rate", "hz"), [(1, 256), (2, 128), (3, 8192), (4, 4096), (5, 2048), (6, 1024), (9, 128), (13, 8), (15, 2)]
)
def test_periodic_interrupt(board: Board, rate: int, hz: int) -> None:
    board.put(A, 0x20 | rate)
    board.put(B, H24 | PIE)
    for n in range(1, 21):
        assert board.rtc.deadline() == -(-n * SECOND // hz)
        board.run(-(-n * SECOND // hz))
        assert board.get(C) & (IRQF | PF) == IRQF | PF
    assert board.line.rises == 20


def test_no_periodic_interrupt_at_rate_0_or_while_the_dividers_are_held(board: Board) -> None:
    board.put(B, H24 | PIE)
    board.put(A, 0x20)
    assert board.rtc.deadline() is None
    board.put(A, 0x76)
    assert board.rtc.deadline() is None
    board.wait(SECOND)
    assert board.get(C) == 0
    board.put(A, 0x26)
    assert board.rtc.deadline() is not None


def test_periodic_interrupt_goes_on_during_set(board: Board) -> None:
    board.put(B, H24 | PIE | SET)
    board.wait(2 * SECOND)
    assert board.get(C) == IRQF | PF


def test_a_clock_that_nobody_listens_to_wakes_nobody(board: Board) -> None:
    board.put(A, 0x2F)
    assert board.rtc.deadline() is None
    board.wait(100 * SECOND)
    assert board.rtc.deadline() is None
    assert board.line.rises == 0
    assert board.time()[-2:] == [0x01, 0x40]


def test_read_only_registers_and_memory(board: Board) -> None:
    board.put(C, 0xFF)
    board.put(D, 0x00)
    assert (board.get(C), board.get(D)) == (0, 0x80)
    for cell in (0x0E, 0x33, 0x7F):
        board.put(cell, 0xA5)
        assert board.get(cell) == 0xA5


def test_index_port_masks_nmi(board: Board) -> None:
    board.put(0x80 | 0x40, 0x5A)
    assert board.rtc.nmi_masked
    assert board.get(0x40) == 0x5A
    assert not board.rtc.nmi_masked


@pytest.mark.parametrize(
    ("below", "above", "base", "extended", "above_16m", "above_4g"),
    [
        (128 << 20, 0, 640, 0xFFFF, 112 * 16, 0),
        (8 << 20, 0, 640, 7 * 1024, 0, 0),
        (512 << 10, 0, 512, 0, 0, 0),
        (3 << 30, 5 << 30, 640, 0xFFFF, (3 << 14) - 256, 5 << 14),
    ],
)
def test_memory_size_as_seabios_reads_it(
    board: Board, below: int, above: int, base: int, extended: int, above_16m: int, above_4g: int
) -> None:
    board.rtc.set_memory(below, above)

    def number(cell: int, size: int) -> int:
        return sum(board.get(cell + n) << 8 * n for n in range(size))

    assert number(0x15, 2) == base
    assert number(0x17, 2) == number(0x30, 2) == extended
    assert (number(0x34, 2), number(0x5B, 3)) == (above_16m, above_4g)


def test_boot_order(board: Board) -> None:
    board.rtc.set_boot_order("cad")
    assert (board.get(0x3D), board.get(0x38)) == (0x12, 0x30)
    board.rtc.set_boot_order("d", check_floppy=False)
    assert (board.get(0x3D), board.get(0x38)) == (0x03, 0x01)
    for order in ("cadn", "x"):
        with pytest.raises(BadInput):
            board.rtc.set_boot_order(order)


def test_disks_and_equipment(board: Board) -> None:
    board.rtc.set_cell(0x14, 0x06)
    board.rtc.set_disk(0, 1023, 16, 63, translation=1)
    board.rtc.set_disk(1, 300, 4, 17)
    assert [board.get(cell) for cell in (0x14, 0x12, 0x19, 0x1A, 0x39)] == [0x06, 0xFF, 47, 47, 0x01]
    assert [board.get(0x1B + n) for n in range(9)] == [0xFF, 3, 16, 0xFF, 0xFF, 0xC8, 0xFF, 3, 63]
    assert [board.get(0x24 + n) for n in range(9)] == [0x2C, 1, 4, 0xFF, 0xFF, 0xC0, 0x2C, 1, 17]
    with pytest.raises(BadInput):
        board.rtc.set_disk(2, 1, 1, 1)
    for cell, size in ((0x0A, 1), (0x7F, 2)):
        with pytest.raises(BadInput):
            board.rtc.set_cell(cell, 0, size)


def test_state_survives_json(board: Board) -> None:
    board.put(A, 0x2A)
    board.put(B, H24 | PIE | UIE)
    board.wait(3 * SECOND + 1234)
    board.get(C)
    other = Board()
    other.now_ns = board.now_ns
    other.rtc.load_state(json.loads(json.dumps(board.rtc.state())))
    for each in (board, other):
        each.wait(SECOND + 99)
    assert other.rtc.state() == board.rtc.state()
    assert (other.time(), other.get(C)) == (board.time(), board.get(C))
    with pytest.raises(BadInput):
        other.rtc.load_state({})


@settings(max_examples=300, deadline=None)
@given(st.datetimes(datetime(1, 1, 1), datetime(9999, 12, 31)))
def test_calendar_is_that_of_python(moment: datetime) -> None:
    seconds = seconds_of(moment.year, moment.month, moment.day, moment.hour, moment.minute, moment.second)
    assert date_of(seconds // 86400) == (moment.year, moment.month, moment.day)
    start = datetime(2000, 1, 1)
    assert seconds - seconds_of(2000, 1, 1, 0, 0, 0) == (moment.replace(microsecond=0) - start) // timedelta(seconds=1)
    assert (seconds // 86400 + 3) % 7 == moment.isoweekday() % 7


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 86399),
    st.sampled_from([None, 0, 5, 23]),
    st.sampled_from([None, 0, 7, 59]),
    st.sampled_from([None, 0, 30, 59]),
)
def test_next_alarm_is_the_first_second_that_matches(
    start: int, hour: int | None, minute: int | None, second: int | None
) -> None:
    board = Board(datetime(2000, 1, 1) + timedelta(seconds=start))
    for cell, value in ((5, hour), (3, minute), (1, second)):
        board.put(cell, 0xFF if value is None else value)
    board.put(B, H24 | BINARY | AIE)

    def matches(after: int) -> bool:
        now = (start + after) % 86400
        fields = (now // 3600, now // 60 % 60, now % 60)
        return all(want in (None, have) for want, have in zip((hour, minute, second), fields, strict=True))

    expected = next(after for after in range(1, 86401) if matches(after))
    assert board.rtc.deadline() == expected * SECOND


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 0x7F), st.integers(0, 255), st.integers(0, 3 * SECOND)), max_size=30))
def test_no_nonsense_of_a_guest_raises_and_looking_often_changes_nothing(writes: list[tuple[int, int, int]]) -> None:
    """One clock is ticked at its deadlines alone, the other all the time."""
    lazy, busy = Board(), Board()
    for cell, value, ns in writes:
        for board in (lazy, busy):
            board.put(cell, value)
        lazy.wait(ns)
        for n in range(1, 6):
            busy.run(lazy.now_ns - ns + ns * n // 5)
            busy.rtc.tick(busy.now_ns)
        assert busy.line.level == lazy.line.level
        assert [lazy.get(c) for c in range(128)] == [busy.get(c) for c in range(128)]
