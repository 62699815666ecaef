"""Guests under test: what the ``vm`` fixture (:mod:`emu.pytest_plugin`) hands out.  It works without pytest, too."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from emu.boot.guest import Guest
from emu.devices.keys import parse_keys
from emu.engine.events import BY_NAME, EVENT_TYPES, Event
from emu.errors import BadInput
from emu.machine.vm import VirtualMachine
from emu.observe.console import ConsoleWatch
from emu.observe.outcome import Ending, Outcome
from emu.session import boot_vm, run_vm
from emu.units import NS_PER_SECOND, format_time, parse_time

SAFETY_S = 300.0  # wall time after which a guest that got no limit in virtual time counts as hung
_LINES_SHOWN = 20  # of the console, in messages


class GuestFailure(AssertionError):
    """A guest did not do what the test waited for.

    Attributes:
        guest: the guest.
        outcome: how its run ended.
    """

    def __init__(self, message: str, guest: GuestUnderTest, outcome: Outcome) -> None:
        super().__init__(message)
        self.guest = guest
        self.outcome = outcome


def virtual_time(text: str | int | float) -> int:
    """Virtual time in ns: text like "1.5s", "20 ms", "3us", "100ns", or a number of seconds.

    Raises:
        BadInput: it is no time.
    """
    if not isinstance(text, str):
        return round(text * NS_PER_SECOND)
    try:
        return parse_time(text)
    except ValueError as error:
        raise BadInput("max_time", str(error)) from None


def boot(
    guest: str | Path | Guest, *, events: bool | Iterable[type[Event] | str] = False, **options: Any
) -> GuestUnderTest:
    """Boot a guest.

    Args:
        guest: a name that ``emu guests`` lists, a path, or an assembler source: text of more than one line.
        events: collect memory events: of these kinds, or all.
        options: fields of :class:`emu.options.BootOptions`: ram, pool, mmu, policies, append, …

    Raises:
        BadInput: one of them cannot be used.
    """
    if isinstance(guest, str) and "\n" in guest:
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "source.s"
            path.write_text(guest)
            vm = boot_vm(path, **options)
    else:
        vm = boot_vm(guest, **options)
    kinds: Iterable[type[Event] | str] = () if isinstance(events, bool) else events
    return GuestUnderTest(vm, EVENT_TYPES if events is True else [_kind(kind) for kind in kinds])


def _kind(kind: type[Event] | str) -> type[Event]:
    if not isinstance(kind, str):
        return kind
    if kind not in BY_NAME:
        raise BadInput("events", f"no kind of event: {kind!r}; there are {', '.join(BY_NAME)}")
    return BY_NAME[kind]


class GuestUnderTest:
    """A running guest.

    Attributes:
        vm: the VM, for everything that is not here (:class:`emu.machine.vm.VirtualMachine`).
        outcome: how the last run ended; None before the first.
    """

    def __init__(self, vm: VirtualMachine, kinds: Iterable[type[Event]] = ()) -> None:
        self.vm = vm
        self.outcome: Outcome | None = None
        self._waited = 0  # console bytes that wait_for has consumed
        self._kinds = tuple(kinds)
        self._events: list[Event] = []
        if self._kinds:
            vm.events.listen(self._events.append, self._kinds)

    @property
    def console(self) -> str:
        """Everything that the guest has printed."""
        return self.vm.platform.console.decode("utf-8", "replace")

    @property
    def now(self) -> int:
        """Virtual time in ns."""
        return self.vm.now

    @property
    def exit_status(self) -> int | None:
        """The exit status that ``emu run`` would have now; None before the guest has run."""
        return None if self.outcome is None else self.outcome.status

    @property
    def events(self) -> list[Event]:
        """The collected events so far, oldest first.

        Raises:
            BadInput: the guest was booted without ``events``, so there are none, whatever happens.
        """
        if not self._kinds:
            raise BadInput("events", "none are collected: boot the guest with events=True, or with the kinds you want")
        return self._events

    def events_of(self, *kinds: type[Event] | str) -> list[Event]:
        """The collected events of these kinds: classes of :mod:`emu.engine.events`, or names like "page-fault".

        Raises:
            BadInput: there is no such kind, or the guest was booted without collecting it.
        """
        wanted = tuple(_kind(kind) for kind in kinds)
        if not wanted:
            raise BadInput("events_of", f"expected kinds of events; there are {', '.join(BY_NAME)}")
        events = self.events
        missing = [kind.NAME for kind in wanted if not issubclass(kind, self._kinds)]
        if missing:
            collected = ", ".join(kind.NAME for kind in self._kinds)
            raise BadInput("events_of", f"{', '.join(missing)}: not collected; the guest was booted for {collected}")
        return [event for event in events if isinstance(event, wanted)]

    def send(self, data: bytes | str) -> None:
        """Put bytes in at the serial port, one character time after the other."""
        self.vm.platform.uart.receive(data.encode() if isinstance(data, str) else data)

    def press(self, keys: str) -> None:
        """Press keys one after the other, such as "dir<enter>" or "<ctrl-c>" (:mod:`emu.devices.keys`).

        Raises:
            BadInput: there is no such key; none is pressed.
        """
        for chord in parse_keys(keys):
            self.vm.platform.keyboard.press(*chord)

    @property
    def screen(self) -> str:
        """The text screen: a line for each of its 25 rows, without the spaces at its end."""
        return "".join(row.rstrip() + "\n" for row in self.vm.platform.vga.text().rows)

    def wait_for(self, text: str, max_time: str | int | float = "1s") -> None:
        """Run until the guest has printed ``text``; what earlier calls waited for does not count again.

        Args:
            max_time: limit in virtual time, counting from now (:func:`virtual_time`).

        Raises:
            GuestFailure: it has not; the message says what became of the guest.
        """
        __tracebackhide__ = True
        limit = virtual_time(max_time)
        if self._consume(text):
            return
        # run_vm's own watch does not count what has been printed already
        watch = ConsoleWatch(self.vm, text.encode(), self.vm.request_stop, self._waited)
        try:
            outcome = run_vm(self.vm, max_time=limit, timeout=SAFETY_S)
        finally:
            watch.close()
        if not self._consume(text):
            self.outcome = outcome
            raise self._failure(f"waited for {text!r} for at most {max_time}")
        self.outcome = Outcome(Ending.UNTIL, 0, f"the console printed {text!r}")

    def run(self, max_time: str | int | float | None = None) -> int:
        """Run until the guest ends.

        Args:
            max_time: limit in virtual time, counting from now; without one a guest that hangs runs for SAFETY_S.

        Returns:
            The exit status, as ``emu run`` has it: 1 when it wrote 0 to the exit port, 134 after a triple fault, 124
            when it reached the limit, …

        Raises:
            Exception: a fault of emu or of a policy.
        """
        limit = None if max_time is None else virtual_time(max_time)
        self.outcome = run_vm(self.vm, max_time=limit, timeout=SAFETY_S if limit is None else None)
        return self.outcome.status

    def expect_status(self, status: int, max_time: str | int | float | None = None) -> None:
        """:meth:`run`, and compare the exit status.

        Raises:
            GuestFailure: it is another one; the message says what became of the guest.
        """
        __tracebackhide__ = True
        if self.run(max_time) != status:
            raise self._failure(f"expected exit status {status}")

    def crash_report(self) -> str:
        """What is known about the guest as it stands, as after a triple fault: registers, code, stack, page walks."""
        from emu.observe.crash import report

        return report(self.vm)

    def describe(self) -> str:
        """The state of the guest for a test's report: how it ended, its last console lines, its crash report."""

        ending = "it has not run" if self.outcome is None else f"{self.outcome.sentence}; status {self.outcome.status}"
        lines = self.console.splitlines()
        if lines:
            shown = lines[-_LINES_SHOWN:]
            console = [f"its console, the last {len(shown)} of {len(lines)} lines:", *(f"| {line}" for line in shown)]
        else:
            console = ["it has printed nothing"]
        crashed = self.outcome is not None and self.outcome.ending == Ending.CRASH
        crash = ["", self.crash_report()] if crashed else []
        return "\n".join([f"{ending}, virtual time {format_time(self.now)}", *console, *crash])

    def _consume(self, text: str) -> bool:
        data = text.encode()
        at = self.vm.platform.output.find(data, self._waited)
        if at >= 0:
            self._waited = at + len(data)
        return at >= 0

    def _failure(self, what: str) -> GuestFailure:
        assert self.outcome is not None
        name = self.vm.guest.name if self.vm.guest else self.vm.name
        return GuestFailure(f"{name}: {what}, but {self.describe()}", self, self.outcome)
