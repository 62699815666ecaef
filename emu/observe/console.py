"""Watching what a guest prints, and typing at its serial port when it does.

::

    vm = boot_vm("vmlinuz", initrd="initrd.gz", append="console=ttyS0")
    Typist(vm, [Typing(b"uname\\n", b"# "), Typing(b"poweroff -f\\n", b"# ")])
    run_vm(vm)
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from emu.errors import BadInput

if TYPE_CHECKING:
    from emu.machine.vm import VirtualMachine

_ESCAPE = re.compile(r"\\(x[0-9a-fA-F]{2}|.|$)", re.S)
_ESCAPES = {"n": b"\n", "r": b"\r", "t": b"\t", "e": b"\x1b", "0": b"\0", "\\": b"\\"}


class ConsoleWatch:
    """Calls a function once, as soon as the guest has printed a text.

    Args:
        vm: whose console.
        text: the text, not empty.
        found: is called without arguments, in the middle of the guest's output.
        begin: position in ``vm.platform.console`` from which on it counts; by default what is printed from now on.

    Attributes:
        end: position behind the text; None until it is printed.
    """

    def __init__(self, vm: VirtualMachine, text: bytes, found: Callable[[], object], begin: int | None = None) -> None:
        self.end: int | None = None
        self._vm = vm
        self._text = text
        self._found = found
        self._begin = len(vm.platform.console) if begin is None else begin
        vm.platform.listen(self)

    def __call__(self, data: bytes) -> None:
        console = self._vm.platform.console
        at = console.find(self._text, max(self._begin, len(console) - len(data) - len(self._text) + 1))
        if self.end is None and at >= 0:
            self.end = at + len(self._text)
            self._found()

    def close(self) -> None:
        """Stop watching."""
        self._vm.platform.unlisten(self)


@dataclass(frozen=True)
class Typing:
    """Something to type.

    Attributes:
        text: the bytes that are typed.
        prompt: when the console prints this.
    """

    text: bytes
    prompt: bytes


def parse_typing(argument: str) -> Typing:
    """A typing from text like ``root\\n@login: ``: what is typed, and behind the first @ what is waited for.

    In both, ``\\n``, ``\\r``, ``\\t``, ``\\e`` (escape), ``\\0``, ``\\\\`` and ``\\xNN`` stand for single bytes.

    Raises:
        BadInput: there is no @, nothing stands on a side of it, or an escape is none of these.
    """
    text, at, prompt = argument.partition("@")
    if not at or not text or not prompt:
        raise BadInput("--type", f"expected TEXT@PROMPT, what to type and what to wait for, instead of {argument!r}")
    return Typing(_unescaped(text), _unescaped(prompt))


def _unescaped(text: str) -> bytes:
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
            raise BadInput("--type", f"no such escape: \\{escape} (there are {known} and \\xNN)")
    return data + text[at:].encode(errors="surrogateescape")


class Typist:
    """Types at a VM's serial port when its console prints prompts.

    The typings come in their order: each waits for what is printed behind the prompt of the one before it.  The first
    byte is there a character time after the prompt, at the speed that the guest has set, and the others follow at that
    speed: many kernels print, look for input once, and halt, and would sleep over what is there at once.

    Args:
        vm: the VM; what it has printed so far does not count.
        typings: what to type when.
    """

    def __init__(self, vm: VirtualMachine, typings: Sequence[Typing]) -> None:
        self._vm = vm
        self._left = list(typings)
        self._at = len(vm.platform.console)  # up to here prompts have been dealt with
        vm.platform.listen(self)

    @property
    def left(self) -> tuple[Typing, ...]:
        """What has not been typed yet."""
        return tuple(self._left)

    def __call__(self, data: bytes) -> None:
        console = self._vm.platform.console
        while self._left:
            prompt = self._left[0].prompt
            found = console.find(prompt, self._at)
            if found < 0:
                self._at = max(self._at, len(console) - len(prompt) + 1)
                return
            self._at = found + len(prompt)
            self._vm.platform.uart.receive(self._left.pop(0).text)

    def close(self) -> None:
        """Type nothing more."""
        self._vm.platform.unlisten(self)
