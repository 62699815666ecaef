"""Watching what a guest prints."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from emu.machine.vm import VirtualMachine


class ConsoleWatch:
    """Calls a function once, as soon as the guest has printed a text.

    Args:
        vm: whose console.
        text: the text, not empty.
        found: is called without arguments, in the middle of the guest's output.
        begin: position among all that was printed from which on it counts; by default what is printed from now on.

    Attributes:
        end: position behind the text; None until it is printed.
    """

    def __init__(self, vm: VirtualMachine, text: bytes, found: Callable[[], object], begin: int | None = None) -> None:
        self.end: int | None = None
        self._vm = vm
        self._text = text
        self._found = found
        self._begin = vm.platform.output.total if begin is None else begin
        vm.platform.listen(self, urgent=text[-1:])

    def __call__(self, data: bytes) -> None:
        output = self._vm.platform.output
        at = output.find(self._text, max(self._begin, output.total - len(data) - len(self._text) + 1))
        if self.end is None and at >= 0:
            self.end = at + len(self._text)
            self._found()

    def close(self) -> None:
        """Stop watching."""
        self._vm.platform.unlisten(self)
