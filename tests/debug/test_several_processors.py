"""The stepper of a guest with several processors: it says which one it is on, and never waits for ever."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from emu.debug import look
from emu.debug.commands import Commands
from emu.debug.stepper import Stepper
from emu.engine.events import InterruptDelivery, ShadowFill
from emu.errors import BadInput
from emu.observe.outcome import Ending
from emu.observe.trace import format_event
from emu.testing import boot
from tests.guests.several import SENDS_WAKE, exit_with, several, source_file

SPIN = "spin:\n    jmp spin\n"
CRASHES = "    lidt [no_table]\n    ud2\n"
NO_TABLE = "no_table:\n    .word 0\n    .long 0\n"
SHORT = "rounds=4 patience=65536"  # of the guest smp


def commands(guest: str = "smp", **options: object) -> Commands:
    return Commands(Stepper(boot(guest, **options).vm))


def run(on: Commands, *lines: str) -> str:
    """The answer to the last one."""
    answers = [on.execute(line) for line in lines]
    return answers[-1] or ""


def test_each_pause_says_which_processor() -> None:
    on = commands(cpus=3, append=SHORT)
    assert "smp, shadow paging, 3 processors, before its first instruction" in on.welcome()
    first = run(on, "e")
    assert "#0 at 0 ns, processor 0: DMM fault" in first and "\nprocessor 0:\nnext: " in first
    lines = run(on, "cpu 1").splitlines()
    assert lines[0].startswith("   processor 0 runs at linear 0x8000")
    assert lines[1:] == ["=> processor 1 waits for a start-up message", "   processor 2 waits for a start-up message"]
    started = run(on, "i")
    assert ", processor 1: " in started and "\nprocessor 1:\nnext: 0x800:" in started
    assert "processor 0 is halted" in run(on, "cpu")


def test_a_guest_with_one_processor_says_nothing_of_it() -> None:
    on = commands("hello")
    assert "processor" not in on.welcome() + run(on, "e") + run(on, "i")
    assert run(on, "cpu") == "=> processor 0 is the only one"
    with pytest.raises(BadInput, match="cpu: there is no processor 1, only 0"):
        run(on, "cpu 1")


@pytest.mark.parametrize(
    ("line", "message"),
    [("cpu 3", "cpu: there is no processor 3, they are 0 to 2"), ("cpu -1", "expected a number"),
     ("cpu x", "expected a number"), ("cpu 1 2", r"takes less: cpu \[N\]")],
)  # fmt: skip
def test_there_is_no_such_processor(line: str, message: str) -> None:
    on = commands(cpus=3)
    with pytest.raises(BadInput, match=message) as error:
        run(on, line)
    assert "\n" not in str(error.value)


def test_a_step_of_a_processor_that_waits_says_so_and_ends() -> None:
    on = commands(".code16\nspin:\n    jmp spin\n", cpus=2)
    answer = run(on, "cpu 1", "i")
    assert "processor 1 has executed nothing for 100 ms; i waits on\nprocessor 1 waits for a start-up message" in answer
    assert "next:" not in answer
    assert "processor 0:" in run(on, "cpu 0", "i")


def test_a_step_of_a_processor_that_halts_for_ever() -> None:
    on = commands(several(SPIN, ""), cpus=2)
    answer = run(on, "cpu 1", "i 100000")
    assert "processor 1 is halted:\nnext: 0x800:" in answer and "executed nothing for 100 ms" in answer
    assert on._stepper.ended is None


def test_a_long_step_is_not_taken_for_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("emu.debug.stepper.PATIENCE", 100_000)
    on = commands(several(SPIN, "spin_too:\n    inc ecx\n    jmp spin_too\n"), cpus=2)
    run(on, "cpu 1", "i")
    stepper = on._stepper
    before = stepper.vm.now
    assert stepper.instructions(400_000).idle is False
    assert stepper.vm.now > before + 700_000 and stepper.vm.cpu.rcx >= 1000


def test_nobody_can_be_woken() -> None:
    answer = run(commands(several("", ""), cpus=2), "cpu 1", "i", "i 100")
    assert "nothing can ever wake it" in answer


def test_an_event_is_shown_where_it_happened() -> None:
    """Also when another processor is looked at: the walk is that of the event's."""
    on = commands(cpus=2, append=SHORT)
    run(on, "cpu 0")
    while True:
        answer = run(on, "e shadow-fill")
        event = on._stepper.last
        assert isinstance(event, ShadowFill)
        if event.cpu == 1:
            break
    assert "\non processor 1:\npage walk of gva 0x8000 (no paging)" in answer and "\nprocessor 0 is halted:" in answer
    assert run(on, "w") == answer[answer.index("on processor 1:") : answer.index("\nprocessor 0 is halted:")]
    assert run(on, "w 0x8000").startswith("page walk of gva 0x8000 (32-bit paging")


def test_registers_that_changed_are_those_of_one_processor() -> None:
    stepper = Stepper(boot("smp", cpus=2, append=SHORT).vm)
    stepper.to_event([InterruptDelivery])
    was = [look.registers(processor) for processor in stepper.vm.processors]
    pause = stepper.to_event([InterruptDelivery])
    here = stepper.vm.processor
    now = look.registers(here)
    assert pause.changed == {name for name in now if now[name] != was[here.index][name]}


def test_a_crash_is_told_of_the_processor_that_crashed() -> None:
    on = commands(several(SPIN, CRASHES, NO_TABLE), cpus=3)
    answer = run(on, "cpu 0", "c")
    assert "status 134" in answer and "ns of virtual time, processor 1, CPL 0, 16-bit code ---" in answer
    assert "#DF double fault" in answer and re.search("=> .* ud2\n", answer)
    assert "Meanwhile processor 0 runs at linear" in answer
    assert "Meanwhile processor 1" not in answer
    assert on._stepper.ended is not None and on._stepper.ended.ending is Ending.CRASH
    assert on._stepper.vm.selected == 0


@pytest.mark.parametrize("mmu", ["shadow", "nested"])
@pytest.mark.parametrize("schedule", [None, "seed=3"])
def test_looking_changes_nothing(mmu: str, schedule: str | None) -> None:
    options = {"cpus": 3, "mmu": mmu, "schedule": schedule, "append": SHORT}
    free = boot("smp", events=True, **options)
    free.expect_status(1)
    watched = boot("smp", events=True, **options)
    on = Commands(Stepper(watched.vm))
    for number in range(20):
        run(on, f"cpu {number % 3}", ("i 7", "e interrupt", "i", "e")[number % 4], "r", "w rip", "x rsp", "cpu")
    run(on, "cpu", "c")
    assert [format_event(event) for event in watched.events] == [format_event(event) for event in free.events]
    assert (watched.now, watched.console) == (free.now, free.console)


def test_from_a_pipe(tmp_path: Path) -> None:
    guest = source_file(tmp_path, several(SENDS_WAKE + exit_with(0), "    hlt\n"))
    script = "cpu 1\ni\ncpu 5\ncpu\nc\n"
    command = [sys.executable, "-m", "emu", "step", str(guest), "--cpus", "2"]
    root = Path(__file__).parents[2]
    ended = subprocess.run(command, input=script, capture_output=True, text=True, timeout=300, cwd=root)
    assert ended.returncode == 2 and ended.stderr == ""
    assert "(emu) cpu 5\ncpu: there is no processor 5, they are 0 to 1\n" in ended.stdout
