"""Hostile guests with fixed seeds.  ``python -m tests.torture guests`` tries more."""

from __future__ import annotations

import pytest

from tests.torture.guests import MODES, draw, shortened, wrong

SEEDS = range(24)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_hostile_guest(seed: int) -> None:
    assert wrong(draw(seed)) is None


def test_the_seeds_see_every_mode() -> None:
    assert {draw(seed).mode for seed in SEEDS} == set(MODES)


def test_a_finding_is_shortened() -> None:
    """What matters here are two of the pieces."""
    case = draw(5)
    first, second = case.pieces[1], case.pieces[-1]
    short = shortened(case, lambda one: first in one.pieces and second in one.pieces)
    assert set(short.pieces) == {first, second} and len(short.pieces) <= 3
