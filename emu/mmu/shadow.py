"""Shadow tables: real x86 entries, in machine frames of their own, that lead from gva to mfn.

The tree always has the 64-bit format: four or five levels for guests in long mode, three for all others.  What its
tables are made from, mode by mode and level by level, say two tables of numbers below; each shadow table's own
book-keeping is in :mod:`emu.mmu.shadowtables`.

An entry carries the guest's own R/W, U/S and NX of that level; a lookup combines them as the processor does.  A leaf
is present only while the guest's accessed bits are set, and writable only while its dirty bit is, so that setting
these bits is never missed; the accessed and dirty bits of the P2M entry count in the same way.
"""

from __future__ import annotations

import numpy as np

from emu.addr import PAGE_MASK
from emu.engine import eventlog
from emu.engine.cpustate import CR3
from emu.engine.events import ShadowFill
from emu.engine.native import compiled, inlined, load8, load32, load64, outlined, store32, store64
from emu.engine.ram import FRAME_TABLE
from emu.engine.state import Cpu, cpu_record, vm_of
from emu.mmu import pte, rmap
from emu.mmu.rmap import NONE, load_link
from emu.mmu.shadowtables import (
    ENTRIES,
    FORMAT_32,
    FORMAT_64,
    FORMAT_DIRECT,
    FORMAT_PDPTES,
    FORMAT_ROOT_32,
    bucket_of,
    find,
    find_or_create,
    has_room,
    has_shadow,
    is_root,
    role,
    unshadow,
    unshadow_all,
    zap_entry,
    zap_frame,
)
from emu.mmu.walk import (
    DIRTY,
    MODE_4LEVEL,
    MODE_5LEVEL,
    MODE_32,
    MODE_NONE,
    MODE_PAE,
    level_entry,
    level_table,
    pdpte,
)

_SHADOW_FILL = ShadowFill.KIND

_READ, _WRITE, _EXECUTE = 1, 2, 4  # Intent, the rights in a P2M entry
FLOOD_LIMIT = 64  # writes into a guest table, without any use of it in between, after which it is no table any more

# --- what a shadow table is made from, in each paging mode ---------------------------------------------------------

_RW, _RWX = pte.W | pte.U, pte.W | pte.U | pte.NX
_LOW = 0xFFFF_F000  # CR3 bits that locate the root table of a 32-bit or PAE guest

# A root: its level, its format, the CR3 bits that locate the guest's root table, and those that are its part of the
# role (shifted right, then masked: a PAE root lies at CR3 bits 11:5 of its page).
_LEVEL, _ROOT_FORMAT, _ROOT_AT, _ROOT_SHIFT, _ROOT_MASK = range(5)
_ROOTS = np.zeros((5, 5), np.int64)
_ROOTS[MODE_NONE] = 3, FORMAT_DIRECT, 0, 0, 0
_ROOTS[MODE_32] = 3, FORMAT_ROOT_32, _LOW, 0, 0
_ROOTS[MODE_PAE] = 3, FORMAT_PDPTES, _LOW, 5, 127
_ROOTS[MODE_4LEVEL] = 4, FORMAT_64, pte.FRAME, 0, 0
_ROOTS[MODE_5LEVEL] = 5, FORMAT_64, pte.FRAME, 0, 0
_PDPTES_CPU = 7  # from this bit on of the part of a PAE root: whose PDPTE registers it is made from

# An entry at a level: the rights that it takes from the guest's entry of the same level, all others being granted;
# and the table below, which is made from the guest's table of the level below: its format, and the gva bits that are
# its part of the role (shifted right, then masked).  Below an entry that maps a large page all is FORMAT_DIRECT.
_TAKES, _FORMAT, _SHIFT, _MASK = range(4)
_ENTRIES = np.zeros((5, 6, 4), np.int64)
_ENTRIES[MODE_NONE, 3] = 0, FORMAT_DIRECT, 0, 0
_ENTRIES[MODE_NONE, 2] = 0, FORMAT_DIRECT, 0, 0
_ENTRIES[MODE_NONE, 1] = 0, 0, 0, 0
_ENTRIES[MODE_32, 3] = 0, FORMAT_32, 30, 3  # the guest has no such entry; a quarter of its page directory
_ENTRIES[MODE_32, 2] = _RW, FORMAT_32, 21, 1  # half of a page table
_ENTRIES[MODE_32, 1] = _RW, 0, 0, 0
_ENTRIES[MODE_PAE, 3] = 0, FORMAT_64, 0, 0  # a PDPTE has no rights
_ENTRIES[MODE_PAE, 2] = _RWX, FORMAT_64, 0, 0
_ENTRIES[MODE_PAE, 1] = _RWX, 0, 0, 0
_ENTRIES[MODE_4LEVEL, 2:5] = _ENTRIES[MODE_5LEVEL, 2:6] = _RWX, FORMAT_64, 0, 0
_ENTRIES[MODE_4LEVEL, 1] = _ENTRIES[MODE_5LEVEL, 1] = _RWX, 0, 0, 0


@inlined
def _drop_old_pdptes(cpu: Cpu, slot: int) -> None:
    """Drop the entries of a PAE root that were made from other PDPTEs than are in the registers now."""
    vm = vm_of(cpu)
    for index in range(4):
        entry = load64(vm.shadow_host + (slot * ENTRIES + index) * 8)
        if entry & pte.P:
            child = ((entry & pte.FRAME) >> 12) - vm.shadow_first
            now = pdpte(cpu, index)
            if not now & pte.P or (now & pte.FRAME) >> 12 != load64(vm.shadow_key_at + child * 8):
                zap_entry(cpu, slot * ENTRIES + index)


@outlined("vqq")
def select_root(cpu_at: int, create: int) -> None:
    """Find the root for the current CR3 and paging mode.

    Args:
        create: nonzero to make it where there is none.  The guest's root table must be resident then, as it is after
            a successful walk; otherwise ``root_mfn`` stays NONE until there is one.
    """
    cpu = cpu_record(cpu_at)
    mode = cpu.mode
    if create and not has_room(cpu):
        unshadow_all(cpu_at)
    cr3 = load64(cpu.env + CR3)
    level = int(_ROOTS[mode, _LEVEL])
    gfn = (cr3 & _ROOTS[mode, _ROOT_AT]) >> 12
    part = cr3 >> _ROOTS[mode, _ROOT_SHIFT] & _ROOTS[mode, _ROOT_MASK]
    if mode == MODE_PAE:
        part |= cpu.index << _PDPTES_CPU
    wanted = role(level, _ROOTS[mode, _ROOT_FORMAT], part)
    slot = find_or_create(cpu, gfn, wanted) if create else find(cpu, gfn, wanted)
    cpu.root_level = level
    cpu.root_mfn = NONE if slot == NONE else vm_of(cpu).shadow_first + slot
    if mode == MODE_PAE and slot != NONE:
        _drop_old_pdptes(cpu, slot)


# --- lookup and fill --------------------------------------------------------------------------------------------


@inlined
def lookup(cpu: Cpu, gva: int) -> int:
    """Walk the shadow tables.

    Returns:
        0, or a leaf entry whose P, U, NX, W and TRAP hold for all levels together, with the protection key, LARGE and
        HUGE of those above.
    """
    vm = vm_of(cpu)
    if cpu.root_mfn == NONE:
        return 0
    at = vm.ram_at + (cpu.root_mfn << 12)
    shift = 12 + 9 * (cpu.root_level - 1)
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
    return (entry & keep) | (any_of & (pte.NX | pte.KEY | pte.LARGE | pte.HUGE))


@inlined
def _guest_rights(cpu: Cpu, level: int) -> int:
    """The rights that the last walk found at ``level``: W, U and NX of the guest's entry, all where it has none; and
    its protection key, where it maps the page.
    """
    mapped_at = cpu.walk_level
    if level < mapped_at:
        return _RW  # inside a large page
    takes = _ENTRIES[cpu.mode, level, _TAKES]
    rights = (level_entry(cpu, level) & takes) | (_RW & ~takes)
    if level == mapped_at:
        rights |= cpu.walk_key << pte.KEY_SHIFT
        if not cpu.walk_dirty:
            rights &= ~pte.W
    return rights


@outlined("qqqq")
def fill(cpu_at: int, gva: int, frame_entry: int) -> int:
    """Make the shadow entries for the page that the last successful walk found.

    Args:
        gva: within the page, the walk's gva.
        frame_entry: the P2M entry of the page's gfn; for a hole the void frame's.

    Returns:
        The leaf entry, 0 when the DMM does not let the page be read.
    """
    cpu = cpu_record(cpu_at)
    vm = vm_of(cpu)
    if cpu.root_mfn == NONE or not has_room(cpu):
        select_root(cpu.at, 1)
    mode = cpu.mode
    mapped_at = cpu.walk_level  # guest level of the entry that maps the page, 0 without paging
    table = cpu.root_mfn - vm.shadow_first
    level = cpu.root_level
    while level > 1:
        below = level - 1
        number = table * ENTRIES + ((gva >> (12 + 9 * below)) & 511)
        at = vm.shadow_host + number * 8
        entry = load64(at)
        if entry & pte.P:
            child = ((entry & pte.FRAME) >> 12) - vm.shadow_first
            store32(vm.shadow_writes_at + child * 4, 0)
        else:
            form = FORMAT_DIRECT if mapped_at >= level else _ENTRIES[mode, level, _FORMAT]
            if form == FORMAT_DIRECT:  # maps consecutive gfns
                gfn = (cpu.walk_gpa >> (12 + 9 * below)) << (9 * below)
                part = 0
            else:
                gfn = level_table(cpu, below) >> 12
                part = gva >> _ENTRIES[mode, level, _SHIFT] & _ENTRIES[mode, level, _MASK]
            child = find_or_create(cpu, gfn, role(below, form, part))
            # making a table traps its frame, which zaps nothing on this path: entries of tables are not leaves
            rmap.add(cpu, number, vm.shadow_first + child)
        rights = _guest_rights(cpu, level)
        if mapped_at == level:
            rights |= pte.LARGE if level == 2 else pte.HUGE
        store64(at, (vm.shadow_first + child) << 12 | pte.P | pte.A | rights)
        table = child
        level = below

    number = table * ENTRIES + ((gva >> 12) & 511)
    at = vm.shadow_host + number * 8
    rights = _guest_rights(cpu, 1)
    mfn = frame_entry >> 12
    if not frame_entry & _READ:
        zap_entry(cpu, number)  # an x86 entry cannot withhold reading: every access has to ask
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
        zap_entry(cpu, number)
        before = 0
    if not before & pte.P:
        rmap.add(cpu, number, mfn)
    store64(at, entry)
    eventlog.record(cpu, _SHADOW_FILL, gva & ~PAGE_MASK, cpu.walk_gpa >> 12, mfn, entry, 0)
    return entry


# --- propagation ------------------------------------------------------------------------------------------------


@inlined
def table_written(cpu: Cpu, gfn: int, offset: int, size: int) -> int:
    """The guest changed ``size`` bytes at ``offset`` of its table ``gfn``: drop the shadow entries made from them.

    Returns:
        How many entries were dropped.
    """
    vm = vm_of(cpu)
    zapped = 0
    flooded = False
    slot = load_link(bucket_of(cpu, gfn))
    while slot != NONE:
        if load64(vm.shadow_key_at + slot * 8) == gfn:
            what = load64(vm.shadow_role_at + slot * 8)
            level, form, part = what & 15, what >> 4 & 15, what >> 8
            if form == FORMAT_64:
                zapped += zap_entry(cpu, slot * ENTRIES + (offset >> 3))
            elif form == FORMAT_32:
                for index in range(offset >> 2, (offset + size - 1 >> 2) + 1):
                    if level == 1:
                        if index >> 9 == part:
                            zapped += zap_entry(cpu, slot * ENTRIES + (index & 511))
                    elif index >> 8 == part:
                        zapped += zap_entry(cpu, slot * ENTRIES + (index & 255) * 2)
                        zapped += zap_entry(cpu, slot * ENTRIES + (index & 255) * 2 + 1)
            if form == FORMAT_64 or form == FORMAT_32:
                writes = load32(vm.shadow_writes_at + slot * 4) + 1
                store32(vm.shadow_writes_at + slot * 4, writes)
                if writes >= FLOOD_LIMIT and not is_root(cpu, gfn, slot):
                    flooded = True
        slot = load_link(vm.shadow_link_at + slot * 4)
    if flooded:
        unshadow(cpu.at, gfn)
    return zapped


@outlined("qqqq")
def forget_uses(cpu_at: int, gfn: int, mfn: int) -> int:
    """:func:`forget_gfn` for the native plane."""
    cpu = cpu_record(cpu_at)
    if has_shadow(cpu, gfn):
        unshadow(cpu.at, gfn)
    return zap_frame(cpu, mfn)


@compiled
def forget_gfn(cpu_at: int, gfn: int, mfn: int) -> int:
    """The DMM is about to take ``mfn`` from behind ``gfn`` or rights on it: drop everything derived from either.

    Returns:
        The number of shadow entries that led to the frame.
    """
    return forget_uses(cpu_at, gfn, mfn)


@compiled
def forget_everything(cpu_at: int) -> None:
    """Drop every shadow table of a VM."""
    unshadow_all(cpu_at)


@compiled
def lookup_from_python(cpu_at: int, gva: int) -> int:
    """:func:`lookup` for tools; 0 where no root is selected."""
    cpu = cpu_record(cpu_at)
    return lookup(cpu, gva)
