"""Group ``linux-fleet``: how much memory identical Linux guests take together when their pages are shared."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from emu.addr import PAGE_SIZE
from emu.bench.harness import Case, Round
from emu.bench.linux import ARGUMENTS, HALTED, INIT
from emu.boot import packages
from emu.boot.initramfs import build_initramfs
from emu.dmm.policies.share import Share
from emu.errors import BadInput
from emu.machine.machine import Machine
from emu.machine.vm import VirtualMachine
from emu.session import boot_vm, run_vm

LINUX_GUESTS = 16
_LINUX_RAM = 128 << 20
_QUANTUM = 20_000_000  # virtual ns
_MOST_TIME = 60_000_000_000  # virtual ns


def _frames_of(guests: int, kernel: Path, initrd: Path) -> float:
    """Frames in use after ``guests`` identical Linux guests have run to their end side by side, and were merged."""
    machine = Machine(guests * Machine.size_for(_LINUX_RAM, _LINUX_RAM, "shadow"))
    vms = [
        boot_vm(kernel, ram=_LINUX_RAM, initrd=str(initrd), append=ARGUMENTS, policies=["share:rate=50"],
                machine=machine, name=f"vm{i}")
        for i in range(guests)
    ]  # fmt: skip
    running, now = list(vms), 0
    while running:
        now += _QUANTUM
        if now > _MOST_TIME:
            raise BadInput("linux-fleet", f"{running[0].name} does not print {HALTED!r}")
        for vm in running:
            vm.run(until=now)
        running = [vm for vm in running if HALTED.encode() not in vm.platform.console]
    for _ in range(3):
        for vm in vms:
            _share_of(vm).scan(vm.ram // PAGE_SIZE)
    return sum(vm.pool.used for vm in vms)


def _share_of(vm: VirtualMachine) -> Share:
    return next(policy for policy in vm.dmm.policies if isinstance(policy, Share))


def _frames_alone(kernel: Path, initrd: Path) -> float:
    """Frames in use after one Linux guest has run to its end without sharing."""
    vm = boot_vm(kernel, ram=_LINUX_RAM, initrd=str(initrd), append=ARGUMENTS)
    run_vm(vm, until=HALTED, max_time=_MOST_TIME)
    return vm.pool.used


def cases() -> Iterator[Case]:
    """The frames of LINUX_GUESTS Linux guests with sharing, against those of one without."""
    try:
        kernel, busybox = packages.kernel(), packages.busybox()
    except packages.NoPackage as error:
        raise BadInput("linux-fleet", str(error)) from None
    with tempfile.TemporaryDirectory() as directory:
        initrd = Path(directory) / "initrd.gz"
        initrd.write_bytes(build_initramfs(busybox, INIT))
        many: Round = lambda: _frames_of(LINUX_GUESTS, kernel, initrd)  # noqa: E731
        alone: Round = lambda: _frames_alone(kernel, initrd)  # noqa: E731
        name = f"frames of {LINUX_GUESTS} guests, merged"
        yield Case("linux-fleet", name, many, alone, "one guest", 1, "frames", deterministic=True)
