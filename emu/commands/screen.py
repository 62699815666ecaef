"""What a run shows: the guest's console, and on a terminal a line about its progress."""

from __future__ import annotations

import os
import select
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO, TextIO

from emu.errors import BadInput

if TYPE_CHECKING:
    from emu.machine.vm import VirtualMachine

_PATIENCE_S = 2.0  # a run gets a progress line after this
_PERIOD_S = 0.5  # from one progress line to the next
_LOOK_MS = 100  # between two looks whether the run is to end
_ERASE = "\r\x1b[K"  # the line that the cursor is in


class Screen:
    """Passes on what the guest prints, at once, and keeps it apart from what emu has to say on standard error.

    Args:
        file: where the guest's console goes.
        name: what this is called in errors.
        given_up: whether the run is to end: what nobody reads is not waited for then, and lost.
    """

    def __init__(
        self, file: BinaryIO, name: str = "standard output", given_up: Callable[[], bool] = lambda: False
    ) -> None:
        self._file = file
        self._given_up = given_up
        self._waits = _may_wait(file)
        self._name = name
        self._lock = threading.Lock()
        self._shared = _same_terminal(file, sys.stderr)
        self._in_line = False  # the guest's last line has no end yet
        self._noted = False  # a progress line is to be seen

    def __call__(self, data: bytes) -> None:
        """Show what the guest prints.

        Raises:
            BadInput: it cannot be written.
        """
        with self._lock:
            self._erase()
            try:
                if self._waits:
                    self._write_in_pieces(data)
                else:
                    self._file.write(data)
                    self._file.flush()
            except BrokenPipeError:
                raise
            except OSError as error:
                raise BadInput(self._name, f"cannot be written: {error.strerror or error}") from None
            self._in_line = not data.endswith(b"\n")

    def _write_in_pieces(self, data: bytes) -> None:
        """To a pipe or terminal, whose reader may not read: a write that waits hears no limit."""
        self._file.flush()
        file = self._file.fileno()
        poll = select.poll()
        poll.register(file, select.POLLOUT)
        while data:
            if poll.poll(_LOOK_MS):
                data = data[os.write(file, data[: select.PIPE_BUF]) :]
            elif self._given_up():
                return

    def note(self, text: str) -> None:
        """Show a line that the next output takes away, unless it would tear a line of the guest."""
        with self._lock:
            if not (self._shared and self._in_line):
                width = os.get_terminal_size(sys.stderr.fileno()).columns or 80
                sys.stderr.write(_ERASE + text[: width - 1])
                sys.stderr.flush()
                self._noted = True

    def leave(self) -> None:
        """Leave standard error at the beginning of a line, for what emu has to say."""
        with self._lock:
            self._erase()
            if self._shared and self._in_line:
                print(file=sys.stderr)
            self._in_line = False

    def _erase(self) -> None:
        if self._noted:
            sys.stderr.write(_ERASE)
            sys.stderr.flush()
            self._noted = False


def _may_wait(file: BinaryIO) -> bool:
    """Whether a write may wait for somebody to read."""
    try:
        return not stat.S_ISREG(os.fstat(file.fileno()).st_mode)
    except OSError:  # no file of the operating system
        return False


def _same_terminal(file: BinaryIO, other: TextIO) -> bool:
    try:
        if not (os.isatty(file.fileno()) and os.isatty(other.fileno())):
            return False
        return os.fstat(file.fileno()).st_rdev == os.fstat(other.fileno()).st_rdev
    except OSError:  # no file of the operating system
        return False


@contextmanager
def progress(vm: VirtualMachine, screen: Screen) -> Iterator[None]:
    """Where standard error is a terminal, show there from time to time how far a run has come."""
    if not sys.stderr.isatty():
        yield
        return
    done = threading.Event()

    def show() -> None:
        virtual, wall = vm.now, time.monotonic()
        waited = done.wait(_PATIENCE_S)
        while not waited:
            now, clock = vm.now, time.monotonic()
            speed = (now - virtual) / (clock - wall) / 1e9
            frames = f"{vm.pool.used} of {vm.pool.size} frames"
            screen.note(f"emu: {now / 1e9:.1f} s virtual, {speed:.2f}x wall clock, {frames}")
            virtual, wall = now, clock
            waited = done.wait(_PERIOD_S)

    thread = threading.Thread(target=show, daemon=True)
    try:
        thread.start()
    except RuntimeError:  # the host has no thread for it
        yield
        return
    try:
        yield
    finally:
        done.set()
        thread.join()
        screen.leave()
