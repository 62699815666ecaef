"""The CD-ROM drive: packets by PIO and DMA, and what its commands answer, as drivers ask for it."""

from __future__ import annotations

import json
import struct

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from emu.devices.bus import PortBus
from emu.devices.bus_master import BusMaster
from emu.devices.disc import BLOCK, Disc
from emu.devices.disk import DiskFailed
from emu.devices.ide import IdeChannel
from emu.devices.wires import Wires
from tests.devices.test_bus_master import ACTIVE, INTERRUPT, MASTER, START, TO_MEMORY
from tests.devices.test_ide import (
    ABRT,
    BASE,
    COMMAND,
    CONTROL,
    COUNT,
    DATA,
    DEVICE,
    DRQ,
    ERR,
    ERROR,
    FEATURES,
    HIGH,
    LOW,
    MID,
    READY,
    STATUS,
    Line,
)  # fmt: skip
from tests.devices.virtio_guest import Holes

BLOCKS = 700
TABLE, BUFFER = 0x1000, 0x20000
NOT_READY, MEDIUM_ERROR, ILLEGAL, ATTENTION = 2, 3, 5, 6


def pattern(block: int, count: int = 1) -> bytes:
    return b"".join(struct.pack("<I", n) * (BLOCK // 4) for n in range(block, block + count))


class Board:
    def __init__(self) -> None:
        self.now = 0
        self.line = Line()
        self.memory = Holes(1 << 20)
        self.disc = Disc.from_bytes(pattern(0, BLOCKS))
        self.master = BusMaster(self.memory, lambda: self.now)
        self.channel = IdeChannel(Wires(self.line, self.master), (self.disc, None))
        self.master.serve(self.channel)
        self.bus = PortBus()
        self.bus.register(BASE, 8, self.channel)
        self.bus.register(CONTROL, 1, self.channel.control)
        self.bus.register(MASTER, 8, self.master)

    def out(self, *writes: tuple[int, int]) -> None:
        for port, value in writes:
            self.bus.write(port, 1, value)

    def inb(self, port: int) -> int:
        return self.bus.read(port, 1)

    def send(self, packet: bytes, limit: int = 0xFFFE, dma: bool = False) -> None:
        self.out((DEVICE, 0xA0), (FEATURES, int(dma)), (MID, limit & 0xFF), (HIGH, limit >> 8), (COMMAND, 0xA0))
        assert self.inb(CONTROL) == READY | DRQ and self.inb(COUNT) == 1 and not self.line.level
        for word in struct.unpack("<6H", packet.ljust(12, b"\0")):
            self.bus.write(DATA, 2, word)

    def answer(self) -> tuple[bytes, list[int]]:
        """What comes through the data register, and the sizes of its blocks; then the end with success."""
        data, sizes = b"", []
        while True:
            assert self.line.level
            status, reason = self.inb(STATUS), self.inb(COUNT)
            assert not self.line.level
            if not status & DRQ:
                assert (status, reason) == (READY, 3), self.inb(ERROR)
                return data, sizes
            assert reason == 2
            sizes.append(self.inb(MID) | self.inb(HIGH) << 8)
            data += b"".join(self.bus.read(DATA, 2).to_bytes(2, "little") for _ in range((sizes[-1] + 1) // 2))

    def ask(self, *packet: int) -> bytes:
        self.send(bytes(packet))
        return self.answer()[0]

    def refused(self, *packet: int) -> tuple[int, int]:
        """The sense key and code of a command that is refused."""
        self.send(bytes(packet))
        assert self.line.level and self.inb(COUNT) == 3
        assert self.inb(STATUS) == READY | ERR
        error = self.inb(ERROR)
        sense = self.ask(0x03, 0, 0, 0, 18)
        assert sense[0] == 0x70 and len(sense) == 18 and error == sense[2] << 4 | ABRT
        return sense[2], sense[12] << 8 | sense[13]

    def run(self) -> None:
        while (deadline := self.master.deadline()) is not None:
            self.now = deadline
            self.master.tick(self.now)


@pytest.fixture
def board() -> Board:
    return Board()


# --- the channel ------------------------------------------------------------------------------------------------------


def test_the_signature_tells_what_it_is(board: Board) -> None:
    assert [board.inb(port) for port in (COUNT, LOW, MID, HIGH, STATUS)] == [1, 1, 0x14, 0xEB, 0]
    board.out((MID, 0), (HIGH, 0), (COMMAND, 0xEC))
    assert board.line.level and board.inb(STATUS) == READY | ERR and board.inb(ERROR) == ABRT
    assert [board.inb(port) for port in (MID, HIGH)] == [0x14, 0xEB]
    board.out((MID, 0), (CONTROL, 4), (CONTROL, 0))
    assert [board.inb(port) for port in (MID, HIGH, STATUS, ERROR)] == [0x14, 0xEB, 0, 1]
    board.out((MID, 0), (COMMAND, 0x08))  # DEVICE RESET
    assert [board.inb(port) for port in (MID, HIGH, STATUS)] == [0x14, 0xEB, 0] and not board.line.level


def test_identify_packet_device(board: Board) -> None:
    board.out((COMMAND, 0xA1))
    assert board.inb(STATUS) == READY | DRQ
    words = [board.bus.read(DATA, 2) for _ in range(256)]
    assert board.inb(STATUS) == READY
    assert words[0] == 0x85C0 and words[49] & 0x300 == 0x300 and words[63] == 0x0407
    assert struct.pack(">20H", *words[27:47]).decode().rstrip() == "EMU CD-ROM"


@pytest.mark.parametrize("command", [0x00, 0x20, 0x30, 0xC8, 0x91, 0xFF])
def test_commands_of_disks_are_aborted(board: Board, command: int) -> None:
    board.out((COMMAND, command))
    assert board.line.level and board.inb(STATUS) == READY | ERR and board.inb(ERROR) == ABRT


def test_transfer_modes_and_power(board: Board) -> None:
    for feature, count, works in ((3, 0x22, 1), (3, 0x0C, 1), (3, 0x42, 0), (3, 0x23, 0), (0x66, 0, 1), (0x02, 0, 0)):
        board.out((FEATURES, feature), (COUNT, count), (COMMAND, 0xEF))
        assert board.inb(STATUS) == (READY if works else READY | ERR)
    for command in (0xE0, 0xE1, 0xE6):
        board.out((COMMAND, command))
        assert board.inb(STATUS) == READY
    board.out((COMMAND, 0xE5))
    assert board.inb(COUNT) == 0xFF


# --- data -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [2048, 0xFFFE, 0xFFFF, 0, 4096, 100, 3000])
def test_reading_in_blocks_of_the_host_s_size(board: Board, limit: int) -> None:
    board.send(bytes((0x28, 0, 0, 0, 1, 0x10, 0, 0, 40)), limit)
    data, sizes = board.answer()
    assert data == pattern(0x110, 40)
    most = limit & 0xFFFE or 0xFFFE
    assert set(sizes[:-1]) <= {most} and sizes[-1] <= most
    board.send(bytes((0xA8, 0, 0, 0, 0, 5, 0, 0, 0, 2)), limit)  # READ(12)
    assert board.answer()[0] == pattern(5, 2)


def test_reading_by_dma(board: Board) -> None:
    board.memory.write(TABLE, struct.pack("<IHHIHH", BUFFER, 0, 0, BUFFER + 0x10000, 0x4000, 0x8000))
    board.bus.write(MASTER + 4, 4, TABLE)
    board.out((MASTER, TO_MEMORY))
    board.send(bytes((0x28, 0, 0, 0, 0, 9, 0, 0, 40)), dma=True)
    assert not board.line.level and board.inb(CONTROL) == READY | DRQ
    board.out((MASTER, TO_MEMORY | START))
    board.run()
    assert board.line.level and board.inb(MASTER + 2) == INTERRUPT
    assert board.inb(STATUS) == READY and board.inb(COUNT) == 3
    assert board.memory.read(BUFFER, 40 * BLOCK) == pattern(9, 40)
    board.out((MASTER, 0), (MASTER + 2, INTERRUPT))
    board.out((MASTER, TO_MEMORY | START))
    board.send(bytes((0x12, 0, 0, 0, 36)), dma=True)  # a short answer: the table goes on
    board.run()
    assert board.inb(MASTER + 2) == INTERRUPT | ACTIVE and board.memory.read(BUFFER + 8, 3) == b"EMU"
    board.send(bytes((0x28, 0, 0xFF, 0, 0, 0, 0, 0, 1)), dma=True)
    assert board.inb(STATUS) == READY | ERR


def test_failures_of_the_host(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> bytes:
        raise DiskFailed("disc", "scratched")

    monkeypatch.setattr(board.disc, "read", fail)
    assert board.refused(0x28, 0, 0, 0, 0, 0, 0, 0, 1) == (MEDIUM_ERROR, 0x1100)


def test_a_command_that_is_not_waited_for(board: Board) -> None:
    board.send(bytes((0x28, 0, 0, 0, 0, 0, 0, 0, 2)), 2048)
    assert board.ask(0x25) == struct.pack(">II", BLOCKS - 1, BLOCK)
    board.out((COMMAND, 0xA0))
    board.bus.write(DATA, 2, 0)
    assert board.ask(0x00) == b""


# --- commands ---------------------------------------------------------------------------------------------------------


def test_what_is_refused(board: Board) -> None:
    assert board.refused(0x2A, 0, 0, 0, 0, 0, 0, 0, 1) == (ILLEGAL, 0x2000)  # WRITE
    assert board.refused(0x28, 0, 0, 0, BLOCKS >> 8, BLOCKS & 0xFF, 0, 0, 1) == (ILLEGAL, 0x2100)
    assert board.refused(0xA8, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF) == (ILLEGAL, 0x2100)
    assert board.refused(0x12, 1, 0, 0, 36) == (ILLEGAL, 0x2400)
    assert board.refused(0x43, 0, 9, 0, 0, 0, 0, 0, 12) == (ILLEGAL, 0x2400)
    assert board.refused(0x4A, 0, 0, 0, 0x10, 0, 0, 0, 8) == (ILLEGAL, 0x2400)
    assert board.refused(0x5A, 0, 0x3E, 0, 0, 0, 0, 0, 8) == (ILLEGAL, 0x2400)
    assert board.ask(0x03, 0, 0, 0, 18)[2] == 0  # told once


def test_what_linux_asks_for(board: Board) -> None:
    inquiry = board.ask(0x12, 0, 0, 0, 96)
    assert inquiry[0] == 5 and inquiry[1] == 0x80 and inquiry[8:36] == b"EMU     EMU CD-ROM      1.0 "
    assert board.ask(0x12, 0, 0, 0, 6) == inquiry[:6]
    assert board.ask(0x00) == b""
    assert board.ask(0x25) == struct.pack(">II", BLOCKS - 1, BLOCK)
    mode = board.ask(0x5A, 0, 0x2A, 0, 0, 0, 0, 0, 128)
    assert int.from_bytes(mode[:2], "big") == len(mode) - 2 and mode[8] == 0x2A and mode[9] == len(mode) - 10
    assert board.ask(0x4A, 1, 0, 0, 0x10, 0, 0, 0, 8) == bytes((0, 6, 4, 0x10, 0, 2, 0, 0))
    configuration = board.ask(0x46, 0, 0, 0, 0, 0, 0, 0, 200)
    assert int.from_bytes(configuration[:4], "big") == len(configuration) - 4 and configuration[7] == 8


def test_the_table_of_contents(board: Board) -> None:
    end = struct.pack(">I", BLOCKS)
    assert (
        board.ask(0x43, 0, 0, 0, 0, 0, 0, 0, 20)
        == bytes((0, 18, 1, 1)) + bytes((0, 0x14, 1, 0)) + bytes(4) + bytes((0, 0x14, 0xAA, 0)) + end
    )
    assert board.ask(0x43, 0, 0, 0, 0, 0, 0xAA, 0, 12) == bytes((0, 10, 1, 1, 0, 0x14, 0xAA, 0)) + end
    assert board.ask(0x43, 2, 0, 0, 0, 0, 1, 0, 12) == bytes((0, 18, 1, 1, 0, 0x14, 1, 0, 0, 0, 2, 0))
    session = bytes((0, 10, 1, 1, 0, 0x14, 1, 0, 0, 0, 0, 0))
    assert board.ask(0x43, 0, 1, 0, 0, 0, 0, 0, 12) == session
    assert board.ask(0x43, 0, 0, 0, 0, 0, 0, 0, 12, 0x40) == session  # as SFF-8020i says it
    raw = board.ask(0x43, 2, 2, 0, 0, 0, 0, 0, 200)
    assert [raw[at + 3] for at in range(4, len(raw), 11)] == [0xA0, 0xA1, 0xA2, 1]


def test_read_cd(board: Board) -> None:
    assert board.ask(0xBE, 0, 0, 0, 0, 3, 0, 0, 2, 0x10) == pattern(3, 2)
    assert board.ask(0xBE, 0, 0, 0, 0, 3, 0, 0, 2, 0) == b""
    assert board.refused(0xBE, 0, 0, 0, 0, 3, 0, 0, 1, 0xF8) == (ILLEGAL, 0x2400)


def test_the_tray(board: Board) -> None:
    board.ask(0x1E, 0, 0, 0, 1)  # locked
    assert board.refused(0x1B, 0, 0, 0, 2) == (ILLEGAL, 0x5302)
    board.ask(0x1E, 0, 0, 0, 0)
    board.ask(0x1B, 0, 0, 0, 2)
    for packet in ((0x00,), (0x25,), (0x28, 0, 0, 0, 0, 0, 0, 0, 1), (0x43, 0, 0, 0, 0, 0, 0, 0, 12)):
        assert board.refused(*packet) == (NOT_READY, 0x3A02)
    assert board.ask(0x4A, 1, 0, 0, 0x10, 0, 0, 0, 8)[5] == 1
    board.ask(0x1B, 0, 0, 0, 3)
    assert board.ask(0x4A, 1, 0, 0, 0x10, 0, 0, 0, 8)[4:6] == bytes((2, 2))
    assert board.refused(0x00) == (ATTENTION, 0x2800)
    assert board.ask(0x28, 0, 0, 0, 0, 0, 0, 0, 1) == pattern(0)


def test_a_disc_with_a_part_of_a_block() -> None:
    disc = Disc.from_bytes(b"\1" * 2500)
    assert disc.blocks == 2 and disc.bytes_at(2400, 200) == b"\1" * 100 + bytes(100)
    assert disc.bytes_at(1, 4095) == b"\1" * 2499 + bytes(1596)
    with pytest.raises(DiskFailed):
        disc.write(0, bytes(512))


@settings(max_examples=150, deadline=None)
@given(st.binary(min_size=12, max_size=12), st.integers(0, 0xFFFF), st.booleans(), st.binary(max_size=64))
@example(b"\x1b\0\0\0\2" + bytes(7), 0, False, b"")
def test_any_packet_ends_and_state_survives_it(packet: bytes, limit: int, dma: bool, table: bytes) -> None:
    board, other = Board(), Board()
    board.memory.write(0, table * (0x10000 // max(len(table), 1)))
    board.out((MASTER, TO_MEMORY | START))
    board.send(packet, limit, dma)
    for device, copy in ((board.master, other.master), (board.channel, other.channel)):
        copy.load_state(json.loads(json.dumps(device.state())))
        assert copy.state() == device.state()
    board.run()
    other.run()
    for _ in range(40):
        assert board.bus.read(DATA, 2) == other.bus.read(DATA, 2)
    assert board.inb(CONTROL) & 0x80 == 0
    if packet[0] == 0x1B and packet[4] & 3 == 2:  # it has opened the tray
        board.ask(0x1B, 0, 0, 0, 3)
        assert board.refused(0x00) == (ATTENTION, 0x2800)
    assert board.ask(0x25) == struct.pack(">II", BLOCKS - 1, BLOCK) or board.inb(STATUS)


def test_state_in_the_middle_of_an_answer(board: Board) -> None:
    board.send(bytes((0x28, 0, 0, 0, 0, 0, 0, 0, 3)), 2048)
    for _ in range(1500):
        board.bus.read(DATA, 2)
    other = Board()
    other.channel.load_state(json.loads(json.dumps(board.channel.state())))
    rest = b"".join(other.bus.read(DATA, 2).to_bytes(2, "little") for _ in range(3 * 1024 - 1500))
    assert rest == pattern(0, 3)[3000:]
