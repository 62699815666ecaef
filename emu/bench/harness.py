"""Measuring: rounds in turn, medians, one row a figure."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

ROUNDS = 7

Round = Callable[[], float]
"""One measurement; returns seconds for each operation."""


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        group, name: what was measured.
        ours, peer: medians, in ``unit``; ``peer`` is None where nothing comparable exists.
        peer_name: what the peer is.
        ratio: above 1 where ours is the faster.
    """

    group: str
    name: str
    ours: float
    peer: float | None
    peer_name: str
    unit: str
    ratio: float | None

    def as_json(self) -> dict[str, object]:
        return asdict(self)


@dataclass(frozen=True)
class Case:
    """What a row is made from.

    Attributes:
        ours, peer: the two sides; a side may subtract a baseline of its own.
        scale, unit: seconds are multiplied by ``scale`` to give ``unit``.
        deterministic: it counts something instead of measuring time: one round is enough.
    """

    group: str
    name: str
    ours: Round
    peer: Round | None = None
    peer_name: str = ""
    scale: float = 1e9
    unit: str = "ns"
    deterministic: bool = False


def timed(function: Callable[[], object], operations: int) -> float:
    """Seconds for each of the ``operations`` that one call of ``function`` makes."""
    begin = time.perf_counter()
    function()
    return (time.perf_counter() - begin) / operations


def measure(case: Case, rounds: int = ROUNDS) -> Row:
    """Run both sides once to warm up, then in turn, and take the medians."""
    sides = [case.ours] if case.peer is None else [case.ours, case.peer]
    seconds: list[list[float]] = [[] for _ in sides]
    if not case.deterministic:
        for side in sides:
            side()
    for _ in range(1 if case.deterministic else rounds):
        for side, taken in zip(sides, seconds, strict=True):
            taken.append(side())
    medians = [statistics.median(taken) * case.scale for taken in seconds]
    peer = medians[1] if len(medians) > 1 else None
    ratio = peer / medians[0] if peer is not None and medians[0] > 0 else None
    return Row(case.group, case.name, medians[0], peer, case.peer_name, case.unit, ratio)


def table(rows: Sequence[Row]) -> str:
    """The rows for people; names come last, as long as they like."""
    lines = [f"{'emu':>10}{'peer':>10}  {'unit':<6}{'ratio':>7}  what, against which peer"]
    for row in rows:
        peer = "-" if row.peer is None else f"{row.peer:.3g}"
        ratio = "-" if row.ratio is None else f"{row.ratio:.2f}"
        against = f", against {row.peer_name}" if row.peer_name else ""
        lines.append(f"{row.ours:>10.3g}{peer:>10}  {row.unit:<6}{ratio:>7}  {row.group}: {row.name}{against}")
    return "\n".join(lines)
