"""Step through a guest: from memory event to memory event, or instruction by instruction.

Commands come line by line from a terminal or a pipe; `help` lists them.  What the guest prints stands behind a bar.

exit status: as `emu run` when the guest has ended, else 0; 2 when a command from a pipe was wrong
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from signal import SIGINT
from typing import TYPE_CHECKING

from emu.commands.arguments import add_guest_arguments, boot_from
from emu.commands.host import explain_slow_start, report_disk_failure
from emu.commands.signals import Interrupted, go_on, stop_on_signals
from emu.errors import BadInput

if TYPE_CHECKING:
    from emu.debug.stepper import Stepper

USAGE = "GUEST [options]"
PROMPT = "(emu) "


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_guest_arguments(parser)


def main(options: argparse.Namespace) -> int:
    with explain_slow_start():
        vm = boot_from(options)
        from emu.debug import text
        from emu.debug.commands import Commands
        from emu.debug.stepper import Stepper

    terminal = sys.stdin.isatty() and sys.stdout.isatty()
    vm.platform.listen(_Console(), urgent=b"")
    vm.on_disk_failure(report_disk_failure)
    stepper = Stepper(vm)
    commands = Commands(stepper, text.bold_mark if terminal else text.plain_mark)
    mistakes = 0
    print(commands.welcome())
    for line in _from_terminal() if terminal else _from_pipe():
        try:
            with stop_on_signals(vm):
                answer = commands.execute(line)
        except BadInput as error:
            print(f"{error}")
            mistakes += 1
            continue
        if answer is None:
            break
        if answer:
            print(answer, flush=True)
    if mistakes and not terminal:
        return 2
    return _status(stepper)


def _status(stepper: Stepper) -> int:
    return stepper.ended.status if stepper.ended else 0


def _from_terminal() -> Iterator[str]:
    import readline  # gives input() a history and line editing

    readline.set_history_length(1000)
    while True:
        try:
            yield input(PROMPT)
        except EOFError:
            print()
            return
        except Interrupted as signal:
            if signal.number != SIGINT:
                raise
            go_on()
            print()


def _from_pipe() -> Iterator[str]:
    """The lines, each shown behind a prompt, so that the output reads like a session."""
    for line in sys.stdin:
        print(f"{PROMPT}{line.rstrip()}")
        yield line


class _Console:
    """Shows what the guest prints, with a bar before each line."""

    def __init__(self) -> None:
        self._line = b""

    def __call__(self, data: bytes) -> None:
        *lines, self._line = (self._line + data).split(b"\n")
        for line in lines:
            print(f"| {line.decode('utf-8', 'replace').rstrip()}", flush=True)
