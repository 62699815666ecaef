"""A VM with a stub guest beside a model that knows contents only, for tests that drive several VMs at random."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from emu.addr import PAGE_SIZE
from emu.dmm.catalog import Choice
from emu.dmm.errors import NoProgress, OutOfFrames
from emu.dmm.p2m import Intent, PageType
from emu.dmm.policies.demand import DemandPaging
from emu.dmm.policies.swap import Swap
from emu.dmm.policy import Policy
from emu.dmm.space import SharedMachine
from emu.engine.ram import Purpose
from emu.machine.vm import VirtualMachine
from emu.mmu.paging import flush_tlbs
from tests.dmm.stub import ALIASES, CODE, MODES, Stub

GFNS = 24  # pages of RAM of each VM
POOL = 12  # frames that each begins with
ENOUGH = 8  # frames that one access needs at most: code, four tables, two pages of data, and one to choose from


class Side:
    """One VM and its model.

    Args:
        index: its number in the machine, which no other VM has had.
        tables: its shadow tables, if it has any.
        second: how its second processor pages (:class:`tests.dmm.stub.Stub`); with None there is none.

    Attributes:
        contents: gfn to the bytes that the guest would find there.
        mapped: alias page to gfn, for each processor.
        pins: gfn to the number of its pins.
    """

    def __init__(
        self, machine: SharedMachine, index: int, mmu: str, mode: str, tables: int, pool: int, second: str | None = None
    ) -> None:  # fmt: skip
        name = f"vm{index}-{mmu}-{mode}"
        cpus = 1 if second is None else 2
        self.vm = VirtualMachine(machine, name, index, GFNS * PAGE_SIZE, pool, mmu, tables, cpus=cpus)
        self.dmm, self.p2m, self.pool = self.vm.dmm, self.vm.p2m, self.vm.pool
        self.stub = Stub(self.vm, mode, second)
        self.policies: dict[str, Policy] = {}
        self.dmm.attach(DemandPaging(self.stub.image))
        self.vm.audit_every_change()
        self.contents = {gfn: bytearray(self.stub.image.page(gfn)) for gfn in range(GFNS)}
        self.mapped = [
            {page: page - ALIASES if view.tables else page for page in range(ALIASES, ALIASES + GFNS)}
            for view in self.stub.views
        ]
        self.pins: dict[int, int] = {}

    def attach(self, name: str, **options: object) -> None:
        """Put the policy that the catalog calls ``name`` in force."""
        policy = Choice(name, options).make(self.stub.image)
        self.dmm.attach(policy)
        self.policies[name] = policy

    @property
    def swap(self) -> Swap | None:
        policy = self.policies.get("swap")
        assert policy is None or isinstance(policy, Swap)
        return policy

    def gfn(self, page: int) -> int:
        """The gfn behind a gva page of the stub's processor."""
        return self.mapped[self.stub.cpu].get(page, page)

    def on(self, cpu: int) -> Side:
        """The same with processor ``cpu``, or the only one, making the accesses from now on."""
        self.stub.on(cpu % len(self.stub.views))
        return self

    def change_alias(self, page: int, gfn: int) -> None:
        """Map an alias page elsewhere, and tell every processor that uses the same tables."""
        stub, here = self.stub, self.stub.cpu
        stub.map(page, gfn)
        self.write(*divmod(stub.entry_gpa(page), PAGE_SIZE), stub.leaf(gfn).to_bytes(4, "little"))
        for cpu, view in enumerate(stub.views):
            if view is stub.views[here]:
                self.mapped[cpu][page] = gfn
        for cpu, view in enumerate(stub.views):
            if cpu != here and view is stub.views[here]:
                try:
                    stub.on(cpu).flush(page)
                except (NoProgress, OutOfFrames):
                    flush_tlbs(self.vm.processor.native_at)
                    raise

    def any_resident(self, n: int, shared: bool = False) -> int | None:
        """A resident gfn, or one that is shared, chosen by ``n``; None when there is none."""
        gfns = [gfn for gfn in self.p2m.resident().tolist() if not shared or self.p2m.type(gfn) is PageType.SHARED]
        return gfns[n % len(gfns)] if gfns else None

    def is_free_to_change(self, gfn: int) -> bool:
        """Whether the guest goes on whatever the page holds."""
        return gfn != CODE and not self.stub.entry_size(gfn)

    def holds(self, gfn: int) -> bytes:
        """What a page holds, looked up without touching it."""
        if self.dmm.is_resident(gfn):
            return self.vm.machine.memory.pages[self.p2m.mfn(gfn)].tobytes()
        return self._source(gfn, self.p2m.type(gfn))

    def _source(self, gfn: int, kind: PageType) -> bytes:
        """What a page that is of a kind without a frame, or was of that kind and is clean, must hold."""
        if kind is PageType.EVICTED:
            return self.dmm.space.contents._keepers[gfn].restore(gfn)
        return self.stub.image.page(gfn) if kind is PageType.IMAGE else bytes(PAGE_SIZE)

    def write(self, gfn: int, offset: int, data: bytes) -> None:
        if gfn < GFNS:
            self.contents[gfn][offset : offset + len(data)] = data

    def discard(self, gfn: int) -> None:
        self.dmm.discard(gfn)
        self.write(gfn, 0, bytes(PAGE_SIZE))

    # --- what may fail ---

    @contextmanager
    def out_of_frames_is_fine(self) -> Iterator[None]:
        """An operation may fail for want of frames, and only when no frame can be had.

        The model changes behind the operation, within the block, and so not at all when it fails.
        """
        try:
            yield
        except NoProgress:
            assert len(self._used_here()) - len(self.pins) + self.pool.spare < ENOUGH
        except OutOfFrames:
            assert self.pool.spare == 0
            self.assert_nothing_can_go(self.swap is not None)

    def _used_here(self) -> list[int]:
        """The resident gfns whose frames are those of the pool."""
        owner = self.vm.machine.memory.owner
        return [gfn for gfn in self.p2m.resident().tolist() if owner[self.p2m.mfn(gfn)] == self.dmm.index]

    def assert_nothing_can_go(self, swaps: bool) -> None:
        """No policy has missed a frame that it could have spared for this pool."""
        memory, m2p = self.vm.machine.memory, self.vm.machine.m2p
        if "balance" in self.policies:
            assert memory.free == 0
        if swaps:
            assert not [gfn for gfn in self._used_here() if self.dmm.is_evictable(gfn)]
        for mfn in self.pool.used_frames():
            users = {vm for vm, _ in m2p.users(mfn)}
            if users and self.dmm.index not in users:
                pools = [self.vm.machine.spaces[vm].pool for vm in users]
                assert not any(pool.spare for pool in pools), f"mfn {mfn:#x} could be handed over"

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
            gfn = self.gfn(page)
            if gfn < GFNS:
                assert self.p2m.grants(gfn, intent), f"gva page {page:#x} without {intent!r}"
                assert self.p2m.accessed(gfn)
                assert not intent & Intent.WRITE or self.p2m.dirty(gfn)
        pdpt_is_in_registers = self.stub.mode.name == "pae"  # it is read at MOV CR3 alone (SDM vol. 3A, 4.4.1)
        for table in self.stub.tables[pdpt_is_in_registers:]:
            assert self.p2m.grants(table, Intent.READ), f"a walk through table {table} without the right to read"

    # --- what must hold ---

    def check(self) -> None:
        """The audit passes, every page holds what the model says, and clean pages what they came with."""
        self.vm.audit()
        for gfn, wanted in self.contents.items():
            found = self.holds(gfn)
            if self.dmm.is_resident(gfn) and not self.p2m.dirty(gfn):
                assert found == self._source(gfn, self.p2m.origin(gfn)), f"{self.vm.name}: gfn {gfn:#x} is not clean"
            size = self.stub.entry_size(gfn)
            assert _modelled(found, size) == _modelled(wanted, size), f"{self.vm.name}: gfn {gfn:#x} lost its contents"
        for gfn in self.pins:
            assert self.dmm.is_resident(gfn)


def _modelled(page: bytes | bytearray, entry: int) -> bytearray:
    """A page without what the model does not know: the accessed and dirty bits of a table with such entries."""
    modelled = bytearray(page)
    if entry:
        modelled[::entry] = bytes(byte & ~0x60 for byte in page[::entry])
    return modelled


def frame_counts(machine: SharedMachine) -> dict[str, int]:
    """How many frames are for what."""
    return {purpose.name: int((machine.memory.purpose == purpose).sum()) for purpose in Purpose}


KINDS = [(mmu, mode) for mmu in ("shadow", "nested") for mode in MODES]


def fill_unused_with_junk(machine: SharedMachine) -> None:
    """Whoever still reads a frame that nobody uses any more is found out."""
    memory = machine.memory
    unused = np.isin(memory.purpose, [Purpose.FREE, Purpose.RETIRED])
    for space in machine.spaces.values():
        unused[sorted(space.pool.spare_frames())] = True
    memory.pages[unused] = 0xEE


def make_sides(*kinds: tuple[str, str], pools: tuple[int, ...] = (), tables: int = 20, spare: int = 0) -> list[Side]:
    """VMs of these (mmu, mode) on a machine that has ``spare`` frames more than they need, not swapping.

    Args:
        pools: frames of each VM's pool, POOL by default.
    """
    pools = pools or (POOL,) * len(kinds)
    shadow = sum(tables for mmu, _ in kinds if mmu == "shadow")
    machine = SharedMachine(1 + shadow + sum(pools) + spare)
    return [
        Side(machine, index, mmu, mode, tables, pool)
        for index, ((mmu, mode), pool) in enumerate(zip(kinds, pools, strict=True))
    ]
