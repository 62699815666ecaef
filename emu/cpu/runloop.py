"""The run loop around the engine: compiled, and left only when Python must decide something."""

from __future__ import annotations

from enum import IntEnum

from emu.cpu.breakpoints import again_watched_step, begin_watched_step
from emu.cpu.clock import accepts_nmi, interrupts_enabled, leave_block
from emu.cpu.delivery import deliver, deliver_external, deliver_pending, deliver_refused
from emu.cpu.portio import DENIED
from emu.engine import cpustate
from emu.engine.alone import REFUSED, forget_instruction, run_refused_alone, within_block
from emu.engine.debugregs import WATCHED
from emu.engine.engine import ERR_OK, read_eflags, start, use_clock
from emu.engine.native import compiled, load64
from emu.engine.state import state_at
from emu.engine.vectors import EXCEPTION
from emu.mmu.fill import CODE_IN_USE
from emu.mmu.walk import NEED, OK

FAULT_NS = 50  # virtual time of a refused instruction: a guest that only faults makes progress towards --max-time
_GENERAL_PROTECTION = 13


class Reason(IntEnum):
    """Why :func:`run` returned."""

    STOP = 0  # somebody asked for it (``vm.stop``), or the deadline has come
    NEED = 1  # the DMM must resolve ``vm.need_gfn`` for ``vm.need_intent``
    INTERRUPT = 2  # the interrupt line is up and the guest accepts an interrupt
    HALT = 3  # the guest executed HLT
    SHUTDOWN = 4  # triple fault
    ENGINE_ERROR = 5  # Unicorn returned the error in ``vm.engine_error``
    NMI = 6  # a non-maskable interrupt is due


NEED_DMM = NEED  # status of inject: the DMM must resolve first, the interrupt stays pending

_STOP, _NEED, _INTERRUPT, _HALT = int(Reason.STOP), int(Reason.NEED), int(Reason.INTERRUPT), int(Reason.HALT)
_NMI, _SHUTDOWN, _ENGINE_ERROR = int(Reason.NMI), int(Reason.SHUTDOWN), int(Reason.ENGINE_ERROR)


@compiled
def run(vm_at: int) -> int:
    """Run the guest until Python must decide; returns a :class:`Reason`."""
    vm = state_at(vm_at)
    use_clock(vm)
    while True:
        if vm.shutdown:
            return _SHUTDOWN
        if vm.pending:
            if deliver_pending(vm) == NEED:
                return _NEED
            continue
        if not within_block(vm):
            if vm.stop or vm.vtime >= vm.deadline:
                return _STOP
            if accepts_nmi(vm):
                return _NMI
            if vm.intr_line and interrupts_enabled(vm):
                return _INTERRUPT
        urgent = vm.intr_line or vm.nmi_pending or vm.stepping or vm.debugging
        vm.limit = 0 if urgent else vm.deadline
        vm.stopped = 0
        vm.miss_kind = OK
        error = start(vm, vm.single)
        if vm.stopped:
            if vm.step_over:
                return _STOP
            continue
        if vm.miss_kind >= REFUSED:
            run_refused_alone(vm_at)
            continue
        if vm.miss_kind != OK:  # the instruction at RIP could not be executed
            leave_block(vm)
            if vm.miss_kind == WATCHED:
                forget_instruction(vm)
                begin_watched_step(vm)
                continue
            if vm.miss_kind == NEED:
                forget_instruction(vm)
                again_watched_step(vm)
                return _NEED
            if vm.miss_kind == CODE_IN_USE:
                forget_instruction(vm)
                again_watched_step(vm)
                vm.single = 1
                continue
            vm.single = 0
            vm.vtime += FAULT_NS
            if vm.miss_kind == DENIED:
                deliver(vm, _GENERAL_PROTECTION, 0, EXCEPTION, load64(vm.env + cpustate.RIP))
            else:
                deliver_refused(vm)
        elif error != ERR_OK:
            vm.engine_error = error
            return _ENGINE_ERROR
        elif vm.single:
            vm.single = 0
            leave_block(vm)
        else:
            return _HALT


@compiled
def inject(vm_at: int, vector: int) -> int:
    """Deliver a hardware interrupt; returns the status of :func:`emu.cpu.delivery.deliver_external`."""
    return deliver_external(state_at(vm_at), vector)


@compiled
def eflags(vm_at: int) -> int:
    """EFLAGS with the arithmetic flags computed."""
    return read_eflags(state_at(vm_at))
