"""Ctrl-C and SIGTERM at many moments: a documented status, whole files, one line, and soon.

EMU_LONG=N tries N moments; CI a few.  What is too soon for any program, before its first line, is left out.
"""

from __future__ import annotations

import json
import os
import random
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from emu.cli import main
from emu.commands import signals
from emu.commands.screen import Screen

MOMENTS = int(os.environ.get("EMU_LONG") or 6)
FIRST_LINE_S = 0.5  # until Python has come to the command's first line
STATUSES = {signal.SIGINT: 130, signal.SIGTERM: 143}
GUESTS = {
    "loop": "mov al, 0x21\nout 0xE9, al\nx: jmp x",
    "prints": "x: mov al, 0x41\nout 0xE9, al\njmp x",
    "fills": "cld\nmov ax, 0x2000\nmov es, ax\nx: mov ecx, 0xFFFF\nxor di, di\nrep stosb\njmp x",
    "resets": "mov al, 0xFE\nout 0x64, al\nx: jmp x",
    "sleeps": "sti\nx: hlt\njmp x",
    "faults": "xor ax, ax\nx: div al\njmp x",
    "ends": "mov al, 0\nout 0xF4, al\nhlt",
}


def start(tmp_path: Path, guest: str, number: int = 0, **streams: int) -> subprocess.Popen[bytes]:
    source = tmp_path / f"{guest}.s"
    source.write_text(f".code16\n{GUESTS[guest]}\n")
    command = [sys.executable, "-m", "emu", "run", str(source), "--ram", "2M", "--timeout", "60"]
    command += ["--events", str(tmp_path / f"events{number}"), "--summary", str(tmp_path / f"summary{number}")]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE} | streams
    return subprocess.Popen(command, env=environment, **pipes)  # type: ignore[call-overload,no-any-return]


def check_files(tmp_path: Path, number: int, status: int, err: str) -> None:
    """The files are whole, and empty only when the guest had not run."""
    events, summary = tmp_path / f"events{number}", tmp_path / f"summary{number}"
    if "virtual" in err:
        assert json.loads(summary.read_text())["status"] == status
    for path in (events, summary):
        text = path.read_text() if path.exists() else ""
        assert not text or text.endswith("\n")
    if events.exists():
        for line in events.read_text().splitlines():
            json.loads(line)


@pytest.mark.parametrize("moment", range(MOMENTS))
def test_at_any_moment(tmp_path: Path, moment: int) -> None:
    draw = random.Random(moment)
    guest, number = draw.choice(sorted(GUESTS)), draw.choice(sorted(STATUSES))
    process = start(tmp_path, guest, moment)
    time.sleep(FIRST_LINE_S + draw.choice((draw.random() / 2, draw.random() * 3)))
    process.send_signal(number)
    if draw.random() < 0.3:
        time.sleep(draw.random() / 5)
        process.send_signal(draw.choice(sorted(STATUSES)))
    err = process.communicate(timeout=60)[1].decode()
    own = {"ends": 1, "faults": 124, "sleeps": 124}.get(guest)  # it may have ended before: the last two halt for ever
    assert process.returncode in (STATUSES[number], own), err
    assert "Traceback" not in err
    check_files(tmp_path, moment, process.returncode, err)


@pytest.mark.parametrize("number", sorted(STATUSES))
def test_right_after_the_closing_line(tmp_path: Path, number: signal.Signals) -> None:
    process = start(tmp_path, "ends")
    assert process.stderr is not None
    err = b""
    while b"virtual" not in err:
        err += os.read(process.stderr.fileno(), 4096)
    process.send_signal(number)
    err += process.communicate(timeout=60)[1]
    assert (process.returncode, b"Traceback" in err) == (1, False)
    check_files(tmp_path, 0, 1, err.decode())


def test_a_reader_that_does_not_read_holds_up_no_signal(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    process = start(tmp_path, "prints", stdout=writing)
    os.close(writing)
    full = 0
    while full < 20:  # the pipe is full when nothing more comes for a while
        full = full + 1 if select.select([reading], [], [], 0)[0] else 0
        time.sleep(0.05)
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    err = process.communicate(timeout=60)[1].decode()
    os.close(reading)
    assert process.returncode == 143, err
    check_files(tmp_path, 0, 143, err)


class Run:
    stopped = 0

    def request_stop(self) -> None:
        self.stopped += 1


def test_a_run_is_stopped_once_and_what_follows_is_noted() -> None:
    run = Run()
    with signals.taken_over(for_ever=False):
        with signals.stop_on_signals(run, last=True) as seen:
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        assert (seen, run.stopped) == ([signal.SIGTERM], 1)


def test_without_a_run_a_signal_ends_the_command() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(signals.Interrupted) as caught, signals.taken_over(for_ever=False):
        signal.raise_signal(signal.SIGTERM)
    assert signals.describe(caught.value) == (143, "stopped by SIGTERM")
    assert signal.getsignal(signal.SIGTERM) is before
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


def test_a_signal_that_was_lost_in_a_callback_stops_the_run_at_its_start() -> None:
    run = Run()
    with signals.taken_over(for_ever=False):
        try:
            signal.raise_signal(signal.SIGINT)
        except signals.Interrupted:
            pass
        with signals.stop_on_signals(run, last=True) as seen:
            assert (seen, run.stopped) == ([signal.SIGINT], 1)


def test_what_a_signal_breaks_at_the_start_is_an_interruption(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """NumPy turns whatever is raised while it is imported into an ImportError of many lines."""

    def interrupted(argv: list[str]) -> int:
        try:
            signal.raise_signal(signal.SIGTERM)
        except signals.Interrupted:
            raise ImportError("READ THIS\nFOR ADVICE") from None
        return 0

    monkeypatch.setattr("emu.cli._dispatch", interrupted)
    assert main(["run", "hello"]) == 143
    assert capsys.readouterr().err == "emu: stopped by SIGTERM\n"


def test_a_stepper_goes_on_after_ctrl_c() -> None:
    with signals.taken_over(for_ever=False):
        for _ in range(2):
            run = Run()
            with signals.stop_on_signals(run):
                signal.raise_signal(signal.SIGINT)
            assert run.stopped == 1


def test_a_screen_gives_up_what_nobody_reads() -> None:
    reading, writing = os.pipe()
    given_up = False
    with open(writing, "wb") as file:
        screen = Screen(file, given_up=lambda: given_up)
        screen(b"first\n")
        assert os.read(reading, 100) == b"first\n"
        given_up = True
        screen(bytes(1 << 20))
    os.close(reading)
