"""What a list of policies knows of them at a glance, and when it runs their epochs."""

from __future__ import annotations

from emu.dmm.p2m import Intent
from emu.dmm.policy import Policy
from emu.dmm.policylist import PolicyList
from emu.units import NEVER


class Timer(Policy):
    name = "timer"

    def __init__(self, next_epoch: int | None, period: int = 10) -> None:
        self.next, self.period = next_epoch, period
        self.ran: list[int] = []

    def deadline(self) -> int | None:
        return self.next

    def epoch(self, now: int) -> None:
        self.ran.append(now)
        self.next = now + self.period


class Watcher(Policy):
    name = "watcher"

    def entered(self, gfn: int) -> None:
        pass


class Withholder(Policy):
    name = "withholder"

    def denied(self, gfn: int, intent: Intent) -> bool:
        return False


def test_an_empty_list_has_nothing_to_do() -> None:
    policies = PolicyList()
    policies.refresh()
    policies.run_epochs(NEVER - 1)
    assert policies.next_epoch == NEVER and not policies.withholding
    assert policies.watching == policies.that_evict() == []


def test_what_the_policies_are_about() -> None:
    policies = PolicyList()
    watcher, withholder = Watcher(), Withholder()
    policies.append(watcher)
    policies.watch()
    assert policies.watching == [watcher]
    policies.append(withholder)
    policies.refresh()
    assert policies.watching == [watcher] and policies.withholding
    policies.detaching = withholder
    assert policies.that_evict() == [watcher]
    policies.remove(withholder)
    policies.refresh()
    assert not policies.withholding


def test_only_the_epochs_that_are_due_run() -> None:
    policies = PolicyList()
    soon, later, never = Timer(5), Timer(20), Timer(None)
    policies.extend([later, never, soon])
    policies.refresh()
    assert policies.next_epoch == 5
    policies.run_epochs(4)
    assert not soon.ran
    policies.run_epochs(7)
    assert (soon.ran, later.ran, never.ran, policies.next_epoch) == ([7], [], [], 17)
    policies.run_epochs(25)
    assert (soon.ran, later.ran, policies.next_epoch) == ([7, 25], [25], 35)
