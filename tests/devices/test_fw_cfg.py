"""The firmware configuration device, driven as SeaBIOS and Linux do it."""

from __future__ import annotations

import json
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emu.devices import fw_cfg
from emu.devices.bus import PortBus
from emu.devices.fw_cfg import FwCfg
from emu.errors import BadInput

SELECT, DATA, DMA_HIGH, DMA_LOW = 0x510, 0x511, 0x514, 0x518
REQUEST_AT, BUFFER = 0x1000, 0x2000
READ, SKIP, CHOOSE, WRITE = 2, 4, 8, 16


class Memory:
    def __init__(self) -> None:
        self.bytes = bytearray(0x40000)

    def read(self, gpa: int, size: int) -> bytes:
        return bytes(self.bytes[gpa : gpa + size]).ljust(size, b"\xff")

    def write(self, gpa: int, data: bytes) -> None:
        end = min(gpa + len(data), len(self.bytes))
        if gpa < end:
            self.bytes[gpa:end] = data[: end - gpa]


class Board:
    def __init__(self) -> None:
        self.memory = Memory()
        self.device = FwCfg(self.memory)
        self.bus = PortBus()
        self.bus.register(SELECT, fw_cfg.PORTS, self.device)

    def select(self, key: int) -> None:
        self.bus.write(SELECT, 2, key)

    def read(self, size: int) -> bytes:
        return bytes(self.bus.read(DATA, 1) for _ in range(size))

    def item(self, key: int, size: int) -> bytes:
        self.select(key)
        return self.read(size)

    def dma(self, control: int, length: int, gpa: int = BUFFER, at: int = REQUEST_AT) -> int:
        """What the control field holds afterwards."""
        self.memory.write(at, struct.pack(">IIQ", control, length, gpa))
        if at >> 32:
            self.bus.write(DMA_HIGH, 4, int.from_bytes((at >> 32).to_bytes(4, "big"), "little"))
        self.bus.write(DMA_LOW, 4, int.from_bytes((at & 0xFFFFFFFF).to_bytes(4, "big"), "little"))
        return int.from_bytes(self.memory.read(at, 4), "big")

    def directory(self) -> dict[str, tuple[int, int]]:
        """Name to size and key."""
        (count,) = struct.unpack(">I", self.item(0x19, 4))
        entries = [struct.unpack(">IHH56s", self.read(64)) for _ in range(count)]
        assert all(reserved == 0 for _, _, reserved, _ in entries)
        return {name.rstrip(b"\0").decode(): (size, key) for size, key, _, name in entries}


@pytest.fixture
def board() -> Board:
    return Board()


def test_seabios_detects_the_device_and_its_dma(board: Board) -> None:
    """qemu_cfg_detect: the signature, then bit 1 of the id, then the DMA port's own signature."""
    assert board.item(0x00, 4) == b"QEMU"
    assert struct.unpack("<I", board.item(0x01, 4)) == (3,)
    assert board.bus.read(DMA_HIGH, 4).to_bytes(4, "little") == b"QEMU"
    assert board.bus.read(DMA_LOW, 4).to_bytes(4, "little") == b" CFG"
    assert bytes(board.bus.read(DMA_HIGH + n, 1) for n in range(8)) == b"QEMU CFG"


def test_numbers_are_little_endian_and_zeros_follow(board: Board) -> None:
    board.device.set(fw_cfg.RAM_SIZE, struct.pack("<Q", 128 << 20))
    board.device.set(fw_cfg.NB_CPUS, struct.pack("<H", 1))
    board.device.set(fw_cfg.IRQ0_OVERRIDE, b"\x01")
    assert struct.unpack("<Q", board.item(0x03, 8)) == (128 << 20,)
    assert board.item(0x05, 4) == b"\x01\0\0\0"
    assert board.item(0x8002, 1) == b"\x01"
    assert board.item(0x0002, 1) == b"\0", "the same number without bit 15 is another item"


def test_selecting_starts_from_the_beginning(board: Board) -> None:
    assert board.item(0, 2) == b"QE"
    assert board.read(2) == b"MU"
    assert board.item(0, 3) == b"QEM"
    assert board.item(0x4000, 4) == b"QEMU", "the old writing bit means nothing"


@pytest.mark.parametrize("key", [0x02, 0x1F, 0x20, 0x3FFF, 0xFFFF])
def test_keys_without_an_item_read_zero(board: Board, key: int) -> None:
    assert board.item(key, 3) == b"\0\0\0"


def test_files_are_sorted_whatever_the_order_they_came_in() -> None:
    orders = []
    for names in (["etc/b", "bootorder", "etc/a"], ["etc/a", "etc/b", "bootorder"]):
        board = Board()
        for name in names:
            board.device.add_file(name, name.encode() * 3)
        orders.append(board.directory())
        for name, (size, key) in board.directory().items():
            assert board.item(key, size) == name.encode() * 3
    assert orders[0] == orders[1] == {"bootorder": (27, 0x20), "etc/a": (15, 0x21), "etc/b": (15, 0x22)}


def test_a_file_can_be_replaced(board: Board) -> None:
    board.device.add_file("etc/table", b"old")
    board.device.add_file("etc/table", b"newer")
    assert board.directory() == {"etc/table": (5, 0x20)}
    assert board.item(0x20, 5) == board.device.file("etc/table") == b"newer"


def test_seabios_reads_a_file_by_dma(board: Board) -> None:
    """qemu_cfg_read_entry selects and reads in one request; the next one goes on where it ended."""
    board.device.add_file("etc/x", bytes(range(200)))
    assert board.dma(0x20 << 16 | CHOOSE | READ, 50) == 0
    assert board.memory.read(BUFFER, 51) == bytes(range(50)) + b"\0"
    assert board.dma(SKIP, 10) == 0
    assert board.dma(READ, 4) == 0
    assert board.memory.read(BUFFER, 4) == bytes(range(60, 64))
    assert board.read(1) == b"\x40", "the data port has the same position"


def test_dma_behind_the_end_reads_zeros(board: Board) -> None:
    board.memory.write(BUFFER, b"\xaa" * 16)
    assert board.dma(CHOOSE | READ, 8) == 0
    assert board.memory.read(BUFFER, 9) == b"QEMU\0\0\0\0\xaa"
    assert board.dma(0x1F << 16 | CHOOSE | READ, 2) == 0
    assert board.memory.read(BUFFER, 3) == b"\0\0M"


def test_large_transfers_are_whole(board: Board) -> None:
    data = bytes(n * 7 & 0xFF for n in range(fw_cfg.CHUNK + 5000))
    board.device.set(fw_cfg.INITRD_DATA, data)
    assert board.dma(fw_cfg.INITRD_DATA << 16 | CHOOSE | READ, len(data)) == 0
    assert board.memory.read(BUFFER, len(data)) == data


def test_a_request_above_4_gib_uses_both_halves_and_the_upper_is_used_once(board: Board) -> None:
    board.bus.write(DMA_HIGH, 4, 0x01000000)
    assert board.device.dma_high == 1
    board.bus.write(DMA_LOW, 4, 0)
    assert board.device.dma_high == 0
    assert board.dma(CHOOSE | READ, 4) == 0
    assert board.memory.read(BUFFER, 4) == b"QEMU"


def test_only_writable_files_can_be_written(board: Board) -> None:
    board.device.add_file("etc/fixed", b"abcd")
    board.device.add_file("etc/vmcoreinfo", bytes(16), writable=True)
    board.memory.write(BUFFER, b"0123456789abcdefX")
    assert board.dma(0x20 << 16 | CHOOSE | WRITE, 4) == 1
    assert board.dma(0x21 << 16 | CHOOSE | WRITE, 17) == 1
    assert board.device.file("etc/vmcoreinfo") == bytes(16)
    assert board.dma(0x21 << 16 | CHOOSE | WRITE, 8) == 0
    assert board.dma(WRITE, 8) == 0
    assert board.dma(WRITE, 1) == 1, "the file is full"
    assert board.device.file("etc/vmcoreinfo") == b"0123456701234567"
    assert board.device.file("etc/fixed") == b"abcd"


def test_nonsense_is_ignored(board: Board) -> None:
    board.select(0)
    for port, size, value in ((SELECT, 1, 5), (SELECT, 4, 5), (DATA, 1, 5), (DMA_LOW, 2, 0x10), (DMA_HIGH, 1, 1)):
        board.bus.write(port, size, value)
    assert board.read(4) == b"QEMU"
    assert board.bus.read(0x512, 2) == 0xFFFF


@pytest.mark.parametrize("key", [-1, fw_cfg.FILE_DIR, 0x20, 0x8020, 0x10000])
def test_keys_that_cannot_be_set(board: Board, key: int) -> None:
    with pytest.raises(BadInput):
        board.device.set(key, b"")


def test_files_that_cannot_be_added(board: Board) -> None:
    for name in ("", "x" * 56, "ä"):
        with pytest.raises(BadInput):
            board.device.add_file(name, b"")
    for number in range(fw_cfg.FILE_SLOTS):
        board.device.add_file(f"{number}", b"")
    with pytest.raises(BadInput, match="already"):
        board.device.add_file("more", b"")


def test_state_survives_json() -> None:
    boards = Board(), Board()
    for each in boards:
        each.device.add_file("etc/w", b"....", writable=True)
    board, other = boards
    board.memory.write(BUFFER, b"ab")
    board.dma(0x20 << 16 | CHOOSE | WRITE, 2)
    board.bus.write(DMA_HIGH, 4, 0x02000000)
    other.device.load_state(json.loads(json.dumps(board.device.state())))
    assert other.device.state() == board.device.state()
    assert other.read(2) == board.read(2) == b".."
    assert other.item(0x20, 4) == b"ab.."
    with pytest.raises(BadInput):
        other.device.load_state({})
    with pytest.raises(BadInput, match="etc/w"):
        Board().device.load_state(board.device.state())


@settings(max_examples=80, deadline=None)
@given(
    st.binary(max_size=60),
    st.lists(st.tuples(st.sampled_from(["port", "read", "skip"]), st.integers(0, 25)), max_size=12),
)
def test_ports_and_dma_walk_through_an_item_together(data: bytes, steps: list[tuple[str, int]]) -> None:
    board = Board()
    board.device.add_file("f", data)
    board.select(0x20)
    position = 0
    for how, size in steps:
        expected = data[position : position + size].ljust(size, b"\0")
        position = min(position + size, len(data))
        if how == "port":
            assert board.read(size) == expected
        else:
            board.memory.write(BUFFER, b"\xee" * size)
            assert board.dma(READ if how == "read" else SKIP, size) == 0
            assert board.memory.read(BUFFER, size) == (expected if how == "read" else b"\xee" * size)
