"""HFLAGS as the engine makes it, and as cpustate recomputes it."""

from __future__ import annotations

import pytest

from emu.engine import cpustate
from tests.cpu import delivery_bench as b
from tests.cpu.delivery_bench import Bench

MODES = ["real", "protected", "protected 16", "ring 3", "v86", "long", "long ring 3", "compat"]


@pytest.mark.parametrize("mode", MODES)
def test_hflags_of_a_state_that_the_engine_made(mode: str) -> None:
    """Enter each mode by the engine's own instructions; recomputing HFLAGS must then change nothing."""
    bench = Bench()
    if mode == "real":
        bench.real()
        bench.cpu.rip = 0
        bench.run("mov ax, 0x100; mov ds, ax; mov es, ax; mov ss, ax", 16)
    elif mode.startswith("long") or mode == "compat":
        bench.long()
        bench.segment(b.SPARE, 0, 0xFFFFF, b.CODE_32 | b.RING3)
        code = {"long": b.CODE0, "long ring 3": b.CODE3, "compat": b.SPARE | 3}[mode]
        data = b.DATA0 if code == b.CODE0 else b.DATA3
        leave(bench, f"push {data}; push {b.STACK3:#x}; push 2; push {code}; push 0xa000; iretq", 64)
    elif mode == "v86":
        bench.protected()
        leave(bench, f"push 0; push 0; push 0; push 0; push 0x5000; push 0x100; push {b.VM | 2:#x}; push 0xa00; push 0;"
                     "iretd", 32)  # fmt: skip
    else:
        bench.protected()
        bench.segment(b.SPARE, 0, 0xFFFF, b.CODE_16)
        bench.segment(0x48, 0x1000, 0xFFFF, b.DATA_16)
        if mode == "protected 16":
            leave(bench, f"mov ax, 0x48; mov ss, ax; push 2; push {b.SPARE}; push 0xa000; iretd", 32)
        elif mode == "ring 3":
            leave(bench, f"push {b.DATA3}; push {b.STACK3:#x}; push 2; push {b.CODE3}; push 0xa000; iretd", 32)
        else:
            leave(bench, "mov ax, 0x10; mov ds, ax; mov cr0, eax", 32)
    before = bench.cpu.hflags
    cpustate.set_hflags_mode(bench.vm.processor.engine.env)
    assert bench.cpu.hflags == before


def leave(bench: Bench, source: str, bits: int) -> None:
    """Run code that ends in an endless loop at A000h, or in one right behind it."""
    source = source.replace("mov cr0, eax", "mov eax, 0x19; mov cr0, eax")
    bench.write(0xA000, b"\xeb\xfe")
    bench.write(b.CODE, b.assemble(source, bits) + b"\xeb\xfe")
    bench.vm.run(until=bench.vm.now + 300)


@pytest.mark.parametrize("flags", [0x2, 0x8D7, 0x402, 0x46, 0xCD7])
def test_a_written_eflags_is_read_back_before_and_after_the_engine_ran(flags: int) -> None:
    bench = Bench()
    bench.protected()
    bench.set_eflags(flags)
    assert bench.eflags == flags
    bench.run("nop", 32)
    assert bench.eflags == flags


def test_a_single_step_flag_does_not_outlive_eflags() -> None:
    """HFLAGS must hold no copy of TF: POPF could not clear it."""
    bench = Bench()
    bench.protected()
    bench.set_eflags(b.TF | 2)
    bench.write(b.HANDLER + 16, b.assemble("and dword ptr [esp + 8], 0xfffffeff; inc ebx; iretd", 32))
    bench.run("nop; nop; nop", 32)
    assert bench.cpu.rbx == 1
