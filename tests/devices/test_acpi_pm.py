"""Power management: what Linux' ACPI core, its PM timer driver and hobby kernels do with it."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emu.devices.acpi_pm import AcpiPm, SmiCommandPorts
from emu.devices.bus import PortBus
from emu.errors import BadInput

STS, EN, CNT, TMR = 0x600, 0x602, 0x604, 0x608
HZ = 3_579_545
NS = 1_000_000_000
HALF_NS = -(-(1 << 23) * NS // HZ)  # the top bit changes


class Board:
    def __init__(self) -> None:
        self.now_ns = 0
        self.sci = False
        self.offs = 0
        self.sleeps = self.wakes = 0
        self.pm = AcpiPm(self, self.power_off, lambda: self.now_ns, self.sleep, self.wake)
        self.bus = PortBus()
        self.bus.register(0x600, 12, self.pm)
        self.bus.register(0xB2, 2, SmiCommandPorts(self.pm))

    def set(self, level: bool) -> None:
        self.sci = level

    def power_off(self) -> None:
        self.offs += 1

    def sleep(self) -> None:
        self.sleeps += 1

    def wake(self) -> None:
        self.wakes += 1

    def inw(self, port: int) -> int:
        return self.bus.read(port, 2)

    def outw(self, port: int, value: int) -> None:
        self.bus.write(port, 2, value)


@pytest.fixture
def board() -> Board:
    return Board()


def test_registers_after_reset(board: Board) -> None:
    assert [board.inw(port) for port in (STS, EN, CNT)] == [0, 0, 1]
    assert (board.bus.read(TMR, 4), board.pm.deadline(), board.sci) == (0, None, False)
    assert board.bus.read(STS, 4) == 0
    assert board.bus.read(CNT, 4) == 1


@pytest.mark.parametrize("value", [0x2000, 0x2001])
def test_power_off(board: Board, value: int) -> None:
    """outw(0x604, 0x2000), as every hobby kernel does on QEMU; and with SCI_EN kept, as the specification wants."""
    board.outw(CNT, value)
    assert board.offs == 1
    assert board.inw(CNT) == value & 1


def test_power_off_as_linux_does_it(board: Board) -> None:
    """First SLP_TYP alone, then both."""
    for value in (0x0001, 0x2001):
        assert board.offs == 0
        board.outw(CNT, value)
    assert board.offs == 1


def test_other_sleep_states_are_not_there(board: Board) -> None:
    board.outw(CNT, 0x2001 | 1 << 10)
    assert board.offs == 0
    assert board.inw(CNT) == 1 | 1 << 10


def test_power_off_by_bytes(board: Board) -> None:
    board.bus.write(CNT + 1, 1, 0x20)
    assert board.offs == 1
    assert board.inw(CNT) == 1


def test_power_button(board: Board) -> None:
    board.outw(EN, 0xFFFF)
    assert board.inw(EN) == 0x0721
    board.pm.press_power_button()
    assert board.sci
    assert board.inw(STS) == 0x100
    board.outw(STS, 0x00FF)
    assert board.sci
    board.outw(STS, 0x100)
    assert (board.inw(STS), board.sci) == (0, False)


def test_status_is_kept_without_enable(board: Board) -> None:
    board.pm.press_power_button()
    board.pm.set(True)
    assert (board.inw(STS), board.sci) == (0x500, False)
    board.outw(EN, 0x400)
    assert board.sci
    board.outw(EN, 0)
    assert not board.sci


def test_a_dword_write_reaches_both_registers(board: Board) -> None:
    board.pm.press_power_button()
    board.pm.set(True)
    board.bus.write(STS, 4, 0x0100_0400)
    assert (board.inw(STS), board.inw(EN), board.sci) == (0x100, 0x100, True)


def test_acpi_mode_by_smi_command(board: Board) -> None:
    board.outw(EN, 0x100)
    board.pm.press_power_button()
    board.bus.write(0xB2, 1, 0xF0)
    assert (board.inw(CNT), board.sci) == (0, False)
    board.bus.write(0xB3, 1, 0x5A)
    board.bus.write(0xB2, 1, 0x12)
    assert (board.inw(CNT), board.bus.read(0xB2, 2)) == (0, 0x5A12)
    board.bus.write(0xB2, 1, 0xF1)
    assert (board.inw(CNT), board.sci) == (1, True)


def test_the_timer_counts_at_its_frequency(board: Board) -> None:
    board.now_ns = NS
    assert board.bus.read(TMR, 4) == HZ
    board.now_ns = 10 * NS
    assert board.bus.read(TMR, 4) == 10 * HZ % (1 << 24)
    assert board.inw(TMR) == 10 * HZ & 0xFFFF
    assert board.bus.read(TMR + 2, 1) == 10 * HZ >> 16 & 0xFF
    board.bus.write(TMR, 4, 0)
    assert board.bus.read(TMR, 4) == 10 * HZ % (1 << 24), "read-only"
    assert [board.inw(EN), board.inw(CNT), board.offs] == [0, 1, 0]


def test_linux_checks_the_timer_for_being_monotonic(board: Board) -> None:
    """init_acpi_pm_clocksource: successive values grow, and stay within 24 bits."""
    values = []
    for _ in range(10):
        board.now_ns += 300
        values.append(board.bus.read(TMR, 4))
    assert values == sorted(set(values))


def test_timer_event(board: Board) -> None:
    board.outw(EN, 1)
    assert board.pm.deadline() == HALF_NS
    board.now_ns = HALF_NS - 1
    board.pm.tick(board.now_ns)
    assert (board.sci, board.bus.read(TMR, 4)) == (False, 0x7FFFFF)
    board.now_ns = HALF_NS
    board.pm.tick(board.now_ns)
    assert (board.sci, board.bus.read(TMR, 4), board.inw(STS)) == (True, 0x800000, 1)
    assert board.pm.deadline() is None
    board.outw(STS, 1)
    assert not board.sci
    assert board.pm.deadline() == -(-(1 << 24) * NS // HZ)
    board.now_ns = 10 * HALF_NS
    board.pm.tick(board.now_ns)
    assert board.sci


def test_the_timer_event_needs_no_tick_while_nobody_wants_it(board: Board) -> None:
    assert board.pm.deadline() is None
    board.now_ns = 3 * HALF_NS
    assert board.inw(STS) == 1
    board.outw(STS, 1)
    board.outw(EN, 1)
    assert not board.sci
    assert board.pm.deadline() == -(-4 * (1 << 23) * NS // HZ)


def test_state_survives_json(board: Board) -> None:
    board.outw(EN, 0x101)
    board.now_ns = HALF_NS + 5
    board.pm.tick(board.now_ns)
    board.outw(STS, 1)
    board.pm.press_power_button()
    other = Board()
    other.now_ns = board.now_ns
    other.pm.load_state(json.loads(json.dumps(board.pm.state())))
    assert not other.sci, "the controller has the line's state"
    assert other.pm.deadline() == board.pm.deadline()
    for each in (board, other):
        each.outw(STS, 0x100)
        assert not each.sci
        each.now_ns = each.pm.deadline() or 0
        each.pm.tick(each.now_ns)
        assert each.sci
    with pytest.raises(BadInput):
        board.pm.load_state({})


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 11), st.sampled_from([1, 2, 4]), st.integers(0, (1 << 32) - 1), st.integers(0, NS)),
        max_size=30,
    )
)
def test_the_line_is_what_the_registers_say(accesses: list[tuple[int, int, int, int]]) -> None:
    board = Board()
    for offset, size, value, wait_ns in accesses:
        board.now_ns += wait_ns
        deadline = board.pm.deadline()
        if deadline is not None and deadline <= board.now_ns:
            board.pm.tick(board.now_ns)
        board.bus.write(0x600 + offset, size, value)
        status = sum(board.bus.read(STS + n, 1) << 8 * n for n in range(2))
        assert status == board.inw(STS)
        assert board.sci == bool(board.inw(CNT) & 1 and status & board.inw(EN))
        assert board.inw(EN) & ~0x721 == 0


def test_sleep_ends_with_an_event_that_is_enabled(board: Board) -> None:
    board.outw(EN, 0x400)
    board.outw(CNT, 0x2401)
    assert (board.sleeps, board.wakes, board.offs, board.pm.asleep) == (1, 0, 0, True)
    board.pm.press_power_button()
    assert board.wakes == 0
    board.pm.set(True)
    assert (board.wakes, board.pm.asleep) == (1, False)
    board.pm.woken(board.inw(STS))
    assert board.inw(STS) == 0x8500  # WAK_STS, and what has happened
    board.outw(STS, 0x8500)
    assert board.inw(STS) == 0


def test_an_event_that_has_come_already_ends_a_sleep_at_once(board: Board) -> None:
    board.outw(EN, 0x100)
    board.pm.press_power_button()
    board.outw(CNT, 0x2401)
    assert (board.sleeps, board.wakes, board.pm.asleep) == (1, 1, False)
