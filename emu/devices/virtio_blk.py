"""The virtio block device. Source: VIRTIO 1.1, section 5.2.

One queue. A request is, for the device to read: u32 type, u32 reserved, u64 sector, and the data of a write; for the
device to write: the data of a read, and one byte of status at the very end. Sectors are always of 512 bytes.
"""

from __future__ import annotations

import struct
from typing import ClassVar

from emu.devices.device import GuestMemory
from emu.devices.disk import SECTOR, Disk, DiskFailed
from emu.devices.virtio import Chain, DriverError, Part, Piece, VirtioDevice, section, split, total

F_SEG_MAX = 1 << 2  # config: segments in a request
F_GEOMETRY = 1 << 4
F_BLK_SIZE = 1 << 6  # config: bytes in a block
F_FLUSH = 1 << 9  # FLUSH, and so a write-back cache

IN, OUT, FLUSH, GET_ID = 0, 1, 4, 8  # request types
OK, IOERR, UNSUPP = 0, 1, 2  # status

HEADER = struct.Struct("<IIQ")
CONFIG = struct.Struct("<QIIHBBI")  # capacity, size_max, seg_max, cylinders, heads, sectors, blk_size
QUEUE_SIZE = 256
ID_SIZE = 20  # bytes of an ID, zero-padded


class VirtioBlock(VirtioDevice):
    """A disk; ``serial`` is what GET_ID tells, at most 20 characters of ASCII."""

    DEVICE_ID: ClassVar[int] = 2
    FEATURES: ClassVar[int] = F_SEG_MAX | F_GEOMETRY | F_BLK_SIZE | F_FLUSH
    QUEUES: ClassVar[tuple[int, ...]] = (QUEUE_SIZE,)

    def __init__(self, memory: GuestMemory, disk: Disk, serial: str = "emu") -> None:
        super().__init__(memory)
        self._disk = disk
        self._id = serial.encode("ascii")[:ID_SIZE].ljust(ID_SIZE, b"\0")
        cylinders, heads, sectors = disk.geometry
        self._config = CONFIG.pack(disk.sectors, 0, QUEUE_SIZE - 2, cylinders, heads, sectors, SECTOR)

    def config(self) -> bytes:
        return self._config

    def part(self, index: int, chain: Chain, moved: int, most: int) -> Part:
        header, outgoing = split(chain.readable, HEADER.size)
        incoming, status_at = split(chain.writable, total(chain.writable) - 1)
        if total(header) != HEADER.size or not status_at:
            raise DriverError("a request without header or status")
        kind, _, sector = HEADER.unpack(self.memory.gather(header))
        data = outgoing if kind == OUT else incoming
        size = max(most // SECTOR, 1) * SECTOR if kind in (IN, OUT) else ID_SIZE
        try:
            status, written = self._carry_out(kind, sector, data, moved, size)
        except DiskFailed:
            status, written = IOERR, 0
        if status == OK and kind in (IN, OUT) and moved + size < total(data):
            return Part(size, size, None)
        self.memory.store(status_at[0][0], bytes((status,)))
        return Part(0, written, (moved + written if kind != OUT else 0) + 1)

    def _carry_out(self, kind: int, sector: int, data: list[Piece], moved: int, size: int) -> tuple[int, int]:
        """The status of ``size`` bytes of a request, and how many bytes of ``data`` were set or read."""
        if kind == FLUSH:
            self._disk.flush()
            return OK, 0
        if kind == GET_ID:
            return OK, self.memory.scatter(data, self._id)
        if kind not in (IN, OUT):
            return UNSUPP, 0
        count, odd = divmod(total(data), SECTOR)
        if odd or sector + count > self._disk.sectors:
            return IOERR, 0
        piece = section(data, moved, size)
        sector += moved // SECTOR
        if kind == OUT:
            self._disk.write(sector, self.memory.gather(piece))
            return OK, total(piece)
        return OK, self.memory.scatter(piece, self._disk.read(sector, total(piece) // SECTOR))
