"""Files that a sub-command reads and writes; whatever goes wrong with one is BadInput."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

from emu.errors import BadInput


def read_file(path: str) -> bytes:
    """The contents of an input file.

    Raises:
        BadInput: it cannot be read.
    """
    try:
        return Path(path).read_bytes()
    except (OSError, ValueError) as error:
        raise BadInput(path, f"cannot be read: {_reason(error)}") from None


class OutputFile:
    """A file opened for writing at once, so that a wrong name is found before the guest starts.

    Args:
        option: the option that named it.
        name: its path; ``-`` is standard output.
        inputs: names that must not be overwritten.

    Raises:
        BadInput: from every method, when the file cannot be written.
    """

    def __init__(self, option: str, name: str, inputs: Iterable[str] = ()) -> None:
        self._option = option
        self._name = name
        path = Path(name)
        try:
            if any(path.exists() and Path(other).exists() and path.samefile(other) for other in inputs):
                raise BadInput(option, f"{name} is an input of this run and would be overwritten")
            self._file = sys.stdout.buffer if name == "-" else path.open("wb")
        except (OSError, ValueError) as error:
            raise self._bad(error) from None

    def write(self, data: bytes) -> None:
        try:
            self._file.write(data)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise self._bad(error) from None

    def close(self) -> None:
        """Write what is still buffered."""
        try:
            if self._name == "-":
                self._file.flush()
            else:
                self._file.close()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise self._bad(error) from None

    def _bad(self, error: Exception) -> BadInput:
        return BadInput(self._option, f"{self._name} cannot be written: {_reason(error)}")


def open_output(files: ExitStack, option: str, name: str | None, inputs: Iterable[str]) -> OutputFile | None:
    """An :class:`OutputFile` that ``files`` closes; None without a name."""
    if name is None:
        return None
    file = OutputFile(option, name, inputs)
    files.callback(file.close)
    return file


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
