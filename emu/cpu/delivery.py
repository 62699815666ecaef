"""Event delivery: what an exception, a software or a hardware interrupt comes to (SDM vol. 3A, chapter 6).

One event after the other is taken into its handler by :func:`emu.cpu.gates.enter`.  An exception met on the way takes
the event's place, or becomes a double fault, or ends in shutdown.  The event being delivered lives in the shared record
(``pending_*``), so that delivery can stop half way, wait for the DMM, and go on with the same event:

* ``pending_vector``, ``pending_error`` (-1: none), ``pending_rip`` (return address, relative to CS),
* ``pending_software``: EXCEPTION, SOFTWARE or HARDWARE of :mod:`emu.engine.vectors`,
* ``pending_prior``: 1 + the vector of the exception in whose delivery this one was met, 0 for none.
"""

from __future__ import annotations

from emu.cpu.branchfaults import decode_running, mode_flags, touches_stack
from emu.cpu.breakpoints import end_watched_step, note_hits
from emu.cpu.clock import leave_block
from emu.cpu.decode import MEMORY, P_LOCK, decode_whole
from emu.cpu.gates import enter
from emu.cpu.guestmem import load_code_byte
from emu.cpu.invpcid import NOT_INVPCID, execute_invpcid
from emu.cpu.segments import cpl
from emu.cpu.syscall import FAULTED, enter_syscall, enter_sysenter, syscall_length
from emu.engine import cpustate, eventlog
from emu.engine.cpustate import BASE, CR2, CS, HF_CS64, HF_INHIBIT_IRQ, HFLAGS, OLD_EXCEPTION, RIP
from emu.engine.debugregs import DR6, DR6_BT, STEPPING
from emu.engine.engine import fault_address, stop
from emu.engine.events import ExceptionDelivery, InterruptDelivery, PageFault
from emu.engine.native import callback, inlined, load32, load64, outlined, store32, store64
from emu.engine.state import Cpu, cpu_record
from emu.engine.vectors import (
    EXCEPTION,
    HARDWARE,
    SOFTWARE,
    VECTOR_BP,
    VECTOR_DB,
    VECTOR_DF,
    VECTOR_GP,
    VECTOR_OF,
    VECTOR_PF,
    VECTOR_SS,
    VECTOR_UD,
    has_error_code,
    is_contributory,
    makes_double_fault,
)
from emu.mmu.fill import refresh_if_changed
from emu.mmu.walk import MODE_4LEVEL, NEED, NON_CANONICAL, OK, is_canonical

_EXCEPTION_DELIVERY, _INTERRUPT_DELIVERY, _PAGE_FAULT = ExceptionDelivery.KIND, InterruptDelivery.KIND, PageFault.KIND

# results of deliver
DELIVERED = OK
# NEED, of emu.mmu.walk: the DMM must resolve need_gfn for need_intent, then deliver_pending goes on
SHUTDOWN = 4  # triple fault; ``cpu.shutdown`` is 1



@inlined
def _software_length(cpu: Cpu, vector: int, rip: int) -> int:
    """The length of the INT n, INT3 or INTO that ends at ``rip``; one with prefixes begins a block."""
    base = 0 if load32(cpu.env + HFLAGS) & HF_CS64 else load64(cpu.env + CS + BASE)
    length = rip + base - cpu.block_gva
    if 2 < length <= 15 and decode_whole(cpu.at, cpu.block_gva, mode_flags(cpu), MEMORY) == length:
        if cpu.insn_opcode == 0xCD or cpu.insn_opcode == 0xCC or cpu.insn_opcode == 0xCE:
            return length
    last = load_code_byte(cpu, rip - 1)
    if (vector == VECTOR_BP and last == 0xCC) or (vector == VECTOR_OF and last == 0xCE):
        return 1
    return 2


@inlined
def _record(cpu: Cpu, vector: int, error: int, kind: int, rip: int, level: int) -> None:
    if kind == HARDWARE:
        eventlog.record(cpu, _INTERRUPT_DELIVERY, vector, rip, level, 0, 0)
    else:
        eventlog.record(cpu, _EXCEPTION_DELIVERY, vector, error, rip, level, kind)


@inlined
def _after(cpu: Cpu) -> None:
    """The event is over: nothing of it may influence the next one."""
    cpu.pending = 0
    cpu.pending_prior = 0
    env = cpu.env
    store32(env + HFLAGS, load32(env + HFLAGS) & ~HF_INHIBIT_IRQ)


@inlined
def _task_trap(cpu: Cpu) -> None:
    """The new task's TSS asks for #DB before its first instruction (SDM vol. 3B, 17.3.1.5): make it the next event."""
    env = cpu.env
    cpu.task_traps = 0
    store64(env + DR6, load64(env + DR6) | DR6_BT)
    cpu.pending_vector = VECTOR_DB
    cpu.pending_error = -1
    cpu.pending_software = EXCEPTION
    cpu.pending_rip = load64(env + RIP)
    cpu.pending_prior = 0


@inlined
def _replace_by_fault(cpu: Cpu) -> bool:
    """Put the exception met during delivery into the event's place; False when there is none worse than it."""
    vector, kind = cpu.pending_vector, cpu.pending_software
    prior = vector if kind == EXCEPTION else -1
    met = cpu.fault_vector
    if met == VECTOR_PF:
        store64(cpu.env + CR2, cpu.fault_gva)
    if prior == VECTOR_DF and (is_contributory(met) or met == VECTOR_PF):
        return False
    if cpu.task_switched:
        cpu.pending_rip = load64(cpu.env + RIP)
    elif kind == SOFTWARE:
        cpu.pending_rip -= _software_length(cpu, vector, cpu.pending_rip)
    if prior >= 0 and makes_double_fault(prior, met):
        met = VECTOR_DF
        cpu.fault_error = 0
    cpu.pending_vector = met
    cpu.pending_error = cpu.fault_error if has_error_code(met, EXCEPTION) else -1
    cpu.pending_software = EXCEPTION
    cpu.pending_prior = prior + 1
    return True


@outlined("qq")
def _deliver(cpu_at: int) -> int:
    """Deliver the pending event and whatever it leads to."""
    cpu = cpu_record(cpu_at)
    cpu.pending = 1
    if cpu.watch_step:
        end_watched_step(cpu)  # its hits come again when the instruction does
    refresh_if_changed(cpu)
    while True:
        vector, error, kind, rip = cpu.pending_vector, cpu.pending_error, cpu.pending_software, cpu.pending_rip
        level = cpl(cpu)
        status = enter(cpu, vector, error, kind, rip)
        if status == NEED:
            return NEED
        if vector == VECTOR_PF and kind == EXCEPTION:
            eventlog.record(cpu, _PAGE_FAULT, load64(cpu.env + CR2), error, rip, level, 0)
        if status == OK:
            _record(cpu, vector, error, kind, rip, level)
            if cpu.task_traps:
                _task_trap(cpu)
                continue
            _after(cpu)
            return DELIVERED
        if not _replace_by_fault(cpu):
            _after(cpu)
            cpu.shutdown = 1
            return SHUTDOWN


# --- for the run loop and the callbacks ---------------------------------------------------------------------------


@inlined
def deliver_pending(cpu: Cpu) -> int:
    """Deliver the event in ``pending_*``; returns DELIVERED, NEED or SHUTDOWN."""
    return _deliver(cpu.at)


@inlined
def deliver(cpu: Cpu, vector: int, error: int, kind: int, rip: int) -> int:
    """Deliver a new event.

    Args:
        vector: 0 to 255.
        error: error code, -1 for none.  The address of a page fault is in CR2 already.
        kind: EXCEPTION, SOFTWARE (INT n, INT3, INTO) or HARDWARE.
        rip: return address, relative to CS: of the faulting instruction, or behind an instruction that traps.

    Returns:
        DELIVERED; NEED, to be followed by :func:`deliver_pending` once the DMM has resolved; SHUTDOWN.
    """
    cpu.pending_vector = vector
    cpu.pending_error = error
    cpu.pending_software = kind
    cpu.pending_rip = rip
    cpu.pending_prior = 0
    return deliver_pending(cpu)


@inlined
def deliver_task_trap(cpu: Cpu) -> int:
    """Deliver the #DB that a task asks for to which an instruction has led."""
    _task_trap(cpu)
    return deliver_pending(cpu)


@inlined
def deliver_external(cpu: Cpu, vector: int) -> int:
    """Deliver a hardware interrupt; the caller has made sure that the guest accepts one."""
    return deliver(cpu, vector, -1, HARDWARE, load64(cpu.env + RIP))


@inlined
def deliver_refused(cpu: Cpu) -> int:
    """Deliver the exception for a refused TLB fill, whose reason (not NEED) is in ``miss_kind``."""
    env = cpu.env
    rip = load64(env + RIP)
    if cpu.miss_kind == NON_CANONICAL:
        vector = VECTOR_SS if is_canonical(cpu, rip) and touches_stack(cpu.at) else VECTOR_GP
        return deliver(cpu, vector, 0, EXCEPTION, rip)
    gva = fault_address(cpu)
    store64(env + CR2, gva if cpu.mode >= MODE_4LEVEL else gva & 0xFFFF_FFFF)
    return deliver(cpu, VECTOR_PF, cpu.miss_error, EXCEPTION, rip)


# --- the engine's callbacks ---------------------------------------------------------------------------------------


@inlined
def _take_from_engine(cpu: Cpu) -> int:
    """Clear the engine's record of the exception that it raised; returns SOFTWARE or EXCEPTION."""
    env = cpu.env
    kind = SOFTWARE if load32(env + cpustate.EXCEPTION_IS_INT) else EXCEPTION
    store32(env + cpustate.EXCEPTION_IS_INT, 0)
    store32(env + OLD_EXCEPTION, -1)  # or it would make its own double faults
    return kind


@inlined
def _stop_unless(cpu: Cpu, status: int) -> None:
    """Leave the engine at once, before it looks at the next instruction, unless the event was delivered."""
    if status != DELIVERED:
        cpu.stopped = 1
        stop(cpu)


@callback("vqiq")
def on_interrupt(uc: int, vector: int, cpu_at: int) -> None:
    """Unicorn's UC_HOOK_INTR: an exception, INT n, INT3 or INTO; never a page fault.

    The engine has moved RIP behind a software interrupt.
    """
    cpu = cpu_record(cpu_at)
    kind = _take_from_engine(cpu)
    leave_block(cpu)
    vector = vector & 0xFF
    if vector == VECTOR_DB and cpu.watch_step == STEPPING:
        note_hits(cpu, end_watched_step(cpu))
    error = load32(cpu.env + cpustate.ERROR_CODE) if has_error_code(vector, kind) else -1
    _stop_unless(cpu, deliver(cpu, vector, error, kind, load64(cpu.env + RIP)))


@inlined
def _deliver_undefined(cpu: Cpu) -> int:
    """The engine does not know the instruction at RIP: #UD, or the #DB of F1 (ICEBP, INT1)."""
    rip = load64(cpu.env + RIP)
    length = decode_running(cpu)
    if length == 0 or cpu.insn_opcode != 0xF1 or cpu.insn_prefixes & P_LOCK:
        return deliver(cpu, VECTOR_UD, -1, EXCEPTION, rip)
    note_hits(cpu, cpu.held_hits)  # one #DB for both
    cpu.held_hits = 0
    return deliver(cpu, VECTOR_DB, -1, EXCEPTION, rip + length)


@callback("bqq")
def on_invalid_instruction(uc: int, cpu_at: int) -> bool:
    """Unicorn's UC_HOOK_INSN_INVALID: #UD, INT 6, or ICEBP and INVPCID, which the engine does not know."""
    cpu = cpu_record(cpu_at)
    env = cpu.env
    kind = _take_from_engine(cpu)
    leave_block(cpu)
    emulated = execute_invpcid(cpu_at) if kind == EXCEPTION else NOT_INVPCID
    if emulated != NOT_INVPCID:
        status = DELIVERED
        if emulated == NEED:
            cpu.miss_kind = NEED  # as if an access of the engine's had been refused
            stop(cpu)
        elif emulated != OK:
            if cpu.fault_vector == VECTOR_PF:
                store64(env + CR2, cpu.fault_gva)
            status = deliver(cpu, cpu.fault_vector, cpu.fault_error, kind, load64(env + RIP))
    elif kind == SOFTWARE:
        rip = load64(env + cpustate.EXCEPTION_NEXT_EIP)
        store64(env + RIP, rip)
        status = deliver(cpu, VECTOR_UD, -1, kind, rip)
    else:
        status = _deliver_undefined(cpu)
    _stop_unless(cpu, status)
    return True


@callback("vqq")
def on_syscall(uc: int, cpu_at: int) -> None:
    """Unicorn's UC_HOOK_INSN for SYSCALL, which adds the instruction's length to RIP afterwards."""
    cpu = cpu_record(cpu_at)
    env = cpu.env
    length = syscall_length(cpu)
    if enter_syscall(cpu, length) == FAULTED:
        _stop_unless(cpu, deliver(cpu, VECTOR_UD, -1, EXCEPTION, load64(env + RIP)))
    store64(env + RIP, load64(env + RIP) - length)


@callback("vqq")
def on_sysenter(uc: int, cpu_at: int) -> None:
    """Unicorn's UC_HOOK_INSN for SYSENTER, which adds the instruction's length to RIP afterwards."""
    cpu = cpu_record(cpu_at)
    env = cpu.env
    length = syscall_length(cpu)
    if enter_sysenter(cpu) == FAULTED:
        _stop_unless(cpu, deliver(cpu, VECTOR_GP, 0, EXCEPTION, load64(env + RIP)))
    store64(env + RIP, load64(env + RIP) - length)
