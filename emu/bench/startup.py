"""Group ``start``: CPU time of a whole ``emu run hello`` against the same interpreter importing what emu stands on."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Iterator

from emu.bench.harness import Case, Round

_PEER = "import numba, numpy, unicorn, keystone"


def _cpu_seconds(*arguments: str) -> Round:
    def one_round() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *arguments], capture_output=True, check=False)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime

    return one_round


def cases() -> Iterator[Case]:
    """A start with a warm code cache: the warm-up round compiles what is not there yet."""
    ours, peer = _cpu_seconds("-m", "emu", "run", "hello"), _cpu_seconds("-c", _PEER)
    yield Case("start", "emu run hello", ours, peer, "importing numba, numpy, unicorn, keystone", 1, "s CPU")
