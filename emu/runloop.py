"""The run loop around the engine: compiled, and left only when Python must decide something."""

from __future__ import annotations

from enum import IntEnum
from typing import Any

from emu import cpustate
from emu.clock import interrupts_enabled, leave_block
from emu.delivery import deliver_external, deliver_pending
from emu.engine import ERR_EXCEPTION, ERR_OK, fault_address, start, use_clock
from emu.mmu.walk import FAULT, MODE_4LEVEL, NEED, NON_CANONICAL, OK
from emu.native import compiled, inlined, load64, store64
from emu.state import state_at

_PAGE_FAULT, _GENERAL_PROTECTION = 14, 13


class Reason(IntEnum):
    """Why :func:`run` returned."""

    STOP = 0  # somebody asked for it (``vm.stop``), or the deadline has come
    NEED = 1  # the DMM must resolve ``vm.need_gfn`` for ``vm.need_intent``
    INTERRUPT = 2  # the interrupt line is up and the guest accepts an interrupt
    HALT = 3  # the guest executed HLT
    SHUTDOWN = 4  # triple fault
    ENGINE_ERROR = 5  # Unicorn returned the error in ``vm.engine_error``


NEED_DMM = NEED  # status of inject: the DMM must resolve first, the interrupt stays pending

_STOP, _NEED, _INTERRUPT, _HALT = int(Reason.STOP), int(Reason.NEED), int(Reason.INTERRUPT), int(Reason.HALT)
_SHUTDOWN, _ENGINE_ERROR = int(Reason.SHUTDOWN), int(Reason.ENGINE_ERROR)


@inlined
def _raise(vm: Any, vector: int, error: int) -> None:
    """Make an exception of the instruction at RIP pending."""
    vm.pending = 1
    vm.pending_vector = vector
    vm.pending_error = error
    vm.pending_software = 0
    vm.pending_rip = load64(vm.env + cpustate.RIP)


@compiled
def run(vm_at: int) -> int:
    """Run the guest until Python must decide; returns a :class:`Reason`."""
    vm = state_at(vm_at)
    use_clock(vm)
    while True:
        if vm.shutdown:
            return _SHUTDOWN
        if vm.pending:
            status = deliver_pending(vm)
            if status == NEED:
                return _NEED
            continue
        if vm.stop or vm.vtime >= vm.deadline:
            return _STOP
        if vm.intr_line and interrupts_enabled(vm):
            return _INTERRUPT
        vm.stopped = 0
        vm.miss_kind = OK
        error = start(vm)
        if vm.stopped:
            continue
        if error == ERR_OK:
            return _HALT
        leave_block(vm)
        if error != ERR_EXCEPTION or vm.miss_kind == OK:
            vm.engine_error = error
            return _ENGINE_ERROR
        if vm.miss_kind == FAULT:
            gva = fault_address(vm)
            if vm.mode != MODE_4LEVEL:
                gva &= 0xFFFF_FFFF
            store64(vm.env + cpustate.CR2, gva)
            _raise(vm, _PAGE_FAULT, vm.miss_error)
        elif vm.miss_kind == NON_CANONICAL:
            _raise(vm, _GENERAL_PROTECTION, 0)
        else:
            return _NEED


@compiled
def inject(vm_at: int, vector: int) -> int:
    """Deliver a hardware interrupt; returns the status of :func:`emu.delivery.deliver_external`."""
    return deliver_external(state_at(vm_at), vector)
