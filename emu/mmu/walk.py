"""The guest's page walk: one source for every paging mode (SDM vol. 3A, chapter 4).

Guest page tables are read through the P2M.  Where a table page is not resident the walk ends with ``NEED`` and may be
started again once the DMM has brought the page; nothing is lost, because accessed bits only ever become set.

The four page-directory-pointer entries of PAE paging are registers (4.4.1): :func:`load_pdptes` loads them, for MOV to
a control register (:mod:`emu.cpu.controlregs`) and else where CR3 has changed.
"""

from __future__ import annotations

from emu.addr import FETCH, NO_FRAME, PAGE_MASK, WRITE
from emu.engine.cpustate import (
    CR0,
    CR0_PG,
    CR0_WP,
    CR3,
    CR4,
    CR4_LA57,
    CR4_PAE,
    CR4_PKE,
    CR4_PKS,
    CR4_PSE,
    CR4_SMAP,
    CR4_SMEP,
    EFER,
    EFER_LMA,
    EFER_NXE,
    EFLAGS,
    FLAG_AC,
    HF_CPL,
    HFLAGS,
    PKRU,
)
from emu.engine.native import inlined, load8, load32, load64, outlined, store32, store64
from emu.engine.ram import FRAME_CODE
from emu.engine.state import Cpu, cpu_offset, cpu_record, vm_of
from emu.mmu import pte

# paging modes, in the order of their introduction
MODE_NONE, MODE_32, MODE_PAE, MODE_4LEVEL, MODE_5LEVEL = 0, 1, 2, 3, 4

# what a walk or a TLB miss comes to
OK, FAULT, NEED, NON_CANONICAL = 0, 1, 2, 3

_P2M_RIGHT_READ, _P2M_RIGHT_WRITE, ALL_RIGHTS = 1, 2, 7  # Intent.READ, Intent.WRITE, every right
HOLE, RAM, MMIO, SHARED = 0, 2, 5, 6  # PageType
YOUNG, ACCESSED, DIRTY = 1 << 3, 1 << 8, 1 << 9  # in a P2M entry
MARKED_MOST = 16  # frames with marked code at once: each walk comes through four, and drops come soon
_ROOT_PAE = 0xFFFF_FFE0  # CR3 bits that locate the page-directory-pointer table
_ROOT_32 = 0xFFFF_F000
_PDPTES = cpu_offset("pdpte0")
NO_PDPTES = -1  # pdptes_for: to be loaded again

_ACCESS_DISABLE, _WRITE_DISABLE = 1, 2  # of a key in PKRU and IA32_PKRS


@inlined
def paging_mode(cpu: Cpu) -> int:
    """The paging mode that the control registers select."""
    if not load64(cpu.env + CR0) & CR0_PG:
        return MODE_NONE
    if load64(cpu.env + EFER) & EFER_LMA:
        return MODE_5LEVEL if load64(cpu.env + CR4) & CR4_LA57 else MODE_4LEVEL
    if load64(cpu.env + CR4) & CR4_PAE:
        return MODE_PAE
    return MODE_32


@inlined
def is_canonical(cpu: Cpu, gva: int) -> bool:
    """Whether bits 63:47, or with 5-level paging 63:56, are all equal."""
    high = gva >> 56 if cpu.mode == MODE_5LEVEL else gva >> 47
    return high == 0 or high == -1


@inlined
def is_canonical_base(cpu: Cpu, value: int) -> bool:
    """The same for an address in a register or descriptor: as wide as the processor's addresses can be, in any mode."""
    high = value >> 56 if cpu.cr4_allowed & CR4_LA57 else value >> 47
    return high == 0 or high == -1


@inlined
def p2m_entry(cpu: Cpu, gfn: int) -> int:
    """The P2M entry of ``gfn``; where there is no memory, one that grants everything on the void frame."""
    vm = vm_of(cpu)
    entry = load64(vm.p2m_at + gfn * 8) if gfn < vm.p2m_size else 0
    kind = entry >> 4 & 15
    if kind == HOLE or kind == MMIO:
        return vm.void_mfn << 12 | ALL_RIGHTS | ACCESSED | DIRTY
    return entry


@inlined
def note_use(cpu: Cpu, gfn: int, right: int) -> None:
    """Set the accessed bit in the P2M entry of a resident ``gfn``, and for a store its dirty bit."""
    vm = vm_of(cpu)
    if gfn < vm.p2m_size:
        at = vm.p2m_at + gfn * 8
        entry = load64(at)
        kind = entry >> 4 & 15
        marks = ACCESSED | DIRTY if right == _P2M_RIGHT_WRITE else ACCESSED
        if entry & marks != marks and (kind == RAM or kind == SHARED):
            store64(at, entry | marks)


@inlined
def is_mmio(cpu: Cpu, gfn: int) -> bool:
    """Whether accesses to ``gfn`` go to devices."""
    vm = vm_of(cpu)
    return gfn < vm.p2m_size and load64(vm.p2m_at + gfn * 8) >> 4 & 15 == MMIO


@inlined
def host_address(cpu: Cpu, gpa: int, right: int) -> int:
    """The host address of ``gpa``, or 0 with ``need_gfn`` and ``need_intent`` set when the DMM must be asked first.

    A gpa without memory reads as all ones.
    """
    entry = p2m_entry(cpu, gpa >> 12)
    if not entry & right:
        gfn = gpa >> 12
        cpu.need_gfn = gfn
        cpu.need_intent = right
        return 0
    note_use(cpu, gpa >> 12, right)
    return vm_of(cpu).ram_at + (entry & ~PAGE_MASK) + (gpa & PAGE_MASK)


@inlined
def note_level(cpu: Cpu, level: int, table: int, entry: int) -> None:
    """Remember the table's gpa and the entry used at ``level`` (1 to 5) of the current walk."""
    store64(cpu.walk_at + 16 * level, table)
    store64(cpu.walk_at + 16 * level + 8, entry)


@inlined
def level_table(cpu: Cpu, level: int) -> int:
    """The gpa of the table that the last walk used at ``level``."""
    return load64(cpu.walk_at + 16 * level)


@inlined
def level_entry(cpu: Cpu, level: int) -> int:
    """The entry that the last walk used at ``level``, accessed and dirty bits as they are now."""
    return load64(cpu.walk_at + 16 * level + 8)


@inlined
def pdpte(cpu: Cpu, index: int) -> int:
    """The PDPTE register ``index``, 0 to 3."""
    return load64(cpu.at + _PDPTES + 8 * index)


@outlined("qqq")
def load_pdptes(cpu_at: int, cr3: int) -> int:
    """Load the PDPTE registers for ``cr3``.

    Returns:
        OK; FAULT when a present one has reserved bits set, and NEED: nothing is loaded then.
    """
    cpu = cpu_record(cpu_at)
    for index in range(4):
        host = host_address(cpu, (cr3 & _ROOT_PAE) + 8 * index, _P2M_RIGHT_READ)
        if host == 0:
            return NEED
        entry = load64(host)
        if entry & pte.P and entry & pte.PDPTE_RESERVED:
            return FAULT
    for index in range(4):  # all lie in one page, which is there
        host = host_address(cpu, (cr3 & _ROOT_PAE) + 8 * index, _P2M_RIGHT_READ)
        store64(cpu.at + _PDPTES + 8 * index, load64(host))
    cpu.pdptes_for = cr3
    cpu.root_mfn = NO_FRAME  # shadow tables: the root is to be compared with the registers
    return OK


@inlined
def forbidden_by_key(cpu: Cpu, access: int, user: bool, user_page: int, key: int) -> bool:
    """Whether a page's protection key forbids an access (SDM vol. 3A, 4.6.2); arguments as of :func:`permitted`."""
    if access == FETCH or cpu.mode < MODE_4LEVEL:
        return False
    cr4 = load64(cpu.env + CR4)
    if user_page:
        rights = load32(cpu.env + PKRU) if cr4 & CR4_PKE else 0
    else:
        rights = cpu.pkrs if cr4 & CR4_PKS else 0
    rights >>= 2 * key
    if rights & _ACCESS_DISABLE:
        return True
    if not rights & _WRITE_DISABLE or access != WRITE:
        return False
    return load64(cpu.env + CR0) & CR0_WP != 0 or (user and user_page != 0)


@inlined
def permitted(cpu: Cpu, access: int, user: bool, writable: int, user_page: int, nx: int, key: int) -> bool:
    """Whether the rights of a page allow an access (SDM vol. 3A, 4.6).

    Args:
        access: READ, WRITE or FETCH.
        user: the access is made at CPL 3 and is not an implicit supervisor access.
        writable, user_page, nx: nonzero when R/W is set on every level, U/S on every level, NX on any.
        key: its protection key.
    """
    if cpu.mode == MODE_NONE:
        return True
    cr4 = load64(cpu.env + CR4)
    if cr4 & (CR4_PKE | CR4_PKS) and forbidden_by_key(cpu, access, user, user_page, key):
        return False
    if user:
        if not user_page:
            return False
    elif user_page:
        if access == FETCH:
            if cr4 & CR4_SMEP:
                return False
        elif cr4 & CR4_SMAP:
            implicit = load32(cpu.env + HFLAGS) & HF_CPL == 3  # EFLAGS.AC does not count for those
            if implicit or not load64(cpu.env + EFLAGS) & FLAG_AC:
                return False
    if access == WRITE:
        return writable != 0 or (not user and not load64(cpu.env + CR0) & CR0_WP)
    if access == FETCH:
        return nx == 0
    return True


@inlined
def error_code(cpu: Cpu, access: int, user: bool, cause: int) -> int:
    """The page-fault error code for an access that failed for ``cause`` (0, ERROR_P, ERROR_P | ERROR_RSVD)."""
    error = cause
    if access == WRITE:
        error |= pte.ERROR_W
    if user:
        error |= pte.ERROR_U
    if access == FETCH:
        cr4 = load64(cpu.env + CR4)
        if cr4 & CR4_SMEP or (cr4 & CR4_PAE and load64(cpu.env + EFER) & EFER_NXE):
            error |= pte.ERROR_I
    return error


@inlined
def set_bits(cpu: Cpu, gpa: int, entry: int, wide: bool, bits: int) -> int:
    """Set accessed or dirty bits in a guest entry; 0 when the DMM must be asked first.

    Where the entry lies among code, its frame joins the ``marked_code`` frames at ``marked_at``: their translated code
    is stale.
    """
    vm = vm_of(cpu)
    host = host_address(cpu, gpa, _P2M_RIGHT_WRITE)
    if host == 0:
        return 0
    mfn = (host - vm.ram_at) >> 12
    if mfn != vm.void_mfn:
        if load8(vm.frame_flags_at + mfn) & FRAME_CODE and cpu.marked_code < MARKED_MOST:
            store64(cpu.marked_at + 8 * cpu.marked_code, mfn)
            cpu.marked_code += 1
        if wide:
            store64(host, entry | bits)
        else:
            store32(host, entry | bits)
    return 1


@outlined("qqqqq")
def _walk(cpu_at: int, gva: int, access: int, user: int) -> int:
    cpu = cpu_record(cpu_at)
    vm = vm_of(cpu)
    mode = cpu.mode
    if mode == MODE_NONE:
        cpu.walk_gpa = gva & vm.a20_mask
        cpu.walk_writable = 1
        cpu.walk_user = 1
        cpu.walk_nx = 0
        cpu.walk_key = 0
        cpu.walk_dirty = 1
        cpu.walk_level = 0
        return OK
    env = cpu.env
    cr3 = load64(env + CR3)
    wide = mode != MODE_32
    reserved = 0
    if mode >= MODE_4LEVEL:
        level = 4 if mode == MODE_4LEVEL else 5
        table, reserved = cr3 & pte.FRAME, pte.RESERVED_HIGH
    elif mode == MODE_PAE:
        if cpu.pdptes_for != cr3:
            status = load_pdptes(cpu_at, cr3)
            if status == NEED:
                return NEED
            if status == FAULT:  # after a task switch, which does not check them
                cpu.miss_error = error_code(cpu, access, user, pte.ERROR_P | pte.ERROR_RSVD)
                return FAULT
        entry = pdpte(cpu, gva >> 30 & 3)
        note_level(cpu, 3, cr3 & _ROOT_PAE, entry)
        if not entry & pte.P:
            cpu.miss_error = error_code(cpu, access, user, 0)
            return FAULT
        level, table, reserved = 2, entry & pte.FRAME, pte.RESERVED_HIGH | pte.RESERVED_PAE
    else:
        level, table = 2, cr3 & _ROOT_32
    if wide and not load64(env + EFER) & EFER_NXE:
        reserved |= pte.NX
    bits = 9 if wide else 10
    writable, user_page, nx = pte.W, pte.U, 0
    while True:
        shift = 12 + bits * (level - 1)
        index = (gva >> shift) & ((1 << bits) - 1)
        entry_gpa = table + (index << 3 if wide else index << 2)
        host = host_address(cpu, entry_gpa, _P2M_RIGHT_READ)
        if host == 0:
            return NEED
        entry = load64(host) if wide else load32(host)
        note_level(cpu, level, table, entry)
        if not entry & pte.P:
            cpu.miss_error = error_code(cpu, access, user, 0)
            return FAULT
        large = False
        if level > 1 and entry & pte.PS:
            large = level < 4 and (wide or load64(env + CR4) & CR4_PSE != 0)
        bad = entry & reserved
        if level >= 4:
            bad |= entry & pte.PS
        elif large:
            bad |= entry & (pte.PDE32_RESERVED if not wide else ((1 << shift) - 1) & ~0x1FFF)
        if bad:
            cpu.miss_error = error_code(cpu, access, user, pte.ERROR_P | pte.ERROR_RSVD)
            return FAULT
        writable &= entry
        user_page &= entry
        if wide:
            nx |= entry & pte.NX
        if level == 1 or large:
            break
        if not entry & pte.A:
            if set_bits(cpu, entry_gpa, entry, wide, pte.A) == 0:
                return NEED
            note_level(cpu, level, table, entry | pte.A)
        table = entry & pte.FRAME if wide else entry & _ROOT_32
        level -= 1

    key = (entry & pte.KEY) >> pte.KEY_SHIFT if mode >= MODE_4LEVEL else 0
    if not permitted(cpu, access, user, writable, user_page, nx, key):
        cpu.miss_error = error_code(cpu, access, user, pte.ERROR_P)
        if forbidden_by_key(cpu, access, user, user_page, key):
            cpu.miss_error |= pte.ERROR_PK
        return FAULT
    wanted = pte.A | (pte.D if access == WRITE else 0)
    if entry & wanted != wanted:
        if set_bits(cpu, entry_gpa, entry, wide, wanted) == 0:
            return NEED
        entry |= wanted
        note_level(cpu, level, table, entry)
    offset = gva & ((1 << shift) - 1)
    if wide:
        frame = entry & pte.FRAME & -(1 << shift)
    elif large:
        frame = (entry & 0xFFC0_0000) | (entry & pte.PDE32_HIGH) << 19
    else:
        frame = entry & _ROOT_32
    cpu.walk_gpa = (frame | offset) & vm.a20_mask  # tables are read as if A20 were high
    cpu.walk_writable = writable
    cpu.walk_user = user_page
    cpu.walk_nx = nx
    cpu.walk_key = key
    cpu.walk_dirty = entry & pte.D
    cpu.walk_level = level
    return OK


@inlined
def walk(cpu: Cpu, gva: int, access: int, user: bool) -> int:
    """Translate ``gva`` by the guest's own tables, setting accessed and dirty bits.

    Returns:
        OK with ``walk_gpa`` (of the byte), ``walk_writable``, ``walk_user``, ``walk_nx``, ``walk_key``,
        ``walk_dirty``, ``walk_level`` (of the entry that maps the page; 0 without paging) and the levels noted;
        FAULT with ``miss_error``; NEED with ``need_gfn`` and ``need_intent``.
    """
    return _walk(cpu.at, gva, access, 1 if user else 0)
