"""PolicyList: the policies of one VM that are in force, what they are about, and when their epochs are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import overload

from emu.cpu.clock import NEVER
from emu.dmm.policy import Policy


class PolicyList(Sequence[Policy]):
    """The policies in force, in the order in which they are asked.

    :meth:`emu.dmm.dmm.DMM.attach` and :meth:`emu.dmm.dmm.DMM.detach` change it.

    Attributes:
        watching: those that are told which pages become resident.
        withholding: whether one decides about rights.
        detaching: on its way out; it must not evict other pages to make room for its own.
        next_epoch: virtual time in ns of the next epoch, NEVER without one.
    """

    def __init__(self) -> None:
        self._policies: list[Policy] = []
        self.watching: list[Policy] = []
        self.withholding = False
        self.detaching: Policy | None = None
        self.next_epoch = NEVER

    def __len__(self) -> int:
        return len(self._policies)

    def __contains__(self, policy: object) -> bool:
        return policy in self._policies

    def __iter__(self) -> Iterator[Policy]:
        return iter(self._policies)

    @overload
    def __getitem__(self, at: int) -> Policy: ...

    @overload
    def __getitem__(self, at: slice) -> list[Policy]: ...

    def __getitem__(self, at: int | slice) -> Policy | list[Policy]:
        return self._policies[at]

    def append(self, policy: Policy) -> None:
        """Ask ``policy`` from now on, behind all others; :meth:`refresh` must follow when it is attached."""
        self._policies.append(policy)
        self.watching = self._watchers()

    def remove(self, policy: Policy) -> None:
        """Ask ``policy`` no more; :meth:`refresh` must follow."""
        self._policies.remove(policy)

    def clear(self) -> None:
        """Ask nobody any more."""
        self._policies.clear()
        self.refresh()

    def refresh(self) -> None:
        """Look anew at what the policies do."""
        self.watching = self._watchers()
        self.withholding = any(type(policy).denied is not Policy.denied for policy in self._policies)
        self._plan_epoch()

    def that_evict(self) -> list[Policy]:
        """Those that may be asked to make room."""
        return [policy for policy in self._policies if policy is not self.detaching]

    def run_epochs(self, now: int) -> None:
        """Run the epochs of the policies whose deadline has come.

        Args:
            now: virtual time in ns.
        """
        if now >= self.next_epoch:
            for policy in list(self._policies):
                deadline = policy.deadline()
                if deadline is not None and deadline <= now:
                    policy.epoch(now)
            self._plan_epoch()

    def _watchers(self) -> list[Policy]:
        return [policy for policy in self._policies if type(policy).entered is not Policy.entered]

    def _plan_epoch(self) -> None:
        deadlines = (policy.deadline() for policy in self._policies)
        self.next_epoch = min((time for time in deadlines if time is not None), default=NEVER)
