"""What the guest asks for: pages without a frame, and rights that are not granted."""

from __future__ import annotations

import pytest

from emu.addr import PAGE_SIZE
from emu.dmm.p2m import ALL_RIGHTS, Intent
from emu.dmm.policy import PolicyFault
from emu.engine import events
from tests.dmm.bench import Bench
from tests.dmm.stub import DATA, HLT


def test_resolve_populates_grants_and_says_so(bench: Bench) -> None:
    mfn = bench.dmm.resolve(DATA, Intent.WRITE)
    bench.dmm.protect(DATA, Intent.READ)
    assert bench.dmm.resolve(DATA, Intent.WRITE | Intent.EXECUTE) == mfn
    assert bench.p2m.rights(DATA) == ALL_RIGHTS
    bench.vm.events.drain()
    faults = [event for event in bench.seen if isinstance(event, events.DmmFault)]
    assert len(faults) == 2


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


def test_a_claim_that_a_denied_right_is_settled_is_checked(bench: Bench) -> None:
    bench.dmm.populate(DATA)
    bench.dmm.protect(DATA, Intent.READ)
    bench.keeper.denied = lambda gfn, intent: True  # type: ignore[method-assign]
    with pytest.raises(PolicyFault, match="keeper.*WRITE"):
        bench.stub.store(DATA * PAGE_SIZE, 1)
    bench.vm.audit()
