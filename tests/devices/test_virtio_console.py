"""The virtio console as Linux's hvc0."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from emu.devices.virtio_console import VirtioConsole
from tests.devices.virtio_guest import WRITE, Guest

INPUT, OUTPUT = 0x2_0000, 0x3_0000


class Board:
    def __init__(self) -> None:
        self.printed = bytearray()
        self.guest = Guest(lambda memory: VirtioConsole(memory, self.printed.extend))
        self.console: VirtioConsole = self.guest.device  # type: ignore[assignment]
        self.received, self.sent = self.guest.set_up([16, 16])

    def add_buffer(self, size: int) -> None:
        self.received.add((INPUT, size, WRITE))
        self.received.kick()

    def typed(self) -> bytes:
        """What came into the one buffer."""
        [(_, size)] = self.received.used()
        return self.guest.memory.read(INPUT, size)


def test_output() -> None:
    board = Board()
    board.guest.memory.write(OUTPUT, b"Linux version\n")
    board.sent.add((OUTPUT, 5, 0), (OUTPUT + 5, 9, 0))
    board.sent.kick()
    assert board.printed == b"Linux version\n"
    assert len(board.sent.used()) == 1
    assert board.guest.acknowledge() == 1


def test_input_comes_into_a_waiting_buffer() -> None:
    board = Board()
    board.add_buffer(4096)
    assert board.received.used() == [] and not board.guest.line.level
    board.console.offer(b"ls\n")
    assert board.guest.line.level
    assert board.typed() == b"ls\n"


def test_input_waits_for_buffers() -> None:
    board = Board()
    board.console.offer(b"echo ")
    board.console.offer(b"hello\n")
    assert not board.guest.line.level
    typed = b""
    for _ in range(3):
        board.add_buffer(4)
        typed += board.typed()
    assert typed == b"echo hello\n"


def test_input_before_the_driver_is_there() -> None:
    board = Board()
    board.guest.put(0x070, 0)
    board.console.offer(b"early")
    board.received, board.sent = board.guest.set_up([16, 16])
    board.add_buffer(4096)
    assert board.typed() == b"early"


def test_empty_buffers_lose_nothing() -> None:
    board = Board()
    board.console.offer(b"x")
    board.add_buffer(0)
    assert board.typed() == b""
    board.add_buffer(1)
    assert board.typed() == b"x"


def test_a_buffer_in_no_memory() -> None:
    board = Board()
    board.received.add((1 << 40, 16, WRITE))
    board.received.kick()
    assert board.guest.get(0x070) == 15
    board.console.offer(b"x")
    assert board.guest.get(0x070) & 0x40
    assert board.console.offered == [ord("x")]


def test_state_survives_json_with_input_waiting() -> None:
    board, other = Board(), Board()
    board.console.offer(b"0123456789")
    board.add_buffer(4)
    board.typed()
    board.guest.copy_into(other.guest)
    other.received = other.guest.queues[2]
    for each in (board, other):
        each.add_buffer(100)
        assert each.typed() == b"456789"
    assert other.guest.mmio.state() == board.guest.mmio.state()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.binary(max_size=20) | st.integers(1, 12), max_size=30))
def test_every_byte_arrives_once_and_in_order(steps: list[bytes | int]) -> None:
    board = Board()
    offered = typed = b""
    for step in [*steps, 4096]:
        if isinstance(step, bytes):
            board.console.offer(step)
            offered += step
        elif len(typed) < len(offered):
            board.add_buffer(step)
            typed += board.typed()
    assert typed == offered
