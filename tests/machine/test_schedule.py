"""How processors take turns: what a schedule refuses, and that processors which never start cost nothing."""

from __future__ import annotations

import pytest

from emu.engine.state import WAITING
from emu.errors import BadInput
from emu.machine.schedule import LEAST_QUANTUM, MOST_QUANTUM, Schedule
from emu.testing import boot


@pytest.mark.parametrize("quantum", [LEAST_QUANTUM - 1, MOST_QUANTUM + 1, 10**19])
def test_turns_that_are_too_short_or_too_long(quantum: int) -> None:
    with pytest.raises(BadInput, match="--quantum"):
        Schedule(quantum)
    assert Schedule(MOST_QUANTUM).shortest_quantum > 0


def test_a_guest_with_one_processor_runs_the_same_beside_others_that_wait() -> None:
    results = []
    for cpus in (1, 16):
        guest = boot("paging32", cpus=cpus, events=True)
        guest.vm.run()
        assert all(processor.native.activity == WAITING for processor in guest.vm.processors[1:])
        results.append((guest.console, guest.now, guest.vm.exits.counts, len(guest.events)))
    assert results[0] == results[1]


def test_a_processor_that_does_not_exist_makes_no_steps() -> None:
    vm = boot("hello", cpus=2).vm
    for number in (-1, 2):
        with pytest.raises(ValueError, match=f"no processor {number}"):
            vm.step(cpu=number)
