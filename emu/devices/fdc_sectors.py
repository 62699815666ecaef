"""The sectors that a command of the floppy controller names, one after the other. Source: Intel 82077AA, 5.1 and 6.

A command says drive, head and data rate, the first sector as it is written on the disk (C, H, R, N), and EOT, the last
one of a track. With MT it goes on from head 0 to head 1. An image cannot say that a sector is deleted: none ever is.
"""

from __future__ import annotations

from emu.devices.disk import SECTOR, DiskFailed
from emu.devices.fdc_heads import Heads, NotThere
from emu.devices.floppy import FloppyDisk

READ_TRACK, WRITE, READ, WRITE_DELETED, READ_DELETED, FORMAT, VERIFY = 0x02, 0x05, 0x06, 0x09, 0x0C, 0x0D, 0x16
READING = (READ, READ_TRACK, READ_DELETED)
MT, MFM, SKIP = 0x80, 0x40, 0x20  # flags of a command: both sides; double density; skip the other kind of sector
COUNTED = 0x80  # VERIFY, second byte: the last one is a number of sectors
SIZE_512 = 2  # N

END_OF_CYLINDER, DATA_ERROR, OVERRUN, NO_DATA = 0x80, 0x20, 0x10, 0x04  # ST1
BAD_DATA, WRONG_CYLINDER = 0x20, 0x10  # ST2


class Sectors:
    """A command's sectors.

    Args:
        given: the nine bytes of the command.

    Attributes:
        given: the same.
        place: C, H, R of the next one, and the head that goes there.
        left: sectors to go, for VERIFY with a count; -1: up to EOT.
    """

    def __init__(self, given: list[int]) -> None:
        self.given = given
        self.place = [given[2], given[3], 1 if self.kind == READ_TRACK else given[4], given[1] >> 2 & 1]
        self.left = given[8] or 256 if self.kind == VERIFY and given[1] & COUNTED else -1

    @property
    def kind(self) -> int:
        """The command without flags."""
        return self.given[0] & 0x1F

    @property
    def drive(self) -> int:
        return self.given[1] & 3

    def find(self, heads: Heads, rate: int) -> tuple[FloppyDisk, int]:
        """The disk, and the next sector's number on it. Raises NotThere."""
        c, h, r, head = self.place
        disk = heads.readable(self.drive, head, rate, bool(self.given[0] & MFM))
        if c != heads.cylinder[self.drive]:
            raise NotThere(NO_DATA, WRONG_CYLINDER)
        lba = disk.lba(c, head, r)
        if lba is None or h != head or self.given[5] != SIZE_512 or self.kind == READ_DELETED:
            raise NotThere(NO_DATA)
        return disk, lba

    def read(self, heads: Heads, rate: int) -> bytes:
        """The next sector. Raises NotThere."""
        disk, lba = self.find(heads, rate)
        try:
            return disk.disk.read(lba, 1)
        except DiskFailed:
            raise NotThere(DATA_ERROR, BAD_DATA) from None

    def write(self, heads: Heads, rate: int, data: bytes) -> None:
        """Write the next sector; what ``data`` does not have is zeros. Raises NotThere."""
        disk, lba = self.find(heads, rate)
        try:
            disk.disk.write(lba, data.ljust(SECTOR, b"\0"))
        except DiskFailed:
            raise NotThere(DATA_ERROR, BAD_DATA) from None

    def advance(self) -> bool:
        """Go to the next one; False when there is none, and ``place`` is what the results tell then."""
        c, h, r, head = self.place
        two_sided, last = self.given[0] & MT, self.given[6]
        if self.left > 0:
            self.left -= 1
        if r != last:
            self.place[2] = r + 1 & 0xFF
            return self.left != 0
        self.place[2] = 1
        if two_sided:
            self.place[1], self.place[3] = h ^ 1, head ^ 1
        if two_sided and not head:
            return self.left != 0
        self.place[0] = c + 1 & 0xFF
        return False


def format_track(heads: Heads, rate: int, given: list[int], addresses: bytes) -> None:
    """FORMAT TRACK, ``given``, with the C, H, R, N of each sector. Raises NotThere.

    The tracks of an image have their sectors in any case: those that are named are filled, and others keep what they
    have.
    """
    drive, head = given[1] & 3, given[1] >> 2 & 1
    disk = heads.readable(drive, head, rate, bool(given[0] & MFM))
    filler = given[5:6]
    for at in range(0, len(addresses), 4):
        c, h, r, n = addresses[at : at + 4]
        lba = disk.lba(c, h, r)
        if (c, h, n) == (heads.cylinder[drive], head, SIZE_512) and lba is not None:
            try:
                disk.disk.write(lba, bytes(filler) * SECTOR)
            except DiskFailed:
                raise NotThere(DATA_ERROR, BAD_DATA) from None
