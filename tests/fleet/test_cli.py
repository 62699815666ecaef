"""`emu fleet`: what it prints and writes, its exit statuses, and one line for what cannot be."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from emu.boot import firmware
from emu.cli import main
from emu.observe.trace import read_events

Capture = pytest.CaptureFixture[str]

MACHINE = '[machine]\nmemory = "8M"\n'
HELLO = '[[vm]]\nname = "greeter"\nguest = "hello"\n'
CRASH = '[[vm]]\nname = "faller"\nguest = "crash"\n'
LOOP = '[[vm]]\nname = "runner"\nguest = "loop.s"\nram = "1M"\n'


def fleet_file(directory: Path, text: str) -> str:
    (directory / "loop.s").write_text(".code16\nhere:\n jmp here\n")
    path = directory / "fleet.toml"
    path.write_text(text)
    return str(path)


def strip_wall(path: Path) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads(path.read_text())
    assert summary.pop("wall_s") > 0
    return summary


def test_the_table_and_the_closing_line(tmp_path: Path, capsys: Capture) -> None:
    schedule = 'schedule = [{ at = "0ms", pool = "64K" }, { at = "0ms", retire = 1 }]\n'
    assert main(["fleet", fleet_file(tmp_path, f"{MACHINE}{HELLO}{schedule}{CRASH}")]) == 1
    out, err = capsys.readouterr()
    lines = [line.rstrip() for line in out.splitlines()]
    assert lines[0].split() == "VM state time pool used shared swapped balloon faults evicted COW".split()
    assert lines[2].split()[:2] == ["greeter", "exit"]
    assert lines[3].split()[:2] == ["faller", "crash"]
    assert lines[4].startswith("8M of machine memory; at most 2M committed to VMs, ")
    assert lines[5] == "greeter at 0 ns: retire 1 refused: retire: greeter has 0 frames in use"
    assert lines[6].startswith("faller at ") and lines[6].endswith("the guest crashed: triple fault")
    assert err.startswith(f"emu: {tmp_path}/fleet.toml: 1 of 2 VMs ended well; status 1, 1 ms virtual, ")


def test_what_it_writes_is_the_same_every_time(tmp_path: Path, capsys: Capture) -> None:
    file = fleet_file(tmp_path, f"{MACHINE}{HELLO}count = 2\n{CRASH}")
    for run in ("one", "two"):
        outputs = ["--console", f"{tmp_path}/{run}", "--events", f"{tmp_path}/{run}.log", "--summary"]
        assert main(["fleet", file, *outputs, f"{tmp_path}/{run}.json", "--audit"]) == 1
    consoles = {path.name: path.read_bytes() for path in (tmp_path / "one").iterdir()}
    assert consoles.keys() == {"greeter-0.txt", "greeter-1.txt", "faller.txt"}
    assert consoles == {path.name: path.read_bytes() for path in (tmp_path / "two").iterdir()}
    assert consoles["greeter-0.txt"].startswith(b"Hello!")
    assert (tmp_path / "one.log").read_bytes() == (tmp_path / "two.log").read_bytes()
    assert [event.vm for event in read_events(tmp_path / "one.log")] == sorted(
        (event.vm for event in read_events(tmp_path / "one.log")), key=["greeter-0", "greeter-1", "faller"].index
    )
    summary = strip_wall(tmp_path / "one.json")
    assert summary == strip_wall(tmp_path / "two.json")
    assert [(vm["vm"], vm["outcome"], vm["well"]) for vm in summary["vms"]] == [
        ("greeter-0", "exit", True),
        ("greeter-1", "exit", True),
        ("faller", "crash", False),
    ]
    capsys.readouterr()


def test_the_fleet_that_comes_with_emu(tmp_path: Path, capsys: Capture) -> None:
    file = firmware.firmware_directory() / "fleets" / "six.toml"
    assert main(["fleet", str(file), "--summary", f"{tmp_path}/summary"]) == 0
    summary = strip_wall(tmp_path / "summary")
    machine, vms = summary["machine"], {vm["vm"]: vm for vm in summary["vms"]}
    assert machine["committed_pages"] > 3 * machine["memory_frames"]
    assert machine["saved_frames"] > 200
    assert vms["crowded"]["memory"]["swapped"] > 500
    assert vms["giver"]["events"]["balloon-inflate"] == 128
    assert [step["refused"] is None for step in vms["elastic"]["schedule"]] == [True, True, False, True]
    assert "elastic at 12 ms: pool 16M refused: machine memory has" in capsys.readouterr().out


def test_with_json_on_standard_output_the_table_goes_elsewhere(tmp_path: Path, capsys: Capture) -> None:
    assert main(["fleet", fleet_file(tmp_path, MACHINE + HELLO), "--summary", "-"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["status"] == 0
    assert "greeter" in err


@pytest.mark.parametrize(
    ("limit", "says"),
    [
        (["--max-time", "0.003"], "the limit in virtual time was reached, 1 of 1 VMs have not ended; status 124, 3 ms"),
        (["--timeout", "0.2"], "the fleet was stopped, 1 of 1 VMs have not ended; status 124, "),
    ],
)
def test_limits(tmp_path: Path, capsys: Capture, limit: list[str], says: str) -> None:
    assert main(["fleet", fleet_file(tmp_path, f'{MACHINE}max-time = "1000s"\n{LOOP}'), *limit]) == 124
    out, err = capsys.readouterr()
    assert "running" in out and says in err


def test_the_limit_in_the_file(tmp_path: Path, capsys: Capture) -> None:
    file = fleet_file(tmp_path, f'{MACHINE}max-time = "2ms"\n{LOOP}')
    assert main(["fleet", file, "--max-time", "5"]) == 124
    assert "status 124, 2 ms virtual" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "arguments", "says"),
    [
        (MACHINE, [], "fleet.toml: file: vm is missing"),
        (f'{MACHINE}{HELLO}pool = "64K"\npolicies = ["static"]', [], "fleet.toml: greeter: pool: 64K is too small to"),
        (MACHINE + HELLO, ["--summary", "fleet.toml"], "--summary: fleet.toml is used by this run already"),
        (MACHINE + LOOP, ["--events", "loop.s"], "--events: loop.s is used by this run already"),
        (MACHINE + HELLO, ["--console", "loop.s"], "--console: loop.s cannot be made: File exists"),
        (MACHINE + HELLO, ["--console", ".", "--summary", "greeter.txt"], "is written by --summary already"),
    ],
)
def test_bad_input(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, text: str, arguments: list[str], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    fleet_file(tmp_path, text)
    assert main(["fleet", "fleet.toml", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and says in err and err.count("\n") == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_it_in_order_and_the_table_is_live_on_a_terminal(tmp_path: Path, number: signal.Signals) -> None:
    ours, theirs = pty.openpty()
    file = fleet_file(tmp_path, MACHINE + LOOP)
    arguments = ["fleet", file, "--summary", f"{tmp_path}/summary", "--timeout", "100"]
    child = subprocess.Popen(
        [sys.executable, "-m", "emu.cli", *arguments],
        stdout=subprocess.PIPE,
        stderr=theirs,
        env=os.environ | {"TERM": "xterm", "COLUMNS": "80"},
    )
    os.close(theirs)
    shown = b""
    while b"together" not in shown:
        shown += os.read(ours, 4096)
    child.send_signal(number)
    out = child.stdout.read() if child.stdout else b""
    assert child.wait() == 128 + number
    os.close(ours)
    assert b"1 running with 1M on 8M of machine memory" in shown
    assert b"runner" in out and b"\x1b" not in out
    assert strip_wall(tmp_path / "summary")["vms"][0]["outcome"] == "unfinished"
