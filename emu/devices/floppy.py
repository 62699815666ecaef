"""Floppy disks: the formats that PCs used, recognised by their size, and an image in one of them.

An image holds the sectors of 512 bytes in the order cylinder, head, sector. One that is shorter than any format is a
disk of 1.44M, or 2.88M, whose rest is zeros: what the build script of a small kernel makes.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from emu.devices.disk import SECTOR, Disk
from emu.errors import BadInput

# Drives, by their number in CMOS and INT 13h
DRIVE_360K, DRIVE_1200K, DRIVE_720K, DRIVE_1440K, DRIVE_2880K = range(1, 6)
# Data rates in kbit/s, by their number in the controller's registers
RATE_500, RATE_300, RATE_250, RATE_1000 = range(4)


class Format(NamedTuple):
    """A way to write on a disk, and the drive that does it."""

    cylinders: int
    heads: int
    sectors: int  # a track
    drive: int
    rate: int

    @property
    def size(self) -> int:
        """In sectors."""
        return self.cylinders * self.heads * self.sectors


FORMATS = (
    Format(40, 1, 8, DRIVE_360K, RATE_250),  # 160K
    Format(40, 1, 9, DRIVE_360K, RATE_250),
    Format(40, 2, 8, DRIVE_360K, RATE_250),  # 320K
    Format(40, 2, 9, DRIVE_360K, RATE_250),
    Format(80, 2, 8, DRIVE_720K, RATE_250),  # 640K
    Format(80, 2, 9, DRIVE_720K, RATE_250),
    Format(80, 2, 10, DRIVE_720K, RATE_250),
    Format(80, 2, 15, DRIVE_1200K, RATE_500),  # 1.2M
    Format(80, 2, 18, DRIVE_1440K, RATE_500),  # 1.44M
    Format(80, 2, 20, DRIVE_1440K, RATE_500),
    Format(80, 2, 21, DRIVE_1440K, RATE_500),  # Microsoft's distribution format
    Format(82, 2, 21, DRIVE_1440K, RATE_500),
    Format(80, 2, 22, DRIVE_1440K, RATE_500),
    Format(80, 2, 24, DRIVE_1440K, RATE_500),
    Format(80, 2, 36, DRIVE_2880K, RATE_1000),  # 2.88M
)
_BY_SIZE = {found.size: found for found in FORMATS}
_FOR_SHORT_IMAGES = (Format(80, 2, 18, DRIVE_1440K, RATE_500), FORMATS[-1])


def has_floppy_size(size: int) -> bool:
    """Whether an image of ``size`` bytes is exactly a floppy disk."""
    return size % SECTOR == 0 and size // SECTOR in _BY_SIZE


class FloppyDisk:
    """An image in a drive.

    Args:
        path: the image; see :class:`emu.devices.disk.Disk`.
        writable: write into the file.

    Attributes:
        format: how it is written.
        disk: its sectors by number.

    Raises:
        BadInput: it cannot be read, or is larger than any format.
    """

    def __init__(self, path: str | Path, writable: bool = False) -> None:
        self.disk = Disk(path, writable)
        short = next((known for known in _FOR_SHORT_IMAGES if self.disk.sectors <= known.size), None)
        found = _BY_SIZE.get(self.disk.sectors, short)
        if found is None:
            raise BadInput(str(path), f"{self.disk.sectors * SECTOR >> 10}K is too large for a floppy disk (2880K)")
        self.format = found
        self.disk.sectors = found.size

    def lba(self, cylinder: int, head: int, sector: int) -> int | None:
        """The number of a sector; None when there is no such one."""
        known = self.format
        if not (cylinder < known.cylinders and head < known.heads and 1 <= sector <= known.sectors):
            return None
        return (cylinder * known.heads + head) * known.sectors + sector - 1
