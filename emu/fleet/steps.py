"""Steps of a fleet's schedule: what is done to a VM from outside, between two turns of its guest."""

from __future__ import annotations

from dataclasses import dataclass

SHUTDOWN = "shutdown"  # the one action that ends the VM, which its fleet does


@dataclass(frozen=True)
class Step:
    """One step.

    Attributes:
        at: fleet time in ns from which on it is due.
        action: SHUTDOWN or a key of :data:`emu.machine.control.ACTIONS`.
        value: what a fleet file says behind that: a size, a policy, a number of frames, true.
    """

    at: int
    action: str
    value: str | int

    def __str__(self) -> str:
        return self.action if self.action == SHUTDOWN else f"{self.action} {self.value}"


@dataclass(frozen=True)
class StepResult:
    """What became of a step.

    Attributes:
        time: fleet time in ns.
        step: which.
        refused: why it was not done; None when it was.
    """

    time: int
    step: Step
    refused: str | None
