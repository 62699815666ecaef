"""Up to three VMs on one machine, driven at random against a model that knows contents only.

A VM has one processor or two, which page in the same mode or not, with the same tables or not.  Guests load, store,
execute and change their own mapping; at the same time the DMM moves, protects, evicts, discards, pins and shares every
page, tables and code included, pools grow and shrink, frames go out of service, policies come and go, and so do whole
VMs.  After every step each VM's audit passes, and every page of every VM holds what the model says, wherever it is
kept.

It is short by default, and always the same.  ``EMU_LONG=1000 pytest tests/dmm/test_dmm_machine.py`` tries 1000 random
sequences of 100 steps.
"""

from __future__ import annotations

import os
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from emu.addr import PAGE_SIZE
from emu.dmm.errors import CannotRetire, NotEnoughSpare, OutOfFrames, PagePinned
from emu.dmm.p2m import ALL_RIGHTS, Intent, PageType
from emu.dmm.retire import retire_frame
from emu.dmm.space import SharedMachine
from emu.engine.ram import OutOfMachineFrames, Purpose
from emu.mmu.shadowtables import MIN_TABLES
from tests.dmm.model import ENOUGH, GFNS, KINDS, POOL, Side, fill_unused_with_junk, frame_counts
from tests.dmm.stub import ALIASES, CODE, DATA, HLT, MODES, SAME

SPARE = 8  # frames of the machine that no pool has at first
NOP = 0x90
SAFE = 2304  # offset from which on nothing in a code or table page is used
HOLE = GFNS + 5  # a gfn without memory
VMS = 3
LEAST = ENOUGH + 2  # frames that no rule takes a pool below
MOST_PINS = 2
OTHER_POLICIES = ["share", "balloon", "balance", "pool", "retire"]  # than swap and demand

gfns = st.integers(0, GFNS - 1)
offsets = st.integers(SAFE, PAGE_SIZE - 1)
pages = st.one_of(gfns, st.integers(ALIASES, ALIASES + 3))
rights = st.integers(0, 7).map(Intent)
which = st.integers(0, VMS - 1)
cpus = st.integers(0, 1)  # the processor that makes an access, where there are two
seconds = st.sampled_from([None, SAME, *MODES])  # how a second processor pages, or that there is none
nth = st.integers(0, 255)  # of the pages that there is a choice of
patterns = st.sampled_from([bytes(PAGE_SIZE), b"\x55" * PAGE_SIZE, bytes(range(256)) * 16])
kinds = st.sampled_from(KINDS)
table_counts = st.integers(6, MIN_TABLES + 3)
swap_options = st.fixed_dictionaries(
    {
        "victims": st.sampled_from(["fifo", "clock", "aging", "wsclock", "random", "2q"]),
        "algorithm": st.sampled_from(["lz4", "zstd"]),
    }
)


class DmmMachine(RuleBasedStateMachine):
    """See the module."""

    sides: list[Side]

    @initialize(
        chosen=st.lists(kinds, min_size=VMS, max_size=VMS),
        others=st.lists(seconds, min_size=VMS, max_size=VMS),
        tables=table_counts,
        swaps=st.lists(st.none() | swap_options, min_size=VMS, max_size=VMS),
        fill=st.lists(st.tuples(which, st.integers(DATA, GFNS - 1), patterns), max_size=20),
    )
    def start(
        self, chosen: list[tuple[str, str]], others: list[str | None], tables: int, swaps: list[dict[str, str] | None],
        fill: list[tuple[int, int, bytes]],
    ) -> None:  # fmt: skip
        shadow = sum(tables for mmu, _ in chosen if mmu == "shadow")
        self.machine = SharedMachine(1 + shadow + VMS * POOL + SPARE)
        self.sides = []
        self.created = 0
        for (mmu, mode), second in zip(chosen, others, strict=True):
            self.create(mmu, mode, tables, POOL, second)
        for at, options in enumerate(swaps):
            if options is not None:
                self.attach_swap(at, options)
        for at, gfn, pattern in fill:
            self.fill_from_outside(at, gfn, pattern)

    def create(self, mmu: str, mode: str, tables: int, pool: int, second: str | None) -> None:
        self.sides.append(Side(self.machine, self.created, mmu, mode, tables, pool, second))
        self.created += 1

    def side(self, at: int) -> Side:
        return self.sides[at % len(self.sides)]

    @invariant()
    def nothing_is_lost(self) -> None:
        if not hasattr(self, "machine"):
            return
        for side in self.sides:
            side.check()
        fill_unused_with_junk(self.machine)

    # --- the guest ---

    @rule(at=which, cpu=cpus, page=pages, offset=offsets)
    def load(self, at: int, cpu: int, page: int, offset: int) -> None:
        side = self.side(at).on(cpu)
        with side.access((page, Intent.READ), (CODE, Intent.EXECUTE)):
            found = side.stub.load(page * PAGE_SIZE + offset)
            assert found == (side.contents[side.gfn(page)][offset] if side.gfn(page) < GFNS else 0xFF)

    @rule(at=which, cpu=cpus, page=pages, offset=offsets, value=st.integers(0, 255))
    def store(self, at: int, cpu: int, page: int, offset: int, value: int) -> None:
        side = self.side(at).on(cpu)
        with side.access((page, Intent.WRITE)):
            side.stub.store(page * PAGE_SIZE + offset, value)
            side.write(side.gfn(page), offset, bytes([value]))

    @rule(
        at=which, cpu=cpus, page=st.integers(DATA, GFNS - 2), before=st.integers(1, 3), value=st.integers(0, 2**32 - 1)
    )  # fmt: skip
    def store_across(self, at: int, cpu: int, page: int, before: int, value: int) -> None:
        side = self.side(at).on(cpu)
        if not side.is_free_to_change(page + 1):
            return
        data = value.to_bytes(4, "little")
        with side.access((page, Intent.WRITE), (page + 1, Intent.WRITE)):
            side.stub.store4((page + 1) * PAGE_SIZE - before, value)
            side.write(page, PAGE_SIZE - before, data[:before])
            side.write(page + 1, 0, data[before:])

    @rule(at=which, cpu=cpus, by=cpus, page=pages, offset=offsets)
    def write_code_and_execute(self, at: int, cpu: int, by: int, page: int, offset: int) -> None:
        side = self.side(at).on(cpu)
        if side.gfn(page) >= GFNS:
            return
        stored = False
        with side.access((page, Intent.WRITE)):
            side.stub.store(page * PAGE_SIZE + offset, HLT)
            side.write(side.gfn(page), offset, bytes([HLT]))
            stored = True
        if stored and side.on(by).gfn(page) == side.on(cpu).gfn(page):
            with side.on(by).access((page, Intent.EXECUTE)):
                side.stub.execute(page * PAGE_SIZE + offset)

    @rule(at=which, cpu=cpus, by=cpus, page=pages, offset=offsets, ahead=st.integers(0, 8))
    def store_code_and_execute(self, at: int, cpu: int, by: int, page: int, offset: int, ahead: int) -> None:
        """The other has translated what is written over: NOPs, and a HLT that moves."""
        side = self.side(at).on(cpu)
        offset = min(offset, PAGE_SIZE - 16)
        if side.gfn(page) >= GFNS or side.on(by).gfn(page) != side.on(cpu).gfn(page):
            return
        gfn, gva = side.gfn(page), page * PAGE_SIZE + offset
        with side.out_of_frames_is_fine():
            code = bytes([NOP] * 9 + [HLT])
            side.vm.memory.write(gfn * PAGE_SIZE + offset, code)
            side.write(gfn, offset, code)
            side.on(by).stub.execute(gva)
            assert side.vm.cpu.rip == gva + 10
            side.on(cpu).stub.store(gva + ahead, HLT)
            side.write(gfn, offset + ahead, bytes([HLT]))
            side.on(by).stub.execute(gva)
            assert side.vm.cpu.rip == gva + ahead + 1

    @rule(at=which, cpu=cpus, page=st.integers(ALIASES, ALIASES + 3), gfn=st.one_of(gfns, st.just(HOLE)))
    def change_alias(self, at: int, cpu: int, page: int, gfn: int) -> None:
        side = self.side(at).on(cpu)
        if side.stub.tables:
            with side.access((side.stub.tables[-1], Intent.WRITE)):
                side.change_alias(page, gfn)

    @rule(at=which, cpu=cpus)
    def reload_cr3(self, at: int, cpu: int) -> None:
        side = self.side(at).on(cpu)
        with side.access():
            side.stub.reload()

    @rule(at=which)
    def start_processor_again(self, at: int) -> None:
        stub = self.side(at).stub
        if len(stub.views) > 1:
            stub.start_again(1)

    # --- devices and tools ---

    @rule(at=which, gpa=st.integers(DATA * PAGE_SIZE, GFNS * PAGE_SIZE), size=st.integers(0, 2 * PAGE_SIZE))
    def read_from_outside(self, at: int, gpa: int, size: int) -> None:
        side = self.side(at)
        with side.out_of_frames_is_fine():
            found = side.vm.memory.read(gpa, size)
            tables = {gfn: side.holds(gfn) for gfn in range(GFNS) if side.stub.entry_size(gfn)}
            everything = b"".join((side.contents | tables).values()) + b"\xff" * (2 * PAGE_SIZE)
            assert found == everything[gpa : gpa + size]

    @rule(at=which)
    def read_everything_from_outside(self, at: int) -> None:
        side = self.side(at)
        with side.out_of_frames_is_fine():
            side.vm.memory.read(0, GFNS * PAGE_SIZE)

    @rule(at=which, gfn=gfns, offset=offsets, data=st.binary(max_size=40))
    def write_from_outside(self, at: int, gfn: int, offset: int, data: bytes) -> None:
        side = self.side(at)
        with side.out_of_frames_is_fine():
            data = data[: PAGE_SIZE - offset]
            side.vm.memory.write(gfn * PAGE_SIZE + offset, data)
            side.write(gfn, offset, data)

    @rule(at=which, gfn=gfns, pattern=patterns)
    def fill_from_outside(self, at: int, gfn: int, pattern: bytes) -> None:
        """So that many pages are equal."""
        side = self.side(at)
        if side.is_free_to_change(gfn):
            with side.out_of_frames_is_fine():
                side.vm.memory.write(gfn * PAGE_SIZE, pattern)
                side.write(gfn, 0, pattern)

    @rule(at=which, gfn=gfns, source=which, of=gfns)
    def copy_from_outside(self, at: int, gfn: int, source: int, of: int) -> None:
        """So that data pages are equal to tables and code."""
        side, other = self.side(at), self.side(source)
        if side.is_free_to_change(gfn):
            data = other.holds(of)
            with side.out_of_frames_is_fine():
                side.vm.memory.write(gfn * PAGE_SIZE, data)
                side.write(gfn, 0, data)

    # --- the DMM, page by page ---

    @rule(at=which, n=nth)
    def remap(self, at: int, n: int) -> None:
        side = self.side(at)
        gfn = side.any_resident(n)
        if gfn is None:
            return
        with side.out_of_frames_is_fine():
            before = side.p2m.mfn(gfn)
            after = side.dmm.remap(gfn)
            assert after == side.p2m.mfn(gfn)
            assert after != before or side.swap

    @rule(at=which, n=nth, rights=rights)
    def protect(self, at: int, n: int, rights: Intent) -> None:
        side = self.side(at)
        gfn = side.any_resident(n)
        if gfn is None:
            return
        if side.p2m.type(gfn) is PageType.SHARED and rights & Intent.WRITE:
            with pytest.raises(ValueError, match="writable"):
                side.dmm.protect(gfn, rights)
        else:
            side.dmm.protect(gfn, rights)
            assert side.p2m.rights(gfn) == rights

    @rule(at=which, n=nth)
    def evict(self, at: int, n: int) -> None:
        side = self.side(at)
        gfn = side.any_resident(n)
        if gfn is not None and side.swap:
            if gfn in side.pins:
                with pytest.raises(PagePinned):
                    side.dmm.evict(gfn, side.swap)
                return
            side.dmm.evict(gfn, side.swap)
            assert side.p2m.type(gfn) in (PageType.EVICTED, PageType.EMPTY, PageType.IMAGE)

    @rule(at=which, gfn=gfns)
    def discard(self, at: int, gfn: int) -> None:
        side = self.side(at)
        if gfn in side.pins:
            with pytest.raises(PagePinned):
                side.dmm.discard(gfn)
        elif side.is_free_to_change(gfn):
            side.discard(gfn)
            assert side.p2m.type(gfn) is PageType.EMPTY

    @rule(at=which, gfn=gfns)
    def pin(self, at: int, gfn: int) -> None:
        side = self.side(at)
        if gfn in side.pins or len(side.pins) < MOST_PINS:
            with side.out_of_frames_is_fine():
                side.dmm.pin(gfn)
                side.pins[gfn] = side.pins.get(gfn, 0) + 1

    @rule(at=which)
    def unpin(self, at: int) -> None:
        side = self.side(at)
        if side.pins:
            gfn = min(side.pins)
            side.dmm.unpin(gfn)
            side.pins[gfn] -= 1
            if not side.pins[gfn]:
                del side.pins[gfn]

    @rule(at=which, gfn=gfns, intent=st.sampled_from([Intent.READ, Intent.WRITE, Intent.EXECUTE, ALL_RIGHTS]))
    def resolve(self, at: int, gfn: int, intent: Intent) -> None:
        side = self.side(at)
        with side.out_of_frames_is_fine():
            mfn = side.dmm.resolve(gfn, intent)
            assert mfn == side.p2m.mfn(gfn) and side.p2m.grants(gfn, intent)

    @rule(at=which, chosen=st.lists(gfns, unique=True))
    def take_accessed(self, at: int, chosen: list[int]) -> None:
        side = self.side(at)
        before = [side.p2m.accessed(gfn) for gfn in chosen]
        assert side.dmm.take_accessed(np.array(chosen, np.int64)).tolist() == before
        assert not any(side.p2m.accessed(gfn) for gfn in chosen)

    # --- sharing ---

    def share_pages(self, side: Side, gfn: int, other: Side, with_gfn: int) -> None:
        mfn, before = other.p2m.mfn(with_gfn), side.p2m.mfn(gfn)
        sizes = [each.pool.size for each in self.sides]
        users = self.machine.m2p.users(mfn)
        first, first_gfn = users[0]
        user = self.machine.spaces[first]
        possible = side.dmm.shareable_frame(side.dmm.index, gfn) is not None
        free = side.dmm.shareable_frame(first, first_gfn) is not None
        possible &= user.p2m.type(first_gfn) is PageType.SHARED or free
        shared = side.dmm.share(gfn, mfn)
        assert shared == (before == mfn or possible and side.holds(gfn) == other.holds(with_gfn))
        assert side.p2m.mfn(gfn) == (mfn if shared else before)
        if shared and before != mfn:
            assert sorted(self.machine.m2p.users(mfn)) == sorted([*users, (side.dmm.index, gfn)])
            assert all(self.machine.spaces[vm].p2m.type(user) is PageType.SHARED for vm, user in users)
        assert sizes == [each.pool.size for each in self.sides]

    @rule(at=which, n=nth, other=which, with_n=nth)
    def share(self, at: int, n: int, other: int, with_n: int) -> None:
        gfn, with_gfn = self.side(at).any_resident(n), self.side(other).any_resident(with_n)
        if gfn is not None and with_gfn is not None:
            self.share_pages(self.side(at), gfn, self.side(other), with_gfn)

    @rule(at=which, other=which)
    def share_whatever_is_equal(self, at: int, other: int) -> None:
        side, from_side = self.side(at), self.side(other)
        first = {from_side.holds(gfn): gfn for gfn in from_side.p2m.resident().tolist()}
        for gfn in side.p2m.resident().tolist():
            if side.holds(gfn) in first:
                self.share_pages(side, gfn, from_side, first[side.holds(gfn)])

    @rule(at=which, to=which, pages=st.integers(1, 6), pattern=patterns)
    def lend(self, at: int, to: int, pages: int, pattern: bytes) -> None:
        """Frames that others use, and that their owner does not: few other sequences lead there."""
        side, other = self.side(at), self.side(to)
        chosen = range(DATA, DATA + pages)
        for gfn in chosen:
            self.fill_from_outside(at, gfn, pattern)
            self.fill_from_outside(to, gfn, pattern)
            if side.dmm.is_resident(gfn) and other.dmm.is_resident(gfn):
                self.share_pages(other, gfn, side, gfn)
        self.read_everything_from_outside(to)
        for gfn in chosen:
            self.discard(at, gfn)

    @rule(at=which, n=nth)
    def unshare(self, at: int, n: int) -> None:
        side = self.side(at)
        gfn = side.any_resident(n, shared=True)
        if gfn is not None:
            with side.out_of_frames_is_fine():
                assert side.dmm.unshare(gfn) == side.p2m.mfn(gfn)
                assert side.p2m.type(gfn) is PageType.RAM

    # --- frames ---

    @rule(at=which, frames=st.integers(1, 4))
    def grow(self, at: int, frames: int) -> None:
        side = self.side(at)
        before, free = side.pool.size, self.machine.memory.free
        try:
            side.dmm.grow(frames)
            assert side.pool.size == before + frames
        except OutOfMachineFrames:
            assert frames > free and side.pool.size == before

    @rule(at=which, frames=st.integers(1, 4))
    def shrink(self, at: int, frames: int) -> None:
        side = self.side(at)
        before = side.pool.size
        if before - frames < LEAST or "balance" in side.policies:
            return
        try:
            side.dmm.shrink(frames)
            assert side.pool.size == before - frames
        except NotEnoughSpare:
            assert side.pool.size == before
            side.assert_nothing_can_go(side.swap is not None)

    @rule(mfn=st.integers(0, 200))
    def retire(self, mfn: int) -> None:
        memory = self.machine.memory
        mfn %= memory.frames
        before, purpose, counts = memory.free, memory.purpose[mfn], frame_counts(self.machine)
        owner = self.machine.spaces.get(int(memory.owner[mfn]))
        if owner is not None and purpose == Purpose.POOL and not before and owner.pool.size <= LEAST:
            return
        try:
            retire_frame(self.machine, mfn)
            assert memory.purpose[mfn] == Purpose.RETIRED
            assert not self.machine.m2p.count(mfn)
            assert frame_counts(self.machine)["RETIRED"] == counts["RETIRED"] + (purpose != Purpose.RETIRED)
        except CannotRetire:
            assert memory.purpose[mfn] == purpose
            assert frame_counts(self.machine) == counts
            assert purpose == Purpose.TABLES or not memory.free

    # --- policies and VMs ---

    @rule(at=which, options=swap_options)
    def attach_swap(self, at: int, options: dict[str, str]) -> None:
        side = self.side(at)
        if not side.swap:
            side.attach("swap", **options)

    @rule(at=which, name=st.sampled_from(OTHER_POLICIES), size=st.integers(LEAST, 18))
    def attach(self, at: int, name: str, size: int) -> None:
        side = self.side(at)
        options: dict[str, dict[str, object]] = {
            "share": {"rate": GFNS},
            "balance": {"sample": size},
            "pool": {"schedule": [(side.dmm.now, size * PAGE_SIZE)]},
            "retire": {"seed": size},
        }
        if name not in side.policies:
            side.attach(name, **options.get(name, {}))

    @rule(at=which, name=st.sampled_from(["swap", *OTHER_POLICIES]))
    def detach(self, at: int, name: str) -> None:
        side = self.side(at)
        if name in side.policies:
            try:
                side.dmm.detach(side.policies[name])
                del side.policies[name]
                assert name != "swap" or not side.dmm.space.contents.kept()
            except OutOfFrames:
                assert name == "swap" and side.pool.spare == 0
                side.assert_nothing_can_go(False)
                assert side.policies[name] in side.dmm.policies

    @rule(at=which)
    def epochs(self, at: int) -> None:
        """Share scans all pages twice, so that what is equal is found."""
        side = self.side(at)
        for name, policy in side.policies.items():
            if policy.deadline() is not None and (name != "retire" or self.machine.memory.free):
                policy.epoch(side.dmm.now)
                if name == "share":
                    policy.epoch(side.dmm.now)

    @rule(at=which, chosen=st.lists(st.integers(0, HOLE), max_size=4), how=st.sampled_from(["inflate", "report"]))
    def give_up_pages(self, at: int, chosen: list[int], how: str) -> None:
        side = self.side(at)
        if "balloon" in side.policies:
            chosen = [gfn for gfn in chosen if side.is_free_to_change(gfn)]
            getattr(side.dmm.balloon, how)(chosen)
            for gfn in chosen:
                if gfn not in side.pins:
                    side.write(gfn, 0, bytes(PAGE_SIZE))
            side.dmm.balloon.deflate(chosen[:2])

    @rule(at=which)
    def remove_vm(self, at: int) -> None:
        if len(self.sides) > 1:
            side = self.side(at)
            self.sides.remove(side)
            side.vm.close()

    @rule(kind=kinds, second=seconds, tables=table_counts)
    def create_vm(self, kind: tuple[str, str], second: str | None, tables: int) -> None:
        pool = min(POOL, self.machine.memory.free - (tables if kind[0] == "shadow" else 0))
        if len(self.sides) < VMS and pool >= LEAST:
            try:
                self.create(*kind, tables, pool, second)
            except OutOfMachineFrames:
                assert kind[0] == "shadow"  # there is no such run of free frames


def test_dmm_machine() -> None:
    long = int(os.environ.get("EMU_LONG", "0"))
    with patch("emu.machine.vm.MOST_WAITS", 200):  # each of them means an audit
        run_state_machine_as_test(
            DmmMachine,
            settings=settings(
                max_examples=long or 60,
                stateful_step_count=100 if long else 50,
                derandomize=not long,
                database=None,
                deadline=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
