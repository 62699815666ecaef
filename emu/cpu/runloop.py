"""The run loop around the engines: compiled, and left only when Python must decide something.

The processors of a VM run one after the other, in rounds.  In a round each runs its slice of the same stretch of
virtual time, at most a quantum, in a fixed order or in one drawn from a seed.  HLT gives the rest of a slice away, and
so does PAUSE in a spin loop.  A processor that is woken in a round still gets its turn there.  A round ends before
time goes beyond the VM's deadline, when devices or policies are due.

Where rounds begin and end follows from what the guest does and from the deadline alone, never from when the native
plane is left: ``stop`` leaves it in the middle of a round, which then goes on; ``pause_at`` ends only rounds in which
one processor alone has something to do, where that cannot be seen.
"""

from __future__ import annotations

from enum import IntEnum

from emu.cpu.apic import acknowledge
from emu.cpu.branchfaults import BEYOND_LIMIT, WRAPPED, note_limit, undo_branch
from emu.cpu.breakpoints import again_watched_step, begin_watched_step
from emu.cpu.checks import keep_rf
from emu.cpu.clock import accepts_nmi, interrupts_enabled, leave_block, next_limit
from emu.cpu.delivery import deliver, deliver_external, deliver_pending, deliver_refused
from emu.cpu.fartask import FAULT_NS, OTHER_TASK, perform
from emu.cpu.portio import DENIED, SUSPENDED
from emu.cpu.stepping import note_executed
from emu.devices.shared import ASK
from emu.engine import cpustate
from emu.engine.alone import REFUSED, REFUSED_FETCH, forget_instruction, run_refused_alone, within_block
from emu.engine.cpustate import EFLAGS, FLAG_IF, FLAG_TF
from emu.engine.debugregs import DR6, DR6_BS, WATCHED
from emu.engine.engine import ERR_OK, flush_tlb, read_eflags, start, use_clock
from emu.engine.native import compiled, inlined, load64, store64
from emu.engine.state import HALTED, RUNNING, Cpu, Vm, cpu_number, cpu_record, vm_of, vm_record
from emu.engine.vectors import EXCEPTION, VECTOR_DB
from emu.mmu.code import CODE_IN_USE
from emu.mmu.walk import NEED, NON_CANONICAL, OK

_GENERAL_PROTECTION = 13

# results of _next beside the number of a processor
_NOBODY, _LATER = -1, -2  # nobody has anything to do; nobody before something else is due

# a linear congruential generator of 64 bits (Knuth, MMIX), whose upper half is used
_LCG_FACTOR, _LCG_TERM = 6364136223846793005, 1442695040888963407


class Reason(IntEnum):
    """Why :func:`run` returned; all but STOP and HALT are about processor ``vm.current``."""

    STOP = 0  # somebody asked for it (``vm.stop``), or every processor has come to the deadline
    NEED = 1  # the DMM must resolve ``cpu.need_gfn`` for ``cpu.need_intent``
    INTERRUPT = 2  # the interrupt line is up and the guest accepts an interrupt, which is the 8259's
    HALT = 3  # no processor has anything to do
    SHUTDOWN = 4  # triple fault
    ENGINE_ERROR = 5  # Unicorn returned the error in ``cpu.engine_error``
    NMI = 6  # a non-maskable interrupt is due


NEED_DMM = NEED  # status of inject: the DMM must resolve first, the interrupt stays pending

_STOP, _NEED, _INTERRUPT, _HALT = int(Reason.STOP), int(Reason.NEED), int(Reason.INTERRUPT), int(Reason.HALT)
_NMI, _SHUTDOWN, _ENGINE_ERROR = int(Reason.NMI), int(Reason.SHUTDOWN), int(Reason.ENGINE_ERROR)


# --- whose turn it is -------------------------------------------------------------------------------------------


@inlined
def _has_work(cpu: Cpu) -> bool:
    """Whether a processor runs, or something wakes it from HLT."""
    if cpu.activity == RUNNING:
        return True
    wakes = (cpu.intr_line != 0 and load64(cpu.env + EFLAGS) & FLAG_IF != 0) or accepts_nmi(cpu)
    return cpu.activity == HALTED and wakes


@inlined
def _time_of(vm: Vm, cpu: Cpu) -> int:
    """The virtual time at which a processor that has something to do goes on."""
    if cpu.activity == RUNNING:
        return cpu.vtime
    return max(cpu.vtime, cpu.wake_at, vm.round_start)


@inlined
def _draw(vm: Vm, below: int) -> int:
    """A number from 0 to ``below`` - 1 from the schedule's seed."""
    vm.seed = vm.seed * _LCG_FACTOR + _LCG_TERM
    return (vm.seed >> 33 & 0x7FFF_FFFF) % below


@inlined
def _shuffle(vm: Vm) -> None:
    """Draw the order of the coming round (Fisher and Yates)."""
    for place in range(vm.cpu_count - 1, 0, -1):
        here, there = cpu_number(vm, place), cpu_number(vm, _draw(vm, place + 1))
        here.turn, there.turn = there.turn, here.turn


@inlined
def _longest_turn(vm: Vm) -> int:
    """The length in ns of the turns of the round that begins."""
    if not vm.seeded:
        return vm.quantum
    return vm.shortest_quantum + _draw(vm, vm.quantum - vm.shortest_quantum + 1)


@compiled
def share_round(vm_at: int) -> None:
    """In a round that one processor had for itself another one has something to do now: it gets its turn soon."""
    vm = vm_record(vm_at)
    cpu = cpu_number(vm, vm.current)
    vm.round_shared = 1
    vm.round_end = min(vm.deadline, cpu.vtime + _longest_turn(vm))  # pause_at, which was its end, has no part in it
    cpu.limit = 0


@compiled
def _begin_round(vm: Vm) -> int:
    """Begin the next round; returns 0, _NOBODY or _LATER."""
    working = 0
    begin = 0
    for index in range(vm.cpu_count):
        cpu = cpu_number(vm, index)
        if _has_work(cpu):
            time = _time_of(vm, cpu)
            begin = time if working == 0 else min(begin, time)
            working += 1
    if working == 0:
        return _NOBODY
    vm.round_start = max(begin, vm.round_start)
    if vm.round_start >= vm.deadline or vm.round_start >= vm.pause_at:
        return _LATER
    vm.round_shared = 1 if working > 1 else 0
    if not vm.round_shared:
        vm.round_end = min(vm.deadline, vm.pause_at)
    else:
        vm.round_end = min(vm.round_start + _longest_turn(vm), vm.deadline)
        if vm.seeded:
            _shuffle(vm)
        for index in range(vm.cpu_count):
            cpu_number(vm, index).pause_rip = -1
    vm.round_place = 0
    return 0


@inlined
def _next(vm: Vm) -> int:
    """The number of the processor that runs now, or _NOBODY or _LATER."""
    while True:
        for _ in range(vm.cpu_count):
            index = cpu_number(vm, vm.round_place).turn
            cpu = cpu_number(vm, index)
            if _has_work(cpu) and _time_of(vm, cpu) < vm.round_end:
                cpu.vtime = _time_of(vm, cpu)
                cpu.activity = RUNNING
                return index
            vm.round_place = (vm.round_place + 1) % vm.cpu_count
        status = _begin_round(vm)
        if status != 0:
            return status


# --- running ----------------------------------------------------------------------------------------------------


@compiled
def _run_processor(cpu: Cpu) -> int:
    """Run one processor to the end of its slice, or until something else is to be done; returns a :class:`Reason`.

    HALT means that the guest executed HLT on it.
    """
    vm = vm_of(cpu)
    use_clock(cpu)
    while True:
        if cpu.shutdown:
            return _SHUTDOWN
        if cpu.pending:
            if deliver_pending(cpu) == NEED:
                return _NEED
            continue
        if not within_block(cpu):
            if vm.stop or cpu.vtime >= vm.round_end or cpu.yielded:
                return _STOP
            if accepts_nmi(cpu):
                return _NMI
            if cpu.intr_line and interrupts_enabled(cpu):
                vector = acknowledge(cpu)
                if vector == ASK:
                    return _INTERRUPT
                if deliver_external(cpu, vector) == NEED:
                    return _NEED
                continue
        urgent = cpu.intr_line or cpu.nmi_pending or cpu.stepping or cpu.debugging or cpu.flush_at_block or vm.breaks
        cpu.limit = 0 if urgent else next_limit(cpu)
        cpu.stopped = 0
        cpu.miss_kind = OK
        cpu.miss_fetch = 0
        cpu.split_left = 0
        error = start(cpu, cpu.single)
        if cpu.stopped:
            if cpu.step_over:
                return _STOP
            continue
        if cpu.miss_kind == REFUSED or cpu.miss_kind == REFUSED_FETCH:
            keep_rf(cpu)
            run_refused_alone(cpu.at)
            continue
        if cpu.miss_kind != OK:  # the instruction at RIP could not be executed
            keep_rf(cpu)
            note_limit(cpu)
            if cpu.miss_kind == NON_CANONICAL or cpu.miss_kind == BEYOND_LIMIT:
                undo_branch(cpu, cpu.miss_kind == BEYOND_LIMIT)
            leave_block(cpu)
            if cpu.miss_fetch:
                note_executed(cpu)  # the instruction before
            if cpu.miss_kind == WRAPPED:
                store64(cpu.env + cpustate.RIP, load64(cpu.env + cpustate.RIP) & 0xFFFF_FFFF)
                continue
            if cpu.miss_kind == SUSPENDED:
                forget_instruction(cpu)
                return _STOP
            if cpu.miss_kind == WATCHED:
                forget_instruction(cpu)
                begin_watched_step(cpu)
                continue
            if cpu.miss_kind == NEED:
                forget_instruction(cpu)
                again_watched_step(cpu)
                return _NEED
            if cpu.miss_kind == CODE_IN_USE:
                forget_instruction(cpu)
                again_watched_step(cpu)
                cpu.single = 1
                continue
            if cpu.miss_kind == OTHER_TASK:
                if perform(cpu.at) == NEED:
                    forget_instruction(cpu)
                    again_watched_step(cpu)
                    return _NEED
                cpu.single = 0
                continue
            cpu.single = 0
            cpu.vtime += FAULT_NS
            if cpu.miss_kind == DENIED or cpu.miss_kind == BEYOND_LIMIT:
                deliver(cpu, _GENERAL_PROTECTION, 0, EXCEPTION, load64(cpu.env + cpustate.RIP))
            else:
                deliver_refused(cpu)
        elif error != ERR_OK:
            cpu.engine_error = error
            return _ENGINE_ERROR
        elif cpu.single:
            cpu.single = 0
            leave_block(cpu)
        elif load64(cpu.env + EFLAGS) & FLAG_TF:  # the trap behind HLT ends it (SDM vol. 3B, 17.3.1.4)
            cpu.block_size = 0
            note_executed(cpu)
            store64(cpu.env + DR6, load64(cpu.env + DR6) | DR6_BS)
            deliver(cpu, VECTOR_DB, -1, EXCEPTION, load64(cpu.env + cpustate.RIP))
        else:
            return _HALT


@compiled
def run(vm_at: int) -> int:
    """Run the processors of a VM in turn until Python must decide.

    Returns:
        A :class:`Reason`; ``vm.reached`` is the result of :func:`note_reached`.
    """
    vm = vm_record(vm_at)
    reason = _run(vm)
    _note_reached(vm)
    return reason


@compiled
def _run(vm: Vm) -> int:
    vm.round_end = min(vm.round_end, vm.deadline)
    while True:
        cpu = cpu_number(vm, vm.current)
        if not within_block(cpu):
            if vm.stop:
                return _STOP
            index = _next(vm)
            if index == _NOBODY:
                return _HALT
            if index == _LATER:
                return _STOP
            if index != vm.current:
                vm.log_time = max(vm.log_time, cpu.vtime)
                vm.current = index
                cpu = cpu_number(vm, index)
        reason = _run_processor(cpu)
        if cpu.yielded:
            cpu.yielded = 0
            cpu.vtime = max(cpu.vtime, vm.round_end)
        if reason == _HALT:
            cpu.activity = HALTED
            cpu.block_size = 0
            if vm.started > 1:
                note_executed(cpu)
        elif reason != _STOP or cpu.step_over:
            return reason


@compiled
def note_reached(vm_at: int) -> int:
    """The virtual time in ns that every processor with something to do has come to; without any, the latest one.

    It is in ``vm.reached``, and the VM's clock is not less from now on, if no block of code is half way.
    """
    vm = vm_record(vm_at)
    _note_reached(vm)
    return vm.reached


@compiled
def _note_reached(vm: Vm) -> None:
    earliest = latest = vm.round_start
    working = False
    for index in range(vm.cpu_count):
        cpu = cpu_number(vm, index)
        latest = max(latest, cpu.vtime)
        if _has_work(cpu):
            time = _time_of(vm, cpu)
            earliest = min(earliest, time) if working else time
            working = True
    vm.reached = earliest if working else latest
    if not within_block(cpu_number(vm, vm.current)):
        vm.clock = max(vm.clock, vm.reached)


@compiled
def has_work(cpu_at: int) -> bool:
    """Whether a processor runs, or something wakes it from HLT."""
    return _has_work(cpu_record(cpu_at))


@compiled
def forget_translations(cpu_at: int) -> None:
    """Drop every TLB entry of one processor."""
    flush_tlb(cpu_record(cpu_at))


@compiled
def inject(cpu_at: int, vector: int) -> int:
    """Deliver a hardware interrupt; returns the status of :func:`emu.cpu.delivery.deliver_external`."""
    return deliver_external(cpu_record(cpu_at), vector)


@compiled
def eflags(cpu_at: int) -> int:
    """EFLAGS with the arithmetic flags computed."""
    return read_eflags(cpu_record(cpu_at))
