"""The law of several processors that are watched: however a run is cut into pieces, it is the same run."""

from __future__ import annotations

import random
from functools import cache
from typing import Any

import pytest

from emu.engine.events import EVENT_TYPES, InterruptDelivery
from emu.machine.vm import Stop, VirtualMachine
from emu.observe.trace import format_event
from emu.testing import GuestUnderTest, boot
from tests.guests.several import exit_with, several

MMUS = ("shadow", "nested")
END = 1_000_000_000  # ns, which no guest here comes to
TURNS: dict[str, dict[str, Any]] = {
    "two": {"cpus": 2},
    "three, long turns": {"cpus": 3, "quantum": "300us"},
    "three, drawn turns": {"cpus": 3, "schedule": "seed=1"},
    "four, short drawn turns": {"cpus": 4, "quantum": "2us", "schedule": "seed=2"},
    "two, with policies": {"cpus": 2, "pool": "48K", "policies": ("swap:victims=fifo", "share:rate=100")},
}

Result = tuple[Stop, int, bytes, list[int], list[str]]


def guest_of(turns: str, mmu: str) -> GuestUnderTest:
    return boot("smp", mmu=mmu, append="rounds=4 patience=65536 forget=2", events=True, **TURNS[turns])


def result(guest: GuestUnderTest, stop: Stop) -> Result:
    times = [processor.native.vtime for processor in guest.vm.processors]
    return stop, guest.now, bytes(guest.vm.platform.console), times, [format_event(event) for event in guest.events]


@cache
def free_run(turns: str, mmu: str) -> Result:
    guest = guest_of(turns, mmu)
    return result(guest, guest.vm.run(END))


def in_pieces(vm: VirtualMachine, numbers: random.Random) -> Stop:
    return vm.run(vm.now + numbers.choice([1, 7, 100, 3_000, 70_000]))


def by_requests(vm: VirtualMachine, numbers: random.Random) -> Stop:
    vm.request_stop()
    vm.run()
    return in_pieces(vm, numbers)


def by_instructions(vm: VirtualMachine, numbers: random.Random) -> Stop:
    return vm.step(numbers.choice([1, 1, 2, 5, 30, 3000]))


def of_one_processor(vm: VirtualMachine, numbers: random.Random) -> Stop:
    return vm.step(numbers.choice([1, 2, 100]), vm.now + 500_000, numbers.randrange(len(vm.processors)))


def to_events(vm: VirtualMachine, numbers: random.Random) -> Stop:
    kinds = EVENT_TYPES if numbers.random() < 0.5 else [InterruptDelivery]
    return vm.run_to_event(kinds, until=vm.now + numbers.choice([100, 100_000]))


def mixed(vm: VirtualMachine, numbers: random.Random) -> Stop:
    ways = [in_pieces, by_requests, by_instructions, of_one_processor, to_events]
    return numbers.choice(ways)(vm, numbers)


@pytest.mark.parametrize(
    "how", [in_pieces, by_requests, by_instructions, of_one_processor, to_events, mixed], ids=lambda how: how.__name__
)
@pytest.mark.parametrize("mmu", MMUS)
@pytest.mark.parametrize("turns", TURNS)
def test_a_run_in_pieces_is_the_free_run(turns: str, mmu: str, how: Any) -> None:
    expected = free_run(turns, mmu)
    assert expected[0] is Stop.EXIT
    for number in range(3):
        guest, numbers = guest_of(turns, mmu), random.Random(number)
        while (stop := how(guest.vm, numbers)) in (Stop.STEP, Stop.DEADLINE, Stop.REQUESTED):
            assert guest.now < END
        assert result(guest, stop) == expected


SPIN = several("spin:\n    inc ebx\n    jmp spin\n", "spin_too:\n    inc ebx\n    jmp spin_too\n")


def test_the_instructions_of_one_processor_count() -> None:
    vm = boot(SPIN, cpus=2, quantum="5us").vm
    assert vm.step(1000, cpu=1) == Stop.STEP
    first, second = vm.processors
    for count in (1, 2, 10):
        rip, before = second.registers.rip, second.registers.rbx
        assert vm.step(2 * count, cpu=1) == Stop.STEP and vm.native.current == 1
        assert (second.registers.rip, second.registers.rbx & 0xFFFF) == (rip, before + count & 0xFFFF)
    assert first.registers.rbx > 100  # it has run meanwhile


def test_a_step_stops_behind_a_halt() -> None:
    vm = boot(several("spin:\n    jmp spin\n", "    cli\n    hlt\n"), cpus=2).vm
    while vm.processors[1].activity != "halted":
        assert vm.step(1, vm.now + 100_000, cpu=1) == Stop.STEP
    assert vm.step(1, vm.now + 100_000, cpu=1) == Stop.DEADLINE


def test_a_processor_that_has_not_started() -> None:
    vm = boot(several(exit_with(0), "", before="    mov cx, 1000\nwork:\n    loop work\n"), cpus=3).vm
    assert vm.step(cpu=0) == Stop.STEP
    assert vm.step(cpu=2) == Stop.EXIT or vm.processors[2].has_started
