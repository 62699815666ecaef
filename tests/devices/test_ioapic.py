"""The I/O APIC alone and together with a local APIC, programmed as Linux and teaching kernels do."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emu.devices.apic_bus import ApicBus
from emu.devices.cpu_pins import CpuPins
from emu.devices.ioapic import IoApic
from emu.errors import BadInput

IOREGSEL, IOWIN, EOI = 0x00, 0x10, 0x40
LOGICAL, LOW, REMOTE_IRR, LEVEL, MASKED = 1 << 11, 1 << 13, 1 << 14, 1 << 15, 1 << 16


class Board:
    def __init__(self) -> None:
        self.sent: list[tuple[int, bool, int, int, bool]] = []
        self.accept = True
        self.chip = IoApic(self.send)

    def send(self, *message: int) -> bool:
        self.sent.append(message)  # type: ignore[arg-type]
        return self.accept

    def reg(self, number: int) -> int:
        self.chip.write(IOREGSEL, 4, number)
        return self.chip.read(IOWIN, 4)

    def set_reg(self, number: int, value: int) -> None:
        self.chip.write(IOREGSEL, 4, number)
        self.chip.write(IOWIN, 4, value)

    def entry(self, number: int) -> int:
        return self.reg(0x10 + 2 * number) | self.reg(0x11 + 2 * number) << 32

    def set_entry(self, number: int, value: int) -> None:
        """Upper half first, as drivers do: the lower one has the mask."""
        self.set_reg(0x11 + 2 * number, value >> 32)
        self.set_reg(0x10 + 2 * number, value & 0xFFFFFFFF)

    def pulse(self, number: int) -> None:
        line = self.chip.line(number)
        line.set(True)
        line.set(False)


@pytest.fixture
def board() -> Board:
    return Board()


def test_registers_after_reset(board: Board) -> None:
    assert (board.reg(0), board.reg(1), board.reg(2)) == (0, 0x170020, 0)
    assert [board.entry(n) for n in range(24)] == [MASKED] * 24
    assert [board.reg(n) for n in (0x03, 0x0F, 0x40, 0xFF)] == [0] * 4


def test_id_is_four_bits_and_the_version_is_read_only(board: Board) -> None:
    board.set_reg(0, 0xFFFFFFFF)
    board.set_reg(1, 0)
    assert (board.reg(0), board.reg(1), board.reg(2)) == (0x0F000000, 0x170020, 0x0F000000)


def test_bits_of_an_entry(board: Board) -> None:
    board.set_entry(23, 0xFFFFFFFF_FFFFFFFF)
    assert board.entry(23) == 0xFF000000_0001AFFF


def test_the_window_is_one_dword(board: Board) -> None:
    board.chip.write(IOREGSEL, 1, 0x10)
    assert board.chip.read(IOREGSEL, 4) == 0x10
    board.chip.write(IOWIN, 1, 0x55)
    board.chip.write(IOWIN + 4, 4, 0x55)
    assert (board.chip.read(IOWIN, 4), board.chip.read(IOWIN, 1), board.chip.read(0x20, 4)) == (MASKED, 0, 0)


def test_an_edge_is_one_message_and_lost_while_masked(board: Board) -> None:
    board.chip.line(4).set(True)
    board.set_entry(4, 0x24)
    assert board.sent == []
    board.chip.line(4).set(True)
    assert board.sent == []
    board.chip.line(4).set(False)
    board.chip.line(4).set(True)
    assert board.sent == [(0, False, 0x24, 0, False)]
    board.pulse(4)
    board.pulse(4)
    assert board.sent == [(0, False, 0x24, 0, False)] * 2


def test_a_message_says_what_the_entry_says(board: Board) -> None:
    board.set_entry(2, 0x03 << 56 | LOGICAL | 1 << 8 | LOW | 0x30)
    board.set_entry(3, 0xFF << 56 | 4 << 8)
    board.pulse(2)
    board.pulse(3)
    assert board.sent == [(3, True, 0x30, 1, False), (0xFF, False, 0, 4, False)]


def test_a_level_waits_for_its_eoi(board: Board) -> None:
    board.set_entry(9, LEVEL | MASKED | 0x39)
    line = board.chip.line(9)
    line.set(True)
    assert board.sent == []
    board.set_entry(9, LEVEL | 0x39)
    assert board.sent == [(0, False, 0x39, 0, True)], "a level is not lost while masked"
    assert board.entry(9) == LEVEL | REMOTE_IRR | 0x39
    line.set(False)
    line.set(True)
    assert len(board.sent) == 1
    board.chip.eoi(0x38)
    assert len(board.sent) == 1
    board.chip.eoi(0x39)
    assert len(board.sent) == 2, "still high"
    line.set(False)
    board.chip.write(EOI, 4, 0x39)
    assert (len(board.sent), board.entry(9)) == (2, LEVEL | 0x39)


def test_masking_in_service_keeps_remote_irr(board: Board) -> None:
    """Linux masks, ends and unmasks when it moves or threads an interrupt."""
    board.set_entry(9, LEVEL | 0x39)
    board.chip.line(9).set(True)
    board.set_entry(9, LEVEL | MASKED | 0x39)
    assert board.entry(9) & REMOTE_IRR
    board.chip.eoi(0x39)
    assert len(board.sent) == 1
    board.set_entry(9, LEVEL | 0x39)
    assert len(board.sent) == 2


def test_switching_to_edge_and_back_ends_it_as_well(board: Board) -> None:
    """What Linux does on an I/O APIC without EOI register."""
    board.set_entry(9, LEVEL | 0x39)
    board.chip.line(9).set(True)
    board.set_reg(0x10 + 18, MASKED | 0x39)
    assert board.entry(9) == MASKED | 0x39
    board.set_reg(0x10 + 18, LEVEL | 0x39)
    assert len(board.sent) == 2


def test_a_level_that_nobody_accepts_is_offered_again(board: Board) -> None:
    board.accept = False
    board.set_entry(9, LEVEL | 0x39 | 5 << 56)
    board.chip.line(9).set(True)
    assert board.entry(9) & REMOTE_IRR == 0
    board.accept = True
    board.set_entry(9, LEVEL | 0x39)
    assert board.entry(9) & REMOTE_IRR


def test_two_inputs_with_one_vector(board: Board) -> None:
    board.set_entry(10, LEVEL | 0x39)
    board.set_entry(11, LEVEL | 0x39)
    board.chip.line(10).set(True)
    board.chip.line(11).set(True)
    board.chip.line(10).set(False)
    board.chip.eoi(0x39)
    assert len(board.sent) == 3
    assert (board.entry(10) & REMOTE_IRR, board.entry(11) & REMOTE_IRR) == (0, REMOTE_IRR)


def test_a_level_triggered_nmi_is_edge_triggered(board: Board) -> None:
    board.set_entry(9, LEVEL | 4 << 8)
    board.pulse(9)
    board.pulse(9)
    assert (board.sent, board.entry(9) & REMOTE_IRR) == ([(0, False, 0, 4, False)] * 2, 0)


@pytest.mark.parametrize("number", [-1, 24])
def test_there_are_24_inputs(board: Board, number: int) -> None:
    with pytest.raises(BadInput):
        board.chip.line(number)


def test_with_a_local_apic_a_high_level_interrupts_until_the_device_is_served() -> None:
    levels: list[bool] = []
    pins = CpuPins(lambda _, level: levels.append(level), lambda _: None, lambda _: None, lambda _, vector: None)
    bus = ApicBus(1, pins, lambda: 0, lambda vector: chip.eoi(vector), lambda: 0)
    (apic,) = bus.apics
    chip = IoApic(bus.message)
    apic.write(0xF0, 4, 0x1FF)
    for register, value in ((0x10 + 22, LEVEL | LOW | 0x5B), (0x11 + 22, 0)):
        chip.write(IOREGSEL, 4, register)
        chip.write(IOWIN, 4, value)
    line = chip.line(11)
    line.set(True)
    for _ in range(3):
        assert levels[-1]
        assert apic.acknowledge() == 0x5B
        assert not levels[-1]
        apic.write(0xB0, 4, 0)
    assert apic.acknowledge() == 0x5B
    line.set(False)
    apic.write(0xB0, 4, 0)
    assert not levels[-1]
    assert chip.entries[11] & REMOTE_IRR == 0


def test_state_survives_json_in_service(board: Board) -> None:
    board.set_entry(9, LEVEL | 0x39)
    board.set_entry(4, 0x24)
    board.chip.line(9).set(True)
    board.set_reg(0, 0x05000000)
    other = Board()
    other.chip.load_state(json.loads(json.dumps(board.chip.state())))
    assert other.sent == []
    other.chip.line(9).set(True)
    assert other.sent == []
    other.chip.eoi(0x39)
    other.pulse(4)
    assert other.sent == [(0, False, 0x39, 0, True), (0, False, 0x24, 0, False)]
    with pytest.raises(BadInput):
        board.chip.load_state({})


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["line", "eoi", "entry"]), st.integers(0, 3), st.integers(0, 15)), max_size=40)
)
def test_no_level_is_forgotten(steps: list[tuple[str, int, int]]) -> None:
    """Whatever happens, an unmasked high level was sent and not yet ended, and every message had a cause."""
    board = Board()
    levels = [False] * 4
    for action, number, value in steps:
        if action == "line":
            levels[number] = bool(value & 1)
            board.chip.line(number).set(levels[number])
        elif action == "eoi":
            board.chip.eoi(0x40 + number)
        else:
            board.set_entry(number, 0x40 + (value & 3) | LEVEL * (value >> 2 & 1) | MASKED * (value >> 3))
        for n in range(4):
            entry = board.entry(n)
            if levels[n] and entry & (LEVEL | MASKED) == LEVEL:
                assert entry & REMOTE_IRR
            if entry & REMOTE_IRR:
                assert entry & LEVEL
                assert any(level for *_, level in board.sent)
