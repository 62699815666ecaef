"""Sharing and swapping together, in VMs whose pools are too small."""

from __future__ import annotations

import pytest

from emu.fleet.fleet import Fleet, FleetPlan, VmPlan
from emu.options import BootOptions


@pytest.mark.parametrize("mmu", ["shadow", "nested"])
@pytest.mark.parametrize("victims", ["fifo", "clock", "2q"])
def test_pages_that_are_shared_do_not_crowd_out_the_others(mmu: str, victims: str) -> None:
    """Nearly all pages of the smaller VM are shared with the other one: these have to be evicted, too."""
    policies = ("share:rate=200", f"swap:victims={victims}")
    plans = tuple(
        VmPlan(
            name,
            "balloon",
            BootOptions(ram="4M", pool=frames << 12, mmu=mmu, policies=policies, append="pages=256 rounds=12"),
        )
        for name, frames in (("small", 225), ("large", 512))
    )
    fleet = Fleet(FleetPlan(8 << 20, plans), audit=False)
    fleet.run(until=1_000_000_000)
    assert [member.end and member.end.how for member in fleet.members] == ["exit", "exit"]
    assert fleet.well == 2
    small, large = fleet.members
    assert small.numbers is not None and small.numbers.evictions > 0 and large.numbers is not None
    assert large.numbers.shared > 100
