"""One step of event delivery: through the interrupt vector table or an IDT gate into the handler (SDM vol. 3A, ch. 6).

:func:`enter` either changes the CPU state and the guest's stack completely, or not at all: it returns FAULT with the
exception that it ran into, or NEED where the DMM must be asked first.  What is to become of that is decided in
:mod:`emu.cpu.delivery`.
"""

from __future__ import annotations

from emu.cpu.guestmem import begin_accesses, fail, load_system, probe_store, store_system
from emu.cpu.segments import (
    BEYOND_TABLE,
    BIG,
    CODE,
    CONFORMING,
    LONG,
    NOT_SYSTEM,
    PRESENT,
    WRITABLE,
    attributes_of,
    base_of,
    cpl,
    dpl_of,
    limit_of,
    load_descriptor,
    set_segment,
    stack_has_room,
    stack_mask,
    system_type,
)
from emu.cpu.taskswitch import switch_through_gate
from emu.engine import cpustate
from emu.engine.cpustate import (
    BASE,
    CS,
    DS,
    EFLAGS,
    ES,
    FLAG_AC,
    FLAG_IF,
    FLAG_NT,
    FLAG_RF,
    FLAG_TF,
    FLAG_VM,
    FLAGS,
    FS,
    GS,
    IDTR,
    LIMIT,
    RIP,
    RSP,
    SELECTOR,
    SS,
    TR,
    set_hflags_mode,
)
from emu.engine.engine import read_eflags
from emu.engine.native import inlined, load32, load64, outlined, store32, store64
from emu.engine.state import Cpu, cpu_record
from emu.engine.vectors import SOFTWARE, VECTOR_GP, VECTOR_NP, VECTOR_SS, VECTOR_TS, has_error_code, is_fault
from emu.mmu.walk import OK, is_canonical

_IDT_ERROR = 2  # error code bit IDT: the selector part is a vector
_GATE_TASK, _GATE_INTERRUPT_16, _GATE_TRAP_16, _GATE_INTERRUPT_32, _GATE_TRAP_32 = 5, 6, 7, 14, 15


@inlined
def pushed_eflags(cpu: Cpu, vector: int, kind: int) -> int:
    """The EFLAGS image for the handler's stack.

    RF is set for faults, so that the restarted instruction does not hit its breakpoint twice (SDM vol. 3B, 17.3.1.1).
    """
    image = read_eflags(cpu) | 2
    if kind == SOFTWARE:
        return image & ~FLAG_RF
    return image | FLAG_RF if is_fault(vector, kind) else image


@inlined
def _enter_handler(cpu: Cpu, masks: bool, selector: int, descriptor: int, offset: int) -> None:
    """Change EFLAGS, CS and RIP for a protected-mode handler; ``masks`` is whether the gate clears IF."""
    env = cpu.env
    cleared = FLAG_TF | FLAG_NT | FLAG_RF | FLAG_VM
    if masks:
        cleared |= FLAG_IF
    store64(env + EFLAGS, load64(env + EFLAGS) & ~cleared)
    set_segment(env, CS, selector, base_of(descriptor), limit_of(descriptor), attributes_of(descriptor))
    store64(env + RIP, offset)
    set_hflags_mode(env)


# --- real mode --------------------------------------------------------------------------------------------------


@outlined("qqqqq")
def _enter_real(cpu_at: int, vector: int, kind: int, rip: int) -> int:
    """SDM vol. 3B, 20.1.4: a table of far pointers, three words on the stack, no error code."""
    cpu = cpu_record(cpu_at)
    env = cpu.env
    if vector * 4 + 3 > load32(env + IDTR + LIMIT):
        return fail(cpu, VECTOR_GP, 0)
    status = load_system(cpu, load64(env + IDTR + BASE) + vector * 4, 4)
    if status != OK:
        return status
    target = cpu.sys_value
    rsp = load64(env + RSP)
    base = load64(env + SS + BASE)
    for i in range(1, 4):
        status = probe_store(cpu, base + ((rsp - 2 * i) & 0xFFFF), 2)
        if status != OK:
            return status
    store_system(cpu, base + ((rsp - 2) & 0xFFFF), 2, pushed_eflags(cpu, vector, kind) & 0xFFFF)
    store_system(cpu, base + ((rsp - 4) & 0xFFFF), 2, load32(env + CS + SELECTOR))
    store_system(cpu, base + ((rsp - 6) & 0xFFFF), 2, rip & 0xFFFF)
    store64(env + RSP, (rsp & ~0xFFFF) | ((rsp - 6) & 0xFFFF))
    store64(env + EFLAGS, load64(env + EFLAGS) & ~(FLAG_IF | FLAG_TF | FLAG_AC | FLAG_RF))
    store32(env + CS + SELECTOR, target >> 16 & 0xFFFF)
    store64(env + CS + BASE, (target >> 16 & 0xFFFF) << 4)
    store64(env + RIP, target & 0xFFFF)
    set_hflags_mode(env)
    return OK


# --- protected mode ---------------------------------------------------------------------------------------------


@outlined("qqq")
def _load_handler_code(cpu_at: int, selector: int) -> int:
    """Load the handler's code segment descriptor into ``sys_value`` and check it (SDM vol. 2A, INT n)."""
    cpu = cpu_record(cpu_at)
    if selector & 0xFFFC == 0:
        return fail(cpu, VECTOR_GP, cpu.external)
    status = load_descriptor(cpu, selector)
    if status == BEYOND_TABLE:
        return fail(cpu, VECTOR_GP, selector & 0xFFFC | cpu.external)
    if status != OK:
        return status
    attributes = attributes_of(cpu.sys_value)
    if not (attributes & NOT_SYSTEM and attributes & CODE) or dpl_of(attributes) > cpl(cpu):
        return fail(cpu, VECTOR_GP, selector & 0xFFFC | cpu.external)
    if not attributes & PRESENT:
        return fail(cpu, VECTOR_NP, selector & 0xFFFC | cpu.external)
    return OK


@outlined("qqq")
def _load_inner_stack(cpu_at: int, level: int) -> int:
    """The stack for privilege ``level`` from the TSS: descriptor in ``sys_value``, selector and ESP in ``new_stack``.

    ``new_stack`` is SS << 32 | ESP.
    """
    cpu = cpu_record(cpu_at)
    env = cpu.env
    wide = load32(env + TR + FLAGS) >> 11 & 1  # 32-bit TSS
    at = level * 8 + 4 if wide else level * 4 + 2
    if at + (5 if wide else 3) > load32(env + TR + LIMIT):
        return fail(cpu, VECTOR_TS, load32(env + TR + SELECTOR) & 0xFFFC | cpu.external)
    base = load64(env + TR + BASE)
    status = load_system(cpu, base + at, 4 if wide else 2)
    if status != OK:
        return status
    esp = cpu.sys_value
    status = load_system(cpu, base + at + (4 if wide else 2), 2)
    if status != OK:
        return status
    selector = cpu.sys_value
    if selector & 0xFFFC == 0:
        return fail(cpu, VECTOR_TS, cpu.external)
    error = selector & 0xFFFC | cpu.external
    status = load_descriptor(cpu, selector)
    if status == BEYOND_TABLE:
        return fail(cpu, VECTOR_TS, error)
    if status != OK:
        return status
    attributes = attributes_of(cpu.sys_value)
    if selector & 3 != level or dpl_of(attributes) != level:
        return fail(cpu, VECTOR_TS, error)
    if not attributes & NOT_SYSTEM or attributes & CODE or not attributes & WRITABLE:
        return fail(cpu, VECTOR_TS, error)
    if not attributes & PRESENT:
        return fail(cpu, VECTOR_SS, error)
    cpu.new_stack = selector << 32 | esp
    return OK


@inlined
def _push(cpu: Cpu, base: int, sp: int, mask: int, size: int, value: int) -> int:
    """Store one stack slot and return the new stack pointer."""
    sp -= size
    store_system(cpu, (base + (sp & mask)) & 0xFFFF_FFFF, size, value)
    return sp


@outlined("qqqqqq")
def _enter_protected(cpu_at: int, vector: int, error: int, kind: int, rip: int) -> int:
    """An IDT of 8-byte gates: SDM vol. 2A, INT n, PROTECTED-MODE and its sub-procedures."""
    cpu = cpu_record(cpu_at)
    env = cpu.env
    level = cpl(cpu)
    v86 = load64(env + EFLAGS) & FLAG_VM != 0
    idt_error = vector * 8 + _IDT_ERROR + cpu.external
    if vector * 8 + 7 > load32(env + IDTR + LIMIT):
        return fail(cpu, VECTOR_GP, idt_error)
    status = load_system(cpu, load64(env + IDTR + BASE) + vector * 8, 8)
    if status != OK:
        return status
    gate = cpu.sys_value
    attributes = attributes_of(gate)
    gate_type = system_type(attributes)
    if gate_type != _GATE_TASK and not 6 <= gate_type <= 7 and not 14 <= gate_type <= 15:
        return fail(cpu, VECTOR_GP, idt_error)
    if kind == SOFTWARE and dpl_of(attributes) < level:
        return fail(cpu, VECTOR_GP, idt_error)
    if not attributes & PRESENT:
        return fail(cpu, VECTOR_NP, idt_error)
    pushes_error = has_error_code(vector, kind)
    if gate_type == _GATE_TASK:
        return switch_through_gate(
            cpu.at, gate >> 16 & 0xFFFF, rip, pushed_eflags(cpu, vector, kind), error if pushes_error else -1
        )

    selector = gate >> 16 & 0xFFFF
    wide = gate_type >= _GATE_INTERRUPT_32
    offset = gate & 0xFFFF
    if wide:
        offset |= gate >> 32 & 0xFFFF_0000
    status = _load_handler_code(cpu.at, selector)
    if status != OK:
        return status
    code = cpu.sys_value
    new_level = level if attributes_of(code) & CONFORMING else dpl_of(attributes_of(code))
    inner = new_level < level
    if v86 and (not inner or new_level != 0):
        return fail(cpu, VECTOR_GP, selector & 0xFFFC | cpu.external)

    size = 4 if wide else 2
    slots = 3 + (1 if pushes_error else 0)
    rsp = load64(env + RSP)
    if inner:
        slots += 6 if v86 else 2
        status = _load_inner_stack(cpu.at, new_level)
        if status != OK:
            return status
        stack = cpu.sys_value
        stack_attributes, stack_base, stack_limit = attributes_of(stack), base_of(stack), limit_of(stack)
        new_ss = cpu.new_stack >> 32 & 0xFFFF
        sp = cpu.new_stack & 0xFFFF_FFFF
        stack_error = new_ss & 0xFFFC | cpu.external
    else:
        stack_attributes = load32(env + SS + FLAGS)
        stack_base = load64(env + SS + BASE)
        stack_limit = load32(env + SS + LIMIT)
        new_ss = 0
        sp = rsp
        stack_error = cpu.external
    if not stack_has_room(stack_attributes, stack_limit, sp, slots * size):
        return fail(cpu, VECTOR_SS, stack_error)
    if offset > limit_of(code):
        return fail(cpu, VECTOR_GP, cpu.external)
    mask = stack_mask(stack_attributes)
    status = probe_store(cpu, (stack_base + ((sp - slots * size) & mask)) & 0xFFFF_FFFF, slots * size)
    if status != OK:
        return status

    image = pushed_eflags(cpu, vector, kind)
    if inner:
        if v86:
            for segment in (GS, FS, DS, ES):
                sp = _push(cpu, stack_base, sp, mask, size, load32(env + segment + SELECTOR))
        sp = _push(cpu, stack_base, sp, mask, size, load32(env + SS + SELECTOR))
        sp = _push(cpu, stack_base, sp, mask, size, rsp & 0xFFFF_FFFF)
    sp = _push(cpu, stack_base, sp, mask, size, image)
    sp = _push(cpu, stack_base, sp, mask, size, load32(env + CS + SELECTOR))
    sp = _push(cpu, stack_base, sp, mask, size, rip & 0xFFFF_FFFF)
    if pushes_error:
        sp = _push(cpu, stack_base, sp, mask, size, error)

    if inner:
        if v86:
            for segment in (GS, FS, DS, ES):
                set_segment(env, segment, 0, 0, 0, 0)
        set_segment(env, SS, new_ss, stack_base, stack_limit, stack_attributes)
        rsp = cpu.new_stack & 0xFFFF_FFFF
    store64(env + RSP, (rsp & 0xFFFF_FFFF & ~mask) | (sp & mask))
    _enter_handler(cpu, gate_type & 1 == 0, selector & 0xFFFC | new_level, code, offset)
    return OK


# --- long mode --------------------------------------------------------------------------------------------------


@inlined
def _load_stack_pointer(cpu: Cpu, at: int) -> int:
    """A stack pointer from offset ``at`` of the 64-bit TSS, into ``sys_value`` (SDM vol. 3A, 7.7)."""
    env = cpu.env
    if at + 7 > load32(env + TR + LIMIT):
        return fail(cpu, VECTOR_TS, load32(env + TR + SELECTOR) & 0xFFFC | cpu.external)
    return load_system(cpu, load64(env + TR + BASE) + at, 8)


@outlined("qqqqqq")
def _enter_long(cpu_at: int, vector: int, error: int, kind: int, rip: int) -> int:
    """An IDT of 16-byte gates: SDM vol. 3A, 6.14."""
    cpu = cpu_record(cpu_at)
    env = cpu.env
    level = cpl(cpu)
    idt_error = vector * 8 + _IDT_ERROR + cpu.external
    if vector * 16 + 15 > load32(env + IDTR + LIMIT):
        return fail(cpu, VECTOR_GP, idt_error)
    at = load64(env + IDTR + BASE) + vector * 16
    status = load_system(cpu, at, 8)
    if status != OK:
        return status
    gate = cpu.sys_value
    status = load_system(cpu, at + 8, 8)
    if status != OK:
        return status
    offset = (cpu.sys_value & 0xFFFF_FFFF) << 32 | (gate >> 32 & 0xFFFF_0000) | (gate & 0xFFFF)
    attributes = attributes_of(gate)
    gate_type = system_type(attributes)
    if gate_type != _GATE_INTERRUPT_32 and gate_type != _GATE_TRAP_32:
        return fail(cpu, VECTOR_GP, idt_error)
    if kind == SOFTWARE and dpl_of(attributes) < level:
        return fail(cpu, VECTOR_GP, idt_error)
    if not attributes & PRESENT:
        return fail(cpu, VECTOR_NP, idt_error)
    selector = gate >> 16 & 0xFFFF
    status = _load_handler_code(cpu.at, selector)
    if status != OK:
        return status
    code = cpu.sys_value
    code_attributes = attributes_of(code)
    if not code_attributes & LONG or code_attributes & BIG:
        return fail(cpu, VECTOR_GP, selector & 0xFFFC | cpu.external)
    new_level = level if code_attributes & CONFORMING else dpl_of(code_attributes)
    ist = attributes & 7
    rsp = load64(env + RSP)
    sp = rsp
    if ist != 0 or new_level < level:
        status = _load_stack_pointer(cpu, 28 + ist * 8 if ist else 4 + new_level * 8)
        if status != OK:
            return status
        sp = cpu.sys_value
    pushes_error = has_error_code(vector, kind)
    sp &= ~15
    frame = 48 if pushes_error else 40
    if not is_canonical(cpu, sp - frame) or not is_canonical(cpu, sp - 1):
        return fail(cpu, VECTOR_SS, cpu.external)
    if not is_canonical(cpu, offset):
        return fail(cpu, VECTOR_GP, cpu.external)
    status = probe_store(cpu, sp - frame, frame)
    if status != OK:
        return status

    image = pushed_eflags(cpu, vector, kind)
    store_system(cpu, sp - 8, 8, load32(env + SS + SELECTOR))
    store_system(cpu, sp - 16, 8, rsp)
    store_system(cpu, sp - 24, 8, image)
    store_system(cpu, sp - 32, 8, load32(env + CS + SELECTOR))
    store_system(cpu, sp - 40, 8, rip)
    if pushes_error:
        store_system(cpu, sp - 48, 8, error)
    if new_level < level:
        set_segment(env, SS, new_level, 0, 0, new_level << 13)  # null, with the new privilege level
    store64(env + RSP, sp - frame)
    _enter_handler(cpu, gate_type == _GATE_INTERRUPT_32, selector & 0xFFFC | new_level, code, offset)
    return OK


@inlined
def enter(cpu: Cpu, vector: int, error: int, kind: int, rip: int) -> int:
    """Take the CPU into the handler of one event.

    Args:
        vector: 0 to 255.
        error: the error code, for exceptions that have one.
        kind: EXCEPTION, SOFTWARE or HARDWARE (:mod:`emu.engine.vectors`).
        rip: the return address, relative to CS.

    Returns:
        OK, FAULT with ``fault_*`` set, NEED with ``need_*`` set.
    """
    begin_accesses(cpu)
    cpu.task_switched = 0
    cpu.external = 0 if kind == SOFTWARE else 1
    env = cpu.env
    if not load64(env + cpustate.CR0) & cpustate.CR0_PE:
        return _enter_real(cpu.at, vector, kind, rip)
    if load64(env + cpustate.EFER) & cpustate.EFER_LMA:
        return _enter_long(cpu.at, vector, error, kind, rip)
    return _enter_protected(cpu.at, vector, error, kind, rip)
