"""Reference traces: which pages a run uses when, recorded once and replayed through every replacement algorithm.

Only references to pages outside a small window are recorded: the window holds the pages that were recorded last, and a
reference to one of them passes unseen, except the first write after reads.  What a replay of such a trace can say:

- If the replay keeps the pages of the window resident, as :mod:`emu.bench.policies` does, its faults are exactly those
  of the whole reference string under the same rule, because every reference left out is to a resident page.  Which
  pages are dirty is exact, too.
- Algorithms that look at accessed bits see each page accessed when it is recorded.  Where a bit was cleared while the
  page was in the window, a later reference left out would have set it again.
- For the optimum without that rule the filtered trace gives bounds: with f frames and a window of w pages its faults
  are no fewer than those of the filtered trace in f frames, and no more than those in f - w.

The idea of leaving out what hits a small memory is Smith's (Smith: "Two methods for the efficient analysis of memory
address trace data", IEEE Transactions on Software Engineering 3(1), 1977).
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections import OrderedDict
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from emu.dmm.interface import DmmInterface
from emu.dmm.p2m import ALL_RIGHTS, NO_RIGHTS, Intent
from emu.dmm.policy import Policy
from emu.errors import BadInput
from emu.infile import read_input
from emu.wholefile import WholeFile, write_whole

if TYPE_CHECKING:
    from emu.boot.image import GuestImage

Array = np.ndarray[Any, Any]

FILE_MAGIC = b"emu references 1\n"
_HEADER = struct.Struct("<17s7xQQ")  # magic, window, number of references; 40 bytes
MOST_BYTES = 1 << 30  # of a file
LEAST_WINDOW = 6
DEFAULT_WINDOW = 16


class Window:
    """The pages that were recorded last.

    Args:
        size: how many; with 0 it is always empty.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._gfns: OrderedDict[int, None] = OrderedDict()

    def add(self, gfn: int) -> int | None:
        """``gfn`` is recorded; returns the page that leaves the window for it, if one does."""
        self._gfns[gfn] = None
        self._gfns.move_to_end(gfn)
        return self._gfns.popitem(last=False)[0] if len(self._gfns) > self._size else None

    def __contains__(self, gfn: int) -> bool:
        return gfn in self._gfns


@dataclass(frozen=True, eq=False)
class ReferenceTrace:
    """The references of one run, of equal number in three arrays.

    Attributes:
        time: int64, virtual time in ns, each later than the one before: references at the same time are 1 ns apart.
        gfn: int64, the page.
        write: bool, whether it is a store.
        window: pages that the recorder let pass.
    """

    time: Array
    gfn: Array
    write: Array
    window: int = 0

    @classmethod
    def of(cls, gfns: list[int]) -> ReferenceTrace:
        """Loads of ``gfns`` at the times 1, 2, 3, …: a reference string as in textbooks."""
        return cls(np.arange(1, len(gfns) + 1), np.array(gfns, np.int64), np.zeros(len(gfns), np.bool_))

    def __len__(self) -> int:
        return len(self.time)

    @cached_property
    def pages(self) -> int:
        """How many different pages are referenced."""
        return len(np.unique(self.gfn))

    @cached_property
    def _uses(self) -> dict[int, list[int]]:
        order = np.argsort(self.gfn, kind="stable")
        gfns, starts = np.unique(self.gfn[order], return_index=True)
        times = np.split(self.time[order], starts[1:])
        return {gfn: uses.tolist() for gfn, uses in zip(gfns.tolist(), times, strict=False)}

    def next_use(self, gfn: int, now: int) -> int | None:
        """The time in ns of the first reference to ``gfn`` that is later than ``now``; None when there is none."""
        uses = self._uses.get(gfn, [])
        index = bisect_right(uses, now)
        return uses[index] if index < len(uses) else None

    def save(self, path: str | Path) -> None:
        """Write the trace to a file that is new or holds a trace already.

        The file is a header of 40 bytes, the times and the gfns as little-endian int64, and a byte 0 or 1 for each
        reference.

        Raises:
            BadInput: the file holds something else, or cannot be written.
        """
        path = Path(path)
        try:
            if path.exists():
                with path.open("rb") as before:
                    if before.read(len(FILE_MAGIC)) != FILE_MAGIC:
                        raise BadInput(str(path), "exists and is no reference trace; it is left alone")
            write_whole(path, self.packed())
        except (OSError, ValueError) as error:
            raise _unusable(path, "written", error) from None

    def packed(self) -> bytes:
        """The contents of its file."""
        parts = (self.time.astype("<i8"), self.gfn.astype("<i8"), self.write.astype("u1"))
        return _HEADER.pack(FILE_MAGIC, self.window, len(self)) + b"".join(part.tobytes() for part in parts)

    @classmethod
    def load(cls, path: str | Path) -> ReferenceTrace:
        """Read what :meth:`save` has written.

        Raises:
            BadInput: the file cannot be read or is no reference trace.
        """

        def refuse(what: str) -> BadInput:
            return BadInput(str(path), f"is no reference trace: {what}")

        data = read_input(str(path), path, MOST_BYTES, named=False)
        if len(data) < _HEADER.size or not data.startswith(FILE_MAGIC):
            raise refuse(f"it does not begin with {FILE_MAGIC.decode().strip()!r} and a header of {_HEADER.size} bytes")
        _, window, count = _HEADER.unpack_from(data)
        if len(data) != _HEADER.size + 17 * count:
            raise refuse(f"{count} references take {_HEADER.size + 17 * count} bytes, it has {len(data)}")
        times = np.frombuffer(data, "<i8", count, _HEADER.size)
        gfns = np.frombuffer(data, "<i8", count, _HEADER.size + 8 * count)
        writes = np.frombuffer(data, "u1", count, _HEADER.size + 16 * count)
        if (np.diff(times) <= 0).any():
            at = int(np.argmax(np.diff(times) <= 0)) + 1
            raise refuse(f"reference {at} is not later than the one before")
        if (gfns < 0).any() or (writes > 1).any():
            raise refuse(f"reference {int(np.argmax((gfns < 0) | (writes > 1)))} is damaged")
        return cls(times.astype(np.int64), gfns.astype(np.int64), writes.astype(np.bool_), window)


def _unusable(path: str | Path, what: str, error: Exception) -> BadInput:
    return BadInput(str(path), f"cannot be {what}: {getattr(error, 'strerror', None) or error}")


class ReferenceRecorder(Policy):
    """Records every reference of a guest to a page outside the window.  It is for runs without memory pressure.

    All rights on a page are withdrawn when it leaves the window, so that the next reference to it asks the DMM.  The
    walks through guest page tables are references like the guest's own, and so are stores by devices.  Loads by devices
    are not recorded.

    One instruction must find all its pages in the window at the same time, its tables included: code and data
    in 64-bit mode are up to nine pages, two operands and the stack more.  In a window that is too small the guest makes
    no progress (:class:`emu.dmm.errors.NoProgress`).

    Args:
        image: contents of the guest's memory at start.
        file: where :meth:`detach` saves the trace; None to keep it in memory alone.
        window: pages that are let pass, at least LEAST_WINDOW.

    Raises:
        BadInput: the file is something else or cannot be written, or the window is too small.
    """

    name = "record"

    def __init__(self, image: GuestImage, file: str | None = None, window: int = DEFAULT_WINDOW) -> None:
        if window < LEAST_WINDOW:
            raise BadInput("--policy", f"record: a window of {window} pages is too small, {LEAST_WINDOW} is the least")
        self._file = file
        self._held: WholeFile | None = None
        self.files = () if file is None else (file,)
        self._window_size = window
        self._window = Window(window)
        self._time: list[int] = []
        self._gfn: list[int] = []
        self._write: list[bool] = []
        if file is not None:
            self.trace().save(file)  # a file that cannot be written is found now

    def trace(self) -> ReferenceTrace:
        """What has been recorded so far."""
        return ReferenceTrace(
            np.array(self._time, np.int64), np.array(self._gfn, np.int64), np.array(self._write, np.bool_),
            self._window_size,
        )  # fmt: skip

    def attach(self, dmm: DmmInterface) -> None:
        super().attach(dmm)
        for gfn in dmm.p2m.resident().tolist():
            dmm.protect(gfn, NO_RIGHTS)

    def detach(self) -> None:
        """Save the trace.  The rights that are withdrawn still come back one by one, when the guest asks for them."""
        if self._held is not None:
            try:
                self._held.write(self.trace().packed())
                self._held.close()
            except OSError as error:
                raise _unusable(self._held.path, "written", error) from None
        elif self._file is not None:
            self.trace().save(self._file)

    def forget_names(self) -> None:
        if self._file is not None:
            try:
                self._held = WholeFile(self._file)
                self._held.hold()
            except OSError as error:
                raise _unusable(self._file, "written", error) from None

    def entered(self, gfn: int) -> None:
        self.dmm.protect(gfn, NO_RIGHTS)

    def denied(self, gfn: int, intent: Intent) -> bool:
        now = self.dmm.now
        write = bool(intent & Intent.WRITE)
        self._time.append(max(now, self._time[-1] + 1) if self._time else now)
        self._gfn.append(gfn)
        self._write.append(write)
        self.dmm.protect(gfn, ALL_RIGHTS if write else Intent.READ | Intent.EXECUTE)
        leaves = self._window.add(gfn)
        if leaves is not None and self.dmm.is_resident(leaves):
            self.dmm.protect(leaves, NO_RIGHTS)
        return True
