"""Raw disk images: sectors of 512 bytes, by default with every write kept in memory.

A run must not damage its input, so the file is opened for reading only and written sectors live in an overlay:
clusters of 4 KiB, the unit in which file systems write. ``writable=True`` writes through to the file instead.

Two geometries, as PC BIOSes and QEMU have them. The drive's own, which IDENTIFY DEVICE reports, is 16 heads of 63
sectors unless the partition table was made for another one with at most 16 heads. A BIOS can express only 1024
cylinders in INT 13h: on larger drives, and where the partition table says so, it pretends to more heads.
"""

from __future__ import annotations

import base64
import fcntl
import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, NamedTuple

from emu.devices.device import State, check_fields
from emu.errors import BadInput, EmuError

SECTOR = 512  # bytes
CLUSTER = 4096  # bytes of the overlay's unit
HEADS = 16  # of a drive: four bits of the device register
SECTORS_PER_TRACK = 63  # six bits of INT 13h's CL
MAX_CYLINDERS = 16383  # of a drive: larger ones have this and are addressed by LBA
BIOS_CYLINDERS = 1024  # ten bits of INT 13h's CX
BIOS_HEADS = (16, 32, 64, 128, 255)  # what LBA-assisted translation chooses from

MBR_SIGNATURE = b"\x55\xaa"  # last bytes of a boot sector
MBR_TABLE = 446  # offset of four entries
MBR_ENTRY = 16  # bytes of an entry
ENTRY_END_HEAD = 5  # byte: head of the partition's last sector
ENTRY_END_SECTOR = 6  # byte: its sector, bits 0 to 5
ENTRY_SECTORS = slice(12, 16)  # u32: length


class DiskFailed(EmuError):
    """The host could not read or write an image while the guest ran. Drives report it to the guest."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name}: {reason}")
        self.name = name
        self.reason = reason


class Geometry(NamedTuple):
    """Cylinders, heads a cylinder, sectors a track."""

    cylinders: int
    heads: int
    sectors: int


class Disk:
    """One image.

    Args:
        path: a regular file or block device. A last sector that is cut off is filled up with zeros.
        writable: write into the file.

    Attributes:
        name: what messages call it.
        sectors: its size.
        writable: the same.
        on_failure: gets name and reason when the host first fails so.

    Raises:
        BadInput: no such file, no permission, not a regular file or block device, empty.
    """

    def __init__(self, path: str | Path, writable: bool = False) -> None:
        self._take_over(str(path), _open_image(str(path), writable), writable)

    @classmethod
    def from_bytes(cls, data: bytes, name: str = "disk") -> Disk:
        """An image of the given contents, in an unnamed temporary file. Raises BadInput when there are none."""
        disk = cls.__new__(cls)
        file: BinaryIO = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115
        file.write(data)
        disk._take_over(name, file, writable=False)
        return disk

    def _take_over(self, name: str, file: BinaryIO, writable: bool) -> None:
        try:
            size = file.seek(0, os.SEEK_END)
            if size and not os.pread(file.fileno(), 1, 0):
                size = 0
        except OSError as error:
            file.close()
            raise BadInput(name, f"cannot be read as a disk image: {error.strerror}") from None
        if not size:
            file.close()
            raise BadInput(name, "empty, not a disk image")
        self.on_failure: Callable[[str, str], None] = lambda name, reason: None
        self._told: set[str] = set()  # the failures that somebody was told of
        self._file = file
        self._fd = file.fileno()
        self._overlay: dict[int, bytes] = {}  # cluster number -> contents
        self.name = name
        self.sectors = -(-size // SECTOR)
        self.writable = writable

    def read(self, lba: int, count: int) -> bytes:
        """``count`` sectors from number ``lba`` on.

        Raises IndexError when they are not all on the disk, DiskFailed when the host cannot read them.
        """
        self._check(lba, count)
        begin, end = lba * SECTOR, (lba + count) * SECTOR
        overlay = self._overlay
        if overlay:
            clusters = range(begin // CLUSTER, -(-end // CLUSTER))
            if not overlay.keys().isdisjoint(clusters):
                data = b"".join(self._cluster(cluster) for cluster in clusters)
                return data[begin - clusters.start * CLUSTER : end - clusters.start * CLUSTER]
        return self._read_file(begin, end - begin)

    def write(self, lba: int, data: bytes) -> None:
        """Write ``data``, whole sectors, from sector ``lba`` on. Raises as ``read`` does."""
        count, odd = divmod(len(data), SECTOR)
        if odd:
            raise ValueError(f"{len(data)} bytes are not whole sectors")
        self._check(lba, count)
        begin, end = lba * SECTOR, lba * SECTOR + len(data)
        if self.writable:
            self._write_file(begin, data)
            return
        for cluster in range(begin // CLUSTER, -(-end // CLUSTER)):
            base = cluster * CLUSTER
            low, high = max(begin, base), min(end, base + CLUSTER)
            piece = data[low - begin : high - begin]
            if len(piece) < CLUSTER:
                old = self._cluster(cluster)
                piece = old[: low - base] + piece + old[high - base :]
            self._overlay[cluster] = piece

    def flush(self) -> None:
        """Have the host store what was written. Raises DiskFailed when it cannot."""
        if self.writable:
            try:
                os.fsync(self._fd)
            except OSError as error:
                raise self._failed("stored", error) from None

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    @property
    def geometry(self) -> Geometry:
        """The drive's own geometry, for IDENTIFY DEVICE."""
        guess = self._partitioned_geometry()
        if guess is not None and guess.heads <= HEADS:
            return guess
        cylinders = self.sectors // (HEADS * SECTORS_PER_TRACK)
        return Geometry(min(max(cylinders, 2), MAX_CYLINDERS), HEADS, SECTORS_PER_TRACK)

    @property
    def bios_geometry(self) -> Geometry:
        """The geometry that INT 13h shows: at most 1024 cylinders."""
        guess = self._partitioned_geometry() or self.geometry
        if guess.heads > HEADS or guess.cylinders <= BIOS_CYLINDERS:
            return guess._replace(cylinders=min(guess.cylinders, BIOS_CYLINDERS))
        tracks = self.sectors // SECTORS_PER_TRACK
        heads = next((heads for heads in BIOS_HEADS if tracks <= BIOS_CYLINDERS * heads), BIOS_HEADS[-1])
        return Geometry(min(tracks // heads, BIOS_CYLINDERS), heads, SECTORS_PER_TRACK)

    def state(self) -> State:
        """The overlay. What went to a writable image is in its file, and not in here."""
        return {"overlay": {str(number): base64.b85encode(self._overlay[number]).decode() for number in self._overlay}}

    def load_state(self, state: State) -> None:
        """Take over what ``state`` returned for the same image. Raises BadInput when it is no such thing."""
        check_fields("Disk", state, ("overlay",))
        self._overlay = {int(number): base64.b85decode(data) for number, data in state["overlay"].items()}

    def _partitioned_geometry(self) -> Geometry | None:
        """What the partition table was made for: a partition ends with the last sector of a cylinder."""
        try:
            sector = self.read(0, 1)
        except DiskFailed:  # whoever reads it as data is told
            return None
        if sector[-2:] != MBR_SIGNATURE:
            return None
        for begin in range(MBR_TABLE, SECTOR - 2, MBR_ENTRY):
            entry = sector[begin : begin + MBR_ENTRY]
            heads, sectors = entry[ENTRY_END_HEAD] + 1, entry[ENTRY_END_SECTOR] & 0x3F
            if any(entry[ENTRY_SECTORS]) and heads > 1 and sectors:
                cylinders = self.sectors // (heads * sectors)
                if 1 <= cylinders <= MAX_CYLINDERS:
                    return Geometry(cylinders, heads, sectors)
        return None

    def _failed(self, what: str, error: OSError) -> DiskFailed:
        """What to raise for a failure of the host, of which the first of its kind is told."""
        reason = f"cannot be {what}: {error.strerror or error}"
        if reason not in self._told:
            self._told.add(reason)
            self.on_failure(self.name, reason)
        return DiskFailed(self.name, str(error.strerror))

    def _check(self, lba: int, count: int) -> None:
        if lba < 0 or count < 0 or lba + count > self.sectors:
            raise IndexError(f"{self.name}: {count} sectors from {lba} of {self.sectors}")

    def _cluster(self, number: int) -> bytes:
        """Contents of a cluster of the overlay's size; zeros behind the end of the disk."""
        data = self._overlay.get(number)
        return self._read_file(number * CLUSTER, CLUSTER) if data is None else data

    def _read_file(self, offset: int, size: int) -> bytes:
        """Bytes of the file; zeros behind its end."""
        pieces, wanted = [], size
        try:
            while wanted:
                piece = os.pread(self._fd, wanted, offset + size - wanted)
                if not piece:
                    pieces.append(bytes(wanted))
                    break
                pieces.append(piece)
                wanted -= len(piece)
        except OSError as error:
            raise self._failed("read", error) from None
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _write_file(self, offset: int, data: bytes) -> None:
        view = memoryview(data)
        try:
            while view:
                written = os.pwrite(self._fd, view, offset)
                view, offset = view[written:], offset + written
        except OSError as error:
            raise self._failed("written", error) from None


def _open_image(path: str, writable: bool) -> BinaryIO:
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            raise BadInput(path, "a directory, not a disk image")
        if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):  # a pipe would wait for its other end
            raise BadInput(path, "neither a file nor a block device, not a disk image")
        file = open(path, "r+b" if writable else "rb", buffering=0)
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise BadInput(path, f"cannot be opened as a disk image: {reason}") from None
    _lock(path, file, writable)
    return file


def _lock(path: str, file: BinaryIO, writable: bool) -> None:
    """Whoever writes into an image has it alone, in this process and in others; readers may be many."""
    try:
        fcntl.flock(file, (fcntl.LOCK_EX if writable else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        who = "is used by another drive or run" if writable else "is being written to by another drive or run"
        raise BadInput(path, who) from None
    except OSError:  # a file system without locks
        pass
