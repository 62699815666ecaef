"""The book of shadow tables: which there are, what each was made from, how one is made, emptied and dropped.

A shadow table mirrors one guest table (or half or a quarter of a 32-bit one, whose entries are half as wide), so that a
guest table shared by several roots has one shadow, and a write into the guest table finds every entry made from it.
What it mirrors is its gfn and its role (:func:`role`); it is found by both, through a bucket of its gfn.

Guest pages that hold tables are write-trapped: their leaves have R/W clear and the software bit ``pte.TRAP`` set, and
stores to them go through the trapped alias of machine memory (:mod:`emu.addr`).

Every entry made or dropped is reported to the reverse map (:mod:`emu.mmu.rmap`).
"""

from __future__ import annotations

from emu.engine import eventlog
from emu.engine.cpustate import CR3
from emu.engine.engine import flush_all_tlbs
from emu.engine.events import ShadowZap
from emu.engine.native import inlined, load8, load64, outlined, store8, store32, store64
from emu.engine.ram import FRAME_TABLE
from emu.engine.state import Cpu, cpu_number, cpu_record, vm_of
from emu.mmu import pte, rmap
from emu.mmu.rmap import NONE, load_link
from emu.mmu.walk import RAM, SHARED

_SHADOW_ZAP = ShadowZap.KIND

# how a shadow table was made
FORMAT_64 = 0  # from a guest table of 64-bit entries
FORMAT_32 = 1  # from a part of a guest table of 32-bit entries
FORMAT_DIRECT = 2  # from no table: maps consecutive gfns, for large pages and for guests without paging
FORMAT_ROOT_32 = 3  # the four-entry root above the quarters of a 32-bit page directory
FORMAT_PDPTES = 4  # from the four PDPTE registers of a processor; its gfn is where they were loaded from

ENTRIES = 512
_LEVELS = 5  # most tables that one fill can need
MIN_TABLES = 2 * _LEVELS  # fewest tables that serve any guest


@inlined
def role(level: int, form: int, part: int) -> int:
    """What else, beside the gfn, tells shadow tables apart: level, format, and which part of the guest table."""
    return level | form << 4 | part << 8


@inlined
def has_room(cpu: Cpu) -> bool:
    """Whether there are free tables enough for any fill."""
    vm = vm_of(cpu)
    return vm.shadow_used <= vm.shadow_slots - _LEVELS


@inlined
def bucket_of(cpu: Cpu, gfn: int) -> int:
    """The host address of the link to the first table in the bucket of ``gfn``."""
    vm = vm_of(cpu)
    return vm.shadow_bucket_at + ((gfn * 40503 >> 4) & vm.shadow_bucket_mask) * 4


# --- dropping entries --------------------------------------------------------------------------------------------


@outlined("qqq")
def _zap_entry(cpu_at: int, number: int) -> int:
    cpu = cpu_record(cpu_at)
    vm = vm_of(cpu)
    at = vm.shadow_host + number * 8
    entry = load64(at)
    if not entry & pte.P:
        return 0
    store64(at, 0)
    mfn = (entry & pte.FRAME) >> 12
    rmap.remove(cpu, number, mfn)
    eventlog.record(cpu, _SHADOW_ZAP, mfn, entry, vm.shadow_first + number // ENTRIES, number % ENTRIES, 0)
    return 1


@inlined
def zap_entry(cpu: Cpu, number: int) -> int:
    """Drop a shadow entry; returns 1 when it was present."""
    return _zap_entry(cpu.at, number)


@inlined
def zap_frame(cpu: Cpu, mfn: int) -> int:
    """Drop every shadow entry that leads to ``mfn``; returns how many there were."""
    zapped = 0
    number = rmap.first(cpu, mfn)
    while number != NONE:
        zapped += zap_entry(cpu, number)
        number = rmap.first(cpu, mfn)
    return zapped


# --- shadow tables ----------------------------------------------------------------------------------------------


@inlined
def find(cpu: Cpu, gfn: int, wanted: int) -> int:
    """The slot of the shadow table of ``gfn`` in role ``wanted``, or NONE."""
    vm = vm_of(cpu)
    slot = load_link(bucket_of(cpu, gfn))
    while slot != NONE:
        if load64(vm.shadow_key_at + slot * 8) == gfn and load64(vm.shadow_role_at + slot * 8) == wanted:
            return slot
        slot = load_link(vm.shadow_link_at + slot * 4)
    return NONE


@inlined
def has_shadow(cpu: Cpu, gfn: int) -> bool:
    """Whether ``gfn`` is a guest table with a shadow."""
    vm = vm_of(cpu)
    slot = load_link(bucket_of(cpu, gfn))
    while slot != NONE:
        if load64(vm.shadow_key_at + slot * 8) == gfn:
            form = load64(vm.shadow_role_at + slot * 8) >> 4 & 15
            if form == FORMAT_64 or form == FORMAT_32:
                return True
        slot = load_link(vm.shadow_link_at + slot * 4)
    return False


@inlined
def _frame_of(cpu: Cpu, gfn: int) -> int:
    """The frame behind a resident gfn, NONE for others."""
    vm = vm_of(cpu)
    if gfn >= vm.p2m_size:
        return NONE
    entry = load64(vm.p2m_at + gfn * 8)
    kind = entry >> 4 & 15
    return entry >> 12 if kind == RAM or kind == SHARED else NONE


@outlined("vqq")
def trap_frame(cpu_at: int, mfn: int) -> None:
    """Make the guest's stores to ``mfn`` reach the write trap from now on."""
    cpu = cpu_record(cpu_at)
    vm = vm_of(cpu)
    flags = load8(vm.frame_flags_at + mfn)
    if flags & FRAME_TABLE:
        return
    store8(vm.frame_flags_at + mfn, flags | FRAME_TABLE)
    number = rmap.first(cpu, mfn)
    while number != NONE:
        at = vm.shadow_host + number * 8
        entry = load64(at)
        if entry & pte.W:
            store64(at, (entry & ~pte.W) | pte.TRAP)
        number = rmap.following(cpu, number)
    flush_all_tlbs(vm)  # the engines may hold writable entries


@inlined
def untrap_frame(cpu: Cpu, mfn: int) -> None:
    """``mfn`` holds no guest table any more."""
    vm = vm_of(cpu)
    flags = load8(vm.frame_flags_at + mfn)
    if flags & FRAME_TABLE:
        store8(vm.frame_flags_at + mfn, flags & ~FRAME_TABLE)
        zap_frame(cpu, mfn)  # they come back without the trap


@inlined
def _create(cpu: Cpu, gfn: int, wanted: int) -> int:
    """A new, empty shadow table; a free slot must exist."""
    vm = vm_of(cpu)
    slot = vm.shadow_free
    vm.shadow_free = load_link(vm.shadow_link_at + slot * 4)
    vm.shadow_used += 1
    store64(vm.shadow_key_at + slot * 8, gfn)
    store64(vm.shadow_role_at + slot * 8, wanted)
    store32(vm.shadow_writes_at + slot * 4, 0)
    bucket = bucket_of(cpu, gfn)
    store32(vm.shadow_link_at + slot * 4, load_link(bucket))
    store32(bucket, slot)
    host = vm.shadow_host + slot * 4096
    for index in range(ENTRIES):
        store64(host + index * 8, 0)
    form = wanted >> 4 & 15
    if form == FORMAT_64 or form == FORMAT_32:
        mfn = _frame_of(cpu, gfn)
        if mfn != NONE:
            trap_frame(cpu.at, mfn)
    return slot


@inlined
def find_or_create(cpu: Cpu, gfn: int, wanted: int) -> int:
    """The slot of the shadow table of ``gfn`` in role ``wanted``, made where there is none; a free slot must exist."""
    slot = find(cpu, gfn, wanted)
    if slot == NONE:
        slot = _create(cpu, gfn, wanted)
    store32(vm_of(cpu).shadow_writes_at + slot * 4, 0)
    return slot


@outlined("vqq")
def _destroy(cpu_at: int, slot: int) -> None:
    """Drop a shadow table: its entries, the entries that lead to it, its place in the buckets."""
    cpu = cpu_record(cpu_at)
    vm = vm_of(cpu)
    for index in range(ENTRIES):
        zap_entry(cpu, slot * ENTRIES + index)
    zap_frame(cpu, vm.shadow_first + slot)
    at = bucket_of(cpu, load64(vm.shadow_key_at + slot * 8))
    while load_link(at) != slot:
        at = vm.shadow_link_at + load_link(at) * 4
    store32(at, load_link(vm.shadow_link_at + slot * 4))
    store64(vm.shadow_key_at + slot * 8, NONE)
    store32(vm.shadow_link_at + slot * 4, vm.shadow_free)
    vm.shadow_free = slot
    vm.shadow_used -= 1
    for index in range(vm.cpu_count):
        other = cpu_number(vm, index)
        if other.root_mfn == vm.shadow_first + slot:
            other.root_mfn = NONE


@outlined("vqq")
def unshadow(cpu_at: int, gfn: int) -> None:
    """Drop every shadow table made from the guest table ``gfn`` and stop trapping its writes."""
    cpu = cpu_record(cpu_at)
    vm = vm_of(cpu)
    found = True
    while found:
        found = False
        slot = load_link(bucket_of(cpu, gfn))
        while slot != NONE:
            following = load_link(vm.shadow_link_at + slot * 4)
            form = load64(vm.shadow_role_at + slot * 8) >> 4 & 15
            if load64(vm.shadow_key_at + slot * 8) == gfn and form != FORMAT_DIRECT:
                _destroy(cpu.at, slot)
                found = True
                break
            slot = following
    mfn = _frame_of(cpu, gfn)
    if mfn != NONE:
        untrap_frame(cpu, mfn)


@outlined("vq")
def unshadow_all(cpu_at: int) -> None:
    """Drop every shadow table.  The engine's TLB may keep what it has: nothing that it holds becomes wrong."""
    cpu = cpu_record(cpu_at)
    vm = vm_of(cpu)
    for slot in range(vm.shadow_slots):
        gfn = load64(vm.shadow_key_at + slot * 8)
        if gfn != NONE:
            _destroy(cpu.at, slot)
            mfn = _frame_of(cpu, gfn)
            if mfn != NONE:
                untrap_frame(cpu, mfn)
    for index in range(vm.cpu_count):
        cpu_number(vm, index).root_mfn = NONE


@inlined
def is_root(cpu: Cpu, gfn: int, slot: int) -> bool:
    """Whether a processor of the VM runs on shadow table ``slot``, or on the guest table ``gfn``."""
    vm = vm_of(cpu)
    for index in range(vm.cpu_count):
        other = cpu_number(vm, index)
        if other.root_mfn == vm.shadow_first + slot or (load64(other.env + CR3) & pte.FRAME) >> 12 == gfn:
            return True
    return False
