"""Run a guest until it ends.  What it prints goes to standard output, everything else to standard error.

exit status:
  0            the guest switched the machine off, the console printed the --until text, or Ctrl-] left --interactive
  (v << 1) | 1 the guest wrote v to port 0xF4, as with QEMU's isa-debug-exit: its success, v = 0, is status 1
  2            bad usage, or an input that cannot be used
  122          the guest reset the machine, with --no-reboot; without it, it starts again
  124          a limit was reached: --max-time, --timeout, the frames of the pool, the store of evicted pages; or the
               guest halted for ever
  125          evicted pages cannot be stored or are damaged; or emu itself failed
  130, 143     stopped by Ctrl-C, by SIGTERM
  134          the guest crashed (triple fault)
"""

from __future__ import annotations

import argparse
import sys
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

from emu.commands.arguments import add_guest_arguments, boot_from, files_in_use, seconds, text
from emu.commands.files import OutputFile, check_policy_files, open_output
from emu.commands.host import explain_slow_start, report_disk_failure
from emu.commands.screen import Screen, progress
from emu.commands.signals import stop_on_signals
from emu.devices.net import parse_net
from emu.errors import BadInput
from emu.observe.outcome import Ending, Outcome
from emu.observe.typist import Typist, parse_keys_typing, parse_typing
from emu.units import NS_PER_SECOND

if TYPE_CHECKING:
    from emu.machine.vm import VirtualMachine

USAGE = "GUEST [options]"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_guest_arguments(parser)
    parser.add_argument(
        "--type",
        dest="typings",
        action="append",
        type=parse_typing,
        default=[],
        metavar="TEXT@PROMPT",
        help="type TEXT at the serial port when the console or the text screen shows PROMPT, repeatable, one after the "
        r"other; \n, \r, \t, \e, \\ and \xNN stand for bytes. As in --type 'root\n@login: '",
    )
    parser.add_argument(
        "--keys",
        dest="typings",
        action="append",
        type=parse_keys_typing,
        metavar="TEXT@PROMPT",
        help="the same at the keyboard, in one order with --type; <enter>, <up>, <f1>, <ctrl-c>, … are keys",
    )
    parser.add_argument(
        "--interactive", action="store_true", help="the terminal is the guest's serial port; Ctrl-] leaves"
    )
    parser.add_argument("--until", type=text, metavar="TEXT", help="success as soon as the console prints this")
    parser.add_argument("--max-time", type=seconds, metavar="S", help="limit in virtual seconds")
    parser.add_argument("--timeout", type=seconds, metavar="S", help="limit in seconds of the wall clock")
    parser.add_argument(
        "--events",
        metavar="FILE",
        help="write the memory events as JSON lines; with - to standard output, and the console to standard error",
    )
    parser.add_argument(
        "--screen", metavar="FILE", help="the screen at the end of the run: a PNG, or text with - for standard output"
    )
    parser.add_argument("--serial2", metavar="FILE", help="a second serial port; write to FILE what is printed there")
    parser.add_argument(
        "--gdb", metavar="[HOST:]PORT", help="wait for gdb there, or at unix:PATH, and run as it says"
    )
    parser.add_argument("--gdb-attach", metavar="[HOST:]PORT", help="the same without waiting")
    parser.add_argument(
        "--gdb-arch",
        choices=("i8086", "i386", "i386:x86-64"),
        help="what gdb is told that the processor is (default: what it runs when gdb comes)",
    )
    parser.add_argument("--summary", metavar="FILE", help="write a summary as one JSON object; - is standard output")
    parser.add_argument(
        "--sandbox",
        action="store_true",
        help="once everything is open, give up the right to open files, start programs and use the network",
    )


def main(options: argparse.Namespace) -> int:
    if options.until == "":
        raise BadInput("--until", "expected some text")
    if options.interactive and not sys.stdin.isatty():
        raise BadInput("--interactive", "standard input is no terminal; --input or --type feed a guest without one")
    gdb = options.gdb or options.gdb_attach
    if gdb and (options.interactive or options.until or options.max_time is not None or options.timeout is not None):
        limits = "--interactive, --until, --max-time or --timeout"
        raise BadInput("--gdb", f"gdb says how far the guest runs, so it cannot be used with {limits}")
    if options.serial2 is not None and "serial2" not in options.devices:
        options.devices = [*options.devices, "serial2"]
    if options.sandbox:
        from emu.commands.sandbox import find_seccomp

        find_seccomp()
        if options.net is not None and parse_net(options.net).kind == "user":
            raise BadInput("--sandbox", "there is no user network in it; --net none, or --net replay=FILE, is possible")
    begin = time.perf_counter()
    with explain_slow_start():
        vm = boot_from(options)
    with ExitStack() as files:
        files.callback(vm.close)  # policies settle what they have in files
        inputs = files_in_use(options)
        inputs += check_policy_files(vm, inputs)
        events_file = open_output(files, "--events", options.events, inputs)
        summary_file = open_output(files, "--summary", options.summary, inputs, [events_file], whole=True)
        screen_file = open_output(files, "--screen", options.screen, inputs, [events_file, summary_file], whole=True)
        outputs = [events_file, summary_file, screen_file]
        serial2_file = open_output(files, "--serial2", options.serial2, inputs, outputs)
        if serial2_file is not None:
            vm.platform.serial2_sinks.append(serial2_file.write)
        if options.events == "-":
            screen = Screen(sys.stderr.buffer, "standard error", lambda: vm.is_stopping)
        else:
            screen = Screen(sys.stdout.buffer, given_up=lambda: vm.is_stopping)
        vm.on_disk_failure(report_disk_failure)
        typist = Typist(vm, options.typings)
        vm.platform.listen(screen, urgent=b"")
        if options.sandbox:
            from emu.commands.sandbox import enter_sandbox

            enter_sandbox(vm, [file for file in (summary_file, screen_file) if file is not None])
        status, outcome = _run(vm, options, screen, events_file)
        wall = time.perf_counter() - begin
        if outcome.ending.value == "crash":
            from emu.observe.crash import report

            print(report(vm), file=sys.stderr)
        if typist.left:
            waiting = typist.left[0]
            print(f"emu: {waiting.option}: the console never printed {_text(waiting.prompt)}", file=sys.stderr)
        for policy in vm.dmm.policies:
            for remark in policy.remarks():
                print(f"emu: {remark}", file=sys.stderr)
        for remark in vm.platform.remarks():
            print(f"emu: {remark}", file=sys.stderr)
        print(f"emu: {_closing_line(vm, outcome, status, wall)}", file=sys.stderr)
        if screen_file is not None:
            screen_file.write(_picture(vm, options.screen))
        if summary_file is not None:
            from emu.observe.summary import format_summary, summarise

            summary_file.write(format_summary(summarise(vm, outcome, wall) | {"status": status}).encode())
    return status


def _run(
    vm: VirtualMachine, options: argparse.Namespace, screen: Screen, events_file: OutputFile | None
) -> tuple[int, Outcome]:
    from emu.session import run_vm

    writer = None
    if events_file is not None:
        from emu.observe.trace import EventWriter

        writer = EventWriter(events_file.write)
        vm.events.listen(writer)
    max_time = None if options.max_time is None else round(options.max_time * NS_PER_SECOND)
    with stop_on_signals(vm, last=True) as signals:
        try:
            if options.gdb or options.gdb_attach:
                outcome = _run_under_gdb(vm, options, signals)
            elif options.interactive:
                outcome = _run_interactively(vm, options, screen, max_time, signals)
            else:
                with progress(vm, screen):
                    outcome = run_vm(vm, until=options.until, max_time=max_time, timeout=options.timeout)
        finally:
            screen.leave()
            if writer is not None:
                vm.events.unlisten(writer)
    if outcome.ending == Ending.STOPPED and signals:
        return 128 + signals[0], outcome
    return outcome.status, outcome


def _picture(vm: VirtualMachine, name: str) -> bytes:
    """The screen as a PNG; for standard output as text, with colours where that is a terminal."""
    from emu.observe.screen import as_ansi, as_png, as_text

    graphics = vm.platform.vbe.picture()
    if graphics is not None:
        from emu.observe.picture import picture_png

        mode = graphics.mode
        told = f"graphics, {mode.width}x{mode.height} with {mode.depth} bits a pixel: --screen FILE draws it\n"
        return picture_png(graphics) if name != "-" else told.encode()
    shown = vm.platform.vga.screen()
    if name != "-":
        return as_png(shown)
    text = as_ansi(shown) if sys.stdout.isatty() else as_text(shown)
    return f"{text.rstrip()}\n".encode()


def _run_interactively(
    vm: VirtualMachine, options: argparse.Namespace, screen: Screen, max_time: int | None, signals: list[int]
) -> Outcome:
    from emu.commands.interactive import RawTerminal, run_interactively

    print("emu: this terminal is the guest's serial port now; Ctrl-] leaves", file=sys.stderr)
    with RawTerminal(sys.stdin.fileno()) as terminal:
        return run_interactively(
            vm, terminal, until=options.until, max_time=max_time, timeout=options.timeout, stopped=lambda: signals
        )


def _run_under_gdb(vm: VirtualMachine, options: argparse.Namespace, signals: list[int]) -> Outcome:
    from emu.commands.gdb_listener import announce, listen, run_under_gdb

    with listen(options.gdb or options.gdb_attach) as listener:
        announce(listener, bool(options.gdb))
        return run_under_gdb(vm, listener, bool(options.gdb), lambda: bool(signals), options.gdb_arch)


def _closing_line(vm: VirtualMachine, outcome: Outcome, status: int, wall: float) -> str:
    from emu.units import format_time

    name = vm.guest.name if vm.guest else vm.name
    frames = f"{vm.pool.used} of {vm.pool.size} frames used"
    resets = f" (after {vm.resets} reset{'s' * (vm.resets > 1)})" if vm.resets else ""
    times = f"{format_time(vm.now)} virtual, {wall:.2f} s wall"
    return f"{name}: {outcome.sentence}{resets}; status {status}, {times}, {frames}"


def _text(data: bytes) -> str:
    return repr(data.decode("utf-8", "backslashreplace"))
