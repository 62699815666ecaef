"""System control port A and the A20 gate."""

from __future__ import annotations

import json

import pytest

from emu.devices.bus import PortBus
from emu.devices.port92 import A20Gate, Port92
from emu.errors import BadInput

PORT = 0x92


class Board:
    def __init__(self) -> None:
        self.levels: list[bool] = []
        self.resets = 0
        self.gate = A20Gate(self.levels.append)
        self.port = Port92(self.gate.set_port92, self.reset)
        self.bus = PortBus()
        self.bus.register(PORT, 1, self.port)

    def reset(self) -> None:
        self.resets += 1

    def out(self, value: int) -> None:
        self.bus.write(PORT, 1, value)

    def inb(self) -> int:
        return self.bus.read(PORT, 1)


def test_a20_passes_from_the_start_and_nobody_is_told() -> None:
    board = Board()
    assert (board.gate.level, board.levels, board.inb()) == (True, [], 0)


def test_fast_a20_as_linux_does_it() -> None:
    """enable_a20_fast in arch/x86/boot/a20.c: set bit 1, keep bit 0 clear."""
    board = Board()
    board.gate.set_i8042(False)
    board.out((board.inb() | 0x02) & ~0x01)
    assert (board.levels, board.inb(), board.resets) == ([False, True], 0x02, 0)


@pytest.mark.parametrize("i8042", [False, True])
@pytest.mark.parametrize("port92", [False, True])
def test_either_source_lets_a20_through(i8042: bool, port92: bool) -> None:
    board = Board()
    board.gate.set_i8042(i8042)
    board.out(0x02 * port92)
    assert board.gate.level == (i8042 or port92)
    assert board.levels == ([] if i8042 else [False, True] if port92 else [False])


def test_only_the_rise_of_the_reset_bit_resets() -> None:
    board = Board()
    for value, resets in ((0x01, 1), (0x03, 1), (0x02, 1), (0x01, 2)):
        board.out(value)
        assert board.resets == resets


def test_other_bits_keep_what_was_written() -> None:
    board = Board()
    board.out(0xFC)
    assert (board.inb(), board.resets) == (0xFC, 0)


def test_state_survives_json() -> None:
    board, other = Board(), Board()
    board.gate.set_i8042(False)
    board.out(0x02)
    board.out(0x00)
    other.gate.load_state(json.loads(json.dumps(board.gate.state())))
    other.port.load_state(json.loads(json.dumps(board.port.state())))
    assert other.levels == [False]
    other.out(0x02)
    assert other.levels == [False, True]
    with pytest.raises(BadInput):
        other.gate.load_state({"port92": True})
    with pytest.raises(BadInput):
        other.port.load_state({})
