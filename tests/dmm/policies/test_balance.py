"""Balancing: what the estimate of a working set is worth, and which VM's frames move to which."""

from __future__ import annotations

from itertools import pairwise

import pytest

from emu.addr import PAGE_SIZE
from emu.dmm.policies import balance as module
from emu.dmm.policies.balance import LEAST, Balance
from emu.dmm.policies.pool_control import PoolControl
from emu.engine import events
from emu.machine.machine import Machine
from emu.machine.vm import VirtualMachine
from emu.testing import boot
from tests.dmm.model import GFNS, POOL, Side, make_sides
from tests.guests.programs import program

MMUS = ("shadow", "nested")
PERIOD = 1_000_000  # ns
ROUND = 4_000_000  # ns: in which the busy VM uses all of its pages
LONGEST_PAUSE = 8  # periods between two samples
PAGES = 400  # that a guest touches at first
USED = 0x9F00  # gpa of the number of pages that it uses later


def toucher(used: int, pages: int = PAGES, store: bool = True, pause: int = 1) -> str:
    """A guest that touches ``pages`` pages once, and then the first ``used`` of them for ever.

    Args:
        store: whether it stores to them or loads, for ever.
        pause: turns of a loop after each page, 5 ns each.
    """
    access = "mov [edi], edi" if store else "mov eax, [edi]"
    return program(
        "paging32",
        f"""
    mov dword ptr [{USED:#x}], {used}
    mov edi, 0x100000
    mov ecx, {pages}
first:
    mov [edi], edi
    add edi, 0x1000
    loop first
round:
    mov edi, 0x100000
    mov ecx, [{USED:#x}]
again:
    {access}
    add edi, 0x1000
    mov eax, {pause}
wait:
    sub eax, 1
    jnz wait
    loop again
    jmp round
""",
    )


def balanced(vm: VirtualMachine, period: int = PERIOD, **options: int) -> Balance:
    assert vm.guest is not None
    balance = Balance(vm.guest.image, period, **options)
    vm.attach(balance)
    return balance


# --- the estimate -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mmu", MMUS)
@pytest.mark.parametrize("percent", [10, 30, 60, 95])
@pytest.mark.parametrize("store", [False, True])
def test_the_estimate_follows_the_guest(mmu: str, percent: int, store: bool) -> None:
    guest = boot(toucher(PAGES * percent // 100, store=store), ram="4M", mmu=mmu)
    balance = balanced(guest.vm)
    guest.run("150ms")
    assert balance.active == pytest.approx(percent / 100, abs=0.15)
    assert balance.working_set == pytest.approx(PAGES * percent / 100, abs=0.15 * PAGES)


def test_both_paging_architectures_estimate_the_same() -> None:
    estimates = []
    for mmu in MMUS:
        guest = boot(toucher(PAGES // 3), ram="4M", mmu=mmu)
        balance = balanced(guest.vm, sample=30, seed=7)
        seen = []
        for _ in range(30):
            guest.run("1ms")
            seen.append(balance.active)
        estimates.append(seen)
    assert estimates[0] == estimates[1]
    assert len(set(estimates[0])) > 5


def test_the_estimate_rises_at_once_and_falls_slowly() -> None:
    """A VM that wakes up must not be short of memory meanwhile (section 5.3 of Waldspurger's article)."""
    guest = boot(toucher(PAGES // 10), ram="4M")
    balance = balanced(guest.vm)
    falling = []
    for _ in range(100):
        guest.run("1ms")
        falling.append(balance.active)
    assert all(after <= before + 0.05 for before, after in pairwise(falling))  # but for the chance of a sample
    assert falling[3] > 0.6 and falling[-1] < 0.3
    guest.vm.memory.write(USED, PAGES.to_bytes(4, "little"))
    guest.run(2 * LONGEST_PAUSE * PERIOD / 1e9)
    assert balance.active > 0.9


# --- frames move ------------------------------------------------------------------------------------------------


class Pair:
    """A VM that uses a tenth of what it has touched, and one that uses more than its pool, on one machine."""

    def __init__(self, mmu: str, idle: dict[str, int], busy: dict[str, int], free: int = 0) -> None:
        pool = PAGES * PAGE_SIZE
        ram = 4 << 20
        self.machine = Machine(2 * Machine.size_for(ram, pool, mmu) + (free - 1) * PAGE_SIZE)
        sources = toucher(PAGES // 10, PAGES - 8), toucher(PAGES * 3 // 2, PAGES * 3 // 2, pause=1000)
        self.guests = [
            boot(source, ram=ram, pool=pool, mmu=mmu, policies=["swap"], machine=self.machine, name=name)
            for source, name in zip(sources, ("idle", "busy"), strict=True)
        ]
        self.idle, self.busy = (guest.vm for guest in self.guests)
        self.balances = [balanced(self.idle, ROUND, **idle), balanced(self.busy, ROUND, **busy)]
        self.total = self._total()

    def _total(self) -> int:
        return self.idle.pool.size + self.busy.pool.size + self.machine.memory.free

    def run(self, periods: int) -> list[int]:
        """One after the other for a sampling period; returns the sizes of the idle VM's pool."""
        sizes = []
        for _ in range(periods):
            for guest in self.guests:
                guest.run(ROUND / 1e9)
                assert self._total() == self.total
            sizes.append(self.idle.pool.size)
        for guest in self.guests:
            guest.vm.audit()
        return sizes


@pytest.mark.parametrize("mmu", MMUS)
def test_an_idle_vm_gives_to_one_under_pressure(mmu: str) -> None:
    pair = Pair(mmu, {"step": 16}, {"step": 16})
    sizes = pair.run(5)
    first_evictions = pair.busy.events.counts()["evict"]
    assert pair.balances[1].active > 0.9  # though much of what it uses comes from the store
    sizes += pair.run(55)
    assert sizes == sorted(sizes, reverse=True)
    assert all(before - after <= 16 for before, after in zip(sizes, sizes[1:], strict=False))
    assert pair.busy.pool.size >= PAGES * 3 // 2 - 40
    assert pair.idle.pool.size >= max(LEAST, PAGES // 10)
    evicted = pair.busy.events.counts()["evict"]
    pair.run(5)
    assert pair.busy.events.counts()["evict"] - evicted < first_evictions


def test_nothing_moves_between_two_vms_that_are_content() -> None:
    pair = Pair("nested", {}, {})
    pair.busy.dmm.detach(pair.balances[1])
    assert set(pair.run(10)) == {PAGES}


def taken(idle: dict[str, int], busy: dict[str, int]) -> int:
    """Frames that the idle VM has lost in the end."""
    pair = Pair("nested", idle, busy)
    return PAGES - pair.run(25)[-1]


def test_the_tax_decides_how_much_idle_memory_moves() -> None:
    by_tax = [taken({"tax": tax}, {"tax": tax}) for tax in (0, 50, 99)]
    assert by_tax == sorted(by_tax)
    assert by_tax[0] == 0 < by_tax[2]  # without a tax only the shares count, and these are the same


def test_shares_protect() -> None:
    """Who has more shares pays more for each frame."""
    by_shares = [taken({"shares": shares, "tax": 50}, {"tax": 50}) for shares in (1, 2, 10)]
    assert by_shares == sorted(by_shares, reverse=True)
    assert by_shares[0] > 0 == by_shares[2]
    assert taken({"tax": 0}, {"shares": 4, "tax": 0}) > 0


@pytest.mark.parametrize("tax", [0, 75, 99])
def test_the_price_of_an_idle_frame(tax: int) -> None:
    guest = boot(toucher(PAGES // 10), ram="4M", pool=512 * PAGE_SIZE)
    balance = balanced(guest.vm, tax=tax, shares=3)
    guest.run("100ms")
    used = balance.working_set
    assert balance.price == pytest.approx(3 / (used + (512 - used) * 100 / (100 - tax)))


def test_two_runs_are_the_same() -> None:
    assert Pair("nested", {}, {"seed": 3}).run(12) == Pair("nested", {}, {"seed": 3}).run(12)


# --- frames that nobody has -------------------------------------------------------------------------------------


@pytest.mark.parametrize("mmu", MMUS)
def test_frames_that_nobody_has_come_first(mmu: str) -> None:
    """Before anything is evicted, here or elsewhere."""
    free = PAGES // 4
    pair = Pair(mmu, {"step": 16}, {"step": 16}, free=free)
    for guest, balance in zip(pair.guests, pair.balances, strict=True):
        guest.vm.dmm.detach(balance)  # and in force again before swapping
        (swap,) = [policy for policy in guest.vm.dmm.policies if policy.name == "swap"]
        guest.vm.dmm.detach(swap)
        guest.vm.attach(balance)
        guest.vm.attach(swap)
    seen: list[events.Event] = []
    pair.busy.events.listen(seen.append, [events.PoolResize, events.Evict])
    pair.run(3)
    first = next(index for index, event in enumerate(seen) if isinstance(event, events.Evict))
    grown = seen[first - 1]
    assert isinstance(grown, events.PoolResize) and grown.after == PAGES + free
    assert pair.idle.pool.size + pair.busy.pool.size == 2 * PAGES + free


def test_making_room_without_a_free_frame_is_no_event() -> None:
    side = make_sides(("nested", "4level"))[0]
    side.attach("balance", period=PERIOD)
    side.attach("swap")
    resized: list[events.Event] = []
    side.vm.events.listen(resized.append, [events.PoolResize])
    for gfn in range(GFNS):
        side.vm.memory.write(gfn * PAGE_SIZE + 3000, b"x")
        side.write(gfn, 3000, b"x")
    side.vm.events.drain()
    assert side.vm.events.counts()["evict"] == GFNS - POOL and resized == []
    side.check()


# --- beside others ----------------------------------------------------------------------------------------------


def full_side(spare: int) -> Side:
    side = make_sides(("nested", "4level"), spare=spare)[0]
    for gfn in range(POOL):
        side.vm.memory.write(gfn * PAGE_SIZE + 3000, b"x")
        side.write(gfn, 3000, b"x")
    assert not side.pool.spare
    side.attach("balance", period=PERIOD)
    side.attach("swap")
    return side


@pytest.mark.parametrize("free", [0, 2, 5])
def test_what_a_vm_gives_is_not_made_up_for_by_growing(free: int, monkeypatch: pytest.MonkeyPatch) -> None:
    side = full_side(free)
    balance = side.policies["balance"]
    assert isinstance(balance, Balance)
    balance.active = 0.0
    before = side.vm.machine.memory.free
    monkeypatch.setattr(module, "LEAST", 4)
    assert balance._give(5) == 5
    assert side.pool.size == POOL - 5
    assert side.vm.machine.memory.free == before + 5
    side.check()


@pytest.mark.parametrize("free", [2, 5])
def test_a_pool_that_is_told_to_shrink_does(free: int) -> None:
    side = full_side(free)
    control = PoolControl(side.stub.image, [(0, (POOL - 4) * PAGE_SIZE)])
    side.dmm.attach(control)
    control.epoch(0)
    assert (side.pool.size, side.vm.machine.memory.free) == (POOL - 4, free + 4)
    side.check()
