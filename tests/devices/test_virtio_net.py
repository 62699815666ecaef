"""The virtio network device, with a driver's side made by hand."""

from __future__ import annotations

import json

import pytest

from emu.devices.network import Cable, Network
from emu.devices.virtio import NEEDS_RESET
from emu.devices.virtio_net import MOST_FRAMES, SERVICE_NS, VirtioNet
from tests.devices.network_guest import MAC, OTHER, Recorder, frame
from tests.devices.virtio_guest import NEXT, WRITE, Guest, Holes, Memory

BUFFERS = 0x4_0000
HEADER = bytes(12)


class Board:
    def __init__(self, memory: Memory | None = None, network: Network | None = None) -> None:
        self.network = network or Recorder()
        self.cable = Cable(self.network)
        self.now = 0
        self.guest = Guest(lambda m: VirtioNet(m, lambda: self.now, self.cable, MAC), memory)
        self.receive, self.transmit = self.guest.set_up([256, 256])

    @property
    def card(self) -> VirtioNet:
        assert isinstance(self.guest.device, VirtioNet)
        return self.guest.device

    def send(self, data: bytes, at: int = BUFFERS) -> None:
        self.guest.memory.write(at, data)
        self.transmit.add((at, 12, 0), (at + 12, len(data) - 12, 0))
        self.transmit.kick()

    def run(self, until: int) -> int:
        """Let time pass; how many ticks that took."""
        ticks = 0
        while True:
            due = min((d for d in (self.cable.deadline(), self.card.deadline()) if d is not None), default=until + 1)
            if due > until:
                self.now = until
                return ticks
            self.now = max(self.now, due)
            self.cable.tick(self.now)
            self.card.tick(self.now)
            ticks += 1


def sent(board: Board) -> list[bytes]:
    assert isinstance(board.network, Recorder)
    return board.network.frames


def test_identity_and_config() -> None:
    board = Board()
    assert board.guest.get(0x008) == 1
    assert bytes(board.guest.get(0x100 + n, 1) for n in range(8)) == MAC + b"\1\0"
    assert Board(network=Network()).guest.get(0x106, 2) == 0  # no link
    assert board.guest.offered() & 0x1_0020 == 0x1_0020


def test_a_frame_goes_out() -> None:
    board = Board()
    board.send(HEADER + frame(OTHER, MAC))
    assert sent(board) == []
    board.run(SERVICE_NS)
    assert sent(board) == [frame(OTHER, MAC)]
    assert board.transmit.used() == [(0, 0)]
    assert board.guest.acknowledge() == 1


def test_frames_go_out_at_the_speed_of_the_cable() -> None:
    board = Board()
    data = HEADER + frame(OTHER, MAC, bytes(1500))
    for number in range(100):
        at = BUFFERS + number * 2048
        board.guest.memory.write(at, data)
        board.transmit.add((at, len(data), 0))
    board.transmit.kick()
    assert board.run(10**9) == 100 // MOST_FRAMES + 1
    assert isinstance(board.network, Recorder)
    assert len(board.network.sent) == 100
    assert board.network.sent[-1][0] - SERVICE_NS == 96 * (1514 + 24) * 8


def test_a_frame_comes_in() -> None:
    board = Board()
    board.receive.add((BUFFERS, 12, WRITE), (BUFFERS + 12, 1514, WRITE))
    board.network.deliver(frame(), 0)
    board.run(10_000)
    assert board.receive.used() == [(0, 72)]
    assert board.guest.memory.read(BUFFERS, 72) == HEADER[:10] + b"\1\0" + frame()
    assert board.guest.acknowledge() == 1


def test_frames_wait_for_buffers() -> None:
    board = Board()
    board.network.deliver(frame(payload=b"1" * 46), 0)
    board.network.deliver(frame(payload=b"2" * 46), 0)
    board.run(10_000)
    for number in range(2):
        board.receive.add((BUFFERS + number * 2048, 1526, WRITE))
    board.receive.kick()
    assert [written for _, written in board.receive.used()] == [72, 72]
    assert board.guest.memory.read(BUFFERS + 26, 1) + board.guest.memory.read(BUFFERS + 2048 + 26, 1) == b"12"


def test_without_a_driver_frames_are_lost() -> None:
    board = Board()
    board.guest.put(0x070, 0)
    board.network.deliver(frame(), 0)
    board.run(10_000)
    board.receive, board.transmit = board.guest.set_up([256, 256])
    board.receive.add((BUFFERS, 1526, WRITE))
    board.receive.kick()
    assert board.receive.used() == []


def test_a_reset_loses_what_waits() -> None:
    board = Board()
    board.network.deliver(frame(), 0)
    board.run(10_000)
    board.guest.put(0x070, 0)
    board.receive, board.transmit = board.guest.set_up([256, 256])
    board.receive.add((BUFFERS, 1526, WRITE))
    board.receive.kick()
    assert board.receive.used() == []


def test_a_buffer_that_is_too_small_loses_the_frame() -> None:
    board = Board()
    board.receive.add((BUFFERS, 60, WRITE))
    board.network.deliver(frame(), 0)
    board.run(10_000)
    assert board.receive.used() == [(0, 0)]
    assert board.guest.memory.read(BUFFERS, 60) == bytes(60)


@pytest.mark.parametrize("size", [1, 12, 13, 25, 12 + 16385, 1 << 20])
def test_what_is_no_frame_is_not_sent(size: int) -> None:
    board = Board()
    board.transmit.add((0x1000, size, 0))
    board.transmit.kick()
    board.run(10**9)
    assert sent(board) == []
    assert len(board.transmit.used()) == 1


def test_a_descriptor_loop_stops_the_device() -> None:
    board = Board()
    board.transmit.descriptor(0, BUFFERS, 16, NEXT, 0)
    board.transmit.make_available(0)
    board.transmit.kick()
    board.run(10**9)
    assert board.guest.get(0x070) & NEEDS_RESET
    assert board.guest.acknowledge() == 2
    board.network.deliver(frame(), board.now)
    board.run(2 * 10**9)
    assert board.card.deadline() is None


def test_a_receive_loop_stops_the_device() -> None:
    board = Board()
    board.receive.descriptor(0, BUFFERS, 16, NEXT | WRITE, 0)
    board.receive.make_available(0)
    board.network.deliver(frame(), 0)
    board.run(10**9)
    assert board.guest.get(0x070) & NEEDS_RESET


def test_buffers_that_are_not_there() -> None:
    board = Board(Holes())
    board.receive.add((1 << 60, 1526, WRITE))
    board.network.deliver(frame(), 0)
    board.transmit.add((1 << 62, 100, 0))
    board.transmit.kick()
    board.run(10**9)
    assert sent(board) == [b"\xff" * 88]
    assert board.receive.used() == [(0, 72)]


def test_an_index_that_runs_away_is_served_at_the_speed_of_the_cable() -> None:
    """A frame into the queue's own index: the device never has more than a burst of work at once."""
    board = Board()
    for number in range(256):
        board.guest.memory.write(board.transmit.driver + 4 + 2 * number, (0).to_bytes(2, "little"))
    board.transmit.descriptor(0, BUFFERS, 72, 0)
    board.guest.memory.write(board.transmit.driver + 2, (256).to_bytes(2, "little"))
    board.transmit.kick()
    board.run(10**9)
    assert len(sent(board)) == 256
    board.guest.memory.write(board.transmit.driver + 2, (256 + 300).to_bytes(2, "little"))
    board.transmit.kick()
    board.run(2 * 10**9)
    assert board.guest.get(0x070) & NEEDS_RESET and len(sent(board)) == 256


def test_state_survives_json() -> None:
    board, other = Board(), Board()
    board.send(HEADER + frame(OTHER, MAC))
    board.guest.copy_into(other.guest)
    assert json.loads(json.dumps(board.card.state())) == other.card.state()
    other.run(SERVICE_NS)
    assert sent(other) == [frame(OTHER, MAC)]
