"""What an 82540EM does to frames: which ones it takes, the checksums it puts in, and how it cuts up long ones.

Source: Intel PCI/PCI-X Family of Gigabit Ethernet Controllers Software Developer's Manual (317453), 3.2.1 (filters),
3.3.5 to 3.5 (transmit descriptors, TCP segmentation), 13.5 (filter registers).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

UNICAST_ALL, MULTICAST_ALL, BROADCAST = 0x08, 0x10, 0x8000  # bits of RCTL
LONG_FRAMES = 0x20
VLAN_FILTER = 0x40000
ADDRESS_VALID = 1 << 31  # of the upper half of a receive address
ADDRESSES = 16
STANDARD = 1518  # bytes of the longest frame, with four for a VLAN tag and without FCS
VLAN_TYPE = 0x8100

CONTEXT = struct.Struct("<BBHBBHIBBH")
TCP, IP_V4, SEGMENT = 0x01, 0x02, 0x04  # bits of a context's command
FIN, PUSH = 0x01, 0x08  # TCP flags
MOST_SEGMENTS = 256  # of one long frame; drivers stay below 65


def accepts(
    frame: bytes, rctl: int, addresses: Sequence[int], hash_table: Sequence[int], vlans: Sequence[int]
) -> bool:
    """Whether the filters let a frame pass (3.2.1).

    Args:
        addresses: the receive addresses, lower and upper half of each.
        hash_table: 128 registers of 32 bits for multicast addresses.
        vlans: the same for VLAN identifiers.
    """
    if len(frame) > STANDARD and not rctl & LONG_FRAMES:
        return False
    if rctl & VLAN_FILTER and int.from_bytes(frame[12:14], "big") == VLAN_TYPE:
        identifier = int.from_bytes(frame[14:16], "big") & 0xFFF
        if not vlans[identifier >> 5] >> (identifier & 31) & 1:
            return False
    if frame[:6] == b"\xff" * 6 and rctl & BROADCAST:
        return True
    if rctl & (MULTICAST_ALL if frame[0] & 1 else UNICAST_ALL):
        return True
    low, high = struct.unpack_from("<IH", frame)
    for number in range(0, 2 * ADDRESSES, 2):
        if addresses[number + 1] & (ADDRESS_VALID | 0xFFFF) == ADDRESS_VALID | high and addresses[number] == low:
            return True
    if not frame[0] & 1:
        return False
    place = high >> (4, 3, 2, 0)[rctl >> 12 & 3] & 0xFFF  # which 12 of the address's last bits
    return bool(hash_table[place >> 5] >> (place & 31) & 1)


@dataclass(frozen=True)
class Context:
    """What a context descriptor tells of the frames behind it (3.3.6): starts and ends of the sums, offsets of both
    checksums, bytes of the long frame behind its headers and of these, largest segment."""

    ip_start: int = 0
    ip_at: int = 0
    ip_end: int = 0
    start: int = 0
    at: int = 0
    end: int = 0
    payload: int = 0
    command: int = 0
    header: int = 0
    segment: int = 0

    @classmethod
    def unpack(cls, descriptor: bytes) -> Context:
        """From the 16 bytes of a descriptor."""
        ip_start, ip_at, ip_end, start, at, end, length, _, header, segment = CONTEXT.unpack(descriptor)
        return cls(ip_start, ip_at, ip_end, start, at, end, length & 0xF_FFFF, length >> 24, header, segment)


def ones_sum(data: bytes | bytearray) -> int:
    """The sum of 16-bit words, with each carry added (RFC 1071)."""
    padded = bytes(data) + bytes(len(data) & 1)
    total = sum(struct.unpack(f">{len(padded) // 2}H", padded))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def put_checksum(frame: bytearray, at: int, start: int, end: int = 0) -> None:
    """Store the checksum of ``start`` to ``end``, which still counts, at ``at``; 0: to the end of the frame.

    The field has what the driver put there, the sum of a pseudo-header. What lies behind the frame is not touched.
    """
    stop = end + 1 if end else len(frame)
    if start < len(frame) and at + 2 <= len(frame):
        frame[at : at + 2] = (~ones_sum(frame[start:stop]) & 0xFFFF).to_bytes(2, "big")


def with_checksums(frame: bytearray, context: Context, of_ip: bool, of_payload: bool) -> bytes:
    """``frame`` with what the options of its data descriptor ask for."""
    if of_payload:
        put_checksum(frame, context.at, context.start, context.end)
    if of_ip:
        put_checksum(frame, context.ip_at, context.ip_start, context.ip_end)
    return bytes(frame)


def segments(frame: bytes, context: Context, of_ip: bool, of_payload: bool) -> Iterator[bytes]:
    """The frames that a long one is cut into (3.5)."""
    header, size = context.header, context.segment
    if not size or not header or len(frame) <= header or (len(frame) - header) // size >= MOST_SEGMENTS:
        return  # nothing that a driver means
    for number, at in enumerate(range(header, len(frame), size)):
        piece = bytearray(frame[:header] + frame[at : at + size])
        _fix_headers(piece, context, number, last=at + size >= len(frame))
        yield with_checksums(piece, context, of_ip, of_payload)


def _fix_headers(piece: bytearray, context: Context, number: int, last: bool) -> None:
    """Lengths, the identification of IP, sequence number and flags of TCP, and the sum of the pseudo-header."""
    ip, transport = context.ip_start, context.start
    if context.command & IP_V4:
        _set(piece, ip + 2, 2, len(piece) - ip)
        _set(piece, ip + 4, 2, _get(piece, ip + 4, 2) + number)
    else:
        _set(piece, ip + 4, 2, len(piece) - ip - 40)
    length = len(piece) - transport
    if context.command & TCP:
        _set(piece, transport + 4, 4, _get(piece, transport + 4, 4) + number * context.segment)
        if not last:
            _set(piece, transport + 13, 1, _get(piece, transport + 13, 1) & ~(FIN | PUSH))
    else:
        _set(piece, transport + 4, 2, length)
    partial = _get(piece, context.at, 2) + length  # the driver left the length out
    _set(piece, context.at, 2, (partial & 0xFFFF) + (partial >> 16))


def _get(data: bytearray, at: int, size: int) -> int:
    return int.from_bytes(data[at : at + size], "big")


def _set(data: bytearray, at: int, size: int, value: int) -> None:
    if at + size <= len(data):
        data[at : at + size] = (value & (1 << 8 * size) - 1).to_bytes(size, "big")
