"""The entropy device: fills buffers, the same way in every run."""

from __future__ import annotations

from emu.devices.virtio_rng import VirtioRng
from tests.devices.virtio_guest import WRITE, Guest

BUFFER = 0x2_0000


class Board:
    def __init__(self, seed: bytes = b"seed") -> None:
        self.guest = Guest(lambda memory: VirtioRng(memory, seed))
        [self.queue] = self.guest.set_up([8])

    def random(self, *pieces: tuple[int, int]) -> bytes:
        """What the device writes into the pieces, which lie one behind the other."""
        self.queue.add(*((gpa, size, WRITE) for gpa, size in pieces))
        self.queue.kick()
        [(_, written)] = self.queue.used()
        return self.guest.memory.read(pieces[0][0], written)


def test_buffers_are_filled() -> None:
    board = Board()
    data = board.random((BUFFER, 1000), (BUFFER + 1000, 24))
    assert len(data) == 1024
    assert len(set(data)) > 200
    assert board.guest.memory.read(BUFFER + 1024, 8) == bytes(8)
    assert board.guest.acknowledge() == 1


def test_runs_repeat_and_requests_do_not() -> None:
    first, second = Board(), Board()
    data = [first.random((BUFFER, 64)) for _ in range(3)]
    assert [second.random((BUFFER, 64)) for _ in range(3)] == data
    assert len(set(data)) == 3
    assert Board(b"another").random((BUFFER, 64)) != data[0]


def test_a_long_request_gets_less() -> None:
    assert len(Board().random((BUFFER, 0x10_0000))) == 0x1_0000


def test_state_survives_json() -> None:
    board, other = Board(), Board()
    board.random((BUFFER, 16))
    board.guest.copy_into(other.guest)
    other.queue = other.guest.queues[-1]
    assert other.random((BUFFER, 16)) == board.random((BUFFER, 16))
