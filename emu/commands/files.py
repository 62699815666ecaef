"""Files that a sub-command reads and writes; whatever goes wrong with one is BadInput."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

from emu.errors import BadInput
from emu.infile import read_input
from emu.wholefile import WholeFile

if TYPE_CHECKING:
    from emu.machine.vm import VirtualMachine


MOST_INPUT = 64 << 20  # bytes that come in at a serial port, or that a script has


def read_file(option: str, path: str, timeout: float | None = None) -> bytes:
    """The contents of an input file, at most MOST_INPUT bytes.

    Args:
        option: the option that named it.
        timeout: seconds that it may take when it is a pipe.

    Raises:
        BadInput: it cannot be read, or is too large.
    """
    _check_name(option, path)
    return read_input(option, path, MOST_INPUT, timeout=timeout)


class OutputFile:
    """A file to write to, so that a wrong name is found before the guest starts.

    What is written piece by piece is opened at once, and empty then. A whole one (:mod:`emu.wholefile`) has its old
    contents until it is closed, and keeps them when nothing was written.

    Args:
        option: the option that named it.
        name: its path; ``-`` is standard output.
        inputs: names that must not be overwritten.
        outputs: what else is written; no file twice.
        whole: it is written at once, at the end.
        compress: what is written to a name that ends with ``.gz`` or ``.zst`` is compressed.

    Raises:
        BadInput: from every method, when the file cannot be written.
    """

    def __init__(
        self,
        option: str,
        name: str,
        inputs: Iterable[str] = (),
        outputs: Iterable[OutputFile] = (),
        whole: bool = False,
        compress: bool = True,
    ) -> None:
        self._option = option
        self._name = name
        self._raw: BinaryIO
        self._whole: WholeFile | None = None
        self._written = False
        _check_name(option, name)
        try:
            check_no_input(option, name, inputs)
            for other in outputs:
                if other.writes_to(name):
                    raise BadInput(option, f"{name} is written by {other._option} already")
            if name == "-":
                self._raw = sys.stdout.buffer
            elif whole:
                self._whole, self._raw = WholeFile(name), io.BytesIO()
            else:
                self._raw = Path(name).open("wb")
        except (OSError, ValueError) as error:
            raise self._bad(error) from None
        self._file = _compressed(self._raw, Path(name).suffix) if compress else self._raw

    def writes_to(self, name: str) -> bool:
        """Whether a file of this name is the same one.  What is no regular file, such as /dev/null, is never."""
        if "-" in (name, self._name):
            return name == self._name
        mine, path = Path(self._name), Path(name)
        if mine.exists() and path.exists():
            return mine.is_file() and mine.samefile(path)
        return os.path.realpath(mine) == os.path.realpath(path)

    def write(self, data: bytes) -> None:
        self._written = True
        try:
            self._file.write(data)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise self._bad(error) from None

    def hold(self) -> None:
        """Get ready for a process that can open and rename no files any more."""
        try:
            if self._whole is not None:
                self._whole.hold()
        except OSError as error:
            raise self._bad(error) from None

    def close(self) -> None:
        """Write what is still buffered."""
        try:
            if self._name == "-":
                self._file.flush()
                return
            if self._file is not self._raw:
                self._file.close()
            if self._whole is not None:
                if self._written:
                    self._whole.write(cast(io.BytesIO, self._raw).getvalue())
                self._whole.close()
            self._raw.close()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise self._bad(error) from None

    def _bad(self, error: Exception) -> BadInput:
        if self._name == "-":
            return BadInput("standard output", f"cannot be written: {_reason(error)}")
        return BadInput(self._option, f"{self._name} cannot be written: {_reason(error)}")


def _compressed(file: BinaryIO, suffix: str) -> BinaryIO:
    """``file``, or one that compresses what it writes to it; the same bytes give the same file."""
    if suffix == ".gz":
        import gzip

        return cast(BinaryIO, gzip.GzipFile("", "wb", fileobj=file, mtime=0))
    if suffix == ".zst":
        import zstandard

        return cast(BinaryIO, zstandard.ZstdCompressor().stream_writer(file, closefd=False))
    return file


def open_output(
    files: ExitStack,
    option: str,
    name: str | None,
    inputs: Iterable[str],
    outputs: Iterable[OutputFile | None] = (),
    whole: bool = False,
    compress: bool = True,
) -> OutputFile | None:
    """An :class:`OutputFile` that ``files`` closes; None without a name."""
    if name is None:
        return None
    file = OutputFile(option, name, inputs, [other for other in outputs if other is not None], whole, compress)
    files.callback(file.close)
    return file


def check_no_input(option: str, name: str, inputs: Iterable[str]) -> None:
    """Raise BadInput when a file that ``option`` is to write is one of ``inputs``."""
    path = Path(name)
    if any(path.is_file() and Path(other).exists() and path.samefile(other) for other in inputs):
        raise BadInput(option, f"{name} is used by this run already and would be overwritten")


def check_policy_files(vm: VirtualMachine, inputs: Iterable[str]) -> list[str]:
    """The files of a VM's policies, which outputs must not overwrite.

    Raises:
        BadInput: one of them is an input of the run.
    """
    files = [file for policy in vm.dmm.policies for file in policy.files]
    for file in files:
        for other in inputs:
            if Path(file).exists() and Path(other).exists() and Path(file).samefile(other):
                raise BadInput("--policy", f"{file} is an input of this run")
    return files


def _check_name(option: str, name: str) -> None:
    if not name:
        raise BadInput(option, "expected the name of a file")


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
