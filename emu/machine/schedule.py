"""How the processors of a VM take turns: the longest slice, and the seed from which slices and orders are drawn."""

from __future__ import annotations

from dataclasses import dataclass

from emu.errors import BadInput

MAX_CPUS = 16  # processors of a VM
DEFAULT_QUANTUM = 50_000  # virtual ns; "Turns of processors" in docs/design.md says how it was chosen
LEAST_QUANTUM, MOST_QUANTUM = 1_000, 1_000_000_000  # virtual ns
_SHORTEST = 16  # with a seed, the shortest slice is the longest one divided by this


@dataclass(frozen=True)
class Schedule:
    """The turns of a VM's processors.

    Attributes:
        quantum: the longest slice of a processor in virtual ns.
        seed: a number of 64 bits; in every round the order of the processors and the slices' length, from a 16th of
            ``quantum`` up to that, are drawn from it.  None for slices of ``quantum`` in the order of their numbers.
    """

    quantum: int = DEFAULT_QUANTUM
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.quantum < LEAST_QUANTUM:
            raise BadInput("--quantum", f"{self.quantum} ns is too short, {LEAST_QUANTUM} ns is the least")
        if self.quantum > MOST_QUANTUM:
            raise BadInput("--quantum", f"{self.quantum} ns is too long, {MOST_QUANTUM} ns is the most")

    @property
    def shortest_quantum(self) -> int:
        """The shortest slice that may be drawn, in virtual ns."""
        return self.quantum // _SHORTEST
