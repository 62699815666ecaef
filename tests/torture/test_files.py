"""A fixed run of mutated files and options, and that a wrong exception, a hang and a torn line are findings."""

from __future__ import annotations

from pathlib import Path

import pytest

from emu.errors import EmuError
from tests.torture import files
from tests.torture.mutants import KERNELS


def test_each_mutant_works_or_is_refused_in_one_line() -> None:
    ends, findings = files.torture(0, 560)
    assert findings == []
    assert ends["worked"] + ends["refused"] == 560 and min(ends["worked"], ends["refused"]) > 20


@pytest.mark.parametrize("name", ["elf64", "multiboot", "multiboot2", "disk"])
def test_what_is_mutated_is_valid(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(KERNELS[name])
    files.make_guest(files.detect(tmp_path / name), 16 << 20)


@pytest.mark.parametrize("error", [KeyError("x"), files.Late(), EmuError("two\nlines"), MemoryError()])
def test_other_ends_are_findings(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def raises(path: Path) -> None:
        raise error

    monkeypatch.setattr(files, "load_fleet", raises)
    ends, findings = files.torture(files.FORMATS.index("fleet"), 1)
    assert ends == {"finding": 1} and len(findings) == 1
