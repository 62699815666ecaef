"""PolicyList: the policies of one VM that are in force, what they are about, and when their epochs are."""

from __future__ import annotations

from emu.dmm.policy import Policy
from emu.units import NEVER


class PolicyList(list[Policy]):
    """The policies in force, in the order in which they are asked.

    :meth:`emu.dmm.dmm.DMM.attach` and :meth:`emu.dmm.dmm.DMM.detach` change it.

    Attributes:
        watching: those that are told which pages become resident.
        withholding: whether one decides about rights.
        detaching: on its way out; it must not evict other pages to make room for its own.
        next_epoch: virtual time in ns of the next epoch, NEVER without one.
    """

    def __init__(self) -> None:
        super().__init__()
        self.watching: list[Policy] = []
        self.withholding = False
        self.detaching: Policy | None = None
        self.next_epoch = NEVER

    def watch(self) -> None:
        """See anew which policies are told what becomes resident: also one that is only about to be attached."""
        self.watching = [policy for policy in self if type(policy).entered is not Policy.entered]

    def refresh(self) -> None:
        """See anew what the policies are about; after each change of the list."""
        self.watch()
        self.withholding = any(type(policy).denied is not Policy.denied for policy in self)
        self._plan_epoch()

    def that_evict(self) -> list[Policy]:
        """Those that may be asked to make room."""
        return [policy for policy in self if policy is not self.detaching]

    def run_epochs(self, now: int) -> None:
        """Run the epochs of the policies whose deadline has come.

        Args:
            now: virtual time in ns.
        """
        if now >= self.next_epoch:
            for policy in list(self):
                deadline = policy.deadline()
                if deadline is not None and deadline <= now:
                    policy.epoch(now)
            self._plan_epoch()

    def _plan_epoch(self) -> None:
        deadlines = (policy.deadline() for policy in self)
        self.next_epoch = min((time for time in deadlines if time is not None), default=NEVER)
