"""Split virtqueues: chains as drivers cut them, rings that wrap, and drivers that break every rule."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emu.devices.virtio import Chain, VirtioDevice, split, total
from emu.errors import BadInput
from tests.devices.virtio_guest import INDIRECT, NEXT, RAM, WRITE, Guest, Holes, Memory, Queue

BUFFERS = 0x10_0000  # gpa of data


class Echo(VirtioDevice):
    """Answers what it reads, turned round."""

    DEVICE_ID = 42
    QUEUES = (8, 256)

    def __init__(self, memory: Memory) -> None:
        super().__init__(memory)
        self.seen: list[Chain] = []

    def handle(self, index: int, chain: Chain) -> int:
        self.seen.append(chain)
        return self.memory.scatter(chain.writable, self.memory.gather(chain.readable)[::-1])


def echo(memory: Memory | None = None) -> tuple[Guest, Queue]:
    guest = Guest(Echo, memory)
    return guest, guest.set_up([8, 256])[0]


def broken(guest: Guest) -> bool:
    """Whether the device asks to be reset, and serves nobody until then, but works after it."""
    asks = guest.get(0x070) & 0x40 and guest.acknowledge() & 2
    queue = guest.queues[1]
    queue.add((BUFFERS, 4, 0), (BUFFERS, 4, WRITE))
    queue.kick()
    silent = not queue.used() and guest.get(0x060) == 0
    queue = guest.set_up([8])[0]
    queue.add((BUFFERS, 4, 0), (BUFFERS, 4, WRITE))
    queue.kick()
    return bool(asks and silent and queue.used() == [(0, 4)])


def test_a_request_in_pieces() -> None:
    guest, queue = echo()
    guest.memory.write(BUFFERS, b"abcdefgh")
    head = queue.add((BUFFERS, 3, 0), (BUFFERS + 3, 5, 0), (BUFFERS + 100, 6, WRITE), (BUFFERS + 200, 9, WRITE))
    queue.kick()
    assert queue.used() == [(head, 8)]
    assert guest.memory.read(BUFFERS + 100, 6) + guest.memory.read(BUFFERS + 200, 2) == b"hgfedcba"
    assert guest.acknowledge() == 1


def test_pieces_that_lie_together_are_one() -> None:
    guest, queue = echo()
    queue.add((BUFFERS, 3, 0), (BUFFERS + 3, 5, 0), (BUFFERS + 8, 6, WRITE), (BUFFERS + 14, 0, WRITE))
    queue.kick()
    assert guest.device.seen == [Chain(0, [(BUFFERS, 8)], [(BUFFERS + 8, 6)])]  # type: ignore[attr-defined]


def test_indirect_tables() -> None:
    guest, queue = echo()
    guest.memory.write(BUFFERS, b"ab")
    pieces = [(BUFFERS + n, 1, 0) for n in (1, 0)] + [(BUFFERS + 8, 4, WRITE)]
    for _ in range(20):
        queue.add(*pieces, indirect=0x8_0000)
        queue.kick()
    assert len(queue.used()) == 20
    assert guest.memory.read(BUFFERS + 8, 2) == b"ab"


def test_several_requests_with_one_kick_and_one_interrupt() -> None:
    guest, queue = echo()
    heads = [queue.add((BUFFERS, 4, 0), (BUFFERS + 4, 4, WRITE)) for _ in range(4)]
    queue.kick()
    assert queue.used() == [(head, 4) for head in heads]
    assert guest.acknowledge() == 1
    queue.kick()
    assert guest.acknowledge() == 0, "nothing was used"


def test_indices_wrap() -> None:
    guest, queue = echo()
    device_side = guest.device.queues[0]
    queue.available = queue.seen = device_side.next_available = device_side.next_used = 0xFFFE
    for _ in range(2):
        for _ in range(3):
            queue.add((BUFFERS, 1, 0), (BUFFERS + 1, 1, WRITE))
        queue.kick()
        assert len(queue.used()) == 3
    assert (queue.seen, device_side.next_available, device_side.next_used) == (4, 4, 4)


def test_the_driver_may_not_want_interrupts() -> None:
    guest, queue = echo()
    guest.memory.write(queue.driver, b"\1\0")
    queue.add((BUFFERS, 4, 0))
    queue.kick()
    assert len(queue.used()) == 1
    assert guest.acknowledge() == 0


def test_nothing_happens_before_driver_ok() -> None:
    guest, queue = echo()
    guest.put(0x070, 11)
    queue.add((BUFFERS, 4, 0))
    queue.kick()
    assert not queue.used()
    guest.put(0x070, 15)
    assert len(queue.used()) == 1, "and is made up for then"


@pytest.mark.parametrize("head", [8, 0xFFFF])
def test_heads_that_do_not_exist(head: int) -> None:
    guest, queue = echo()
    queue.make_available(head)
    queue.kick()
    assert broken(guest)


def test_more_chains_than_entries() -> None:
    guest, queue = echo()
    guest.memory.write(queue.driver + 2, struct.pack("<H", 9))
    queue.kick()
    assert broken(guest)


CHAINS = {
    "loop": [(BUFFERS, 4, NEXT, 1), (BUFFERS, 4, NEXT, 0)],
    "empty loop": [(BUFFERS, 0, NEXT, 0)],
    "outside": [(BUFFERS, 4, NEXT, 8)],
    "readable last": [(BUFFERS, 4, WRITE | NEXT, 1), (BUFFERS, 4, 0, 0)],
    "no memory": [(1 << 62, 4, 0, 0)],
    "across the end": [(BUFFERS, 4, NEXT, 1), (RAM - 2, 4, WRITE, 0)],
    "across 64 bits": [(BUFFERS, 4, NEXT, 1), ((1 << 64) - 2, 4, WRITE, 0)],
    "enormous": [(BUFFERS, 0xFFFF_FFFF, 0, 0)],
    "enormous in sum": [(0, 0x80_0000, NEXT, n + 1) for n in range(7)] + [(0, 0x80_0001, 0, 0)],
    "empty table": [(BUFFERS, 0, INDIRECT, 0)],
    "odd table": [(BUFFERS, 24, INDIRECT, 0)],
    "table too long": [(BUFFERS, 16 * 9, INDIRECT, 0)],
    "table and more": [(BUFFERS, 16, INDIRECT | NEXT, 1), (BUFFERS, 4, 0, 0)],
    "table in no memory": [(1 << 40, 16, INDIRECT, 0)],
    "table in a table": [(0x1000, 16, INDIRECT, 0)],
}


@pytest.mark.parametrize("name", CHAINS)
def test_chains_that_make_no_sense(name: str) -> None:
    guest, queue = echo()
    for number, descriptor in enumerate(CHAINS[name]):
        queue.descriptor(number, *descriptor)
    queue.make_available(0)
    queue.kick()
    assert broken(guest)


def test_queues_in_no_memory() -> None:
    for offset in (0x080, 0x090, 0x0A0):
        guest, queue = echo()
        guest.put(0x030, 0)
        guest.put(0x044, 0)
        guest.put(offset + 4, 0x100)
        guest.put(0x044, 1)
        queue.add((BUFFERS, 4, 0))
        queue.kick()
        assert broken(guest)


def test_a_device_that_is_told_to_feed_itself_stops() -> None:
    """A buffer over the driver area, whose index the device thereby moves on and on."""
    guest, queue = echo()
    queue.descriptor(0, BUFFERS, 2, NEXT, 1)
    queue.descriptor(1, queue.driver + 2, 2, WRITE)
    guest.memory.write(BUFFERS, b"\x7f\x00")
    queue.make_available(0)
    queue.kick()
    assert len(guest.device.seen) <= 8  # type: ignore[attr-defined]


def test_split_and_total() -> None:
    pieces = [(100, 4), (200, 6)]
    assert total(pieces) == 10
    assert split(pieces, 0) == ([], pieces)
    assert split(pieces, 4) == ([(100, 4)], [(200, 6)])
    assert split(pieces, 7) == ([(100, 4), (200, 3)], [(203, 3)])
    assert split(pieces, 11) == (pieces, [])


def test_state_survives_json_between_requests() -> None:
    guest, queue = echo()
    for _ in range(3):
        queue.add((BUFFERS, 4, 0), (BUFFERS, 4, WRITE))
        queue.kick()
    queue.add((BUFFERS, 4, 0), (BUFFERS, 4, WRITE))
    queue.used()
    other = Guest(Echo)
    guest.copy_into(other)
    for each in (guest, other):
        each.queues[0].kick()
        assert each.queues[0].used() == [(6, 4)]
    assert other.mmio.state() == guest.mmio.state()
    with pytest.raises(BadInput):
        guest.device.load_state({"status": 0})


PIECES = st.lists(st.binary(max_size=40), min_size=1, max_size=4)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(PIECES, st.booleans()), max_size=20))
def test_any_cut_gives_the_same_answer(requests: list[tuple[list[bytes], bool]]) -> None:
    guest, queue = echo()
    for pieces, indirect in requests:
        data, at, chain = b"".join(pieces), BUFFERS, []
        for piece in pieces:
            guest.memory.write(at, piece)
            chain.append((at, len(piece), 0))
            at += len(piece) + 3
        half = len(data) // 2
        chain += [(BUFFERS + 0x1000, half, WRITE), (BUFFERS + 0x2000, len(data) - half, WRITE)]
        head = queue.add(*chain, indirect=0x8_0000 if indirect else 0)
        queue.kick()
        assert queue.used() == [(head, len(data))]
        answer = guest.memory.read(BUFFERS + 0x1000, half) + guest.memory.read(BUFFERS + 0x2000, len(data) - half)
        assert answer == data[::-1]


WORDS = st.sampled_from([0, 1, 2, 3, 4, 7, 8, 16, 0x1000, 0x1080, 0xFFFF, 0x10_0000, RAM - 1, 0xFFFF_FFFF])
TABLES = st.lists(WORDS | st.integers(0, 0xFFFF_FFFF), min_size=32, max_size=32)  # eight descriptors
HEADS = st.lists(st.integers(0, 9), min_size=8, max_size=8)


@settings(max_examples=200, deadline=None)
@given(TABLES, HEADS, st.integers(0, 9), st.booleans())
def test_nonsense_in_a_queue_never_raises_and_ends_with_a_reset(
    words: list[int], heads: list[int], available: int, holes: bool
) -> None:
    guest, queue = echo(Holes() if holes else Memory())
    guest.memory.write(queue.descriptors, struct.pack("<32I", *words))
    guest.memory.write(queue.driver + 2, struct.pack("<9H", available, *heads))
    queue.kick()
    assert guest.get(0x070) in (0x0F, 0x4F)
    queue = guest.set_up([8])[0]
    head = queue.add((BUFFERS, 4, 0), (BUFFERS, 4, WRITE))
    queue.kick()
    assert queue.used() == [(head, 4)]
