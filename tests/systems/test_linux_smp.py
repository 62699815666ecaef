"""Debian's cloud kernel on several processors: all come up, work in parallel, and the run is the same every time."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from emu.addr import PAGE_SIZE
from emu.boot.initramfs import build_initramfs
from emu.engine.events import EVENT_TYPES, ShadowFill, ShadowZap, TableWrite
from emu.machine.machine import Machine, shadow_tables_for
from emu.observe.outcome import Ending
from emu.observe.trace import format_event
from emu.session import boot_vm, run_vm

CPUS = 4
RAM = 128 << 20
LIMIT = 60_000_000_000  # ns
FORKS = 60
PIPELINES = 8
SCRIPT = f"""\
#!/bin/sh
mount -t proc proc /proc
mount -t tmpfs tmpfs /tmp
echo "nproc $(nproc)"
i=0
while [ $i -lt {PIPELINES} ]; do
    (cat /bin/busybox; echo $i) | md5sum | cut -c1-32 > /tmp/$i &
    seq 1 500 | sort -rn | head -1 > /tmp/top$i &
    i=$((i+1))
done
wait
i=0; while [ $i -lt {PIPELINES} ]; do echo "sum $(cat /tmp/$i) $(cat /tmp/top$i)"; i=$((i+1)); done
i=0; while [ $i -lt {FORKS} ]; do (busybox true; echo x >> /tmp/forks) & i=$((i+1)); done; wait
echo "forks $(wc -l < /tmp/forks)"
awk '/^CAL/ {{ n = 0; for (i = 2; i <= {CPUS + 1}; i++) n += ($i > 0); print "called", n }}' /proc/interrupts
poweroff -f
"""
PAGING = (TableWrite, ShadowFill, ShadowZap)  # events of the shadow tables
TIMED = ("share:rate=20", "swap", "balloon")


class Run:
    """One boot to its end.

    Attributes:
        console, virtual_ns: what the guest did, and when.
        log: digest of the whole event log.
        used, counts: frames of the pool in use at the end; events by kind.
        guest: digest of the events that do not belong to the paging architecture, without their numbers.
    """

    def __init__(self, kernel: Path, initrd: str, mmu: str, pool: int | None = None, schedule: str | None = None):
        vm = boot_vm(
            kernel, ram=RAM, mmu=mmu, initrd=initrd, append="console=ttyS0", cpus=CPUS, schedule=schedule,
            pool=pool and pool * PAGE_SIZE, policies=TIMED if pool else (),
            machine=Machine((1 + shadow_tables_for(RAM) + pool) * PAGE_SIZE) if pool else None,
        )  # fmt: skip
        log, guest = hashlib.sha256(), hashlib.sha256()
        times = [0]

        def listen(event: object) -> None:
            line = format_event(event)  # type: ignore[arg-type]
            log.update(line.encode())
            assert event.time >= times[0]  # type: ignore[attr-defined]
            times[0] = event.time  # type: ignore[attr-defined]
            if not isinstance(event, PAGING):
                guest.update(line.partition(",")[2].encode())

        vm.events.listen(listen, EVENT_TYPES)
        outcome = run_vm(vm, max_time=LIMIT)
        vm.audit()
        assert outcome.ending is Ending.POWER_OFF, outcome.sentence
        self.console = bytes(vm.platform.console).decode().replace("\r", "")
        self.virtual_ns = vm.now
        self.used, self.counts = vm.pool.used, vm.events.counts()
        self.log, self.guest = log.hexdigest(), guest.hexdigest()

    @property
    def said(self) -> list[str]:
        """What the script printed."""
        after = self.console.partition("Run /init as init process\n")[2].splitlines()
        return [line for line in after if not line.startswith("[")]


@pytest.fixture(scope="module")
def initrd(busybox: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("smp") / "initrd.gz"
    path.write_bytes(build_initramfs(busybox, SCRIPT))
    return str(path)


@pytest.fixture(scope="module")
def wanted(busybox: Path) -> list[str]:
    contents = busybox.read_bytes()
    sums = [hashlib.md5(contents + f"{i}\n".encode()).hexdigest() for i in range(PIPELINES)]
    return [f"nproc {CPUS}", *(f"sum {digest} 500" for digest in sums), f"forks {FORKS}", f"called {CPUS}"]


@pytest.fixture(scope="module")
def nested(kernel: Path, initrd: str) -> Run:
    return Run(kernel, initrd, "nested")


@pytest.fixture(scope="module")
def shadow(kernel: Path, initrd: str) -> Run:
    return Run(kernel, initrd, "shadow")


def test_all_processors_come_up_and_work(nested: Run, wanted: list[str]) -> None:
    assert nested.said == wanted
    assert f"Brought up 1 node, {CPUS} CPUs" in nested.console
    assert "Switched to clocksource tsc\n" in nested.console  # no processor saw another one's time step back


def test_both_paging_architectures_look_the_same(nested: Run, shadow: Run) -> None:
    assert (shadow.console, shadow.virtual_ns, shadow.guest) == (nested.console, nested.virtual_ns, nested.guest)


def test_the_same_boot_twice(kernel: Path, initrd: str, shadow: Run) -> None:
    again = Run(kernel, initrd, "shadow")
    assert (again.console, again.virtual_ns, again.log) == (shadow.console, shadow.virtual_ns, shadow.log)


def test_another_schedule_is_another_run_with_the_same_results(kernel: Path, initrd: str, nested: Run) -> None:
    drawn = Run(kernel, initrd, "nested", schedule="seed=7")
    assert drawn.said == nested.said
    assert drawn.log != nested.log


@pytest.mark.parametrize("mmu", ["nested", "shadow"])
def test_in_a_quarter_of_its_memory(kernel: Path, initrd: str, nested: Run, wanted: list[str], mmu: str) -> None:
    pressed = Run(kernel, initrd, mmu, pool=nested.used // 4)
    assert pressed.said == wanted
    counts = pressed.counts
    assert counts["evict"] > nested.used and counts["share"] > 100 and counts["unshare"] > 10
