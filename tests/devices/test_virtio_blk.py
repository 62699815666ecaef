"""The virtio disk as Linux's virtio_blk uses it."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emu.devices.disk import SECTOR, Disk, DiskFailed
from emu.devices.virtio_blk import VirtioBlock
from tests.devices.virtio_guest import WRITE, Guest, Memory, Queue

IN, OUT, FLUSH, GET_ID = 0, 1, 4, 8
OK, IOERR, UNSUPP = 0, 1, 2
HEADER, DATA, STATUS = 0x1_0000, 0x2_0000, 0x1_0100
SECTORS = 200


class Board:
    def __init__(self) -> None:
        self.disk = Disk.from_bytes(b"".join(struct.pack("<I", n) * 128 for n in range(SECTORS)))
        self.guest = Guest(lambda memory: VirtioBlock(memory, self.disk, "serial number 0001"))
        self.queue: Queue = self.guest.set_up([128])[0]

    def request(self, kind: int, sector: int, *pieces: tuple[int, int], indirect: bool = False) -> tuple[int, int]:
        """Status and written length of a request; the pieces are what a read writes or a write reads."""
        flags = 0 if kind == OUT else WRITE
        self.guest.memory.write(HEADER, struct.pack("<IIQ", kind, 0, sector))
        self.guest.memory.write(STATUS, b"\xee")
        chain = [(HEADER, 16, 0), *((gpa, size, flags) for gpa, size in pieces), (STATUS, 1, WRITE)]
        head = self.queue.add(*chain, indirect=0x1_1000 if indirect else 0)
        self.queue.kick()
        [(used, written)] = self.queue.used()
        assert used == head
        assert self.guest.acknowledge() == 1
        return self.guest.memory.read(STATUS, 1)[0], written


@pytest.fixture
def board() -> Board:
    return Board()


def test_configuration(board: Board) -> None:
    get = board.guest.get
    assert get(0x008) == 2
    assert (get(0x100), get(0x104)) == (SECTORS, 0)
    assert get(0x10C) == 254, "segments: a queue's entries without header and status"
    assert (get(0x110, 2), get(0x112, 1), get(0x113, 1)) == (2, 16, 63)
    assert get(0x114) == 512
    assert board.guest.offered() & 0xFFFF == 1 << 2 | 1 << 4 | 1 << 6 | 1 << 9


@pytest.mark.parametrize("indirect", [False, True])
def test_read(board: Board, indirect: bool) -> None:
    status, written = board.request(IN, 7, (DATA + 0x2000, 512), (DATA, 1024), indirect=indirect)
    assert (status, written) == (OK, 1537)
    read = board.guest.memory.read
    assert read(DATA + 0x2000, 512) + read(DATA, 1024) == board.disk.read(7, 3)


@pytest.mark.parametrize("indirect", [False, True])
def test_write(board: Board, indirect: bool) -> None:
    board.guest.memory.write(DATA, b"A" * 512 + b"B" * 512)
    status, written = board.request(OUT, 7, (DATA + 512, 512), (DATA, 512), indirect=indirect)
    assert (status, written) == (OK, 1)
    assert board.disk.read(7, 2) == b"B" * 512 + b"A" * 512
    assert board.request(FLUSH, 0) == (OK, 1)


def test_id(board: Board) -> None:
    assert board.request(GET_ID, 0, (DATA, 20)) == (OK, 21)
    assert board.guest.memory.read(DATA, 20) == b"serial number 0001\0\0"


@pytest.mark.parametrize("kind", [IN, OUT])
def test_sectors_that_do_not_exist(board: Board, kind: int) -> None:
    before = board.disk.read(0, SECTORS)
    for sector, size in ((SECTORS, 512), (SECTORS - 1, 1024), (1 << 63, 512), ((1 << 64) - 1, 512), (0, 500)):
        assert board.request(kind, sector, (DATA, size)) == (IOERR, 1)
    assert board.disk.read(0, SECTORS) == before


def test_requests_that_are_not_known(board: Board) -> None:
    assert board.request(11, 0, (DATA, 512)) == (UNSUPP, 1)


def test_failures_of_the_host_reach_the_guest(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> bytes:
        raise DiskFailed("disk", "on fire")

    for name in ("read", "write", "flush"):
        monkeypatch.setattr(board.disk, name, fail)
    for kind in (IN, OUT, FLUSH):
        assert board.request(kind, 0, (DATA, 512)) == (IOERR, 1)


def test_framing_means_nothing(board: Board) -> None:
    """Header and status may share pieces with data, or be cut up (2.6.4)."""
    memory = board.guest.memory
    memory.write(DATA, struct.pack("<IIQ", OUT, 0, 5) + b"x" * 512)
    board.queue.add((DATA, 5, 0), (DATA + 5, 523, 0), (STATUS, 1, WRITE))
    memory.write(HEADER, struct.pack("<IIQ", IN, 0, 5))
    board.queue.add((HEADER, 10, 0), (HEADER + 10, 6, 0), (DATA + 0x1000, 513, WRITE))
    board.queue.kick()
    assert [written for _, written in board.queue.used()] == [1, 513]
    assert memory.read(DATA + 0x1000, 513) == b"x" * 512 + b"\0"


@pytest.mark.parametrize("pieces", [[(HEADER, 16, 0)], [(HEADER, 15, 0), (STATUS, 1, WRITE)], [(STATUS, 1, WRITE)]])
def test_requests_without_header_or_status(board: Board, pieces: list[tuple[int, int, int]]) -> None:
    board.queue.add(*pieces)
    board.queue.kick()
    assert board.guest.get(0x070) & 0x40


def test_one_access_to_memory_for_each_piece(board: Board) -> None:
    memory, pieces = board.guest.memory, [(DATA + 0x2000 * n, 4096) for n in range(20)]
    memory.write(HEADER, struct.pack("<IIQ", IN, 0, 0))
    chain = [(HEADER, 16, 0), *((gpa, size, WRITE) for gpa, size in pieces), (STATUS, 1, WRITE)]
    board.queue.add(*chain, indirect=0x1_1000)
    before = memory.calls
    board.queue.kick()
    assert memory.calls - before == 22 + 7, "ring twice, two tables, used entry and index, interrupt flag"
    assert board.queue.used() == [(0, 20 * 4096 + 1)]


def test_state_survives_json_between_requests(board: Board) -> None:
    board.guest.memory.write(DATA, b"A" * 512)
    board.request(OUT, 3, (DATA, 512))
    other = Board()
    board.guest.copy_into(other.guest)
    other.disk.load_state(board.disk.state())
    other.queue = other.guest.queues[-1]
    for each in (board, other):
        assert each.request(IN, 3, (DATA + 0x1000, 512)) == (OK, 513)
        assert each.guest.memory.read(DATA + 0x1000, 512) == b"A" * 512
    assert other.guest.mmio.state() == board.guest.mmio.state()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 150), st.integers(1, 50), st.booleans()), max_size=8))
def test_transfers_behave_as_memory(requests: list[tuple[bool, int, int, bool]]) -> None:
    board = Board()
    model = bytearray(board.disk.read(0, SECTORS))
    for stamp, (write, sector, count, indirect) in enumerate(requests):
        size = count * SECTOR
        first = size // 3
        pieces = ((DATA, first), (DATA + 0x1_0000, size - first))
        where = slice(sector * SECTOR, sector * SECTOR + size)
        if write:
            data = bytes((stamp + n) & 0xFF for n in range(size))
            board.guest.memory.write(DATA, data[:first])
            board.guest.memory.write(DATA + 0x1_0000, data[first:])
            model[where] = data
        assert board.request(OUT if write else IN, sector, *pieces, indirect=indirect)[0] == OK
        if not write:
            read: Memory = board.guest.memory
            assert read.read(DATA, first) + read.read(DATA + 0x1_0000, size - first) == model[where]
    assert board.disk.read(0, SECTORS) == model
