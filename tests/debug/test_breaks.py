"""Breakpoints from outside change nothing: the run has the events and times of one without."""

from __future__ import annotations

import random

import pytest

from emu.debug.breaks import Breakpoints, Watch
from emu.engine.events import Event
from emu.machine.vm import Stop
from emu.session import boot_vm


def log_of(guest: str, gvas: set[int], mmu: str, **options: object) -> tuple[list[Event], list[int], bytes]:
    """Events, where it stopped, and console."""
    vm = boot_vm(guest, mmu=mmu, **options)
    events: list[Event] = []
    vm.events.listen(events.append)
    breaks = Breakpoints(vm)
    breaks.gvas |= gvas
    stops = []
    while (stop := breaks.run()) is Stop.STEP:
        assert vm.cpu.pc in gvas
        stops.append(vm.cpu.pc)
    assert stop is Stop.EXIT
    console = vm.platform.console
    vm.close()
    return events, stops, bytes(console)


def addresses_of(guest: str, count: int, **options: object) -> list[int]:
    """Some of those that are executed, drawn with a fixed seed."""
    vm = boot_vm(guest, **options)
    found = []
    while vm.step(7) is Stop.STEP and len(found) < 20_000:
        found.append(vm.cpu.pc)
    vm.close()
    return random.Random(1).sample(sorted(set(found)), count)


@pytest.mark.parametrize("mmu", ["shadow", "nested"])
@pytest.mark.parametrize("guest", ["long64", "paging32", "tasks"])
def test_a_run_with_breakpoints_is_the_run_without(guest: str, mmu: str) -> None:
    free = log_of(guest, set(), mmu)
    chosen = addresses_of(guest, 6, mmu=mmu)
    stopped = log_of(guest, set(chosen), mmu)
    assert set(stopped[1]) == set(chosen)
    assert stopped[0] == free[0] and stopped[2] == free[2]


def test_each_pass_through_a_loop_stops() -> None:
    vm = boot_vm("hello")
    vm.memory.write(vm.cpu.pc, bytes.fromhex("b90500e2fef4"))  # mov cx, 5; loop .; hlt
    loop = vm.cpu.pc + 3
    breaks = Breakpoints(vm)
    breaks.gvas.add(loop)
    counts = []
    while breaks.run() is Stop.STEP:
        counts.append(vm.cpu.rcx & 0xFFFF)
    assert counts == [5, 4, 3, 2, 1]
    vm.close()


def test_a_breakpoint_on_any_processor() -> None:
    chosen = addresses_of("smp", 4, cpus=4)
    free = log_of("smp", set(), "shadow", cpus=4)
    stopped = log_of("smp", set(chosen), "shadow", cpus=4)
    assert stopped[1] and stopped[0] == free[0] and stopped[2] == free[2]


# --- data -------------------------------------------------------------------------------------------------------

LOOP = bytes.fromhex("b90300 ff060090 a10290 e2f7 f4")  # mov cx, 3; a: inc word [9000h]; mov ax, [9002h]; loop a; hlt


def watching(*watches: Watch) -> list[tuple[int, Watch | None]]:
    """Where the loop above stops, counted from its beginning, and for what."""
    vm = boot_vm("hello")
    begin = vm.cpu.pc
    vm.memory.write(begin, LOOP)
    breaks = Breakpoints(vm)
    breaks.watch(list(watches))
    stops = []
    while breaks.run() is Stop.STEP:
        stops.append((vm.cpu.pc - begin, breaks.touched()))
    vm.close()
    return stops


def test_writes_are_watched() -> None:
    write = Watch(0x9000, 2, reads=False)
    assert watching(write) == [(7, write)] * 3
    assert watching(Watch(0x9002, 2, reads=False)) == []


def test_reads_are_watched() -> None:
    read = Watch(0x9002, 2, reads=True)
    assert watching(read) == [(10, read)] * 3
    write = Watch(0x9001, 1, reads=False)
    assert watching(read, write) == [(7, write), (10, read)] * 3


def test_data_and_instructions() -> None:
    vm = boot_vm("hello")
    begin = vm.cpu.pc
    vm.memory.write(begin, LOOP)
    breaks = Breakpoints(vm)
    breaks.watch([Watch(0x9000, 1, reads=False)])
    breaks.gvas.add(begin + 10)
    stops = []
    while breaks.run() is Stop.STEP:
        stops.append((vm.cpu.pc - begin, breaks.touched() is not None))
    assert stops == [(7, True), (10, False)] * 3
    vm.close()


def test_what_is_not_watched_any_more() -> None:
    vm = boot_vm("hello")
    vm.memory.write(vm.cpu.pc, LOOP)
    breaks = Breakpoints(vm)
    breaks.watch([Watch(0x9000, 1, reads=False)])
    assert breaks.run() is Stop.STEP
    breaks.watch([])
    assert breaks.run() is Stop.HALTED
    vm.close()


def test_too_much_to_watch() -> None:
    breaks = Breakpoints(boot_vm("hello"))
    breaks.watch([Watch(0x1000, 32, reads=False)])
    with pytest.raises(ValueError):
        breaks.watch([Watch(0x1001, 32, reads=False)])
    assert breaks.watched == [Watch(0x1000, 32, reads=False)]
    breaks._vm.close()
