"""The stepper and its command language."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from emu.debug import look, text
from emu.debug.commands import Commands
from emu.debug.stepper import HISTORY, Stepper
from emu.engine.events import DmmFault, PageFault, Remap, TableWrite
from emu.errors import BadInput
from emu.observe.outcome import Ending
from emu.session import boot_vm
from tests.guests.chaos import Chaos


def stepper(name: str = "paging32", **options: str) -> Stepper:
    return Stepper(boot_vm(name, **options))


def test_a_pause() -> None:
    steps = stepper()
    pause = steps.to_event([PageFault])
    assert pause.outcome is None
    assert [type(event) for event in pause.wanted] == [PageFault] and steps.last is pause.wanted[0]
    assert pause.counts["page-fault"] == 1 and pause.counts["dmm-fault"] == len(
        [event for event in pause.events if isinstance(event, DmmFault)]
    )
    assert {"rip", "rsp", "cs", "cr3"} <= pause.changed
    again = steps.instructions()
    assert "rip" in again.changed and "cr3" not in again.changed


def test_the_end() -> None:
    steps = stepper()
    pause = steps.to_end()
    assert pause.outcome is not None and pause.outcome.ending is Ending.EXIT
    assert len(steps.history) == HISTORY <= sum(pause.counts.values())
    assert steps.to_event().outcome is steps.ended is pause.outcome


def test_changes_by_hand() -> None:
    steps = stepper("hello")
    steps.to_event()
    before = steps.vm.p2m.mfn(8)
    assert steps.remap(8) == steps.vm.p2m.mfn(8) != before
    assert isinstance(steps.history[-1], Remap)
    steps.protect(8, steps.vm.p2m.rights(8) & 3)
    pause = steps.to_event([DmmFault])
    assert pause.wanted[0].gfn == 8  # it executes there
    for gfn in (9, 1 << 40, -1):
        with pytest.raises(BadInput, match="not resident"):
            steps.remap(gfn)
    assert steps.to_end().outcome.status == 1


def test_evicting_needs_a_policy_that_keeps() -> None:
    steps = stepper("hello")
    steps.to_event()
    with pytest.raises(BadInput, match="no policy"):
        steps.evict(8)
    steps.vm.attach(Chaos(1, 10**9, 4, 8))
    steps.evict(8)
    assert steps.to_event([DmmFault]).wanted[0].cause == 4  # it still was what the image has
    assert "evict GFN" in (Commands(steps).execute("help") or "")


# --- looking ---


def test_code_that_has_not_been_touched_yet_is_shown() -> None:
    vm = boot_vm("hello")
    counts = vm.events.counts()
    assert look.code(vm)[0].text.startswith("jmp")
    assert look.read(vm, 0x3000, 3) == bytes(3)
    assert look.read(vm, (1 << 20) - 2, 4) == b"\xfc\0\xff\xff"  # RAM ends there, with the model byte of a PC/AT
    assert (vm.events.counts(), vm.pool.used) == (counts, 0)


def test_code_around_the_next_instruction() -> None:
    steps = stepper("hello")
    steps.to_event([DmmFault])
    steps.to_event([DmmFault])
    steps.instructions(4)
    found = look.code(steps.vm)
    here = [instruction.gva for instruction in found].index(steps.vm.cpu.pc)
    assert 0 < here < len(found) - 1
    assert all(a.gva + len(a.code) == b.gva for a, b in zip(found, found[1:], strict=False))


@pytest.mark.parametrize("name", ["hello", "long64"])
def test_registers_by_name(name: str) -> None:
    steps = stepper(name)
    steps.instructions(2000 if name == "long64" else 200)
    vm = steps.vm
    assert look.address_named(vm, "rip") == look.address_named(vm, "PC") == vm.cpu.pc
    assert look.address_named(vm, "rsp") == vm.cpu.rsp
    assert look.address_named(vm, "ebx") == vm.cpu.rbx & 0xFFFF_FFFF
    assert look.address_named(vm, "cr3") == vm.cpu.cr3
    assert look.address_named(vm, "nothing") is None
    assert ("r8" in look.registers(vm.processor)) == (vm.cpu.bits == 64)


# --- commands ---


def test_commands() -> None:
    steps = stepper()
    commands = Commands(steps)
    run = commands.execute
    assert "=>     8000" in commands.welcome()
    assert "DMM fault (demand-load): gfn 0x8" in (run("e") or "")
    assert "guest page fault: read of 0x10000008" in (run("e page-fault") or "")
    walk = run("w") or ""
    assert "page walk of gva 0x10000008 (32-bit paging" in walk and "not present" in walk
    assert run("") == walk
    assert run("w 0x8000") == run("walk 32768") != walk
    assert "P2M" in (run("w rip") or "")
    written = run("e table-write") or ""
    assert "page-table write" in written and "before: 0x0 (not present)" in written
    assert isinstance(steps.last, TableWrite)
    assert "0x22" in (run("w") or "")
    assert "*" in (run("r") or "") and "cr3 00020000" in (run("r") or "")
    assert len((run("x 0x8000 33") or "").splitlines()) == 3
    assert "nothing can be read here" in (run("x 0x90000000") or "")
    assert "invlpg" in (run("d") or "")
    assert "nothing can be read there" in (run("d 0x90000000") or "")
    assert "moved from mfn" in (run("remap 8") or "")
    assert "the DMM grants r-x" in (run("protect 8 rx") or "")
    assert "the DMM grants ---" in (run("protect 8 -") or "")
    assert len((run("l 3") or "").splitlines()) == 4
    assert "next: " in (run("i 10") or "")
    assert "the guest wrote 0 to the exit port; status 1" in (run("c") or "")
    with pytest.raises(BadInput, match="does not run any more"):
        run("i")
    assert "protect" in (run("h") or "") and "table-write" in (run("?") or "")
    assert run("# a comment") == run("h")
    assert run("q") is None


def test_no_event_between_two_stops_is_hidden() -> None:
    commands = Commands(stepper())
    numbers: list[int] = []
    for line in ["e", "protect 8 r-", "e dmm-fault", "remap 8", "i 30", "e", "e exception"] + ["e"] * 20:
        answer = commands.execute(line) or ""
        on_the_way = re.search(r"^on the way: (.*)", answer, re.MULTILINE)
        skipped = sum(int(part.split()[0]) for part in on_the_way[1].split(", ")) if on_the_way else 0
        shown = [int(number) for number in re.findall(r"^#(\d+) at", answer, re.MULTILINE)]
        assert shown == list(range(len(numbers) + skipped, len(numbers) + skipped + len(shown)))
        numbers += range(len(numbers), len(numbers) + skipped + len(shown))
    assert len(numbers) > 50


def test_help_says_that_rights_come_back() -> None:
    answer = Commands(stepper("hello")).execute("h") or ""
    assert "the policies `demand` and `static`\ngrant what it needs again" in answer


def test_the_crash_report_follows_a_crash() -> None:
    answer = Commands(stepper("crash")).execute("c") or ""
    assert "status 134" in answer and "triple fault" in answer and "stack at" in answer


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("jump", "no such command"),
        ("e fault", "no kind of event"),
        ("i 0", "above 0"),
        ("i x", "expected a number"),
        ("i 1 2", "takes less"),
        ("c now", "takes less"),
        ("w", "no event has happened"),
        ("w here", "expected a number"),
        ("x", "expected an address"),
        ("x 0 0", "expected a length"),
        ("x 0 99999999", "expected a length"),
        ("x -1", "expected a number"),
        ("remap", "expected a guest frame number"),
        ("remap 8", "not resident"),
        ("remap 0x999999999", "not resident"),
        ("protect 8", "expected a gfn and rights"),
        ("protect 8 rq", "expected a gfn and rights"),
        ("evict 8", "no policy in force keeps pages"),
        ("pool", "expected SIZE"),
        ("pool 1X", "not a size"),
        ("pool 1G", "can do with 4 to"),
        ("attach nonsense", "none of the policies"),
        ("attach demand", "already"),
        ("detach swap", "no policy of this name"),
        ("detach demand", "no other policy that gives frames"),
        ("balloon 4K", "no policy of this name"),
        ("retire x", "expected a number"),
        ("retire 9", "0 frames in use"),
        ("pin 0x999999", "no memory"),
        ("unpin 8", "not pinned"),
    ],
)
def test_wrong_commands(line: str, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        Commands(stepper("hello")).execute(line)


def test_a_running_guest_can_be_controlled() -> None:
    """Another pool, policies on and off, a frame out of service: the guest ends as it would have."""
    commands = Commands(stepper("paging32"))
    vm = commands._stepper.vm
    for line in ("attach swap:victims=fifo", "e dmm-fault", "pool 64K", "retire 1", "attach share:rate=100"):
        assert commands.execute(line)
    assert (vm.pool.size, vm.pool.used) == (16, 1)
    answer = commands.execute("attach balloon") or ""
    assert answer.endswith("1 of 16 frames used; balloon target 0; demand, swap, share, balloon")
    assert "balloon target 2" in (commands.execute("balloon 8K") or "")
    commands.execute("detach share")
    answer = commands.execute("c") or ""
    assert b"checksum 0x08a4cce1" in vm.platform.console and "status 1" in answer
    assert vm.events.counts()["retire"] == 1 and vm.events.counts()["evict"] > 100


def test_marks() -> None:
    steps = stepper("hello")
    steps.instructions()
    marked = "\n".join(text.registers(steps.vm, {"rip"}, text.bold_mark))
    assert "\x1b[" in marked
    assert "\x1b[" not in "\n".join(text.registers(steps.vm, {"rip"}))


# --- the command line ---


def emu_step(*arguments: str, commands: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "emu", "step", *arguments]
    root = Path(__file__).parents[2]
    return subprocess.run(command, input=commands, capture_output=True, text=True, timeout=300, cwd=root)


def test_from_a_pipe() -> None:
    script = "e page-fault\n\nw\nr\nx rsp\nprotect 8 r-x\nremap 9\ni 5\nc\nl\n"
    first = emu_step("paging32", "--mmu", "shadow", commands=script)
    assert first.returncode == 1, first.stderr
    assert "(emu) e page-fault\n" in first.stdout
    assert "| paging32: hello from ring 3\n" in first.stdout
    assert "shadow tables" in first.stdout
    assert emu_step("paging32", "--mmu", "shadow", commands=script).stdout == first.stdout


def test_status_of_leaving_early_and_of_mistakes() -> None:
    assert emu_step("hello", commands="e\nq\nbogus\n").returncode == 0
    assert emu_step("hello", commands="").returncode == 0
    mistaken = emu_step("hello", commands="bogus\nc\n")
    assert mistaken.returncode == 2 and "bogus: no such command" in mistaken.stdout
    missing = emu_step("nowhere", commands="")
    assert (missing.returncode, missing.stdout) == (2, "") and missing.stderr.count("\n") == 1
