"""Virtual time: one nanosecond for every byte of code that the guest executes.

Time advances when a block of code is entered, by the block's size, and is corrected when the block is left early, so
that it does not depend on how often the engine stops.  HLT jumps forward to the next deadline.  RDTSC counts
nanoseconds.  Nothing here reads the host's clock.
"""

from __future__ import annotations

from typing import Any

from emu.cpu.breakpoints import at_debugged_block
from emu.cpu.stepping import at_block, entered_block
from emu.engine import cpustate
from emu.engine.blockclock import INLINE
from emu.engine.cpustate import (
    BASE,
    CS,
    EFLAGS,
    FLAG_IF,
    HF2_NMI,
    HF_CS64,
    HF_INHIBIT_IRQ,
    HFLAGS,
    HFLAGS2,
    RAX,
    RDX,
    RIP,
    TSC_AUX,
)
from emu.engine.debugregs import STEPPING
from emu.engine.engine import flush_tlb, leave_engine, stop
from emu.engine.native import callback, inlined, load32, load64, outlined, store64
from emu.engine.state import state_at
from emu.units import NEVER as NEVER

DEVICE_ACCESS_NS = 500  # an access to a register of a device, by port or in memory: what it takes on an ISA bus
BLOCK_ACCESS_NS = 120  # an access to the data register of a disk within a block: PIO mode 4


@inlined
def interrupts_enabled(vm: Any) -> bool:
    """Whether an external interrupt may be delivered now: IF is set, and no interrupt shadow (STI, MOV SS)."""
    return load64(vm.env + EFLAGS) & FLAG_IF != 0 and load32(vm.env + HFLAGS) & HF_INHIBIT_IRQ == 0


@inlined
def accepts_nmi(vm: Any) -> bool:
    """Whether an NMI is due: none is being handled (SDM vol. 3A, 6.7.1)."""
    return vm.nmi_pending != 0 and load32(vm.env + HFLAGS2) & HF2_NMI == 0


@inlined
def attention(vm: Any) -> None:
    """Have the engine look at ``stop``, ``pending``, ``intr_line`` and ``flush_at_block`` before the next block."""
    vm.limit = 0


@outlined("vqqi")
def _enter_block_slowly(vm_at, gva, size):
    """A block begins, and something wants attention or the deadline has come."""
    vm = state_at(vm_at)
    if vm.flush_at_block:
        vm.flush_at_block = 0
        flush_tlb(vm)
    if vm.stepping and at_block(vm_at, gva, size):
        return
    must_stop = vm.stop or vm.pending or vm.vtime >= vm.deadline or accepts_nmi(vm)
    if vm.debugging and (not must_stop or vm.watch_step == STEPPING) and at_debugged_block(vm_at, gva, size):
        must_stop = True
    if not must_stop:
        if not vm.intr_line:
            vm.limit = 0 if vm.stepping or vm.debugging or vm.nmi_pending else vm.deadline
        elif interrupts_enabled(vm):
            must_stop = True
    if must_stop:
        vm.block_size = 0
        vm.stopped = 1
        stop(vm)
    else:
        vm.vtime += size
        vm.block_gva = gva
        vm.block_size = size
        if vm.stepping:
            entered_block(vm, gva)


@callback("vqqiq")
def on_block(uc, gva, size, vm_at):
    """Unicorn's UC_HOOK_BLOCK: the guest is about to execute ``size`` bytes of code at ``gva``.

    With the size INLINE the code of :mod:`emu.engine.blockclock` has entered the block, and found that the limit is
    reached.
    """
    vm = state_at(vm_at)
    if size == INLINE:
        gva, size = vm.block_gva, vm.block_size
        vm.vtime -= size
        vm.block_gva, vm.block_size = vm.entered_gva, vm.entered_size
    if vm.vtime >= vm.limit:
        _enter_block_slowly(vm_at, gva, size)
    else:
        vm.vtime += size
        vm.block_gva = gva
        vm.block_size = size
    vm.entered_gva, vm.entered_size = vm.block_gva, vm.block_size
    if vm.stopped:
        leave_engine(vm)


@inlined
def leave_block(vm: Any) -> None:
    """The engine stopped within a block: take back the time of what it did not execute."""
    if vm.block_size:
        rip = load64(vm.env + RIP)
        if not load32(vm.env + HFLAGS) & HF_CS64:
            rip = (rip + load64(vm.env + CS + BASE)) & 0xFFFF_FFFF
        left = vm.block_gva + vm.block_size - rip
        if 0 < left <= vm.block_size:
            vm.vtime -= left
        vm.block_size = 0
        vm.entered_size = 0


@inlined
def time_stamp(vm: Any) -> int:
    """The time-stamp counter: virtual ns, moved by what the guest wrote into it."""
    return vm.vtime + vm.tsc_offset


@inlined
def _read_tsc(vm: Any) -> None:
    tsc = time_stamp(vm)
    store64(vm.env + RAX, tsc & 0xFFFF_FFFF)
    store64(vm.env + RDX, tsc >> 32 & 0xFFFF_FFFF)


@callback("bqq")
def on_rdtsc(uc, vm_at):
    """RDTSC: the time-stamp counter counts virtual nanoseconds."""
    _read_tsc(state_at(vm_at))
    return True


@callback("bqq")
def on_rdtscp(uc, vm_at):
    """RDTSCP: RDTSC, and TSC_AUX in ECX."""
    vm = state_at(vm_at)
    _read_tsc(vm)
    store64(vm.env + cpustate.RCX, load64(vm.env + TSC_AUX) & 0xFFFF_FFFF)
    return True
