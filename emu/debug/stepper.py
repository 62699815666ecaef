"""The stepper: takes a guest from event to event and from instruction to instruction, and changes its mapping by hand.

It reads and prints nothing; front ends do (:mod:`emu.commands.step`).  ::

    stepper = Stepper(boot_vm("paging32"))
    pause = stepper.to_event([PageFault])
    print(pause.wanted[-1].sentence())

Stepping does not change what the guest does: events and virtual times are those of a free run.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from emu.debug import look
from emu.dmm.errors import DmmError
from emu.dmm.policy import Policy
from emu.engine.events import EVENT_TYPES, Event
from emu.errors import BadInput
from emu.machine import control
from emu.machine.vm import Stop
from emu.observe.outcome import Ending, Outcome
from emu.session import MEMORY_ERRORS, outcome_of, outcome_of_error

if TYPE_CHECKING:
    from emu.dmm.p2m import Intent
    from emu.machine.vm import VirtualMachine

_T = TypeVar("_T")
HISTORY = 1000  # events that are remembered
_FINAL = {Ending.EXIT, Ending.POWER_OFF, Ending.RESET, Ending.CRASH, Ending.HALTED}


@dataclass(frozen=True)
class Pause:
    """Where the guest stands after it has run.

    Attributes:
        outcome: how the run ended; None when a step is over.
        events: what has happened since the pause before, oldest first; the last HISTORY of it.
        wanted: those of them that the step waited for.
        counts: how many events of each kind there were, by name; kinds without any are left out.
        changed: the registers (:func:`emu.debug.look.registers`) that are not what they were.
    """

    outcome: Outcome | None
    events: tuple[Event, ...]
    wanted: tuple[Event, ...]
    counts: dict[str, int]
    changed: frozenset[str]


class Stepper:
    """Steps one VM.

    Args:
        vm: a VM with a guest in it, wherever it stands.

    Attributes:
        vm: the VM.
        history: the last HISTORY events, oldest first.
        last: the event that the guest was stopped for last, or the last one that happened; None before the first.
        ended: how the guest ended; None while it can run on.
        selected: the processor that :meth:`select` has named.
    """

    def __init__(self, vm: VirtualMachine) -> None:
        self.vm = vm
        self.history: deque[Event] = deque(maxlen=HISTORY)
        self.last: Event | None = None
        self.ended: Outcome | None = None
        self.selected: int | None = None
        self._new: deque[Event] = deque(maxlen=HISTORY)
        vm.events.listen(self._note)

    def close(self) -> None:
        """Stop listening to the VM."""
        self.vm.events.unlisten(self._note)

    def _note(self, event: Event) -> None:
        self.history.append(event)
        self._new.append(event)

    # --- running ---

    def to_event(self, kinds: Iterable[type[Event]] = EVENT_TYPES) -> Pause:
        """Run to the end of the instruction in which the next event of ``kinds`` happens."""
        wanted = frozenset(kinds)
        return self._advance(lambda: self.vm.run_to_event(wanted), wanted)

    def instructions(self, count: int = 1) -> Pause:
        """Execute ``count`` instructions, of the processor that :meth:`select` has named if it has named one."""
        return self._advance(lambda: self.vm.step(count, cpu=self.selected), frozenset())

    def select(self, cpu: int | None) -> None:
        """Look at and step one processor from now on, while the others take their turns; None: whichever runs.

        Raises:
            BadInput: there is no such processor.
        """
        if cpu is not None and not 0 <= cpu < len(self.vm.processors):
            raise BadInput("cpu", f"{cpu} is not one of 0 to {len(self.vm.processors) - 1}")
        self.selected = cpu
        self.vm.select(cpu)

    def to_end(self) -> Pause:
        """Run until the guest ends or somebody stops the VM."""
        return self._advance(self.vm.run, frozenset())

    def _advance(self, run: Callable[[], Stop], kinds: frozenset[type[Event]]) -> Pause:
        before, counted = look.registers(self.vm), self.vm.events.counts()
        self._new.clear()
        outcome: Outcome | None = self.ended
        if outcome is None:
            try:
                stop = run()
                outcome = None if stop == Stop.STEP else outcome_of(self.vm, stop)
            except MEMORY_ERRORS as error:
                outcome = outcome_of_error(error)
            self.vm.events.drain()
        if outcome is not None and outcome.ending in _FINAL:
            self.ended = outcome
        events = tuple(self._new)
        wanted = tuple(event for event in events if type(event) in kinds)
        if events:
            self.last = wanted[-1] if wanted else events[-1]
        after = look.registers(self.vm)
        changed = frozenset(name for name, value in after.items() if before.get(name) != value)
        counts = {kind: count - counted[kind] for kind, count in self.vm.events.counts().items()}
        return Pause(outcome, events, wanted, {kind: count for kind, count in counts.items() if count}, changed)

    # --- changing the mapping ---

    def remap(self, gfn: int) -> int:
        """Move a page to another frame; returns its new mfn.

        Raises:
            BadInput: the page cannot be moved.
        """
        return self._change("remap", lambda: self.vm.dmm.remap(gfn))

    def protect(self, gfn: int, rights: Intent) -> None:
        """Grant exactly ``rights`` on a page; the guest's next access beyond them is a DMM fault.

        Raises:
            BadInput: the page cannot be protected.
        """
        self._change("protect", lambda: self.vm.dmm.protect(gfn, rights))

    def evict(self, gfn: int) -> None:
        """Take the frame from behind a page; the first policy that can keeps its contents.

        Raises:
            BadInput: the page cannot be evicted, or there is no such policy.
        """
        keeper = self.keeper()
        if keeper is None:
            raise BadInput("evict", "no policy in force keeps pages")
        self._change("evict", lambda: self.vm.dmm.evict(gfn, keeper))

    def control(self, action: str, value: str | int) -> None:
        """Carry out one of :data:`emu.machine.control.ACTIONS`: another pool, a policy on or off, frames retired, …

        Raises:
            BadInput: it cannot be done.
        """
        refused = self._change(action, lambda: control.perform(self.vm, action, value))
        if refused is not None:
            raise BadInput(action, refused.removeprefix(f"{action}: "))

    def keeper(self) -> Policy | None:
        """The first policy in force that keeps evicted pages."""
        policies = self.vm.dmm.policies
        return next((policy for policy in policies if type(policy).keep is not Policy.keep), None)

    def _change(self, what: str, change: Callable[[], _T]) -> _T:
        try:
            return change()
        except (ValueError, DmmError) as error:
            raise BadInput(what, str(error)) from None
        finally:
            self.vm.events.drain()
