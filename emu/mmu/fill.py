"""The engine's socket: answers its TLB misses, and takes the stores that it traps.

A miss ends in one of three ways: a TLB entry; a refusal, which stops the engine at the instruction with
``vm.miss_kind`` telling why (a guest page fault, a non-canonical address, or a question for the DMM); nothing else.

Code pages.  An engine entry that allows execution also makes stores slow, because they must look for translated code;
one that does not makes the engine miss writes into code.  So data entries are given without execution, until code is
fetched from the frame (``FRAME_CODE``).  From then on entries through which the guest may execute carry execution, and
stores through them are exact even within the running block.  A store through a mapping without execution rights drops
the frame's code first and makes it a data frame again; when the running block itself lies in the frame, the storing
instruction is refused and executed on its own (``CODE_IN_USE``), so that what follows it is translated anew.
"""

from __future__ import annotations

from typing import Any

from emu.addr import FETCH, MMIO_BASE, NO_FRAME, PAGE_MASK, READ, TRAP_BASE, WINDOW_GVA, WRITE
from emu.engine import cpustate, events
from emu.engine.alone import REFUSED, REFUSED_FETCH, refuses
from emu.engine.debugregs import STEPPING, WATCHED, restrict_entry, watches_page
from emu.engine.engine import (
    ACCESS_READ,
    PROT_EXEC,
    PROT_READ,
    PROT_WRITE,
    abandon_instruction,
    drop_code,
    flush_tlb,
    note_large_page,
)
from emu.engine.native import (
    callback,
    inlined,
    load8,
    load16,
    load32,
    load64,
    outlined,
    store8,
    store16,
    store32,
    store64,
)
from emu.engine.ram import FRAME_CODE, FRAME_TABLE
from emu.engine.state import state_at
from emu.mmu import pte, shadow
from emu.mmu.implicit import is_implicit_supervisor_access
from emu.mmu.walk import (
    DIRTY,
    FAULT,
    MODE_4LEVEL,
    MODE_32,
    NEED,
    NON_CANONICAL,
    OK,
    is_canonical,
    is_mmio,
    note_use,
    p2m_entry,
    paging_mode,
    permitted,
    walk,
)

CODE_IN_USE = 6  # in ``vm.miss_kind``: the instruction stores into the frame of its own block

_CR0_BITS = cpustate.CR0_PG | cpustate.CR0_PE
_CR4_BITS = cpustate.CR4_PSE | cpustate.CR4_PAE
_EFER_BITS = cpustate.EFER_LMA | cpustate.EFER_NXE


@outlined("vq")
def refresh(vm_at):
    """Take over the control registers that say how gvas are translated."""
    vm = state_at(vm_at)
    env = vm.env
    before = vm.cr3
    vm.cr0 = load64(env + cpustate.CR0)
    vm.cr3 = load64(env + cpustate.CR3)
    vm.cr4 = load64(env + cpustate.CR4)
    vm.efer = load64(env + cpustate.EFER)
    vm.mode = paging_mode(vm)
    if vm.mode:
        if vm.cr3 != before:
            events.record(vm, events.CR3_SWITCH, before, vm.cr3, vm.mode, 0, 0)
        # shadow tables are only good for the mode that they were made in; without paging they stay for later
        made_for = vm.mode | (vm.cr4 & cpustate.CR4_PSE) | (vm.efer & cpustate.EFER_NXE)
        if made_for != vm.shadow_format:
            if not vm.nested:
                shadow.unshadow_all(vm.at)
            vm.shadow_format = made_for
    if not vm.nested:
        shadow.select_root(vm.at, 0)


@inlined
def refresh_if_changed(vm: Any) -> None:
    env = vm.env
    if (
        load64(env + cpustate.CR3) != vm.cr3
        or (load64(env + cpustate.CR0) ^ vm.cr0) & _CR0_BITS
        or (load64(env + cpustate.CR4) ^ vm.cr4) & _CR4_BITS
        or (load64(env + cpustate.EFER) ^ vm.efer) & _EFER_BITS
        or (not vm.nested and vm.root_mfn == NO_FRAME)
    ):
        refresh(vm.at)


@outlined("vqq")
def drop_frame_code(vm_at, mfn):
    """Drop the code translated from ``mfn``; from now on it is a data frame."""
    vm = state_at(vm_at)
    flush_tlb(vm)
    vm.window_mfn = mfn
    drop_code(vm, WINDOW_GVA, 4096)
    vm.window_mfn = NO_FRAME
    flush_tlb(vm)
    flags_at = vm.frame_flags_at + mfn
    store8(flags_at, load8(flags_at) & ~FRAME_CODE)


@outlined("qqqq")
def _runs_from(vm_at, mfn, user):
    """1 when the running block lies in frame ``mfn``, at least in part; changes the results of the last walk."""
    vm = state_at(vm_at)
    for gva in (vm.block_gva, vm.block_gva + vm.block_size - 1):
        if walk(vm, gva, FETCH, user != 0) == OK and p2m_entry(vm, vm.walk_gpa >> 12) >> 12 == mfn:
            return 1
    return 0


@outlined("qqqq")
def drop_changed_code(vm_at, mfn, user):
    """Drop the code of a frame that the running instruction changes; 1 when that instruction must run on its own."""
    vm = state_at(vm_at)
    in_use = 0
    if not vm.single and vm.block_size:
        in_use = _runs_from(vm_at, mfn, user)
    drop_frame_code(vm_at, mfn)
    return in_use


@inlined
def grant(
    vm: Any, entry_at: int, access: int, mfn: int, readable: bool, writable: bool, trapped: bool, executable: bool,
    user: bool,
) -> int:
    """Give the engine a TLB entry; returns OK or CODE_IN_USE.

    Args:
        entry_at: Unicorn's uc_tlb_entry: machine address u64, permissions u32.
        readable: loads are allowed.
        writable: stores are allowed, directly or through the trap.
        trapped: stores must reach the write trap.
        executable: the guest may fetch through this mapping at this privilege.
        user: the privilege is CPL 3.
    """
    flags_at = vm.frame_flags_at + mfn
    flags = load8(flags_at)
    base = 0
    permissions = PROT_READ if readable else 0
    if access == FETCH:
        if not flags & FRAME_CODE:
            store8(flags_at, flags | FRAME_CODE)
            flush_tlb(vm)  # there may be data entries that do not look for code
        permissions |= PROT_EXEC
        if writable and not trapped:
            permissions |= PROT_WRITE
    elif trapped:
        if access == WRITE:
            if flags & FRAME_CODE and drop_changed_code(vm.at, mfn, 1 if user else 0):
                return CODE_IN_USE
            base = TRAP_BASE
            permissions |= PROT_WRITE
    elif flags & FRAME_CODE:
        if executable:
            permissions |= PROT_EXEC
            if writable:
                permissions |= PROT_WRITE
        elif access == WRITE:
            if drop_changed_code(vm.at, mfn, 1 if user else 0):
                return CODE_IN_USE
            permissions |= PROT_WRITE
    elif writable:
        permissions |= PROT_WRITE
    store64(entry_at, base + (mfn << 12))
    store32(entry_at + 8, permissions)
    return OK


@inlined
def _note_large_page(vm: Any, gva: int, level: int) -> None:
    """A guest entry at ``level`` maps the page of ``gva``."""
    shift = 12 + (level - 1) * (10 if vm.mode == MODE_32 else 9)
    note_large_page(vm, gva & -(1 << shift), shift)


@inlined
def _grant_mmio(vm: Any, entry_at: int, gfn: int, writable: bool) -> None:
    """Let the accesses through a TLB entry reach the devices; such pages have no shadow entries."""
    store64(entry_at, MMIO_BASE + (gfn << 12))
    store32(entry_at + 8, PROT_READ | (PROT_WRITE if writable and vm.walk_dirty != 0 else 0))


@outlined("qqqqqq")
def miss(vm_at, gva, access, user, entry_at):
    """Answer a TLB miss; see :mod:`emu.mmu.walk` for the results."""
    vm = state_at(vm_at)
    mode = vm.mode
    if mode == MODE_4LEVEL:
        if not is_canonical(gva):
            return NON_CANONICAL
    else:
        gva &= 0xFFFF_FFFF
    if not vm.nested:
        leaf = shadow.lookup(vm, gva)
        if leaf:
            writable = leaf & (pte.W | pte.TRAP)
            if permitted(vm, access, user, leaf & pte.W or leaf & pte.TRAP, leaf & pte.U, leaf & pte.NX) and (
                access != WRITE or writable
            ):
                if leaf & (pte.LARGE | pte.HUGE):
                    _note_large_page(vm, gva, 3 if leaf & pte.HUGE else 2)
                executable = permitted(vm, FETCH, user, 0, leaf & pte.U, leaf & pte.NX)
                # under SMAP the supervisor may fetch from a page that it may neither read nor write
                readable = access != FETCH or permitted(vm, READ, user, 0, leaf & pte.U, leaf & pte.NX)
                mfn = (leaf & pte.FRAME) >> 12
                return grant(
                    vm, entry_at, access, mfn, readable, readable and writable != 0, leaf & pte.TRAP != 0, executable,
                    user != 0,
                )  # fmt: skip

    status = walk(vm, gva, access, user)
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
    entry = p2m_entry(vm, gfn)
    if vm.walk_level > 1:
        _note_large_page(vm, gva, vm.walk_level)
    user_page, nx = vm.walk_user, vm.walk_nx
    if is_mmio(vm, gfn) and access != FETCH:
        _grant_mmio(vm, entry_at, gfn, permitted(vm, WRITE, user, vm.walk_writable, user_page, nx))
        return OK
    if not vm.nested:
        shadow.fill(vm.at, gva, entry)
    mfn = entry >> 12
    may_write = entry & 2 != 0 and entry & DIRTY != 0  # the first store must be seen
    writable = vm.walk_dirty != 0 and may_write and permitted(vm, WRITE, user, vm.walk_writable, user_page, nx)
    trapped = load8(vm.frame_flags_at + mfn) & FRAME_TABLE != 0
    executable = entry & 4 != 0 and permitted(vm, FETCH, user, 0, user_page, nx)
    readable = entry & 1 != 0 and permitted(vm, READ, user, 0, user_page, nx)
    return grant(vm, entry_at, access, mfn, readable, writable, trapped, executable, user != 0)


@callback("bqqiqq")
def on_tlb_fill(uc, gva, access, entry_at, vm_at):
    """Unicorn's UC_HOOK_TLB_FILL."""
    vm = state_at(vm_at)
    if gva == WINDOW_GVA and vm.window_mfn != NO_FRAME:
        store64(entry_at, vm.window_mfn << 12)
        store32(entry_at + 8, PROT_READ | PROT_EXEC)
        return True
    kind = access - ACCESS_READ
    if refuses(vm):
        vm.miss_kind = REFUSED_FETCH if kind == FETCH else REFUSED
        return False
    refresh_if_changed(vm)
    if vm.watching and kind != FETCH and vm.watch_step != STEPPING and watches_page(vm.at, gva, kind):
        vm.miss_kind = WATCHED
        return False
    user = load32(vm.env + cpustate.HFLAGS) & cpustate.HF_CPL == 3
    status = miss(vm.at, gva, kind, 1 if user else 0, entry_at)
    if status == FAULT and user and kind != FETCH and is_implicit_supervisor_access(vm.at, gva):
        status = miss(vm.at, gva, kind, 0, entry_at)
        vm.flush_at_block = 1
        vm.limit = 0  # emu.cpu.clock looks at it before the next block
    if vm.marked_code:
        mfn = vm.marked_code - 1
        vm.marked_code = 0
        if drop_changed_code(vm_at, mfn, 1 if user else 0) and status == OK:
            status = CODE_IN_USE
    if status == OK:
        if vm.watching:
            restrict_entry(vm.at, gva, kind, entry_at)
        return True
    vm.miss_kind = status
    return False


@inlined
def store_bytes(host: int, size: int, value: int) -> None:
    if size == 8:
        store64(host, value)
    elif size == 4:
        store32(host, value)
    elif size == 2:
        store16(host, value)
    else:
        store8(host, value)


@inlined
def load_bytes(host: int, size: int) -> int:
    if size == 8:
        return load64(host)
    if size == 4:
        return load32(host)
    if size == 2:
        return load16(host)
    return load8(host)


@outlined("vqqqqq")
def _store_to_frame(vm_at, mfn, offset, size, value):
    vm = state_at(vm_at)
    if mfn == vm.void_mfn:
        return
    flags = load8(vm.frame_flags_at + mfn)
    if flags & FRAME_CODE:
        drop_frame_code(vm.at, mfn)
    host = vm.ram_at + (mfn << 12) + offset
    if flags & FRAME_TABLE:
        gfn = load64(vm.m2p_at + mfn * 8)
        before = load_bytes(host, size)
        store_bytes(host, size, value)
        after = load_bytes(host, size)
        zapped = shadow.table_written(vm, gfn, offset, size)
        events.record(vm, events.TABLE_WRITE, gfn << 12 | offset, size, before, after, zapped)
    else:
        store_bytes(host, size, value)


@inlined
def store_to_frame(vm: Any, mfn: int, offset: int, size: int, value: int) -> None:
    """Store into a frame as the guest does, with every consequence: dropped code, shadow entries, nothing for holes."""
    _store_to_frame(vm.at, mfn, offset, size, value)


@callback("bqiqiqq")
def on_trapped_store(uc, kind, address, size, value, vm_at):
    """Unicorn's UC_HOOK_MEM_WRITE_PROT over the trapped alias; the engine discards the store afterwards."""
    vm = state_at(vm_at)
    if refuses(vm):
        vm.miss_kind = REFUSED
        abandon_instruction(vm)
    mfn = (address - TRAP_BASE) >> 12
    if load8(vm.frame_flags_at + mfn) & FRAME_CODE and mfn != vm.void_mfn:
        user = load32(vm.env + cpustate.HFLAGS) & cpustate.HF_CPL == 3
        if drop_changed_code(vm_at, mfn, 1 if user else 0):
            vm.miss_kind = CODE_IN_USE
            abandon_instruction(vm)
    if address & (size - 1):
        # The engine repeats an unaligned store byte by byte.  Its code is dropped already, because no TLB flush may
        # come between the bytes: the first of them may change the entry that maps the others.
        return True
    store_to_frame(vm, mfn, address & PAGE_MASK, size, value)
    return True
