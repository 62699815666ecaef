"""What ``import emu`` offers: the public names are listed, resolve, and have their types beside them."""

from __future__ import annotations

import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest

import emu

ROOT = Path(__file__).parent.parent


def test_all_public_names_are_listed_and_there() -> None:
    assert emu.__all__ == sorted(emu.__all__)
    assert set(emu.__all__) <= set(dir(emu))
    for name in emu.__all__:
        value = getattr(emu, name)
        assert value.__name__ == name and value.__doc__


def test_names_are_listed_before_anything_is_imported() -> None:
    program = "import sys, emu; assert set(emu.__all__) <= set(dir(emu)); sys.exit('emu.session' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, timeout=60).returncode == 0


def test_another_name_is_an_error() -> None:
    with pytest.raises(AttributeError, match="module 'emu' has no attribute 'no_such_name'"):
        getattr(emu, "no_such_" + "name")


def test_the_types_are_marked_as_such() -> None:
    """That the wheel has the marker, too, is checked by .ci/run, which builds one."""
    assert files(emu).joinpath("py.typed").is_file()
