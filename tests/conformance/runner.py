"""Runs a case on one machine (emu's shadow or nested paging, or QEMU) and says how it ended."""

from __future__ import annotations

import os
import re
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.conformance.suites import Case

MACHINES = ("shadow", "nested", "qemu")
_FULL_CONSOLE = 16 << 20  # bytes: a guest that prints more has run wild


@dataclass(frozen=True)
class Run:
    """What a run left.

    Attributes:
        ended: "status N", "until" (its text came), "time" (it was stopped at its limit), "killed by N".
        console: what the guest printed.
        said: what the emulator itself had to say.
        user_seconds: user CPU time that the kernel charged the process with.
        results: (name, result) of each single test in it.
        bad: the names of those that failed.
    """

    ended: str
    console: str
    said: str
    user_seconds: float
    results: tuple[tuple[str, str], ...]
    bad: tuple[str, ...]
    passed: bool

    def tally(self) -> str:
        """The single results, counted."""
        counts: dict[str, int] = {}
        for _, result in self.results:
            counts[result] = counts.get(result, 0) + 1
        return ", ".join(f"{count} {result}" for result, count in sorted(counts.items()))


def run_case(case: Case, machine: str, folder: Path, patience: float = 1) -> Run:
    """Run it to its end, its text or ``patience`` times its time limit."""
    with tempfile.NamedTemporaryFile() as debug:
        ended, output, said, seconds = _watch(_command(case, machine, folder, debug.name), case, patience)
        if machine == "qemu" and case.console == "debug":
            output = debug.read()
    console = output.decode("latin-1").replace("\r", "")
    found = re.finditer(case.results, console, re.MULTILINE) if case.results else ()
    results = tuple((match["name"].strip(), match["result"]) for match in found)
    bad = tuple(name for name, result in results if result in case.bad)
    good_end = ended == "until" if case.until else ended in {f"status {status}" for status in case.statuses}
    came_to_its_end = not case.done or re.search(case.done, console, re.MULTILINE) is not None
    return Run(ended, console, said, seconds, results, bad, good_end and came_to_its_end and not bad)


def worse(run: Run, reference: Run | None) -> list[str]:
    """What emu does worse than the reference, a line each."""
    lines = [f"fails: {name}" for name in run.bad if reference is None or name not in reference.bad]
    if reference is not None and reference.passed and not run.passed and not lines:
        lines.append(f"ended as {run.ended}, not as {reference.ended}")
    return lines


def _command(case: Case, machine: str, folder: Path, debug: str) -> list[str]:
    names = {"image": str(folder / case.image), "folder": str(folder)}
    if machine == "qemu":
        return [
            *(case.program, "-accel", "tcg", "-nodefaults", "-display", "none", "-no-reboot", "-serial", "stdio"),
            *("-device", "isa-debug-exit,iobase=0xf4,iosize=0x4", "-debugcon", f"file:{debug}"),
            *(argument.format(**names) for argument in case.qemu),
        ]
    arguments = [argument.format(**names) for argument in case.emu]
    image = () if "--bios" in arguments else (names["image"],)
    typed = ("--type", "@".join(case.typed)) if case.typed else ()
    return [sys.executable, "-m", "emu", "run", *image, *_known(arguments), *typed, "--mmu", machine]


def _known(arguments: list[str]) -> list[str]:
    """Without those options that this emu does not have yet."""
    kept = list(arguments)
    for option in ("--device", "--cpu"):
        if option in kept and option not in _emu_help():
            place = kept.index(option)
            del kept[place : place + 2]
    return kept


@cache
def _emu_help() -> str:
    return subprocess.run([sys.executable, "-m", "emu", "run", "--help"], capture_output=True, text=True).stdout


def _watch(command: list[str], case: Case, patience: float) -> tuple[str, bytes, str, float]:
    output, typed = bytearray(), case.typed is None
    limit = time.monotonic() + case.seconds * patience
    pipe = subprocess.PIPE
    with (
        tempfile.TemporaryFile() as said,
        subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=said, start_new_session=True) as process,
        selectors.DefaultSelector() as waiting,
    ):
        assert process.stdin and process.stdout
        waiting.register(process.stdout, selectors.EVENT_READ)
        ended = ""
        while not ended:
            left = limit - time.monotonic()
            if left <= 0 or len(output) > _FULL_CONSOLE:
                ended = "time"
            elif waiting.select(min(left, 1.0)):
                piece = os.read(process.stdout.fileno(), 65536)
                if not piece:
                    break
                output += piece
                if case.until and case.until.encode() in output[-len(piece) - len(case.until) :]:
                    ended = "until"
                if not typed and case.typed and case.typed[1].encode() in output:
                    process.stdin.write(case.typed[0].encode())
                    process.stdin.flush()
                    typed = True
        if ended:
            os.killpg(process.pid, signal.SIGTERM)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if not ended:
            ended = f"status {process.returncode}" if process.returncode >= 0 else f"killed by {-process.returncode}"
        said.seek(0)
        return ended, bytes(output), said.read().decode("latin-1"), usage.ru_utime
