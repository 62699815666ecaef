"""Input files that are read whole: regular files up to a size, or what comes through a pipe in time."""

from __future__ import annotations

import os
import select
import stat
import time
from pathlib import Path

from emu.errors import BadInput
from emu.units import format_size

_PIECE = 1 << 20  # bytes read at once
_LOOK_S = 0.1  # between two looks whether a pipe has a writer
_NULL = os.makedev(1, 3)  # /dev/null


def read_input(
    what: str, path: str | Path, most: int, *, named: bool = True, timeout: float | None = None
) -> bytes:  # fmt: skip
    """The contents of a file.

    Args:
        what: the option, or the file, that an error is about.
        most: bytes.
        named: errors say the path, too, because ``what`` is another word.
        timeout: seconds that a pipe may take in all; None for no limit.

    Raises:
        BadInput: it cannot be read, is something else than a regular file, a pipe or /dev/null, is larger, or late.
    """

    def bad(reason: str) -> BadInput:
        return BadInput(what, f"{path} {reason}" if named else reason)

    try:
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise bad(f"cannot be read: {getattr(error, 'strerror', None) or error}") from None
    try:
        mode = os.fstat(file)
        if stat.S_ISDIR(mode.st_mode):
            raise bad("is a directory; expected a file")
        pipe = stat.S_ISFIFO(mode.st_mode)
        null = stat.S_ISCHR(mode.st_mode) and mode.st_rdev == _NULL
        if not (stat.S_ISREG(mode.st_mode) or pipe or null):
            raise bad("is a device; expected a file")
        if mode.st_size > most:
            raise bad(f"has {mode.st_size} bytes; expected {format_size(most)} at most")
        data = _read_pipe(file, most, timeout) if pipe else _read_file(file, most)
    except OSError as error:
        raise bad(f"cannot be read: {error.strerror or error}") from None
    finally:
        os.close(file)
    if data is None:
        raise bad(f"is a pipe from which not all has come within {timeout:g} s (--timeout)")
    if len(data) > most:
        raise bad(f"has more than the {format_size(most)} that are expected at most")
    return data


def _read_file(file: int, most: int) -> bytes:
    """All of a file, but one byte more than ``most`` at most: it may grow meanwhile."""
    data = bytearray()
    while len(data) <= most:
        piece = os.read(file, min(_PIECE, most + 1 - len(data)))
        if not piece:
            break
        data += piece
    return bytes(data)


def _read_pipe(file: int, most: int, timeout: float | None) -> bytes | None:
    """The same of a pipe; None when it takes too long.  Without a writer yet it reads as ended: that is waited for."""
    end = None if timeout is None else time.monotonic() + timeout
    poll = select.poll()
    poll.register(file, select.POLLIN)
    data, begun = bytearray(), False
    while len(data) <= most:
        if end is not None and time.monotonic() >= end:
            return None
        ready = poll.poll(_LOOK_S * 1000)
        if not ready:
            continue
        piece = os.read(file, min(_PIECE, most + 1 - len(data))) if ready[0][1] & select.POLLIN else b""
        begun = begun or bool(piece) or bool(ready[0][1] & select.POLLHUP)
        if not piece and begun:
            break
        data += piece
    return bytes(data)
