"""The command ``emu``: finds the sub-command, and turns what it raises into an exit status.

A sub-command is one module in :mod:`emu.commands` with a docstring, which is its help text, two functions,
``add_arguments(parser)`` and ``main(options) -> int``, and a USAGE line when it takes more than options.  Only the
module of the one that was asked for is imported.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

from emu.errors import BadInput, EngineMismatch

COMMANDS = {  # module in emu.commands: what it does, for `emu --help`
    "run": "run a guest",
    "step": "step through a guest, from memory event to memory event",
    "guests": "list the guests that come with emu",
    "bench": "measure emu against its peers",
}

STATUS_BAD_INPUT = 2
STATUS_FAULT = 125
STATUS_BROKEN_PIPE = 141  # as a process killed by SIGPIPE, seen from a shell


class Parser(argparse.ArgumentParser):
    """A parser that raises BadInput instead of printing the usage and leaving."""

    def error(self, message: str) -> NoReturn:
        argument, colon, reason = message.partition(": ")
        if colon and argument.startswith("argument "):
            raise BadInput(argument.removeprefix("argument "), reason)
        raise BadInput(self.prog.removeprefix("emu "), f"{message} (see {self.prog} --help)")


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``emu`` with these arguments, by default the process's own; returns the exit status."""
    argv = sys.argv[1:] if argv is None else list(argv)
    try:
        return _dispatch(argv)
    except BadInput as error:
        print(f"emu: {error}", file=sys.stderr)
        return STATUS_BAD_INPUT
    except BrokenPipeError:
        # whoever read the output has gone; nothing more can be said there, not even at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return STATUS_BROKEN_PIPE
    except KeyboardInterrupt:
        return 130
    except EngineMismatch as error:
        print(f"emu: {error}", file=sys.stderr)
        return STATUS_FAULT
    except Exception:
        traceback.print_exc()
        print("emu: this is a fault of emu, not of the guest; please report it with the lines above", file=sys.stderr)
        return STATUS_FAULT


def _dispatch(argv: list[str]) -> int:
    name = argv[0] if argv else "--help"
    if name in ("-h", "--help", "help"):
        print(_help())
        return 0 if argv else STATUS_BAD_INPUT
    if name in ("-V", "--version"):
        print(f"emu {_version()}")
        return 0
    if name not in COMMANDS:
        raise BadInput(name, f"no such command; there are: {', '.join(COMMANDS)} (see emu --help)")
    module = import_module(f"emu.commands.{name}")
    about, _, details = (module.__doc__ or "").partition("\n\n")
    command = Parser(
        prog=f"emu {name}",
        usage=f"emu {name} {getattr(module, 'USAGE', '[options]')}",
        description=about,
        epilog=details,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    module.add_arguments(command)
    status: int = module.main(command.parse_args(argv[1:]))
    return status


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("emu")
    except PackageNotFoundError:
        return "(not installed)"


def _help() -> str:
    commands = "\n".join(f"  emu {name:<8} {about}" for name, about in COMMANDS.items())
    return f"""\
emu: a full-system x86 emulator whose memory is virtualised by the Dynamic Memory Mapping model.

{commands}

`emu COMMAND --help` tells more about one of them, `emu --version` which emu this is.
First steps: `emu run hello`, `emu run memory --mmu nested --summary -`."""


if __name__ == "__main__":
    sys.exit(main())
