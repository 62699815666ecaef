"""Files of network packets, as tcpdump and Wireshark read them.

Sources: draft-ietf-opsawg-pcapng (the PCAP Next Generation file format), draft-ietf-opsawg-pcap (the older one).

Written is pcapng with one interface: times are virtual ns, and each packet says whether the card has sent it or got it.
Read are both formats, of either byte order, as far as they hold Ethernet frames.

    pcapng: blocks of u32 type, u32 length, contents, u32 length again; contents of the kinds that are used:
        0A0D0D0A section   u32 byte order, u16 version 1, u16 0, i64 length of the section, options
        1 interface        u16 link type, u16 0, u32 longest packet, options; option 9 is the unit of its times
        6 packet           u32 interface, u32 high and u32 low half of the time, u32 bytes here, u32 bytes on the wire,
                           the packet up to a multiple of four bytes, options; option 2 has the direction in bits 0-1
    pcap: u32 magic, u16 2, u16 4, i32, u32, u32 longest packet, u32 link type; packets: u32 s, u32 us or ns, u32, u32
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from emu.errors import BadInput
from emu.infile import read_input
from emu.units import NS_PER_SECOND

SECTION, INTERFACE, PACKET = 0x0A0D_0D0A, 1, 6  # blocks
BYTE_ORDER = 0x1A2B_3C4D
ETHERNET = 1  # link type
RESOLUTION, FLAGS = 9, 2  # options of an interface and of a packet
NANOSECONDS = 9  # the power of ten
INBOUND, OUTBOUND = 1, 2  # direction
PCAP_UNITS = {0xA1B2_C3D4: 1000, 0xA1B2_3C4D: 1}  # magic number of pcap: ns in a unit of time
MOST_BYTES = 256 << 20  # of a file
LONGEST = 0x4_0000  # bytes of a packet that may be in a file


class Packet(NamedTuple):
    """A packet of a file: ns since the epoch of the file, direction (None: not said), contents."""

    time: int
    outbound: bool | None
    data: bytes


class PcapWriter:
    """A file of packets, opened at once.

    Raises:
        BadInput: from every method, when the file cannot be written.
    """

    def __init__(self, path: str | Path, option: str = "--net") -> None:
        self.path = str(path)
        self._option = option
        try:
            self._file = open(path, "wb")  # noqa: SIM115
        except (OSError, ValueError) as error:
            raise self._bad(error) from None
        self._block(SECTION, struct.pack("<IHHq", BYTE_ORDER, 1, 0, -1))
        self._block(INTERFACE, struct.pack("<HHIHHB3xI", ETHERNET, 0, 0, RESOLUTION, 1, NANOSECONDS, 0))

    def write(self, time_ns: int, outbound: bool, data: bytes) -> None:
        """Add a packet; ``outbound`` when the card has sent it."""
        size = len(data)
        head = struct.pack("<IIIII", 0, time_ns >> 32, time_ns & 0xFFFF_FFFF, size, size)
        flags = struct.pack("<HHII", FLAGS, 4, OUTBOUND if outbound else INBOUND, 0)
        self._block(PACKET, head + data + bytes(-size % 4) + flags)

    def close(self) -> None:
        """Write what is still buffered; again does nothing."""
        try:
            self._file.close()
        except OSError as error:
            raise self._bad(error) from None

    def _block(self, kind: int, contents: bytes) -> None:
        length = struct.pack("<I", len(contents) + 12)
        try:
            self._file.write(struct.pack("<I", kind) + length + contents + length)
        except OSError as error:
            raise self._bad(error) from None

    def _bad(self, error: Exception) -> BadInput:
        return BadInput(self._option, f"{self.path} cannot be written: {getattr(error, 'strerror', None) or error}")


def read_packets(path: str | Path, option: str = "--net") -> list[Packet]:
    """The packets of a file in the order of their times.

    Raises:
        BadInput: it cannot be read, is of no known format, or holds something else than Ethernet frames.
    """
    data = read_input(option, path, MOST_BYTES)
    try:
        packets = list(_pcapng(data) if data[:4] == SECTION.to_bytes(4, "big") else _pcap(data))
    except (struct.error, ValueError) as error:
        what = error if isinstance(error, ValueError) else "it ends in the middle of a packet"
        raise BadInput(option, f"{path} is no file of network packets that can be used: {what}") from None
    return sorted(packets, key=lambda packet: packet.time)


def _pcap(data: bytes) -> Iterator[Packet]:
    for order in "<>":
        (magic,) = struct.unpack_from(f"{order}I", data.ljust(4, b"\0"))
        if magic in PCAP_UNITS:
            break
    else:
        raise ValueError("neither pcap nor pcapng")
    _check_link(struct.unpack_from(f"{order}I", data, 20)[0] & 0xFFFF)
    at = 24
    while at < len(data):
        seconds, part, size, _ = struct.unpack_from(f"{order}4I", data, at)
        yield Packet(seconds * NS_PER_SECOND + part * PCAP_UNITS[magic], None, _cut(data, at + 16, size))
        at += 16 + size


def _pcapng(data: bytes) -> Iterator[Packet]:
    at, order = 0, "<"
    units: list[int] = []  # of each interface, a second
    while at < len(data):
        if data[at : at + 4] == SECTION.to_bytes(4, "big"):
            order = "<" if data[at + 8 : at + 12] == BYTE_ORDER.to_bytes(4, "little") else ">"
            units = []
        kind, length = struct.unpack_from(f"{order}II", data, at)
        if length < 12 or length % 4:
            raise ValueError(f"a block of {length} bytes")
        body = _cut(data, at + 8, length - 8)[:-4]
        if kind == INTERFACE:
            _check_link(struct.unpack_from(f"{order}H", body)[0])
            resolution = _option_of(body[8:], RESOLUTION, order) or b"\x06"
            power = resolution[0] & 0x7F
            units.append((2 if resolution[0] & 0x80 else 10) ** power)
        elif kind == PACKET:
            interface, high, low, size, _ = struct.unpack_from(f"{order}5I", body)
            if interface >= len(units):
                raise ValueError(f"a packet of interface {interface}, which is not described")
            flags = _option_of(body[20 + size + -size % 4 :], FLAGS, order)
            direction = 0 if flags is None else struct.unpack(f"{order}I", flags)[0] & 3
            time = (high << 32 | low) * NS_PER_SECOND // units[interface]
            known = direction in (INBOUND, OUTBOUND)
            yield Packet(time, direction == OUTBOUND if known else None, _cut(body, 20, size))
        at += length


def _option_of(options: bytes, wanted: int, order: str) -> bytes | None:
    at = 0
    while at + 4 <= len(options):
        code, size = struct.unpack_from(f"{order}HH", options, at)
        if code == wanted:
            return options[at + 4 : at + 4 + size]
        if code == 0:
            break
        at += 4 + size + -size % 4
    return None


def _check_link(kind: int) -> None:
    if kind != ETHERNET:
        raise ValueError(f"its link type is {kind}, Ethernet is {ETHERNET}")


def _cut(data: bytes, at: int, size: int) -> bytes:
    if size > LONGEST or at + size > len(data):
        raise ValueError("it ends in the middle of a packet" if size <= LONGEST else f"a packet of {size} bytes")
    return data[at : at + size]
