"""The DMM's operations, what they tell paging and policies, and that a policy which fails breaks nothing."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from emu.addr import NO_FRAME, PAGE_SIZE
from emu.dmm.errors import NotEnoughSpare, OutOfFrames, PagePinned
from emu.dmm.interface import DmmInterface
from emu.dmm.p2m import ALL_RIGHTS, Intent, PageType
from emu.dmm.policies.demand import DemandPaging, StaticMapping
from emu.dmm.policy import Policy, PolicyFault
from emu.engine import events
from emu.engine.ram import OutOfMachineFrames, Purpose
from emu.errors import EmuError
from emu.machine.machine import Machine
from emu.machine.vm import VirtualMachine
from tests.dmm.stub import ALIASES, CODE, DATA, HLT, MODES, Stub

GFNS, POOL, FREE = 24, 12, 4


class Keeper(Policy):
    """Keeps pages; each of its answers can be made to fail."""

    name = "keeper"

    def __init__(self) -> None:
        self.kept: dict[int, bytes] = {}
        self.fails: set[str] = set()
        self.victims = range(0)

    def _answer(self, question: str) -> None:
        if question in self.fails:
            raise RuntimeError(question)

    def attach(self, dmm: DmmInterface) -> None:
        super().attach(dmm)
        self._answer("attach")

    def detach(self) -> None:
        self._answer("detach")

    def populate(self, gfn: int, kind: PageType) -> None:
        self._answer("populate")

    def denied(self, gfn: int, intent: Intent) -> bool:
        self._answer("denied")
        return False

    def make_room(self, frames: int) -> None:
        self._answer("make_room")
        resident = [gfn for gfn in self.victims if self.dmm.p2m.type(gfn) == PageType.RAM]
        for gfn in resident[:frames]:
            self.dmm.evict(gfn, self)

    def keep(self, gfn: int, contents: bytes) -> None:
        self._answer("keep")
        self.kept[gfn] = contents

    def restore(self, gfn: int) -> bytes:
        self._answer("restore")
        return self.kept[gfn]

    def release(self, gfn: int) -> None:
        del self.kept[gfn]


class Bench:
    """A VM with a stub guest, a keeper and demand paging, audited after each change."""

    def __init__(self, mmu: str = "shadow", mode: str = "4level") -> None:
        self.machine = Machine((1 + (200 if mmu == "shadow" else 0) + POOL + FREE) * PAGE_SIZE)
        tables = 200 if mmu == "shadow" else 0
        self.vm = VirtualMachine(self.machine.shared, "vm", 0, GFNS * PAGE_SIZE, POOL, mmu, tables)
        self.stub = Stub(self.vm, mode)
        self.dmm, self.p2m, self.pool = self.vm.dmm, self.vm.p2m, self.vm.pool
        self.keeper = Keeper()
        self.dmm.attach(self.keeper)
        self.dmm.attach(DemandPaging(self.stub.image))
        self.vm.audit_every_change()
        self.seen: list[events.Event] = []
        self.vm.events.listen(self.seen.append)

    def fill_pool(self) -> None:
        for gfn in range(DATA, GFNS):
            if self.pool.spare:
                self.vm.memory.write(gfn * PAGE_SIZE + 8, bytes([gfn]))

    def state(self) -> tuple[object, ...]:
        """All that a failed operation must leave as it was; tables aside, where a walk may set bits."""
        frames = self.pool.used_frames() - {self.p2m.mfn(table) for table in self.stub.tables}
        contents = tuple(self.vm.machine.memory.pages[mfn].tobytes() for mfn in sorted(frames))
        entries = self.p2m.entries[:GFNS].tobytes()
        return (entries, self.pool.used_frames(), self.pool.spare, contents, dict(self.keeper.kept))


@pytest.fixture(params=["shadow", "nested"])
def bench(request: pytest.FixtureRequest) -> Bench:
    return Bench(request.param)


def test_populate_gives_zeros_or_the_image_and_all_rights(bench: Bench) -> None:
    assert bench.p2m.type(CODE) == PageType.IMAGE and bench.p2m.type(DATA) == PageType.EMPTY
    for gfn in (CODE, DATA):
        mfn = bench.dmm.populate(gfn)
        assert (bench.p2m.type(gfn), bench.p2m.mfn(gfn), bench.p2m.rights(gfn)) == (PageType.RAM, mfn, ALL_RIGHTS)
        assert bench.machine.memory.pages[mfn].tobytes() == bench.stub.image.page(gfn)
        assert bench.dmm.populate(gfn) == mfn


def test_a_frame_shows_nothing_of_its_former_user(bench: Bench) -> None:
    bench.vm.memory.write(DATA * PAGE_SIZE, b"secret" * 600)
    mfn = bench.p2m.mfn(DATA)
    bench.dmm.evict(DATA, bench.keeper)
    assert bench.dmm.populate(DATA + 1) == mfn
    assert bench.vm.memory.read((DATA + 1) * PAGE_SIZE, PAGE_SIZE) == bytes(PAGE_SIZE)


def test_resolve_populates_grants_and_says_so(bench: Bench) -> None:
    mfn = bench.dmm.resolve(DATA, Intent.WRITE)
    bench.dmm.protect(DATA, Intent.READ)
    assert bench.dmm.resolve(DATA, Intent.WRITE | Intent.EXECUTE) == mfn
    assert bench.p2m.rights(DATA) == ALL_RIGHTS
    bench.vm.events.drain()
    faults = [event for event in bench.seen if isinstance(event, events.DmmFault)]
    assert len(faults) == 2


def test_remap_moves_contents_and_rights(bench: Bench) -> None:
    bench.stub.store(DATA * PAGE_SIZE + 7, 99)
    bench.dmm.protect(DATA, Intent.READ)
    before = bench.p2m.mfn(DATA)
    after = bench.dmm.remap(DATA)
    assert after != before and bench.p2m.mfn(DATA) == after and bench.p2m.rights(DATA) == Intent.READ
    assert before in bench.pool.spare_frames()
    assert bench.stub.load(DATA * PAGE_SIZE + 7) == 99


def test_evict_and_touch_again(bench: Bench) -> None:
    bench.stub.store(DATA * PAGE_SIZE + 7, 99)
    bench.dmm.evict(DATA, bench.keeper)
    assert bench.p2m.mfn(DATA) == NO_FRAME and bench.dmm.space.contents.kept() == [DATA]
    assert bench.stub.load(DATA * PAGE_SIZE + 7) == 99
    assert bench.dmm.space.contents.kept() == [DATA] == list(bench.keeper.kept)  # a copy that is still good
    bench.dmm.discard(DATA)
    assert bench.dmm.space.contents.kept() == [] and not bench.keeper.kept


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("mmu", ["shadow", "nested"])
def test_every_page_of_a_guest_can_be_evicted(mmu: str, mode: str) -> None:
    """Code and tables too, the root among them; what the guest then writes into its tables counts at once."""
    bench = Bench(mmu, mode)
    bench.stub.store(DATA * PAGE_SIZE, 1)
    bench.stub.store((DATA + 1) * PAGE_SIZE, 2)
    for _ in range(3):
        for gfn in range(GFNS):
            if bench.p2m.type(gfn) == PageType.RAM:
                bench.dmm.evict(gfn, bench.keeper)
        assert bench.pool.used == 0
        assert bench.stub.load(DATA * PAGE_SIZE) == 1
        if bench.stub.tables:
            for gfn in (DATA, DATA + 1, DATA):
                bench.stub.map(ALIASES, gfn)
                assert bench.stub.load(ALIASES * PAGE_SIZE) == 1 + gfn - DATA
        bench.vm.audit()


@pytest.mark.parametrize(
    "operation",
    [
        lambda dmm, keeper: dmm.remap(DATA),
        lambda dmm, keeper: dmm.protect(DATA, Intent.READ),
        lambda dmm, keeper: dmm.evict(DATA, keeper),
        lambda dmm, keeper: dmm.remap(-1),
        lambda dmm, keeper: dmm.remap(GFNS),
        lambda dmm, keeper: dmm.populate(-1),
        lambda dmm, keeper: dmm.resolve(GFNS, Intent.READ),
        lambda dmm, keeper: dmm.shrink(-1),
        lambda dmm, keeper: dmm.grow(-1),
    ],
)
def test_what_cannot_be_done_is_refused(bench: Bench, operation: Callable[[DmmInterface, Keeper], None]) -> None:
    before = bench.state()
    with pytest.raises(ValueError):
        operation(bench.dmm, bench.keeper)
    assert bench.state() == before


def test_only_a_policy_in_force_can_keep_a_page(bench: Bench) -> None:
    bench.dmm.populate(DATA)
    with pytest.raises(ValueError, match="not attached"):
        bench.dmm.evict(DATA, Keeper())


# --- pool ---


def test_grow_and_shrink(bench: Bench) -> None:
    bench.dmm.grow(FREE)
    assert bench.pool.size == POOL + FREE and bench.machine.memory.free == 0
    with pytest.raises(OutOfMachineFrames):
        bench.dmm.grow(1)
    bench.dmm.shrink(FREE + 1)
    assert bench.pool.size == POOL - 1


def test_shrinking_makes_policies_evict(bench: Bench) -> None:
    bench.fill_pool()
    with pytest.raises(NotEnoughSpare) as caught:
        bench.dmm.shrink(1)
    assert (caught.value.wanted, caught.value.spare, bench.pool.size) == (1, 0, POOL)
    bench.keeper.victims = range(DATA + 1, GFNS - 1)
    bench.dmm.shrink(1)
    assert bench.pool.size == POOL - 1 and len(bench.keeper.kept) == 1


@pytest.mark.parametrize(
    "operation",
    [
        lambda bench: bench.dmm.populate(GFNS - 1),
        lambda bench: bench.dmm.remap(DATA),
        lambda bench: bench.vm.memory.read((GFNS - 1) * PAGE_SIZE, 8),
        lambda bench: bench.vm.memory.write((GFNS - 1) * PAGE_SIZE, b"8 bytes "),
        lambda bench: bench.stub.store((GFNS - 1) * PAGE_SIZE, 1),
    ],
)
def test_a_full_pool_raises_and_loses_nothing(bench: Bench, operation: Callable[[Bench], None]) -> None:
    bench.stub.store(DATA * PAGE_SIZE, 77)
    bench.fill_pool()
    before = bench.state()
    with pytest.raises(OutOfFrames) as caught:
        operation(bench)
    assert caught.value.pool == POOL and "--pool" in str(caught.value)
    assert bench.state() == before
    bench.vm.audit()
    assert bench.stub.load(DATA * PAGE_SIZE) == 77
    bench.keeper.victims = range(DATA + 1, GFNS - 1)
    operation(bench)
    bench.vm.audit()


def test_remap_when_room_is_made_by_evicting_the_very_page(bench: Bench) -> None:
    bench.dmm.grow(FREE)
    bench.vm.memory.write(0, b"first")
    bench.fill_pool()
    bench.keeper.victims = range(GFNS)  # gfn 0 goes first
    mfn = bench.dmm.remap(0)
    assert bench.p2m.mfn(0) == mfn and bench.vm.memory.read(0, 5) == b"first"
    bench.vm.audit()


# --- policies that fail ---


@pytest.mark.parametrize(
    ("question", "operation"),
    [
        ("populate", lambda bench: bench.dmm.populate(DATA + 1)),
        ("populate", lambda bench: bench.stub.load((DATA + 1) * PAGE_SIZE)),
        ("restore", lambda bench: bench.dmm.populate(DATA + 2)),
        ("restore", lambda bench: bench.stub.load((DATA + 2) * PAGE_SIZE)),
        ("restore", lambda bench: bench.dmm.detach(bench.keeper)),
        ("detach", lambda bench: bench.dmm.detach(bench.keeper)),
        ("keep", lambda bench: bench.dmm.evict(DATA, bench.keeper)),
        ("denied", lambda bench: bench.vm.memory.write((DATA + 3) * PAGE_SIZE, b"x")),
        ("denied", lambda bench: bench.stub.store((DATA + 3) * PAGE_SIZE, 1)),
    ],
)
def test_an_answer_that_raises_changes_nothing(bench: Bench, question: str, operation: Callable[[Bench], None]) -> None:
    bench.stub.store(DATA * PAGE_SIZE, 5)
    bench.stub.store((DATA + 2) * PAGE_SIZE, 6)
    bench.dmm.evict(DATA + 2, bench.keeper)
    bench.dmm.protect(DATA, Intent.READ)
    bench.dmm.populate(DATA + 3)
    bench.dmm.protect(DATA + 3, Intent.READ)
    bench.keeper.fails = {question}
    before = bench.state() if question != "detach" else None
    with pytest.raises(RuntimeError, match=question):
        operation(bench)
    assert before is None or bench.state() == before
    assert bench.dmm.policies[0] is bench.keeper
    bench.vm.audit()
    bench.keeper.fails.clear()
    operation(bench)
    bench.vm.audit()
    assert bench.vm.memory.read(DATA * PAGE_SIZE, 1) == b"\5"
    assert bench.vm.memory.read((DATA + 2) * PAGE_SIZE, 1) == b"\6"


def test_a_make_room_that_raises_changes_nothing(bench: Bench) -> None:
    bench.fill_pool()
    before = bench.state()
    bench.keeper.fails = {"make_room"}
    for operation in (lambda: bench.dmm.populate(GFNS - 1), lambda: bench.dmm.remap(DATA), lambda: bench.dmm.shrink(1)):
        with pytest.raises(RuntimeError, match="make_room"):
            operation()
        assert bench.state() == before
    bench.vm.audit()


def test_a_policy_that_fails_to_attach_is_not_in_force(bench: Bench) -> None:
    failing = Keeper()
    failing.fails = {"attach"}
    with pytest.raises(RuntimeError):
        bench.dmm.attach(failing)
    assert failing not in bench.dmm.policies
    with pytest.raises(OutOfFrames):
        bench.dmm.attach(StaticMapping(bench.stub.image))
    assert len(bench.dmm.policies) == 2
    bench.vm.audit()


@pytest.mark.parametrize("contents", [b"", b"x", bytes(PAGE_SIZE - 1), bytes(PAGE_SIZE + 1)])
def test_contents_that_are_no_page_are_refused(bench: Bench, contents: bytes) -> None:
    bench.keeper.populate = lambda gfn, kind: contents  # type: ignore[method-assign,assignment,return-value]
    with pytest.raises(PolicyFault, match=f"keeper.*{len(contents)} bytes"):
        bench.dmm.populate(DATA)
    assert bench.pool.used == 0
    bench.vm.audit()


def test_a_claim_that_a_denied_right_is_settled_is_checked(bench: Bench) -> None:
    bench.dmm.populate(DATA)
    bench.dmm.protect(DATA, Intent.READ)
    bench.keeper.denied = lambda gfn, intent: True  # type: ignore[method-assign]
    with pytest.raises(PolicyFault, match="keeper.*WRITE"):
        bench.stub.store(DATA * PAGE_SIZE, 1)
    bench.vm.audit()


def test_a_page_that_nobody_populates(bench: Bench) -> None:
    bench.dmm.detach(bench.dmm.policies[1])
    with pytest.raises(EmuError, match="no policy populates gfn 0x6, which is EMPTY"):
        bench.dmm.populate(DATA)
    assert bench.pool.used == 0


def test_detach_brings_back_what_the_policy_keeps(bench: Bench) -> None:
    for gfn in (DATA, DATA + 1):
        bench.vm.memory.write(gfn * PAGE_SIZE, bytes([gfn]))
        bench.dmm.evict(gfn, bench.keeper)
    bench.dmm.detach(bench.keeper)
    assert not bench.keeper.kept and bench.keeper not in bench.dmm.policies
    assert [bench.vm.memory.read(gfn * PAGE_SIZE, 1)[0] for gfn in (DATA, DATA + 1)] == [DATA, DATA + 1]


def test_a_policy_whose_pages_do_not_fit_stays_in_force(bench: Bench) -> None:
    """It is not asked to make room for them either: it would evict one page for the other, for ever."""
    bench.vm.memory.write(DATA * PAGE_SIZE, b"kept")
    bench.dmm.evict(DATA, bench.keeper)
    for gfn in range(DATA + 1, DATA + 1 + POOL):
        bench.dmm.populate(gfn)
    bench.keeper.victims = range(DATA + 1, GFNS - 1)
    with pytest.raises(OutOfFrames):
        bench.dmm.detach(bench.keeper)
    assert bench.dmm.policies[0] is bench.keeper
    bench.vm.audit()
    assert bench.vm.memory.read(DATA * PAGE_SIZE, 4) == b"kept"


def test_a_policy_may_look_at_other_pages_while_it_is_asked(bench: Bench) -> None:
    def populate(gfn: int, kind: PageType) -> bytes | None:
        return bench.vm.memory.read((gfn + 1) * PAGE_SIZE, PAGE_SIZE) if gfn == DATA else None

    bench.vm.memory.write((DATA + 1) * PAGE_SIZE, b"copy me")
    bench.dmm.evict(DATA + 1, bench.keeper)
    bench.keeper.populate = populate  # type: ignore[method-assign,assignment]
    assert bench.vm.memory.read(DATA * PAGE_SIZE, 7) == b"copy me"


@pytest.mark.parametrize("change", ["remap", "populate", "write"])
def test_the_page_that_a_policy_is_asked_about_cannot_change(bench: Bench, change: str) -> None:
    def keep(gfn: int, contents: bytes) -> None:
        if change == "remap":
            bench.dmm.remap(gfn)
        elif change == "write":
            bench.vm.memory.write(gfn * PAGE_SIZE, b"lost")

    def restore(gfn: int) -> bytes:
        bench.dmm.populate(gfn)
        return bytes(PAGE_SIZE)

    bench.vm.memory.write(DATA * PAGE_SIZE, b"contents")
    if change == "populate":
        bench.dmm.evict(DATA, bench.keeper)
        bench.keeper.restore = restore  # type: ignore[method-assign]
        operation = bench.dmm.populate
    else:
        bench.keeper.keep = keep  # type: ignore[method-assign]
        operation = lambda gfn: bench.dmm.evict(gfn, bench.keeper)  # type: ignore[assignment] # noqa: E731
    with pytest.raises(ValueError, match="cannot change"):
        operation(DATA)
    bench.vm.audit()


# --- what the guest sees of rights and holes ---


def test_each_right_is_asked_for(bench: Bench) -> None:
    gva = DATA * PAGE_SIZE
    bench.stub.store(gva, HLT)
    for right, access in (
        (Intent.READ, lambda: bench.stub.load(gva)),
        (Intent.WRITE, lambda: bench.stub.store(gva, HLT)),
        (Intent.EXECUTE, lambda: bench.stub.execute(gva)),
    ):
        bench.dmm.protect(DATA, Intent(int(ALL_RIGHTS) & ~int(right)))
        for touch in (bench.stub.load, lambda gva: bench.stub.store(gva, HLT), bench.stub.execute):
            touch(gva)  # maps the page, as far as it may be mapped
        access()
        assert bench.p2m.rights(DATA) & right


def test_a_walk_asks_for_the_right_to_read_a_table(bench: Bench) -> None:
    bench.stub.load(DATA * PAGE_SIZE)
    for table in bench.stub.tables:
        bench.dmm.protect(table, Intent(0))
        bench.stub.load(DATA * PAGE_SIZE)
        assert bench.p2m.rights(table) & Intent.READ


def test_a_hole_reads_as_ones_whatever_is_stored_into_it(bench: Bench) -> None:
    page = ALIASES * PAGE_SIZE
    bench.stub.map(ALIASES, GFNS + 3)
    assert bench.stub.load(page + 4) == 0xFF
    bench.stub.store(page + 4, 1)
    bench.stub.store4(page + 8, 0)
    assert bench.stub.load(page + 4) == 0xFF and bench.stub.load4(page + 8) == 0xFFFF_FFFF
    assert (bench.machine.memory.pages[bench.machine.memory.void_mfn] == 0xFF).all()


def test_a_store_into_a_table_that_holds_code(bench: Bench) -> None:
    """The write trap drops the frame's code, which flushes the TLB under the store that is going on."""
    table = bench.stub.tables[-1]
    bench.stub.store(DATA * PAGE_SIZE, 9)
    bench.stub.store(table * PAGE_SIZE + 4000, HLT)
    bench.stub.execute(table * PAGE_SIZE + 4000)
    bench.stub.map(ALIASES, DATA)
    assert bench.stub.load(ALIASES * PAGE_SIZE) == 9


def test_reading_and_writing_from_outside_crosses_pages_and_holes(bench: Bench) -> None:
    end = GFNS * PAGE_SIZE
    bench.vm.memory.write(end - 3, b"abcdef")
    assert bench.vm.memory.read(end - 4, 8) == b"\0abc\xff\xff\xff\xff"
    bench.vm.memory.write(DATA * PAGE_SIZE + 4090, b"0123456789")
    assert bench.vm.memory.read(DATA * PAGE_SIZE + 4089, 12) == b"\x000123456789\0"
    assert bench.vm.memory.read(DATA * PAGE_SIZE, 0) == b""


def test_writing_from_outside_into_code_and_tables_counts_at_once(bench: Bench) -> None:
    code = (DATA + 2) * PAGE_SIZE
    bench.vm.memory.write(code, bytes([HLT, HLT]))
    bench.stub.execute(code)
    bench.vm.memory.write(code, b"\x90")
    bench.stub.execute(code)
    assert bench.vm.cpu.rip == code + 2
    for gfn, value in ((DATA, 1), (DATA + 1, 2)):
        bench.stub.store(gfn * PAGE_SIZE, value)
        bench.vm.memory.write(bench.stub.entry_gpa(ALIASES), bench.stub.leaf(gfn).to_bytes(8, "little"))
        bench.stub.reload()
        assert bench.stub.load(ALIASES * PAGE_SIZE) == value


def test_a_discarded_page_is_zero_when_it_is_touched_again(bench: Bench) -> None:
    gva = DATA * PAGE_SIZE + 5
    bench.stub.store(gva, 0x77)
    mfn, spare = bench.p2m.mfn(DATA), bench.pool.spare
    bench.dmm.discard(DATA)
    assert (bench.p2m.type(DATA), bench.pool.spare) == (PageType.EMPTY, spare + 1)
    bench.vm.events.drain()
    assert [event.mfn for event in bench.seen if isinstance(event, events.Discard)] == [mfn]
    assert bench.stub.load(gva) == 0


def test_every_kind_of_memory_can_be_discarded(bench: Bench) -> None:
    bench.vm.memory.write(DATA * PAGE_SIZE, b"kept")
    bench.dmm.evict(DATA, bench.keeper)
    assert bench.p2m.type(CODE) is PageType.IMAGE
    for gfn in (DATA, CODE, DATA + 1):
        bench.dmm.discard(gfn)
        assert bench.p2m.type(gfn) is PageType.EMPTY
        assert bench.vm.memory.read(gfn * PAGE_SIZE, PAGE_SIZE) == bytes(PAGE_SIZE)
    assert not bench.keeper.kept and not bench.dmm.space.contents.kept()
    with pytest.raises(ValueError, match="no memory"):
        bench.dmm.discard(GFNS)


# --- clean pages, and where they came from ---


def evictions(bench: Bench) -> list[tuple[PageType, bool]]:
    """What each page became that was evicted, and whether it had to be stored."""
    bench.vm.events.drain()
    return [(PageType(event.became), bool(event.stored)) for event in bench.seen if isinstance(event, events.Evict)]


def test_a_page_that_nobody_stored_to_goes_back_where_it_came_from(bench: Bench) -> None:
    bench.stub.store(DATA * PAGE_SIZE, 7)
    bench.dmm.evict(DATA, bench.keeper)
    bench.keeper.fails = {"keep"}
    for gfn, kind in ((CODE, PageType.IMAGE), (DATA, PageType.EVICTED), (DATA + 1, PageType.EMPTY)):
        for _ in range(2):
            wanted = bench.stub.load(gfn * PAGE_SIZE)
            assert bench.p2m.origin(gfn) is kind and not bench.p2m.dirty(gfn)
            bench.dmm.evict(gfn, bench.keeper)
            assert bench.p2m.type(gfn) is kind
            assert bench.stub.load(gfn * PAGE_SIZE) == wanted
            bench.vm.audit()
    assert [stored for _, stored in evictions(bench)] == [True] + [False] * 6


@pytest.mark.parametrize("origin", [PageType.EMPTY, PageType.IMAGE, PageType.EVICTED])
def test_a_page_is_kept_once_it_is_stored_to(bench: Bench, origin: PageType) -> None:
    gfn = CODE if origin is PageType.IMAGE else DATA
    if origin is PageType.EVICTED:
        bench.stub.store(gfn * PAGE_SIZE + 3000, 1)
        bench.dmm.evict(gfn, bench.keeper)
    bench.stub.load(gfn * PAGE_SIZE)
    bench.stub.store(gfn * PAGE_SIZE + 3000, 2)
    assert (bench.p2m.origin(gfn), bench.p2m.dirty(gfn)) == (origin, True)
    bench.dmm.evict(gfn, bench.keeper)
    assert evictions(bench)[-1] == (PageType.EVICTED, True)
    assert bench.keeper.kept[gfn][3000] == 2 == bench.stub.load(gfn * PAGE_SIZE + 3000)


def test_a_page_of_zeros_needs_no_keeper(bench: Bench) -> None:
    """Not even where an older copy, which is no zeros, is kept."""
    bench.stub.store(DATA * PAGE_SIZE, 1)
    bench.dmm.evict(DATA, bench.keeper)
    bench.stub.store(DATA * PAGE_SIZE, 0)
    bench.dmm.evict(DATA, bench.keeper)
    assert evictions(bench) == [(PageType.EVICTED, True), (PageType.EMPTY, False)]
    assert not bench.keeper.kept and bench.stub.load(DATA * PAGE_SIZE) == 0


def test_contents_that_a_policy_gave_an_empty_page_are_kept(bench: Bench) -> None:
    """They are clean, and could not be had from EMPTY again after the policy has gone."""
    bench.keeper.populate = lambda gfn, kind: b"\7" * PAGE_SIZE  # type: ignore[method-assign,assignment,return-value]
    bench.dmm.populate(DATA)
    bench.dmm.evict(DATA, bench.keeper)
    assert evictions(bench) == [(PageType.EVICTED, True)]


def test_a_clean_page_stays_with_the_policy_that_has_its_copy(bench: Bench) -> None:
    second = Keeper()
    bench.dmm.attach(second)
    bench.stub.store(DATA * PAGE_SIZE, 1)
    bench.dmm.evict(DATA, bench.keeper)
    bench.stub.load(DATA * PAGE_SIZE)
    bench.dmm.evict(DATA, second)
    assert set(bench.keeper.kept) == {DATA} and not second.kept
    bench.stub.store(DATA * PAGE_SIZE, 2)
    bench.dmm.evict(DATA, second)
    assert not bench.keeper.kept and second.kept[DATA][0] == 2  # the old copy is released
    assert bench.stub.load(DATA * PAGE_SIZE) == 2
    bench.dmm.detach(second)
    bench.dmm.evict(DATA, bench.keeper)
    assert bench.keeper.kept[DATA][0] == 2  # its copy went with the policy, so it had to be stored again


# --- pins ---


def test_a_pinned_page_keeps_a_frame_and_its_contents(bench: Bench) -> None:
    bench.stub.store(DATA * PAGE_SIZE, 9)
    bench.dmm.evict(DATA, bench.keeper)
    bench.dmm.pin(DATA)
    bench.dmm.pin(DATA)
    for _ in range(2):
        before = bench.state()
        for operation in (lambda: bench.dmm.evict(DATA, bench.keeper), lambda: bench.dmm.discard(DATA)):
            with pytest.raises(PagePinned, match="vm: gfn 0x6 is pinned") as caught:
                operation()
            assert (caught.value.vm, caught.value.gfn) == ("vm", DATA)
            assert bench.state() == before
        assert not bench.dmm.is_evictable(DATA)
        bench.dmm.unpin(DATA)
    assert bench.dmm.is_evictable(DATA)
    bench.dmm.evict(DATA, bench.keeper)
    assert not bench.dmm.is_evictable(DATA)


def test_a_pinned_page_can_move(bench: Bench) -> None:
    bench.dmm.pin(DATA)
    before = bench.p2m.mfn(DATA)
    assert bench.dmm.remap(DATA) != before
    before = bench.p2m.mfn(DATA)
    bench.dmm.retire(before)
    assert bench.p2m.mfn(DATA) not in (before, NO_FRAME)


def test_a_pin_that_finds_no_frame_pins_nothing(bench: Bench) -> None:
    bench.fill_pool()
    with pytest.raises(OutOfFrames):
        bench.dmm.pin(GFNS - 1)
    bench.dmm.discard(GFNS - 1)


def test_shrinking_names_the_pages_that_are_pinned(bench: Bench) -> None:
    bench.fill_pool()
    bench.dmm.pin(DATA + 2)
    bench.dmm.pin(DATA + 1)
    with pytest.raises(NotEnoughSpare, match="2 pages are pinned, the first is gfn 0x7") as caught:
        bench.dmm.shrink(3)
    assert (caught.value.wanted, caught.value.spare, caught.value.pinned) == (3, 0, [DATA + 1, DATA + 2])


# --- the end of a VM ---


def test_a_vm_that_is_closed_gives_everything_back(bench: Bench) -> None:
    bench.stub.load(DATA * PAGE_SIZE)
    bench.fill_pool()
    bench.dmm.evict(DATA, bench.keeper)
    bench.dmm.pin(DATA + 1)
    gone: list[str] = []
    bench.keeper.detach = lambda: gone.append("keeper")  # type: ignore[method-assign]
    bench.dmm.close()
    memory = bench.machine.memory
    assert gone == ["keeper"] and not bench.dmm.policies and not bench.machine.shared.spaces
    assert memory.free == memory.frames - 1 == len(memory.free_frames())
    assert (bench.machine.m2p.gfn == NO_FRAME).all() and not len(bench.p2m.resident())
    assert {int(purpose) for purpose in memory.purpose} == {Purpose.FREE, Purpose.VOID}
