"""Single parts of the native plane, for tests that call them directly."""

from __future__ import annotations

from emu.cpu import delivery
from emu.engine import cpustate, engine
from emu.engine.native import compiled
from emu.engine.state import cpu_record
from emu.mmu import walk


@compiled
def start(cpu_at: int) -> int:
    """:func:`emu.engine.engine.start` without a limit."""
    return engine.start(cpu_record(cpu_at), 0)


@compiled
def load_pdptes(cpu_at: int, cr3: int) -> int:
    """:func:`emu.mmu.walk.load_pdptes`."""
    return walk.load_pdptes(cpu_at, cr3)


@compiled
def deliver(cpu_at: int, vector: int, error: int, kind: int, rip: int) -> int:
    """:func:`emu.cpu.delivery.deliver`."""
    return delivery.deliver(cpu_record(cpu_at), vector, error, kind, rip)


@compiled
def deliver_pending(cpu_at: int) -> int:
    """:func:`emu.cpu.delivery.deliver_pending`."""
    return delivery.deliver_pending(cpu_record(cpu_at))


@compiled
def write_eflags(env: int, flags: int) -> None:
    """:func:`emu.engine.cpustate.write_eflags`."""
    cpustate.write_eflags(env, flags)
