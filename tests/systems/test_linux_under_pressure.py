"""Stock Linux with a quarter of the memory that it touches, while every policy is at work, computes what it should."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import pytest

from emu.addr import PAGE_SIZE
from emu.boot import packages
from emu.boot.initramfs import build_initramfs
from emu.dmm.policies.balloon import Balloon
from emu.engine.events import BY_NAME
from emu.machine.machine import Machine, shadow_tables_for
from emu.observe.outcome import Ending
from emu.observe.trace import format_event
from emu.session import boot_vm, run_vm
from tests.guests.test_under_pressure import DECISIONS, Breathing
from tests.systems.conftest import fetched

MODULES = ("virtio_ring", "virtio", "virtio_mmio", "virtio_balloon")  # each behind those that it needs
FILES, ROUNDS = 6, 2
RAM = 128 << 20
RETIRED = 100  # frames
BREATH = 250_000_000  # ns between two targets of the balloon
PAGES = 2000  # that it is to hold every other time
LIMIT = 60_000_000_000  # ns
SCRIPT = f"""\
#!/bin/sh
mount -t proc proc /proc
mount -t tmpfs tmpfs /tmp
for module in {" ".join(MODULES)}; do insmod /lib/modules/$module.ko; done
i=0
while [ $i -lt {FILES} ]; do
    cat /bin/busybox > /tmp/$i
    echo $i >> /tmp/$i
    i=$((i+1))
done
i=0
while [ $i -lt {ROUNDS} ]; do md5sum /tmp/*; i=$((i+1)); done
poweroff -f
"""


@dataclass(frozen=True)
class Run:
    """A run under pressure.

    Attributes:
        decisions: a digest of the DMM's events.
    """

    console: str
    virtual_ns: int
    counts: dict[str, int]
    decisions: str


@pytest.fixture(scope="module")
def initrd(busybox: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    modules = fetched(lambda: packages.kernel_modules(*MODULES))
    path = tmp_path_factory.mktemp("pressure") / "initrd.gz"
    path.write_bytes(build_initramfs(busybox, SCRIPT, modules))
    return str(path)


@pytest.fixture(scope="module")
def wanted(busybox: Path) -> list[str]:
    """What md5sum prints."""
    contents = busybox.read_bytes()
    digests = [hashlib.md5(contents + f"{i}\n".encode()).hexdigest() for i in range(FILES)]
    return [f"{digest}  /tmp/{i}" for i, digest in enumerate(digests)] * ROUNDS


@pytest.fixture(scope="module")
def touched(kernel: Path, initrd: str, wanted: list[str]) -> int:
    """Frames that it uses when it may."""
    vm = boot_vm(kernel, ram=RAM, mmu="nested", initrd=initrd, append="console=ttyS0 quiet")
    assert run_vm(vm, max_time=LIMIT).ending is Ending.POWER_OFF
    assert sums(bytes(vm.platform.console).decode()) == wanted
    return vm.pool.used


def sums(console: str) -> list[str]:
    return [line for line in console.replace("\r", "").splitlines() if "  /tmp/" in line]


def run_under_pressure(kernel: Path, initrd: str, mmu: str, pool: int) -> Run:
    tables = shadow_tables_for(RAM) if mmu == "shadow" else 0
    vm = boot_vm(
        kernel, ram=RAM, pool=pool * PAGE_SIZE, mmu=mmu, initrd=initrd, append="console=ttyS0 quiet",
        policies=["share:rate=20", "swap", f"retire:every=20ms,count={RETIRED}", "balloon"],
        machine=Machine((1 + tables + pool + RETIRED) * PAGE_SIZE),
    )  # fmt: skip
    vm.attach(Breathing(BREATH, (PAGES, 0)))
    digest = hashlib.sha256()
    kinds = [BY_NAME[name] for name in DECISIONS]
    vm.events.listen(lambda event: digest.update(format_event(event).encode()), kinds)
    outcome = run_vm(vm, max_time=LIMIT)
    vm.audit()
    assert outcome.ending is Ending.POWER_OFF, outcome.sentence
    balloon = vm.dmm.balloon.policy
    assert isinstance(balloon, Balloon) and balloon.refused == 0
    assert vm.pool.size == pool
    return Run(bytes(vm.platform.console).decode(), vm.now, vm.events.counts(), digest.hexdigest())


def test_a_quarter_of_the_memory_and_all_policies(kernel: Path, initrd: str, touched: int, wanted: list[str]) -> None:
    shadow, nested = (run_under_pressure(kernel, initrd, mmu, touched // 4) for mmu in ("shadow", "nested"))
    assert sums(shadow.console) == wanted
    counts = shadow.counts
    assert counts["dmm-fault"] > touched and counts["evict"] > touched
    assert counts["share"] > 1000 and counts["unshare"] > 100
    assert counts["balloon-inflate"] >= PAGES and counts["balloon-deflate"] >= PAGES
    assert counts["retire"] == RETIRED
    assert (nested.console, nested.virtual_ns, nested.decisions) == (
        shadow.console,
        shadow.virtual_ns,
        shadow.decisions,
    )
