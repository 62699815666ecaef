"""What the native plane does alone: no Python function is called however often it happens."""

from __future__ import annotations

import gc
import sys
from types import FrameType
from typing import Any

import pytest

from emu.bench import mmu as bench
from emu.bench.longmode import CODE, DATA, assemble, long_mode_vm, restart

_EXIT = "mov dx, 0xF4; xor eax, eax; out dx, al; w: jmp w;"
_TABLE = 0x4008  # gpa and gva of a page-table entry: the second page from DATA
PROGRAMS = {
    "TLB miss": (
        "p: mov rax, cr3; mov cr3, rax; mov dl, [rdi]; mov dl, [rdi + 4096]; dec r15d; jnz p; " + _EXIT, {}, 0,
    ),
    "page-table write": (
        f"mov rsi, {_TABLE}; mov rbx, [rsi]; p: mov [rsi], rbx; mov dl, [rdi + 4096]; dec r15d; jnz p; " + _EXIT, {}, 0,
    ),
    "SYSCALL": (bench.SYSCALL, {}, 3),
    "INT n": (bench.INT80, {0x80: bench.HANDLER}, 3),
    "#PF": (bench.FAULT, {14: bench.HANDLER}, 3),
    "#UD": ("l: ud2; dec r15d; jnz l; " + _EXIT + " .balign 64; h: add qword ptr [rsp], 2; iretq", {6: CODE + 64}, 3),
    "RDTSC": ("l: rdtsc; dec r15d; jnz l; " + _EXIT, {}, 3),
    "CPUID": ("l: xor eax, eax; cpuid; dec r15d; jnz l; " + _EXIT, {}, 3),
}  # fmt: skip


def python_calls(vm: Any, count: int, user: bool) -> int:
    """How many Python and C functions a run of the program calls, from the interpreter or from the engine."""
    calls = 0

    def profile(frame: FrameType, event: str, argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    gc.collect()
    gc.disable()  # the end of other tests' VMs calls functions, too
    sys.setprofile(profile)
    try:
        restart(vm, count, user=user)
    finally:
        sys.setprofile(None)
        gc.enable()
    return calls


@pytest.mark.parametrize("mmu", ["nested", "shadow"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_no_python_call(name: str, mmu: str) -> None:
    source, handlers, cpl = PROGRAMS[name]
    vm = long_mode_vm(assemble(source.replace("sysretq", "sysret")), mmu, handlers, user=cpl == 3)
    vm.cpu.lstar = bench.HANDLER
    vm.cpu.eflags |= 3 << 12
    vm.dmm.resolve((DATA >> 12) + 1, 1)  # type: ignore[arg-type]
    restart(vm, 300, user=cpl == 3)
    few = python_calls(vm, 100, cpl == 3)
    before = vm.exits.counts
    assert python_calls(vm, 2000, cpl == 3) == few > 0
    assert {name: vm.exits.counts[name] - before[name] for name in before if vm.exits.counts[name] != before[name]} == {
        "stop": 1
    }


def test_the_check_can_fail() -> None:
    """An OUT does call Python, and is counted."""
    vm = long_mode_vm(assemble("l: mov dx, 0x70; out dx, al; dec r15d; jnz l; " + _EXIT), "nested")
    restart(vm, 10)
    assert python_calls(vm, 300, False) > python_calls(vm, 100, False) + 200
