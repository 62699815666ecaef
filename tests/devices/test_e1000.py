"""The 82540EM, with a driver's side made by hand from Intel's manual."""

from __future__ import annotations

import json
import random
import struct
import zlib

import pytest

from emu.devices.e1000 import E1000, REGISTERS_SIZE
from emu.devices.network import Cable, Network
from tests.devices.network_guest import BROADCAST, MAC, OTHER, Recorder, frame, ip, sum16, udp
from tests.devices.virtio_guest import Holes, Line, Memory

CTRL, STATUS, EECD, EERD, MDIC, ICR, ITR, ICS, IMS, IMC = 0, 8, 0x10, 0x14, 0x20, 0xC0, 0xC4, 0xC8, 0xD0, 0xD8
RCTL, TCTL = 0x100, 0x400
RDBAL, RDLEN, RDH, RDT = 0x2800, 0x2808, 0x2810, 0x2818
TDBAL, TDLEN, TDH, TDT = 0x3800, 0x3808, 0x3810, 0x3818
SENT, EMPTY, LINK, FEW, RECEIVED = 1, 2, 4, 0x10, 0x80
SEND_RING, RECEIVE_RING, SEND_BUFFERS, RECEIVE_BUFFERS = 0x1000, 0x2000, 0x1_0000, 0x8_0000
EOP, FCS, REPORT, DEXT, VLE, TSE = 1, 2, 8, 0x20, 0x40, 4


class Board:
    """A card whose driver has set up two rings of ``size`` descriptors."""

    def __init__(self, size: int = 16, memory: Memory | None = None, network: Network | None = None) -> None:
        self.memory = memory or Memory()
        self.network = network or Recorder()
        self.cable = Cable(self.network)
        self.line = Line()
        self.now = 0
        self.card = E1000(self.line, self.memory, lambda: self.now, self.cable, MAC)
        self.size = size
        self.card.set_master(True)
        for register, value in ((TDBAL, SEND_RING), (TDLEN, 16 * size), (RDBAL, RECEIVE_RING), (RDLEN, 16 * size)):
            self.put(register, value)
        for number in range(size):
            self.memory.write(RECEIVE_RING + 16 * number, struct.pack("<QQ", RECEIVE_BUFFERS + 2048 * number, 0))
        self.put(TCTL, 0x4010A)
        self.put(RCTL, 0x8002)  # enabled, broadcasts, buffers of 2048 bytes
        self.put(RDT, size - 1)
        self.put(IMS, SENT | LINK | RECEIVED)
        self.tail = 0

    def get(self, register: int) -> int:
        return self.card.read(register, 4)

    def put(self, register: int, value: int) -> None:
        self.card.write(register, 4, value)

    def descriptor(self, low: int, high: int) -> None:
        self.memory.write(SEND_RING + 16 * self.tail, struct.pack("<QQ", low, high))
        self.tail = (self.tail + 1) % self.size

    def legacy(self, data: bytes, command: int = EOP | REPORT, start: int = 0, at: int = 0, tag: int = 0) -> None:
        buffer = SEND_BUFFERS + 4096 * self.tail
        self.memory.write(buffer, data)
        self.descriptor(buffer, len(data) | at << 16 | command << 24 | start << 40 | tag << 48)

    def context(self, command: int, header: int, segment: int, payload: int, sums: bytes) -> None:
        low = int.from_bytes(sums, "little")
        self.descriptor(low, payload | (command | DEXT) << 24 | header << 40 | segment << 48)

    def data(self, data: bytes, command: int = EOP | REPORT, options: int = 0, tag: int = 0) -> None:
        buffer = SEND_BUFFERS
        self.memory.write(buffer, data)
        self.descriptor(buffer, len(data) | 1 << 20 | (command | DEXT) << 24 | options << 40 | tag << 48)

    def go(self) -> None:
        self.put(TDT, self.tail)

    def run(self, until: int) -> int:
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

    def sent(self) -> list[bytes]:
        assert isinstance(self.network, Recorder)
        return self.network.frames

    def receive_descriptor(self, number: int) -> tuple[int, int, int, int]:
        """Length, status, errors, VLAN tag."""
        descriptor = self.memory.read(RECEIVE_RING + 16 * number, 16)
        length, _, status, errors, tag = struct.unpack_from("<HHBBH", descriptor, 8)
        return length, status, errors, tag


# --- registers


def test_what_drivers_look_for_first() -> None:
    board = Board()
    assert board.get(STATUS) == 0x8008_0783  # full duplex, link up, a gigabit
    assert struct.pack("<II", board.get(0x5400), board.get(0x5404)) == MAC + b"\0\x80"
    assert Board(network=Network()).get(STATUS) == 0x8008_0781


def read_eeprom_by_wires(board: Board, word: int) -> int:
    """Microwire as Linux does it: the clock rises in the middle of each bit."""

    def clock(bit: int) -> int:
        for value in (0x42 | bit << 2, 0x43 | bit << 2, 0x42 | bit << 2):
            board.put(EECD, value)
        return board.get(EECD) >> 3 & 1

    board.put(EECD, 0x40)
    assert board.get(EECD) & 0x180 == 0x180  # granted, present
    board.put(EECD, 0x42)
    for place in range(8, -1, -1):
        clock((0b110 << 6 | word) >> place & 1)
    value = 0
    for _ in range(16):
        value = value << 1 | clock(0)
    board.put(EECD, 0x40)
    return value


def test_the_eeprom_by_wires_and_by_its_register() -> None:
    board = Board()
    words = [read_eeprom_by_wires(board, number) for number in range(64)]
    assert struct.pack("<3H", *words[:3]) == MAC
    assert sum(words) & 0xFFFF == 0xBABA
    for number in (0, 2, 0x0D, 0x3F):
        board.put(EERD, number << 8 | 1)
        assert board.get(EERD) == words[number] << 16 | number << 8 | 0x10
    board.put(EERD, 0x80 << 8 | 1)
    assert board.get(EERD) >> 16 == 0xFFFF  # there is no such word


def phy(board: Board, register: int, value: int | None = None) -> int:
    operation = 2 << 26 if value is None else 1 << 26 | value
    board.put(MDIC, operation | 1 << 21 | register << 16)
    result = board.get(MDIC)
    assert result & 1 << 28 and not result & 1 << 30
    return result & 0xFFFF


def test_the_phy() -> None:
    board = Board()
    assert (phy(board, 2) << 16 | phy(board, 3)) & ~15 == 0x0141_0C20
    assert phy(board, 1) & 0x24 == 0x24  # link, negotiated
    phy(board, 9, 0x0200)
    assert phy(board, 9) == 0x0200
    phy(board, 0, 0x8000)  # reset
    assert (phy(board, 0), phy(board, 9)) == (0x1140, 0x0300)
    assert board.get(ICR) == LINK
    phy(board, 0, 0x1340)  # negotiates again, which is over at once
    assert (phy(board, 0), board.get(ICR)) == (0x1140, LINK)
    board.put(MDIC, 2 << 26 | 2 << 21 | 1 << 16)
    assert board.get(MDIC) & 1 << 30  # nobody at address 2
    assert phy(Board(network=Network()), 1) & 0x24 == 0


def test_reset_forgets_all_but_the_address() -> None:
    board = Board()
    board.put(0x5400, 5)
    board.put(CTRL, 1 << 26)
    assert [board.get(register) for register in (RCTL, TCTL, TDBAL, RDT, IMS)] == [0] * 5
    assert board.get(0x5400) == int.from_bytes(MAC[:4], "little")
    assert not board.get(CTRL) & 1 << 26


def test_narrow_accesses_and_registers_that_are_not_there() -> None:
    board = Board()
    assert [board.card.read(STATUS + n, 1) for n in range(4)] == [0x83, 7, 8, 0x80]
    board.card.write(RCTL, 1, 0)
    assert board.get(RCTL) == 0x8002
    for offset in range(0, REGISTERS_SIZE, 4):
        board.card.read(offset, 4)


def test_the_ports_reach_the_same_registers() -> None:
    board = Board()
    board.card.ports.write(0, 4, RCTL)
    assert (board.card.ports.read(0, 4), board.card.ports.read(4, 4)) == (RCTL, 0x8002)
    board.card.ports.write(4, 4, 0)
    assert board.get(RCTL) == 0
    board.card.ports.write(0, 4, 0xFFFF_FFFF)
    board.card.ports.write(4, 4, 0xFFFF_FFFF)
    assert board.card.ports.read(4, 1) == 0


# --- interrupts


def test_causes_mask_and_line() -> None:
    board = Board()
    board.put(ICS, FEW)
    assert not board.line.level  # masked
    board.put(IMS, FEW)
    assert board.line.level and board.get(IMS) == SENT | LINK | RECEIVED | FEW
    board.put(IMC, 0xFFFF_FFFF)
    assert not board.line.level
    board.put(IMS, FEW | LINK)
    board.put(ICS, LINK)
    board.put(ICR, FEW)
    assert board.line.level  # the other one is still there
    assert board.get(ICR) == LINK
    assert not board.line.level and board.get(ICR) == 0


def test_interrupts_keep_their_distance() -> None:
    board = Board()
    board.put(ITR, 1000)
    board.put(ICS, LINK)
    assert board.line.level
    board.get(ICR)
    board.put(ICS, LINK)
    assert not board.line.level
    board.run(255_999)
    assert not board.line.level
    board.run(256_000)
    assert board.line.level
    board.get(ICR)
    board.run(10**9)
    board.put(ICS, LINK)
    assert board.line.level


# --- sending


def test_a_legacy_descriptor() -> None:
    board = Board()
    board.legacy(frame(OTHER, MAC))
    board.go()
    assert board.sent() == []
    board.run(10_000)
    assert board.sent() == [frame(OTHER, MAC)]
    assert board.memory.read(SEND_RING + 12, 1) == b"\1"
    assert (board.get(TDH), board.get(ICR)) == (1, SENT | EMPTY)
    assert board.get(0x4080) == 1 and board.get(0x4080) == 0  # good packets, cleared by reading
    assert (board.get(0x4090), board.get(0x4094), board.get(0x4090)) == (64, 0, 0)


def test_a_frame_in_pieces_with_an_inserted_checksum() -> None:
    board = Board()
    payload = random.Random(1).randbytes(101)
    whole = frame(OTHER, MAC, bytes(2) + payload)
    for piece in (whole[:20], whole[20:21], b""):
        board.legacy(piece, command=0)
    board.legacy(whole[21:], command=EOP | 4, start=16, at=14)
    board.go()
    board.run(10_000)
    assert board.sent() == [whole[:14] + sum16(payload).to_bytes(2, "big") + payload]
    assert board.get(ICR) == EMPTY  # nothing was to be reported


def test_checksums_of_a_data_descriptor() -> None:
    board = Board()
    datagram = udp(b"hello, world!", 1000, 2000)
    packet = ip(datagram, 17)
    pseudo = packet[12:20] + b"\0\x11" + len(datagram).to_bytes(2, "big")
    partial = ~sum16(pseudo) & 0xFFFF
    given = bytearray(frame(OTHER, MAC, packet, 0x0800))
    given[24:26] = bytes(2)
    given[40:42] = partial.to_bytes(2, "big")
    board.context(0, 0, 0, 0, struct.pack("<BBHBBH", 14, 24, 33, 34, 40, 0))
    board.data(bytes(given), options=3)
    board.go()
    board.run(10_000)
    expected = bytearray(frame(OTHER, MAC, packet, 0x0800)).ljust(60, b"\0")
    expected[40:42] = sum16(pseudo + datagram).to_bytes(2, "big")
    assert board.sent() == [bytes(expected)]


def test_a_long_frame_is_cut_into_segments() -> None:
    board = Board()
    body = random.Random(2).randbytes(3500)
    tcp = struct.pack(">HHIIBBHHH", 1000, 80, 0xFFFF_FF00, 7, 0x50, 0x19, 8192, 0, 0)  # FIN, PSH, ACK
    packet = ip(tcp + body, 6)
    given = bytearray(frame(OTHER, MAC, packet, 0x0800))
    given[16:18] = given[24:26] = bytes(2)
    given[50:52] = (~sum16(packet[12:20] + b"\0\6") & 0xFFFF).to_bytes(2, "big")
    board.context(1 | 2 | TSE, 54, 1460, len(body), struct.pack("<BBHBBH", 14, 24, 33, 34, 50, 0))
    board.data(bytes(given), command=EOP | REPORT | TSE, options=3)
    board.go()
    board.run(100_000)
    assert [len(data) for data in board.sent()] == [54 + 1460, 54 + 1460, 54 + 580]
    assert b"".join(data[54:] for data in board.sent()) == body
    for number, data in enumerate(board.sent()):
        header, segment = data[14:34], data[34:]
        assert sum16(header) == 0
        assert int.from_bytes(header[2:4], "big") == len(data) - 14
        assert int.from_bytes(header[4:6], "big") == 1 + number
        assert sum16(header[12:20] + b"\0\6" + len(segment).to_bytes(2, "big") + segment) == 0
        assert int.from_bytes(segment[4:8], "big") == (0xFFFF_FF00 + 1460 * number) % (1 << 32)
        assert segment[13] == (0x19 if number == 2 else 0x10)


def test_vlan_tags_are_put_in_and_taken_out() -> None:
    board = Board()
    board.put(CTRL, board.get(CTRL) | 1 << 30)
    board.put(0x38, 0x8100)
    board.legacy(frame(OTHER, MAC), command=EOP | VLE, tag=0x1234)
    board.go()
    board.run(10_000)
    tagged = frame(OTHER, MAC)[:12] + b"\x81\0\x12\x34" + frame(OTHER, MAC)[12:]
    assert board.sent() == [tagged]
    board.network.deliver(frame()[:12] + b"\x81\0\x01\x23" + frame()[12:], board.now)
    board.run(20_000)
    assert board.receive_descriptor(0) == (64, 0x0F, 0, 0x123)
    assert board.memory.read(RECEIVE_BUFFERS, 60) == frame()


def test_frames_leave_at_the_speed_of_the_cable() -> None:
    board = Board(size=256)
    for _ in range(200):
        board.legacy(frame(OTHER, MAC, bytes(1500)))
    board.go()
    assert board.run(10**9) <= 200 // 64 + 3
    assert isinstance(board.network, Recorder)
    assert len(board.network.sent) == 200
    assert board.network.sent[-1][0] > 128 * 1538 * 8


def test_nothing_moves_without_bus_mastering() -> None:
    board = Board()
    board.card.set_master(False)
    board.legacy(frame(OTHER, MAC))
    board.go()
    board.run(10_000)
    assert board.sent() == []
    board.card.set_master(True)
    board.run(20_000)
    assert board.sent() == [frame(OTHER, MAC)]


# --- receiving


def test_a_frame_comes_in_with_its_fcs() -> None:
    board = Board()
    board.network.deliver(frame(), 0)
    board.run(10_000)
    assert board.receive_descriptor(0) == (64, 0x07, 0, 0)  # done, end, no checksums looked at
    data = board.memory.read(RECEIVE_BUFFERS, 64)
    assert data == frame() + zlib.crc32(frame()).to_bytes(4, "little")
    assert (board.get(RDH), board.line.level, board.get(ICR)) == (1, True, RECEIVED)


def test_fcs_is_stripped_and_large_frames_use_several_buffers() -> None:
    board = Board()
    board.put(RCTL, 0x0403_8002)  # strip, buffers of 256 bytes
    data = frame(payload=random.Random(3).randbytes(600))
    board.network.deliver(data, 0)
    board.run(20_000)
    assert [board.receive_descriptor(n)[:2] for n in range(4)] == [(256, 5), (256, 5), (102, 7), (0, 0)]
    pieces = [board.memory.read(RECEIVE_BUFFERS + 2048 * n, size) for n, size in enumerate((256, 256, 102))]
    assert b"".join(pieces) == data


def test_frames_wait_until_there_is_a_buffer() -> None:
    board = Board(size=8)
    for number in range(10):
        board.network.deliver(frame(payload=bytes((number,)) * 46), 0)
    board.run(100_000)
    assert board.get(RDH) == 7 and board.get(ICR) & (RECEIVED | FEW) == RECEIVED | FEW
    board.put(RDT, 2)
    assert board.get(RDH) == 2
    assert [board.memory.read(RECEIVE_BUFFERS + 2048 * n + 14, 1)[0] for n in (7, 0, 1)] == [7, 8, 9]


def test_a_reset_loses_what_waits() -> None:
    board = Board()
    board.put(RDT, 0)
    board.network.deliver(frame(), 0)
    board.run(10_000)
    board.put(CTRL, 1 << 26)
    for register, value in ((RDBAL, RECEIVE_RING), (RDLEN, 256), (RCTL, 0x8002), (RDT, 15)):
        board.put(register, value)
    assert board.get(RDH) == 0


@pytest.mark.parametrize(
    ("destination", "rctl", "taken"),
    [
        (MAC, 0x8002, True),
        (bytes.fromhex("525400123457"), 0x8002, False),
        (bytes.fromhex("525400123457"), 0x800A, True),  # all unicast
        (BROADCAST, 0x8002, True),
        (BROADCAST, 0x0002, False),
        (bytes.fromhex("01005e000001"), 0x8002, False),
        (bytes.fromhex("01005e000001"), 0x8012, True),  # all multicast
        (bytes.fromhex("01005e0000fb"), 0x8002, True),  # by the hash
        (MAC, 0x8000, False),  # disabled
    ],
)
def test_filters(destination: bytes, rctl: int, taken: bool) -> None:
    board = Board()
    bits = 0xFB00 >> 4
    board.put(0x5200 + 4 * (bits >> 5), 1 << (bits & 31))
    board.put(RCTL, rctl)
    board.network.deliver(frame(destination), 0)
    board.run(10_000)
    assert bool(board.receive_descriptor(0)[1]) is taken


def test_long_frames_only_where_they_are_allowed() -> None:
    board = Board()
    board.network.deliver(frame(payload=bytes(1600)), 0)
    board.run(100_000)
    assert board.get(RDH) == 0
    board.put(RCTL, 0x8022)
    board.network.deliver(frame(payload=bytes(1600)), board.now)
    board.run(200_000)
    assert board.receive_descriptor(0)[0] == 1618


# --- drivers that mean no good


@pytest.mark.parametrize("tail", [16, 17, 0xFFFF])
def test_a_tail_outside_of_its_ring_does_nothing(tail: int) -> None:
    board = Board()
    board.put(TDT, tail)
    board.put(RDT, tail)
    board.network.deliver(frame(), 0)
    assert board.run(10**9) == 1
    assert board.sent() == []


def test_a_ring_without_an_end_of_frame() -> None:
    board = Board()
    for _ in range(1000):
        for _ in range(15):
            board.legacy(bytes(4000), command=0)
        board.go()
        board.run(board.now + 1_000_000)
    assert len(board.card.transmitter.frame) < 1 << 17 and board.sent() == []


def test_a_long_frame_with_tiny_segments() -> None:
    board = Board()
    board.context(1 | 2 | TSE, 54, 1, 4000, struct.pack("<BBHBBH", 14, 24, 33, 34, 50, 0))
    board.data(bytes(4000), command=EOP | TSE)
    board.context(1 | 2 | TSE, 0, 0, 4000, bytes(8))
    board.data(bytes(4000), command=EOP | TSE)
    board.context(1 | TSE, 255, 9000, 4000, b"\xff" * 8)
    board.data(bytes(4000), command=EOP | TSE, options=3)
    board.go()
    board.run(10**9)
    assert len(board.sent()) == 1  # the last one, as it is


def test_the_largest_ring_in_memory_that_is_not_there() -> None:
    board = Board(memory=Holes())
    board.put(TDBAL + 4, 0x8000_0000)
    board.put(TDLEN, 0xF_FF80)
    board.put(TDT, 0xFFF7)
    assert board.run(10**10) < 70_000 // 64
    assert board.get(TDH) == 0xFFF7
    board.put(RDBAL + 4, 0x8000_0000)
    board.network.deliver(frame(), board.now)
    board.run(board.now + 10_000)
    assert board.get(RDH) == 1


@pytest.mark.parametrize("seed", range(8))
def test_random_drivers(seed: int) -> None:
    """Anything is written anywhere; time goes on, and work is bounded."""
    draw = random.Random(seed)
    board = Board(memory=Holes())
    board.memory.data[:0x4000] = draw.randbytes(0x4000)
    offsets = [*range(0, 0x200, 4), *range(0x400, 0x420, 4), *range(0x2800, 0x2830, 4), *range(0x3800, 0x3840, 4)]
    for _ in range(4000):
        value = draw.choice((draw.getrandbits(32), draw.getrandbits(12), 0xFFFF_FFFF, 1 << draw.randrange(32)))
        if draw.random() < 0.05:
            board.network.deliver(frame(payload=draw.randbytes(draw.randrange(2000))), board.now)
        board.put(draw.choice(offsets), value)
        board.get(draw.choice(offsets))
        if draw.random() < 0.2:
            board.put(RCTL, 0x801A | value & 0x03FF_0F00)
            board.put(TCTL, 2)
        assert board.run(board.now + draw.choice((10, 1000, 100_000))) < 200


def test_state_survives_json() -> None:
    board, other = Board(), Board()
    board.legacy(frame(OTHER, MAC)[:20], command=0)
    board.go()
    board.run(10_000)
    board.legacy(frame(OTHER, MAC)[20:])
    board.go()
    board.put(ICS, LINK)
    other.memory.data[:] = board.memory.data
    other.now = board.now
    other.card.load_state(json.loads(json.dumps(board.card.state())))
    other.run(20_000)
    assert other.sent() == [frame(OTHER, MAC)]
    assert other.get(ICR) == LINK | SENT | EMPTY
