"""What a VM has of the host is free when it is closed, without waiting for Python to collect garbage."""

from __future__ import annotations

import gc
from pathlib import Path

from emu.session import boot_vm, run_vm

ENGINE = 1 << 30  # bytes of address space that an engine takes at least


def address_space() -> int:
    """Bytes that this process has mapped."""
    fields = Path("/proc/self/statm").read_text().split()
    return int(fields[0]) * 4096


def test_engines_are_gone_at_once_and_the_vm_can_be_looked_at() -> None:
    run_vm(boot_vm("hello"))  # what is made once
    gc.disable()
    try:
        before = address_space()
        vms = []
        for _ in range(3):
            vm = boot_vm("hello", cpus=2)
            run_vm(vm)
            rip, eflags, now = vm.cpu.rip, vm.eflags, vm.now
            vm.close()
            vm.close()
            assert (vm.cpu.rip, vm.eflags, vm.now) == (rip, eflags, now)
            vms.append(vm)
        assert address_space() - before < ENGINE
    finally:
        gc.enable()


def test_others_of_the_machine_run_on() -> None:
    from emu.machine.machine import Machine

    machine = Machine(256 << 20)
    policies = ["share:rate=1000"]
    first = boot_vm("hello", machine=machine, policies=policies)
    second = boot_vm("paging32", machine=machine, policies=policies)
    assert run_vm(first).status == 1
    run_vm(second, max_time=20_000)
    first.close()
    assert run_vm(second).status == 1
    second.audit()
