"""The 8237s: registers, and what a channel does with addresses and counts."""

from __future__ import annotations

import json

import pytest

from emu.devices.bus import PortBus
from emu.devices.dma import FROM_MEMORY, TO_MEMORY, VERIFY, Dma
from tests.devices.virtio_guest import Memory

PAGE = {0: 0x87, 1: 0x83, 2: 0x81, 3: 0x82, 5: 0x8B, 6: 0x89, 7: 0x8A}
MODES = {VERIFY: 0x00, TO_MEMORY: 0x04, FROM_MEMORY: 0x08}
SINGLE, CASCADE = 0x40, 0xC0
DOWN, AUTO = 0x20, 0x10


class Board:
    def __init__(self, cascade: bool = True) -> None:
        self.memory = Memory(1 << 20)
        self.dma = Dma(self.memory)
        self.bus = PortBus()
        self.bus.register(0x00, 16, self.dma.controllers[0])
        self.bus.register(0xC0, 32, self.dma.controllers[1])
        self.bus.register(0x81, 15, self.dma.pages)
        if cascade:
            self.out((0xD6, CASCADE), (0xD4, 0))

    def out(self, *writes: tuple[int, int]) -> None:
        for port, value in writes:
            self.bus.write(port, 1, value)

    def word(self, port: int) -> int:
        return self.bus.read(port, 1) | self.bus.read(port, 1) << 8

    def port(self, channel: int, register: int) -> int:
        """Of a register of the channel's controller."""
        return register if channel < 4 else 0xC0 + 2 * register

    def set_up(self, channel: int, address: int, count: int, mode: int, page: int = 0) -> None:
        """``address`` and ``count`` (less one) in units of the controller."""
        number = channel & 3
        self.out((self.port(channel, 0xA), 4 | number), (self.port(channel, 0xC), 0))
        self.out((self.port(channel, 0xB), mode | number), (PAGE[channel], page))
        for register, value in ((2 * number, address), (2 * number + 1, count - 1)):
            self.out((self.port(channel, register), value & 0xFF), (self.port(channel, register), value >> 8))
        self.out((self.port(channel, 0xA), number))


def test_after_reset_nothing_is_served() -> None:
    board = Board(cascade=False)
    assert [board.dma.channel(n).direction for n in PAGE] == [None] * 7
    assert board.bus.read(0x0F, 1) & 0xF == 0xF and board.bus.read(0x08, 1) == 0


def test_the_first_controller_is_served_through_the_second() -> None:
    board = Board(cascade=False)
    board.set_up(2, 0, 1, SINGLE | MODES[TO_MEMORY])
    assert board.dma.channel(2).direction is None
    board.out((0xD6, CASCADE))
    assert board.dma.channel(2).direction is None  # masked
    board.out((0xD4, 0))
    assert board.dma.channel(2).direction == TO_MEMORY
    board.out((0xD0, 4))  # the second controller off
    assert board.dma.channel(2).direction is None
    board.out((0xD0, 0), (0x08, 4))
    assert board.dma.channel(2).direction is None


def test_addresses_and_counts_through_the_flip_flop() -> None:
    board = Board()
    board.out((0x0C, 0), (0x04, 0x34), (0x04, 0x12), (0x05, 0xCD), (0x05, 0xAB))
    assert (board.word(0x04), board.word(0x05)) == (0x1234, 0xABCD)
    board.out((0x04, 0x99))  # the low half alone
    assert board.bus.read(0x04, 1) == 0x12  # the flip-flop stands at the high half
    board.out((0x0C, 0))
    assert board.word(0x04) == 0x1299
    assert board.bus.read(0x04, 1) == 0x99
    board.out((0x0D, 0))  # master clear: the flip-flop, too
    assert board.word(0x04) == 0x1299


def test_masks() -> None:
    board = Board()
    board.out((0x0E, 0))
    assert board.bus.read(0x0F, 1) & 0xF == 0
    board.out((0x0A, 4 | 2), (0x0A, 4 | 1), (0x0A, 1))
    assert board.bus.read(0x0F, 1) & 0xF == 0b0100
    board.out((0x0F, 0b1010))
    assert board.bus.read(0x0F, 1) & 0xF == 0b1010


@pytest.mark.parametrize("channel", [0, 1, 2, 3])
def test_bytes_to_memory(channel: int) -> None:
    board = Board()
    board.set_up(channel, 0x1234, 8, SINGLE | MODES[TO_MEMORY], page=5)
    line = board.dma.channel(channel)
    assert line.left == 8
    assert not line.put(b"abc")
    assert (board.word(2 * channel), board.word(2 * channel + 1)) == (0x1237, 4)
    assert line.put(b"defgh")
    assert board.memory.read(0x51234, 8) == b"abcdefgh"
    assert board.word(2 * channel + 1) == 0xFFFF
    assert board.bus.read(0x08, 1) == 1 << channel  # terminal count
    assert board.bus.read(0x08, 1) == 0  # once
    assert line.direction is None  # masked


@pytest.mark.parametrize("channel", [5, 6, 7])
def test_words_from_memory(channel: int) -> None:
    """The lowest bit of the page does not count; addresses and counts are of words."""
    board = Board()
    board.memory.write(0x42468, b"abcdef")
    board.set_up(channel, 0x1234, 3, SINGLE | MODES[FROM_MEMORY], page=5)
    line = board.dma.channel(channel)
    assert line.left == 6
    assert line.get(4) == (b"abcd", False)
    assert line.get(2) == (b"ef", True)
    assert board.bus.read(0xD0, 1) & 0xF == 1 << channel - 4


def test_a_transfer_wraps_within_its_page() -> None:
    board = Board()
    board.set_up(1, 0xFFFE, 4, SINGLE | MODES[TO_MEMORY], page=3)
    assert board.dma.channel(1).put(b"abcd")
    assert board.memory.read(0x3FFFE, 2) == b"ab" and board.memory.read(0x30000, 2) == b"cd"
    board.set_up(5, 0xFFFF, 2, SINGLE | MODES[FROM_MEMORY], page=2)
    board.memory.write(0x3FFFE, b"ab")
    board.memory.write(0x20000, b"cd")
    assert board.dma.channel(5).get(4) == (b"abcd", True)


def test_falling_addresses() -> None:
    board = Board()
    board.set_up(1, 1, 4, SINGLE | DOWN | MODES[TO_MEMORY], page=3)
    assert board.dma.channel(1).put(b"abcd")
    assert board.memory.read(0x30000, 2) == b"ba" and board.memory.read(0x3FFFE, 2) == b"dc"
    board.memory.write(0x21000, b"abcd")
    board.set_up(6, 0x801, 2, SINGLE | DOWN | MODES[FROM_MEMORY], page=2)
    assert board.dma.channel(6).get(4) == (b"cdab", True)


def test_auto_initialisation() -> None:
    board = Board()
    board.set_up(3, 0x100, 2, SINGLE | AUTO | MODES[TO_MEMORY])
    line = board.dma.channel(3)
    for text in (b"ab", b"cd"):
        assert line.put(text)
        assert board.memory.read(0x100, 2) == text
        assert line.direction == TO_MEMORY and line.left == 2


def test_the_other_direction_moves_nothing() -> None:
    board = Board()
    for mode in (VERIFY, FROM_MEMORY):
        board.set_up(2, 0x100, 2, SINGLE | MODES[mode])
        assert board.dma.channel(2).put(b"ab")
    board.set_up(2, 0x100, 2, SINGLE | MODES[VERIFY])
    assert board.dma.channel(2).get(2) == (b"\xff\xff", True)
    assert board.memory.read(0x100, 2) == bytes(2)


def test_requests_show_in_the_status() -> None:
    board = Board()
    line = board.dma.channel(1)
    line.request(True)
    board.out((0x09, 4 | 3))  # by software
    assert board.bus.read(0x08, 1) == 0xA0
    line.request(False)
    board.out((0x09, 3))
    assert board.bus.read(0x08, 1) == 0


def test_every_page_register_keeps_what_is_written() -> None:
    board = Board()
    for port in range(0x81, 0x90):
        board.out((port, port))
    assert [board.bus.read(port, 1) for port in range(0x81, 0x90)] == [*range(0x81, 0x90)]


def test_state() -> None:
    board, other = Board(), Board(cascade=False)
    board.set_up(2, 0x1234, 0x100, SINGLE | MODES[TO_MEMORY], page=5)
    board.dma.channel(2).put(b"abc")
    board.out((0x0C, 0), (0x04, 0))  # half a word
    devices, others = (*board.dma.controllers, board.dma.pages), (*other.dma.controllers, other.dma.pages)
    for device, copy in zip(devices, others, strict=True):
        copy.load_state(json.loads(json.dumps(device.state())))
        assert copy.state() == device.state()
    assert other.dma.channel(2).direction == TO_MEMORY and other.dma.channel(2).left == 0x100 - 3
