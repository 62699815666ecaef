"""The floppy controller, driven as its data sheet says: commands, data by DMA and through the FIFO, errors."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emu.devices.bus import PortBus
from emu.devices.dma import Dma
from emu.devices.fdc import REVOLUTION_NS, Fdc
from emu.devices.floppy import FloppyDisk
from tests.devices.virtio_guest import Memory

DOR, TDR, MSR, FIFO, DIR = 0x3F2, 0x3F3, 0x3F4, 0x3F5, 0x3F7
DSR, CCR = MSR, DIR
READ, WRITE, VERIFY = 0xE6, 0xC5, 0xF6
TO_MEMORY, FROM_MEMORY, CHECK = 0x46, 0x4A, 0x42  # modes of channel 2
BUFFER = 0x5000
SECTORS = 18


class Line:
    def __init__(self) -> None:
        self.level = False
        self.rises = 0

    def set(self, level: bool) -> None:
        self.rises += level and not self.level
        self.level = level


def numbered(sectors: int) -> bytes:
    return b"".join(struct.pack("<I", n) * 128 for n in range(sectors))


class Board:
    def __init__(self, tmp_path: Path, size: int = 2880, second: bool = False) -> None:
        image = tmp_path / "disk"
        image.write_bytes(numbered(size))
        self.now = 0
        self.line = Line()
        self.memory = Memory(1 << 20)
        self.dma = Dma(self.memory)
        disks = [FloppyDisk(image)] * (2 if second else 1)
        self.fdc = Fdc(self.line, self.dma.channel(2), lambda: self.now, disks)
        self.disk = disks[0].disk
        self.bus = PortBus()
        self.bus.register(0x00, 16, self.dma.controllers[0])
        self.bus.register(0xC0, 32, self.dma.controllers[1])
        self.bus.register(0x81, 15, self.dma.pages)
        self.bus.register(0x3F0, 6, self.fdc)
        self.bus.register(DIR, 1, self.fdc.change_port)
        self.out((0xD6, 0xC0), (0xD4, 0))

    def ready(self, rate: int = 0, dma: bool = True) -> Board:
        """Reset and set up, heads at cylinder 0."""
        self.out((DOR, 0x1C), (CCR, rate))
        self.wait()
        for _ in range(4):
            self.command(0x08)
        self.command(0x03, 0xAF, 0x02 | (not dma))
        self.command(0x07, 0)
        self.wait()
        self.command(0x08)
        return self

    def out(self, *writes: tuple[int, int]) -> None:
        for port, value in writes:
            self.bus.write(port, 1, value)

    def inb(self, port: int) -> int:
        return self.bus.read(port, 1)

    def command(self, *values: int) -> list[int]:
        """Send a command; its results, if it has them at once."""
        for value in values:
            assert self.inb(MSR) & 0xC0 == 0x80
            self.out((FIFO, value))
        return self.results()

    def results(self) -> list[int]:
        found = []
        while self.inb(MSR) & 0xD0 == 0xD0:
            found.append(self.inb(FIFO))
        return found

    def wait(self, patience: int = 1000) -> None:
        """Let time pass until there is an interrupt."""
        for _ in range(patience):
            if self.line.level:
                return
            deadline = self.fdc.deadline()
            assert deadline is not None and deadline > self.now
            self.now = deadline
            self.fdc.tick(self.now)
        raise AssertionError("no interrupt")

    def program(self, mode: int, size: int, address: int = BUFFER) -> None:
        self.out((0x0A, 6), (0x0C, 0), (0x0B, mode), (0x04, address & 0xFF), (0x04, address >> 8 & 0xFF))
        self.out((0x81, address >> 16), (0x05, size - 1 & 0xFF), (0x05, size - 1 >> 8), (0x0A, 2))

    def move(
        self, opcode: int, c: int, h: int, r: int, eot: int = SECTORS, n: int = 2, length: int = 0xFF
    ) -> list[int]:
        assert self.command(opcode, h << 2, c, h, r, n, eot, 0x1B, length) == []
        self.wait()
        return self.results()

    def seek(self, cylinder: int) -> list[int]:
        self.command(0x0F, 0, cylinder)
        self.wait()
        return self.command(0x08)


def test_a_reset_ends_with_an_interrupt_for_each_drive(tmp_path: Path) -> None:
    board = Board(tmp_path)
    assert board.inb(MSR) == 0 and not board.line.level
    board.out((DOR, 0x0C))
    assert board.inb(MSR) == 0x80 and not board.line.level
    board.wait()
    assert [board.command(0x08) for _ in range(4)] == [[0xC0 | n, 0] for n in range(4)]
    assert not board.line.level
    assert board.command(0x08) == [0x80]  # nothing to tell
    board.out((DSR, 0x80))  # resets, too
    board.wait()
    assert board.command(0x08) == [0xC0, 0]
    board.command(0x13, 0, 0x10, 0)  # no polling, locked against the reset
    board.command(0x94)
    board.out((DOR, 0x08), (DOR, 0x0C))
    board.fdc.tick(1 << 40)
    assert not board.line.level


def test_without_the_gate_there_is_no_interrupt(tmp_path: Path) -> None:
    board = Board(tmp_path)
    board.out((DOR, 0x04))
    board.fdc.tick(1 << 40)
    assert not board.line.level
    board.out((DOR, 0x0C))
    assert board.line.level


def test_heads_move(tmp_path: Path) -> None:
    board = Board(tmp_path).ready()
    board.command(0x0F, 0x04, 40)
    assert board.inb(MSR) == 0x81  # drive 0 is busy, the controller is not
    board.wait()
    assert board.command(0x08) == [0x20, 40]
    assert board.inb(MSR) == 0x80
    assert board.command(0x04, 0) == [0x28]
    board.command(0xCF, 0, 5)  # RELATIVE SEEK
    board.wait()
    assert board.command(0x08) == [0x20, 45]
    board.command(0x8F, 0, 44)
    board.wait()
    assert board.command(0x08) == [0x20, 1]
    board.command(0x07, 0)
    board.wait()
    assert board.command(0x08) == [0x20, 0]
    assert board.command(0x04, 4) == [0x3C]  # over track 0
    board.command(0x07, 1)  # no such drive: no track 0
    board.wait()
    assert board.command(0x08) == [0x71, 0]


def test_a_step_tells_that_a_disk_is_there(tmp_path: Path) -> None:
    board = Board(tmp_path)
    board.out((DOR, 0x1C))
    assert board.inb(DIR) == 0x80
    board.ready()
    assert board.inb(DIR) == 0
    board.out((DOR, 0x2D))  # drive 1, which does not exist
    assert board.inb(DIR) == 0x80


@pytest.mark.parametrize(("head", "sector", "count"), [(0, 1, 1), (1, 18, 1), (0, 5, 9), (0, 17, 4), (0, 1, 36)])
def test_reading_by_dma(tmp_path: Path, head: int, sector: int, count: int) -> None:
    """With both sides a read goes on at sector 1 of head 1; the terminal count ends it."""
    board = Board(tmp_path).ready()
    board.seek(33)
    board.program(TO_MEMORY, 512 * count)
    first = (33 * 2 + head) * SECTORS + sector - 1
    results = board.move(READ, 33, head, sector)
    assert board.memory.read(BUFFER, 512 * count) == board.disk.read(first, count)
    assert board.inb(0x08) & 4 and not board.line.level
    cylinder, track = divmod(first + count, 2 * SECTORS)
    head, sector = divmod(track, SECTORS)
    assert results == [head << 2, 0, 0, cylinder, head, sector + 1, 2]


def test_the_last_sector_without_terminal_count(tmp_path: Path) -> None:
    board = Board(tmp_path).ready()
    board.program(TO_MEMORY, 0x4000)
    assert board.move(0x46, 0, 0, 17)[:3] == [0x40, 0x80, 0]  # one side: the end of the cylinder comes first
    assert board.memory.read(BUFFER, 1024) == board.disk.read(16, 2)


def test_a_count_in_the_middle_of_a_sector(tmp_path: Path) -> None:
    board = Board(tmp_path).ready()
    board.program(TO_MEMORY, 600)
    assert board.move(READ, 0, 0, 1)[:3] == [0, 0, 0]
    assert board.memory.read(BUFFER, 1024) == board.disk.read(0, 2)[:600] + bytes(424)
    board.memory.write(BUFFER, b"x" * 1024)
    board.program(FROM_MEMORY, 600)
    assert board.move(WRITE, 0, 0, 3) == [0, 0, 0, 0, 0, 5, 2]
    assert board.disk.read(2, 2) == b"x" * 600 + bytes(424)  # filled up with zeros


def test_verify(tmp_path: Path) -> None:
    board = Board(tmp_path).ready()
    assert board.move(VERIFY, 0, 0, 1, 9)[0] & 0xC0 == 0
    assert board.move(VERIFY, 0, 0, 1, 19)[:2] == [0x40, 0x04]
    board.command(VERIFY, 0x80, 0, 0, 5, 2, 18, 0x1B, 3)  # three sectors
    board.wait()
    assert board.results() == [0, 0, 0, 0, 0, 8, 2]


@pytest.mark.parametrize(
    ("place", "errors"),
    [
        ((0, 0, 19), (0x04, 0x00)),  # no such sector
        ((0, 0, 0), (0x04, 0x00)),
        ((1, 0, 1), (0x04, 0x10)),  # the heads are elsewhere
    ],
)
def test_sectors_that_are_not_there(tmp_path: Path, place: tuple[int, int, int], errors: tuple[int, int]) -> None:
    board = Board(tmp_path).ready()
    board.program(TO_MEMORY, 512)
    results = board.move(READ, *place, eot=255)
    assert results[0] & 0xC0 == 0x40 and tuple(results[1:3]) == errors
    assert board.memory.read(BUFFER, 512) == bytes(512)


def test_a_disk_that_cannot_be_read(tmp_path: Path) -> None:
    board = Board(tmp_path).ready()
    board.program(TO_MEMORY, 512)
    board.out((CCR, 2))  # another data rate
    assert board.move(READ, 0, 0, 1)[:2] == [0x40, 0x01]
    board.out((CCR, 0))
    assert board.move(READ & ~0x40, 0, 0, 1)[:2] == [0x40, 0x01]  # single density
    assert board.move(READ, 0, 0, 1, n=3)[:2] == [0x40, 0x04]  # 1024 bytes
    board.command(READ, 1, 0, 0, 1, 2, 18, 0x1B, 0xFF)  # no such drive
    board.wait()
    assert board.results()[:2] == [0x41, 0x01]
    board.command(0x4A, 0)  # READ ID
    board.wait()
    assert board.results() == [0, 0, 0, 0, 0, 1, 2]


def test_dma_that_does_not_come(tmp_path: Path) -> None:
    board = Board(tmp_path).ready()
    begin = board.now
    assert board.move(READ, 0, 0, 1)[:2] == [0x40, 0x10]  # overrun
    assert REVOLUTION_NS <= board.now - begin < 2 * REVOLUTION_NS
    board.command(READ, 0, 0, 0, 1, 2, 18, 0x1B, 0xFF)
    board.fdc.tick(board.now + 1_000_000)
    assert board.inb(0x08) & 0x40  # it asks
    board.program(TO_MEMORY, 512)
    board.wait()
    assert board.results()[:2] == [0, 0]


def test_data_through_the_fifo(tmp_path: Path) -> None:
    board = Board(tmp_path).ready(dma=False)
    board.command(0x46, 0, 0, 0, 3, 2, 4, 0x1B, 0xFF)
    data = b""
    for _ in range(1024):
        board.wait()
        assert board.inb(MSR) & 0xF0 == 0xF0
        data += bytes([board.inb(FIFO)])
    assert data == board.disk.read(2, 2)
    board.wait()
    assert board.results()[:2] == [0x40, 0x80]  # EOT, and nobody said that this was all
    board.command(0x45, 0, 0, 0, 3, 2, 3, 0x1B, 0xFF)
    for value in range(512):
        board.wait()
        assert board.inb(MSR) & 0xF0 == 0xB0
        board.out((FIFO, value & 0xFF))
    board.wait()
    board.results()
    assert board.disk.read(2, 1) == bytes(range(256)) * 2


def test_formatting(tmp_path: Path) -> None:
    board = Board(tmp_path).ready()
    board.seek(7)
    board.memory.write(BUFFER, b"".join(bytes((7, 1, r, 2)) for r in range(1, 19)))
    board.program(FROM_MEMORY, 4 * 18)
    board.command(0x4D, 4, 2, 18, 0x6C, 0xF6)
    board.wait()
    assert board.results()[:3] == [4, 0, 0]
    assert board.disk.read(15 * 18, 18) == b"\xf6" * 512 * 18
    assert board.disk.read(15 * 18 - 1, 1) == numbered(2880)[(15 * 18 - 1) * 512 :][:512]


def test_what_kind_of_controller_it_is(tmp_path: Path) -> None:
    """The order in which Linux asks."""
    board = Board(tmp_path).ready()
    board.command(0x13, 0, 0x5A, 3)
    assert board.command(0x0E) == [0, 0, 0, 0, 0xAF, 0x02, 0, 0, 0x5A, 3]
    assert board.command(0x12, 0x80) == []
    assert board.command(0x14) == [0x00]
    assert board.command(0x94) == [0x10]
    assert board.command(0x18) == [0x80]  # PART ID: not an 82078
    assert board.command(0x10) == [0x90]
    assert board.inb(DOR) == 0x1C and board.inb(TDR) == 0


def test_implied_seek(tmp_path: Path) -> None:
    board = Board(tmp_path).ready()
    board.command(0x13, 0, 0x40, 0)
    board.program(TO_MEMORY, 512)
    assert board.move(READ, 50, 0, 1)[:3] == [0, 0, 0]
    assert board.memory.read(BUFFER, 512) == board.disk.read(50 * 36, 1)


def test_one_side(tmp_path: Path) -> None:
    board = Board(tmp_path, 320).ready(rate=2)
    board.program(TO_MEMORY, 512)
    assert board.move(READ, 0, 1, 1, 8)[:2] == [0x44, 0x01]
    assert board.move(READ & ~0x80, 0, 0, 8, 7)[:2] == [0x00, 0x00]


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_whatever_is_written_ends(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Any commands and registers: each callback does little, and a reset always works. State follows."""
    board = Board(tmp_path_factory.mktemp("disk"), 320, second=True).ready(rate=2, dma=data.draw(st.booleans()))
    ports = st.sampled_from([FIFO] * 12 + [DOR, DSR, CCR, 0x0A, 0x0B, 0x0F, 0x08])
    for _ in range(40):
        for port, value in data.draw(st.lists(st.tuples(ports, st.integers(0, 255)), max_size=12)):
            board.out((port, value))
        calls = board.memory.calls
        board.inb(FIFO)
        deadline = board.fdc.deadline()
        if deadline is not None:
            assert deadline >= board.now
            board.now = deadline
            board.fdc.tick(board.now)
        assert board.memory.calls - calls <= 4
    other = Board(tmp_path_factory.mktemp("disk"), 320, second=True)
    other.fdc.load_state(json.loads(json.dumps(board.fdc.state())))
    assert other.fdc.state() == board.fdc.state()
    assert other.fdc.deadline() == board.fdc.deadline()
    board.out((DOR, 0), (DOR, 0x0C))
    board.line.set(False)
    board.fdc.tick(board.now + 1_000_000)
    assert board.inb(MSR) == 0x80


def test_state_in_the_middle_of_a_transfer(tmp_path: Path) -> None:
    board = Board(tmp_path).ready()
    board.program(TO_MEMORY, 2048)
    board.command(READ, 0, 0, 0, 1, 2, 18, 0x1B, 0xFF)
    deadline = board.fdc.deadline()
    assert deadline is not None
    board.now = deadline
    board.fdc.tick(board.now)
    other = Board(tmp_path)
    other.now = board.now
    other.fdc.load_state(json.loads(json.dumps(board.fdc.state())))
    for one, copy in zip(
        (*board.dma.controllers, board.dma.pages), (*other.dma.controllers, other.dma.pages), strict=True
    ):
        copy.load_state(one.state())
    other.wait()
    assert other.results() == [0, 0, 0, 0, 0, 5, 2]
    assert other.memory.read(BUFFER, 2048) == bytes(512) + other.disk.read(1, 3)


def test_a_reset_of_the_machine(tmp_path: Path) -> None:
    board = Board(tmp_path)
    power_up = board.fdc.state()
    board.ready()
    board.command(0x07, 0)
    board.command(READ, 0, 0, 0, 1, 2, 18, 0x1B, 0xFF)
    board.wait()
    assert board.line.level and board.fdc.deadline() is not None
    board.fdc.machine_reset(power_up)
    assert not board.line.level and board.fdc.deadline() is None
    assert board.inb(DOR) == 0 and board.fdc.state() == power_up
