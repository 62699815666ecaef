"""Task switches (SDM vol. 3A, 7.3): through task gates in the IDT, and by JMP, CALL and IRET.

The switch is one step for the DMM: every page that it will need, under the new task's page tables too, is asked for
before anything changes.  Once the state of the new task has been loaded, a bad selector in its TSS is an exception in
the new task.
"""

from __future__ import annotations

from emu.cpu.guestmem import begin_accesses, fail, load_system, probe_store, store_system
from emu.cpu.segments import (
    BEYOND_TABLE,
    CODE,
    CONFORMING,
    NOT_SYSTEM,
    PRESENT,
    READABLE,
    TYPE_BUSY,
    WRITABLE,
    attributes_of,
    base_of,
    dpl_of,
    limit_of,
    load_descriptor,
    set_segment,
    set_segment_v86,
    stack_has_room,
    stack_mask,
    system_type,
)
from emu.engine import cpustate
from emu.engine.cpustate import (
    BASE,
    CR0,
    CR3,
    CS,
    EFLAGS,
    FLAG_NT,
    FLAG_VM,
    FLAGS,
    GDTR,
    LDTR,
    LIMIT,
    RIP,
    RSP,
    SEGMENT_SIZE,
    SEGMENTS,
    SELECTOR,
    SS,
    TR,
    set_hflags_mode,
    write_eflags,
)
from emu.engine.engine import flush_tlb
from emu.engine.native import inlined, load32, load64, outlined, store32, store64
from emu.engine.state import Cpu, cpu_record
from emu.engine.vectors import VECTOR_GP, VECTOR_NP, VECTOR_SS, VECTOR_TS
from emu.mmu.walk import MODE_NONE, NEED, OK

BY_GATE, BY_CALL, BY_JUMP, BY_IRET = 0, 1, 2, 3  # what leads to the new task; the first two nest it

_TSS_16, _TSS_32 = 1, 9  # types of available TSSs
_BUSY = 2  # the bit of the type that says busy
_LDT = 2  # type of an LDT descriptor
_LAST_16, _LAST_32 = 43, 103  # last byte of the smallest TSS
_DEBUG_TRAP_AT = 0x64  # bit 0: T
_DR7_LOCAL = 0x155  # L0 to L3 and LE: cleared by every task switch
_ES, _CS, _SS, _DS, _FS, _GS = 0, 1, 2, 3, 4, 5


# --- the TSS's fields (SDM vol. 3A, figures 7-2 and 7-10) ---------------------------------------------------------


@inlined
def _eip_at(wide: int) -> int:
    return 0x20 if wide else 0x0E


@inlined
def _register_at(wide: int, index: int) -> int:
    """EAX ECX EDX EBX ESP EBP ESI EDI."""
    return 0x28 + 4 * index if wide else 0x12 + 2 * index


@inlined
def _segment_at(wide: int, index: int) -> int:
    """ES CS SS DS, and in a 32-bit TSS FS GS."""
    return 0x48 + 4 * index if wide else 0x22 + 2 * index


@inlined
def _ldt_at(wide: int) -> int:
    return 0x60 if wide else 0x2A


@inlined
def _busy_byte_at(cpu: Cpu) -> int:
    """The gva of the byte of the running task's descriptor that holds its busy bit."""
    return load64(cpu.env + GDTR + BASE) + (load32(cpu.env + TR + SELECTOR) & 0xFFF8) + 5


# --- checks -----------------------------------------------------------------------------------------------------


@outlined("qqqq")
def _load_target(cpu_at: int, selector: int, source: int) -> int:
    """Load the TSS descriptor of the new task into ``sys_value`` and check it."""
    cpu = cpu_record(cpu_at)
    error = selector & 0xFFFC | cpu.external
    bad = VECTOR_TS if source == BY_IRET else VECTOR_GP
    if selector & 4:
        return fail(cpu, bad, error)
    status = load_descriptor(cpu, selector)
    if status == BEYOND_TABLE:
        return fail(cpu, bad, error)
    if status != OK:
        return status
    attributes = attributes_of(cpu.sys_value)
    kind = system_type(attributes) ^ (_BUSY if source == BY_IRET else 0)  # it returns to a busy TSS
    if kind != _TSS_16 and kind != _TSS_32:
        return fail(cpu, bad, error)
    if not attributes & PRESENT:
        return fail(cpu, VECTOR_NP, error)
    if limit_of(cpu.sys_value) < (_LAST_32 if kind == _TSS_32 else _LAST_16):
        return fail(cpu, VECTOR_TS, error)
    return OK


@outlined("qqqqqq")
def _probe_pages(cpu_at: int, selector: int, base: int, wide: int, source: int) -> int:
    """Ask for every page that the switch reads or writes under the current page tables."""
    cpu = cpu_record(cpu_at)
    env = cpu.env
    if source != BY_IRET:
        status = probe_store(cpu, load64(env + GDTR + BASE) + (selector & 0xFFF8) + 4, 4)  # the busy bit
        if status != OK:
            return status
    if source > BY_CALL:
        status = probe_store(cpu, _busy_byte_at(cpu), 1)
        if status != OK:
            return status
    old_wide = load32(env + TR + FLAGS) >> 11 & 1
    status = probe_store(cpu, load64(env + TR + BASE), (_LAST_32 if old_wide else _LAST_16) + 1)
    if status != OK:
        return status
    status = probe_store(cpu, base, 2) if source <= BY_CALL else load_system(cpu, base, 1)  # the back link
    if status != OK:
        return status
    return load_system(cpu, base + (_LAST_32 if wide else _LAST_16), 1)


@outlined("qqqqq")
def _field(cpu_at: int, base: int, at: int, size: int) -> int:
    """A field of the new TSS, whose pages are known to be there."""
    cpu = cpu_record(cpu_at)
    return cpu.sys_value if load_system(cpu, base + at, size) == OK else 0


@outlined("qqqqq")
def _probe_new_task(cpu_at: int, base: int, wide: int, pushes: int) -> int:
    """Ask for the pages that loading the new task's segments and pushing its error code will need.

    Only NEED matters here: faults are found again, and raised, when they happen.
    """
    cpu = cpu_record(cpu_at)
    env = cpu.env
    size = 4 if wide else 2
    segments = 6 if wide else 4
    v86 = wide and _field(cpu.at, base, 0x24, 4) & FLAG_VM
    stack_pointer = _field(cpu.at, base, _register_at(wide, 4), size)
    table_base, table_limit = 0, -1
    selector = _field(cpu.at, base, _ldt_at(wide), 2)
    old_cr3 = load64(env + CR3)
    new_cr3 = _field(cpu.at, base, 0x1C, 4) if wide and cpu.mode != MODE_NONE else old_cr3
    status = OK
    store64(env + CR3, new_cr3)
    if selector & 0xFFFC and not selector & 4:
        status = load_descriptor(cpu, selector)
        if status == OK:
            table_base, table_limit = base_of(cpu.sys_value), limit_of(cpu.sys_value)
    stack_base, stack_attributes = 0, 0
    for index in range(segments):
        store64(env + CR3, old_cr3)
        selector = _field(cpu.at, base, _segment_at(wide, index), 2)
        store64(env + CR3, new_cr3)
        if v86:
            if index == _SS:
                stack_base = selector << 4
            continue
        if status == NEED or selector & 0xFFFC == 0:
            continue
        if selector & 4:
            if selector & 0xFFF8 <= table_limit:
                status = load_system(cpu, table_base + (selector & 0xFFF8), 8)
        else:
            status = load_descriptor(cpu, selector)
        if index == _SS and status == OK:
            stack_base, stack_attributes = base_of(cpu.sys_value), attributes_of(cpu.sys_value)
    if pushes and status != NEED:
        begin_accesses(cpu)
        status = probe_store(cpu, stack_base + ((stack_pointer - size) & stack_mask(stack_attributes)), size)
    store64(env + CR3, old_cr3)
    begin_accesses(cpu)
    return NEED if status == NEED else OK


# --- saving and loading -----------------------------------------------------------------------------------------


@outlined("vqqq")
def _save_old_task(cpu_at: int, rip: int, image: int) -> None:
    """Write the running task's state into its TSS."""
    cpu = cpu_record(cpu_at)
    env = cpu.env
    base = load64(env + TR + BASE)
    wide = load32(env + TR + FLAGS) >> 11 & 1
    size = 4 if wide else 2
    store_system(cpu, base + _eip_at(wide), size, rip & 0xFFFF_FFFF)
    store_system(cpu, base + (0x24 if wide else 0x10), size, image)
    for index in range(8):
        store_system(cpu, base + _register_at(wide, index), size, load64(env + 8 * index) & 0xFFFF_FFFF)
    for index in range(6 if wide else 4):
        selector = load32(env + SEGMENTS + index * SEGMENT_SIZE + SELECTOR)
        store_system(cpu, base + _segment_at(wide, index), 2, selector)


@outlined("vqqqq")
def _load_registers(cpu_at: int, base: int, wide: int, source: int) -> None:
    """Load what cannot fail: registers, selectors, EFLAGS, LDTR's selector, and CR3 last."""
    cpu = cpu_record(cpu_at)
    env = cpu.env
    size = 4 if wide else 2
    store64(env + RIP, _field(cpu.at, base, _eip_at(wide), size))
    eflags = _field(cpu.at, base, 0x24 if wide else 0x10, size) | 2
    if source <= BY_CALL:
        eflags |= FLAG_NT
    if not wide:
        eflags &= 0xFFFF
    write_eflags(env, eflags)
    for index in range(8):
        store64(env + 8 * index, _field(cpu.at, base, _register_at(wide, index), size))
    for index in range(6):
        selector = _field(cpu.at, base, _segment_at(wide, index), 2) if wide or index < 4 else 0
        if eflags & FLAG_VM:
            set_segment_v86(env, SEGMENTS + index * SEGMENT_SIZE, selector)
        else:
            set_segment(env, SEGMENTS + index * SEGMENT_SIZE, selector, 0, 0, 0)
    set_segment(env, LDTR, _field(cpu.at, base, _ldt_at(wide), 2), 0, 0, 0)
    if wide and cpu.mode != MODE_NONE:
        store64(env + CR3, _field(cpu.at, base, 0x1C, 4))
        flush_tlb(cpu)
        begin_accesses(cpu)


@outlined("qq")
def _load_ldt(cpu_at: int) -> int:
    """Load LDTR from the selector that it holds."""
    cpu = cpu_record(cpu_at)
    env = cpu.env
    selector = load32(env + LDTR + SELECTOR)
    if selector & 0xFFFC == 0:
        return OK
    error = selector & 0xFFFC | cpu.external
    if selector & 4:
        return fail(cpu, VECTOR_TS, error)
    status = load_descriptor(cpu, selector)
    if status == BEYOND_TABLE:
        return fail(cpu, VECTOR_TS, error)
    if status != OK:
        return status
    attributes = attributes_of(cpu.sys_value)
    if system_type(attributes) != _LDT or not attributes & PRESENT:
        return fail(cpu, VECTOR_TS, error)
    set_segment(env, LDTR, selector, base_of(cpu.sys_value), limit_of(cpu.sys_value), attributes)
    return OK


@inlined
def _segment_allowed(index: int, selector: int, attributes: int, level: int) -> bool:
    """Whether a segment register may hold this descriptor (SDM vol. 3A, table 7-1)."""
    dpl = dpl_of(attributes)
    if not attributes & NOT_SYSTEM:
        return False
    if index == _CS:
        if not attributes & CODE:
            return False
        return dpl <= level if attributes & CONFORMING else dpl == level
    if index == _SS:
        if attributes & CODE or not attributes & WRITABLE:
            return False
        return dpl == level and selector & 3 == level
    if attributes & CODE:
        if not attributes & READABLE:
            return False
        if attributes & CONFORMING:
            return True
    return dpl >= level and dpl >= selector & 3


@outlined("qqqq")
def _load_segment(cpu_at: int, index: int, level: int) -> int:
    """Load the segment register ``index`` from the selector that it holds."""
    cpu = cpu_record(cpu_at)
    env = cpu.env
    segment = SEGMENTS + index * SEGMENT_SIZE
    selector = load32(env + segment + SELECTOR)
    if selector & 0xFFFC == 0:
        if index == _CS or index == _SS:
            return fail(cpu, VECTOR_TS, cpu.external)
        return OK
    error = selector & 0xFFFC | cpu.external
    status = load_descriptor(cpu, selector)
    if status == BEYOND_TABLE:
        return fail(cpu, VECTOR_TS, error)
    if status != OK:
        return status
    attributes = attributes_of(cpu.sys_value)
    if not _segment_allowed(index, selector, attributes, level):
        return fail(cpu, VECTOR_TS, error)
    if not attributes & PRESENT:
        return fail(cpu, VECTOR_SS if index == _SS else VECTOR_NP, error)
    set_segment(env, segment, selector, base_of(cpu.sys_value), limit_of(cpu.sys_value), attributes)
    return OK


@outlined("qq")
def _load_segments(cpu_at: int) -> int:
    """Load LDTR and the segment registers from the selectors that they hold."""
    cpu = cpu_record(cpu_at)
    env = cpu.env
    status = _load_ldt(cpu.at)
    if status != OK:
        return status
    if not load64(env + EFLAGS) & FLAG_VM:
        level = load32(env + CS + SELECTOR) & 3
        for index in (_SS, _CS, _DS, _ES, _FS, _GS):
            status = _load_segment(cpu.at, index, level)
            if status != OK:
                return status
    set_hflags_mode(env)
    if load64(env + RIP) > load32(env + CS + LIMIT):
        return fail(cpu, VECTOR_GP, cpu.external)
    return OK


@outlined("qqqq")
def _push_error(cpu_at: int, error: int, size: int) -> int:
    """Push the error code of the exception that caused the switch onto the new task's stack."""
    cpu = cpu_record(cpu_at)
    env = cpu.env
    attributes = load32(env + SS + FLAGS)
    rsp = load64(env + RSP)
    if not stack_has_room(attributes, load32(env + SS + LIMIT), rsp, size):
        return fail(cpu, VECTOR_SS, cpu.external)
    mask = stack_mask(attributes)
    sp = (rsp - size) & mask
    gva = (load64(env + SS + BASE) + sp) & 0xFFFF_FFFF
    status = probe_store(cpu, gva, size)
    if status == OK:
        store_system(cpu, gva, size, error)
        store64(env + RSP, (rsp & ~mask) | sp)
    return status


@outlined("qqqqqqq")
def switch_task(cpu_at: int, selector: int, source: int, rip: int, image: int, error: int) -> int:
    """Switch to the task whose TSS ``selector`` names.

    Args:
        source: BY_GATE, BY_CALL, BY_JUMP or BY_IRET.
        rip, image: where the old task will go on, and its EFLAGS then.
        error: error code for the new task's stack, -1 for none.

    Returns:
        As :func:`emu.cpu.gates.enter`; ``task_switched`` is 1 when a FAULT belongs to the new task already;
        ``task_traps`` is 1 when #DB is to come before its first instruction.
    """
    cpu = cpu_record(cpu_at)
    env = cpu.env
    status = _load_target(cpu.at, selector, source)
    if status != OK:
        return status
    descriptor = cpu.sys_value
    base = base_of(descriptor)
    wide = 1 if system_type(attributes_of(descriptor)) & _TSS_32 == _TSS_32 else 0
    status = _probe_pages(cpu.at, selector, base, wide, source)
    if status != OK:
        return status
    status = _probe_new_task(cpu.at, base, wide, 1 if error >= 0 else 0)
    if status != OK:
        return status

    if source > BY_CALL and load_system(cpu, _busy_byte_at(cpu), 1) == OK:
        store_system(cpu, _busy_byte_at(cpu), 1, cpu.sys_value & ~_BUSY)
    _save_old_task(cpu.at, rip, image)
    if source <= BY_CALL:
        store_system(cpu, base, 2, load32(env + TR + SELECTOR))
    attributes = attributes_of(descriptor) | TYPE_BUSY
    if source != BY_IRET:
        store_system(cpu, load64(env + GDTR + BASE) + (selector & 0xFFF8) + 4, 4, attributes)
    store64(env + CR0, load64(env + CR0) | cpustate.CR0_TS)
    # as LTR leaves it: the engine keeps TR's type without the busy bit
    set_segment(env, TR, selector, base, limit_of(descriptor), attributes & ~TYPE_BUSY)
    cpu.task_switched = 1
    traps = _field(cpu_at, base, _DEBUG_TRAP_AT, 1) & 1 if wide else 0
    _load_registers(cpu.at, base, wide, source)
    # privilege follows the new CS before its descriptor has been checked: a bad one is the new task's fault
    store32(env + SS + FLAGS, load32(env + SS + FLAGS) | (load32(env + CS + SELECTOR) & 3) << 13)
    set_hflags_mode(env)
    dr7_at = env + cpustate.DR + 56
    store64(dr7_at, load64(dr7_at) & ~_DR7_LOCAL)
    status = _load_segments(cpu.at)
    if status == OK and error >= 0:
        status = _push_error(cpu.at, error, 4 if wide else 2)
    cpu.task_traps = traps if status == OK else 0
    return status


@outlined("qqqqqq")
def switch_through_gate(cpu_at: int, selector: int, rip: int, image: int, error: int) -> int:
    """Switch to the task that a task gate in the IDT names, as :func:`switch_task`."""
    return switch_task(cpu_at, selector, BY_GATE, rip, image, error)
