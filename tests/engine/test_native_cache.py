"""Machine code on disk: whatever a first process compiled, later ones run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def emu(cache: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "emu", *arguments]
    return subprocess.run(command, env=os.environ | {"XDG_CACHE_HOME": str(cache)}, capture_output=True, text=True)


def test_a_first_process_that_compiles_only_a_part(tmp_path: Path) -> None:
    """The second compiles the rest with the first part loaded, the third loads all of it."""
    first = emu(tmp_path, "run", "hello", "--ram", "1000G")
    assert first.returncode == 2 and "compiling the native plane" in first.stderr
    for _ in range(2):
        done = emu(tmp_path, "run", "hello")
        assert (done.returncode, done.stdout.count("protected mode")) == (1, 1), done.stderr
    assert "compiling" not in done.stderr
