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
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, NoReturn, TextIO, TypeVar

from emu.commands.signals import Interrupted, as_interruption, describe, taken_over
from emu.errors import BadInput, CompilerFailed, EngineMismatch
from emu.observe.outcome import STATUS_BAD_INPUT, STATUS_FAULT

if TYPE_CHECKING:
    from _typeshed import SupportsWrite

COMMANDS = {  # module in emu.commands: what it does, for ``emu --help``
    "run": "run a guest",
    "fleet": "run many guests on one machine memory",
    "gdb": "run a guest under gdb",
    "step": "step through a guest, from memory event to memory event",
    "guests": "list the guests that come with emu, and where to get others",
    "image": "build a minimal initramfs for Linux from a BusyBox binary",
    "bench": "measure emu against its peers",
}

_T = TypeVar("_T")
STATUS_BROKEN_PIPE = 141  # as a process killed by SIGPIPE, seen from a shell


class Parser(argparse.ArgumentParser):
    """A parser that raises BadInput instead of printing the usage and leaving."""

    def error(self, message: str) -> NoReturn:
        argument, colon, reason = message.partition(": ")
        if colon and argument.startswith("argument "):
            raise BadInput(argument.removeprefix("argument "), reason)
        raise BadInput(self.prog.removeprefix("emu "), f"{message} (see {self.prog} --help)")

    def print_help(self, file: SupportsWrite[str] | None = None) -> None:
        super().print_help(file)
        sys.stdout.flush()  # where the process's end would hide what goes wrong


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``emu`` with these arguments, by default the process's own; returns the exit status."""
    with taken_over(for_ever=argv is None):
        return _main(sys.argv[1:] if argv is None else list(argv))


def _main(argv: list[str]) -> int:
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # NumPy would start threads that nobody needs (0.1 s)
    _open_closed_streams()
    output = sys.stdout
    sys.stdout = _Output(output)
    try:
        with as_interruption():
            return _dispatch(argv)
    except BadInput as error:
        print(f"emu: {error}", file=sys.stderr)
        return STATUS_BAD_INPUT
    except BrokenPipeError:  # whoever read the output has gone
        _discard(output)
        return STATUS_BROKEN_PIPE
    except (KeyboardInterrupt, Interrupted) as error:
        status, why = describe(error)
        print(f"emu: {why}", file=sys.stderr)
        return status
    except (EngineMismatch, CompilerFailed, MemoryError, OSError, ImportError) as error:
        print(f"emu: {_lacking(error)}", file=sys.stderr)
        return STATUS_FAULT
    except Exception:
        traceback.print_exc()
        print("emu: this is a fault of emu, not of the guest; please report it with the lines above", file=sys.stderr)
        return STATUS_FAULT
    finally:
        sys.stdout = output
        try:
            output.flush()
        except OSError:  # has been told, or is a broken pipe
            _discard(output)


def _lacking(error: Exception) -> str:
    """What a host does not give, in a line."""
    if isinstance(error, MemoryError):
        return "this host gives the process no more memory (ulimit -v, or a container's limit)"
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename is not None else ""
        return f"{where}this host refuses: {error.strerror or error}"
    if isinstance(error, ImportError):
        reason = " ".join(str(error).split())
        return f"a part of emu cannot be loaded: {reason} (is it installed, and is there memory for it?)"
    return str(error)


class _Output:
    """Standard output; what cannot be written there is BadInput."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        return self._checked(lambda: self._stream.write(text))

    def flush(self) -> None:
        self._checked(self._stream.flush)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @staticmethod
    def _checked(action: Callable[[], _T]) -> _T:
        try:
            return action()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise BadInput("standard output", f"cannot be written: {error.strerror or error}") from None


def _open_closed_streams() -> None:
    """Standard streams that whoever started this process has closed."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))


def _discard(stream: TextIO) -> None:
    """Let what is left in a stream go nowhere: Python would try again at exit, and complain."""
    _, into = os.pipe()  # nobody reads it, and no file is opened: --sandbox would refuse
    os.dup2(into, stream.fileno())
    os.close(into)


def _dispatch(argv: list[str]) -> int:
    name = argv[0] if argv else "--help"
    if name in ("-h", "--help", "help"):
        print(_help(), flush=True)
        return 0 if argv else STATUS_BAD_INPUT
    if name in ("-V", "--version"):
        print(f"emu {_version()}", flush=True)
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
    sys.stdout.flush()
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
