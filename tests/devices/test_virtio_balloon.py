"""The balloon as Linux's virtio_balloon uses it."""

from __future__ import annotations

import struct

import pytest

from emu.devices.virtio_balloon import VirtioBalloon
from tests.devices.virtio_guest import VERSION_1, WRITE, Guest, Queue

LIST, STATISTICS = 0x2_0000, 0x3_0000
F_STATS, F_REPORTING = 1 << 1, 1 << 5


class Board:
    def __init__(self, features: int | None = None) -> None:
        self.calls: list[tuple[str, list[object]]] = []
        told = [lambda what, name=name: self.calls.append((name, what)) for name in ("inflate", "deflate", "report")]
        self.guest = Guest(lambda memory: VirtioBalloon(memory, *told))
        self.balloon: VirtioBalloon = self.guest.device  # type: ignore[assignment]
        self.inflate, self.deflate, self.third, self.fourth = self.guest.set_up([128] * 4, features)

    def tell(self, queue: Queue, data: bytes) -> None:
        self.guest.memory.write(LIST, data)
        queue.add((LIST, len(data), 0))
        queue.kick()

    def send_statistics(self, **values: int) -> None:
        """A driver's only buffer, with tags 0, 1, …"""
        data = b"".join(struct.pack("<HQ", tag, value) for tag, value in enumerate(values.values()))
        self.guest.memory.write(STATISTICS, data)
        self.third.add((STATISTICS, len(data), 0))
        self.third.kick()


@pytest.fixture
def board() -> Board:
    return Board()


def test_inflate_and_deflate(board: Board) -> None:
    board.tell(board.inflate, struct.pack("<3I", 7, 0x7FFFF, 8))
    board.tell(board.deflate, struct.pack("<2I", 8, 7))
    assert board.calls == [("inflate", [7, 0x7FFFF, 8]), ("deflate", [8, 7])]
    assert len(board.inflate.used()) == len(board.deflate.used()) == 1
    assert board.guest.acknowledge() == 1


def test_a_cut_off_gfn_is_none(board: Board) -> None:
    board.tell(board.inflate, struct.pack("<2I", 7, 8)[:-1])
    board.tell(board.inflate, b"")
    assert board.calls == [("inflate", [7]), ("inflate", [])]


def test_target(board: Board) -> None:
    board.balloon.set_target(1000)
    assert board.guest.acknowledge() == 2
    assert (board.guest.get(0x100), board.guest.get(0x104)) == (1000, 0)
    board.guest.put(0x104, 900)
    assert board.balloon.actual == 900
    board.guest.put(0x100, 1)
    assert board.balloon.target == 1000, "not the driver's"


def test_target_before_the_driver_is_there(board: Board) -> None:
    board.guest.put(0x070, 0)
    board.balloon.set_target(5)
    assert not board.guest.line.level
    board.guest.set_up([128] * 4)
    assert board.guest.get(0x100) == 5


def test_free_page_reporting(board: Board) -> None:
    """What the guest reports are the buffers themselves; only whole pages count."""
    pieces = [(0x10_0000, 0x8_0000), (0x20_0000 - 0x1_0000, 0x1000), (0x18_F800, 0x1800), (0x1_0800, 0x1000)]
    before = board.guest.memory.read(0x10_0000, 0x8_0000)
    board.fourth.add(*((gpa, size, WRITE) for gpa, size in pieces))
    board.fourth.kick()
    assert board.calls == [("report", [*range(0x100, 0x180), 0x1F0, 0x190])]
    assert board.fourth.used() == [(0, 0)]
    assert board.guest.memory.read(0x10_0000, 0x8_0000) == before


def test_the_largest_report_of_linux(board: Board) -> None:
    """32 free blocks of the highest order, 4 MiB each (mm/page_reporting.c)."""
    board.fourth.add(*((block << 22, 1 << 22, WRITE) for block in range(1, 33)))
    board.fourth.kick()
    assert {what for what, _ in board.calls} == {"report"}
    assert [gfn for _, gfns in board.calls for gfn in gfns] == list(range(1 << 10, 33 << 10))  # type: ignore[attr-defined]
    assert board.fourth.used() == [(0, 0)]


def test_statistics_are_sent_when_asked_for(board: Board) -> None:
    board.balloon.ask_for_statistics()
    assert board.third.used() == [], "there is no buffer yet"
    board.send_statistics(swapped_in=5, swapped_out=6)
    assert (board.third.used(), board.balloon.statistics) == ([], {0: 5, 1: 6})
    board.balloon.ask_for_statistics()
    assert board.third.used() == [(0, 0)]
    assert board.guest.acknowledge() == 1
    board.balloon.ask_for_statistics()
    assert board.third.used() == []
    board.send_statistics(swapped_in=7)
    assert board.balloon.statistics == {0: 7}


def test_queues_without_a_gap() -> None:
    """Linux numbers the queues that it uses: without statistics, reporting is the third."""
    board = Board(VERSION_1 | F_REPORTING)
    board.third.add((0x10_0000, 0x1000, WRITE))
    board.third.kick()
    board.tell(board.fourth, b"nothing")
    assert board.calls == [("report", [0x100])]
    board = Board(VERSION_1 | F_STATS)
    board.send_statistics(swapped_in=1)
    board.fourth.add((0x10_0000, 0x1000, WRITE))
    board.fourth.kick()
    assert (board.calls, board.balloon.statistics) == ([], {0: 1})


def test_a_list_in_no_memory(board: Board) -> None:
    board.inflate.add((1 << 40, 4, 0))
    board.inflate.kick()
    assert board.guest.get(0x070) & 0x40
    assert board.calls == []
    board.balloon.set_target(1)
    assert board.guest.acknowledge() == 2


def test_reset_forgets_the_driver_s_part(board: Board) -> None:
    board.guest.put(0x104, 900)
    board.balloon.set_target(1000)
    board.send_statistics(swapped_in=1)
    board.guest.put(0x070, 0)
    assert (board.balloon.actual, board.balloon.statistics, board.balloon.target) == (0, {}, 1000)


def test_state_survives_json_with_a_statistics_buffer(board: Board) -> None:
    other = Board()
    board.balloon.set_target(77)
    board.guest.put(0x104, 33)
    board.send_statistics(swapped_in=1)
    board.guest.copy_into(other.guest)
    for each in (board, other):
        assert (each.guest.get(0x100), each.balloon.actual, each.balloon.statistics) == (77, 33, {0: 1})
        each.balloon.ask_for_statistics()
        assert each.guest.memory.read(each.third.device + 2, 2) == b"\1\0"
    assert other.guest.mmio.state() == board.guest.mmio.state()
