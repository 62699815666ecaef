"""A person at the guest's serial port: keys, waiting, leaving, and the terminal's mode."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from emu.commands.interactive import ESCAPE, RawTerminal, run_interactively
from emu.observe.outcome import Ending
from emu.units import NS_PER_SECOND
from tests.observe.test_console import BY_INTERRUPT, boot

LOOP = ".code16\n mov al, '>'\n out 0xE9, al\n jmp .\n"
POLLING = """
.code16
again:
    mov dx, 0x3FD
    in al, dx
    test al, 1
    jz again
    mov dx, 0x3F8
    in al, dx
    out 0xE9, al
    jmp again
"""


class Keys:
    """A keyboard with a list of what is typed; one entry for each look at it."""

    def __init__(self, *typed: bytes | None) -> None:
        self.typed = list(typed)
        self.waited: list[float] = []  # seconds that it was looked at, at most

    def read(self, timeout: float) -> bytes | None:
        self.waited.append(timeout)
        return self.typed.pop(0) if self.typed else b""


def test_keys_wake_a_guest_that_sleeps_without_a_timer(tmp_path: Path) -> None:
    vm = boot(tmp_path, BY_INTERRUPT)
    outcome = run_interactively(vm, Keys(b"", b"a", b"", b"bc", b"", b"", b"q"))
    assert outcome.ending == Ending.EXIT
    assert bytes(vm.platform.console) == b">a.b.c.q"  # a dot for each HLT: it wakes for keys alone


def test_keys_reach_a_guest_that_polls(tmp_path: Path) -> None:
    vm = boot(tmp_path, POLLING)
    run_interactively(vm, Keys(b"ab", b"", b"c\x03"), until="abc\x03")
    assert bytes(vm.platform.console) == b"abc\x03"


def test_the_escape_key_leaves(tmp_path: Path) -> None:
    vm = boot(tmp_path, LOOP)
    outcome = run_interactively(vm, Keys(b"", b"", b"typed" + ESCAPE + b"lost"))
    assert (outcome.ending, outcome.status) == (Ending.STOPPED, 0) and "Ctrl-]" in outcome.sentence
    assert bytes(vm.platform.uart.incoming) == b"typed"


def test_a_keyboard_that_goes_away(tmp_path: Path) -> None:
    outcome = run_interactively(boot(tmp_path, LOOP), Keys(b"", None))
    assert (outcome.ending, outcome.status) == (Ending.STOPPED, 124)


def test_a_guest_that_no_key_can_wake(tmp_path: Path) -> None:
    outcome = run_interactively(boot(tmp_path, ".code16\n cli\n hlt\n"), Keys(), timeout=60)
    assert outcome.ending == Ending.HALTED


def test_limits(tmp_path: Path) -> None:
    vm = boot(tmp_path, LOOP)
    assert run_interactively(vm, Keys(), max_time=25_000_000).ending == Ending.MAX_TIME
    assert vm.now == 25_000_000
    assert run_interactively(boot(tmp_path, LOOP), Keys(), timeout=0.2).ending == Ending.TIMEOUT
    assert run_interactively(boot(tmp_path, BY_INTERRUPT), Keys(), timeout=0.2).ending == Ending.TIMEOUT
    assert run_interactively(boot(tmp_path, BY_INTERRUPT), Keys(), stopped=lambda: True).status == 124


def test_until_is_found_across_slices(tmp_path: Path) -> None:
    vm = boot(tmp_path, BY_INTERRUPT)
    outcome = run_interactively(vm, Keys(*(bytes((key,)) for key in b"hello")), until="l.l.o")
    assert (outcome.ending, outcome.status) == (Ending.UNTIL, 0)


def test_a_guest_that_sleeps_with_a_timer_waits_for_the_wall_clock(tmp_path: Path) -> None:
    pit = """
.code16
    mov al, 0x11
    out 0x20, al
    mov al, 0x20
    out 0x21, al
    mov al, 4
    out 0x21, al
    mov al, 1
    out 0x21, al
    mov al, 0xFE
    out 0x21, al
    mov word ptr [0x20 * 4], offset handler
    mov word ptr [0x20 * 4 + 2], 0
    mov al, 0x34
    out 0x43, al
    mov al, 0xFF
    out 0x40, al
    out 0x40, al
    sti
again:
    hlt
    jmp again
handler:
    mov al, 0x20
    out 0x20, al
    iret
"""
    vm = boot(tmp_path, pit)
    keys = Keys()
    run_interactively(vm, keys, max_time=NS_PER_SECOND // 4)
    # the keyboard was asked to wait for as long as the guest was ahead, which this one did not do
    assert sum(keys.waited) > 0.2


# --- terminals ------------------------------------------------------------------------------------------------------


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    """The two ends of a pseudo-terminal: ours, and the one that programs see."""
    ours, theirs = os.openpty()
    yield ours, theirs
    os.close(ours)
    os.close(theirs)


def test_the_mode_is_restored_whatever_happens(terminal: tuple[int, int]) -> None:
    ours, theirs = terminal
    before = termios.tcgetattr(theirs)
    with pytest.raises(ZeroDivisionError), RawTerminal(theirs) as raw:
        mode = termios.tcgetattr(theirs)
        assert not mode[3] & (termios.ICANON | termios.ECHO | termios.ISIG) and mode[1] & termios.OPOST
        os.write(ours, b"\x03\r\n")
        assert raw.read(5) == b"\x03\r\n"
        assert raw.read(0.01) == b""
        raise ZeroDivisionError
    assert termios.tcgetattr(theirs) == before


def read_until(descriptor: int, text: bytes, timeout: float = 120) -> bytes:
    data = b""
    end = time.monotonic() + timeout
    while text not in data:
        assert select.select([descriptor], [], [], max(0.0, end - time.monotonic()))[0], data
        data += os.read(descriptor, 4096)
    return data


def start(terminal: tuple[int, int], *arguments: str, **options: int) -> subprocess.Popen[bytes]:
    theirs = terminal[1]
    streams = {"stdin": theirs, "stdout": theirs, "stderr": theirs} | options
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.Popen([sys.executable, "-m", "emu", "run", *arguments], env=environment, **streams)


@pytest.mark.parametrize("leave", ["key", "signal"])
def test_the_command(tmp_path: Path, terminal: tuple[int, int], leave: str) -> None:
    (tmp_path / "guest.s").write_text(BY_INTERRUPT)
    before = termios.tcgetattr(terminal[1])
    process = start(terminal, str(tmp_path / "guest.s"), "--interactive")
    assert b"Ctrl-] leaves" in read_until(terminal[0], b">")
    os.write(terminal[0], b"a\x03")
    assert b"\x03." in read_until(terminal[0], b"\x03.")  # Ctrl-C goes to the guest
    if leave == "key":
        os.write(terminal[0], ESCAPE)
    else:
        process.send_signal(signal.SIGTERM)
    told = read_until(terminal[0], b"frames used")
    assert process.wait(60) == (0 if leave == "key" else 143)
    assert told.lstrip().startswith(b"emu: guest: ") and told.startswith(b"\r\n")  # the guest's line is ended first
    assert termios.tcgetattr(terminal[1]) == before


def test_the_closing_line_has_a_line_of_its_own(tmp_path: Path, terminal: tuple[int, int]) -> None:
    process = start(terminal, "hello", "--until", "real mode")
    assert b"real mode\r\nemu: hello: the console printed" in read_until(terminal[0], b"emu: hello")
    assert process.wait(60) == 0


def test_no_empty_line_where_the_console_goes_elsewhere(tmp_path: Path, terminal: tuple[int, int]) -> None:
    process = start(terminal, "hello", "--until", "real mode", stdout=subprocess.DEVNULL)
    assert read_until(terminal[0], b"frames used").startswith(b"emu: hello: ")
    assert process.wait(60) == 0


def test_a_long_run_shows_its_progress(tmp_path: Path, terminal: tuple[int, int]) -> None:
    (tmp_path / "guest.s").write_text(LOOP)
    process = start(terminal, str(tmp_path / "guest.s"), stdout=subprocess.DEVNULL)
    shown = read_until(terminal[0], b" of 16384 frames")
    assert b" s virtual, " in shown and b"x wall clock, " in shown
    process.send_signal(signal.SIGINT)
    assert b"\r\x1b[Kemu: guest: the run was stopped" in read_until(terminal[0], b"status 130")
    assert process.wait(60) == 130
