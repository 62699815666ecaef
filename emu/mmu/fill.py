"""The engine's socket: answers its TLB misses, and takes the stores that it traps.

A miss ends in one of two ways: a TLB entry, with which the instruction goes on; a refusal, which stops the engine at
the beginning of the instruction with ``cpu.miss_kind`` telling why (a guest page fault, a non-canonical address, or a
question for the DMM).

Which entries may execute or store, where frames hold code, follows from :mod:`emu.mmu.code`.
"""

from __future__ import annotations

from emu.addr import FETCH, MMIO_BASE, NO_FRAME, PAGE_MASK, READ, TRAP_BASE, WRITE
from emu.engine import cpustate, eventlog
from emu.engine.alone import REFUSED, REFUSED_FETCH, refuses, within_block
from emu.engine.debugregs import STEPPING, WATCHED, restrict_entry, watches_page
from emu.engine.engine import (
    ACCESS_READ,
    PROT_EXEC,
    PROT_READ,
    PROT_WRITE,
    abandon_instruction,
    note_large_page,
)
from emu.engine.events import Cr3Switch, TableWrite
from emu.engine.miss import is_user_access, missed_gva, restore_state
from emu.engine.native import (
    callback,
    inlined,
    load8,
    load32,
    load64,
    outlined,
    store32,
    store64,
)
from emu.engine.ram import FRAME_CODE, FRAME_TABLE
from emu.engine.state import Cpu, cpu_record, vm_of
from emu.mmu import pte, shadow, shadowtables
from emu.mmu.code import (
    CODE_IN_USE,
    drop_changed_code,
    drop_frame_code,
    drop_marked_code,
    load_bytes,
    note_direct_entry,
    note_translator,
    store_beside_code,
    store_bytes,
    stores_into_block,
    translators_of,
)
from emu.mmu.operand import is_read_to_write
from emu.mmu.ownstack import is_on_own_stack
from emu.mmu.walk import (
    DIRTY,
    FAULT,
    MODE_4LEVEL,
    MODE_32,
    MODE_PAE,
    NEED,
    NON_CANONICAL,
    OK,
    is_canonical,
    is_mmio,
    load_pdptes,
    note_use,
    p2m_entry,
    paging_mode,
    permitted,
    walk,
)

_CR3_SWITCH, _TABLE_WRITE = Cr3Switch.KIND, TableWrite.KIND

_CR0_BITS = cpustate.CR0_PG | cpustate.CR0_PE
_CR4_BITS = cpustate.CR4_PSE | cpustate.CR4_PAE | cpustate.CR4_LA57
_EFER_BITS = cpustate.EFER_LMA | cpustate.EFER_NXE


@outlined("vq")
def refresh(cpu_at: int) -> None:
    """Take over the control registers that say how gvas are translated."""
    cpu = cpu_record(cpu_at)
    vm = vm_of(cpu)
    env = cpu.env
    before = cpu.cr3
    cpu.cr0 = load64(env + cpustate.CR0)
    cpu.cr3 = load64(env + cpustate.CR3)
    cpu.cr4 = load64(env + cpustate.CR4)
    cpu.efer = load64(env + cpustate.EFER)
    cpu.mode = paging_mode(cpu)
    if cpu.mode:
        if cpu.cr3 != before:
            eventlog.record(cpu, _CR3_SWITCH, before, cpu.cr3, cpu.mode, 0, 0)
        # shadow tables are only good for the mode that they were made in; without paging they stay for later
        made_for = cpu.mode | (cpu.efer & cpustate.EFER_NXE)
        if cpu.mode == MODE_32:
            made_for |= cpu.cr4 & cpustate.CR4_PSE  # Linux sets it on one of its processors only
        if made_for != vm.shadow_format:
            if not vm.nested:
                shadowtables.unshadow_all(cpu.at)
            vm.shadow_format = made_for
    if cpu.mode == MODE_PAE and cpu.pdptes_for != cpu.cr3:
        load_pdptes(cpu_at, cpu.cr3)  # where that must wait for the DMM, the walk says so
    if not vm.nested:
        shadow.select_root(cpu.at, 0)


@inlined
def refresh_if_changed(cpu: Cpu) -> None:
    env = cpu.env
    if (
        load64(env + cpustate.CR3) != cpu.cr3
        or (load64(env + cpustate.CR0) ^ cpu.cr0) & _CR0_BITS
        or (load64(env + cpustate.CR4) ^ cpu.cr4) & _CR4_BITS
        or (load64(env + cpustate.EFER) ^ cpu.efer) & _EFER_BITS
        or (not vm_of(cpu).nested and cpu.root_mfn == NO_FRAME)
    ):
        refresh(cpu.at)


@inlined
def grant(
    cpu: Cpu, entry_at: int, access: int, mfn: int, readable: bool, writable: bool, trapped: bool, executable: bool,
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
    vm = vm_of(cpu)
    flags_at = vm.frame_flags_at + mfn
    flags = load8(flags_at)
    base = 0
    permissions = PROT_READ if readable else 0
    translators = translators_of(vm, mfn) if vm.started > 1 and flags & FRAME_CODE else 0
    shared = translators & ~(1 << cpu.index) != 0  # there is code of other processors, which only the trap drops
    if access == FETCH:
        if not flags & FRAME_CODE or shared:
            note_translator(cpu, mfn)
        permissions |= PROT_EXEC
        if writable and not trapped and not shared:
            permissions |= PROT_WRITE
    elif shared:
        if access == WRITE:
            base = TRAP_BASE
            permissions |= PROT_WRITE
        elif executable and translators >> cpu.index & 1:
            permissions |= PROT_EXEC
    elif trapped:
        if access == WRITE:
            if flags & FRAME_CODE and drop_changed_code(cpu.at, mfn, 1 if user else 0):
                return CODE_IN_USE
            base = TRAP_BASE
            permissions |= PROT_WRITE
    elif flags & FRAME_CODE:
        if executable:
            permissions |= PROT_EXEC
            if writable:
                permissions |= PROT_WRITE
        elif access == WRITE:
            if drop_changed_code(cpu.at, mfn, 1 if user else 0):
                return CODE_IN_USE
            permissions |= PROT_WRITE
    elif writable:
        permissions |= PROT_WRITE
    if vm.started > 1 and permissions & PROT_WRITE and base == 0:
        note_direct_entry(vm, mfn)
    store64(entry_at, base + (mfn << 12))
    store32(entry_at + 8, permissions)
    return OK


@inlined
def _note_large_page(cpu: Cpu, gva: int, level: int) -> None:
    """A guest entry at ``level`` maps the page of ``gva``."""
    shift = 12 + (level - 1) * (10 if cpu.mode == MODE_32 else 9)
    note_large_page(cpu, gva & -(1 << shift), shift)


@inlined
def _grant_mmio(cpu: Cpu, entry_at: int, gfn: int, access: int, writable: bool) -> None:
    """Let the accesses through a TLB entry reach the devices; such pages have no shadow entries.

    What is fetched from there are the ones of the void frame, by an entry for nothing else.
    """
    if access == FETCH:
        store64(entry_at, vm_of(cpu).void_mfn << 12)
        store32(entry_at + 8, PROT_EXEC)
        return
    store64(entry_at, MMIO_BASE + (gfn << 12))
    store32(entry_at + 8, PROT_READ | (PROT_WRITE if writable and cpu.walk_dirty != 0 else 0))


@outlined("qqqqqq")
def miss(cpu_at: int, gva: int, access: int, user: int, entry_at: int) -> int:
    """Answer a TLB miss; see :mod:`emu.mmu.walk` for the results."""
    cpu = cpu_record(cpu_at)
    vm = vm_of(cpu)
    mode = cpu.mode
    if mode >= MODE_4LEVEL:
        if not is_canonical(cpu, gva):
            return NON_CANONICAL
    else:
        gva &= 0xFFFF_FFFF
    if not vm.nested:
        leaf = shadow.lookup(cpu, gva)
        if leaf:
            writable, key = leaf & (pte.W | pte.TRAP), (leaf & pte.KEY) >> pte.KEY_SHIFT
            if permitted(cpu, access, user, writable, leaf & pte.U, leaf & pte.NX, key) and (
                access != WRITE or writable
            ):
                if leaf & (pte.LARGE | pte.HUGE):
                    _note_large_page(cpu, gva, 3 if leaf & pte.HUGE else 2)
                executable = permitted(cpu, FETCH, user, 0, leaf & pte.U, leaf & pte.NX, key)
                # under SMAP the supervisor may fetch from a page that it may neither read nor write
                readable = access != FETCH or permitted(cpu, READ, user, 0, leaf & pte.U, leaf & pte.NX, key)
                if not permitted(cpu, WRITE, user, writable, leaf & pte.U, leaf & pte.NX, key):
                    writable = 0
                mfn = (leaf & pte.FRAME) >> 12
                return grant(
                    cpu, entry_at, access, mfn, readable, readable and writable != 0, leaf & pte.TRAP != 0, executable,
                    user != 0,
                )  # fmt: skip

    status = walk(cpu, gva, access, user)
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
    entry = p2m_entry(cpu, gfn)
    if cpu.walk_level > 1:
        _note_large_page(cpu, gva, cpu.walk_level)
    user_page, nx, key = cpu.walk_user, cpu.walk_nx, cpu.walk_key
    if is_mmio(cpu, gfn):
        allowed = permitted(cpu, WRITE, user, cpu.walk_writable, user_page, nx, key)
        _grant_mmio(cpu, entry_at, gfn, access, allowed)
        return OK
    if not vm.nested:
        shadow.fill(cpu.at, gva, entry)
    mfn = entry >> 12
    may_write = entry & 2 != 0 and entry & DIRTY != 0  # the first store must be seen
    writable = cpu.walk_dirty != 0 and may_write and permitted(cpu, WRITE, user, cpu.walk_writable, user_page, nx, key)
    trapped = load8(vm.frame_flags_at + mfn) & FRAME_TABLE != 0
    executable = entry & 4 != 0 and permitted(cpu, FETCH, user, 0, user_page, nx, key)
    readable = entry & 1 != 0 and permitted(cpu, READ, user, 0, user_page, nx, key)
    return grant(cpu, entry_at, access, mfn, readable, writable, trapped, executable, user != 0)


@outlined("vqq")
def _refuse(cpu_at: int, access: int) -> None:
    """Put the guest back to the beginning of the instruction whose access is refused for ``miss_kind``."""
    cpu = cpu_record(cpu_at)
    restore_state(cpu)
    cpu.miss_fetch = 1 if access == FETCH else 0
    if access == READ and cpu.miss_kind == FAULT and is_read_to_write(cpu_at):
        cpu.miss_error |= pte.ERROR_W


@callback("bqqiqq")
def on_tlb_fill(uc: int, gva: int, access: int, entry_at: int, cpu_at: int) -> bool:
    """Unicorn's UC_HOOK_TLB_FILL, by way of :mod:`emu.engine.miss`."""
    cpu = cpu_record(cpu_at)
    kind = access - ACCESS_READ
    if kind == FETCH and not within_block(cpu):  # the block before has been executed to its end
        cpu.done_size = cpu.block_size
        cpu.block_size = 0
        cpu.entered_size = 0
    if refuses(cpu):
        cpu.miss_kind = REFUSED_FETCH if kind == FETCH else REFUSED
        _refuse(cpu_at, kind)
        return False
    refresh_if_changed(cpu)
    if cpu.watching and kind != FETCH and cpu.watch_step != STEPPING and watches_page(cpu.at, gva, kind):
        cpu.miss_kind = WATCHED
        _refuse(cpu_at, kind)
        return False
    user = 1 if is_user_access() else 0
    if not user and load32(cpu.env + cpustate.HFLAGS) & cpustate.HF_CPL == 3 and is_on_own_stack(
        cpu.at, missed_gva(), kind
    ):
        user = 1
        if load64(cpu.env + cpustate.CR4) & cpustate.CR4_SMAP:  # the engine keeps the entry for supervisors
            cpu.flush_at_block = 1
            cpu.limit = 0  # emu.cpu.clock looks at it before the next block
    status = miss(cpu.at, gva, kind, user, entry_at)
    if cpu.marked_code and drop_marked_code(cpu_at, 1) and status == OK:
        status = CODE_IN_USE
    if status == OK:
        if cpu.watching:
            restrict_entry(cpu.at, gva, kind, entry_at)
        return True
    cpu.miss_kind = status
    _refuse(cpu_at, kind)
    return False


@outlined("vqqqqq")
def _store_to_frame(cpu_at: int, mfn: int, offset: int, size: int, value: int) -> None:
    cpu = cpu_record(cpu_at)
    vm = vm_of(cpu)
    if mfn == vm.void_mfn:
        return
    flags = load8(vm.frame_flags_at + mfn)
    if flags & FRAME_CODE:
        drop_frame_code(cpu.at, mfn)
    host = vm.ram_at + (mfn << 12) + offset
    if flags & FRAME_TABLE:
        gfn = load64(vm.m2p_at + mfn * 8)
        before = load_bytes(host, size)
        store_bytes(host, size, value)
        after = load_bytes(host, size)
        zapped = shadow.table_written(cpu, gfn, offset, size)
        eventlog.record(cpu, _TABLE_WRITE, gfn << 12 | offset, size, before, after, zapped)
    else:
        store_bytes(host, size, value)


@inlined
def store_to_frame(cpu: Cpu, mfn: int, offset: int, size: int, value: int) -> None:
    """Store into a frame as the guest does, with every consequence: dropped code, shadow entries, nothing for holes."""
    _store_to_frame(cpu.at, mfn, offset, size, value)


@callback("bqiqiqq")
def on_trapped_store(uc: int, kind: int, address: int, size: int, value: int, cpu_at: int) -> bool:
    """Unicorn's UC_HOOK_MEM_WRITE_PROT over the trapped alias; the engine discards the store afterwards."""
    cpu = cpu_record(cpu_at)
    vm = vm_of(cpu)
    if refuses(cpu):
        cpu.miss_kind = REFUSED
        abandon_instruction(cpu)
    mfn = (address - TRAP_BASE) >> 12
    flags = load8(vm.frame_flags_at + mfn)
    if flags & FRAME_CODE and mfn != vm.void_mfn:
        user = load32(cpu.env + cpustate.HFLAGS) & cpustate.HF_CPL == 3
        if not flags & FRAME_TABLE and not stores_into_block(cpu_at, mfn, address & PAGE_MASK, size, 1 if user else 0):
            store_beside_code(cpu_at, mfn, address & PAGE_MASK, size, value)
            return True
        if drop_changed_code(cpu_at, mfn, 1 if user else 0):
            cpu.miss_kind = CODE_IN_USE
            abandon_instruction(cpu)
    if address & (size - 1):
        # The engine repeats an unaligned store byte by byte.  Its code is dropped already, because no TLB flush may
        # come between the bytes: the first of them may change the entry that maps the others.
        return True
    store_to_frame(cpu, mfn, address & PAGE_MASK, size, value)
    return True
