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
PATIENCE = 100_000_000  # virtual ns for which a step waits for the selected processor to execute something
_FINAL = {Ending.EXIT, Ending.POWER_OFF, Ending.RESET, Ending.CRASH, Ending.HALTED}


@dataclass(frozen=True)
class Pause:
    """Where the guest stands after it has run.

    Attributes:
        outcome: how the run ended; None when a step is over.
        events: what has happened since the pause before, oldest first; the last HISTORY of it.
        wanted: those of them that the step waited for.
        counts: how many events of each kind there were, by name; kinds without any are left out.
        changed: the registers (:func:`emu.debug.look.registers`) that are not what they were, of the processor to
            look at.
        idle: nothing was executed: the selected processor has been halted or waiting for PATIENCE.
    """

    outcome: Outcome | None
    events: tuple[Event, ...]
    wanted: tuple[Event, ...]
    counts: dict[str, int]
    changed: frozenset[str]
    idle: bool = False


class Stepper:
    """Steps one VM.

    Args:
        vm: a VM with a guest in it, wherever it stands.

    Attributes:
        vm: the VM.
        history: the last HISTORY events, oldest first.
        last: the event that the guest was stopped for last, or the last one that happened; None before the first.
        ended: how the guest ended; None while it can run on.
    """

    def __init__(self, vm: VirtualMachine) -> None:
        self.vm = vm
        self.history: deque[Event] = deque(maxlen=HISTORY)
        self.last: Event | None = None
        self.ended: Outcome | None = None
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
        return self._advance(lambda: self._step(count), frozenset())

    def _step(self, count: int) -> Stop:
        """DEADLINE when the selected processor executes nothing for PATIENCE: another one may run for ever."""
        vm, left = self.vm, count
        while vm.selected is not None:
            stop = vm.step(left, vm.now + PATIENCE, vm.selected)
            if stop != Stop.DEADLINE or vm.native.step_count == left:
                return stop
            left = vm.native.step_count
        return vm.step(count)

    def select(self, cpu: int | None) -> None:
        """Look at and step one processor from now on, while the others take their turns; None: whichever runs.

        Raises:
            BadInput: there is no such processor.
        """
        last = len(self.vm.processors) - 1
        if cpu is not None and not 0 <= cpu <= last:
            raise BadInput("cpu", f"there is no processor {cpu}, " + (f"they are 0 to {last}" if last else "only 0"))
        self.vm.selected = cpu

    def to_end(self) -> Pause:
        """Run until the guest ends or somebody stops the VM."""
        return self._advance(self.vm.run, frozenset())

    def _advance(self, run: Callable[[], Stop], kinds: frozenset[type[Event]]) -> Pause:
        before = [look.registers(processor) for processor in self.vm.processors]
        counted = self.vm.events.counts()
        self._new.clear()
        outcome: Outcome | None = self.ended
        idle = False
        if outcome is None:
            try:
                stop = run()
                idle = stop == Stop.DEADLINE
                outcome = None if stop == Stop.STEP or idle else outcome_of(self.vm, stop)
            except MEMORY_ERRORS as error:
                outcome = outcome_of_error(error)
            self.vm.events.drain()
        if outcome is not None and outcome.ending in _FINAL:
            self.ended = outcome
        events = tuple(self._new)
        wanted = tuple(event for event in events if type(event) in kinds)
        if events:
            self.last = wanted[-1] if wanted else events[-1]
        was, after = before[self.vm.processor.index], look.registers(self.vm.processor)
        changed = frozenset(name for name, value in after.items() if was.get(name) != value)
        counts = {kind: count - counted[kind] for kind, count in self.vm.events.counts().items()}
        return Pause(outcome, events, wanted, {kind: count for kind, count in counts.items() if count}, changed, idle)

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
