"""The VGA: what Linux' vgacon, memtest86+ and hobby kernels do with it, the data book's registers, and the beam."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emu.devices.bus import PortBus
from emu.devices.vga import CP437, Cell, Cursor, Vga
from emu.errors import BadInput

BASE, PORTS = 0x3B0, 0x30
ATTRIBUTE, ATTRIBUTE_READ, STATUS_0, MISC, SEQUENCER = 0x3C0, 0x3C1, 0x3C2, 0x3C2, 0x3C4
DAC_MASK, DAC_READ, DAC_WRITE, DAC_DATA = 0x3C6, 0x3C7, 0x3C8, 0x3C9
FEATURE_READ, MISC_READ, GRAPHICS, CRTC, STATUS = 0x3CA, 0x3CC, 0x3CE, 0x3D4, 0x3DA
MONO_CRTC, MONO_STATUS = 0x3B4, 0x3BA
TEXT = 0xB8000
LINE_NS = 900 / 0.028322  # 900 dots at 28.322 MHz
FRAME_NS = 449 * LINE_NS


class Memory:
    def __init__(self) -> None:
        self.data = bytearray(b" \x07" * 0x8000)  # from 0xB0000 on

    def read(self, gpa: int, size: int) -> bytes:
        assert 0xB0000 <= gpa and gpa + size <= 0xC0000
        return bytes(self.data[gpa - 0xB0000 :][:size])

    def write(self, gpa: int, data: bytes) -> None:
        raise AssertionError("the device only reads text")


class Board:
    def __init__(self) -> None:
        self.now_ns = 0
        self.memory = Memory()
        self.vga = Vga(self.memory.read, lambda: self.now_ns)
        self.bus = PortBus()
        self.bus.register(BASE, PORTS, self.vga)

    def outb(self, port: int, value: int) -> None:
        self.bus.write(port, 1, value)

    def inb(self, port: int) -> int:
        return self.bus.read(port, 1)

    def put(self, port: int, index: int, value: int) -> None:
        """Index and data in one access, as most drivers write them."""
        self.bus.write(port, 2, index | value << 8)

    def get(self, port: int, index: int) -> int:
        self.outb(port, index)
        return self.inb(port + 1)

    def put_attribute(self, index: int, value: int) -> None:
        """Leaves the screen on."""
        self.inb(STATUS)
        for byte in (index, value, 0x20):
            self.outb(ATTRIBUTE, byte)

    def get_attribute(self, index: int) -> int:
        self.inb(STATUS)
        self.outb(ATTRIBUTE, index | 0x20)
        return self.inb(ATTRIBUTE_READ)

    def colour(self, entry: int) -> list[int]:
        self.outb(DAC_READ, entry)
        return [self.inb(DAC_DATA) for _ in range(3)]

    def poke(self, place: int, text: bytes, attribute: int = 7, base: int = TEXT) -> None:
        data = b"".join(bytes((code, attribute)) for code in text)
        at = base - 0xB0000 + 2 * place
        self.memory.data[at : at + len(data)] = data

    def line(self, row: int) -> str:
        return "".join(cell.character for cell in self.vga.screen().rows[row]).rstrip()


@pytest.fixture
def board() -> Board:
    return Board()


# ---- registers ----


def test_registers_are_those_of_mode_3(board: Board) -> None:
    assert board.inb(MISC_READ) == 0x67
    assert [board.get(SEQUENCER, n) for n in range(5)] == [3, 0, 3, 0, 2]
    assert [board.get(GRAPHICS, n) for n in range(9)] == [0, 0, 0, 0, 0, 0x10, 0x0E, 0x0F, 0xFF]
    crtc = bytes(board.get(CRTC, n) for n in range(25))
    assert crtc.hex() == "5f4f50825581bf1f004f0d0e000000009c8e8f281f96b9a3ff"
    attributes = bytes(board.get_attribute(n) for n in range(21))
    assert attributes.hex() == "000102030405140738393a3b3c3d3e3f0c000f0800"
    assert (board.colour(1), board.colour(0x14), board.colour(0x3F)) == ([0, 0, 42], [42, 21, 0], [63, 63, 63])
    assert board.inb(DAC_MASK) == 0xFF


def test_registers_keep_the_bits_that_exist(board: Board) -> None:
    for port, index, bits in ((SEQUENCER, 1, 0x3D), (SEQUENCER, 4, 0x0E), (GRAPHICS, 5, 0x7B), (GRAPHICS, 8, 0xFF)):
        board.put(port, index, 0xFF)
        assert board.get(port, index) == bits
    for index, bits in ((0, 0x3F), (0x10, 0xEF), (0x11, 0xFF), (0x14, 0x0F)):
        board.put_attribute(index, 0xFF)
        assert board.get_attribute(index) == bits
    assert board.inb(STATUS_0) == 0


def test_indices_read_back_and_unknown_ones_are_nothing(board: Board) -> None:
    for port, index in ((SEQUENCER, 7), (GRAPHICS, 15), (CRTC, 0x40)):
        board.put(port, index, 0x55)
        assert board.bus.read(port, 2) == index
    assert board.get_attribute(0x1F) == 0


def test_attribute_controller_takes_index_and_data_in_turn(board: Board) -> None:
    board.inb(STATUS)
    board.outb(ATTRIBUTE, 0x23)
    assert (board.inb(ATTRIBUTE), board.inb(ATTRIBUTE_READ)) == (0, 3), "reads do not turn it"
    board.outb(ATTRIBUTE, 0x2A)
    assert (board.inb(ATTRIBUTE), board.inb(ATTRIBUTE_READ)) == (0x23, 0x2A)
    board.outb(ATTRIBUTE, 0x24)
    board.inb(STATUS)
    board.outb(ATTRIBUTE, 0x25)
    assert (board.inb(ATTRIBUTE_READ), board.get_attribute(4)) == (5, 4), "an index again, 4 is untouched"


def test_crtc_registers_0_to_7_are_protected(board: Board) -> None:
    board.put(CRTC, 0, 0x12)
    board.put(CRTC, 7, 0x00)
    assert (board.get(CRTC, 0), board.get(CRTC, 7)) == (0x5F, 0x0F), "but for bit 8 of line compare"
    board.put(CRTC, 0x11, 0x0E)
    board.put(CRTC, 0, 0x12)
    board.put(CRTC, 7, 0x1F)
    assert (board.get(CRTC, 0), board.get(CRTC, 7)) == (0x12, 0x1F)


def test_dac_counts_through_the_entries(board: Board) -> None:
    board.outb(DAC_WRITE, 0xFF)
    for value in (1, 2, 0xC3, 4, 5):
        board.outb(DAC_DATA, value)
    assert (board.inb(DAC_WRITE), board.inb(DAC_READ)) == (0, 0)
    assert board.vga.dac[:3] == [0, 0, 0], "an entry changes as a whole"
    board.outb(DAC_DATA, 6)
    board.outb(DAC_READ, 0xFF)
    assert board.inb(DAC_READ) == 3
    assert [board.inb(DAC_DATA) for _ in range(7)] == [1, 2, 3, 4, 5, 6, 0]


def test_miscellaneous_output_moves_crtc_and_status(board: Board) -> None:
    assert (board.inb(MONO_CRTC + 1), board.inb(MONO_STATUS)) == (0xFF, 0xFF)
    board.put(MONO_CRTC, 0x0E, 0x12)
    assert board.get(CRTC, 0x0E) == 0
    board.outb(MISC, 0x66)
    assert board.get(MONO_CRTC, 0x0A) == 0x0D
    assert (board.inb(CRTC + 1), board.inb(STATUS)) == (0xFF, 0xFF)
    board.outb(MONO_STATUS, 0x10)
    assert (board.inb(FEATURE_READ), board.inb(MONO_STATUS) & 0xF6) == (0x10, 0)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(BASE, BASE + PORTS - 1), st.integers(0, 255)), max_size=60))
def test_nothing_a_guest_writes_raises(writes: list[tuple[int, int]]) -> None:
    board = Board()
    for port, value in writes:
        board.outb(port, value)
        board.now_ns += 12_345
        assert 0 <= board.inb(port) <= 0xFF
    screen = board.vga.screen()
    assert [len(row) for row in screen.rows] == [80] * 25
    assert all(0 <= value <= 255 for colour in screen.palette for value in colour)


# ---- the beam ----


def at_line(board: Board, line: float, frame: int = 0) -> int:
    board.now_ns = round(frame * FRAME_NS + line * LINE_NS)
    return board.inb(STATUS)


@pytest.mark.parametrize("frame", [0, 1, 70 * 60])
def test_status_follows_the_beam(board: Board, frame: int) -> None:
    assert at_line(board, 10.5, frame) == 0
    assert at_line(board, 10.95, frame) == 1, "horizontal blanking"
    assert at_line(board, 399.5, frame) == 0
    assert at_line(board, 400.5, frame) == 1, "vertical blanking"
    assert at_line(board, 411.5, frame) == 1
    assert at_line(board, 412.5, frame) == 9, "vertical retrace"
    assert at_line(board, 413.5, frame) == 9
    assert at_line(board, 414.5, frame) == 1


def test_programs_that_wait_for_the_retrace_see_70_frames_a_second(board: Board) -> None:
    frames, before = 0, 0
    while board.now_ns < 1_000_000_000:
        retrace = board.inb(STATUS) & 8
        frames += retrace > before
        before = retrace
        board.now_ns += 40_000
    assert frames == 70


def test_480_lines_are_60_frames_a_second(board: Board) -> None:
    """Mode 12h: 25.175 MHz, 8 dots a character, 525 lines, retrace from line 490 to 491."""
    board.outb(MISC, 0xE3)
    board.put(SEQUENCER, 1, 0x01)
    board.put(CRTC, 0x11, 0x0C)
    for index, value in ((6, 0x0B), (7, 0x3E), (0x10, 0xEA), (0x11, 0x8C), (0x12, 0xDF)):
        board.put(CRTC, index, value)
    frame_ns = 800 * 525 / 0.025175
    for line, status in ((479.3, 0), (480.3, 1), (490.3, 9), (491.3, 9), (492.3, 1), (525.3, 0)):
        board.now_ns = round(600 * frame_ns + line * frame_ns / 525)
        assert board.inb(STATUS) == status, line


# ---- the picture ----


def test_text_and_colours(board: Board) -> None:
    board.poke(80 * 3 + 5, b"Hi", 0x1E)
    screen = board.vga.screen()
    assert [len(row) for row in screen.rows] == [80] * 25
    assert screen.rows[3][4:8] == (Cell(" ", 7, 0), Cell("H", 14, 1), Cell("i", 14, 1), Cell(" ", 7, 0))
    assert screen.cursor == Cursor(0, 0, 13, 14)
    assert [screen.palette[n] for n in (0, 1, 6, 7, 8, 14)] == [
        (0, 0, 0), (0, 0, 170), (170, 85, 0), (170, 170, 170), (85, 85, 85), (255, 255, 85),
    ]  # fmt: skip


def test_code_page_437(board: Board) -> None:
    board.poke(0, bytes(range(256)))
    shown = "".join(cell.character for row in board.vga.screen().rows for cell in row)[:256]
    assert shown == CP437
    assert len(set(CP437)) == 255, "0 is blank as 32 is"
    assert [shown[code] for code in (1, 0x41, 0x7F, 0x84, 0xC9, 0xDB, 0xE1, 0xF8)] == list("☺A⌂ä╔█ß°")
    assert not any(ord(character) < 32 or 127 <= ord(character) < 160 for character in shown)


def test_bit_7_blinks_or_brightens(board: Board) -> None:
    board.poke(0, b"x", 0x9F)
    assert board.vga.screen().rows[0][0] == Cell("x", 15, 1, True)
    board.put_attribute(0x10, 0x04)
    assert board.vga.screen().rows[0][0] == Cell("x", 15, 9, False)


def test_scrolling_by_start_address_as_vgacon_does(board: Board) -> None:
    for row in range(30):
        board.poke(80 * row, b"line %d" % row)
    board.put(CRTC, 0x0C, 400 >> 8)
    board.put(CRTC, 0x0D, 400 & 0xFF)
    board.put(CRTC, 0x0E, (80 * 29 + 7) >> 8)
    board.put(CRTC, 0x0F, (80 * 29 + 7) & 0xFF)
    assert [board.line(0), board.line(24)] == ["line 5", "line 29"]
    assert board.vga.screen().cursor == Cursor(24, 7, 13, 14)


def test_text_memory_wraps(board: Board) -> None:
    board.poke(0x4000 - 80, b"last")
    board.poke(0, b"first")
    board.put(CRTC, 0x0C, (0x4000 - 80) >> 8)
    board.put(CRTC, 0x0D, (0x4000 - 80) & 0xFF)
    assert [board.line(0), board.line(1)] == ["last", "first"]
    assert board.vga.screen().cursor == Cursor(1, 0, 13, 14)


def test_rows_may_be_further_apart(board: Board) -> None:
    board.put(CRTC, 0x13, 50)
    board.poke(100, b"second")
    assert board.line(1) == "second"


@pytest.mark.parametrize(
    ("start", "end", "lines"),
    [(0, 15, (0, 15)), (14, 31, (14, 15)), (0x20, 15, None), (31, 30, None), (8, 7, None), (0xC6, 7, (6, 7))],
)
def test_shape_of_the_cursor(board: Board, start: int, end: int, lines: tuple[int, int] | None) -> None:
    board.put(CRTC, 0x0A, start)
    board.put(CRTC, 0x0B, end)
    cursor = board.vga.screen().cursor
    assert (None if cursor is None else cursor[2:]) == lines


def test_cursor_of_smaller_characters_is_scaled(board: Board) -> None:
    board.put(CRTC, 0x09, 0x47)  # 8 lines
    board.put(CRTC, 0x0A, 6)
    board.put(CRTC, 0x0B, 7)
    assert board.vga.screen().cursor == Cursor(0, 0, 12, 15)


def test_cursor_outside_of_the_screen(board: Board) -> None:
    board.put(CRTC, 0x0E, 2000 >> 8)
    board.put(CRTC, 0x0F, 2000 & 0xFF)
    assert board.vga.screen().cursor is None


def test_linux_sets_its_palette(board: Board) -> None:
    """vgacon makes the attribute palette 1:1, and then colours DAC entries 0 to 15."""
    board.inb(STATUS)
    for index in range(16):
        board.outb(ATTRIBUTE, index)
        board.outb(ATTRIBUTE, index)
    board.outb(ATTRIBUTE, 0x20)
    board.outb(DAC_WRITE, 4)
    for value in (0x3F, 0x20, 0x01):
        board.outb(DAC_DATA, value)
    assert board.vga.screen().palette[4] == (255, 130, 4)
    board.outb(DAC_MASK, 0)
    assert set(board.vga.screen().palette) == {(0, 0, 0)}


def test_colour_select_and_planes(board: Board) -> None:
    board.outb(DAC_WRITE, 0x57)
    for value in (0, 0, 0x3F):
        board.outb(DAC_DATA, value)
    board.put_attribute(0x07, 0x17)
    board.put_attribute(0x14, 0x04)
    assert board.vga.screen().palette[7] == (0, 0, 255), "bits 6 and 7 of the entry"
    board.put_attribute(0x07, 0x07)
    board.put_attribute(0x14, 0x05)
    board.put_attribute(0x10, 0x8C)
    assert board.vga.screen().palette[7] == (0, 0, 255), "bits 4 to 7"
    board.put_attribute(0x12, 0x07)
    palette = board.vga.screen().palette
    assert palette[8:] == palette[:8]


def test_blanked_screens(board: Board) -> None:
    board.poke(0, b"secret")
    board.put(SEQUENCER, 1, 0x20)
    assert (board.line(0), board.vga.screen().cursor) == ("", None)
    board.put(SEQUENCER, 1, 0x00)
    assert board.line(0) == "secret"
    board.inb(STATUS)
    board.outb(ATTRIBUTE, 0x00)
    assert board.line(0) == ""
    board.inb(STATUS)
    board.outb(ATTRIBUTE, 0x20)
    assert (board.line(0), board.vga.is_graphics()) == ("secret", False)
    board.put(GRAPHICS, 6, 0x05)
    assert (board.line(0), board.vga.is_graphics()) == ("", True)


def test_monochrome_text_is_at_b0000(board: Board) -> None:
    board.poke(0, b"mono", base=0xB0000)
    assert board.line(0) == ""
    board.put(GRAPHICS, 6, 0x0A)
    assert board.line(0) == "mono"


def test_state_survives_json_in_the_middle_of_an_access(board: Board) -> None:
    board.inb(STATUS)
    board.outb(ATTRIBUTE, 0x22)
    board.outb(DAC_WRITE, 9)
    board.outb(DAC_DATA, 1)
    board.outb(DAC_DATA, 2)
    board.outb(CRTC, 0x0F)
    other = Board()
    other.vga.load_state(json.loads(json.dumps(board.vga.state())))
    for machine in (board, other):
        machine.outb(ATTRIBUTE, 0x2B)
        machine.outb(DAC_DATA, 3)
        machine.outb(CRTC + 1, 5)
    for machine in (board, other):
        assert (machine.get_attribute(2), machine.colour(9)) == (0x2B, [1, 2, 3])
        assert machine.vga.screen().cursor == Cursor(0, 5, 13, 14)
    assert other.vga.state() == board.vga.state()
    with pytest.raises(BadInput):
        other.vga.load_state({})
