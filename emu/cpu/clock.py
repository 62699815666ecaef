"""Virtual time: one nanosecond for every byte of code that the guest executes.

Time advances when a block of code is entered, by the block's size, and is corrected when the block is left early, so
that it does not depend on how often the engine stops.  HLT jumps forward to the next deadline.  RDTSC counts
nanoseconds.  Nothing here reads the host's clock.
"""

from __future__ import annotations

from emu.cpu.breakpoints import at_debugged_block, run_alone
from emu.cpu.outside import holds_breakpoint
from emu.cpu.stepping import BEGINS_ALONE, SETTLED, at_block, entered_block
from emu.engine import blockend, cpustate  # noqa: F401
from emu.engine.alone import AGAIN, EXECUTING
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
from emu.engine.engine import flush_tlb, leave_engine, running_cpu, stop
from emu.engine.library import call_before
from emu.engine.native import callback, inlined, load32, load64, outlined, store64
from emu.engine.state import Cpu, cpu_record, show_time, vm_of

DEVICE_ACCESS_NS = 500  # an access to a register of a device, by port or in memory: what it takes on an ISA bus
_CUT_NS = 4096  # before the end of a drawn turn, from where on a block that would go beyond the end is cut
BLOCK_ACCESS_NS = 120  # an access to the data register of a disk within a block: PIO mode 4


@inlined
def _in_interrupt_shadow(cpu: Cpu) -> bool:
    return load32(cpu.env + HFLAGS) & HF_INHIBIT_IRQ != 0


@inlined
def interrupts_enabled(cpu: Cpu) -> bool:
    """Whether an external interrupt may be delivered now: IF is set, and no interrupt shadow (STI, MOV SS)."""
    return load64(cpu.env + EFLAGS) & FLAG_IF != 0 and not _in_interrupt_shadow(cpu)


@inlined
def accepts_nmi(cpu: Cpu) -> bool:
    """Whether an NMI is due: none is being handled (SDM vol. 3A, 6.7.1)."""
    return cpu.nmi_pending != 0 and load32(cpu.env + HFLAGS2) & HF2_NMI == 0


@inlined
def _turn_is_drawn(cpu: Cpu) -> bool:
    """Whether the processor's turn ends where the schedule's seed says: behind any instruction, not only a block.

    Where turns ended with blocks, no seed could show the race of a load and a store in the same block.
    """
    vm = vm_of(cpu)
    return vm.seeded != 0 and vm.round_shared != 0


@inlined
def next_limit(cpu: Cpu) -> int:
    """When the engine has to look again, if nothing but the end of the turn wants attention."""
    end = vm_of(cpu).round_end
    return end - _CUT_NS if _turn_is_drawn(cpu) else end


@outlined("vqqi")
def _enter_block_slowly(cpu_at: int, gva: int, size: int) -> None:
    """A block begins, and something wants attention or the deadline has come."""
    cpu = cpu_record(cpu_at)
    vm = vm_of(cpu)
    if cpu.flush_at_block:
        cpu.flush_at_block = 0
        flush_tlb(cpu)
    alone = False
    if cpu.stepping:
        begins = at_block(cpu_at, gva, size)
        if begins == SETTLED:
            return
        alone = begins == BEGINS_ALONE
    must_stop = vm.stop or cpu.pending or cpu.vtime >= vm.round_end or cpu.yielded or accepts_nmi(cpu)
    if not must_stop and cpu.vtime + size > vm.round_end and _turn_is_drawn(cpu):
        if not _in_interrupt_shadow(cpu):  # else the block holds one instruction
            run_alone(cpu)
            must_stop = True
    if cpu.debugging and (not must_stop or cpu.watch_step == STEPPING) and at_debugged_block(cpu_at, gva, size):
        must_stop = True
    if vm.breaks and not must_stop and holds_breakpoint(vm.at, gva, size):
        vm.step_hit = 1
        vm.stop = 1
        must_stop = True
    if not must_stop:
        if cpu.intr_line and interrupts_enabled(cpu):
            must_stop = True
        elif cpu.stepping or cpu.debugging or cpu.nmi_pending or vm.breaks or _in_interrupt_shadow(cpu):
            cpu.limit = 0
        else:  # while IF is 0, an interrupt waits for what may set it: emu.engine.blockclock
            cpu.limit = next_limit(cpu)
    if must_stop:
        cpu.block_size = 0
        cpu.stopped = 1
        stop(cpu)
    else:
        cpu.vtime += size
        cpu.block_gva = gva
        cpu.block_size = size
        if cpu.stepping:
            entered_block(cpu, gva, alone)


@callback("vqqiq")
def on_block(uc: int, gva: int, size: int, cpu_at: int) -> None:
    """Unicorn's UC_HOOK_BLOCK: the guest is about to execute ``size`` bytes of code at ``gva``.

    With the size INLINE the code of :mod:`emu.engine.blockclock` has entered the block, and found that the limit is
    reached.
    """
    cpu = cpu_record(cpu_at)
    if size == INLINE:
        gva, size = cpu.block_gva, cpu.block_size
        cpu.vtime -= size
        cpu.block_gva, cpu.block_size = cpu.entered_gva, cpu.entered_size
    if cpu.vtime >= cpu.limit:
        _enter_block_slowly(cpu_at, gva, size)
    else:
        cpu.vtime += size
        cpu.block_gva = gva
        cpu.block_size = size
    cpu.entered_gva, cpu.entered_size = cpu.block_gva, cpu.block_size
    if cpu.stopped:
        leave_engine(cpu)


@inlined
def leave_block(cpu: Cpu) -> None:
    """The engine stopped within a block: take back the time of what it did not execute."""
    if cpu.block_size:
        rip = load64(cpu.env + RIP)
        if not load32(cpu.env + HFLAGS) & HF_CS64:
            rip = (rip + load64(cpu.env + CS + BASE)) & 0xFFFF_FFFF
        left = cpu.block_gva + cpu.block_size - rip
        if 0 < left <= cpu.block_size:
            cpu.vtime -= left
        cpu.block_size = 0
        cpu.entered_size = 0


@callback("qqq")
def before_leaving(arguments_at: int, leave: int) -> int:
    """Before cpu_loop_exit_noexc(CPUState *): a store changes its own block, and is executed again in one of its own.

    RIP is that of the instruction already.
    """
    cpu_at = running_cpu()
    if cpu_at:
        cpu = cpu_record(cpu_at)
        leave_block(cpu)
        cpu.split_left = 0
        if cpu.step_alone == EXECUTING:
            cpu.step_alone = AGAIN
    return leave


call_before("cpu_loop_exit_noexc_x86_64", before_leaving)


@inlined
def device_time(cpu: Cpu) -> int:
    """The virtual time in ns that a device sees which the processor accesses."""
    return max(vm_of(cpu).clock, cpu.vtime)


@inlined
def time_stamp(cpu: Cpu) -> int:
    """The time-stamp counter: the VM's time in ns, moved by what the guest wrote into it."""
    return show_time(cpu) + cpu.tsc_offset


@inlined
def _read_tsc(cpu: Cpu) -> None:
    tsc = time_stamp(cpu)
    store64(cpu.env + RAX, tsc & 0xFFFF_FFFF)
    store64(cpu.env + RDX, tsc >> 32 & 0xFFFF_FFFF)


@callback("bqq")
def on_rdtsc(uc: int, cpu_at: int) -> bool:
    """RDTSC: the time-stamp counter counts virtual nanoseconds."""
    _read_tsc(cpu_record(cpu_at))
    return True


@callback("bqq")
def on_rdtscp(uc: int, cpu_at: int) -> bool:
    """RDTSCP: RDTSC, and TSC_AUX in ECX."""
    cpu = cpu_record(cpu_at)
    _read_tsc(cpu)
    store64(cpu.env + cpustate.RCX, load64(cpu.env + TSC_AUX) & 0xFFFF_FFFF)
    return True
