"""A CD-ROM or DVD: an image of blocks of 2048 bytes, that nothing can be written to."""

from __future__ import annotations

from pathlib import Path

from emu.devices.disk import SECTOR, Disk, DiskFailed

BLOCK = 2048  # bytes
SECTORS = BLOCK // SECTOR  # of a disk image, in a block


class Disc(Disk):
    """An image as :class:`emu.devices.disk.Disk` takes it; what is missing of the last block is zeros.

    Attributes:
        blocks: its size.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__(path)
        self._fill_up()

    @classmethod
    def from_bytes(cls, data: bytes, name: str = "disc") -> Disc:
        """See Disk."""
        disc = super().from_bytes(data, name)
        assert isinstance(disc, Disc)
        disc._fill_up()
        return disc

    def _fill_up(self) -> None:
        self.blocks = -(-self.sectors // SECTORS)
        self.sectors = self.blocks * SECTORS

    def bytes_at(self, offset: int, size: int) -> bytes:
        """``size`` bytes, from any on. Raises IndexError and DiskFailed as ``read`` does."""
        first, end = offset // SECTOR, -(-(offset + size) // SECTOR)
        return self.read(first, end - first)[offset % SECTOR :][:size]

    def write(self, lba: int, data: bytes) -> None:
        """Raises DiskFailed."""
        raise DiskFailed(self.name, "a disc cannot be written to")
