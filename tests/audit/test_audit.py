"""The audit can fail: each kind of corruption, planted by hand, is found and named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest

from emu.addr import PAGE_SIZE
from emu.audit.audit import AuditFailure
from emu.dmm.p2m import ACCESSED, DIRTY, Intent, PageType
from emu.dmm.policies.demand import DemandPaging
from emu.engine.framestack import FrameStack
from emu.engine.ram import FRAME_CODE, FRAME_TABLE, Purpose
from emu.machine.machine import Machine
from emu.machine.vm import VirtualMachine
from emu.mmu import pte
from emu.mmu.paging import ShadowPaging
from emu.mmu.shadowtables import ENTRIES, FORMAT_64
from tests.dmm.stub import ALIASES, DATA, MODES, Stub

GFNS = 32
EVICTED, READ_ONLY, CLEAN, UNTOUCHED = DATA + 5, DATA + 6, DATA + 7, GFNS - 1
SHARED, SHARED_TOO, ONCE_EVICTED = DATA + 8, DATA + 9, DATA + 10  # the first two in both VMs, with one frame


class Keeper(DemandPaging):
    """Demand paging that also keeps what it evicts."""

    def attach(self, dmm) -> None:  # type: ignore[no-untyped-def]
        super().attach(dmm)
        self.kept: dict[int, bytes] = {}

    def keep(self, gfn: int, contents: bytes) -> None:
        self.kept[gfn] = contents

    def restore(self, gfn: int) -> bytes:
        return self.kept[gfn]

    def release(self, gfn: int) -> None:
        del self.kept[gfn]


@dataclass
class Setting:
    """A VM that has run for a while, beside another one on the same machine."""

    vm: VirtualMachine
    other: VirtualMachine
    stub: Stub
    keeper: Keeper

    @property
    def paging(self) -> ShadowPaging:
        assert isinstance(self.vm.paging, ShadowPaging)
        return self.vm.paging

    def mfn(self, gfn: int) -> int:
        return self.vm.p2m.mfn(gfn)

    def leaf(self, gfn: int) -> int:
        """The number of the shadow entry that maps ``gfn``."""
        number = int(self.paging.rmap.head[self.mfn(gfn)]) - 1
        assert number >= 0
        return number

    def slot(self, level: int) -> int:
        """The slot of the table at ``level``."""
        found = np.flatnonzero((self.paging.key >= 0) & (self.paging.role & 15 == level))
        return int(found[0])

    def branch(self, level: int) -> int:
        """The number of the first present entry of the table at ``level``."""
        slot = self.slot(level)
        table = self.paging.entries[slot * ENTRIES : (slot + 1) * ENTRIES]
        return slot * ENTRIES + int(np.flatnonzero(table & pte.P)[0])

    def guest_entry(self, gfn: int) -> np.ndarray:
        """The guest's leaf entry for gva page ``gfn``, to be changed behind everybody's back."""
        gpa = self.stub.entry_gpa(gfn)
        page = self.vm.machine.memory.pages[self.mfn(gpa // PAGE_SIZE)]
        return page[gpa % PAGE_SIZE : gpa % PAGE_SIZE + 8].view(np.int64)


def make(mmu: str, mode: str) -> Setting:
    machine = Machine((1 + 2 * 200 + 2 * GFNS + 10) * PAGE_SIZE)
    vm = machine.create_vm("first", GFNS * PAGE_SIZE, mmu=mmu)
    other = machine.create_vm("second", GFNS * PAGE_SIZE, (GFNS // 2) * PAGE_SIZE, mmu=mmu)
    for each in (other, vm):
        stub = Stub(each, mode)
        keeper = Keeper(stub.image)
        each.attach(keeper)
        for gfn in range(DATA, DATA + 6):
            stub.store(gfn * PAGE_SIZE + 100, gfn)
        if stub.tables:
            stub.map(ALIASES + 1, DATA)
            assert stub.load((ALIASES + 1) * PAGE_SIZE + 100) == DATA
        for gfn in (SHARED, SHARED_TOO, ONCE_EVICTED):
            stub.store(gfn * PAGE_SIZE + 200, 1)
    vm.dmm.evict(EVICTED, keeper)
    for sharer in (vm, other):
        for gfn in (SHARED, SHARED_TOO):
            assert sharer.dmm.share(gfn, vm.p2m.mfn(SHARED))
    stub.load(SHARED * PAGE_SIZE)
    vm.dmm.evict(ONCE_EVICTED, keeper)
    stub.load(ONCE_EVICTED * PAGE_SIZE)
    stub.load(READ_ONLY * PAGE_SIZE)
    vm.dmm.protect(READ_ONLY, Intent.READ)
    stub.load(READ_ONLY * PAGE_SIZE)
    stub.load(CLEAN * PAGE_SIZE)
    if stub.tables:
        stub.load(stub.tables[-1] * PAGE_SIZE)
    return Setting(vm, other, stub, keeper)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("mmu", ["shadow", "nested"])
def test_a_sound_machine_passes(mmu: str, mode: str) -> None:
    setting = make(mmu, mode)
    setting.vm.audit()
    setting.other.audit()


# --- what is broken, where the audit must find it, and a word that it must say ---

Corruption = Callable[[Setting], None]
CASES: list[tuple[str, str, Corruption]] = []


def case(where: str, word: str) -> Callable[[Corruption], Corruption]:
    def add(corrupt: Corruption) -> Corruption:
        CASES.append((where, word, corrupt))
        return corrupt

    return add


def one(mfn: int) -> FrameStack:
    return FrameStack(range(mfn, mfn + 1))



@case("machine frames", "free")
def spare_frame_is_also_free(s: Setting) -> None:
    s.vm.machine.memory.give_back(one(min(s.vm.pool.spare_frames())))


@case("machine frames", "twice")
def frame_is_free_twice(s: Setting) -> None:
    s.vm.machine.memory.give_back(one(min(s.vm.machine.memory.free_frames())))


@case("machine frames", "neither")
def frame_is_lost(s: Setting) -> None:
    s.vm.machine.memory._free.pop()


@case("machine frames", "VM 1")
def frame_is_in_two_pools(s: Setting) -> None:
    s.other.pool._spare.push(min(s.vm.pool.spare_frames()))


@case("machine frames", "shadow tables")
def shadow_table_is_also_free(s: Setting) -> None:
    s.vm.machine.memory.give_back(one(s.paging.first))


@case("machine frames", "no such frame")
def free_frame_beyond_memory(s: Setting) -> None:
    s.vm.machine.memory._free.push(s.vm.machine.memory.frames)


@case("machine", "another")
def vm_has_a_wrong_number(s: Setting) -> None:
    s.vm.dmm.space.index = 1


@case("P2M", "type")
def unknown_page_type(s: Setting) -> None:
    s.vm.p2m.entries[UNTOUCHED] = 15 << 4


@case("P2M", "origin")
def unknown_origin(s: Setting) -> None:
    s.vm.p2m.entries[DATA] |= 3 << 10


@case("P2M", "marks")
def accessed_without_a_frame(s: Setting) -> None:
    s.vm.p2m.entries[EVICTED] |= ACCESSED


@case("P2M", "writable")
def shared_page_is_writable(s: Setting) -> None:
    s.vm.p2m.entries[SHARED] |= Intent.WRITE


@case("P2M", "has other users")
def shared_page_counts_as_exclusive(s: Setting) -> None:
    s.vm.p2m.entries[SHARED] ^= (PageType.SHARED ^ PageType.RAM) << 4


@case("M2P", "in M2P only")
def shared_page_has_lost_its_frame(s: Setting) -> None:
    s.vm.p2m.entries[SHARED] = PageType.EMPTY << 4


@case("M2P", "in the P2M only")
def shared_page_is_no_user(s: Setting) -> None:
    del s.vm.machine.m2p._shared[s.mfn(SHARED)][0][SHARED_TOO]


@case("M2P", "no others")
def frame_with_one_user_counts_as_shared(s: Setting) -> None:
    mfn = s.mfn(SHARED)
    for gfn in (SHARED, SHARED_TOO):
        s.other.p2m.entries[gfn] = PageType.EMPTY << 4
        del s.vm.machine.m2p._shared[mfn][1][gfn]
    s.vm.p2m.entries[SHARED_TOO] = PageType.EMPTY << 4
    del s.vm.machine.m2p._shared[mfn][0][SHARED_TOO]


@case("M2P", "not the first")
def native_plane_sees_a_stranger(s: Setting) -> None:
    s.vm.machine.m2p.gfn[s.mfn(SHARED)] = UNTOUCHED


@case("P2M", "rights")
def rights_without_a_frame(s: Setting) -> None:
    s.vm.p2m.entries[EVICTED] |= Intent.READ


@case("P2M", "frame")
def frame_behind_an_evicted_page(s: Setting) -> None:
    s.vm.p2m.entries[EVICTED] |= 5 << 12


@case("P2M", "no such frame")
def frame_beyond_memory(s: Setting) -> None:
    s.vm.p2m.entries[DATA] += s.vm.machine.memory.frames << 12


@case("M2P", "behind mfn")
def p2m_leads_to_another_frame(s: Setting) -> None:
    s.vm.p2m.entries[DATA] ^= 1 << 12


@case("M2P", "behind mfn")
def two_gfns_share_a_frame(s: Setting) -> None:
    s.vm.p2m.entries[DATA] = s.vm.p2m.entries[DATA + 1]


@case("M2P", "without")
def m2p_has_a_gfn_and_no_vm(s: Setting) -> None:
    s.vm.machine.m2p.gfn[min(s.vm.machine.memory.free_frames())] = 3


@case("M2P", "does not agree")
def m2p_has_a_stray_user(s: Setting) -> None:
    s.vm.machine.m2p.add(min(s.vm.pool.spare_frames()), 0, UNTOUCHED)


@case("M2P", "does not agree")
def p2m_forgot_a_page(s: Setting) -> None:
    s.vm.p2m.entries[DATA] = PageType.EMPTY << 4


@case("pool", "used")
def used_frame_has_no_user(s: Setting) -> None:
    s.vm.pool.take()


@case("pool", "spare")
def frame_of_a_page_is_spare(s: Setting) -> None:
    s.vm.pool.give_back(s.mfn(DATA))


@case("pool", "VM 1")
def frame_of_a_page_is_in_the_other_pool(s: Setting) -> None:
    s.vm.pool.hand_over(s.mfn(DATA), s.other.pool)


@case("machine frames", "of VM 1")
def owner_of_a_frame_is_noted_wrong(s: Setting) -> None:
    s.vm.machine.memory.owner[s.vm.machine.memory.void_mfn] = 1


@case("machine frames", "noted as FREE")
def frame_that_is_spare_is_noted_as_free(s: Setting) -> None:
    s.vm.machine.memory.purpose[min(s.vm.pool.spare_frames())] = Purpose.FREE


@case("machine frames", "twice")
def pool_has_a_frame_less_than_it_counts(s: Setting) -> None:
    s.other.pool.used += 1


@case("machine frames", "noted as RETIRED")
def frame_out_of_service_is_spare(s: Setting) -> None:
    s.vm.machine.memory.retire(min(s.vm.pool.spare_frames()))


@case("keepers", "nobody keeps")
def evicted_page_is_kept_by_nobody(s: Setting) -> None:
    del s.vm.dmm.space.contents._keepers[EVICTED]


@case("keepers", "never evicted")
def resident_page_is_kept(s: Setting) -> None:
    s.vm.dmm.space.contents._keepers[DATA] = s.keeper


@case("keepers", "clean")
def clean_page_has_no_copy_to_go_back_to(s: Setting) -> None:
    del s.vm.dmm.space.contents._keepers[ONCE_EVICTED]


@case("frame flags", "missing")
def table_is_not_trapped(s: Setting) -> None:
    s.vm.paging.flags[s.mfn(s.stub.tables[0])] &= ~np.uint8(FRAME_TABLE)


@case("frame flags", "missing")
def void_frame_is_not_trapped(s: Setting) -> None:
    s.vm.paging.flags[s.vm.machine.memory.void_mfn] = 0


@case("frame flags", "no table")
def spare_frame_is_trapped(s: Setting) -> None:
    s.vm.paging.flags[min(s.vm.pool.spare_frames())] |= FRAME_TABLE


@case("frame flags", "does not use")
def spare_frame_holds_code(s: Setting) -> None:
    s.vm.paging.flags[min(s.vm.pool.spare_frames())] = FRAME_CODE


@case("frame flags", "does not use")
def frame_of_the_other_vm_holds_code(s: Setting) -> None:
    s.vm.paging.flags[s.other.p2m.mfn(DATA)] = FRAME_CODE


@case("frame flags", "unknown")
def unknown_flag(s: Setting) -> None:
    s.vm.paging.flags[s.mfn(DATA)] |= 1 << 7


# --- shadow tables as objects ---


@case("shadow tables", "counted")
def table_count_is_wrong(s: Setting) -> None:
    s.vm.native.shadow_used += 1


@case("shadow tables", "free list")
def free_list_leads_to_a_used_slot(s: Setting) -> None:
    s.vm.native.shadow_free = s.slot(1)


@case("shadow tables", "neither used")
def free_list_is_cut(s: Setting) -> None:
    s.paging.link[int(s.vm.native.shadow_free)] = -1


@case("shadow tables", "free list")
def free_list_is_a_ring(s: Setting) -> None:
    free = int(s.vm.native.shadow_free)
    s.paging.link[free] = free


@case("shadow tables", "retired is used or in the free list")
def retired_table_is_in_the_free_list(s: Setting) -> None:
    s.paging.retired.append(int(s.vm.native.shadow_free))
    s.vm.machine.memory.retire(s.paging.first + int(s.vm.native.shadow_free))
    s.vm.native.shadow_used += 1


@case("shadow tables", "neither used")
def table_leaves_the_free_list_for_nothing(s: Setting) -> None:
    s.vm.native.shadow_free = s.paging.link[int(s.vm.native.shadow_free)]


@case("shadow tables", "in no bucket")
def table_is_in_no_bucket(s: Setting) -> None:
    s.paging.bucket[s.paging.bucket == s.slot(1)] = s.paging.link[s.slot(1)]


@case("shadow tables", "wrong bucket")
def key_changed_under_its_bucket(s: Setting) -> None:
    s.paging.key[s.slot(1)] += 7


@case("shadow tables", "role")
def role_is_none_of_the_mode(s: Setting) -> None:
    s.paging.role[s.slot(2)] |= 5 << 8


@case("shadow tables", "same role")
def two_tables_in_one_role(s: Setting) -> None:
    first, second = s.slot(1), s.slot(2)
    bucket = s.paging.bucket
    bucket[bucket == second] = s.paging.link[second]
    s.paging.key[second], s.paging.role[second] = s.paging.key[first], s.paging.role[first]
    s.paging.link[second] = s.paging.link[first]
    s.paging.link[first] = second


@case("shadow tables", "root")
def root_is_another_table(s: Setting) -> None:
    s.vm.processor.native.root_mfn = s.paging.first + s.slot(1)


@case("shadow tables", "root")
def root_is_no_table(s: Setting) -> None:
    s.vm.processor.native.root_mfn = s.mfn(DATA)


# --- reverse map ---


@case("rmap", "list")
def rmap_forgets_a_frame(s: Setting) -> None:
    s.paging.rmap.head[s.mfn(DATA + 1)] = 0


@case("rmap", "list")
def rmap_head_of_a_frame_without_entries(s: Setting) -> None:
    s.paging.rmap.head[min(s.vm.pool.spare_frames())] = s.leaf(DATA)


@case("rmap", "previous node")
def rmap_node_is_unlinked(s: Setting) -> None:
    alias = s.leaf(DATA)
    s.paging.rmap.next[alias] = s.leaf(DATA + 1)


@case("rmap", "next node")
def rmap_next_leads_nowhere(s: Setting) -> None:
    s.paging.rmap.next[s.leaf(DATA + 1)] = s.slot(1) * ENTRIES + 500


@case("rmap", "ring")
def rmap_list_is_a_ring(s: Setting) -> None:
    """Two entries of one frame in a ring of their own, a third one at the head."""
    page = ALIASES + 2
    s.stub.map(page, DATA)
    s.stub.load(page * PAGE_SIZE)
    first = s.leaf(DATA)
    second = int(s.paging.rmap.next[first])
    third = int(s.paging.rmap.next[second])
    assert third >= 0
    s.paging.rmap.next[first] = -1
    s.paging.rmap.prev[second], s.paging.rmap.next[third] = third, second


@case("rmap", "the head of its frame is another")
def entry_is_moved_without_its_node(s: Setting) -> None:
    s.paging.entries[s.leaf(DATA + 1)] += 1 << 12


@case("rmap", "beyond machine memory")
def entry_leads_beyond_memory(s: Setting) -> None:
    s.paging.entries[s.leaf(DATA + 1)] += s.vm.machine.memory.frames << 12


@case("rmap", "list")
def entry_vanishes_without_its_node(s: Setting) -> None:
    s.paging.entries[s.leaf(DATA + 1)] = 0


# --- leaves ---


@case("shadow entry", "right to write")
def leaf_writes_where_the_dmm_forbids(s: Setting) -> None:
    s.guest_entry(READ_ONLY)[0] |= pte.D
    s.paging.entries[s.leaf(READ_ONLY)] |= pte.W


@case("shadow entry", "accessed bit in the P2M")
def leaf_survives_the_clearing_of_the_accessed_bit_below(s: Setting) -> None:
    s.vm.p2m.entries[DATA + 1] &= ~ACCESSED


@case("shadow entry", "dirty bit in the P2M")
def leaf_writes_where_the_page_counts_as_clean(s: Setting) -> None:
    s.vm.p2m.entries[DATA + 1] &= ~DIRTY


@case("shadow entry", "right to write")
def leaf_writes_into_a_shared_frame(s: Setting) -> None:
    s.paging.entries[s.leaf(SHARED)] |= pte.W


@case("shadow entry", "dirty bit")
def leaf_writes_where_the_guest_is_clean(s: Setting) -> None:
    s.paging.entries[s.leaf(CLEAN)] |= pte.W


@case("shadow entry", "the guest's entry is not")
def leaf_writes_where_the_guest_forbids(s: Setting) -> None:
    s.guest_entry(DATA + 1)[0] &= ~pte.W


@case("shadow entry", "right to read")
def leaf_reads_where_the_dmm_forbids(s: Setting) -> None:
    s.vm.p2m.entries[DATA + 1] &= ~int(Intent.READ)


@case("shadow entry", "NX")
def leaf_executes_where_the_dmm_forbids(s: Setting) -> None:
    s.vm.p2m.entries[DATA + 1] &= ~int(Intent.EXECUTE)


@case("shadow entry", "NX")
def leaf_executes_where_the_guest_forbids(s: Setting) -> None:
    s.guest_entry(DATA + 1)[0] |= pte.NX


@case("shadow entry", "U/S")
def leaf_has_another_privilege(s: Setting) -> None:
    s.paging.entries[s.leaf(DATA + 1)] ^= pte.U


@case("shadow entry", "holds a table")
def leaf_writes_a_table(s: Setting) -> None:
    number = s.leaf(s.stub.tables[-1])
    s.paging.entries[number] = s.paging.entries[number] & ~pte.TRAP | pte.W


@case("shadow entry", "holds no table")
def leaf_traps_a_data_page(s: Setting) -> None:
    number = s.leaf(DATA + 1)
    s.paging.entries[number] = s.paging.entries[number] & ~pte.W | pte.TRAP


@case("shadow entry", "another frame")
def leaf_survives_a_change_of_the_guests_entry(s: Setting) -> None:
    s.guest_entry(DATA + 1)[0] ^= 1 << 12


@case("shadow entry", "no frame")
def leaf_maps_an_evicted_page(s: Setting) -> None:
    entry = s.guest_entry(DATA + 1)
    entry[0] = entry[0] & ~pte.FRAME | EVICTED << 12


@case("shadow entry", "not present")
def leaf_survives_the_guests_unmapping(s: Setting) -> None:
    s.guest_entry(DATA + 1)[0] = 0


@case("shadow entry", "accessed bit")
def leaf_survives_the_clearing_of_the_accessed_bit(s: Setting) -> None:
    s.guest_entry(DATA + 1)[0] &= ~pte.A


@case("shadow entry", "reserved")
def leaf_of_a_malformed_guest_entry(s: Setting) -> None:
    s.guest_entry(DATA + 1)[0] |= 1 << 51


@case("shadow entry", "unknown bits")
def leaf_with_unknown_bits(s: Setting) -> None:
    s.paging.entries[s.leaf(DATA + 1)] |= pte.G


# --- entries above leaves ---


@case("shadow entry", "U/S or NX")
def branch_has_another_privilege(s: Setting) -> None:
    s.paging.entries[s.branch(2)] ^= pte.U


@case("shadow entry", "R/W")
def branch_is_read_only(s: Setting) -> None:
    s.paging.entries[s.branch(2)] &= ~pte.W


@case("shadow entry", "TRAP")
def branch_is_trapped(s: Setting) -> None:
    s.paging.entries[s.branch(3)] |= pte.TRAP


def lead(s: Setting, level: int, mfn: int) -> None:
    """Make the first entry of the table at ``level`` lead to ``mfn``, in its list too."""
    number = s.branch(level)
    s.paging.rmap.head[s.paging.entries[number] >> 12] = 0
    assert s.paging.rmap.head[mfn] == 0
    s.paging.rmap.head[mfn] = number + 1
    s.paging.entries[number] = s.paging.entries[number] & 0xFFF | mfn << 12


@case("shadow entry", "no shadow table")
def branch_leads_to_a_data_frame(s: Setting) -> None:
    lead(s, 2, min(s.vm.pool.spare_frames()))


@case("shadow entry", "free slot")
def branch_leads_to_a_free_slot(s: Setting) -> None:
    lead(s, 2, s.paging.first + int(s.vm.native.shadow_free))


@case("shadow entry", "another gfn")
def branch_leads_to_another_table(s: Setting) -> None:
    lead(s, 2, s.paging.first + s.slot(4))


@case("shadow entry", "another role")
def branch_leads_to_a_table_in_another_role(s: Setting) -> None:
    slot = s.slot(1)
    table = s.paging.entries[slot * ENTRIES : (slot + 1) * ENTRIES]
    s.paging.rmap.head[(table[table & pte.P != 0] & pte.FRAME) >> 12] = 0
    table[:] = 0
    s.paging.role[slot] = 2 | FORMAT_64 << 4


@pytest.mark.parametrize(("where", "word", "corrupt"), CASES, ids=[corrupt.__name__ for _, _, corrupt in CASES])
def test_corruption_is_named(where: str, word: str, corrupt: Corruption) -> None:
    setting = make("shadow", "4level")
    corrupt(setting)
    with pytest.raises(AuditFailure) as caught:
        setting.vm.audit()
    assert (caught.value.where, caught.value.vm) == (where, "first")
    assert word in caught.value.what
    assert str(caught.value) == f"first: {where}: {caught.value.what}"


def test_audit_every_change_finds_it_at_the_next_change() -> None:
    setting = make("nested", "none")
    setting.vm.audit_every_change()
    setting.vm.dmm.remap(DATA)
    del setting.vm.dmm.space.contents._keepers[EVICTED]
    with pytest.raises(AuditFailure, match="keepers"):
        setting.vm.dmm.remap(DATA)


def test_tables_of_a_mode_that_the_guest_has_left_are_checked_against_it() -> None:
    """Between the change of a control register and the next TLB miss the old tables are still there, and sound."""
    setting = make("shadow", "4level")
    setting.vm.cpu.cr0 &= ~(1 << 31)
    setting.vm.cpu.efer &= ~(1 << 10)
    setting.vm.audit()
