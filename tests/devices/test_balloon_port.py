"""The balloon's hypercall at 0xF8."""

from __future__ import annotations

import pytest

from emu.devices.balloon_port import BalloonPort
from emu.devices.bus import PortBus
from emu.devices.layout import BALLOON_PORT, BALLOON_PORTS
from emu.errors import BadInput


class Board:
    def __init__(self) -> None:
        self.calls: list[tuple[str, list[int]]] = []
        self.port = BalloonPort(
            lambda gfns: self.calls.append(("inflate", gfns)), lambda gfns: self.calls.append(("deflate", gfns))
        )
        self.bus = PortBus()
        self.bus.register(BALLOON_PORT, BALLOON_PORTS, self.port)


@pytest.fixture
def board() -> Board:
    return Board()


def test_the_three_instructions(board: Board) -> None:
    assert board.bus.read(0xF8, 4) == 0
    board.port.set_target(0x1_2345)
    assert board.bus.read(0xF8, 4) == 0x1_2345
    board.bus.write(0xF8, 4, 0x100)
    board.bus.write(0xFC, 4, 0x100)
    board.bus.write(0xF8, 4, 0xFFFF_FFFF)
    assert board.calls == [("inflate", [0x100]), ("deflate", [0x100]), ("inflate", [0xFFFF_FFFF])]


@pytest.mark.parametrize(("port", "size"), [(0xF8, 1), (0xF8, 2), (0xF9, 4), (0xFA, 4), (0xFB, 1), (0xFC, 2)])
def test_other_writes_do_nothing(board: Board, port: int, size: int) -> None:
    board.bus.write(port, size, 0x0102_0304)
    assert board.calls == []


def test_reading_changes_nothing(board: Board) -> None:
    board.port.set_target(7)
    assert [board.bus.read(0xF8 + offset, 4) for offset in (0, 4, 0)] == [7, 0, 7]
    assert board.calls == []


def test_state(board: Board) -> None:
    other = Board()
    board.port.set_target(7)
    other.port.load_state(board.port.state())
    assert other.bus.read(0xF8, 4) == 7
    with pytest.raises(BadInput, match="BalloonPort"):
        other.port.load_state({})
