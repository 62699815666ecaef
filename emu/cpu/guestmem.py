"""The processor's own loads and stores: descriptor tables, task state, the stack of an interrupt handler.

These are supervisor accesses whatever the privilege level, and SMAP applies to them whatever EFLAGS.AC says (SDM vol.
3A, 4.6.1).  They go through the guest's own tables and the P2M, in both paging architectures alike.

A store comes in two phases, so that an event whose delivery faults, or has to wait for the DMM, leaves nothing behind:
first :func:`probe_store` for every byte, then :func:`store_system`, which cannot fail any more.

Every function that can fail returns OK, FAULT with ``fault_vector``, ``fault_error`` and ``fault_gva`` set, or NEED
with ``need_gfn`` and ``need_intent`` set.
"""

from __future__ import annotations

from emu.addr import FETCH, PAGE_MASK, READ, WRITE
from emu.engine import cpustate
from emu.engine.native import inlined, load32, load64, outlined, store64
from emu.engine.state import Cpu, cpu_record, vm_of
from emu.engine.vectors import VECTOR_GP, VECTOR_PF
from emu.mmu.code import drop_marked_code, load_bytes
from emu.mmu.fill import store_to_frame
from emu.mmu.walk import (
    FAULT,
    MODE_4LEVEL,
    NEED,
    NON_CANONICAL,
    OK,
    host_address,
    is_canonical,
    note_use,
    p2m_entry,
    walk,
)

_NO_PAGE = 1  # no page starts here


@inlined
def begin_accesses(cpu: Cpu) -> None:
    """Forget translations of earlier events; to be called before the first store of each."""
    cpu.sys_page = _NO_PAGE


@inlined
def fail(cpu: Cpu, vector: int, error: int) -> int:
    """Note the exception that an event's delivery ran into."""
    cpu.fault_vector = vector
    cpu.fault_error = error
    return FAULT


@outlined("qqqqq")
def _translate(cpu_at: int, gva: int, access: int, implicit: int) -> int:
    cpu = cpu_record(cpu_at)
    if cpu.mode >= MODE_4LEVEL:
        if not is_canonical(cpu, gva):
            cpu.fault_vector = VECTOR_GP
            cpu.fault_error = 0
            return NON_CANONICAL
    else:
        gva &= 0xFFFF_FFFF
    eflags_at = cpu.env + cpustate.EFLAGS
    eflags = load64(eflags_at)
    if implicit:
        store64(eflags_at, eflags & ~cpustate.FLAG_AC)
    status = walk(cpu, gva, access, False)
    if cpu.marked_code:
        drop_marked_code(cpu_at, 0)
    store64(eflags_at, eflags)
    if status == FAULT:
        cpu.fault_vector = VECTOR_PF
        cpu.fault_error = cpu.miss_error
        cpu.fault_gva = gva
    if status != OK:
        return status
    gfn = cpu.walk_gpa >> 12
    entry = p2m_entry(cpu, gfn)
    right = 1 << access
    if not entry & right:
        cpu.need_gfn = gfn
        cpu.need_intent = right
        return NEED
    note_use(cpu, gfn, right)
    cpu.sys_mfn = entry >> 12
    return OK


@inlined
def translate_system(cpu: Cpu, gva: int, access: int) -> int:
    """Translate ``gva`` for the processor itself.

    Returns:
        OK with the frame in ``sys_mfn``; FAULT (#PF, or #GP(0) for a non-canonical address); NEED.
    """
    return _translate(cpu.at, gva, access, 1)


@outlined("qqqqq")
def _load(cpu_at: int, gva: int, size: int, implicit: int) -> int:
    cpu = cpu_record(cpu_at)
    vm = vm_of(cpu)
    offset = gva & PAGE_MASK
    if offset + size <= PAGE_MASK + 1:
        status = _translate(cpu_at, gva, READ, implicit)
        if status != OK:
            return NEED if status == NEED else FAULT
        cpu.sys_value = load_bytes(vm.ram_at + (cpu.sys_mfn << 12) + offset, size)
        return OK
    value = 0
    for i in range(size):
        status = _translate(cpu_at, gva + i, READ, implicit)
        if status != OK:
            return NEED if status == NEED else FAULT
        value |= load_bytes(vm.ram_at + (cpu.sys_mfn << 12) + ((gva + i) & PAGE_MASK), 1) << (8 * i)
    cpu.sys_value = value
    return OK


@inlined
def load_system(cpu: Cpu, gva: int, size: int) -> int:
    """Load ``size`` (1, 2, 4 or 8) bytes into ``sys_value``, zero-extended."""
    return _load(cpu.at, gva, size, 1)


@inlined
def load_operand(cpu: Cpu, gva: int, size: int) -> int:
    """The same for the operand of an instruction at CPL 0: an explicit access, to which EFLAGS.AC applies."""
    return _load(cpu.at, gva, size, 0)


@inlined
def _translate_store(cpu: Cpu, gva: int) -> int:
    """:func:`translate_system` for a store, remembering the page."""
    page = gva & ~PAGE_MASK
    if page == cpu.sys_page:
        cpu.sys_mfn = cpu.sys_page_mfn
        return OK
    status = translate_system(cpu, gva, WRITE)
    if status == OK:
        cpu.sys_page = page
        cpu.sys_page_mfn = cpu.sys_mfn
    return status


@outlined("qqqq")
def _probe_store(cpu_at: int, gva: int, size: int) -> int:
    cpu = cpu_record(cpu_at)
    status = _translate_store(cpu, gva)
    if status == OK and (gva & PAGE_MASK) + size > PAGE_MASK + 1:
        status = _translate_store(cpu, gva + size - 1)
    if status == OK or status == NEED:
        return status
    return FAULT


@inlined
def probe_store(cpu: Cpu, gva: int, size: int) -> int:
    """Make sure that ``size`` bytes, at most a page, can be stored at ``gva``."""
    return _probe_store(cpu.at, gva, size)


@outlined("vqqqq")
def _store_system(cpu_at: int, gva: int, size: int, value: int) -> None:
    cpu = cpu_record(cpu_at)
    offset = gva & PAGE_MASK
    if offset + size <= PAGE_MASK + 1:
        if _translate_store(cpu, gva) == OK:
            store_to_frame(cpu, cpu.sys_mfn, offset, size, value)
        return
    for i in range(size):
        if _translate_store(cpu, gva + i) == OK:
            store_to_frame(cpu, cpu.sys_mfn, (gva + i) & PAGE_MASK, 1, value >> (8 * i) & 0xFF)


@inlined
def store_system(cpu: Cpu, gva: int, size: int, value: int) -> None:
    """Store ``size`` (1, 2, 4 or 8) bytes where :func:`probe_store` said OK."""
    _store_system(cpu.at, gva, size, value)


@outlined("qqq")
def _load_linear_code_byte(cpu_at: int, gva: int) -> int:
    cpu = cpu_record(cpu_at)
    if walk(cpu, gva, FETCH, load32(cpu.env + cpustate.HFLAGS) & cpustate.HF_CPL == 3) != OK:
        return -1
    host = host_address(cpu, cpu.walk_gpa, 1)
    return -1 if host == 0 else load_bytes(host, 1)


@inlined
def load_linear_code_byte(cpu: Cpu, gva: int) -> int:
    """The byte of code at ``gva`` as the running program can fetch it; -1 when it cannot."""
    return _load_linear_code_byte(cpu.at, gva)


@inlined
def load_code_byte(cpu: Cpu, rip: int) -> int:
    """The byte of code at ``rip``, relative to CS, as the running program can fetch it; -1 when it cannot."""
    env = cpu.env
    if load32(env + cpustate.HFLAGS) & cpustate.HF_CS64:
        return load_linear_code_byte(cpu, rip)
    return load_linear_code_byte(cpu, (rip + load64(env + cpustate.CS + cpustate.BASE)) & 0xFFFF_FFFF)
