"""A file that is written whole: whoever reads it, whenever this process is killed, finds the old contents or the new.

The new contents go into a file beside it, which then takes its name (rename(2) is atomic).  A process that may create
no files any more (``emu run --sandbox``) holds the file open instead, and writes over what is there.
"""

from __future__ import annotations

import os
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

_NEW_FILE_MODE = 0o666  # less what the umask takes


class WholeFile:
    """A file to be written once, found writable at once and unchanged until then.

    What is no regular file, such as /dev/null or a pipe, is just opened.

    Args:
        path: the file; a symbolic link is followed.

    Raises:
        OSError, ValueError: from every method, when it cannot be written.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(os.path.realpath(path))
        self._held: int | None = None
        try:
            mode = os.stat(self.path).st_mode
        except FileNotFoundError:
            descriptor, name = self._beside()  # only to see whether that is possible
            os.close(descriptor)
            os.unlink(name)
            return
        if stat.S_ISREG(mode):
            os.close(os.open(self.path, os.O_WRONLY | os.O_CLOEXEC))
        else:
            self._held = os.open(self.path, os.O_WRONLY | os.O_CLOEXEC)

    def hold(self) -> None:
        """Open it now: later on, no file can be opened or renamed."""
        if self._held is None:
            self._held = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, _NEW_FILE_MODE)

    def write(self, contents: bytes) -> None:
        """Give it these contents."""
        if self._held is not None:
            _write_all(self._held, contents)
            if stat.S_ISREG(os.fstat(self._held).st_mode):
                os.ftruncate(self._held, len(contents))
            return
        descriptor, name = self._beside()
        try:
            try:
                _write_all(descriptor, contents)
                os.fchmod(descriptor, self._mode())
            finally:
                os.close(descriptor)
            os.replace(name, self.path)
        except BaseException:
            with suppress(OSError):
                os.unlink(name)
            raise

    def close(self) -> None:
        """Let go of it."""
        if self._held is not None:
            held, self._held = self._held, None
            os.close(held)

    def _beside(self) -> tuple[int, str]:
        return tempfile.mkstemp(dir=self.path.parent, prefix=f".{self.path.name[:64]}.")

    def _mode(self) -> int:
        try:
            return stat.S_IMODE(os.stat(self.path).st_mode)
        except FileNotFoundError:
            umask = os.umask(0)
            os.umask(umask)
            return _NEW_FILE_MODE & ~umask


def _write_all(descriptor: int, contents: bytes) -> None:
    left = memoryview(contents)
    while left:
        left = left[os.write(descriptor, left) :]


def write_whole(path: str | Path, contents: bytes) -> None:
    """Write a file whole.

    Raises:
        OSError, ValueError: it cannot be written; it has its old contents.
    """
    file = WholeFile(path)
    try:
        file.write(contents)
    finally:
        file.close()
