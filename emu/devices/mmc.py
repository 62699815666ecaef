"""What a CD-ROM drive answers to the commands of its packets. Sources: MMC-3 (T10/1363D), SPC-3 (T10/1416D), SFF-8020i.

A packet is twelve bytes, the first of them the command; numbers in packets and answers have their high byte first.
Here is what the commands of TABLE do; all others are illegal.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

from emu.devices.disc import BLOCK, Disc

NOT_READY, MEDIUM_ERROR, ILLEGAL_REQUEST, UNIT_ATTENTION = 0x2, 0x3, 0x5, 0x6  # sense keys
# Additional sense codes, with their qualifiers
INVALID_COMMAND, OUT_OF_RANGE, INVALID_FIELD = 0x2000, 0x2100, 0x2400
MEDIUM_CHANGED, NO_MEDIUM, REMOVAL_PREVENTED, READ_ERROR = 0x2800, 0x3A02, 0x5302, 0x1100

REQUEST_SENSE, INQUIRY, GET_CONFIGURATION, GET_EVENT = 0x03, 0x12, 0x46, 0x4A
WITHOUT_ATTENTION = (REQUEST_SENSE, INQUIRY, GET_CONFIGURATION, GET_EVENT)  # do not tell that the disc was changed
CD_BLOCKS = 405_000  # of 90 minutes; what has more is a DVD
FRAMES, SECONDS, LEAD_IN = 75, 60, 150  # a second, a minute; before block 0
DATA_TRACK = 0x14  # ADR 1: a position; control 4: data
LEAD_OUT = 0xAA


class Refused(Exception):
    """The command ends with CHECK CONDITION."""

    def __init__(self, key: int, code: int) -> None:
        self.key = key
        self.code = code


@dataclass(frozen=True)
class Blocks:
    """An answer that is on the disc: where it begins, and its size, in bytes."""

    begin: int
    size: int


Answer = bytes | Blocks


class CdRom:
    """The drive, without the bus that it is on.

    Attributes:
        disc: what lies in it.
        sense: key and code of the last command that was refused; 0, 0 when there is nothing to tell.
        is_open: the tray is.
        is_locked: the disc may not be removed.
        is_new: the disc was put in, and nobody has been told.
    """

    def __init__(self, disc: Disc) -> None:
        self.disc = disc
        self.sense = (0, 0)
        self.is_open = self.is_locked = self.is_new = False

    def perform(self, packet: bytes) -> Answer:
        """The answer to a packet; empty when there are no data. Raises Refused, which becomes the sense."""
        try:
            if packet[0] != REQUEST_SENSE:
                self.sense = (0, 0)
            if self.is_new and packet[0] not in WITHOUT_ATTENTION:
                self.is_new = False
                raise Refused(UNIT_ATTENTION, MEDIUM_CHANGED)
            command = TABLE.get(packet[0])
            if command is None:
                raise Refused(ILLEGAL_REQUEST, INVALID_COMMAND)
            return command(self, packet)
        except Refused as refusal:
            self.sense = (refusal.key, refusal.code)
            raise

    def _need_disc(self) -> None:
        if self.is_open:
            raise Refused(NOT_READY, NO_MEDIUM)

    # --- the drive ----------------------------------------------------------------------------------------------------

    def _test_unit_ready(self, packet: bytes) -> Answer:
        self._need_disc()
        return b""

    def _request_sense(self, packet: bytes) -> Answer:
        key, code = self.sense
        self.sense = (0, 0)
        return struct.pack(">BxB4xB4xH4x", 0x70, key, 10, code)[: packet[4]]

    def _inquire(self, packet: bytes) -> Answer:
        if packet[1] & 3 or packet[2]:
            raise Refused(ILLEGAL_REQUEST, INVALID_FIELD)
        names = b"EMU     " + b"EMU CD-ROM".ljust(16) + b"1.0 "
        return (bytes((0x05, 0x80, 0x00, 0x21, 31, 0, 0, 0)) + names)[: packet[4]]

    def _start_stop(self, packet: bytes) -> Answer:
        action = packet[4] & 3
        if action == 2:  # open
            if self.is_locked:
                raise Refused(ILLEGAL_REQUEST, REMOVAL_PREVENTED)
            self.is_open = True
        elif action == 3 and self.is_open:
            self.is_open, self.is_new = False, True
        return b""

    def _prevent_removal(self, packet: bytes) -> Answer:
        self.is_locked = bool(packet[4] & 1)
        return b""

    def _mode_sense(self, packet: bytes) -> Answer:
        page, room = packet[2] & 0x3F, int.from_bytes(packet[7:9], "big")
        if packet[2] >> 6 == 3:  # saved values
            raise Refused(ILLEGAL_REQUEST, 0x3900)
        pages = {
            0x01: bytes((0x01, 6, 0, 5, 0, 0, 0, 0)),  # errors: five retries
            0x0E: bytes((0x0E, 14, 4)) + bytes(13),  # audio: none
            0x2A: struct.pack(
                ">BBBBBBBBHHHHBB2x", 0x2A, 18, 0x03, 0x00, 0x70, 0x02, 0x29 | 0x02 * self.is_locked, 0, 706 * 4, 0, 512,
                706 * 4, 0, 0,
            ),  # reads CD-R and CD-RW, mode 2; lock and eject, a tray; speed in KB/s, buffer in KiB
        }  # fmt: skip
        if page != 0x3F and page not in pages:
            raise Refused(ILLEGAL_REQUEST, INVALID_FIELD)
        data = b"".join(pages.values()) if page == 0x3F else pages[page]
        kind = 0x71 if self.is_open else 0x01
        return (struct.pack(">HB5x", len(data) + 6, kind) + data)[:room]

    def _get_configuration(self, packet: bytes) -> Answer:
        wanted, first, room = packet[1] & 3, int.from_bytes(packet[2:4], "big"), int.from_bytes(packet[7:9], "big")
        current = 0 if self.is_open else 0x10 if self.disc.blocks > CD_BLOCKS else 0x08
        profiles = b"".join(struct.pack(">HBx", profile, profile == current) for profile in (0x10, 0x08))
        there = not self.is_open
        features = {
            0x0000: (True, 0x03, profiles),
            0x0001: (True, 0x07, struct.pack(">I", 2)),  # core: ATAPI
            0x0003: (True, 0x03, bytes((0x29, 0, 0, 0))),  # removable: a tray, which can be locked and opened
            0x0010: (there, 0x00, struct.pack(">IHBx", BLOCK, 1, 0)),  # random access
            0x001E: (there and current == 0x08, 0x00, bytes(4)),  # reads CDs
            0x001F: (there and current == 0x10, 0x00, b""),  # reads DVDs
        }
        data = b""
        for number, (active, flags, more) in features.items():
            chosen = number == first if wanted == 2 else number >= first and (wanted == 0 or active)
            if chosen:
                data += struct.pack(">HBB", number, flags & 0xFE | active, len(more)) + more
        return (struct.pack(">I2xH", len(data) + 4, current) + data)[:room]

    def _get_event(self, packet: bytes) -> Answer:
        room = int.from_bytes(packet[7:9], "big")
        if not packet[1] & 1:  # without polling
            raise Refused(ILLEGAL_REQUEST, INVALID_FIELD)
        if not packet[4] & 0x10:  # only the class "media" is there
            return struct.pack(">HBB", 2, 0x80, 0x10)[:room]
        status = 0x01 if self.is_open else 0x02
        return struct.pack(">HBBBBH", 6, 4, 0x10, 2 if self.is_new else 0, status, 0)[:room]

    # --- the disc -----------------------------------------------------------------------------------------------------

    def _read_capacity(self, packet: bytes) -> Answer:
        self._need_disc()
        return struct.pack(">II", self.disc.blocks - 1, BLOCK)

    def _blocks(self, begin: int, count: int) -> Answer:
        self._need_disc()
        if begin + count > self.disc.blocks:
            raise Refused(ILLEGAL_REQUEST, OUT_OF_RANGE)
        return Blocks(begin * BLOCK, count * BLOCK)

    def _read_10(self, packet: bytes) -> Answer:
        return self._blocks(*struct.unpack(">2xIxH", packet[:9]))

    def _read_12(self, packet: bytes) -> Answer:
        return self._blocks(*struct.unpack(">2xII", packet[:10]))

    def _read_cd(self, packet: bytes) -> Answer:
        """Blocks of their kind, of which only the user's data can be had."""
        if packet[1] >> 2 & 7 not in (0, 2) or packet[9] & 0xF8 not in (0x00, 0x10) or packet[10]:
            raise Refused(ILLEGAL_REQUEST, INVALID_FIELD)
        count = int.from_bytes(packet[6:9], "big")
        return self._blocks(int.from_bytes(packet[2:6], "big"), count if packet[9] & 0x10 else 0)

    def _seek(self, packet: bytes) -> Answer:
        self._blocks(int.from_bytes(packet[2:6], "big"), 1)
        return b""

    def _read_toc(self, packet: bytes) -> Answer:
        """One session with one track."""
        self._need_disc()
        as_time, room = bool(packet[1] & 2), int.from_bytes(packet[7:9], "big")
        kind = packet[2] & 0xF or packet[9] >> 6  # the second place is that of SFF-8020i
        if kind == 0:
            tracks = [number for number in (1, LEAD_OUT) if packet[6] <= number]
            if not tracks or packet[6] not in (*range(2), LEAD_OUT):
                raise Refused(ILLEGAL_REQUEST, INVALID_FIELD)
            places = {1: 0, LEAD_OUT: self.disc.blocks}
            entries = [struct.pack(">xBBx", DATA_TRACK, n) + position(places[n], as_time) for n in tracks]
        elif kind == 1:  # the first track of the last session
            entries = [struct.pack(">xBBx", DATA_TRACK, 1) + position(0, as_time)]
        elif kind == 2:  # as in the lead-in: first and last track, lead-out, track 1
            points = ((0xA0, b"\x01\0\0"), (0xA1, b"\x01\0\0"), (0xA2, time_of(self.disc.blocks)), (1, time_of(0)))
            entries = [struct.pack(">BBxB4x", 1, DATA_TRACK, point) + at for point, at in points]
        else:
            raise Refused(ILLEGAL_REQUEST, INVALID_FIELD)
        data = b"".join(entries)
        return (struct.pack(">HBB", len(data) + 2, 1, 1) + data)[:room]

    def _read_disc_information(self, packet: bytes) -> Answer:
        self._need_disc()
        # complete, the last session complete; one session with one track
        data = struct.pack(">HBBBBBBxxxx", 32, 0x0E, 1, 1, 1, 1, 0x20) + b"\0" * 4 + b"\xff" * 8 + bytes(10)
        return data[: int.from_bytes(packet[7:9], "big")]

    def _read_subchannel(self, packet: bytes) -> Answer:
        self._need_disc()
        room = int.from_bytes(packet[7:9], "big")
        return struct.pack(">xBH", 0x15, 0)[:room]  # nothing is played


def time_of(block: int) -> bytes:
    """Minute, second and frame of a block."""
    frame = block + LEAD_IN
    return bytes((min(frame // (FRAMES * SECONDS), 255), frame // FRAMES % SECONDS, frame % FRAMES))


def position(block: int, as_time: bool) -> bytes:
    """Four bytes: a block's number, or its time."""
    return b"\0" + time_of(block) if as_time else struct.pack(">I", block)


TABLE: dict[int, Callable[[CdRom, bytes], Answer]] = {
    0x00: CdRom._test_unit_ready, REQUEST_SENSE: CdRom._request_sense, INQUIRY: CdRom._inquire,
    0x1B: CdRom._start_stop, 0x1E: CdRom._prevent_removal, 0x25: CdRom._read_capacity, 0x28: CdRom._read_10,
    0x2B: CdRom._seek, 0x42: CdRom._read_subchannel, 0x43: CdRom._read_toc,
    GET_CONFIGURATION: CdRom._get_configuration, GET_EVENT: CdRom._get_event, 0x51: CdRom._read_disc_information,
    0x5A: CdRom._mode_sense, 0xA8: CdRom._read_12, 0xBE: CdRom._read_cd,
}  # fmt: skip
