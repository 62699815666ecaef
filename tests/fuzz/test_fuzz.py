"""Random instructions end as on QEMU, but for what the manuals say otherwise; both paging architectures are the same.

The seeds are fixed. ``EMU_LONG=1`` takes fifty more; ``python -m tests.fuzz --seeds 0`` goes on for ever.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.fuzz.cases import make_cases
from tests.fuzz.compare import difference, show, show_values
from tests.fuzz.machines import run
from tests.fuzz.rules import RULES, explain

CASES = 1500
SEEDS = range(1, 54 if os.environ.get("EMU_LONG") else 4)

needs_qemu = pytest.mark.skipif(not shutil.which("qemu-system-x86_64"), reason="QEMU is not installed")


@needs_qemu
@pytest.mark.parametrize("seed", SEEDS)
def test_as_on_qemu_or_as_the_manual_says(seed: int) -> None:
    cases = make_cases(seed, CASES)
    findings = []
    for number, (case, emu, qemu) in enumerate(zip(cases, run("shadow", cases), run("qemu", cases), strict=True)):
        assert emu is not None, f"emu is lost in {seed}/{number}, {show(case)}"
        differ = difference(case, emu, qemu) if qemu else None
        left = explain(differ)[1] if differ else set()
        if differ and left:
            findings.append("\n    ".join([f"{seed}/{number} {show(case)}", *show_values(differ, left)]))
    assert not findings, "\n".join(findings)


@pytest.mark.parametrize("seed", SEEDS)
def test_both_paging_architectures_are_the_same(seed: int) -> None:
    cases = make_cases(seed, CASES)
    for number, (case, shadow, nested) in enumerate(
        zip(cases, run("shadow", cases), run("nested", cases), strict=True)
    ):
        assert shadow == nested, f"{seed}/{number} {show(case)}"


def test_the_cases_are_of_all_kinds() -> None:
    """Page faults, refused instructions and code that runs to its end, in each mode."""
    cases = make_cases(1, 600)
    ends = run("shadow", cases)
    for bits in (16, 32, 64):
        for cpl in (0, 3):
            vectors = {
                end.value(case, "vector")
                for case, end in zip(cases, ends, strict=True)
                if end and (case.bits, case.cpl) == (bits, cpl)
            }
            assert {3, 6, 13, 14} <= vectors


def test_rules_have_names_of_their_own() -> None:
    assert len({rule.name for rule in RULES}) == len(RULES)
    assert {rule.wrong for rule in RULES} == {"QEMU", "emu", "nobody"}


def test_the_document_lists_every_rule() -> None:
    text = (Path(__file__).parents[2] / "docs/conformance.md").read_text("utf-8")
    assert not [rule.name for rule in RULES if f"| {rule.name} | {rule.why} |" not in text]
