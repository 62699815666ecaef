"""What the README tells people to type, and says about it, is true."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from emu.boot import firmware
from emu.cli import COMMANDS, main
from emu.engine.events import EVENT_TYPES
from emu.testing import GuestUnderTest

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
BLOCKS = [textwrap.dedent(block) for block in re.findall(r"(?:^(?: {4}.*)?\n)+", README, re.MULTILINE)]


def block(begin: str) -> str:
    """The indented block that begins so."""
    (found,) = [text.strip("\n") + "\n" for text in BLOCKS if text.strip().startswith(begin)]
    return found


def test_there_are_exactly_two_commands_for_all_set_up() -> None:
    commands = [text.strip() for text in BLOCKS if text.strip().startswith("python3 -m venv")]
    assert len(commands) == 2
    assert "run hello" in commands[0] and "pytest" in commands[1]


def test_the_kernel_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "kernel.s"
    source.write_text(block("# kernel.s"))
    assert main(["run", str(source)]) == 1
    assert capsys.readouterr().out == "Hello from my own kernel.\n"


def test_the_loop_finds_the_race_and_its_seed_shows_it_again(tmp_path: Path) -> None:
    (tmp_path / "race.s").write_text(block("# race.s"))
    again = re.search(r"`emu (run race.s --cpus 2 --schedule seed=(\d+) --events log)`", README)
    assert again is not None
    replay = f'emu {again[1]}; echo "status $?"\n'
    script = f'emu() {{ {sys.executable} -m emu "$@"; }}\n{block("for seed in")}{replay}mv log first\n{replay}'
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    result = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=300, env=environment
    )
    assert result.stdout == f"the race shows with seed {again[2]}\n" + 2 * "status 3\n", result.stderr
    assert (tmp_path / "log").read_bytes() == (tmp_path / "first").read_bytes() != b""


def test_the_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "kernel.s").write_text(block("# kernel.s"))
    monkeypatch.chdir(tmp_path)
    exec(compile(block("import emu"), "README.md", "exec"), {})


def test_the_test_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, vm: Callable[..., GuestUnderTest]) -> None:
    (tmp_path / "kernel.s").write_text(block("# kernel.s"))
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(compile(block("def test_my_kernel"), "README.md", "exec"), names)
    names["test_my_kernel"](vm)


def test_it_names_all_guests_options_events_and_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["run", "--help"])
    options = set(re.findall(r"^  (--[\w-]+)", capsys.readouterr().out, re.MULTILINE))
    assert options
    for name in [*firmware.guests(), *options, *(kind.NAME for kind in EVENT_TYPES)]:
        assert re.search(rf"`{name}\b", README) or f"`, `{name}" in README, name
    for name in COMMANDS:
        assert f"emu {name}" in README, name
