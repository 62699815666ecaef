"""What sub-commands that run a guest owe the person in front of them: a word about a slow start."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

SLOW_START_S = 3.0  # what takes longer is worth a word
_LOOKS_S = 0.5  # between two looks whether something is compiled
COMPILING_ONCE = "compiling the native plane; this takes a while once, and later starts take a second"
COMPILING_AGAIN = "compiling the native plane; this takes a while every time, for its cache cannot be written"


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


def report_disk_failure(name: str, reason: str) -> None:
    """Say at once what a guest sees as an error of its drive."""
    print(f"emu: {name}: {reason}; the guest sees an error of its drive", file=sys.stderr, flush=True)
