"""Debian's cloud kernel to a shell script that uses it, and to power-off."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import pytest

from emu.boot.initramfs import build_initramfs
from emu.observe.outcome import Ending
from emu.observe.trace import format_event
from emu.session import boot_vm, run_vm

SCRIPT = """\
#!/bin/sh
mount -t proc proc /proc
echo "processes $(busybox ls -d /proc/[0-9]* | busybox wc -l | busybox awk '{print ($1 > 5)}')"
i=0; while [ $i -lt 15 ]; do (busybox true; exit $i); [ $? = $i ] || echo "status of child $i"; i=$((i+1)); done
dd if=/bin/busybox of=/tmp/a bs=4096 2>/dev/null
cat /tmp/a /tmp/a > /tmp/b
busybox sort /tmp/b > /tmp/c
busybox sort /tmp/a /tmp/a | cmp - /tmp/c && echo "the same"
busybox md5sum < /tmp/a
busybox vi -c ':q!' /tmp/a > /dev/null 2>&1
busybox grep -c MemFree /proc/meminfo
echo "script done"
poweroff -f
"""
ARGUMENTS = "console=ttyS0"


@dataclass
class Boot:
    console: bytes
    virtual_ns: int
    events: int
    digest: str
    ending: Ending


@pytest.fixture(scope="session")
def initrd(busybox: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("linux") / "initrd.gz"
    path.write_bytes(build_initramfs(busybox, SCRIPT.replace("cmp ", "busybox cmp ")))
    return path


def boot(kernel: Path, initrd: Path, mmu: str, pool: str | None = None) -> Boot:
    vm = boot_vm(kernel, ram="128M", pool=pool, mmu=mmu, initrd=str(initrd), append=ARGUMENTS)
    digest = hashlib.sha256()
    count = 0

    def listen(event: object) -> None:
        nonlocal count
        count += 1
        digest.update(format_event(event).encode())  # type: ignore[arg-type]

    vm.events.listen(listen)
    outcome = run_vm(vm, max_time=60_000_000_000)
    vm.events.unlisten(listen)
    vm.audit()
    return Boot(bytes(vm.platform.console), vm.now, count, digest.hexdigest(), outcome.ending)


@pytest.fixture(scope="session")
def shadow(kernel: Path, initrd: Path) -> Boot:
    return boot(kernel, initrd, "shadow")


@pytest.fixture(scope="session")
def nested(kernel: Path, initrd: Path) -> Boot:
    return boot(kernel, initrd, "nested")


def test_the_script_runs_and_powers_off(shadow: Boot, busybox: Path) -> None:
    assert shadow.ending is Ending.POWER_OFF
    output = shadow.console.decode().replace("\r", "")
    assert "Linux version" in output
    after = output.partition("Run /init as init process\n")[2].splitlines()
    digest = hashlib.md5(busybox.read_bytes()).hexdigest()
    assert [line for line in after if not line.startswith("[")] == [
        "processes 1",
        "the same",
        f"{digest}  -",
        "1",
        "script done",
    ]


def test_both_paging_architectures_look_the_same(shadow: Boot, nested: Boot) -> None:
    assert (nested.console, nested.virtual_ns, nested.ending) == (shadow.console, shadow.virtual_ns, shadow.ending)


def test_the_same_boot_twice(kernel: Path, initrd: Path, shadow: Boot) -> None:
    again = boot(kernel, initrd, "shadow")
    assert shadow.events > 100_000
    assert again == shadow


def test_a_pool_that_is_too_small(kernel: Path, initrd: Path) -> None:
    vm = boot_vm(kernel, ram="128M", pool="24M", mmu="nested", initrd=str(initrd), append=ARGUMENTS)
    outcome = run_vm(vm, max_time=60_000_000_000)
    assert (outcome.ending, outcome.status) == (Ending.OUT_OF_FRAMES, 124)
    assert "all 6144 frames of the pool are in use" in outcome.sentence and "gfn 0x" in outcome.sentence
    vm.audit()
    before = vm.now
    assert run_vm(vm, max_time=1_000_000).ending is Ending.OUT_OF_FRAMES
    assert vm.now == before  # the guest still waits at the same instruction
