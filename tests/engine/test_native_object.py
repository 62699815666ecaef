"""The native plane's machine code: built once, by one of those that need it, and loaded with and without a linker."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from emu.engine import native_object
from emu.errors import CompilerFailed

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def object_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All that the compiler makes."""
    return native_object.compile_to(tmp_path_factory.mktemp("native") / "native.o")


@pytest.fixture
def quick(object_file: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Compiling takes no time; what was compiled."""
    asked = []

    def copy(path: Path) -> Path:
        asked.append(path)
        return Path(shutil.copy(object_file, path))

    monkeypatch.setattr(native_object, "compile_to", copy)
    return asked


def copy_of_the_source(folder: Path) -> Path:
    """The package without what an installation has built for it."""
    for name in ("emu", "firmware"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("_native", "__pycache__"))
    return folder


def python(source: Path, cache: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"XDG_CACHE_HOME": str(cache), "PYTHONPATH": str(source)}
    command = [sys.executable, *arguments]
    return subprocess.run(command, env=environment, cwd=source, capture_output=True, text=True, timeout=300)


def test_it_is_built_once(quick: list[Path], tmp_path: Path) -> None:
    made = native_object.build_into(tmp_path)
    assert native_object.build_into(tmp_path) == made
    assert len(quick) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([made.name, "lock"])


def test_a_process_that_has_it_needs_no_numba(quick: list[Path], tmp_path: Path) -> None:
    source = copy_of_the_source(tmp_path)
    made = native_object.build_into(tmp_path / "cache" / "emu")
    assert made.suffix == ".so"
    program = (
        "import sys; from emu.cli import main; main(['run', 'hello']); print({'numba', 'llvmlite'} & {*sys.modules})"
    )
    done = python(source, tmp_path / "cache", "-c", program)
    assert done.stdout.endswith("protected mode.\nset()\n"), done.stderr
    assert len(list(made.parent.glob("*.*o"))) == 1  # nothing was built beside it


def test_without_a_linker_the_object_file_is_loaded(
    quick: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = copy_of_the_source(tmp_path)
    with monkeypatch.context() as patch:
        patch.setenv("PATH", str(tmp_path))
        made = native_object.build_into(tmp_path / "cache" / "emu")
    assert made.suffix == ".o"
    done = python(source, tmp_path / "cache", "-m", "emu", "run", "long64")
    assert done.returncode == 1, done.stderr
    assert len(list(made.parent.glob("*.*o"))) == 1


def test_what_a_killed_build_left_behind_goes(quick: list[Path], tmp_path: Path) -> None:
    (tmp_path / "building-1").mkdir()
    (tmp_path / "building-1" / "native.o").write_bytes(b"half")
    native_object.build_into(tmp_path)
    assert not list(tmp_path.glob("building-*"))


def test_a_change_of_the_source_is_another_object(tmp_path: Path) -> None:
    keys = set()
    source = copy_of_the_source(tmp_path)
    for change in ("", "# native\n", "# another\n"):
        with open(source / "emu" / "cpu" / "clock.py", "a") as file:
            file.write(change)
        keys.add(python(source, tmp_path, "-c", "from emu.engine.native_object import key; print(key())").stdout)
    with open(source / "emu" / "cli.py", "a") as file:
        file.write("# not native\n")
    keys.add(python(source, tmp_path, "-c", "from emu.engine.native_object import key; print(key())").stdout)
    assert len(keys) == 3


@pytest.mark.parametrize("home", ["/dev/null", "/proc/1"])
def test_a_cache_that_cannot_be_written(
    quick: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: str
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", home)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(native_object, "_state", {"building": False, "kept": True})
    assert tmp_path in native_object.find_or_build(tmp_path / "nowhere").parents
    assert native_object.being_built() == (False, False)


def test_a_compiler_that_fails_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = copy_of_the_source(tmp_path)
    with open(source / "emu" / "cpu" / "probes.py", "a") as file:
        file.write("\n\n@compiled\ndef broken(x: int) -> int:\n    return nowhere(x)\n")
    done = python(source, tmp_path / "cache", "-m", "emu", "run", "hello")
    assert done.returncode == 125
    assert "emu: compiling the native plane failed: " in done.stderr and "nowhere" in done.stderr
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(CompilerFailed):
        native_object.build_into(tmp_path / "other")
