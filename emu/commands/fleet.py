"""Run many VMs on one machine memory, in turns of virtual time.

A fleet file is TOML:

  [machine]
  memory = "16M"              # of the machine: pools and shadow tables come out of it
  quantum = "1ms"             # a VM's turn, in virtual time (default 1ms)
  max-time = "10s"            # the end in any case (default: never)

  [[vm]]                      # as often as needed, in the order of their turns
  name = "worker"
  count = 3                   # worker-0, worker-1, worker-2 (default: one, called worker)
  guest = "memory"            # a name that `emu guests` lists, or a file
  append = "pages=512"        # these as the options of `emu run`, whose defaults they have: append, ram, pool, mmu, as,
  ram = "4M"                  # cpu, cpus, quantum, policies, initrd, disks, floppies, cdrom, devices, net, no-reboot,
                              # input; cpu-schedule is --schedule there
  pool = "1M"
  policies = ["swap", "share:rate=100"]
  start = "2ms"               # when it starts (default 0)
  schedule = [                # what is done to it later; with a count, to each of them
    { at = "5ms", pool = "2M" },                    # another size for its pool
    { at = "6ms", detach = "share" },               # a policy that is in force no longer
    { at = "7ms", attach = "balloon" },             # a policy that is in force from now on
    { at = "8ms", balloon = "1M" },                 # what the guest is asked to give up
    { at = "9ms", retire = 4 },                     # so many of its frames go out of service
    { at = "9ms", pin = 8 },                        # the page with this gfn stays in machine memory, until unpin = 8
    { at = "20ms", shutdown = true },
  ]

Paths are relative to the file's directory; those within policies, to the current one. All times are those of the fleet,
which begins at 0; a VM's own clock begins when it starts. A start or step takes place between two rounds of turns, as
soon as its time has come. A step is done completely, or refused with a reason that the summary tells and without any
effect; only retire keeps what it has done before the frame that cannot go.

Numbers in the table are frames (pool, used) and pages; those of a VM that has ended, at its end.

exit status:
  0            every VM ended well: its guest switched off or wrote 0 to port 0xF4, or its schedule shut it down
  1            some VM did not
  2            bad usage, or an input that cannot be used
  124          a limit was reached before: --max-time, --timeout
  125          emu itself failed
  130, 143     stopped by Ctrl-C, by SIGTERM
"""

from __future__ import annotations

import argparse
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from emu.commands.arguments import seconds
from emu.commands.files import OutputFile, open_output
from emu.commands.host import explain_slow_start, report_disk_failure
from emu.commands.signals import stop_on_signals
from emu.errors import BadInput
from emu.units import NS_PER_SECOND

if TYPE_CHECKING:
    from emu.fleet.fleet import Fleet, FleetPlan, FleetStop
    from emu.machine.vm import VirtualMachine

USAGE = "FILE [options]"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="a fleet file, see below")
    parser.add_argument("--console", metavar="DIR", help="write what each guest prints to DIR/name.txt")
    parser.add_argument(
        "--events",
        metavar="FILE",
        help="write the memory events of all VMs as JSON lines, turn by turn; - is standard output",
    )
    parser.add_argument("--summary", metavar="FILE", help="write a summary as one JSON object; - is standard output")
    parser.add_argument("--max-time", type=seconds, metavar="S", help="limit in virtual seconds, beside the file's")
    parser.add_argument("--timeout", type=seconds, metavar="S", help="limit in seconds of the wall clock")
    parser.add_argument("--audit", action="store_true", help="check every invariant after every change of a mapping")


def main(options: argparse.Namespace) -> int:
    begin = time.perf_counter()
    with ExitStack() as files:
        with explain_slow_start():
            fleet, summary_file = _prepare(options, files)
        from emu.commands.fleet_table import LiveTable, print_end
        from emu.fleet.fleet import FleetStop
        from emu.fleet.summary import status_of, summarise_fleet
        from emu.observe.summary import format_summary
        from emu.units import format_time

        limits = [fleet.plan.max_time, None if options.max_time is None else round(options.max_time * NS_PER_SECOND)]
        until = min((limit for limit in limits if limit is not None), default=None)
        with stop_on_signals(fleet, last=True) as signals, _alarm(fleet, options.timeout), LiveTable(fleet) as table:
            stop = fleet.run(until, table)
        status = 128 + signals[0] if signals and stop is FleetStop.STOPPED else status_of(fleet, stop)
        print_end(fleet, sys.stderr if "-" in (options.events, options.summary) else sys.stdout)
        for member in fleet.members:
            for remark in member.remarks if member.vm is None else member.vm.platform.remarks():
                print(f"emu: {member.plan.name}: {remark}", file=sys.stderr)
        wall = time.perf_counter() - begin
        if summary_file is not None:
            summary_file.write(format_summary(summarise_fleet(fleet, stop, status, wall)).encode())
        times = f"{format_time(fleet.now)} virtual, {wall:.2f} s wall"
        print(f"emu: {options.file}: {_closing_line(fleet, stop)}; status {status}, {times}", file=sys.stderr)
    return status


def _prepare(options: argparse.Namespace, files: ExitStack) -> tuple[Fleet, OutputFile | None]:
    """The fleet, with its outputs opened and connected, and the file for the summary."""
    from emu.fleet.file import input_files, load_fleet
    from emu.fleet.fleet import Fleet
    from emu.observe.trace import EventWriter

    plan = load_fleet(options.file)
    inputs = [options.file, *input_files(plan)]
    events_file = open_output(files, "--events", options.events, inputs)
    summary_file = open_output(files, "--summary", options.summary, inputs, [events_file], whole=True)
    consoles = _open_consoles(options.console, plan, files, inputs, [events_file, summary_file])
    writer = EventWriter(events_file.write) if events_file is not None else None

    def connect(vm: VirtualMachine) -> None:
        vm.on_disk_failure(report_disk_failure)
        if writer is not None:
            vm.events.listen(writer)
        if vm.name in consoles:
            vm.platform.listen(consoles[vm.name].write, urgent=b"")

    try:
        fleet = Fleet(plan, audit=options.audit, on_start=connect)
    except BadInput as error:
        raise BadInput(options.file, str(error)) from None
    files.callback(fleet.close)
    return fleet, summary_file


def _open_consoles(
    directory: str | None, plan: FleetPlan, files: ExitStack, inputs: list[str], outputs: list[OutputFile | None]
) -> dict[str, OutputFile]:
    """A file for each VM's console, by the VM's name."""
    if directory is None:
        return {}
    try:
        Path(directory).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput("--console", f"{directory} cannot be made: {error.strerror or error}") from None
    consoles = {}
    for vm in plan.vms:
        file = open_output(files, "--console", str(Path(directory) / f"{vm.name}.txt"), inputs, outputs)
        assert file is not None
        consoles[vm.name] = file
    return consoles


@contextmanager
def _alarm(fleet: Fleet, timeout: float | None) -> Iterator[None]:
    """Stop the fleet when its wall time is over."""
    timer = threading.Timer(timeout, fleet.request_stop) if timeout is not None else None
    if timer is not None:
        timer.daemon = True
        try:
            timer.start()
        except RuntimeError:
            from emu.session import NO_THREADS

            raise BadInput("--timeout", NO_THREADS) from None
    try:
        yield
    finally:
        if timer is not None:
            timer.cancel()


def _closing_line(fleet: Fleet, stop: FleetStop) -> str:
    from emu.fleet.fleet import FleetStop

    count = len(fleet.members)
    if stop is FleetStop.ENDED:
        return f"{fleet.well} of {count} VMs ended well"
    left = sum(member.end is None for member in fleet.members)
    why = "the limit in virtual time was reached" if stop is FleetStop.MAX_TIME else "the fleet was stopped"
    return f"{why}, {left} of {count} VMs have not ended"
