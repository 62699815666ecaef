"""The processor's own loads and stores: descriptor tables, task state, the stack of an interrupt handler.

These are supervisor accesses whatever the privilege level, and SMAP applies to them whatever EFLAGS.AC says (SDM vol.
3A, 4.6.1).  They go through the guest's own tables and the P2M, in both paging architectures alike.

A store comes in two phases, so that an event whose delivery faults, or has to wait for the DMM, leaves nothing behind:
first :func:`probe_store` for every byte, then :func:`store_system`, which cannot fail any more.

Every function that can fail returns OK, FAULT with ``fault_vector``, ``fault_error`` and ``fault_gva`` set, or NEED
with ``need_gfn`` and ``need_intent`` set.
"""

from __future__ import annotations

from typing import Any

from emu.addr import PAGE_MASK, READ, WRITE
from emu.engine import cpustate
from emu.engine.native import inlined, load32, load64, outlined, store64
from emu.engine.state import state_at
from emu.engine.vectors import VECTOR_GP, VECTOR_PF
from emu.mmu.fill import load_bytes, store_to_frame
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
def begin_accesses(vm: Any) -> None:
    """Forget translations of earlier events; to be called before the first store of each."""
    vm.sys_page = _NO_PAGE


@inlined
def fail(vm: Any, vector: int, error: int) -> int:
    """Note the exception that an event's delivery ran into."""
    vm.fault_vector = vector
    vm.fault_error = error
    return FAULT


@outlined("qqqq")
def _translate_system(vm_at, gva, access):
    vm = state_at(vm_at)
    if vm.mode == MODE_4LEVEL:
        if not is_canonical(gva):
            vm.fault_vector = VECTOR_GP
            vm.fault_error = 0
            return NON_CANONICAL
    else:
        gva &= 0xFFFF_FFFF
    eflags_at = vm.env + cpustate.EFLAGS
    eflags = load64(eflags_at)
    store64(eflags_at, eflags & ~cpustate.FLAG_AC)
    status = walk(vm, gva, access, False)
    store64(eflags_at, eflags)
    if status == FAULT:
        vm.fault_vector = VECTOR_PF
        vm.fault_error = vm.miss_error
        vm.fault_gva = gva
    if status != OK:
        return status
    gfn = vm.walk_gpa >> 12
    entry = p2m_entry(vm, gfn)
    right = 1 << access
    if not entry & right:
        vm.need_gfn = gfn
        vm.need_intent = right
        return NEED
    note_use(vm, gfn, right)
    vm.sys_mfn = entry >> 12
    return OK


@inlined
def translate_system(vm: Any, gva: int, access: int) -> int:
    """Translate ``gva`` for the processor itself.

    Returns:
        OK with the frame in ``sys_mfn``; FAULT (#PF, or #GP(0) for a non-canonical address); NEED.
    """
    return _translate_system(vm.at, gva, access)


@outlined("qqqq")
def _load_system(vm_at, gva, size):
    vm = state_at(vm_at)
    offset = gva & PAGE_MASK
    if offset + size <= PAGE_MASK + 1:
        status = translate_system(vm, gva, READ)
        if status != OK:
            return NEED if status == NEED else FAULT
        vm.sys_value = load_bytes(vm.ram_at + (vm.sys_mfn << 12) + offset, size)
        return OK
    value = 0
    for i in range(size):
        status = translate_system(vm, gva + i, READ)
        if status != OK:
            return NEED if status == NEED else FAULT
        value |= load_bytes(vm.ram_at + (vm.sys_mfn << 12) + ((gva + i) & PAGE_MASK), 1) << (8 * i)
    vm.sys_value = value
    return OK


@inlined
def load_system(vm: Any, gva: int, size: int) -> int:
    """Load ``size`` (1, 2, 4 or 8) bytes into ``sys_value``, zero-extended."""
    return _load_system(vm.at, gva, size)


@inlined
def _translate_store(vm: Any, gva: int) -> int:
    """:func:`translate_system` for a store, remembering the page."""
    page = gva & ~PAGE_MASK
    if page == vm.sys_page:
        vm.sys_mfn = vm.sys_page_mfn
        return OK
    status = translate_system(vm, gva, WRITE)
    if status == OK:
        vm.sys_page = page
        vm.sys_page_mfn = vm.sys_mfn
    return status


@outlined("qqqq")
def _probe_store(vm_at, gva, size):
    vm = state_at(vm_at)
    status = _translate_store(vm, gva)
    if status == OK and (gva & PAGE_MASK) + size > PAGE_MASK + 1:
        status = _translate_store(vm, gva + size - 1)
    if status == OK or status == NEED:
        return status
    return FAULT


@inlined
def probe_store(vm: Any, gva: int, size: int) -> int:
    """Make sure that ``size`` bytes, at most a page, can be stored at ``gva``."""
    return _probe_store(vm.at, gva, size)


@outlined("vqqqq")
def _store_system(vm_at, gva, size, value):
    vm = state_at(vm_at)
    offset = gva & PAGE_MASK
    if offset + size <= PAGE_MASK + 1:
        if _translate_store(vm, gva) == OK:
            store_to_frame(vm, vm.sys_mfn, offset, size, value)
        return
    for i in range(size):
        if _translate_store(vm, gva + i) == OK:
            store_to_frame(vm, vm.sys_mfn, (gva + i) & PAGE_MASK, 1, value >> (8 * i) & 0xFF)


@inlined
def store_system(vm: Any, gva: int, size: int, value: int) -> None:
    """Store ``size`` (1, 2, 4 or 8) bytes where :func:`probe_store` said OK."""
    _store_system(vm.at, gva, size, value)


@outlined("qqq")
def _load_linear_code_byte(vm_at, gva):
    vm = state_at(vm_at)
    if walk(vm, gva, READ, load32(vm.env + cpustate.HFLAGS) & cpustate.HF_CPL == 3) != OK:
        return -1
    host = host_address(vm, vm.walk_gpa, 1)
    return -1 if host == 0 else load_bytes(host, 1)


@inlined
def load_linear_code_byte(vm: Any, gva: int) -> int:
    """The byte of code at ``gva`` as the running program can read it; -1 when it cannot."""
    return _load_linear_code_byte(vm.at, gva)


@inlined
def load_code_byte(vm: Any, rip: int) -> int:
    """The byte of code at ``rip``, relative to CS, as the running program can read it; -1 when it cannot."""
    env = vm.env
    if load32(env + cpustate.HFLAGS) & cpustate.HF_CS64:
        return load_linear_code_byte(vm, rip)
    return load_linear_code_byte(vm, (rip + load64(env + cpustate.CS + cpustate.BASE)) & 0xFFFF_FFFF)
