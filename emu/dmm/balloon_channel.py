"""The channel between a VM's balloon devices and its balloon policy."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol


class BalloonPolicy(Protocol):
    """The policy's end of the channel.

    Attributes:
        held: the gfns in the balloon.
    """

    held: set[int]

    def set_target(self, pages: int) -> None:
        """Ask the guest to have ``pages`` pages in the balloon; raises BadInput when it does not have so many."""

    def inflate(self, gfns: Iterable[int]) -> None: ...

    def deflate(self, gfns: Iterable[int]) -> None: ...

    def report(self, gfns: Iterable[int]) -> None: ...


class BalloonChannel:
    """What a VM's balloon devices and its balloon policy know of each other; each VM has one.

    It is harmless when an end is missing: without a policy the target is 0 and what the guest says is ignored, without
    a driver in the guest nobody looks at the target.

    Attributes:
        target: pages that the guest is asked to have in the balloon.
        front_ends: the devices: called with each new target.
        policy: the policy in force, told what the guest says.
    """

    def __init__(self) -> None:
        self.target = 0
        self.front_ends: list[Callable[[int], None]] = []
        self.policy: BalloonPolicy | None = None

    def set_target(self, pages: int) -> None:
        """Ask the guest to have ``pages`` pages in the balloon."""
        self.target = pages
        for tell in self.front_ends:
            tell(pages)

    def inflate(self, gfns: Iterable[int]) -> None:
        """The guest has put ``gfns`` into the balloon."""
        if self.policy is not None:
            self.policy.inflate(gfns)

    def deflate(self, gfns: Iterable[int]) -> None:
        """The guest takes ``gfns`` out of the balloon."""
        if self.policy is not None:
            self.policy.deflate(gfns)

    def report(self, gfns: Iterable[int]) -> None:
        """The guest does not use ``gfns`` at the moment."""
        if self.policy is not None:
            self.policy.report(gfns)
