"""Run a guest until it ends.  What it prints goes to standard output, everything else to standard error.

exit status:
  0            the console printed the --until text
  (v << 1) | 1 the guest wrote v to port 0xF4, as with QEMU's isa-debug-exit: its success, v = 0, is status 1
  2            bad usage, or an input that cannot be used
  124          a limit was reached: --max-time, --timeout, the frames of the pool; or the guest halted for ever
  125          emu itself failed
  130, 143     stopped by Ctrl-C, by SIGTERM
  134          the guest crashed (triple fault)
"""

from __future__ import annotations

import argparse
import sys
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, BinaryIO

from emu.commands.arguments import NS_PER_SECOND, add_guest_arguments, boot_from, seconds
from emu.commands.files import OutputFile, open_output
from emu.commands.host import explain_slow_start, stop_on_signals
from emu.errors import BadInput

if TYPE_CHECKING:
    from emu.session import Outcome
    from emu.vm import VirtualMachine

USAGE = "GUEST [options]"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_guest_arguments(parser)
    parser.add_argument("--until", metavar="TEXT", help="end with status 0 as soon as the console prints this")
    parser.add_argument("--max-time", type=seconds, metavar="S", help="limit in virtual seconds")
    parser.add_argument("--timeout", type=seconds, metavar="S", help="limit in seconds of the wall clock")
    parser.add_argument(
        "--events", metavar="FILE",
        help="write the memory events as JSON lines; with - to standard output, and the console to standard error",
    )  # fmt: skip
    parser.add_argument("--summary", metavar="FILE", help="write a summary as one JSON object; - is standard output")


def main(options: argparse.Namespace) -> int:
    if options.until == "":
        raise BadInput("--until", "expected some text")
    begin = time.perf_counter()
    with explain_slow_start():
        vm = boot_from(options)
    inputs = [path for path in (options.guest, options.input) if path is not None]
    with ExitStack() as files:
        events_file = open_output(files, "--events", options.events, inputs)
        summary_file = open_output(files, "--summary", options.summary, inputs)
        console = sys.stderr.buffer if options.events == "-" else sys.stdout.buffer
        vm.platform.listen(_Console(console))
        status, outcome = _run(vm, options, events_file)
        wall = time.perf_counter() - begin
        if outcome.ending.value == "crash":
            from emu.crash import report

            print(report(vm), file=sys.stderr)
        print(f"emu: {_closing_line(vm, outcome, status, wall)}", file=sys.stderr)
        if summary_file is not None:
            from emu.summary import format_summary, summarise

            summary_file.write(format_summary(summarise(vm, outcome, wall) | {"status": status}).encode())
    return status


def _run(vm: VirtualMachine, options: argparse.Namespace, events_file: OutputFile | None) -> tuple[int, Outcome]:
    from emu.session import Ending, run_vm

    writer = None
    if events_file is not None:
        from emu.trace import EventWriter

        writer = EventWriter(events_file.write)
        vm.events.listen(writer)
    max_time = None if options.max_time is None else round(options.max_time * NS_PER_SECOND)
    with stop_on_signals(vm) as signals:
        try:
            outcome = run_vm(vm, until=options.until, max_time=max_time, timeout=options.timeout)
        finally:
            if writer is not None:
                vm.events.unlisten(writer)
    if outcome.ending == Ending.STOPPED and signals:
        return 128 + signals[0], outcome
    return outcome.status, outcome


def _closing_line(vm: VirtualMachine, outcome: Outcome, status: int, wall: float) -> str:
    from emu.summary import format_time

    name = vm.guest.name if vm.guest else vm.name
    frames = f"{vm.pool.used} of {vm.pool.size} frames used"
    return f"{name}: {outcome.sentence}; status {status}, {format_time(vm.now)} virtual, {wall:.2f} s wall, {frames}"


class _Console:
    """Passes on what the guest prints, at once."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def __call__(self, data: bytes) -> None:
        self._file.write(data)
        self._file.flush()
