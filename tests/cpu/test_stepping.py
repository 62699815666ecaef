"""Steps stop where they should, and a stepped run is the free run: same events, same times, same everything."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache

import pytest

from emu.boot import firmware
from emu.dmm.p2m import Intent
from emu.engine.events import (
    EVENT_TYPES,
    Cr3Switch,
    DmmFault,
    ExceptionDelivery,
    PageFault,
    Remap,
    ShadowFill,
    TableWrite,
)
from emu.machine.vm import Stop
from emu.observe.trace import format_event
from emu.testing import GuestUnderTest, boot
from tests.guests.programs import MODES, program

GUESTS = [name for name in firmware.guests() if name != "memory"]  # memory is long, and does nothing that others do not
MMUS = ("shadow", "nested")

Result = tuple[Stop, int, bytes, list[str]]
Step = Callable[[GuestUnderTest, random.Random], Stop]


def result(guest: GuestUnderTest, stop: Stop) -> Result:
    return stop, guest.now, bytes(guest.vm.platform.console), [format_event(event) for event in guest.events]


@cache
def free_run(name: str, mmu: str) -> Result:
    guest = boot(name, mmu=mmu, events=True)
    return result(guest, guest.vm.run())


def stepped_run(guest: GuestUnderTest, step: Step) -> Result:
    numbers = random.Random(7)
    while (stop := step(guest, numbers)) in (Stop.STEP, Stop.DEADLINE):
        pass
    return result(guest, stop)


def mixed(guest: GuestUnderTest, numbers: random.Random) -> Stop:
    vm = guest.vm
    choices: list[Callable[[], Stop]] = [
        lambda: vm.step(numbers.randrange(1, 200)),
        lambda: vm.run_to_event(),
        lambda: vm.run_to_event(numbers.sample(EVENT_TYPES, 2), until=vm.now + 50_000),
        lambda: vm.run(vm.now + numbers.randrange(1, 100_000)),
    ]
    return numbers.choice(choices)()


STEPS: dict[str, Step] = {
    "to every event": lambda guest, numbers: guest.vm.run_to_event(),
    "to table writes": lambda guest, numbers: guest.vm.run_to_event([TableWrite]),
    "to exceptions": lambda guest, numbers: guest.vm.run_to_event([ExceptionDelivery]),
    "by instructions": lambda guest, numbers: guest.vm.step(numbers.randrange(1, 2000)),
    "mixed": mixed,
}


@pytest.mark.parametrize("how", STEPS)
@pytest.mark.parametrize("mmu", MMUS)
@pytest.mark.parametrize("name", GUESTS)
def test_a_stepped_run_is_the_free_run(name: str, mmu: str, how: str) -> None:
    assert stepped_run(boot(name, mmu=mmu, events=True), STEPS[how]) == free_run(name, mmu)


@pytest.mark.parametrize("mmu", MMUS)
def test_every_single_instruction(mmu: str) -> None:
    guest = boot("hello", mmu=mmu, events=True)
    assert stepped_run(guest, lambda guest, numbers: guest.vm.step()) == free_run("hello", mmu)


# Straight code longer than the engine's longest block, with a timer that wants to interrupt it somewhere.
LONG_BLOCKS = """
    lidt [real_idt]
    mov word ptr [8 * 4], offset tick
    mov word ptr [8 * 4 + 2], 0
    mov al, 0x11
    out 0x20, al
    mov al, 8
    out 0x21, al
    mov al, 4
    out 0x21, al
    mov al, 1
    out 0x21, al
    mov al, 0xFE
    out 0x21, al
    mov al, 0x34
    out 0x43, al
    mov al, 3
    out 0x40, al
    xor al, al
    out 0x40, al
    sti
    mov dx, 20
again:
    .rept 900
    inc ax
    .endr
    dec dx
    jnz again
    mov al, 0
    out 0xF4, al
tick:
    push ax
    mov al, 0x20
    out 0x20, al
    pop ax
    iret
real_idt:
    .word 0x3FF
    .long 0
"""


@pytest.mark.parametrize("mmu", MMUS)
@pytest.mark.parametrize("how", ["to every event", "by instructions", "mixed"])
def test_blocks_that_the_engine_cuts(mmu: str, how: str) -> None:
    source = program("real", LONG_BLOCKS)
    free = boot(source, mmu=mmu, events=True)
    expected = result(free, free.vm.run())
    assert expected[0] == Stop.EXIT and free.events_of("interrupt")
    assert stepped_run(boot(source, mmu=mmu, events=True), STEPS[how]) == expected


COUNTING = "mov ecx, 0\n inc cx\n inc cx\n inc cx\n mov bx, 0x1111\n jmp there\n nop\nthere:\n mov bx, 0x2222\n jmp ."


@pytest.mark.parametrize("mmu", MMUS)
@pytest.mark.parametrize("mode", MODES)
def test_instructions_are_counted(mode: str, mmu: str) -> None:
    guest = boot(program(mode, COUNTING), ram="16M", mmu=mmu)
    vm = guest.vm
    while vm.cpu.rcx & 0xFFFF != 1 or vm.cpu.rbx & 0xFFFF == 0x2222:
        assert vm.step() == Stop.STEP
    assert vm.step() == Stop.STEP and vm.cpu.rcx & 0xFFFF == 2
    assert vm.step(2) == Stop.STEP
    assert (vm.cpu.rcx & 0xFFFF, vm.cpu.rbx & 0xFFFF) == (3, 0x1111)
    assert vm.step(2) == Stop.STEP and vm.cpu.rbx & 0xFFFF == 0x2222  # the jump is an instruction
    here = vm.cpu.pc
    assert vm.step(5) == Stop.STEP and vm.cpu.pc == here


def test_a_step_into_a_handler() -> None:
    guest = boot("paging32", events=True)
    assert guest.vm.run_to_event([PageFault]) == Stop.STEP
    fault = guest.events[-2]
    assert isinstance(fault, PageFault) and isinstance(guest.events[-1], ExceptionDelivery)
    assert guest.vm.cpu.cr2 == fault.gva and guest.vm.cpu.pc != fault.rip


def test_a_step_stops_behind_the_instruction_of_the_event() -> None:
    vm = boot("paging32").vm
    for _ in range(5):
        assert vm.run_to_event([TableWrite]) == Stop.STEP
        before = vm.events.counts()["table-write"]
        pc = vm.cpu.pc
        assert vm.step() == Stop.STEP
        assert vm.cpu.pc != pc
        assert before <= vm.events.counts()["table-write"] <= before + 1


def test_a_step_stops_where_the_instruction_waits_for_the_dmm() -> None:
    guest = boot("hello", events=True)
    assert guest.vm.run_to_event([DmmFault]) == Stop.STEP
    assert (guest.vm.cpu.pc, guest.now) == (0x8000, 0)  # the first instruction's own page


def test_kinds_that_nobody_listens_to() -> None:
    vm = boot("hello").vm
    assert vm.run_to_event([ShadowFill]) == Stop.STEP
    assert vm.events.counts()["shadow-fill"] == 1
    assert vm.run_to_event([Cr3Switch]) == Stop.EXIT


def test_a_deadline_ends_a_step() -> None:
    vm = boot("tasks").vm
    assert vm.run_to_event([Remap], until=1_000_000) == Stop.DEADLINE
    assert 1_000_000 <= vm.now < 1_000_100


@pytest.mark.parametrize("mmu", MMUS)
def test_changes_between_steps_go_unnoticed(mmu: str) -> None:
    guest = boot("long64", mmu=mmu, audit=True)
    vm = guest.vm
    numbers = random.Random(3)
    while vm.step(numbers.randrange(1, 3000)) == Stop.STEP:
        gfn = numbers.choice([gfn for gfn in range(0x40) if vm.p2m.rights(gfn)] or [8])
        if vm.p2m.rights(gfn):
            vm.dmm.remap(gfn)
            vm.dmm.protect(gfn, Intent(numbers.randrange(8)))
    assert vm.exit_value == 0
    assert bytes(vm.platform.console) == free_run("long64", mmu)[2]
