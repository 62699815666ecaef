"""The stepper's command language: one line of text in, lines of text out.  Shared by every line-oriented front end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from emu.debug import look, text
from emu.dmm.p2m import Intent
from emu.engine.events import BY_NAME, EVENT_TYPES
from emu.errors import BadInput

if TYPE_CHECKING:
    from emu.debug.stepper import Stepper

_RIGHTS = {"r": Intent.READ, "w": Intent.WRITE, "x": Intent.EXECUTE, "-": Intent(0)}
_CONTROL = (  # emu.machine.control.ACTIONS
    ("pool", "SIZE", "grow or shrink the pool to SIZE, such as 512K"),
    ("attach", "POLICY", "put a policy in force, written as for --policy"),
    ("detach", "POLICY", "take a policy out of force"),
    ("balloon", "SIZE", "ask the guest to give up SIZE, through the policy balloon"),
    ("retire", "N", "take N of the machine frames in use out of service"),
    ("pin", "GFN", "keep a page in machine memory; pins count"),
    ("unpin", "GFN", "take one pin back"),
)
_DUMP = 64  # bytes that ``x`` shows by default
_LISTED = 20  # events that ``l`` shows by default
_LARGEST_DUMP = 1 << 16


@dataclass(frozen=True)
class _Command:
    """One command: its names, what stands behind them, what it does, and the method that does it."""

    names: tuple[str, ...]
    arguments: str
    about: str
    run: Callable[[list[str]], str | None]
    most: int  # arguments


class Commands:
    """Executes commands on a stepper.

    Args:
        stepper: the stepper.
        mark: makes a changed register stand out.
    """

    def __init__(self, stepper: Stepper, mark: text.Mark = text.plain_mark) -> None:
        self._stepper = stepper
        self._mark = mark
        self._changed: frozenset[str] = frozenset()
        self._before = ""
        self._commands = [
            _Command(("e", "event"), "[KIND…]", "run to the next memory event, of one of these kinds", self._event, 99),
            _Command(("i", "instruction"), "[N]", "execute one instruction, or N", self._instruction, 1),
            _Command(("c", "continue"), "", "run until the guest ends (Ctrl-C stops it)", self._continue, 0),
            _Command(("cpu",), "[N]", "look at processor N, step it alone; without N: whichever runs", self._cpu, 1),
            _Command(("r", "registers"), "", "registers; * or colour: changed by the last command", self._registers, 0),
            _Command(("d", "disassemble"), "[GVA]", "instructions around the next, or at GVA", self._disassemble, 1),
            _Command(("w", "walk"), "[GVA]", "page walk of an address, by default the last event's: guest tables, "
                     "shadow tables, P2M", self._walk, 1),
            _Command(("x", "memory"), "GVA [LENGTH]", "memory as the guest would find it", self._memory, 2),
            _Command(("remap",), "GFN", "move a page to another machine frame", self._remap, 1),
            _Command(("protect",), "GFN RIGHTS", "grant these rights on a page: rwx, rw-, r, - …", self._protect, 2),
            _Command(("evict",), "GFN", "take a page's frame away; a policy keeps its contents", self._evict, 1),
            *(_Command((name,), word, about, partial(self._control, name), 1) for name, word, about in _CONTROL),
            _Command(("l", "list"), "[N]", "the last events, and how many there were of each kind", self._list, 1),
            _Command(("h", "help", "?"), "", "this list", self._help, 0),
            _Command(("q", "quit"), "", "leave", self._quit, 0),
        ]  # fmt: skip
        self._by_name = {name: command for command in self._commands for name in command.names}

    def welcome(self) -> str:
        """What to show before the first command."""
        vm = self._stepper.vm
        guest = vm.guest.name if vm.guest else vm.name
        several = f"{len(vm.processors)} processors, " if len(vm.processors) > 1 else ""
        state = f"{guest}, {vm.paging.name} paging, {several}before its first instruction"
        head = f"{state}. h: help, e: next memory event, q: quit"
        return "\n".join([head, *text.code(vm)])

    def execute(self, line: str) -> str | None:
        """Execute a command; an empty line repeats the one before.

        Returns:
            Text to show, without a line end behind it; None when the command was to leave.

        Raises:
            BadInput: there is no such command, or its arguments cannot be used.
        """
        line = line.partition("#")[0].strip() or self._before
        if not line:
            return ""
        self._before = line
        name, *arguments = line.split()
        command = self._by_name.get(name.lower())
        if command is None:
            raise BadInput(name, "no such command; h lists them")
        if len(arguments) > command.most:
            raise BadInput(name, f"takes less: {' '.join((name, command.arguments)).strip()}")
        return command.run(arguments)

    # --- running ---

    def _event(self, arguments: list[str]) -> str:
        for name in arguments:
            if name not in BY_NAME:
                raise BadInput(name, f"no kind of event; there are {', '.join(BY_NAME)}")
        return self._ran(lambda: self._stepper.to_event([BY_NAME[name] for name in arguments] or EVENT_TYPES))

    def _instruction(self, arguments: list[str]) -> str:
        count = self._number("instructions", arguments[0]) if arguments else 1
        if count < 1:
            raise BadInput(arguments[0], "expected a number of instructions above 0")
        return self._ran(lambda: self._stepper.instructions(count))

    def _continue(self, arguments: list[str]) -> str:
        return self._ran(self._stepper.to_end)

    def _ran(self, run: Callable[[], object]) -> str:
        from emu.debug.stepper import Pause

        if self._stepper.ended is not None:
            raise BadInput(self._before.split()[0], f"{self._stepper.ended.sentence}; it does not run any more")
        pause = run()
        assert isinstance(pause, Pause)
        self._changed = pause.changed
        return text.pause(self._stepper.vm, pause, self._mark)

    # --- looking ---

    def _cpu(self, arguments: list[str]) -> str:
        """Without a number: every processor, and whichever runs is looked at again."""
        self._stepper.select(self._number("processor", arguments[0]) if arguments else None)
        return "\n".join(text.processors(self._stepper.vm))

    def _registers(self, arguments: list[str]) -> str:
        return "\n".join(text.registers(self._stepper.vm, self._changed, self._mark, full=True))

    def _disassemble(self, arguments: list[str]) -> str:
        return "\n".join(text.code(self._stepper.vm, self._gva(arguments[0]) if arguments else None))

    def _walk(self, arguments: list[str]) -> str:
        vm, last = self._stepper.vm, self._stepper.last
        if arguments:
            return "\n".join(text.walk(vm, self._gva(arguments[0])))
        if last is None:
            raise BadInput("w", "expected an address: no event has happened yet")
        gva = look.event_gva(vm, last)
        lines = text.about(vm, last) if gva is None else text.walk(vm, gva, last.cpu)
        if not lines:
            raise BadInput("w", "expected an address: the last event is about none")
        return "\n".join(lines)

    def _memory(self, arguments: list[str]) -> str:
        if not arguments:
            raise BadInput("x", "expected an address, or a register like rsp")
        size = self._number("length", arguments[1]) if len(arguments) > 1 else _DUMP
        if not 0 < size <= _LARGEST_DUMP:
            raise BadInput(arguments[1], f"expected a length in bytes from 1 to {_LARGEST_DUMP}")
        return "\n".join(text.memory(self._stepper.vm, self._gva(arguments[0]), size))

    def _list(self, arguments: list[str]) -> str:
        count = self._number("events", arguments[0]) if arguments else _LISTED
        events = list(self._stepper.history)[-count:] if count > 0 else []
        return "\n".join(text.history(self._stepper.vm, events))

    def _help(self, arguments: list[str]) -> str:
        left = [f"{', '.join(command.names)} {command.arguments}".rstrip() for command in self._commands]
        width = max(map(len, left))
        lines = [f"{usage:<{width}}  {command.about}" for usage, command in zip(left, self._commands, strict=True)]
        return "\n".join([
            *lines,
            "An empty line: the last command again. Numbers: decimal, or hexadecimal with 0x. A GVA can be a register.",
            "An access beyond the rights that `protect` left is a DMM fault, where the policies `demand` and `static`",
            "grant what it needs again.",
            f"Kinds of events: {', '.join(BY_NAME)}.",
        ])  # fmt: skip

    def _quit(self, arguments: list[str]) -> None:
        return None

    # --- changing ---

    def _remap(self, arguments: list[str]) -> str:
        gfn = self._gfn("remap", arguments)
        return "\n".join(self._happened(lambda: self._stepper.remap(gfn)))

    def _protect(self, arguments: list[str]) -> str:
        gfn = self._gfn("protect", arguments)
        letters = arguments[1].lower() if len(arguments) > 1 else ""
        if not letters or not set(letters) <= set(_RIGHTS):
            raise BadInput("protect", "expected a gfn and rights: some of r, w and x, or - for none")
        rights = Intent(0)
        for letter in letters:
            rights |= _RIGHTS[letter]
        happened = self._happened(lambda: self._stepper.protect(gfn, rights))
        return "\n".join([*happened, *text.about_gfn(self._stepper.vm, gfn)])

    def _control(self, name: str, arguments: list[str]) -> str:
        if not arguments:
            raise BadInput(name, f"expected {self._by_name[name].arguments}")
        value = self._number(name, arguments[0]) if name in ("retire", "pin", "unpin") else arguments[0]
        happened = self._happened(lambda: self._stepper.control(name, value))
        vm = self._stepper.vm
        policies = ", ".join(policy.name for policy in vm.dmm.policies)
        state = f"{vm.pool.used} of {vm.pool.size} frames used; balloon target {vm.dmm.balloon.target}; {policies}"
        return "\n".join([*happened, state])

    def _evict(self, arguments: list[str]) -> str:
        gfn = self._gfn("evict", arguments)
        return "\n".join(self._happened(lambda: self._stepper.evict(gfn)))

    def _happened(self, change: Callable[[], object]) -> list[str]:
        """Make a change by hand; the events that it made."""
        history = self._stepper.history
        before = history[-1].sequence if history else -1
        change()
        return [text.event_line(self._stepper.vm, event) for event in history if event.sequence > before]

    # --- arguments ---

    def _gfn(self, command: str, arguments: list[str]) -> int:
        if not arguments:
            raise BadInput(command, "expected a guest frame number")
        return self._number("gfn", arguments[0])

    def _gva(self, word: str) -> int:
        named = look.address_named(self._stepper.vm, word)
        return self._number("address", word) if named is None else named

    def _number(self, what: str, word: str) -> int:
        try:
            value = int(word, 0)
        except ValueError:
            value = -1
        if not 0 <= value < 1 << 64:
            raise BadInput(word, f"expected a number ({what}): decimal, or hexadecimal with 0x")
        return value
