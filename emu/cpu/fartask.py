"""JMP, CALL and IRET to a task (SDM vol. 3A, 7.3), taken from the engine.

The engine's own switch can be stopped half way by a page that is not there, and its faults in the new task name the old
one's RIP.  So its functions for far JMP, far CALL and IRET are preceded by a look at where they lead; when that is
another task, the engine is left at the instruction, and :func:`perform` switches as :mod:`emu.cpu.taskswitch` does.
"""

from __future__ import annotations

from emu.cpu.delivery import deliver, deliver_task_trap
from emu.cpu.guestmem import begin_accesses, fail, load_system
from emu.cpu.segments import BEYOND_TABLE, PRESENT, attributes_of, cpl, dpl_of, load_descriptor, system_type
from emu.cpu.taskswitch import BY_CALL, BY_IRET, BY_JUMP, switch_task
from emu.engine.cpustate import (
    BASE,
    CR2,
    EFER,
    EFER_LMA,
    EFLAGS,
    FLAG_NT,
    HF2_NMI,
    HF_INHIBIT_IRQ,
    HFLAGS,
    HFLAGS2,
    RIP,
    TR,
)
from emu.engine.engine import read_eflags, running_cpu, stop
from emu.engine.library import call_before_helper, function_address
from emu.engine.native import callback, global_cell, inlined, load32, load64, outlined, store32, store64
from emu.engine.state import Cpu, cpu_record
from emu.engine.vectors import EXCEPTION, VECTOR_GP, VECTOR_NP, VECTOR_PF
from emu.mmu.fill import refresh_if_changed
from emu.mmu.walk import NEED, OK

OTHER_TASK = 12  # in ``cpu.miss_kind``: the instruction leads to another task
FAULT_NS = 50  # virtual time of a refused instruction: a guest that only faults makes progress towards --max-time

_TSS_16, _TASK_GATE, _TSS_32 = 1, 5, 9  # types of descriptors

_leave, _leave_at = global_cell("emu_cpu_leave_for_task")
_leave[0] = function_address("cpu_loop_exit_restore_x86_64")


@inlined
def _leave_engine(cpu: Cpu, arguments_at: int, selector: int, source: int, following: int) -> int:
    """Have cpu_loop_exit_restore(CPUState *, uintptr_t code) called; ``following`` is RIP behind the instruction."""
    cpu.miss_kind = OTHER_TASK
    cpu.task_selector = selector & 0xFFFF
    cpu.task_source = source
    cpu.task_following = following & 0xFFFF_FFFF
    stop(cpu)
    store64(arguments_at, cpu.engine_cpu_at)
    store64(arguments_at + 8, load64(arguments_at + 48))
    return load64(_leave_at())


@outlined("qqq")
def _leads_to_task(cpu_at: int, selector: int) -> int:
    cpu = cpu_record(cpu_at)
    if load64(cpu.env + EFER) & EFER_LMA or selector & 0xFFFC == 0:
        return 0
    refresh_if_changed(cpu)
    if load_descriptor(cpu, selector) != OK:
        return 0  # the engine finds that as well
    kind = system_type(attributes_of(cpu.sys_value))
    return 1 if kind == _TSS_16 or kind == _TASK_GATE or kind == _TSS_32 else 0


@callback("qqq")
def before_jump(arguments_at: int, jump: int) -> int:
    """Before helper_ljmp_protected(CPUX86State *, int selector, uint64_t rip, uint64_t following)."""
    cpu_at = running_cpu()
    selector = load32(arguments_at + 8) & 0xFFFF
    if cpu_at == 0 or not _leads_to_task(cpu_at, selector):
        return jump
    return _leave_engine(cpu_record(cpu_at), arguments_at, selector, BY_JUMP, load64(arguments_at + 24))


@callback("qqq")
def before_call(arguments_at: int, call: int) -> int:
    """Before helper_lcall_protected(CPUX86State *, int selector, uint64_t rip, int size, uint64_t following)."""
    cpu_at = running_cpu()
    selector = load32(arguments_at + 8) & 0xFFFF
    if cpu_at == 0 or not _leads_to_task(cpu_at, selector):
        return call
    return _leave_engine(cpu_record(cpu_at), arguments_at, selector, BY_CALL, load64(arguments_at + 32))


@callback("qqq")
def before_iret(arguments_at: int, iret: int) -> int:
    """Before helper_iret_protected(CPUX86State *, int size, int following)."""
    cpu_at = running_cpu()
    if cpu_at == 0:
        return iret
    cpu = cpu_record(cpu_at)
    if not load64(cpu.env + EFLAGS) & FLAG_NT or load64(cpu.env + EFER) & EFER_LMA:
        return iret
    return _leave_engine(cpu, arguments_at, 0, BY_IRET, load32(arguments_at + 16))


call_before_helper("ljmp_protected", before_jump)
call_before_helper("lcall_protected", before_call)
call_before_helper("iret_protected", before_iret)


@outlined("qqqqq")
def _transfer(cpu_at: int, selector: int, source: int, rip: int) -> int:
    """Switch as a far JMP or CALL to ``selector``, of a TSS or a task gate, or as IRET from a nested task.

    Args:
        source: BY_JUMP, BY_CALL or BY_IRET.
        rip: where the old task will go on.

    Returns:
        As :func:`emu.cpu.taskswitch.switch_task`.
    """
    cpu = cpu_record(cpu_at)
    image = read_eflags(cpu)
    if source == BY_IRET:
        status = load_system(cpu, load64(cpu.env + TR + BASE), 2)  # the back link
        return switch_task(cpu_at, cpu.sys_value, source, rip, image & ~FLAG_NT, -1) if status == OK else status
    error = selector & 0xFFFC
    status = load_descriptor(cpu, selector)
    if status == BEYOND_TABLE:
        return fail(cpu, VECTOR_GP, error)
    if status != OK:
        return status
    attributes = attributes_of(cpu.sys_value)
    if dpl_of(attributes) < max(cpl(cpu), selector & 3):
        return fail(cpu, VECTOR_GP, error)
    if system_type(attributes) == _TASK_GATE:
        if not attributes & PRESENT:
            return fail(cpu, VECTOR_NP, error)
        selector = cpu.sys_value >> 16 & 0xFFFF
    return switch_task(cpu_at, selector, source, rip, image, -1)


@outlined("qq")
def perform(cpu_at: int) -> int:
    """Execute the instruction for which the engine was left; NEED when the DMM must be asked first, else OK."""
    cpu = cpu_record(cpu_at)
    env = cpu.env
    refresh_if_changed(cpu)
    begin_accesses(cpu)
    cpu.external = cpu.task_switched = 0
    before = load64(env + RIP)
    status = _transfer(cpu_at, cpu.task_selector, cpu.task_source, cpu.task_following)
    if status == NEED:
        return NEED
    cpu.vtime += cpu.task_following - before & 0xFFFF_FFFF if cpu.task_switched else FAULT_NS
    store32(env + HFLAGS, load32(env + HFLAGS) & ~HF_INHIBIT_IRQ)
    if cpu.task_switched and cpu.task_source == BY_IRET:
        store32(env + HFLAGS2, load32(env + HFLAGS2) & ~HF2_NMI)
    if status != OK:
        if cpu.fault_vector == VECTOR_PF:
            store64(env + CR2, cpu.fault_gva)
        deliver(cpu, cpu.fault_vector, cpu.fault_error, EXCEPTION, load64(env + RIP))
    elif cpu.task_traps:
        deliver_task_trap(cpu)
    return OK
