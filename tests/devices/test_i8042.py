"""The keyboard controller, driven as Linux, SeaBIOS and teaching kernels drive it."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emu.devices.bus import PortBus
from emu.devices.i8042 import I8042, KEY_NS
from emu.errors import BadInput

DATA, COMMAND = 0x60, 0x64
FULL, SYSTEM, LAST_COMMAND, UNLOCKED, FROM_MOUSE = 0x01, 0x04, 0x08, 0x10, 0x20
ACK, RESEND = 0xFA, 0xFE
CAPS = 0x3A


class Line:
    def __init__(self) -> None:
        self.level = False
        self.rises = 0

    def set(self, level: bool) -> None:
        self.rises += level and not self.level
        self.level = level


class Board:
    def __init__(self) -> None:
        self.now_ns = 0
        self.a20: list[bool] = []
        self.resets = 0
        self.irq1, self.irq12 = Line(), Line()
        self.chip = I8042(self.irq1, self.irq12, lambda: self.now_ns, self.a20.append, self.reset)
        self.bus = PortBus()
        self.bus.register(DATA, 1, self.chip.data)
        self.bus.register(COMMAND, 1, self.chip.command)

    def reset(self) -> None:
        self.resets += 1

    def status(self) -> int:
        return self.bus.read(COMMAND, 1)

    def inb(self) -> int:
        return self.bus.read(DATA, 1)

    def command(self, value: int, *data: int) -> None:
        self.bus.write(COMMAND, 1, value)
        for each in data:
            self.bus.write(DATA, 1, each)

    def keyboard(self, value: int) -> None:
        self.bus.write(DATA, 1, value)

    def mouse(self, *values: int) -> None:
        for value in values:
            self.command(0xD4, value)

    def drain(self) -> list[tuple[int, bool]]:
        """Every byte that waits, and whether it is the mouse's."""
        values = []
        while (status := self.status()) & FULL:
            values.append((self.inb(), bool(status & FROM_MOUSE)))
        return values

    def answer(self) -> list[int]:
        """The same without mouse bytes, which there must not be."""
        drained = self.drain()
        assert not any(from_mouse for _, from_mouse in drained)
        return [value for value, _ in drained]

    def mouse_answer(self) -> list[int]:
        drained = self.drain()
        assert all(from_mouse for _, from_mouse in drained)
        return [value for value, _ in drained]

    def run(self, until_ns: int) -> None:
        while (deadline := self.chip.deadline()) is not None and deadline <= until_ns:
            self.now_ns = max(self.now_ns, deadline)
            self.chip.tick(self.now_ns)
        self.now_ns = until_ns

    def typed(self) -> list[int]:
        """What an interrupt handler gets that reads each byte, until there are no more keys."""
        values = []
        while (deadline := self.chip.deadline()) is not None:
            rises = self.irq1.rises
            self.run(deadline)
            while self.status() & FULL:
                assert self.irq1.rises == (rises := rises + 1), "each byte is an edge"
                values.append(self.inb())
        return values


@pytest.fixture
def board() -> Board:
    return Board()


def test_as_a_bios_leaves_it(board: Board) -> None:
    assert board.status() == UNLOCKED | SYSTEM
    board.command(0x20)
    assert board.status() == UNLOCKED | SYSTEM | LAST_COMMAND | FULL
    assert board.answer() == [0x65]
    assert board.chip.deadline() is None


def test_seabios_sets_it_up(board: Board) -> None:
    """ps2_keyboard_setup: flush, test controller and port, reset the keyboard, set 2, translation, enable."""
    board.command(0xAD)
    board.command(0xA7)
    assert board.drain() == []
    board.command(0xAA)
    assert board.answer() == [0x55]
    board.command(0xAB)
    assert board.answer() == [0x00]
    board.command(0x60, 0x30)
    for sent, answer in ((0xFF, [ACK, 0xAA]), (0xF5, [ACK]), (0xF0, [ACK]), (0x02, [ACK])):
        board.keyboard(sent)
        assert board.answer() == answer
    board.command(0x60, 0x61)
    board.keyboard(0xF4)
    assert board.irq1.level
    assert board.answer() == [ACK]
    board.command(0x20)
    assert board.answer() == [0x61]


def test_linux_finds_controller_and_mouse_port(board: Board) -> None:
    """i8042_controller_check and i8042_check_aux: loop bytes back, switch the mouse off and on."""
    assert board.drain() == []
    board.command(0x20)
    (mode,) = board.answer()
    board.command(0x60, (mode | 0x10) & ~0x01)
    board.command(0xD3, 0x5A)
    assert board.drain() == [(0x5A, True)]
    board.command(0xA9)
    assert board.answer() == [0x00]
    for command, off in ((0xA7, True), (0xA8, False)):
        board.command(command)
        board.command(0x20)
        assert bool(board.answer()[0] & 0x20) == off
    board.command(0x60, 0x02)
    board.command(0xD3, 0xA5)
    assert board.irq12.level and not board.irq1.level
    assert board.drain() == [(0xA5, True)]
    assert not board.irq12.level
    for value in (0xF0, 0x56, 0xA4):
        board.command(0xD3, value)
        assert board.drain() == [(value, True)], "an echo: no multiplexer"


def test_linux_probes_the_keyboard(board: Board) -> None:
    """atkbd_probe, atkbd_activate: identify, lights, rate, enable; the second ID byte comes translated."""
    board.keyboard(0xF2)
    assert board.answer() == [ACK, 0xAB, 0x41]
    board.command(0x60, 0x01)
    board.keyboard(0xF2)
    assert board.answer() == [ACK, 0xAB, 0x83]
    for bytes_sent in ((0xED, 0x02), (0xF3, 0x00), (0xF4,)):
        for value in bytes_sent:
            board.keyboard(value)
            assert board.answer() == [ACK]
    assert board.chip.keyboard.lights == 2


def test_keyboard_commands(board: Board) -> None:
    board.keyboard(0xEE)
    assert board.answer() == [0xEE]
    board.keyboard(0xFE)
    assert board.answer() == [0xEE]
    for value in (0x00, 0xE0, 0xFC):
        board.keyboard(value)
        assert board.answer() == [RESEND]
    board.keyboard(0xF0)
    board.keyboard(0x03)
    assert board.answer() == [ACK, RESEND], "no set 3"
    board.keyboard(0xF0)
    board.keyboard(0x00)
    assert board.answer() == [ACK, ACK, 0x41], "set 2, translated"


def test_linux_probes_the_mouse(board: Board) -> None:
    """psmouse_probe, and the sequences by which it looks for better mice: this one has a wheel."""
    board.command(0x60, 0x47)
    board.mouse(0xFF)
    assert board.mouse_answer() == [ACK, 0xAA, 0x00]
    board.mouse(0xF2)
    assert board.mouse_answer() == [ACK, 0x00]
    for rate in (200, 100, 80):
        board.mouse(0xF3, rate)
        assert board.mouse_answer() == [ACK, ACK]
    board.mouse(0xF2)
    assert board.mouse_answer() == [ACK, 0x03]
    for resolution in (0, 0, 0, 0):
        board.mouse(0xE8, resolution)
    assert board.mouse_answer() == [ACK] * 8
    board.mouse(0xE9)
    assert board.mouse_answer() == [ACK, 0x00, 0, 80]
    board.mouse(0xE1)
    assert board.mouse_answer() == [RESEND]
    board.mouse(0xF6, 0xF4, 0xE7, 0xE9)
    assert board.mouse_answer() == [ACK, ACK, ACK, ACK, 0x30, 2, 100]
    board.mouse(0xEB)
    assert board.mouse_answer() == [ACK, 0x08, 0, 0, 0]
    board.mouse(0xFF, 0xF2)
    assert board.mouse_answer() == [ACK, 0xAA, 0, ACK, 0]
    board.mouse(0xEE, 0xF2, 0x55, 0xEC, 0xF5, 0xF0, 0xEA)
    assert board.mouse_answer() == [ACK, 0xF2, 0x55, ACK, ACK, ACK, ACK]


def test_a_mouse_that_is_moved(board: Board) -> None:
    board.command(0x60, 0x47)
    board.chip.move_mouse(right=5)  # nobody asks for it
    board.mouse(0xF4)
    assert board.mouse_answer() == [ACK]
    rises = board.irq12.rises
    board.chip.move_mouse(right=3, up=-2, buttons=1)
    assert board.irq12.level
    assert board.mouse_answer() == [0x29, 3, 0xFE]
    assert board.irq12.rises == rises + 3
    board.chip.move_mouse(buttons=1)  # nothing is new
    board.chip.move_mouse(right=-300, buttons=1)
    assert board.mouse_answer() == [0x19, 0x01, 0, 0x19, 0xD3, 0]
    board.chip.move_mouse(wheel=1, buttons=0)  # it has none so far
    assert board.mouse_answer() == [0x08, 0, 0]
    for rate in (200, 100, 80):
        board.mouse(0xF3, rate)
    assert board.mouse_answer() == [ACK] * 6
    board.chip.move_mouse(wheel=-1, buttons=4)
    assert board.mouse_answer() == [0x0C, 0, 0, 0xFF]
    board.mouse(0xE9)
    assert board.mouse_answer() == [ACK, 0x22, 2, 80]


def test_a_mouse_that_is_asked(board: Board) -> None:
    board.command(0x60, 0x47)
    board.mouse(0xF0)
    assert board.mouse_answer() == [ACK]
    board.chip.move_mouse(right=200)
    board.chip.move_mouse(right=100, up=1, buttons=2)
    board.mouse(0xEB)
    assert board.mouse_answer() == [ACK, 0x0A, 0xFF, 1]
    board.mouse(0xEB)
    assert board.mouse_answer() == [ACK, 0x0A, 0, 0]


def test_mouse_interrupts_and_keyboard_goes_first(board: Board) -> None:
    board.command(0x60, 0x47)
    board.mouse(0xF2)
    board.keyboard(0xEE)
    board.command(0xC0)
    assert board.irq12.level and not board.irq1.level
    assert board.drain() == [(ACK, True), (0x80, False), (0xEE, False), (0x00, True)]
    assert (board.irq12.rises, board.irq1.rises) == (2, 2)


def test_disabled_devices_hold_their_bytes(board: Board) -> None:
    board.keyboard(0xF2)
    assert board.inb() == ACK
    board.inb()
    board.command(0xAD)
    assert board.inb() == 0x41
    board.keyboard(0xEE)
    assert board.answer() == [0xEE], "writing to it enables it"
    board.command(0xAD)
    board.chip.type("a")
    assert board.chip.deadline() is None
    board.command(0xAE)
    assert board.typed() == [0x1E, 0x9E]


def test_controller_ram(board: Board) -> None:
    board.command(0x7F, 0xA5)
    board.command(0x3F)
    assert board.answer() == [0xA5]
    board.command(0x21)
    assert board.answer() == [0]


def test_interrupt_enable_follows_the_command_byte(board: Board) -> None:
    board.command(0x60, 0x40)
    board.keyboard(0xEE)
    assert not board.irq1.level
    board.command(0x60, 0x41)
    assert board.irq1.level
    assert board.inb() == 0xEE
    assert not board.irq1.level
    assert board.inb() == 0xEE, "the output buffer keeps its byte"


def test_keyboard_output_loop(board: Board) -> None:
    board.command(0xD2, 0x1E)
    assert board.irq1.level
    assert board.drain() == [(0x1E, False)]


def test_a20_as_old_kernels_open_it(board: Board) -> None:
    """xv6's and Linux' sequence: D1, DF to the output port."""
    board.command(0xD1, 0xDF)
    board.command(0xD1, 0xDD)
    board.command(0xDF)
    board.command(0xDD)
    assert board.a20 == [True, False, True, False]
    assert board.resets == 0
    board.command(0xD0)
    assert board.answer() == [0xCD]


def test_output_port_shows_a_full_buffer(board: Board) -> None:
    board.keyboard(0xEE)
    board.command(0xD0)
    assert board.answer() == [0xEE, 0xDF]


@pytest.mark.parametrize(("command", "data", "resets"), [(0xFE, (), 1), (0xF0, (), 1), (0xFF, (), 0), (0xFD, (), 0)])
def test_reset_pulse(board: Board, command: int, data: tuple[int, ...], resets: int) -> None:
    board.command(command, *data)
    assert board.resets == resets


def test_reset_by_the_output_port(board: Board) -> None:
    board.command(0xD1, 0xFE)
    assert board.resets == 1


def test_a_command_forgets_an_argument_that_did_not_come(board: Board) -> None:
    board.command(0x60)
    board.command(0xD1)
    board.command(0xAE)
    board.keyboard(0xEE)
    assert (board.answer(), board.chip.mode, board.a20) == ([0xEE], 0x65, [])


def test_typing_in_set_1(board: Board) -> None:
    board.chip.type("aB\n")
    assert board.chip.deadline() == KEY_NS
    assert board.typed() == [0x1E, 0x9E, 0x2A, 0x30, 0xB0, 0xAA, 0x1C, 0x9C]
    assert board.now_ns == 8 * KEY_NS


def test_untranslated_keys_are_those_of_set_2(board: Board) -> None:
    board.command(0x60, 0x01)
    board.chip.type("q1")
    board.chip.press(0xE048)
    board.chip.press(0x41)
    up = [0xE0, 0x75, 0xE0, 0xF0, 0x75]
    assert board.typed() == [0x15, 0xF0, 0x15, 0x16, 0xF0, 0x16, *up, 0x83, 0xF0, 0x83]


def test_keyboard_in_set_1_without_translation(board: Board) -> None:
    board.command(0x60, 0x01)
    board.keyboard(0xF0)
    board.keyboard(0x01)
    assert board.answer() == [ACK, ACK]
    board.chip.press(0xE04B)
    assert board.typed() == [0xE0, 0x4B, 0xE0, 0xCB]


def test_ctrl_alt_del(board: Board) -> None:
    board.chip.press(0x1D, 0x38, 0xE053)
    assert board.typed() == [0x1D, 0x38, 0xE0, 0x53, 0xE0, 0xD3, 0xB8, 0x9D]


def test_every_key_is_translated_back_to_itself(board: Board) -> None:
    for code in range(1, 0x7F):
        board.chip.press(code)
        assert board.typed() == [code, code | 0x80]


def test_a_slow_guest_loses_no_key(board: Board) -> None:
    board.chip.type("ls")
    board.run(KEY_NS)
    assert board.chip.deadline() is None, "the first byte was not read"
    board.run(100 * KEY_NS)
    assert board.inb() == 0x26
    assert board.chip.deadline() == 101 * KEY_NS
    assert board.typed() == [0xA6, 0x1F, 0x9F]


def test_keys_wait_until_the_keyboard_scans(board: Board) -> None:
    board.keyboard(0xF5)
    assert board.answer() == [ACK]
    board.chip.type("x")
    assert board.chip.deadline() is None
    board.keyboard(0xF4)
    assert board.answer() == [ACK]
    assert board.typed() == [0x2D, 0xAD]


def test_a_key_on_the_way_waits_when_the_keyboard_is_switched_off(board: Board) -> None:
    board.chip.type("x")
    board.command(0xAD)
    board.run(10 * KEY_NS)
    assert board.drain() == []
    board.command(0xAE)
    assert board.typed() == [0x2D, 0xAD]


@pytest.mark.parametrize(
    ("character", "codes"),
    [
        ("~", [0x2A, 0x29, 0xA9, 0xAA]),
        ("|", [0x2A, 0x2B, 0xAB, 0xAA]),
        ("/", [0x35, 0xB5]),
        (" ", [0x39, 0xB9]),
        ("\t", [0x0F, 0x8F]),
        ("\x7f", [0x0E, 0x8E]),
        ("\x1b", [0x01, 0x81]),
        ("\x03", [0x1D, 0x2E, 0xAE, 0x9D]),
    ],
)
def test_us_layout(board: Board, character: str, codes: list[int]) -> None:
    board.chip.type(character)
    assert board.typed() == codes


def test_what_cannot_be_typed(board: Board) -> None:
    with pytest.raises(BadInput, match="é"):
        board.chip.type("caf\u00e9")
    for code in (0, 0x80, 0xE000, 0xE11D, -1):
        with pytest.raises(BadInput):
            board.chip.press(code)
    assert board.chip.deadline() is None


def test_state_survives_json(board: Board) -> None:
    board.command(0x60, 0x47)
    board.mouse(0xF2)
    board.keyboard(0xED)
    board.chip.type("Hi")
    board.chip.press(0xE01D)
    board.drain()
    board.run(3 * KEY_NS)
    board.command(0xD1)
    other = Board()
    other.now_ns = board.now_ns
    other.chip.load_state(json.loads(json.dumps(board.chip.state())))
    for each in (board, other):
        each.bus.write(DATA, 1, 0xDD)
        each.mouse(0xE9)
    assert board.a20 == other.a20 == [False]
    assert other.chip.state() == board.chip.state()
    assert other.drain() == board.drain()
    assert other.chip.deadline() == board.chip.deadline()
    with pytest.raises(BadInput):
        other.chip.load_state({})


LETTERS = bytes.fromhex("1e302e2012212223172425263231181910131f14162f112d152c")  # make codes of a to z
UNSHIFTED = dict(zip(LETTERS, "abcdefghijklmnopqrstuvwxyz", strict=True))


@settings(max_examples=60, deadline=None)
@given(st.text("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ", max_size=12), st.lists(st.booleans()))
def test_a_driver_reads_what_was_typed(text: str, pauses: list[bool]) -> None:
    """Decoded as a teaching kernel does it, with the keyboard switched off and on in between."""
    board, shift, seen = Board(), False, ""
    board.chip.type(text)
    for pause in [*pauses, *[False] * 4 * len(text)]:
        if pause:
            board.command(0xAD)
            board.run(board.now_ns + 2 * KEY_NS)
            board.command(0xAE)
        board.run(board.now_ns + KEY_NS)
        for code in board.answer():
            if code & 0x7F == 0x2A:
                shift = not code & 0x80
            elif not code & 0x80:
                seen += UNSHIFTED[code].upper() if shift else UNSHIFTED[code]
    assert seen == text


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([DATA, COMMAND, None]), st.integers(0, 255)), max_size=60))
def test_no_nonsense_of_a_guest_raises_or_piles_up(accesses: list[tuple[int | None, int]]) -> None:
    board = Board()
    board.chip.type("some text")
    for port, value in accesses:
        if port is None:
            board.run(board.now_ns + value * KEY_NS // 16)
            board.inb()
        else:
            board.bus.write(port, 1, value)
    assert len(board.drain()) <= 64
    assert not board.irq1.level and not board.irq12.level
