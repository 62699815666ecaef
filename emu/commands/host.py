"""What sub-commands that run a guest owe the person in front of them: a word about a slow start, and Ctrl-C."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

SLOW_START_S = 3.0  # what takes longer is worth a word
_LOOKS_S = 0.5  # between two looks whether something is compiled
COMPILING_ONCE = "compiling the native plane; this takes a while once, and later starts take a second"
COMPILING_AGAIN = "compiling the native plane; this takes a while every time, for its cache cannot be written"


class Stoppable(Protocol):
    """What runs: a VM, or a fleet of them."""

    def request_stop(self) -> None: ...


@contextmanager
def explain_slow_start() -> Iterator[None]:
    """Say so when what happens inside takes long because the native plane is compiled."""
    done = threading.Event()

    def watch() -> None:
        waited = done.wait(SLOW_START_S)
        while not waited:
            being_built = getattr(sys.modules.get("emu.engine.native_object"), "being_built", None)
            building, kept = being_built() if being_built else (False, True)  # None: not imported yet
            if building:
                print(f"emu: {COMPILING_ONCE if kept else COMPILING_AGAIN}", file=sys.stderr, flush=True)
                return
            waited = done.wait(_LOOKS_S)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@contextmanager
def stop_on_signals(run: Stoppable) -> Iterator[list[int]]:
    """Ctrl-C and SIGTERM end the run between two blocks of guest code; the list gets the signal's number."""
    seen: list[int] = []

    def stop(number: int, frame: object) -> None:
        if seen:  # asked a second time: at once
            raise KeyboardInterrupt
        seen.append(number)
        run.request_stop()

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
