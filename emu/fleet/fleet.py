"""Fleet: many VMs on one machine memory, which take turns in virtual time.

Time is cut into rounds of one quantum.  At the beginning of a round the VMs that are due are started and the steps of
the schedule that are due are carried out; then each running VM, in the order of the plan, runs to the end of the round.
A VM's clock is 0 when it starts, so it shows the fleet's time less the time of its start.  It stops at the end of a
block of code, a little behind the end of the round; the next round ends where it would have ended anyway.

::

    fleet = Fleet(load_fleet("fleet.toml"))
    fleet.run()
    print([(member.plan.name, member.end) for member in fleet.members])
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any

from emu.devices.hub import Hub, HubPort
from emu.engine.ram import OutOfMachineFrames
from emu.errors import BadInput
from emu.fleet.peaks import Peaks
from emu.fleet.steps import SHUTDOWN, Step, StepResult
from emu.infile import read_input
from emu.machine.control import perform
from emu.machine.machine import Machine
from emu.machine.vm import Stop, VirtualMachine
from emu.observe.outcome import STATUS_SUCCESS, Ending, Outcome
from emu.observe.summary import MemoryUse, summarise
from emu.options import BootOptions
from emu.session import MEMORY_ERRORS, boot_vm, outcome_of, outcome_of_error
from emu.units import format_size

QUANTUM = 1_000_000  # ns
MOST_INPUT = 64 << 20  # bytes that come in at a serial port
INPUT_PATIENCE_S = 60.0  # for those from a pipe


@dataclass(frozen=True)
class VmPlan:
    """One VM of a plan.

    Attributes:
        name: unique in the plan.
        guest, options: as for :func:`emu.session.boot_vm`.
        input: file with what waits at its serial port.
        start: fleet time in ns.
        schedule: what is done to it later, in the order of time.
    """

    name: str
    guest: str | Path
    options: BootOptions
    input: Path | None = None
    start: int = 0
    schedule: tuple[Step, ...] = ()


@dataclass(frozen=True)
class FleetPlan:
    """A fleet before it starts.

    Attributes:
        memory: bytes of machine memory.
        vms: in the order of their turns.
        quantum: ns of virtual time that each gets in its turn.
        max_time: fleet time in ns at which it ends in any case, None for never.
    """

    memory: int
    vms: tuple[VmPlan, ...]
    quantum: int = QUANTUM
    max_time: int | None = None


@dataclass(frozen=True)
class End:
    """How a VM ended.

    Attributes:
        how: a value of :class:`emu.observe.outcome.Ending`, or "shut-down" (by its schedule), "not-started" (its
            start was due and impossible).
        well: the guest switched off or wrote 0 to the exit port, or its schedule shut it down.
        sentence: for people, without a full stop.
        time: fleet time in ns.
    """

    how: str
    well: bool
    sentence: str
    time: int


class Member:
    """One VM of a fleet, before, during and after its life.

    Attributes:
        plan: what it is.
        vm: None before its start and after its end.
        started: fleet time in ns of its start; None before.
        end: how it ended; None before.
        steps: what its schedule has done, or was refused.
        numbers: of its memory when it ended; None before.
        report: its part of the summary when it ended; None before, and when it never started.
        console: what the guest printed until its end.
        remarks: what the user should know of its devices, when it ended.
    """

    def __init__(self, plan: VmPlan) -> None:
        self.plan = plan
        self.vm: VirtualMachine | None = None
        self.started: int | None = None
        self.end: End | None = None
        self.steps: list[StepResult] = []
        self.numbers: MemoryUse | None = None
        self.report: dict[str, Any] | None = None
        self.console = b""
        self.remarks: list[str] = []
        self.due = list(plan.schedule)

    @property
    def hub(self) -> str | None:
        """The name of the hub that its card is plugged into."""
        net = self.plan.options.net_plan
        return None if net is None else net.hub

    @property
    def state(self) -> str:
        """For people: waiting, running, or how it ended."""
        return self.end.how if self.end else "running" if self.vm else "waiting"


class FleetStop(Enum):
    """Why :meth:`Fleet.run` returned."""

    ENDED = "ended"  # every VM has ended
    MAX_TIME = "max-time"  # the fleet time asked for has come
    STOPPED = "stopped"  # :meth:`Fleet.request_stop`


class Fleet:
    """The VMs of a plan on a machine of their own.  Those that are due at once are booted at once.

    Args:
        plan: the fleet.
        audit: check every invariant after every change of a mapping.
        on_start: is called with each VM before its first instruction.

    Attributes:
        members: in the order of their turns.
        now: fleet time in ns: the beginning of this round.
        peaks: the largest numbers so far.

    Raises:
        BadInput: the machine or a VM that is due at once cannot be made.
    """

    def __init__(
        self, plan: FleetPlan, *, audit: bool = False, on_start: Callable[[VirtualMachine], None] | None = None
    ) -> None:
        host = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        if plan.memory > host:
            raise BadInput("memory", f"{format_size(plan.memory)} do not fit into the {host >> 20}M of this host")
        self.plan = plan
        self.machine = Machine(plan.memory)
        self.members = [Member(vm) for vm in plan.vms]
        self.now = 0
        self.peaks = Peaks()
        self._hubs: dict[str, Hub] = {}
        self._audit = audit
        self._on_start = on_start
        self._round: list[Member] = []  # those that have not had their turn in this round
        self._stop_requested = False
        self._current: VirtualMachine | None = None
        try:
            for member in self.members:
                if member.plan.start == 0:
                    self._start(member)
        except BaseException:
            self.close()
            raise

    @property
    def running(self) -> list[VirtualMachine]:
        """The VMs on the machine, in the order of their turns."""
        return [member.vm for member in self.members if member.vm is not None]

    @property
    def is_over(self) -> bool:
        """Whether every VM has ended."""
        return all(member.end is not None for member in self.members)

    @property
    def well(self) -> int:
        """How many VMs have ended well."""
        return sum(member.end is not None and member.end.well for member in self.members)

    def request_stop(self) -> None:
        """Make :meth:`run` return soon.  May be called from listeners, signal handlers and other threads."""
        self._stop_requested = True
        vm = self._current
        if vm is not None:
            vm.request_stop()

    def run(self, until: int | None = None, after_turn: Callable[[], None] | None = None) -> FleetStop:
        """Run until every VM has ended, somebody requests a stop, or a round begins at ``until`` (fleet time in ns)
        or later.  After a stop it can be run on, and the round goes on where it was.

        Args:
            after_turn: is called after each turn of a VM.

        Raises:
            Exception: a fault of emu, of a device or of a policy.  What only one VM suffers from is its end instead.
        """
        while not self.is_over:
            if self._stop_requested:
                self._stop_requested = False
                return FleetStop.STOPPED
            if not self._round:
                if until is not None and self.now >= until:
                    return FleetStop.MAX_TIME
                self._begin_round()
            while self._round and not self._stop_requested:
                if self._turn(self._round[0]):
                    del self._round[0]
                if after_turn is not None:
                    after_turn()
            if not self._round:
                self.now += self.plan.quantum
                if not self.running:
                    self._skip_to_next_start(until)
        return FleetStop.ENDED

    def close(self) -> None:
        """Give everything back; what VMs that have not ended had in swap files is gone."""
        for member in self.members:
            if member.vm is not None:
                member.vm.close()
                member.vm = None

    # --- a round ---

    def _begin_round(self) -> None:
        for hub in self._hubs.values():
            hub.exchange(self.now)
        self._end_silent_hubs()
        for member in self.members:
            if member.started is None and member.end is None and member.plan.start <= self.now:
                self._start_late(member)
        for member in self.members:
            self._perform_due_steps(member)
        self.peaks.look(self.running)
        self._round = [member for member in self.members if member.vm is not None]

    def _end_silent_hubs(self) -> None:
        """End the VMs that sleep until a card on their hub sends something, where none is left that might."""
        for name in self._hubs:
            present = [member for member in self.members if member.hub == name and member.end is None]
            if all(member.vm is not None and member.vm.waits_for_input and not member.due for member in present):
                for member in present:
                    assert member.vm is not None
                    self._end(member, member.vm, outcome_of(member.vm, Stop.HALTED))

    def _turn(self, member: Member) -> bool:
        """False when it was cut short."""
        vm, stop = member.vm, Stop.DEADLINE
        assert vm is not None and member.started is not None
        self._current = vm
        try:
            stop = vm.run(self.now + self.plan.quantum - member.started)
        except MEMORY_ERRORS as error:
            if error.vm != vm.name:
                raise
            self._end(member, vm, outcome_of_error(error))
        else:
            if stop is Stop.DEADLINE and vm.waits_for_input and not member.due and member.hub is None:
                stop = Stop.HALTED  # nobody will ever wake it
            if stop not in (Stop.DEADLINE, Stop.REQUESTED):
                self._end(member, vm, outcome_of(vm, stop))
        finally:
            self._current = None
        for other in self.running:
            other.events.drain()  # frames that it shares with others may have moved
        return stop is not Stop.REQUESTED

    def _skip_to_next_start(self, until: int | None) -> None:
        starts = [member.plan.start for member in self.members if member.started is None and member.end is None]
        if starts:
            quantum = self.plan.quantum
            then = -(-min(starts) // quantum) * quantum
            self.now = max(self.now, then if until is None else min(then, until))

    # --- starting ---

    def _start(self, member: Member) -> None:
        plan = member.plan
        try:
            serial_input = b""
            if plan.input is not None:
                serial_input = read_input("input", plan.input, MOST_INPUT, timeout=INPUT_PATIENCE_S)
            options = replace(plan.options, serial_input=serial_input, audit=self._audit)
            vm = boot_vm(plan.guest, options, name=plan.name, machine=self.machine)
        except (BadInput, OutOfMachineFrames) as error:
            raise BadInput(plan.name, str(error).removeprefix("--")) from error
        member.vm, member.started = vm, self.now
        port = vm.platform.network
        if isinstance(port, HubPort):
            self._hubs.setdefault(port.name, Hub()).join(port, self.now)
        if self._on_start is not None:
            self._on_start(vm)

    def _start_late(self, member: Member) -> None:
        try:
            self._start(member)
        except BadInput as error:
            member.end = End("not-started", False, error.reason, self.now)
            self._refuse_rest(member, "the VM never started")

    # --- the schedule ---

    def _perform_due_steps(self, member: Member) -> None:
        while member.vm is not None and member.due and member.due[0].at <= self.now:
            step = member.due.pop(0)
            if step.action == SHUTDOWN:
                member.steps.append(StepResult(self.now, step, None))
                outcome = Outcome(Ending.STOPPED, STATUS_SUCCESS, "its schedule shut it down")
                self._end(member, member.vm, outcome, "shut-down")
            else:
                member.steps.append(StepResult(self.now, step, perform(member.vm, step.action, step.value)))
                self._audit_all()

    def _refuse_rest(self, member: Member, why: str) -> None:
        member.steps += [StepResult(step.at, step, why) for step in member.due]
        member.due.clear()

    # --- ending ---

    def _end(self, member: Member, vm: VirtualMachine, outcome: Outcome, how: str | None = None) -> None:
        """Take the VM off the machine; ``how`` is for what :class:`emu.observe.outcome.Ending` has no word for."""
        assert member.started is not None
        vm.events.drain()
        self.peaks.look(self.running)
        how = how or outcome.ending.value
        well = how in ("power-off", "shut-down") or (how == "exit" and vm.exit_value == 0)
        member.end = End(how, well, outcome.sentence, member.started + vm.now)
        member.numbers = MemoryUse.of(vm)
        member.report = summarise(vm, outcome, 0) | {"outcome": how}
        member.console = bytes(vm.platform.console)
        member.remarks = vm.platform.remarks()
        member.vm = None
        self._refuse_rest(member, "the VM had ended")
        try:
            vm.close()
        except BadInput as error:  # what a policy has for a file
            member.end = End(how, False, f"{outcome.sentence}; {error}", member.end.time)
        self._audit_all()

    def _audit_all(self) -> None:
        if self._audit:
            for vm in self.running:
                vm.audit()
