"""The files and folders that the documents name are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCUMENTS = (
    "README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/design.md", "docs/conformance.md", "docs/security.md",
    "docs/torture.md",
)  # fmt: skip


def paths_in(text: str) -> set[str]:
    """The paths below emu, tests, docs and firmware in backticks, but for those with a NAME to fill in."""
    found = re.findall(r"`((?:emu|tests|docs|firmware)/[\w./-]*)`", text)
    return {path for path in found if "NAME" not in path}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_what_it_names_is_there(document: str) -> None:
    missing = sorted(
        path for path in paths_in((ROOT / document).read_text(encoding="utf-8")) if not (ROOT / path).exists()
    )
    assert not missing


def test_every_folder_of_emu_has_a_row_in_the_readme() -> None:
    named = paths_in((ROOT / "README.md").read_text(encoding="utf-8"))
    folders = {f"{path.parent.relative_to(ROOT).as_posix()}/" for path in (ROOT / "emu").rglob("*.py")}
    assert folders <= named


def test_every_test_of_the_support_matrix_is_there() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (ROOT / "docs/conformance.md").read_text(encoding="utf-8"))
    missing = [f"{path}::{test}" for path, test in named if f"def {test}(" not in (ROOT / path).read_text("utf-8")]
    assert len(named) > 20
    assert not missing


def test_a_path_that_is_not_there_would_be_seen() -> None:
    assert paths_in("`emu/no_such.py` and `emu/cpu/`, `emu/devices/NAME.py`") == {"emu/no_such.py", "emu/cpu/"}
