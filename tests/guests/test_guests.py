"""Every guest of firmware/ under both paging architectures: right, repeatable, and the same to the guest.

``pytest --update-goldens`` writes what they print to golden/.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from emu.boot import firmware
from emu.dmm.p2m import PageType
from emu.engine.events import Event
from emu.observe.trace import format_event
from emu.testing import GuestUnderTest, boot

GOLDEN = Path(__file__).parent / "golden"
GUESTS = list(firmware.guests())
MMUS = ("shadow", "nested")
GUEST_VISIBLE = ("page-fault", "exception", "interrupt", "cr3-switch")
DMM_DECISIONS = ("dmm-fault", "remap", "protect", "evict", "pool-resize")


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        log: its event log.
        memory: a digest of the guest's memory at its end.
    """

    console: bytes
    status: int
    now: int
    events: tuple[Event, ...]
    log: bytes
    memory: str

    def stream(self, *kinds: str) -> list[tuple[object, ...]]:
        """The events of these kinds without their sequence numbers, which count all kinds, and without mfns."""
        hidden = {"sequence", "mfn"}
        return [
            (event.NAME, *(getattr(event, name) for name in event.__slots__ if name not in hidden), event.time)
            for event in self.events
            if event.NAME in kinds
        ]


def memory_digest(guest: GuestUnderTest) -> str:
    """A digest of guest memory, page by page, whether a page is resident or not."""
    vm = guest.vm
    assert vm.guest is not None
    digest = hashlib.sha256()
    for gfn in range(vm.ram >> 12):
        kind = vm.p2m.type(gfn)
        if kind == PageType.RAM:
            digest.update(vm.machine.memory.pages[vm.p2m.mfn(gfn)].tobytes())
        else:
            digest.update(vm.guest.image.page(gfn) if kind == PageType.IMAGE else bytes(4096))
    return digest.hexdigest()


def fresh_run(name: str, mmu: str) -> Run:
    guest = boot(name, mmu=mmu, events=True)
    status = guest.run(max_time="10s")
    log = b"".join(format_event(event).encode() for event in guest.events)
    console = bytes(guest.vm.platform.console)
    return Run(console, status, guest.now, tuple(guest.events), log, memory_digest(guest))


@cache
def run(name: str, mmu: str) -> Run:
    """A run that tests share."""
    return fresh_run(name, mmu)


@pytest.mark.parametrize("mmu", MMUS)
@pytest.mark.parametrize("name", GUESTS)
def test_console_and_status(name: str, mmu: str, request: pytest.FixtureRequest) -> None:
    result = run(name, mmu)
    golden = GOLDEN / f"{name}.txt"
    if request.config.getoption("--update-goldens"):
        golden.write_bytes(result.console)
    assert result.console.decode() == golden.read_bytes().decode()
    wanted = firmware.guests()[name].exit_value
    assert result.status == (134 if wanted is None else wanted << 1 | 1)


@pytest.mark.parametrize("mmu", MMUS)
@pytest.mark.parametrize("name", GUESTS)
def test_two_runs_are_the_same(name: str, mmu: str) -> None:
    first, second = run(name, mmu), fresh_run(name, mmu)
    assert first.log == second.log
    assert first == second


@pytest.mark.parametrize("name", GUESTS)
def test_the_guest_cannot_tell_the_paging_architectures_apart(name: str) -> None:
    shadow, nested = run(name, "shadow"), run(name, "nested")
    assert (shadow.console, shadow.status, shadow.now) == (nested.console, nested.status, nested.now)
    assert shadow.stream(*GUEST_VISIBLE) == nested.stream(*GUEST_VISIBLE)
    assert shadow.memory == nested.memory


@pytest.mark.parametrize("name", GUESTS)
def test_the_dmm_cannot_tell_the_paging_architectures_apart(name: str) -> None:
    shadow, nested = run(name, "shadow"), run(name, "nested")
    assert shadow.stream(*DMM_DECISIONS) == nested.stream(*DMM_DECISIONS)


@pytest.mark.parametrize("name", GUESTS)
def test_nested_paging_traps_nothing(name: str) -> None:
    assert not run(name, "nested").stream("table-write", "shadow-fill", "shadow-zap")


def test_watching_changes_nothing() -> None:
    guest = boot("paging32")
    guest.run()
    watched = run("paging32", "shadow")
    assert (bytes(guest.vm.platform.console), guest.now) == (watched.console, watched.now)
    assert sum(guest.vm.events.counts().values()) == len(watched.events)


@pytest.mark.parametrize("mmu", MMUS)
def test_the_native_plane_uncompiled(mmu: str, tmp_path: Path) -> None:
    events = tmp_path / "events"
    command = [sys.executable, "-m", "emu", "run", "hello", "--mmu", mmu, "--events", str(events)]
    root = Path(__file__).parents[2]
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "1", "PYTHONPATH": str(root)}
    done = subprocess.run(command, capture_output=True, env=environment, timeout=300)
    compiled = run("hello", mmu)
    assert (done.returncode, done.stdout) == (compiled.status, compiled.console), done.stderr.decode()
    assert events.read_bytes() == compiled.log
