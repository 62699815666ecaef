"""Stores: where the contents of evicted pages are.

A store belongs to one VM and keeps one page for each gfn.  Whatever it hands back has passed a checksum over the page,
so that damage in between becomes a :class:`StoreCorrupt` and never other contents.
"""

from __future__ import annotations

import fcntl
import os
import stat
import struct
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from heapq import heappop, heappush
from pathlib import Path
from typing import Protocol

from xxhash import xxh64_intdigest

from emu.addr import PAGE_SIZE
from emu.dmm.errors import CompressionFailed, StoreCorrupt, StoreFailed, StoreFull
from emu.errors import BadInput


@dataclass
class Statistics:
    """What a store has done.

    Attributes:
        reads, writes: pages handed out and taken in.
        bytes_stored: bytes that the contents take there now.
        spilled: pages moved on to the store below.
    """

    reads: int = 0
    writes: int = 0
    bytes_stored: int = 0
    spilled: int = 0


class PageStore(Protocol):
    """One VM's store."""

    statistics: Statistics

    def put(self, gfn: int, contents: bytes) -> None:
        """Store a page, PAGE_SIZE bytes, in the place of what was stored for ``gfn`` before.

        Raises:
            StoreError: it cannot; what was stored before still is.
        """

    def get(self, gfn: int) -> bytes:
        """The contents of a stored page, which stays stored.

        Raises:
            KeyError: there is none for ``gfn``.
            StoreError: it cannot be had.
        """

    def drop(self, gfn: int) -> None:
        """Forget a page, if it is stored."""

    def __contains__(self, gfn: int) -> bool: ...

    def __len__(self) -> int: ...

    def gfns(self) -> list[int]:
        """The stored pages in ascending order."""

    def forget_names(self) -> None:
        """Remove the name of a file now; the file itself lives on until :meth:`close`.

        Raises:
            BadInput: the host refuses.
        """

    def close(self) -> None:
        """Give back all that the store holds; it must not be used any more.

        Raises:
            BadInput: its file cannot be removed.
        """


def _check_size(contents: bytes) -> None:
    if len(contents) != PAGE_SIZE:
        raise ValueError(f"{len(contents)} bytes are no page")


# --- in a file --------------------------------------------------------------------------------------------------

FILE_HEADER = b"emu swap file 1: evicted pages of a guest, of no use after its run\n"
SLOTS_AT = PAGE_SIZE  # offset of the first slot
_SLOT_MAGIC = 0x6D65_6770_746F_6C73
_SLOT_HEADER = struct.Struct("<QQQQ")  # xxh64 of all that follows it in the slot, magic, gfn, sequence number
SLOT_SIZE = _SLOT_HEADER.size + PAGE_SIZE


class FileStore:
    """Pages in the slots of a file, which exists while the store does.

    A slot tells its gfn and a number that no two writes share, so a write that was lost, a slot that is read in the
    place of another, damage and truncation are all noticed.  A page is never written over its own older contents, but
    into the lowest free slot: the older ones are good until the new ones are complete.

    The file is a new one, or one that an emu that crashed has left behind.  It is locked, and removed at the end.

    Args:
        vm: the VM's name.
        path: the file.
        limit_bytes: contents that may be stored; the file is up to 1 % and three pages larger.

    Raises:
        BadInput: the file is something else, is in use by another VM, or cannot be created.
    """

    def __init__(self, vm: str, path: str | Path, limit_bytes: int) -> None:
        self.statistics = Statistics()
        self._vm = vm
        self._path = Path(path)
        self._limit = limit_bytes // PAGE_SIZE
        self._where: dict[int, tuple[int, int]] = {}  # gfn: slot, sequence number
        self._free: list[int] = []  # a heap: slots below _slots that hold nothing
        self._slots = 0
        self._sequence = 0
        self._buffer = bytearray(SLOT_SIZE)
        self._hashed = memoryview(self._buffer)[8:]
        self._fd = _open_exclusively(self._path)

    def put(self, gfn: int, contents: bytes) -> None:
        _check_size(contents)
        before = self._where.get(gfn)
        if before is None and len(self._where) >= self._limit:
            raise StoreFull(self._vm, gfn, f"{self._path} holds {self._limit} pages, which is its limit")
        if self._free:
            slot = heappop(self._free)
        else:
            slot = self._slots
            self._slots += 1
        self._sequence += 1
        try:
            self._write(slot, gfn, contents)
        except OSError as error:
            heappush(self._free, slot)
            raise StoreFailed(self._vm, gfn, f"{self._path} cannot be written: {error.strerror or error}") from error
        self._where[gfn] = slot, self._sequence
        if before is None:
            self.statistics.bytes_stored += PAGE_SIZE
        else:
            heappush(self._free, before[0])
        self.statistics.writes += 1

    def _write(self, slot: int, gfn: int, contents: bytes) -> None:
        _SLOT_HEADER.pack_into(self._buffer, 0, 0, _SLOT_MAGIC, gfn, self._sequence)
        self._buffer[_SLOT_HEADER.size :] = contents
        self._buffer[:8] = xxh64_intdigest(self._hashed).to_bytes(8, "little")
        offset = SLOTS_AT + slot * SLOT_SIZE
        done = os.pwrite(self._fd, self._buffer, offset)
        while done < SLOT_SIZE:  # the host tells the reason for a short write when asked to go on
            done += os.pwrite(self._fd, self._buffer[done:], offset + done)

    def get(self, gfn: int) -> bytes:
        slot, sequence = self._where[gfn]
        try:
            data = os.pread(self._fd, SLOT_SIZE, SLOTS_AT + slot * SLOT_SIZE)
        except OSError as error:
            raise StoreFailed(self._vm, gfn, f"{self._path} cannot be read: {error.strerror or error}") from error
        if len(data) != SLOT_SIZE:
            raise StoreCorrupt(self._vm, gfn, f"{self._path} ends within slot {slot}")
        checksum, magic, owner, number = _SLOT_HEADER.unpack_from(data)
        if checksum != xxh64_intdigest(memoryview(data)[8:]):
            raise StoreCorrupt(self._vm, gfn, f"slot {slot} of {self._path} does not match its checksum")
        if (magic, owner, number) != (_SLOT_MAGIC, gfn, sequence):
            what = f"slot {slot} of {self._path} holds write {number} for gfn {owner:#x} instead of write {sequence}"
            raise StoreCorrupt(self._vm, gfn, what)
        self.statistics.reads += 1
        return data[_SLOT_HEADER.size :]

    def drop(self, gfn: int) -> None:
        place = self._where.pop(gfn, None)
        if place is not None:
            heappush(self._free, place[0])
            self.statistics.bytes_stored -= PAGE_SIZE

    def __contains__(self, gfn: int) -> bool:
        return gfn in self._where

    def __len__(self) -> int:
        return len(self._where)

    def gfns(self) -> list[int]:
        return sorted(self._where)

    def forget_names(self) -> None:
        try:
            if _is_at(self._fd, self._path):
                self._path.unlink()
        except OSError as error:
            raise self._kept(error) from None

    def _kept(self, error: OSError) -> BadInput:
        return BadInput("--policy", f"{self._path} cannot be removed: {error.strerror or error}")

    def close(self) -> None:
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            try:
                _abandon(fd, self._path, True)
            except OSError as error:
                raise self._kept(error) from None


def _open_exclusively(path: Path) -> int:
    """A descriptor of an empty swap file that nobody else uses.  No other file is ever changed."""

    def refuse(why: str) -> BadInput:
        return BadInput("--policy", f"{path} {why}")

    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        try:
            fd, new = _create(path, flags), True
        except FileExistsError:
            # O_NONBLOCK: a pipe must not make us wait before it is refused
            fd, new = os.open(path, flags | os.O_NONBLOCK), False
    except (OSError, ValueError) as error:
        raise refuse(f"cannot be used as a swap file: {getattr(error, 'strerror', None) or error}") from None
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise refuse("is no regular file")
        if not new and os.pread(fd, len(FILE_HEADER), 0) != FILE_HEADER:
            raise refuse("exists and is no swap file of emu; it is left alone")
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise refuse("is the swap file of another VM that is running") from None
        if not _is_at(fd, path):
            raise refuse("was the swap file of another VM, which has just ended; try again")
        os.ftruncate(fd, 0 if new else len(FILE_HEADER))  # at no moment is it a file that the next run refuses
        if os.pwrite(fd, FILE_HEADER, 0) != len(FILE_HEADER):
            raise refuse("cannot be written: there is no room for its header")
    except OSError as error:
        _abandon(fd, path, new)
        raise refuse(f"cannot be used as a swap file: {error.strerror or error}") from None
    except BaseException:
        _abandon(fd, path, new)
        raise
    return fd


def _create(path: Path, flags: int) -> int:
    """A new file with a header; where the file system can, it has no name before.  Raises FileExistsError."""
    try:
        fd = os.open(path.parent, os.O_RDWR | os.O_CLOEXEC | os.O_TMPFILE, 0o600)
    except OSError:
        return os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.pwrite(fd, FILE_HEADER, 0)  # whether it is there is seen later, with a reason
        # a directory is named only because link(2), which Python calls without one, does not follow the link in /proc
        os.link(f"/proc/self/fd/{fd}", path, src_dir_fd=fd)
    except FileExistsError:
        os.close(fd)
        raise
    except OSError:  # no /proc
        os.close(fd)
        return os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o600)
    return fd


def _abandon(fd: int, path: Path, remove: bool) -> None:
    try:
        if remove and _is_at(fd, path):
            path.unlink()
    finally:
        os.close(fd)


def _is_at(fd: int, path: Path) -> bool:
    """Whether ``path`` still leads to the file that ``fd`` is open on."""
    try:
        return os.path.samestat(os.fstat(fd), path.lstat())
    except FileNotFoundError:
        return False


# --- compressed, in host memory ---------------------------------------------------------------------------------

_WORTHWHILE = PAGE_SIZE * 3 // 4  # bytes; what does not become smaller is not kept compressed

Codec = tuple[Callable[[bytes], bytes], Callable[[bytes], bytes]]


def _lz4() -> Codec:
    from lz4.block import compress, decompress  # type: ignore[import-untyped]

    return lambda page: compress(page, store_size=False), lambda packed: decompress(packed, PAGE_SIZE)


def _zstd() -> Codec:
    from zstandard import ZstdCompressor, ZstdDecompressor

    pack, unpack = ZstdCompressor(level=1), ZstdDecompressor()
    return pack.compress, lambda packed: unpack.decompress(packed, PAGE_SIZE)


ALGORITHMS = {"lz4": _lz4, "zstd": _zstd}


class CompressedStore:
    """Pages compressed in host memory, in front of a slower store.

    When its limit is reached it moves as many pages as needed to the store below, those that were put first at first.
    A page that stays larger than three quarters goes there directly; with nothing below it is kept as it is.

    Args:
        vm: the VM's name.
        limit_bytes: compressed contents that it may hold.
        below: takes the rest, and belongs to this store from now on; with None there is no room for a rest.
        algorithm: a name in ALGORITHMS.
    """

    def __init__(self, vm: str, limit_bytes: int, below: PageStore | None = None, algorithm: str = "lz4") -> None:
        self.statistics = Statistics()
        self._vm = vm
        self._limit = limit_bytes
        self._below = below
        self._compress, self._decompress = ALGORITHMS[algorithm]()
        self._packed: OrderedDict[int, tuple[bytes, int]] = OrderedDict()  # contents, xxh64 of the page; oldest first

    def put(self, gfn: int, contents: bytes) -> None:
        _check_size(contents)
        try:
            packed = self._compress(contents)
        except Exception as error:
            raise CompressionFailed(self._vm, gfn, f"compression failed: {error}") from error
        if len(packed) > _WORTHWHILE:
            packed = contents
        if self._below is not None and (packed is contents or len(packed) > self._limit):
            self._below.put(gfn, contents)
            self._forget(gfn)
        else:
            self._make_room(gfn, len(packed))
            self._forget(gfn)
            self._packed[gfn] = packed, xxh64_intdigest(contents)
            self.statistics.bytes_stored += len(packed)
            if self._below is not None:
                self._below.drop(gfn)
        self.statistics.writes += 1

    def _make_room(self, gfn: int, size: int) -> None:
        """Move pages other than ``gfn`` on until ``size`` bytes in the place of its older contents fit."""
        before = self._packed.get(gfn)
        size -= len(before[0]) if before is not None else 0
        if self.statistics.bytes_stored + size <= self._limit:
            return
        if self._below is None:
            raise StoreFull(self._vm, gfn, f"{self._limit} bytes of compressed pages are its limit")
        while self.statistics.bytes_stored + size > self._limit:
            oldest = next(other for other in self._packed if other != gfn)
            self._below.put(oldest, self._unpack(oldest))
            self._forget(oldest)
            self.statistics.spilled += 1

    def _unpack(self, gfn: int) -> bytes:
        packed, checksum = self._packed[gfn]
        if len(packed) == PAGE_SIZE:
            contents = packed
        else:
            try:
                contents = self._decompress(packed)
            except Exception as error:
                raise StoreCorrupt(self._vm, gfn, f"the compressed page cannot be decompressed: {error}") from error
        if len(contents) != PAGE_SIZE or xxh64_intdigest(contents) != checksum:
            raise StoreCorrupt(self._vm, gfn, "the compressed page does not match its checksum")
        return contents

    def _forget(self, gfn: int) -> None:
        before = self._packed.pop(gfn, None)
        if before is not None:
            self.statistics.bytes_stored -= len(before[0])

    def get(self, gfn: int) -> bytes:
        if gfn in self._packed:
            contents = self._unpack(gfn)
        elif self._below is not None:
            contents = self._below.get(gfn)
        else:
            raise KeyError(gfn)
        self.statistics.reads += 1
        return contents

    def drop(self, gfn: int) -> None:
        self._forget(gfn)
        if self._below is not None:
            self._below.drop(gfn)

    def __contains__(self, gfn: int) -> bool:
        return gfn in self._packed or (self._below is not None and gfn in self._below)

    def __len__(self) -> int:
        return len(self._packed) + (len(self._below) if self._below is not None else 0)

    def gfns(self) -> list[int]:
        return sorted([*self._packed, *(self._below.gfns() if self._below is not None else ())])

    def forget_names(self) -> None:
        if self._below is not None:
            self._below.forget_names()

    def close(self) -> None:
        self._packed.clear()
        if self._below is not None:
            self._below.close()
