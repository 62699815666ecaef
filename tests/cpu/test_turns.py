"""The turns of several processors: bounded, drawn from a seed where one is given, and the same every time."""

from __future__ import annotations

from typing import Any

import pytest

from emu.engine.events import EVENT_TYPES, InterruptDelivery
from emu.observe import pagewalk
from emu.observe.outcome import Ending
from emu.observe.trace import format_event
from emu.session import run_vm
from emu.testing import GuestUnderTest, boot
from tests.guests.several import RACE, SENDS_WAKE, WAKE, exit_with, several

MMUS = ("shadow", "nested")
OK, LOST = 1, 3  # exit statuses
SHORT = "rounds=5 patience=65536"  # of the guest smp


def word(guest: GuestUnderTest, name: str, offset: int = 0, size: int = 4) -> int:
    """What stands in memory behind the mark ``name`` of eight bytes."""
    memory = pagewalk.peek(guest.vm, 0x8000, 0x1000) or b""
    at = memory.index(name.encode().ljust(8)) + 8 + offset
    return int.from_bytes(memory[at : at + size], "little")


def mark(name: str, label: str, size: int = 16) -> str:
    """Data for :func:`word`."""
    return f'    .ascii "{name.ljust(8)}"\n{label}:\n    .space {size}\n'


def log(cpus: int, guest: str = "smp", **options: Any) -> tuple[list[str], str, int]:
    under_test = boot(guest, cpus=cpus, events=True, **options)
    under_test.run(max_time="1s")
    return [format_event(event) for event in under_test.events], under_test.console, under_test.now


# --- seeds ------------------------------------------------------------------------------------------------------


def test_a_seed_is_a_run_and_another_seed_another_one() -> None:
    runs = {seed: log(3, append=SHORT, schedule=f"seed={seed}") for seed in range(4)}
    for seed, found in runs.items():
        assert log(3, append=SHORT, schedule=f"seed={seed}") == found
    assert len({"".join(events) for events, _, _ in runs.values()}) == len(runs)
    assert log(3, append=SHORT)[0] not in [events for events, _, _ in runs.values()]


def test_some_seeds_lose_updates() -> None:
    def status(**options: Any) -> tuple[int, int]:
        guest = boot(RACE, cpus=2, **options)
        return guest.run(max_time="1s"), guest.now

    assert status()[0] == OK
    found = [status(schedule=f"seed={seed}") for seed in range(50)]
    assert {ended for ended, _ in found} == {OK, LOST}
    assert len({time for _, time in found}) > 3
    for seed in (0, next(seed for seed, (ended, _) in enumerate(found) if ended == LOST)):
        assert status(schedule=f"seed={seed}") == found[seed]


@pytest.mark.parametrize("seed", range(5))
def test_what_is_locked_is_never_lost(seed: int) -> None:
    unlocked = "    mov ax, [counter]\n    inc ax\n    mov [counter], ax\n"
    locked = RACE.replace(unlocked, "    lock inc word ptr [counter]\n")
    assert locked != RACE
    assert boot(locked, cpus=2, quantum="5us", schedule=f"seed={seed}").run(max_time="1s") == OK


# --- turns ------------------------------------------------------------------------------------------------------

# each processor notes when another one has run since it looked last
SWITCHES = """
watch\\@:
    cmp word ptr [last], {me}
    je watch\\@
    mov word ptr [last], {me}
    lock inc word ptr [switches]
    jmp watch\\@
"""


def alternating(ns: int, **options: Any) -> int:
    """How often the processors take turns in ``ns`` of virtual time."""
    code = several(
        SWITCHES.format(me=1).replace("\\@", "_first"), SWITCHES.format(me=2).replace("\\@", "_others"),
        mark("turns", "switches") + "last: .word 1\n",
    )  # fmt: skip
    guest = boot(code, cpus=2, **options)
    assert guest.run(max_time=f"{ns}ns") == 124
    return word(guest, "turns", size=2)


@pytest.mark.parametrize("quantum", [1_000, 10_000, 50_000])
def test_a_quantum_bounds_turns(quantum: int) -> None:
    ns = 40 * quantum
    assert 2 * 40 * 0.9 <= alternating(ns, quantum=quantum) <= 2 * 40 + 2


def test_a_seed_draws_turns_from_a_16th_of_the_quantum_on() -> None:
    ns, quantum = 1_000_000, 10_000
    turns = alternating(ns, quantum=quantum, schedule="seed=1")
    assert 2 * ns / quantum * 1.2 < turns < 2 * ns / quantum * 16
    assert turns != alternating(ns, quantum=quantum, schedule="seed=2")


def test_halt_gives_the_rest_of_a_turn_away() -> None:
    """The others halt at once, and the first processor has a millisecond of work: it is as fast as alone."""
    work = "    mov ecx, 100000\nwork:\n    dec ecx\n    jnz work\n" + exit_with(0)
    times = []
    for cpus in (1, 2, 4):
        guest = boot(several(work, ""), cpus=cpus)
        guest.expect_status(OK, max_time="1s")
        times.append(guest.now)
    assert max(times) - min(times) < 200


@pytest.mark.parametrize(("pause", "least", "most"), [("pause", 1, 12), ("nop", 1000, 100_000)])
def test_pause_in_a_spin_loop_gives_the_rest_of_a_turn_away(pause: str, least: int, most: int) -> None:
    spin = f"spin:\n    inc dword ptr [loops]\n    {pause}\n    cmp byte ptr [flag], 0\n    je spin\n" + exit_with(0)
    work = "    mov cx, 2000\nwork:\n    dec cx\n    jnz work\n    mov byte ptr [flag], 1\n"
    guest = boot(several(spin, work, mark("loops", "loops") + "flag: .byte 0\n"), cpus=2)
    guest.expect_status(OK, max_time="1s")
    assert least <= word(guest, "loops") <= most


@pytest.mark.parametrize("quantum", [2_000, 50_000])
@pytest.mark.parametrize("schedule", [None, "seed=1", "seed=2"])
def test_an_ipi_comes_when_it_is_sent(quantum: int, schedule: str | None) -> None:
    """It wakes a processor not before the sender's time, and a quantum later at most."""
    wait = """
wait:
    pause
    cmp byte ptr [ready], 0
    je wait
    mov cx, 5000
settle:
    dec cx
    jnz settle
    rdtsc
    mov [sent], eax
"""
    idle = "    mov byte ptr [ready], 1\nidle:\n    sti\n    hlt\n    rdtsc\n    mov [woken], eax\n"
    watch = "watch:\n    cmp dword ptr [woken], 0\n    je watch\n" + exit_with(0)
    code = several(wait + SENDS_WAKE + watch, idle, mark("sent", "sent") + mark("woken", "woken") + "ready: .byte 0\n")
    guest = boot(code, cpus=2, quantum=quantum, schedule=schedule, events=[InterruptDelivery])
    guest.expect_status(OK, max_time="1s")
    sent, woken = word(guest, "sent"), word(guest, "woken")
    (event,) = [event for event in guest.events if isinstance(event, InterruptDelivery)]
    assert (event.vector, event.cpu) == (WAKE, 1)
    assert sent <= event.time <= sent + quantum + 100
    assert sent <= woken <= sent + quantum + 100


@pytest.mark.parametrize("name", ["paging32", "long64", "tasks"])
@pytest.mark.parametrize("mmu", MMUS)
def test_processors_that_never_start_cost_nothing(name: str, mmu: str) -> None:
    assert log(1, name, mmu=mmu) == log(4, name, mmu=mmu)


# --- time -------------------------------------------------------------------------------------------------------

# TSC and ACPI timer, read under a lock by turns: neither steps back
CLOCKS = """
    mov edi, 1500
next\\@:
    mov al, 1
take\\@:
    pause
    mov al, 1
    xchg al, [lock_byte]
    test al, al
    jnz take\\@
    rdtsc
    cmp edx, [tsc + 4]
    jb failed
    ja later\\@
    cmp eax, [tsc]
    jb failed
later\\@:
    mov [tsc], eax
    mov [tsc + 4], edx
    mov dx, 0x608
    in eax, dx
    cmp eax, [timer]
    jb failed
    mov [timer], eax
    mov byte ptr [lock_byte], 0
    dec edi
    jnz next\\@
    lock inc byte ptr [done]
"""


@pytest.mark.parametrize("options", [{}, {"quantum": "1us"}, {"schedule": "seed=3"}, {"schedule": "seed=4"}])
def test_clocks_never_step_back(options: dict[str, str]) -> None:
    finish = "finish:\n    pause\n    cmp byte ptr [done], 3\n    jne finish\n" + exit_with(0)
    code = several(
        CLOCKS.replace("\\@", "_first") + finish + "failed:" + exit_with(1), CLOCKS.replace("\\@", "_others"),
        "tsc: .quad 0\ntimer: .long 0\nlock_byte: .byte 0\ndone: .byte 0\n",
    )  # fmt: skip
    boot(code, cpus=3, **options).expect_status(OK, max_time="1s")


@pytest.mark.parametrize("mmu", MMUS)
@pytest.mark.parametrize(
    "options", [{}, {"quantum": "1us"}, {"schedule": "seed=5"}, {"policies": ["swap"], "pool": "48K"}]
)
def test_the_time_of_the_log_never_falls(mmu: str, options: dict[str, Any]) -> None:
    guest = boot("smp", cpus=4, mmu=mmu, append=SHORT + " forget=2", events=EVENT_TYPES, **options)
    guest.expect_status(OK, max_time="1s")
    times = [event.time for event in guest.events]
    assert times == sorted(times) and {event.cpu for event in guest.events} == {0, 1, 2, 3}
    assert times[-1] <= guest.now


# --- ends -------------------------------------------------------------------------------------------------------


def test_a_processor_that_hangs_does_not_stop_the_others() -> None:
    work = "    mov cx, 60000\nwork:\n    loop work\n" + exit_with(0)
    guest = boot(several(work, "    cli\nhang:\n    jmp hang\n"), cpus=4)
    guest.expect_status(OK, max_time="10ms")


SPIN = several("spin:\n    jmp spin\n", "spin_too:\n    jmp spin_too\n")


@pytest.mark.parametrize("schedule", [None, "seed=1"])
def test_limits_end_processors_that_spin(schedule: str | None) -> None:
    vm = boot(SPIN, cpus=3, schedule=schedule).vm
    outcome = run_vm(vm, max_time=2_000_000)
    assert outcome.ending is Ending.MAX_TIME and 2_000_000 <= vm.now < 2_100_000
    assert all(processor.native.vtime >= 2_000_000 for processor in vm.processors)
    assert run_vm(vm, timeout=0.2).ending is Ending.TIMEOUT


def test_all_processors_halt_for_ever() -> None:
    outcome = run_vm(boot(several("", ""), cpus=3).vm, max_time=10**9)
    assert outcome.ending is Ending.HALTED and "nothing can ever wake it" in outcome.sentence
