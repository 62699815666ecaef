"""Typing at a guest when it asks for something: at its serial port, and at its keyboard.

::

    vm = boot_vm("vmlinuz", initrd="initrd.gz", append="console=ttyS0")
    Typist(vm, [parse_typing(r"uname\n@# "), parse_keys_typing("<ctrl-alt-del>@# ")])
    run_vm(vm)
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from emu.devices.keys import Chord, parse_keys
from emu.devices.vga import ScreenText
from emu.errors import BadInput

if TYPE_CHECKING:
    from emu.machine.vm import VirtualMachine

_ESCAPE = re.compile(r"\\(x[0-9a-fA-F]{2}|.|$)", re.S)
_ESCAPES = {"n": b"\n", "r": b"\r", "t": b"\t", "e": b"\x1b", "0": b"\0", "\\": b"\\"}


@dataclass(frozen=True)
class Typing:
    """Something to type.

    Attributes:
        text: the bytes that are typed at the serial port.
        prompt: when the guest shows this.
        keys: what is pressed at the keyboard.
    """

    text: bytes
    prompt: bytes
    keys: tuple[Chord, ...] = ()

    @property
    def option(self) -> str:
        """What says so on the command line."""
        return "--keys" if self.keys else "--type"


def parse_typing(argument: str) -> Typing:
    """A typing from text like ``root\\n@login: ``: what is typed, and behind the first @ what is waited for.

    In both, ``\\n``, ``\\r``, ``\\t``, ``\\e`` (escape), ``\\0``, ``\\\\`` and ``\\xNN`` stand for single bytes.

    Raises:
        BadInput: there is no @, nothing stands on a side of it, or an escape is none of these.
    """
    return Typing(*_parts("--type", argument))


def parse_keys_typing(argument: str) -> Typing:
    """The same for keys, with names in angle brackets (:mod:`emu.devices.keys`): ``dir<enter>@C:\\\\>``.

    Raises:
        BadInput: as :func:`parse_typing`, or there is no such key.
    """
    text, prompt = _parts("--keys", argument)
    try:
        keys = parse_keys(text.decode("utf-8", "replace"))
    except BadInput as error:
        raise BadInput("--keys", str(error)) from None
    return Typing(b"", prompt, tuple(keys))


def _parts(option: str, argument: str) -> tuple[bytes, bytes]:
    text, at, prompt = argument.partition("@")
    if not at or not text or not prompt:
        raise BadInput(option, f"expected TEXT@PROMPT, what to type and what to wait for, instead of {argument!r}")
    return _unescaped(option, text), _unescaped(option, prompt)


def _unescaped(option: str, text: str) -> bytes:
    data = b""
    at = 0
    for found in _ESCAPE.finditer(text):
        data += text[at : found.start()].encode(errors="surrogateescape")
        at = found.end()
        escape = found[1]
        if len(escape) == 3:
            data += bytes.fromhex(escape[1:])
        elif escape in _ESCAPES:
            data += _ESCAPES[escape]
        else:
            known = ", ".join(f"\\{name}" for name in _ESCAPES)
            raise BadInput(option, f"no such escape: \\{escape} (there are {known} and \\xNN)")
    return data + text[at:].encode(errors="surrogateescape")


class Typist:
    """Types at a VM when it shows prompts: when its console prints them, or when they come to its text screen.

    The typings come in their order: each waits for what is printed behind the prompt of the one before it.  The first
    byte is at the serial port a character time after the prompt, at the speed that the guest has set, and the others
    follow at that speed: many kernels print, look for input once, and halt, and would sleep over what is there at once.

    On the screen, which is looked at every 10 ms of virtual time, a prompt counts that has come since the one before it
    was found: there are more of it than there were, or the cursor stands behind it again.

    Args:
        vm: the VM; what it has printed so far does not count.
        typings: what to type when.
    """

    def __init__(self, vm: VirtualMachine, typings: Sequence[Typing]) -> None:
        self._vm = vm
        self._left = list(typings)
        self._at = vm.platform.output.total  # up to here prompts have been dealt with
        self._there: int | None = None  # how many prompts on the screen do not count; None: those at the next look
        self._away = False  # the cursor has not stood behind the prompt since
        if self._left:
            self._compare(vm.platform.vga.text())
            vm.platform.listen(self, urgent=bytes(typing.prompt[-1] for typing in typings))
            vm.platform.monitor.watchers.append(self._look)

    @property
    def left(self) -> tuple[Typing, ...]:
        """What has not been typed yet."""
        return tuple(self._left)

    def __call__(self, data: bytes) -> None:
        output = self._vm.platform.output
        while self._left:
            prompt = self._left[0].prompt
            found = output.find(prompt, self._at)
            if found < 0:
                self._at = max(self._at, output.total - len(prompt) + 1)
                return
            self._at = found + len(prompt)
            self._there = None  # the same prompt may be on the way to the screen
            self._type()

    def close(self) -> None:
        """Type nothing more."""
        self._left.clear()
        self._stop()

    def _type(self) -> None:
        typing = self._left.pop(0)
        if typing.text:
            self._vm.platform.uart.receive(typing.text)
        for chord in typing.keys:
            self._vm.platform.keyboard.press(*chord)
        if not self._left:
            self._stop()

    def _stop(self) -> None:
        platform = self._vm.platform
        if self._look in platform.monitor.watchers:
            platform.monitor.watchers.remove(self._look)
            platform.unlisten(self)

    def _look(self, seen: ScreenText) -> None:
        if self._there is None:
            self._compare(seen)
            return
        prompt = self._prompt()
        count = _count(seen, prompt)
        behind = seen.before_cursor.endswith(prompt)
        if count > self._there or (behind and self._away):
            self._at = self._vm.platform.output.total
            self._type()
            if self._left:
                self._compare(seen)
            return
        self._there = count
        self._away = self._away or not behind

    def _compare(self, seen: ScreenText) -> None:
        """What is on the screen now does not count."""
        prompt = self._prompt()
        self._there, self._away = _count(seen, prompt), not seen.before_cursor.endswith(prompt)

    def _prompt(self) -> str:
        return self._left[0].prompt.decode("utf-8", "replace")


def _count(seen: ScreenText, prompt: str) -> int:
    return sum(row.count(prompt) for row in seen.rows)
