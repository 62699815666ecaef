"""Ctrl-C and SIGTERM, from the first line of the command to the last.

Before a guest runs, a signal ends the command where it is; while one runs, it stops the run, and everything is written
as at any other end; after that the command is ending anyway, and the signal is only noted. The exit status is 128 and
the signal's number in the first two cases. Who is impatient sends another one after IMPATIENCE_S: that ends the process
at once, whatever it does.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Protocol

SIGNALS = (signal.SIGINT, signal.SIGTERM)
NAMES = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}
IMPATIENCE_S = 1.0
_PATIENCE_S = 0.3  # that is given to what should end at once: an exception can be lost in a callback


class Stoppable(Protocol):
    """What runs: a VM, or a fleet of them."""

    def request_stop(self) -> None: ...


class Interrupted(BaseException):
    """A signal where no guest runs.

    It is no KeyboardInterrupt: Python ends a process by SIGINT when one has passed through ``exec``, caught or not.

    Attributes:
        number: the signal's.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class _Signals:
    """What has come, and what to do about it."""

    def __init__(self) -> None:
        self.taken = False  # our handlers are in force
        self._armed = False  # the timer of _late
        self.begin()

    def begin(self) -> None:
        """Forget what has come."""
        self.seen: list[int] = []
        self.run: Stoppable | None = None
        self.ending = False
        self._first = 0.0  # when the first one came, in s

    def handle(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.seen and now - self._first > IMPATIENCE_S:
            _leave(number)
        if self.seen:
            return
        self._first = now
        self.seen.append(number)
        if self.run is not None:
            self.run.request_stop()
        elif not self.ending:
            signal.signal(signal.SIGALRM, self._late)
            self._armed = True
            signal.setitimer(signal.ITIMER_REAL, _PATIENCE_S)
            raise Interrupted(number)

    def disarm(self) -> None:
        """What should end does."""
        if self._armed:
            self._armed = False
            signal.setitimer(signal.ITIMER_REAL, 0)

    def _late(self, number: int, frame: FrameType | None) -> None:
        if self.run is None and not self.ending:
            _leave(self.seen[0])


_signals = _Signals()


def _leave(number: int) -> None:
    """End the process now."""
    os.write(2, f"emu: ended at once by {NAMES[signal.Signals(number)]}\n".encode())
    os._exit(128 + number)


@contextmanager
def taken_over(for_ever: bool) -> Iterator[None]:
    """Have signals dealt with as this module says.

    Args:
        for_ever: the process ends afterwards; what comes between is ignored.
    """
    _signals.begin()
    try:
        before = {number: signal.signal(number, _signals.handle) for number in SIGNALS}
    except ValueError:  # not the main thread: signals are somebody else's business
        yield
        return
    _signals.taken = True
    try:
        yield
    finally:
        _signals.disarm()
        _signals.taken = False
        for number, handler in before.items():
            signal.signal(number, signal.SIG_IGN if for_ever else handler)


@contextmanager
def stop_on_signals(run: Stoppable, last: bool = False) -> Iterator[list[int]]:
    """Ctrl-C and SIGTERM end the run between two blocks of guest code; the list gets the signal's number.

    Args:
        last: nothing else runs after it: the command is ending then.
    """
    if _signals.taken:
        seen = _signals.seen
        _signals.run = run
        if seen:  # what should have ended the start was lost in a callback
            run.request_stop()
        try:
            yield seen
        finally:
            _signals.ending = last
            _signals.run = None
            if not last:
                _signals.begin()
        return
    with taken_over(for_ever=False):
        if not _signals.taken:
            yield []
            return
        with stop_on_signals(run, last) as seen:
            yield seen


@contextmanager
def as_interruption() -> Iterator[None]:
    """Whatever a signal has made of the start, such as a module that cannot be imported, is Interrupted."""
    try:
        yield
    except BaseException:
        if _signals.seen and _signals.run is None and not _signals.ending:
            raise Interrupted(_signals.seen[0]) from None
        raise


def describe(error: BaseException) -> tuple[int, str]:
    """The exit status for an interruption, and what to say."""
    number = signal.Signals(error.number if isinstance(error, Interrupted) else signal.SIGINT)
    return 128 + number, f"stopped by {NAMES[number]}"


def go_on() -> None:
    """An Interrupted has been caught, and is no reason to end."""
    _signals.disarm()
    _signals.begin()
