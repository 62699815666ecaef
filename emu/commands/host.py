"""What sub-commands that run a guest owe the person in front of them: a word about a slow start, and Ctrl-C."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from emu.vm import VirtualMachine

SLOW_START_S = 3  # of a first start, when the native plane is compiled


@contextmanager
def explain_slow_start() -> Iterator[None]:
    """Say so when what happens inside takes long."""
    text = "emu: compiling the native plane; this takes a while once, and later starts take a second"
    timer = threading.Timer(SLOW_START_S, lambda: print(text, file=sys.stderr, flush=True))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextmanager
def stop_on_signals(vm: VirtualMachine) -> Iterator[list[int]]:
    """Ctrl-C and SIGTERM end the run between two blocks of guest code; the list gets the signal's number."""
    seen: list[int] = []

    def stop(number: int, frame: object) -> None:
        if seen:  # asked a second time: at once
            raise KeyboardInterrupt
        seen.append(number)
        vm.request_stop()

    try:
        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: signals are somebody else's business
        yield seen
        return
    try:
        yield seen
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
