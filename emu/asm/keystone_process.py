"""Keystone in processes of its own: nothing that it does with a text can hang, break or end this one.

The child lives as long as its :class:`Keystone` and answers one request after the other; on a text that it does not
survive it is replaced.  The limits are CPU time, so that they do not depend on what else the machine does.
"""

from __future__ import annotations

import struct
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType

from emu.errors import EmuError

_CHILD = Path(__file__).with_name("keystone_child.py")
_REQUEST = struct.Struct("<QQd")  # size of the text, gpa of its beginning, seconds of CPU time
_ANSWER = struct.Struct("<BQ")  # 0 or 1 (refused), size of what follows: the bytes, or the reason
_PATIENCE, _LITTLE_PATIENCE = 3.0, 0.5  # s of CPU time, at first and once a text has been too much
_A_STATEMENT = 50e-6  # s more for each; one takes 1 to 3 us


class Refused(EmuError):
    """Keystone does not assemble a text, or does not survive it."""


class Keystone:
    """A context in which Keystone can be asked; its process starts with the first question."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._patience = _PATIENCE

    def __enter__(self) -> Keystone:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._end()

    def assemble(self, statements: Sequence[str], load: int) -> bytes:
        """The code of plain statements, of which the first one is at gpa ``load``; they begin in 16-bit code.

        Raises:
            Refused: they do not assemble.
            EmuError: the process cannot be started.
        """
        text = "\n".join([".code16", *statements, ""]).encode()
        process = self._started()
        assert process.stdin is not None and process.stdout is not None
        limit = self._patience + _A_STATEMENT * len(statements)
        try:
            process.stdin.write(_REQUEST.pack(len(text), load, limit) + text)
            process.stdin.flush()
            header = process.stdout.read(_ANSWER.size)
            refused, size = _ANSWER.unpack(header) if len(header) == _ANSWER.size else (0, 0)
            answer = process.stdout.read(size)
        except BrokenPipeError:
            header = answer = b""
        except BaseException:  # a signal: the child is in the middle of something
            self._end()
            raise
        if len(header) < _ANSWER.size or len(answer) < size:
            self._end()
            self._patience = _LITTLE_PATIENCE
            raise Refused("the assembler Keystone does not survive this")
        if refused:
            raise Refused(answer.decode(errors="replace").partition(" (")[0].lower())
        return answer

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            keystone = find_spec("keystone")  # it is loaded in the child
            if keystone is None or keystone.origin is None:
                raise EmuError("the assembler Keystone is not installed: pip install keystone-engine")
            command = [sys.executable, "-I", "-S", str(_CHILD), str(Path(keystone.origin).parents[1])]
            try:
                self._process = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
                )
            except OSError as error:
                raise EmuError(f"the assembler cannot be started: {error.strerror or error}") from None
        return self._process

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None
