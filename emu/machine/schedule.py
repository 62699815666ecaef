"""How the processors of a VM take turns: the longest slice, and the seed from which slices and orders are drawn."""

from __future__ import annotations

from dataclasses import dataclass

from emu.errors import BadInput

DEFAULT_QUANTUM = 50_000  # virtual ns; docs/design.md says how it was chosen
LEAST_QUANTUM = 1_000  # virtual ns
_SHORTEST = 16  # with a seed, the shortest slice is the longest one divided by this


@dataclass(frozen=True)
class Schedule:
    """The turns of a VM's processors.

    Attributes:
        quantum: the longest slice of a processor in virtual ns.
        seed: in every round, the slices' length, from a 16th of ``quantum`` up to that, and the order of the
            processors are drawn from this number; None for slices of ``quantum`` in the order of their numbers.
    """

    quantum: int = DEFAULT_QUANTUM
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.quantum < LEAST_QUANTUM:
            raise BadInput("--quantum", f"{self.quantum} ns is too short, {LEAST_QUANTUM} ns is the least")
        if self.seed is not None and not 0 <= self.seed < 1 << 63:
            raise BadInput("--schedule", f"seed {self.seed} is not a number from 0 to {(1 << 63) - 1}")

    @property
    def shortest_quantum(self) -> int:
        """The shortest slice that may be drawn, in virtual ns."""
        return self.quantum // _SHORTEST

    @classmethod
    def parse(cls, text: str | None, quantum: int | None) -> Schedule:
        """A schedule from the text of ``--schedule``, which is "seed=N", and a quantum in virtual ns.

        Raises:
            BadInput: it is something else.
        """
        longest = DEFAULT_QUANTUM if quantum is None else quantum
        if text is None:
            return cls(longest)
        key, _, value = text.partition("=")
        if key != "seed" or not value.isascii() or not value.isdigit():
            raise BadInput("--schedule", f"expected seed=N with a number N instead of {text!r}")
        return cls(longest, int(value))
