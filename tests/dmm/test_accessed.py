"""Accessed and dirty bits of P2M entries: they follow loads, stores, fetches and page walks, alike in every MMU."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest

from emu.addr import PAGE_SIZE
from emu.dmm.p2m import Intent
from tests.dmm.model import GFNS, KINDS, Side, make_sides
from tests.dmm.stub import ALIASES, CODE, DATA, HLT, MODES

EVERYTHING = np.arange(GFNS)


def gpa(gfn: int) -> int:
    return gfn * PAGE_SIZE


def marked(side: Side) -> tuple[list[int], list[int]]:
    """The gfns that are accessed, and those that are dirty."""
    gfns = range(GFNS)
    return [gfn for gfn in gfns if side.p2m.accessed(gfn)], [gfn for gfn in gfns if side.p2m.dirty(gfn)]


@pytest.fixture(params=KINDS, ids="-".join)
def side(request: pytest.FixtureRequest) -> Side:
    """A VM whose pages are all resident, and none accessed."""
    side = make_sides(request.param, pools=(GFNS,))[0]
    for gfn in range(GFNS):
        side.dmm.populate(gfn)
    side.vm.memory.write(gpa(DATA), bytes([HLT]))
    side.dmm.take_accessed(EVERYTHING)
    return side


def test_each_access_marks_its_page_and_what_leads_there(side: Side) -> None:
    always = sorted([CODE, *side.stub.tables])
    side.stub.load(gpa(DATA + 1))
    assert marked(side)[0] == sorted([*always, DATA + 1])
    side.stub.store(gpa(DATA + 2), 1)
    assert marked(side)[0] == sorted([*always, DATA + 1, DATA + 2])
    side.stub.execute(gpa(DATA))
    assert marked(side)[0] == sorted([*always, DATA, DATA + 1, DATA + 2])
    # a walk that sets an accessed or dirty bit is a store into the table; a PAE root has none
    written = side.stub.tables[1:] if side.stub.mode.name == "pae" else side.stub.tables
    assert marked(side)[1] == sorted([*written, DATA, DATA + 2])


def test_after_the_bits_are_taken_each_access_sets_them_again(side: Side) -> None:
    accesses = {
        "load": lambda gfn: side.stub.load(gpa(gfn)),
        "store": lambda gfn: side.stub.store(gpa(gfn), HLT),
        "execute": lambda gfn: side.stub.execute(gpa(gfn)),
    }
    side.vm.memory.write(gpa(DATA + 1), bytes([HLT]))
    for first in accesses.values():
        first(DATA), first(DATA + 1)
        for again in accesses.values():
            assert side.dmm.take_accessed(np.array([DATA + 1, DATA])).tolist() == [True, True]
            again(DATA)
            assert (side.p2m.accessed(DATA), side.p2m.accessed(DATA + 1)) == (True, False)
            assert side.dmm.take_accessed(np.array([DATA + 1, DATA])).tolist() == [False, True]
            again(DATA + 1), again(DATA)
            side.vm.audit()


def test_a_walk_marks_the_tables_again_even_if_only_they_were_taken(side: Side) -> None:
    pdpt_is_in_registers = side.stub.mode.name == "pae"  # it is read at MOV CR3 alone (SDM vol. 3A, 4.4.1)
    for table in side.stub.tables[pdpt_is_in_registers:]:
        side.stub.load(gpa(DATA))
        assert side.dmm.take_accessed(np.array([table])).tolist() == [True]
        side.stub.load(gpa(DATA))
        assert side.p2m.accessed(table)


def test_a_load_never_makes_a_page_dirty_and_the_first_store_always_does(side: Side) -> None:
    for gfn in range(DATA + 1, GFNS):
        for _ in range(3):
            side.stub.load(gpa(gfn))
        assert not side.p2m.dirty(gfn)
        side.stub.store(gpa(gfn) + 7, 3)
        assert side.p2m.dirty(gfn)
    side.vm.audit()


def test_access_from_outside_counts(side: Side) -> None:
    side.vm.memory.read(gpa(DATA + 1), 1)
    side.vm.memory.write(gpa(DATA + 2), b"x")
    accessed, dirty = marked(side)
    assert accessed == [DATA + 1, DATA + 2] and DATA + 1 not in dirty and DATA + 2 in dirty


def test_marks_stay_with_the_page(side: Side) -> None:
    """Whatever happens to its frame and rights; but not beyond its eviction."""
    side.attach("swap")
    assert side.swap
    side.vm.memory.write(gpa(DATA + 2), bytes([HLT]))
    side.discard(GFNS - 1)
    side.stub.store(gpa(DATA + 1), HLT)
    side.stub.load(gpa(DATA + 3))
    operations = [
        lambda gfn: side.dmm.remap(gfn),
        lambda gfn: side.dmm.protect(gfn, Intent.EXECUTE),
        lambda gfn: side.dmm.resolve(gfn, Intent.READ | Intent.WRITE),
        lambda gfn: side.dmm.unshare(gfn),
    ]
    for operation in operations:
        for gfn, dirty in ((DATA + 1, True), (DATA + 3, False)):
            operation(gfn)
            assert (side.p2m.accessed(gfn), side.p2m.dirty(gfn)) == (True, dirty)
    assert side.dmm.share(DATA + 2, side.p2m.mfn(DATA + 1))
    assert side.p2m.dirty(DATA + 1) and side.p2m.dirty(DATA + 2)
    side.dmm.evict(DATA + 1, side.swap)
    side.dmm.populate(DATA + 1)
    assert not side.p2m.accessed(DATA + 1) and not side.p2m.dirty(DATA + 1)
    side.vm.audit()


def test_pages_without_a_frame_count_as_not_accessed(side: Side) -> None:
    side.stub.load(gpa(DATA + 1))
    side.discard(DATA + 1)
    taken = side.dmm.take_accessed(np.array([DATA + 1, CODE, GFNS, GFNS + 40]))
    assert taken.tolist() == [False, True, False, False]
    assert side.dmm.take_accessed(np.zeros(0, np.int64)).tolist() == []


@pytest.mark.parametrize("gfn", [-1, 1 << 40])
def test_a_gfn_that_cannot_be_is_refused(side: Side, gfn: int) -> None:
    side.stub.load(gpa(DATA))
    with pytest.raises(ValueError, match="gfn"):
        side.dmm.take_accessed(np.array([CODE, gfn]))
    assert side.p2m.accessed(CODE)


# --- sequences ---


class Sequence:
    """Random guest accesses and DMM operations, the same on every VM for one seed."""

    def __init__(self, seed: int) -> None:
        self.chance = Random(seed)

    def step(self, sides: list[Side]) -> tuple[str, list[int]]:
        """One step on each VM; returns what it was, and the data pages that it concerned."""
        gfn, value = self.chance.randrange(DATA, GFNS), self.chance.randrange(256)
        several = sorted(self.chance.sample(range(GFNS), 6))
        what = self.chance.choice(["load", "load", "store", "store", "alias", "take", "evict", "remap"])
        taken = []
        for side in sides:
            if what == "load":
                side.stub.load(gpa(gfn) + 8)
            elif what == "store":
                side.stub.store(gpa(gfn) + 8, value)
            elif what == "alias" and side.stub.tables:
                side.stub.map(ALIASES, gfn)
                side.stub.store(gpa(ALIASES) + 8, value)
            elif what == "take":
                taken.append(side.dmm.take_accessed(np.array(several)).tolist())
            elif what == "evict" and side.swap and side.dmm.is_evictable(gfn):
                side.dmm.evict(gfn, side.swap)
            elif what == "remap" and side.dmm.is_resident(gfn):
                side.dmm.remap(gfn)
        assert all(each == taken[0] for each in taken)
        return what, several if what == "take" else [gfn]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("mode", MODES)
def test_the_same_sequence_under_shadow_and_nested_paging(mode: str, seed: int) -> None:
    """For every page, tables and code included, while a clock algorithm takes the bits as well."""
    sides = [make_sides((mmu, mode), pools=(14,))[0] for mmu in ("shadow", "nested")]
    for side in sides:
        side.attach("swap", victims="clock")
    sequence = Sequence(seed)
    for _ in range(150):
        sequence.step(sides)
        rights_and_marks = [(side.p2m.entries[:GFNS] & 0xFFF).tolist() for side in sides]
        assert rights_and_marks[0] == rights_and_marks[1]


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
def test_exactly_the_pages_that_were_accessed(kind: tuple[str, str]) -> None:
    side = make_sides(kind, pools=(GFNS + 1,))[0]
    sequence = Sequence(7)
    accessed: set[int] = set()
    dirty: set[int] = set()
    for _ in range(150):
        what, gfns = sequence.step([side])
        if what == "take":
            accessed -= set(gfns)
        elif what in ("load", "store") or what == "alias" and side.stub.tables:
            accessed |= set(gfns)
            dirty |= set() if what == "load" else set(gfns)
        found = marked(side)
        assert [gfn for gfn in found[0] if gfn >= DATA] == sorted(accessed)
        assert [gfn for gfn in found[1] if gfn >= DATA] == sorted(dirty)
