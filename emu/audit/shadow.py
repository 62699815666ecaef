"""Proof that the shadow tables say what the guest's tables and the P2M say.

Nothing here calls the code that it checks: what every shadow entry ought to be is derived again, in plain NumPy, from
the guest's own table entries, read through the P2M.  Only slots in use are looked at, all their entries at once.

Tables made for a paging mode that the guest has left are dropped at its next TLB miss.  Until then they are checked
against the mode that they were made for (``native.shadow_format``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from emu.addr import NO_FRAME
from emu.dmm.space import Space
from emu.engine.cpustate import CR4_PSE, EFER_NXE
from emu.engine.ram import FRAME_TABLE
from emu.engine.state import Cpu, Vm
from emu.errors import EmuError
from emu.mmu import pte
from emu.mmu.paging import ShadowPaging
from emu.mmu.shadowtables import ENTRIES, FORMAT_32, FORMAT_64, FORMAT_DIRECT, FORMAT_PDPTES, FORMAT_ROOT_32
from emu.mmu.walk import (
    ACCESSED,
    DIRTY,
    HOLE,
    MMIO,
    MODE_4LEVEL,
    MODE_5LEVEL,
    MODE_32,
    MODE_NONE,
    MODE_PAE,
    RAM,
    SHARED,
)

Array = np.ndarray[Any, Any]

_RIGHT_READ, _RIGHT_WRITE, _RIGHT_EXECUTE = 1, 2, 4  # Intent
_RESIDENT = (RAM, SHARED)
_NO_MEMORY = (HOLE, MMIO)
_FORMATS = {
    MODE_NONE: (), MODE_32: (FORMAT_32, FORMAT_ROOT_32), MODE_PAE: (FORMAT_64, FORMAT_PDPTES),
    MODE_4LEVEL: (FORMAT_64,), MODE_5LEVEL: (FORMAT_64,),
}  # fmt: skip
_MODE = 7  # in what tables were made for
_MARKS = pte.LARGE | pte.HUGE
_KNOWN = (  # bits of a shadow entry
    pte.FRAME | pte.P | pte.W | pte.U | pte.A | pte.D | pte.TRAP | _MARKS | pte.KEY | pte.NX
)
_ALL_GRANTED = pte.P | pte.W | pte.U | pte.A | pte.D


class AuditFailure(EmuError):
    """Two structures contradict each other.

    Attributes:
        vm: name of the VM.
        where: the structure, in a word or two.
        what: the contradiction.
    """

    def __init__(self, vm: str, where: str, what: str) -> None:
        super().__init__(f"{vm}: {where}: {what}")
        self.vm = vm
        self.where = where
        self.what = what


@dataclass(frozen=True)
class _Entries:
    """Present shadow entries and what their tables are: int64 arrays of one length."""

    space: Space
    native: Vm  # the VM's shared record
    slot: Array
    index: Array
    value: Array
    gfn: Array  # of the guest table; for a direct table the first gfn that it maps
    level: Array
    form: Array
    part: Array
    table: Array  # mfn of the guest table

    def where(self, chosen: Array) -> _Entries:
        arrays = (self.slot, self.index, self.value, self.gfn, self.level, self.form, self.part, self.table)
        return _Entries(self.space, self.native, *(array[chosen] for array in arrays))

    @property
    def mfn(self) -> Array:
        """The frames that they lead to."""
        return (self.value & pte.FRAME) >> 12

    @property
    def number(self) -> Array:
        return self.slot * ENTRIES + self.index

    def refuse(self, wrong: Array, what: str, where: str = "shadow entry") -> None:
        """Fail when any element of ``wrong`` is true, naming the first."""
        if wrong.any():
            at = int(np.argmax(wrong))
            raise AuditFailure(
                self.space.name,
                where,
                f"{what}; entry {int(self.value[at]) & (1 << 64) - 1:#x} at index {self.index[at]} of slot "
                f"{self.slot[at]}, level {self.level[at]} table of gfn {self.gfn[at]:#x}",
            )


def audit_shadow(space: Space, native: Vm) -> None:
    """Check a VM's shadow tables, if it has any.

    Args:
        space: the VM's memory.
        native: its shared record (:mod:`emu.engine.state`).

    Raises:
        AuditFailure: with ``where`` one of "shadow tables", "rmap" and "shadow entry".
    """
    paging = space.paging
    if isinstance(paging, ShadowPaging):
        slots = np.flatnonzero(paging.key != NO_FRAME)
        _check_slots(space, native, paging, slots)
        _check_roles(space, native, paging, slots)
        _check_roots(space, paging)
        entries = _present_entries(space, native, paging, slots)
        _check_rmap(paging, entries)
        _check_entries(paging, entries)


def shadowed_gfns(paging: ShadowPaging) -> Array:
    """The gfns of the guest tables that have a shadow, whose frames must be write-trapped."""
    form = paging.role >> 4 & 15
    used = paging.key != NO_FRAME
    return np.unique(paging.key[used & ((form == FORMAT_64) | (form == FORMAT_32))])


# --- the tables as objects --------------------------------------------------------------------------------------


def _check_slots(space: Space, native: Vm, paging: ShadowPaging, slots: Array) -> None:
    """Every slot is free or in its bucket, once."""

    def fail(what: str) -> AuditFailure:
        return AuditFailure(space.name, "shadow tables", what)

    if int(native.shadow_used) != len(slots) + len(paging.retired):
        what = f"{native.shadow_used} counted as used, {len(slots)} have a key and {len(paging.retired)} are retired"
        raise fail(what)
    link = paging.link.tolist()
    used = set(slots.tolist())
    free: set[int] = set()
    slot = int(native.shadow_free)
    while slot != NO_FRAME:
        if not 0 <= slot < paging.tables or slot in free or slot in used:
            raise fail(f"slot {slot} in the free list is used, listed twice, or none at all")
        free.add(slot)
        slot = link[slot]
    if not free.isdisjoint(paging.retired) or not used.isdisjoint(paging.retired):
        raise fail("a slot that is retired is used or in the free list")
    if len(free) + len(used) + len(paging.retired) != paging.tables:
        raise fail(f"{paging.tables - len(free) - len(used)} slots are neither used nor in the free list")

    found: set[int] = set()
    for bucket in np.flatnonzero(paging.bucket != NO_FRAME).tolist():
        slot = int(paging.bucket[bucket])
        while slot != NO_FRAME:
            if slot not in used or slot in found:
                raise fail(f"slot {slot} in bucket {bucket} is free or listed twice")
            if (int(paging.key[slot]) * 40503 >> 4) & (len(paging.bucket) - 1) != bucket:
                raise fail(f"slot {slot} of gfn {paging.key[slot]:#x} is in the wrong bucket {bucket}")
            found.add(slot)
            slot = link[slot]
    if found != used:
        raise fail(f"slot {min(used - found)} is used and in no bucket")


def _check_roles(space: Space, native: Vm, paging: ShadowPaging, slots: Array) -> None:
    """Every table is one that its paging mode has, and the only one of its gfn in its role."""
    key, role = paging.key[slots], paging.role[slots]
    level, form, part = role & 15, role >> 4 & 15, role >> 8
    mode = int(native.shadow_format) & _MODE
    if mode >= MODE_4LEVEL:
        fits = (level >= 1) & (level <= (4 if mode == MODE_4LEVEL else 5)) & (part == 0)
    elif mode == MODE_PAE:
        root = form == FORMAT_PDPTES
        fits = (level >= 1) & (level <= 3) & (root == (level == 3)) & (part >= 0)
        fits &= part < np.where(root, int(native.cpu_count) << 7, 1)
    else:
        fits = (level >= 1) & (level <= 2) & (part >= 0) & (part < level * 2)
        fits[form == FORMAT_ROOT_32] = (role == 3 | FORMAT_ROOT_32 << 4)[form == FORMAT_ROOT_32]
    fits &= np.isin(form, _FORMATS[mode])
    direct = form == FORMAT_DIRECT
    fits |= direct & (level >= 1) & (level <= 3) & (part == 0) & (key & ((1 << 9 * level) - 1) == 0)
    fits &= key >= 0
    if not fits.all():
        slot = int(slots[np.argmin(fits)])
        what = f"slot {slot}, gfn {paging.key[slot]:#x}, has role {paging.role[slot]:#x}, unknown in mode {mode}"
        raise AuditFailure(space.name, "shadow tables", what)
    if len(set(zip(key.tolist(), role.tolist(), strict=True))) != len(slots):
        raise AuditFailure(space.name, "shadow tables", "two tables of one gfn in the same role")


def _check_roots(space: Space, paging: ShadowPaging) -> None:
    """The root selected for each processor, if there is one, is the table that CR3 and the paging mode ask for."""
    for cpu in paging.processors():
        if cpu.root_mfn != NO_FRAME:
            _check_root(space, cpu, paging)


def _check_root(space: Space, native: Cpu, paging: ShadowPaging) -> None:
    slot = int(native.root_mfn) - paging.first
    mode, cr3 = int(native.mode), int(native.cr3)
    key, level, form, part = 0, 3, FORMAT_DIRECT, 0
    if mode >= MODE_4LEVEL:
        key, level, form = (cr3 & pte.FRAME) >> 12, 4 if mode == MODE_4LEVEL else 5, FORMAT_64
    elif mode == MODE_PAE:
        key, form, part = (cr3 & 0xFFFF_F000) >> 12, FORMAT_PDPTES, cr3 >> 5 & 127 | int(native.index) << 7
    elif mode == MODE_32:
        key, form = (cr3 & 0xFFFF_F000) >> 12, FORMAT_ROOT_32
    wanted = (key, level | form << 4 | part << 8)
    if (
        not 0 <= slot < paging.tables
        or (int(paging.key[slot]), int(paging.role[slot])) != wanted
        or int(native.root_level) != level
    ):
        what = f"the root, slot {slot}, is not the level {level} table of gfn {key:#x} that CR3 {cr3:#x} selects"
        raise AuditFailure(space.name, "shadow tables", what)


# --- reverse map ------------------------------------------------------------------------------------------------


def _present_entries(space: Space, native: Vm, paging: ShadowPaging, slots: Array) -> _Entries:
    tables = paging.entries.reshape(paging.tables, ENTRIES)[slots]
    which, index = np.nonzero(tables & pte.P)
    key, role = paging.key[slots], paging.role[slots]
    behind = _p2m_entries(space, key)
    mfn = np.where(np.isin(behind >> 4 & 15, _RESIDENT), behind >> 12, NO_FRAME)
    value = tables[which, index]
    key, role, mfn = key[which], role[which], mfn[which]
    return _Entries(space, native, slots[which], index, value, key, role & 15, role >> 4 & 15, role >> 8, mfn)


def _p2m_entries(space: Space, gfns: Array) -> Array:
    """The P2M entries of ``gfns``; the void frame, with all rights, stands behind those without memory."""
    hole = space.memory.void_mfn << 12 | RAM << 4 | ACCESSED | DIRTY | _RIGHT_READ | _RIGHT_WRITE | _RIGHT_EXECUTE
    inside = gfns < len(space.p2m)
    entries = space.p2m.entries[np.where(inside, gfns, 0)]
    return np.where(inside & ~np.isin(entries >> 4 & 15, _NO_MEMORY), entries, hole)


def _check_rmap(paging: ShadowPaging, entries: _Entries) -> None:
    """The list of every frame holds exactly the present entries that lead to it, each once."""

    def refuse(wrong: Array, what: str) -> None:
        entries.refuse(wrong, what, "rmap")

    number, mfn = entries.number, entries.mfn
    refuse(mfn >= len(paging.rmap.head), "an entry leads beyond machine memory")
    following, before = paging.rmap.next[number].astype(np.int64), paging.rmap.prev[number].astype(np.int64)
    first = before == NO_FRAME
    refuse(first & (paging.rmap.head[mfn] - 1 != number), "an entry begins a list, the head of its frame is another")
    heads, begins = np.count_nonzero(paging.rmap.head), np.count_nonzero(first)
    if heads != begins:
        raise AuditFailure(entries.space.name, "rmap", f"{heads} frames have a list, {begins} entries begin one")

    def position(of: Array) -> Array:
        """Where ``of``, entry numbers, are in ``number``, which ascends; -1 for those that are not."""
        at = np.minimum(np.searchsorted(number, of), len(number) - 1)
        return np.where(number[at] == of, at, -1) if len(number) else np.full(len(of), -1)

    everywhere = np.arange(len(number))
    for link, back, name in ((before, following, "previous"), (following, before, "next")):
        linked = link != NO_FRAME
        at = position(link[linked])
        wrong = np.zeros(len(number), bool)
        wrong[linked] = (at < 0) | (mfn[at] != mfn[linked]) | (back[at] != number[linked])
        refuse(wrong, f"the {name} node of an entry is no present entry of the same frame that links back")
    up = everywhere.copy()
    up[~first] = position(before[~first])
    for _ in range(len(number).bit_length()):
        if first[up].all():
            break
        up = up[up]
    refuse(~first[up], "the list of a frame is closed to a ring that its head does not lead to")


# --- what the entries say ---------------------------------------------------------------------------------------


def _pdptes(paging: ShadowPaging, roots: _Entries) -> Array:
    """The PDPTEs, which have no rights, behind the entries of PAE roots.

    Those that no processor runs on are compared with the registers when they are selected; until then they may say what
    they like.
    """
    values = paging.key[roots.mfn - paging.first] << 12 | pte.P
    for cpu in paging.processors():
        registers = np.array([int(cpu.pdpte0), int(cpu.pdpte1), int(cpu.pdpte2), int(cpu.pdpte3)], np.int64)
        selected = (roots.slot == int(cpu.root_mfn) - paging.first) & (int(cpu.pdptes_for) == int(cpu.cr3))
        values = np.where(selected, registers[np.minimum(roots.index, 3)], values)
    return values & (pte.FRAME | pte.P) | (_ALL_GRANTED & ~pte.P)


def _guest_entries(paging: ShadowPaging, entries: _Entries) -> Array:
    """The guest's entry behind each shadow entry; where no guest entry limits anything, one that grants all."""
    pages = entries.space.memory.pages
    guest = np.full(len(entries.slot), _ALL_GRANTED, np.int64)

    wide = entries.form == FORMAT_64
    e = entries.where(wide)
    guest[wide] = pages.view(np.int64)[e.table, e.index]

    roots = entries.form == FORMAT_PDPTES
    entries.refuse(roots & (entries.index >= 4), "a PAE root has four entries")
    guest[roots] = _pdptes(paging, entries.where(roots))

    narrow = entries.form == FORMAT_32
    e = entries.where(narrow)
    index = np.where(e.level == 1, e.part * 512 + e.index, e.part * 256 + (e.index >> 1))
    guest[narrow] = pages.view(np.uint32)[e.table, index]
    return guest


def _check_entries(paging: ShadowPaging, entries: _Entries) -> None:
    native = entries.native
    made_for = int(native.shadow_format)
    mode = made_for & _MODE
    from_guest = (entries.form == FORMAT_64) | (entries.form == FORMAT_32)
    entries.refuse(entries.value & ~_KNOWN != 0, "unknown bits")
    entries.refuse(from_guest & (entries.table == NO_FRAME), "made from a guest table that is not resident")
    guest = _guest_entries(paging, entries)
    entries.refuse(guest & pte.P == 0, "the guest's entry is not present")
    entries.refuse(guest & pte.A == 0, "the guest's entry has its accessed bit clear")
    large = from_guest & (entries.level > 1) & (guest & pte.PS != 0)
    if mode == MODE_32 and not made_for & CR4_PSE:
        large[:] = False
    _check_reserved(entries, guest, large, mode, made_for)
    maps = large | (from_guest & (entries.level == 1))
    key = np.where(maps, guest & pte.KEY, 0) if mode >= MODE_4LEVEL else 0
    entries.refuse(entries.value & pte.KEY != key, "the protection key is not the guest's")

    leaf = entries.level == 1
    target = _target_gfns(entries, guest, large)
    entries.where(~leaf).refuse(entries.value[~leaf] & pte.TRAP != 0, "TRAP in an entry that leads to a table")
    _check_leaves(entries.where(leaf), guest[leaf], target[leaf])
    _check_branches(paging, entries.where(~leaf), guest[~leaf], target[~leaf], large[~leaf])


def _check_reserved(entries: _Entries, guest: Array, large: Array, mode: int, made_for: int) -> None:
    wide = entries.form == FORMAT_64
    reserved = np.zeros(len(guest), np.int64)
    reserved[wide] = pte.RESERVED_HIGH | (pte.RESERVED_PAE if mode == MODE_PAE else 0)
    if not made_for & EFER_NXE:
        reserved[wide] |= pte.NX
    reserved[wide & (entries.level >= 4)] |= pte.PS
    big = wide & large
    reserved[big] |= ((1 << 12 + 9 * (entries.level[big] - 1)) - 1) & ~0x1FFF
    reserved[~wide & large] |= pte.PDE32_RESERVED
    entries.refuse(guest & reserved != 0, "the guest's entry has a reserved bit set")


def _target_gfns(entries: _Entries, guest: Array, large: Array) -> Array:
    """Leaves: the gfn that they map.  Others: the gfn of the table that they lead to."""
    level, form, index = entries.level, entries.form, entries.index
    wide_frame = (guest & pte.FRAME) >> 12
    form = np.where(form == FORMAT_PDPTES, FORMAT_64, form)
    narrow_frame = (guest & 0xFFFF_F000) >> 12
    target = np.where(form == FORMAT_64, wide_frame, narrow_frame)
    span = 1 << 9 * (level - 1)  # gfns that one entry maps
    target = np.where(form == FORMAT_DIRECT, entries.gfn + index * span, target)
    target = np.where(form == FORMAT_ROOT_32, entries.gfn, target)
    target = np.where(large & (form == FORMAT_64), wide_frame & -span, target)
    big = ((guest & 0xFFC0_0000) | (guest & pte.PDE32_HIGH) << 19) >> 12
    target = np.where(large & (form == FORMAT_32), big + (index & 1) * 512, target)
    return np.where(entries.level == 1, target & (int(entries.native.a20_mask) >> 12), target)


def _check_leaves(leaves: _Entries, guest: Array, gfn: Array) -> None:
    """A leaf maps the frame of the guest's gfn with the guest's U/S, and never with more than guest and DMM grant.

    It may grant less: rights that come back show in the shadow when they are first used.
    """
    space = leaves.space
    behind = _p2m_entries(space, gfn)
    value = leaves.value
    leaves.refuse(~np.isin(behind >> 4 & 15, _RESIDENT), "maps a gfn that has no frame")
    leaves.refuse(leaves.mfn != behind >> 12, "maps another frame than the P2M")
    leaves.refuse(value & _MARKS != 0, "a leaf with the mark for a large guest page")
    leaves.refuse((value ^ guest) & pte.U != 0, "U/S is not the guest's")
    leaves.refuse(behind & _RIGHT_READ == 0, "readable without the DMM's right to read")
    no_fetch = (guest & pte.NX != 0) | (behind & _RIGHT_EXECUTE == 0)
    leaves.refuse((value & pte.NX == 0) & no_fetch, "NX is clear, though the guest or the DMM forbids fetches")
    writable, trapped = value & pte.W != 0, value & pte.TRAP != 0
    from_guest = leaves.form != FORMAT_DIRECT
    granted = writable | trapped
    leaves.refuse(granted & (guest & pte.W == 0), "writable, the guest's entry is not")
    leaves.refuse(granted & from_guest & (guest & pte.D == 0), "writable, the guest's entry has its dirty bit clear")
    leaves.refuse(granted & (behind & _RIGHT_WRITE == 0), "writable without the DMM's right to write")
    leaves.refuse(behind & ACCESSED == 0, "present, the accessed bit in the P2M is clear")
    leaves.refuse(granted & (behind & DIRTY == 0), "writable, the dirty bit in the P2M is clear")
    table = space.paging.flags[leaves.mfn] & FRAME_TABLE != 0
    leaves.refuse(writable & table, "writable, the frame holds a table")
    leaves.refuse(trapped & ~table, "trapped, the frame holds no table")


def _check_branches(paging: ShadowPaging, branches: _Entries, guest: Array, gfn: Array, large: Array) -> None:
    """An entry above a leaf leads to the table of the right gfn in the right role, with the guest's rights."""
    slot = branches.mfn - paging.first
    branches.refuse((slot < 0) | (slot >= paging.tables), "leads to no shadow table")
    from_32 = branches.form == FORMAT_32
    below = branches.level - 1
    form, part = branches.form.copy(), np.zeros(len(slot), np.int64)
    form[large] = FORMAT_DIRECT
    part[from_32 & ~large] = branches.index[from_32 & ~large] & 1
    form[branches.form == FORMAT_PDPTES] = FORMAT_64
    root = branches.form == FORMAT_ROOT_32
    form[root], part[root] = FORMAT_32, branches.index[root]
    branches.refuse(root & (branches.index >= 4), "a 32-bit root has four entries")
    branches.refuse(paging.key[slot] == NO_FRAME, "leads to a free slot")
    branches.refuse(paging.key[slot] != gfn, "leads to the table of another gfn")
    branches.refuse(paging.role[slot] != (below | form << 4 | part << 8), "leads to a table in another role")
    value = branches.value
    branches.refuse((value ^ guest) & (pte.U | pte.NX) != 0, "U/S or NX is not the guest's")
    branches.refuse(~large & ((value ^ guest) & pte.W != 0), "R/W is not the guest's")
    marks = np.where(large, np.where(branches.level == 2, pte.LARGE, pte.HUGE), 0)
    branches.refuse(value & _MARKS != marks, "the mark for a large guest page is wrong")
    dirty = guest & (pte.W | pte.D) == pte.W | pte.D
    branches.refuse(large & (value & pte.W != 0) & ~dirty, "writable, the guest's large page is read-only or not dirty")
