"""A terminal as a guest's serial console.

The guest runs in slices.  Between them the keys that were pressed are sent to its serial port, and where it got ahead
of the wall clock, because it halted and time jumped forward, it waits: an idle guest costs next to nothing, and its
clock goes no faster than the one on the wall.  So unlike all other runs, this one depends on the host.
"""

from __future__ import annotations

import math
import os
import select
import termios
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

from emu.devices.uart import IER_RDA
from emu.observe.console import ConsoleWatch
from emu.observe.outcome import STATUS_LIMIT, STATUS_SUCCESS, Ending, Outcome
from emu.session import run_vm
from emu.units import NS_PER_SECOND

if TYPE_CHECKING:
    from emu.machine.vm import VirtualMachine

ESCAPE = b"\x1d"  # Ctrl-]
SLICE_NS = 10_000_000  # virtual time from one look at the keyboard to the next
_LONGEST_WAIT_S = 0.25  # for a key, until the next look at everything else
_MOST_KEYS = 4096  # bytes at once


class Keyboard(Protocol):
    """Where keys come from."""

    def read(self, timeout: float) -> bytes | None:
        """What was typed; empty when nothing comes within ``timeout`` seconds, None when nothing can come any more."""


class RawTerminal:
    """A terminal in raw mode, from ``with`` on to its end: every key goes to who reads, Ctrl-C too.

    Output keeps its line ends: a guest that prints only LF is readable.

    Args:
        descriptor: of the terminal.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def __enter__(self) -> RawTerminal:
        self._before = termios.tcgetattr(self._descriptor)
        mode = termios.tcgetattr(self._descriptor)
        mode[0] &= ~(termios.BRKINT | termios.ICRNL | termios.INLCR | termios.IGNCR | termios.ISTRIP | termios.IXON)
        mode[3] &= ~(termios.ECHO | termios.ECHONL | termios.ICANON | termios.IEXTEN | termios.ISIG)
        mode[6][termios.VMIN], mode[6][termios.VTIME] = 1, 0
        termios.tcsetattr(self._descriptor, termios.TCSADRAIN, mode)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        termios.tcsetattr(self._descriptor, termios.TCSADRAIN, self._before)

    def read(self, timeout: float) -> bytes | None:
        if not select.select([self._descriptor], [], [], timeout)[0]:
            return b""
        try:
            return os.read(self._descriptor, _MOST_KEYS) or None
        except OSError:  # the terminal has gone
            return None


def run_interactively(
    vm: VirtualMachine,
    keyboard: Keyboard,
    *,
    until: str | None = None,
    max_time: int | None = None,
    timeout: float | None = None,
    stopped: Callable[[], object] = lambda: False,
) -> Outcome:
    """As :func:`emu.session.run_vm`, with somebody at the guest's serial port until they press ESCAPE.

    Args:
        keyboard: where keys come from, such as :class:`RawTerminal`.
        until, max_time, timeout: as :func:`emu.session.run_vm` takes them.
        stopped: true when somebody wants the run to end; it is asked while the guest sleeps, too.
    """
    end = None if max_time is None else vm.now + max_time
    late = None if timeout is None else time.monotonic() + timeout
    watch = ConsoleWatch(vm, until.encode(), vm.request_stop) if until else None

    def over() -> bool:
        return bool(stopped()) or (late is not None and time.monotonic() >= late)

    try:
        while True:
            virtual, wall = vm.now, time.monotonic()
            outcome = run_vm(vm, max_time=SLICE_NS if end is None else min(SLICE_NS, end - vm.now))
            if watch is not None and watch.end is not None:
                return Outcome(Ending.UNTIL, STATUS_SUCCESS, f"the console printed {until!r}")
            if outcome.ending == Ending.HALTED and _a_key_can_wake(vm):
                vm.cpu.rip -= 1  # it executes HLT again when it goes on
                pause = math.inf
            elif outcome.ending == Ending.MAX_TIME and vm.now != end:
                pause = (vm.now - virtual) / NS_PER_SECOND - (time.monotonic() - wall)
            else:
                return outcome
            keys = _wait(keyboard, pause, over)
            if keys is None:
                return Outcome(Ending.STOPPED, STATUS_LIMIT, "the terminal has gone")
            typed, escape, _ = keys.partition(ESCAPE)
            vm.platform.uart.receive(typed)
            if escape:
                return Outcome(Ending.STOPPED, STATUS_SUCCESS, "left with Ctrl-]")
            if stopped():
                return Outcome(Ending.STOPPED, STATUS_LIMIT, "the run was stopped")
            if over():
                return Outcome(Ending.TIMEOUT, STATUS_LIMIT, "the limit in wall time was reached")
    finally:
        if watch is not None:
            watch.close()


def _a_key_can_wake(vm: VirtualMachine) -> bool:
    """Whether the guest, which halted without a timer, waits for the serial port's interrupt."""
    return vm.cpu.interrupts_enabled and bool(vm.platform.uart.ier & IER_RDA)


def _wait(keyboard: Keyboard, pause: float, over: Callable[[], bool]) -> bytes | None:
    """The next keys, if they come within ``pause`` seconds and before everything is over."""
    end = time.monotonic() + pause
    while True:
        left = end - time.monotonic()
        keys = keyboard.read(min(max(left, 0.0), _LONGEST_WAIT_S))
        if keys != b"" or left <= 0 or over():
            return keys
