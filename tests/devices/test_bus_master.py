"""The bus master of an IDE channel: transfers as drivers set them up, and tables that make no sense."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emu.devices.bus import PortBus
from emu.devices.bus_master import NS_PER_BYTE, BusMaster
from emu.devices.disk import SECTOR, Disk, DiskFailed
from emu.devices.ide import IdeChannel
from emu.devices.wires import Wires
from tests.devices.test_ide import (
    ABRT,
    BASE,
    COMMAND,
    CONTROL,
    COUNT,
    DEVICE,
    DRQ,
    ERR,
    ERROR,
    HIGH,
    LOW,
    MID,
    READY,
    SECTORS,
    STATUS,
    UNC,
    Line,
    pattern,
)  # fmt: skip
from tests.devices.virtio_guest import Holes

MASTER = 0xC000  # command, status at + 2, table at + 4
START, TO_MEMORY = 0x01, 0x08
ACTIVE, FAILED, INTERRUPT = 0x01, 0x02, 0x04
READ, WRITE, READ_EXT, WRITE_EXT = 0xC8, 0xCA, 0x25, 0x35
TABLE, BUFFER = 0x1000, 0x20000
LAST = 0x8000


class Board:
    def __init__(self) -> None:
        self.now = 0
        self.line = Line()
        self.memory = Holes(1 << 20)
        self.disk = Disk.from_bytes(pattern(0, SECTORS))
        self.master = BusMaster(self.memory, lambda: self.now)
        self.channel = IdeChannel(Wires(self.line, self.master), (self.disk, None))
        self.master.serve(self.channel)
        self.bus = PortBus()
        self.bus.register(BASE, 8, self.channel)
        self.bus.register(CONTROL, 1, self.channel.control)
        self.bus.register(MASTER, 8, self.master)

    def out(self, *writes: tuple[int, int]) -> None:
        for port, value in writes:
            self.bus.write(port, 1, value)

    def table(self, *regions: tuple[int, int], at: int = TABLE) -> None:
        """gpa and bytes of each region."""
        data = b"".join(struct.pack("<IHH", gpa, size & 0xFFFF, 0) for gpa, size in regions)
        self.memory.write(at, data[:-2] + struct.pack("<H", LAST))
        self.bus.write(MASTER + 4, 4, at)

    def command(self, opcode: int, lba: int, count: int) -> None:
        self.out((DEVICE, 0xE0), (COUNT, count >> 8), (LOW, 0), (MID, 0), (HIGH, 0))
        self.out((COUNT, count & 0xFF), (LOW, lba & 0xFF), (MID, lba >> 8), (HIGH, 0), (COMMAND, opcode))

    def start(self, direction: int) -> None:
        self.out((MASTER + 2, 6), (MASTER, direction), (MASTER, direction | START))

    def run(self) -> None:
        """Until the channel has nothing more to do by itself."""
        for _ in range(10000):
            deadline = self.master.deadline()
            if deadline is None:
                return
            assert deadline >= self.now
            self.now = deadline
            self.master.tick(self.now)
        raise AssertionError("it never ends")

    def status(self) -> int:
        return self.bus.read(MASTER + 2, 1)

    def transfer(self, opcode: int, lba: int, count: int, regions: Sequence[tuple[int, int]]) -> None:
        """As Linux does: the table, the command, then the start."""
        self.table(*regions)
        direction = TO_MEMORY if opcode in (READ, READ_EXT) else 0
        self.out((MASTER + 2, 6), (MASTER, direction))
        self.command(opcode, lba, count)
        assert self.bus.read(CONTROL, 1) == READY | DRQ and not self.line.level
        self.start(direction)
        self.run()


@pytest.mark.parametrize(("opcode", "count"), [(READ, 1), (READ, 8), (READ, 256), (READ_EXT, 300), (READ_EXT, 1000)])
def test_reading(opcode: int, count: int) -> None:
    board = Board()
    regions = [(BUFFER + at, min(0x10000, count * SECTOR - at)) for at in range(0, count * SECTOR, 0x10000)]
    board.transfer(opcode, 100, count & 0xFF if opcode == READ else count, regions)
    assert board.now == count * SECTOR * NS_PER_BYTE
    assert board.line.level and board.status() == INTERRUPT
    assert board.bus.read(STATUS, 1) == READY and not board.line.level
    assert board.memory.read(BUFFER, count * SECTOR) == pattern(100, count)
    board.out((MASTER, 0), (MASTER + 2, INTERRUPT))
    assert board.status() == 0


@pytest.mark.parametrize("opcode", [WRITE, WRITE_EXT])
def test_writing_from_scattered_memory(opcode: int) -> None:
    board = Board()
    data = pattern(7000, 40)
    board.memory.write(BUFFER, data)
    sizes = [2, 510, 4096, 6, 40 * SECTOR - 4614]
    regions, at = [], 0
    for size in sizes:
        regions.append((BUFFER + at, size))
        at += size
    board.transfer(opcode, 10, 40, regions)
    assert board.status() == INTERRUPT
    assert board.disk.read(9, 42) == pattern(9) + data + pattern(50)


def test_either_may_come_first() -> None:
    board = Board()
    board.table((BUFFER, 512))
    board.start(TO_MEMORY)
    assert board.status() == ACTIVE and board.master.deadline() is None
    board.command(READ, 5, 1)
    board.run()
    assert board.memory.read(BUFFER, 512) == pattern(5)


def test_a_table_that_goes_on_behind_the_data_stays_active() -> None:
    board = Board()
    board.transfer(READ, 5, 1, [(BUFFER, 1024)])
    assert board.status() == ACTIVE | INTERRUPT
    assert board.memory.read(BUFFER, 1024) == pattern(5) + bytes(512)


def test_a_table_that_ends_before_the_data() -> None:
    board = Board()
    board.transfer(READ, 5, 2, [(BUFFER, 512)])
    assert board.status() & (ACTIVE | INTERRUPT) == 0 and not board.line.level
    board.out((CONTROL, 4), (CONTROL, 0))
    assert board.bus.read(STATUS, 1) == READY


def test_stopping_and_another_command_abandon_a_transfer() -> None:
    board = Board()
    board.table((BUFFER, 512))
    board.start(TO_MEMORY)
    board.command(READ, 5, 1)
    board.out((MASTER, TO_MEMORY))
    assert board.status() == 0 and board.master.deadline() is None
    board.start(TO_MEMORY)
    board.command(0xE5, 0, 0)  # CHECK POWER MODE
    assert board.master.deadline() is None and board.line.level
    assert board.memory.read(BUFFER, 512) == bytes(512)


def test_the_wrong_direction_moves_nothing() -> None:
    board = Board()
    board.table((BUFFER, 512))
    board.start(0)
    board.command(READ, 5, 1)
    board.run()
    assert board.status() & ACTIVE == 0
    assert board.memory.read(BUFFER, 512) == bytes(512) and board.disk.read(5, 1) == pattern(5)


def test_failures_of_drive_and_host(monkeypatch: pytest.MonkeyPatch) -> None:
    board = Board()
    board.transfer(READ, SECTORS - 40, 32, [(BUFFER, 0x4000)])
    assert board.status() == INTERRUPT
    board.table((BUFFER, 0x10000))
    board.command(READ, SECTORS - 32, 64)  # the second half is not there
    board.start(TO_MEMORY)
    board.run()
    assert board.line.level and board.bus.read(STATUS, 1) == READY | ERR and board.bus.read(ERROR, 1) == 0x10

    def fail(*arguments: object) -> bytes:
        raise DiskFailed("disk", "on fire")

    for opcode, name, error in ((READ, "read", UNC), (WRITE, "write", ABRT)):
        monkeypatch.setattr(board.disk, name, fail)
        board.transfer(opcode, 5, 1, [(BUFFER, 512)])
        assert board.line.level and board.bus.read(STATUS, 1) == READY | ERR and board.bus.read(ERROR, 1) == error


def test_tables_that_point_nowhere() -> None:
    board = Board()
    board.bus.write(MASTER + 4, 4, 0xFFFF_FFFC)  # the table itself: ones, so it ends at once
    board.command(READ, 0, 200)
    board.start(TO_MEMORY)
    board.run()
    assert board.status() & ACTIVE == 0
    board.transfer(READ, 0, 1, [(0xFFFF_FFF0, 16), (0x8000_0000, 480), (BUFFER, 16)])
    assert board.status() == INTERRUPT and board.memory.read(BUFFER, 16) == pattern(0)[:16]
    board.transfer(READ, 0, 1, [(0xFFFF_FF00, 512)])  # on to 0
    assert board.memory.read(0, 256) == pattern(0)[256:]
    board.transfer(WRITE, 3, 1, [(0x8000_0000, 512)])
    assert board.disk.read(3, 1) == b"\xff" * 512


def test_a_table_without_end_runs_in_a_circle() -> None:
    """Every entry has two bytes and none is the last: the data end, and with them the work."""
    board = Board()
    board.memory.write(0x10000, struct.pack("<IHH", BUFFER, 2, 0) * 0x2000)
    board.bus.write(MASTER + 4, 4, 0x10000)
    board.command(READ_EXT, 0, SECTORS)
    board.start(TO_MEMORY)
    board.memory.calls = 0
    steps = 0
    while board.master.deadline() is not None:
        before = board.memory.calls
        board.now += 1_000_000
        board.master.tick(board.now)
        steps += 1
        assert board.memory.calls - before <= 2 * 0x2000
    assert steps == -(-SECTORS // 32)
    assert board.status() == ACTIVE | INTERRUPT


def test_registers() -> None:
    board = Board()
    board.out((MASTER, 0xF6), (MASTER + 2, 0x60))
    assert [board.bus.read(MASTER + n, 1) for n in range(4)] == [0, 0, 0x60, 0]
    board.bus.write(MASTER + 4, 4, 0x1234_5679)
    assert board.bus.read(MASTER + 4, 4) == 0x1234_5678
    board.bus.write(MASTER + 6, 2, 0xABCD)
    assert board.bus.read(MASTER + 4, 4) == 0xABCD_5678


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from([*range(BASE, BASE + 8), CONTROL, *range(MASTER, MASTER + 8)]), st.integers(0, 255)),
        max_size=60,
    ),
    st.binary(max_size=256),
)
def test_nonsense_ends_and_state_survives_it(writes: list[tuple[int, int]], table: bytes) -> None:
    board, other = Board(), Board()
    board.memory.write(0, table * (0x10000 // max(len(table), 1)))
    for port, value in writes:
        board.out((port, value))
        if value & 3 == 0 and board.master.deadline() is not None:
            board.now = board.master.deadline() or 0
            board.master.tick(board.now)
    for device, copy in ((board.master, other.master), (board.channel, other.channel)):
        copy.load_state(json.loads(json.dumps(device.state())))
        assert copy.state() == device.state()
    assert other.master.deadline() == board.master.deadline()
    board.run()
