"""Router advertisements of IPv6 without what only a host knows. Sources: RFC 4861, 4.2; RFC 8106, 5.1; RFC 8200, 8.1.

libslirp puts the name server into them only where the host has one with an IPv6 address, so that a guest would see
another network on another machine.
"""

from __future__ import annotations

import struct

TYPE, IPV6 = slice(12, 14), b"\x86\xdd"
IP, ICMP, OPTIONS = 14, 54, 70  # offsets in a frame
NEXT_HEADER, ICMP_V6 = 20, 58
ADVERTISEMENT, NAME_SERVER = 134, 25  # ICMPv6 type, option


def without_name_servers(frame: bytes) -> bytes:
    """``frame`` without these options, if it is a router advertisement with some."""
    if frame[TYPE] != IPV6 or len(frame) < OPTIONS or (frame[NEXT_HEADER], frame[ICMP]) != (ICMP_V6, ADVERTISEMENT):
        return frame
    options, at = b"", OPTIONS
    while at + 2 <= len(frame) and frame[at + 1]:
        option = frame[at : at + 8 * frame[at + 1]]
        at += len(option)
        if option[0] != NAME_SERVER:
            options += option
    body = frame[ICMP : ICMP + 2] + bytes(2) + frame[ICMP + 4 : OPTIONS] + options
    pseudo = frame[IP + 8 : IP + 40] + struct.pack(">II", len(body), ICMP_V6)
    total = sum(struct.unpack(f">{len(pseudo + body) // 2}H", pseudo + body))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    body = body[:2] + (~total & 0xFFFF).to_bytes(2, "big") + body[4:]
    return frame[: IP + 4] + len(body).to_bytes(2, "big") + frame[IP + 6 : ICMP] + body
