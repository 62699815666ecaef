"""What both sides of a network card need in tests: frames, and a network that keeps what is sent to it."""

from __future__ import annotations

import struct

from emu.devices.network import Cable, Network

MAC = bytes.fromhex("525400123456")
OTHER = bytes.fromhex("52550a000202")
BROADCAST = b"\xff" * 6


def frame(destination: bytes = MAC, source: bytes = OTHER, payload: bytes = b"x" * 46, kind: int = 0x88B5) -> bytes:
    """An Ethernet frame, by default of the type for experiments."""
    return destination + source + kind.to_bytes(2, "big") + payload


class Recorder(Network):
    """A network that keeps what is sent."""

    connected = True

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[tuple[int, bytes]] = []

    def send(self, frame: bytes, now_ns: int) -> None:
        self.sent.append((now_ns, frame))

    @property
    def frames(self) -> list[bytes]:
        return [data for _, data in self.sent]


class Taker:
    """A card with a number of buffers."""

    def __init__(self, cable: Cable, buffers: int = 1 << 30) -> None:
        self.buffers = buffers
        self.taken: list[tuple[int, bytes]] = []
        cable.plug_in(self)

    def receive(self, data: bytes, now_ns: int) -> bool:
        if not self.buffers:
            return False
        self.buffers -= 1
        self.taken.append((now_ns, data))
        return True


def sum16(data: bytes) -> int:
    """The checksum of RFC 1071, one word after the other."""
    total = 0
    for at in range(0, len(data), 2):
        total += int.from_bytes(data[at : at + 2].ljust(2, b"\0"), "big")
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ip(payload: bytes, protocol: int, source: str = "10.0.2.15", destination: str = "10.0.2.2") -> bytes:
    """An IPv4 packet."""
    addresses = b"".join(bytes(map(int, text.split("."))) for text in (source, destination))
    head = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(payload), 1, 0, 64, protocol, 0) + addresses
    return head[:10] + sum16(head).to_bytes(2, "big") + head[12:] + payload


def udp(payload: bytes, source: int, destination: int) -> bytes:
    """A UDP datagram without a checksum."""
    return struct.pack(">HHHH", source, destination, 8 + len(payload), 0) + payload
