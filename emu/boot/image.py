"""GuestImage: what a guest's pseudo-physical memory holds before its first instruction."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from emu.addr import PAGE_SHIFT, PAGE_SIZE
from emu.errors import BadInput, EmuError


class ImageChanged(EmuError):
    """A guest's file can no longer be read as it was when the guest started."""


class Source(Protocol):
    """Bytes that can be read piece by piece."""

    def __len__(self) -> int: ...

    def read(self, offset: int, size: int) -> bytes: ...


class BytesSource:
    """Contents in host memory."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def __len__(self) -> int:
        return len(self._data)

    def read(self, offset: int, size: int) -> bytes:
        return self._data[offset : offset + size]


class FileSource:
    """A part of a file, read when it is needed.

    Args:
        path: the file.
        offset: where the part begins.
        size: its length in bytes.
    """

    def __init__(self, path: Path, offset: int, size: int) -> None:
        self._path = path
        self._file = path.open("rb")
        self._offset = offset
        self._size = size

    def __len__(self) -> int:
        return self._size

    def read(self, offset: int, size: int) -> bytes:
        size = min(size, self._size - offset)
        self._file.seek(self._offset + offset)
        data = self._file.read(size)
        if len(data) != size:
            raise ImageChanged(f"{self._path}: shorter than when the guest started")
        return data


def open_source(path: Path) -> FileSource:
    """A whole regular file.

    Raises:
        BadInput: it is none, or cannot be read.
    """
    try:
        if path.exists() and not path.is_file():
            raise BadInput(str(path), "this is a directory" if path.is_dir() else "this is no regular file")
        return FileSource(path, 0, path.stat().st_size)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or str(error)
        raise BadInput(str(path), f"cannot be read: {reason}") from None


@dataclass(frozen=True)
class _Segment:
    gpa: int
    source: Source

    @property
    def end(self) -> int:
        return self.gpa + len(self.source)


class GuestImage:
    """Pieces of contents at gpas; everything else is zero.  Where pieces overlap the later one counts."""

    def __init__(self) -> None:
        self._segments: list[_Segment] = []

    def add(self, gpa: int, source: Source | bytes) -> None:
        """Place ``source`` at ``gpa``."""
        if isinstance(source, bytes):
            source = BytesSource(source)
        if len(source):
            self._segments.append(_Segment(gpa, source))

    def add_below(self, other: GuestImage) -> None:
        """Place all pieces of ``other`` such that those that are here already count before them."""
        self._segments[:0] = other._segments

    @property
    def end(self) -> int:
        """The gpa behind the highest piece."""
        return max((segment.end for segment in self._segments), default=0)

    def gfns(self) -> Iterator[int]:
        """Every gfn that has contents, in ascending order."""
        found: set[int] = set()
        for segment in self._segments:
            found.update(range(segment.gpa >> PAGE_SHIFT, (segment.end - 1 >> PAGE_SHIFT) + 1))
        return iter(sorted(found))

    def gfns_outside(self, memory: list[range]) -> list[int]:
        """The gfns that have contents and are not in the ranges of gpas ``memory``."""
        return [gfn for gfn in self.gfns() if not any(gfn << PAGE_SHIFT in part for part in memory)]

    def prepare(self) -> None:
        """Have every piece ready: some are made when somebody first looks at them."""
        for segment in self._segments:
            segment.source.read(0, 1)

    def page(self, gfn: int) -> bytes:
        """The PAGE_SIZE bytes of ``gfn``."""
        begin = gfn << PAGE_SHIFT
        page = bytearray(PAGE_SIZE)
        for segment in self._segments:
            low, high = max(begin, segment.gpa), min(begin + PAGE_SIZE, segment.end)
            if low < high:
                page[low - begin : high - begin] = segment.source.read(low - segment.gpa, high - low)
        return bytes(page)
