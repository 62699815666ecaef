"""Two VMs on one machine, driven at random against a model that knows contents only.

Guests load, store, execute and change their own mapping; at the same time the DMM moves, protects and evicts every
page, tables and code included, pools grow and shrink, and a swapping policy comes and goes.  After every step each
VM's audit passes, and every page of every VM holds what the model says, wherever it is kept.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from emu.addr import PAGE_SIZE
from emu.dmm.demand import DemandPaging
from emu.dmm.dmm import DMM, NotEnoughSpare, OutOfFrames
from emu.dmm.p2m import ALL_RIGHTS, Intent, PageType
from emu.dmm.policy import Policy
from emu.machine import Machine
from emu.ram import OutOfMachineFrames
from emu.vm import VirtualMachine
from tests.dmm.stub import ALIASES, CODE, DATA, HLT, MODES, Stub

GFNS = 24  # pages of RAM of each VM
POOL = 12  # frames that each begins with; one access needs eight at most
SPARE = 6  # frames of the machine that no pool has at first
SAFE = 2304  # offset from which on nothing in a code or table page is used
HOLE = GFNS + 5  # a gfn without memory

gfns = st.integers(0, GFNS - 1)
offsets = st.integers(SAFE, PAGE_SIZE - 1)
pages = st.one_of(gfns, st.integers(ALIASES, ALIASES + 3))
rights = st.integers(0, 7).map(Intent)
which = st.integers(0, 1)


class Swapper(Policy):
    """Keeps evicted pages in host memory; while ``active`` it evicts the page that came first."""

    name = "swapper"

    def __init__(self) -> None:
        self.active = False
        self.kept: dict[int, bytes] = {}
        self.arrived: list[int] = []

    def attach(self, dmm: DMM) -> None:
        super().attach(dmm)
        self.arrived = [gfn for gfn in range(GFNS) if dmm.p2m.type(gfn) == PageType.RAM]

    def populate(self, gfn: int, kind: PageType) -> None:
        self.arrived.append(gfn)

    def make_room(self, frames: int) -> None:
        while self.active and frames and self.arrived:
            gfn = self.arrived.pop(0)
            if self.dmm.p2m.type(gfn) == PageType.RAM:
                self.dmm.evict(gfn, self)
                frames -= 1

    def keep(self, gfn: int, contents: bytes) -> None:
        assert gfn not in self.kept
        self.kept[gfn] = contents

    def restore(self, gfn: int) -> bytes:
        self.arrived.append(gfn)
        return self.kept.pop(gfn)


class Side:
    """One VM and its model.

    Attributes:
        contents: gfn to the bytes that the guest would find there.
        mapped: alias page to gfn.
    """

    def __init__(self, machine: Machine, name: str, mmu: str, mode: str, tables: int) -> None:
        index = len(machine.vms)
        self.vm = VirtualMachine(machine, name, index, GFNS * PAGE_SIZE, POOL, mmu, tables)
        machine.vms.append(self.vm)
        self.dmm = self.vm.dmm
        self.stub = Stub(self.vm, mode)
        self.swapper = Swapper()
        self.demand = DemandPaging(self.stub.image)
        self.dmm.attach(self.swapper)
        self.dmm.attach(self.demand)
        self.vm.audit_every_change()
        self.contents = {gfn: bytearray(self.stub.image.page(gfn)) for gfn in range(GFNS)}
        self.mapped = {page: page - ALIASES if self.stub.tables else page for page in range(ALIASES, ALIASES + GFNS)}

    @property
    def swaps(self) -> bool:
        """Whether there is a policy that makes room."""
        return self.swapper.active and self.swapper in self.dmm.policies

    def gfn(self, page: int) -> int:
        """The gfn behind a gva page."""
        return self.mapped.get(page, page)

    def resident(self, gfn: int) -> bool:
        return self.vm.p2m.type(gfn) == PageType.RAM

    def holds(self, gfn: int) -> bytes:
        """What a page holds, looked up without touching it."""
        kind = self.vm.p2m.type(gfn)
        if kind == PageType.RAM:
            return self.vm.machine.memory.pages[self.vm.p2m.mfn(gfn)].tobytes()
        if kind == PageType.EVICTED:
            return self.swapper.kept[gfn]
        return self.stub.image.page(gfn)

    @contextmanager
    def out_of_frames_is_fine(self) -> Iterator[None]:
        """An operation may fail for want of frames, and only when no frame can be had.

        The model changes behind the operation, within the block, and so not at all when it fails.
        """
        try:
            yield
        except OutOfFrames:
            assert not self.swaps and self.vm.pool.spare == 0

    @contextmanager
    def access(self, *needed: tuple[int, Intent]) -> Iterator[None]:
        """A guest access that needs these rights on gva pages; otherwise as :meth:`out_of_frames_is_fine`."""
        done = False
        with self.out_of_frames_is_fine():
            yield
            done = True
        if not done:
            return
        for page, intent in needed:
            if self.gfn(page) < GFNS:
                assert self.vm.p2m.rights(self.gfn(page)) & intent, f"gva page {page:#x} without {intent!r}"
        for table in self.stub.tables:
            assert self.vm.p2m.rights(table) & Intent.READ, f"a walk through table {table} without the right to read"

    def write(self, gfn: int, offset: int, data: bytes) -> None:
        if gfn < GFNS:
            self.contents[gfn][offset : offset + len(data)] = data

    def check(self) -> None:
        self.vm.audit()
        for gfn, wanted in self.contents.items():
            found = self.holds(gfn)
            if gfn in self.stub.tables:  # accessed and dirty bits are not modelled
                size = self.stub.mode.entry
                found, wanted = _without_status(found, size), _without_status(bytes(wanted), size)
            assert found == wanted, f"{self.vm.name}: gfn {gfn:#x} lost its contents"


def _without_status(table: bytes, size: int) -> bytes:
    cleared = bytearray(table)
    cleared[::size] = bytes(byte & ~0x60 for byte in table[::size])
    return bytes(cleared)


class DmmMachine(RuleBasedStateMachine):
    """See the module."""

    sides: list[Side]

    @initialize(kinds=st.lists(st.tuples(st.sampled_from(["shadow", "nested"]), st.sampled_from(list(MODES))),
                               min_size=2, max_size=2),
                tables=st.integers(5, 10))  # fmt: skip
    def start(self, kinds: list[tuple[str, str]], tables: int) -> None:
        shadow = sum(tables for mmu, _ in kinds if mmu == "shadow")
        self.machine = Machine((1 + shadow + 2 * POOL + SPARE) * PAGE_SIZE)
        self.sides = [
            Side(self.machine, f"{name}-{mmu}-{mode}", mmu, mode, tables)
            for name, (mmu, mode) in zip("ab", kinds, strict=True)
        ]

    @invariant()
    def nothing_is_lost(self) -> None:
        for side in getattr(self, "sides", []):
            side.check()

    # --- the guest ---

    @rule(at=which, page=pages, offset=offsets)
    def load(self, at: int, page: int, offset: int) -> None:
        side = self.sides[at]
        with side.access((page, Intent.READ), (CODE, Intent.EXECUTE)):
            found = side.stub.load(page * PAGE_SIZE + offset)
            assert found == (side.contents[side.gfn(page)][offset] if side.gfn(page) < GFNS else 0xFF)

    @rule(at=which, page=pages, offset=offsets, value=st.integers(0, 255))
    def store(self, at: int, page: int, offset: int, value: int) -> None:
        side = self.sides[at]
        with side.access((page, Intent.WRITE)):
            side.stub.store(page * PAGE_SIZE + offset, value)
            side.write(side.gfn(page), offset, bytes([value]))

    @rule(at=which, page=st.integers(DATA, GFNS - 2), before=st.integers(1, 3), value=st.integers(0, 2**32 - 1))
    def store_across(self, at: int, page: int, before: int, value: int) -> None:
        side = self.sides[at]
        data = value.to_bytes(4, "little")
        with side.access((page, Intent.WRITE), (page + 1, Intent.WRITE)):
            side.stub.store4((page + 1) * PAGE_SIZE - before, value)
            side.write(page, PAGE_SIZE - before, data[:before])
            side.write(page + 1, 0, data[before:])

    @rule(at=which, page=pages, offset=offsets)
    def write_code_and_execute(self, at: int, page: int, offset: int) -> None:
        side = self.sides[at]
        if side.gfn(page) >= GFNS:
            return
        with side.access((page, Intent.WRITE)):
            side.stub.store(page * PAGE_SIZE + offset, HLT)
            side.write(side.gfn(page), offset, bytes([HLT]))
            with side.access((page, Intent.EXECUTE)):
                side.stub.execute(page * PAGE_SIZE + offset)

    @rule(at=which, page=st.integers(ALIASES, ALIASES + 3), gfn=st.one_of(gfns, st.just(HOLE)))
    def change_alias(self, at: int, page: int, gfn: int) -> None:
        side = self.sides[at]
        if side.stub.tables:
            with side.access((side.stub.tables[-1], Intent.WRITE)):
                side.stub.map(page, gfn)
                side.mapped[page] = gfn
                side.write(*divmod(side.stub.entry_gpa(page), PAGE_SIZE), side.stub.leaf(gfn).to_bytes(4, "little"))

    @rule(at=which)
    def reload_cr3(self, at: int) -> None:
        side = self.sides[at]
        with side.access():
            side.stub.reload()

    # --- devices and tools ---

    @rule(at=which, gpa=st.integers(DATA * PAGE_SIZE, GFNS * PAGE_SIZE), size=st.integers(0, 2 * PAGE_SIZE))
    def read_from_outside(self, at: int, gpa: int, size: int) -> None:
        side = self.sides[at]
        with side.out_of_frames_is_fine():
            found = side.dmm.read(gpa, size)
            everything = b"".join(side.contents.values()) + b"\xff" * (2 * PAGE_SIZE)
            assert found == everything[gpa : gpa + size]

    @rule(at=which, gfn=gfns, offset=offsets, data=st.binary(max_size=40))
    def write_from_outside(self, at: int, gfn: int, offset: int, data: bytes) -> None:
        side = self.sides[at]
        with side.out_of_frames_is_fine():
            data = data[: PAGE_SIZE - offset]
            side.dmm.write(gfn * PAGE_SIZE + offset, data)
            side.write(gfn, offset, data)

    # --- the DMM ---

    @rule(at=which, gfn=gfns)
    def remap(self, at: int, gfn: int) -> None:
        side = self.sides[at]
        if not side.resident(gfn):
            with pytest.raises(ValueError, match="not resident"):
                side.dmm.remap(gfn)
            return
        with side.out_of_frames_is_fine():
            before = side.vm.p2m.mfn(gfn)
            after = side.dmm.remap(gfn)
            assert after == side.vm.p2m.mfn(gfn)
            assert after != before or side.swaps

    @rule(at=which, gfn=gfns, rights=rights)
    def protect(self, at: int, gfn: int, rights: Intent) -> None:
        side = self.sides[at]
        if side.resident(gfn):
            side.dmm.protect(gfn, rights)
            assert side.vm.p2m.rights(gfn) == rights

    @rule(at=which, gfn=gfns)
    def evict(self, at: int, gfn: int) -> None:
        side = self.sides[at]
        if side.resident(gfn) and side.swapper in side.dmm.policies:
            side.dmm.evict(gfn, side.swapper)
            assert side.vm.p2m.type(gfn) == PageType.EVICTED

    @rule(at=which, gfn=gfns, intent=st.sampled_from([Intent.READ, Intent.WRITE, Intent.EXECUTE, ALL_RIGHTS]))
    def resolve(self, at: int, gfn: int, intent: Intent) -> None:
        side = self.sides[at]
        with side.out_of_frames_is_fine():
            mfn = side.dmm.resolve(gfn, intent)
            assert mfn == side.vm.p2m.mfn(gfn) and not intent & ~side.vm.p2m.rights(gfn)

    @rule(at=which, frames=st.integers(1, 4))
    def grow(self, at: int, frames: int) -> None:
        side = self.sides[at]
        before, free = side.vm.pool.size, self.machine.memory.free
        try:
            side.dmm.grow(frames)
            assert side.vm.pool.size == before + frames
        except OutOfMachineFrames:
            assert frames > free and side.vm.pool.size == before

    @rule(at=which, frames=st.integers(1, 4))
    def shrink(self, at: int, frames: int) -> None:
        side = self.sides[at]
        before = side.vm.pool.size
        if before - frames < POOL - 2:
            return
        try:
            side.dmm.shrink(frames)
            assert side.vm.pool.size == before - frames
        except NotEnoughSpare:
            assert side.vm.pool.size == before and not side.swaps

    @rule(at=which, active=st.booleans())
    def swap(self, at: int, active: bool) -> None:
        self.sides[at].swapper.active = active

    @rule(at=which)
    def detach(self, at: int) -> None:
        side = self.sides[at]
        if side.swapper in side.dmm.policies:
            try:
                side.dmm.detach(side.swapper)
                assert not side.swapper.kept
            except OutOfFrames:
                assert side.swapper in side.dmm.policies

    @rule(at=which)
    def attach(self, at: int) -> None:
        side = self.sides[at]
        if side.swapper not in side.dmm.policies:
            side.dmm.detach(side.demand)
            side.dmm.attach(side.swapper)
            side.dmm.attach(side.demand)


def test_dmm_machine() -> None:
    long = bool(os.environ.get("EMU_LONG"))
    run_state_machine_as_test(
        DmmMachine,
        settings=settings(
            max_examples=1000 if long else 60,
            stateful_step_count=80 if long else 40,
            derandomize=not long,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
