"""Each suite in the folder EMU_CONFORMANCE: in both paging architectures the same, and no worse than on QEMU."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.conformance.runner import run_case, worse
from tests.conformance.suites import Case, all_cases

_NAMED = os.environ.get("EMU_CONFORMANCE", "")
_FOLDER = Path(_NAMED)
_CASES = all_cases(_FOLDER) if _NAMED else []


@pytest.mark.skipif(bool(_CASES), reason="the suites run, see below")
def test_the_suites_are_there() -> None:
    """So that it can be seen when they are not run."""
    if not _NAMED:
        pytest.skip("EMU_CONFORMANCE names no folder of built suites; docs/conformance.md tells how to build them")
    pytest.fail(f"EMU_CONFORMANCE: {_FOLDER} holds no suite that docs/conformance.md describes")


@pytest.mark.parametrize("case", _CASES, ids=lambda case: f"{case.suite}-{case.name}")
def test_as_on_qemu_or_better(case: Case) -> None:
    shadow, nested = (run_case(case, machine, _FOLDER) for machine in ("shadow", "nested"))
    assert shadow.results == nested.results
    reference = run_case(case, "qemu", _FOLDER) if shutil.which(case.program) else None
    assert not worse(shadow, reference)
    assert not worse(nested, reference)
