"""Damaged inputs with fixed seeds.  ``python -m tests.torture files`` tries more."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.torture.files import Kind, draw, given, kinds, wrong

SEEDS = range(150)


@pytest.mark.parametrize("kind", kinds(), ids=lambda kind: kind.name)
def test_what_is_whole_is_taken(kind: Kind, tmp_path: Path) -> None:
    for data in kind.whole:
        kind.use(given(kind, data, tmp_path))  # is not refused


def test_damaged_inputs(tmp_path: Path) -> None:
    for seed in SEEDS:
        kind, data = draw(seed)
        assert wrong(kind, data, tmp_path) is None, f"seed {seed}: {kind.name}"


def test_every_kind_is_among_them() -> None:
    assert {draw(seed)[0].name for seed in range(1000)} == {kind.name for kind in kinds()}
