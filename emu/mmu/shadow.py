"""Shadow tables: real x86 entries, in machine frames of their own, that lead from gva to mfn.

A shadow table mirrors one guest table (or half or a quarter of a 32-bit one, whose entries are half as wide), so that a
guest table shared by several roots has one shadow, and a write into the guest table finds every entry made from it.
The tree always has the 64-bit format: four levels for 4-level guests, three for all others.

An entry carries the guest's own R/W, U/S and NX of that level; a lookup combines them as the processor does.  A leaf
is present only while the guest's accessed bits are set, and writable only while its dirty bit is, so that setting
these bits is never missed; the accessed and dirty bits of the P2M entry count in the same way.  Guest pages that hold
tables are write-trapped: their leaves have R/W clear and the software bit ``pte.TRAP`` set, and stores to them go
through the trapped alias of machine memory (:mod:`emu.addr`).

Every entry made or dropped is reported to the reverse map (:mod:`emu.mmu.rmap`).
"""

from __future__ import annotations

from typing import Any

from emu.addr import PAGE_MASK
from emu.engine import events
from emu.engine.cpustate import CR3
from emu.engine.engine import flush_tlb
from emu.engine.native import compiled, inlined, load8, load32, load64, outlined, store8, store32, store64
from emu.engine.ram import FRAME_TABLE
from emu.engine.state import state_at
from emu.mmu import pte, rmap
from emu.mmu.rmap import NONE, load_link
from emu.mmu.walk import (
    DIRTY,
    MODE_4LEVEL,
    MODE_32,
    MODE_NONE,
    MODE_PAE,
    RAM,
    SHARED,
    level_entry,
    level_table,
)

# how a shadow table was made
FORMAT_64 = 0  # from a guest table of 64-bit entries
FORMAT_32 = 1  # from a part of a guest table of 32-bit entries
FORMAT_DIRECT = 2  # from no table: maps consecutive gfns, for large pages and for guests without paging
FORMAT_ROOT_32 = 3  # the four-entry root above the quarters of a 32-bit page directory


_READ, _WRITE, _EXECUTE = 1, 2, 4  # Intent, the rights in a P2M entry
ENTRIES = 512
FLOOD_LIMIT = 64  # writes into a guest table, without any use of it in between, after which it is no table any more
_LEVELS = 4  # most tables that one fill can need
MIN_TABLES = 2 * _LEVELS  # fewest tables that serve any guest


@inlined
def role(level: int, form: int, part: int) -> int:
    """What else, beside the gfn, tells shadow tables apart: level, format, and which part of the guest table."""
    return level | form << 4 | part << 8


@inlined
def _table_host(vm: Any, mfn: int) -> int:
    return vm.ram_at + (mfn << 12)


@inlined
def _bucket(vm: Any, gfn: int) -> int:
    return vm.shadow_bucket_at + ((gfn * 40503 >> 4) & vm.shadow_bucket_mask) * 4


# --- dropping entries --------------------------------------------------------------------------------------------


@outlined("qqq")
def _zap_entry(vm_at, number):
    vm = state_at(vm_at)
    at = vm.shadow_host + number * 8
    entry = load64(at)
    if not entry & pte.P:
        return 0
    store64(at, 0)
    mfn = (entry & pte.FRAME) >> 12
    rmap.remove(vm, number, mfn)
    events.record(vm, events.SHADOW_ZAP, mfn, entry, vm.shadow_first + number // ENTRIES, number % ENTRIES, 0)
    return 1


@inlined
def zap_entry(vm: Any, number: int) -> int:
    """Drop a shadow entry; returns 1 when it was present."""
    return _zap_entry(vm.at, number)


@inlined
def zap_frame(vm: Any, mfn: int) -> int:
    """Drop every shadow entry that leads to ``mfn``; returns how many there were."""
    zapped = 0
    number = rmap.first(vm, mfn)
    while number != NONE:
        zapped += zap_entry(vm, number)
        number = rmap.first(vm, mfn)
    return zapped


# --- shadow tables ----------------------------------------------------------------------------------------------


@inlined
def _find(vm: Any, gfn: int, wanted: int) -> int:
    """The slot of the shadow table of ``gfn`` in role ``wanted``, or NONE."""
    slot = load_link(_bucket(vm, gfn))
    while slot != NONE:
        if load64(vm.shadow_key_at + slot * 8) == gfn and load64(vm.shadow_role_at + slot * 8) == wanted:
            return slot
        slot = load_link(vm.shadow_link_at + slot * 4)
    return NONE


@inlined
def has_shadow(vm: Any, gfn: int) -> bool:
    """Whether ``gfn`` is a guest table with a shadow."""
    slot = load_link(_bucket(vm, gfn))
    while slot != NONE:
        if load64(vm.shadow_key_at + slot * 8) == gfn:
            form = load64(vm.shadow_role_at + slot * 8) >> 4 & 15
            if form == FORMAT_64 or form == FORMAT_32:
                return True
        slot = load_link(vm.shadow_link_at + slot * 4)
    return False


@inlined
def _frame_of(vm: Any, gfn: int) -> int:
    """The frame behind a resident gfn, NONE for others."""
    if gfn >= vm.p2m_size:
        return NONE
    entry = load64(vm.p2m_at + gfn * 8)
    kind = entry >> 4 & 15
    return entry >> 12 if kind == RAM or kind == SHARED else NONE


@outlined("vqq")
def trap_frame(vm_at, mfn):
    """Make the guest's stores to ``mfn`` reach the write trap from now on."""
    vm = state_at(vm_at)
    flags = load8(vm.frame_flags_at + mfn)
    if flags & FRAME_TABLE:
        return
    store8(vm.frame_flags_at + mfn, flags | FRAME_TABLE)
    number = rmap.first(vm, mfn)
    while number != NONE:
        at = vm.shadow_host + number * 8
        entry = load64(at)
        if entry & pte.W:
            store64(at, (entry & ~pte.W) | pte.TRAP)
        number = rmap.following(vm, number)
    flush_tlb(vm)  # the engine may hold writable entries


@inlined
def untrap_frame(vm: Any, mfn: int) -> None:
    """``mfn`` holds no guest table any more."""
    flags = load8(vm.frame_flags_at + mfn)
    if flags & FRAME_TABLE:
        store8(vm.frame_flags_at + mfn, flags & ~FRAME_TABLE)
        zap_frame(vm, mfn)  # they come back without the trap


@inlined
def _create(vm: Any, gfn: int, wanted: int) -> int:
    """A new, empty shadow table; a free slot must exist."""
    slot = vm.shadow_free
    vm.shadow_free = load_link(vm.shadow_link_at + slot * 4)
    vm.shadow_used += 1
    store64(vm.shadow_key_at + slot * 8, gfn)
    store64(vm.shadow_role_at + slot * 8, wanted)
    store32(vm.shadow_writes_at + slot * 4, 0)
    bucket = _bucket(vm, gfn)
    store32(vm.shadow_link_at + slot * 4, load_link(bucket))
    store32(bucket, slot)
    host = vm.shadow_host + slot * 4096
    for index in range(ENTRIES):
        store64(host + index * 8, 0)
    form = wanted >> 4 & 15
    if form == FORMAT_64 or form == FORMAT_32:
        mfn = _frame_of(vm, gfn)
        if mfn != NONE:
            trap_frame(vm.at, mfn)
    return slot


@inlined
def _find_or_create(vm: Any, gfn: int, wanted: int) -> int:
    slot = _find(vm, gfn, wanted)
    if slot == NONE:
        slot = _create(vm, gfn, wanted)
    store32(vm.shadow_writes_at + slot * 4, 0)
    return slot


@outlined("vqq")
def _destroy(vm_at, slot):
    """Drop a shadow table: its entries, the entries that lead to it, its place in the buckets."""
    vm = state_at(vm_at)
    for index in range(ENTRIES):
        zap_entry(vm, slot * ENTRIES + index)
    zap_frame(vm, vm.shadow_first + slot)
    at = _bucket(vm, load64(vm.shadow_key_at + slot * 8))
    while load_link(at) != slot:
        at = vm.shadow_link_at + load_link(at) * 4
    store32(at, load_link(vm.shadow_link_at + slot * 4))
    store64(vm.shadow_key_at + slot * 8, NONE)
    store32(vm.shadow_link_at + slot * 4, vm.shadow_free)
    vm.shadow_free = slot
    vm.shadow_used -= 1
    if vm.root_mfn == vm.shadow_first + slot:
        vm.root_mfn = NONE


@outlined("vqq")
def unshadow(vm_at, gfn):
    """Drop every shadow table made from the guest table ``gfn`` and stop trapping its writes."""
    vm = state_at(vm_at)
    found = True
    while found:
        found = False
        slot = load_link(_bucket(vm, gfn))
        while slot != NONE:
            following = load_link(vm.shadow_link_at + slot * 4)
            form = load64(vm.shadow_role_at + slot * 8) >> 4 & 15
            if load64(vm.shadow_key_at + slot * 8) == gfn and form != FORMAT_DIRECT:
                _destroy(vm.at, slot)
                found = True
                break
            slot = following
    mfn = _frame_of(vm, gfn)
    if mfn != NONE:
        untrap_frame(vm, mfn)


@outlined("vq")
def unshadow_all(vm_at):
    """Drop every shadow table.  The engine's TLB may keep what it has: nothing that it holds becomes wrong."""
    vm = state_at(vm_at)
    for slot in range(vm.shadow_slots):
        gfn = load64(vm.shadow_key_at + slot * 8)
        if gfn != NONE:
            _destroy(vm.at, slot)
            mfn = _frame_of(vm, gfn)
            if mfn != NONE:
                untrap_frame(vm, mfn)
    vm.root_mfn = NONE


# --- lookup and fill --------------------------------------------------------------------------------------------


@inlined
def _root_of(vm: Any, gfn: int, wanted: int, create: int) -> int:
    return _find_or_create(vm, gfn, wanted) if create else _find(vm, gfn, wanted)


@outlined("vqq")
def select_root(vm_at, create):
    """Find the root for the current CR3 and paging mode.

    Args:
        create: nonzero to make it where there is none.  The guest's root table must be resident then, as it is after
            a successful walk; otherwise ``root_mfn`` stays NONE until there is one.
    """
    vm = state_at(vm_at)
    mode = vm.mode
    if create and vm.shadow_used > vm.shadow_slots - _LEVELS:
        unshadow_all(vm_at)
    cr3 = load64(vm.env + CR3)
    vm.root_level = 3
    if mode == MODE_4LEVEL:
        vm.root_level = 4
        slot = _root_of(vm, (cr3 & pte.FRAME) >> 12, role(4, FORMAT_64, 0), create)
    elif mode == MODE_PAE:
        slot = _root_of(vm, (cr3 & 0xFFFF_F000) >> 12, role(3, FORMAT_64, cr3 >> 5 & 127), create)
    elif mode == MODE_32:
        slot = _root_of(vm, (cr3 & 0xFFFF_F000) >> 12, role(3, FORMAT_ROOT_32, 0), create)
    else:
        slot = _root_of(vm, 0, role(3, FORMAT_DIRECT, 0), create)
    vm.root_mfn = NONE if slot == NONE else vm.shadow_first + slot


@inlined
def lookup(vm: Any, gva: int) -> int:
    """Walk the shadow tables.

    Returns:
        0, or a leaf entry whose P, U, NX, W and TRAP hold for all levels together, with LARGE and HUGE of those above.
    """
    if vm.root_mfn == NONE:
        return 0
    at = vm.ram_at + (vm.root_mfn << 12)
    shift = 12 + 9 * (vm.root_level - 1)
    all_of = pte.P | pte.W | pte.U
    any_of = 0
    while True:
        entry = load64(at + ((gva >> shift) & 511) * 8)
        if not entry & pte.P:
            return 0
        any_of |= entry
        if shift == 12:
            break
        all_of &= entry
        at = vm.ram_at + (entry & pte.FRAME)
        shift -= 9
    keep = pte.FRAME | pte.P | (all_of & (pte.W | pte.U))
    if all_of & pte.W:
        keep |= pte.TRAP
    return (entry & keep) | (any_of & (pte.NX | pte.LARGE | pte.HUGE))


@outlined("qqqq")
def fill(vm_at, gva, frame_entry):
    """Make the shadow entries for the page that the last successful walk found.

    Args:
        gva: within the page, the walk's gva.
        frame_entry: the P2M entry of the page's gfn; for a hole the void frame's.

    Returns:
        The leaf entry, 0 when the DMM does not let the page be read.
    """
    vm = state_at(vm_at)
    if vm.root_mfn == NONE or vm.shadow_used > vm.shadow_slots - _LEVELS:
        select_root(vm.at, 1)
    mode = vm.mode
    mapped_at = vm.walk_level  # guest level of the entry that maps the page, 0 without paging
    table = vm.root_mfn - vm.shadow_first
    level = vm.root_level
    while level > 1:
        rights = pte.W | pte.U
        below = level - 1
        if mode == MODE_NONE or mapped_at >= level:
            # inside a large page, or no paging: the table below maps consecutive gfns
            gfn = (vm.walk_gpa >> (12 + 9 * below)) << (9 * below)
            wanted = role(below, FORMAT_DIRECT, 0)
            if mapped_at == level:
                rights = level_entry(vm, level) & (pte.U | pte.NX | pte.W)
                if not vm.walk_dirty:
                    rights &= ~pte.W
                rights |= pte.LARGE if level == 2 else pte.HUGE
        elif mode == MODE_32:
            if level == 3:
                gfn = level_table(vm, 2) >> 12
                wanted = role(2, FORMAT_32, gva >> 30 & 3)
            else:
                gfn = level_table(vm, 1) >> 12
                wanted = role(1, FORMAT_32, gva >> 21 & 1)
                rights = level_entry(vm, 2) & (pte.U | pte.W)
        else:
            gfn = level_table(vm, below) >> 12
            wanted = role(below, FORMAT_64, 0)
            if mode == MODE_4LEVEL or level != 3:
                rights = level_entry(vm, level) & (pte.U | pte.NX | pte.W)
        index = (gva >> (12 + 9 * below)) & 511
        number = table * ENTRIES + index
        at = vm.shadow_host + number * 8
        entry = load64(at)
        if entry & pte.P:
            child = ((entry & pte.FRAME) >> 12) - vm.shadow_first
            store32(vm.shadow_writes_at + child * 4, 0)
        else:
            child = _find_or_create(vm, gfn, wanted)
            # making a table traps its frame, which zaps nothing on this path: entries of tables are not leaves
            rmap.add(vm, number, vm.shadow_first + child)
        store64(at, (vm.shadow_first + child) << 12 | pte.P | pte.A | rights)
        table = child
        level = below

    number = table * ENTRIES + ((gva >> 12) & 511)
    at = vm.shadow_host + number * 8
    if mapped_at == 1:
        rights = level_entry(vm, 1) & (pte.U | pte.NX | pte.W)
        if mode == MODE_32:
            rights &= ~pte.NX
        if not vm.walk_dirty:
            rights &= ~pte.W
    else:
        rights = pte.W | pte.U
    mfn = frame_entry >> 12
    if not frame_entry & _READ:
        zap_entry(vm, number)  # an x86 entry cannot withhold reading: every access has to ask
        return 0
    if not frame_entry & _WRITE or not frame_entry & DIRTY:
        rights &= ~pte.W
    if not frame_entry & _EXECUTE:
        rights |= pte.NX
    if rights & pte.W and load8(vm.frame_flags_at + mfn) & FRAME_TABLE:
        rights = (rights & ~pte.W) | pte.TRAP
    entry = mfn << 12 | pte.P | pte.A | rights | (pte.D if rights & pte.W else 0)
    before = load64(at)
    if before & pte.P and (before ^ entry) & pte.FRAME:
        zap_entry(vm, number)
        before = 0
    if not before & pte.P:
        rmap.add(vm, number, mfn)
    store64(at, entry)
    events.record(vm, events.SHADOW_FILL, gva & ~PAGE_MASK, vm.walk_gpa >> 12, mfn, entry, 0)
    return entry


# --- propagation ------------------------------------------------------------------------------------------------


@inlined
def table_written(vm: Any, gfn: int, offset: int, size: int) -> int:
    """The guest changed ``size`` bytes at ``offset`` of its table ``gfn``: drop the shadow entries made from them.

    Returns:
        How many entries were dropped.
    """
    zapped = 0
    flooded = False
    slot = load_link(_bucket(vm, gfn))
    while slot != NONE:
        if load64(vm.shadow_key_at + slot * 8) == gfn:
            what = load64(vm.shadow_role_at + slot * 8)
            level, form, part = what & 15, what >> 4 & 15, what >> 8
            if form == FORMAT_64:
                index = offset >> 3
                if level == 3 and part:
                    index -= part * 4  # a PAE root lies at CR3 bits 11:5 of its page
                if 0 <= index < ENTRIES:
                    zapped += zap_entry(vm, slot * ENTRIES + index)
            elif form == FORMAT_32:
                for index in range(offset >> 2, (offset + size - 1 >> 2) + 1):
                    if level == 1:
                        if index >> 9 == part:
                            zapped += zap_entry(vm, slot * ENTRIES + (index & 511))
                    elif index >> 8 == part:
                        zapped += zap_entry(vm, slot * ENTRIES + (index & 255) * 2)
                        zapped += zap_entry(vm, slot * ENTRIES + (index & 255) * 2 + 1)
            if form == FORMAT_64 or form == FORMAT_32:
                writes = load32(vm.shadow_writes_at + slot * 4) + 1
                store32(vm.shadow_writes_at + slot * 4, writes)
                if writes >= FLOOD_LIMIT and vm.root_mfn != vm.shadow_first + slot:
                    flooded = True
        slot = load_link(vm.shadow_link_at + slot * 4)
    if flooded and (load64(vm.env + CR3) & pte.FRAME) >> 12 != gfn:
        unshadow(vm.at, gfn)
    return zapped


@outlined("qqqq")
def forget_uses(vm_at, gfn, mfn):
    """:func:`forget_gfn` for the native plane."""
    vm = state_at(vm_at)
    if has_shadow(vm, gfn):
        unshadow(vm.at, gfn)
    return zap_frame(vm, mfn)


@compiled
def forget_gfn(vm_at: int, gfn: int, mfn: int) -> int:
    """The DMM is about to take ``mfn`` from behind ``gfn`` or rights on it: drop everything derived from either.

    Returns:
        The number of shadow entries that led to the frame.
    """
    return forget_uses(vm_at, gfn, mfn)


@compiled
def forget_everything(vm_at: int) -> None:
    """Drop every shadow table of a VM."""
    unshadow_all(vm_at)


@compiled
def lookup_from_python(vm_at: int, gva: int) -> int:
    """:func:`lookup` for tools; 0 where no root is selected."""
    vm = state_at(vm_at)
    return lookup(vm, gva)
