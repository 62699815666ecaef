"""Measure emu, side by side with a peer in one run.

Prints a table of medians: engine (loops), mmu (TLB misses, delivery), dmm (what the mapping's changes cost), devices
(registers and disks), start (a whole run), fleet (100 VMs), linux (Debian's kernel to its end, fetched by apt-get),
linux-fleet (16 of them, merged), smp (several processors).  Ratios above 1 are in our favour.  Machines are noisy: look
at ratios first.

`emu bench policies` measures no time: it records which pages a guest uses when, replays that through every page
replacement algorithm in pools of several sizes, and prints the fault rates.
"""

from __future__ import annotations

import argparse
import json
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path

from emu.commands.arguments import text
from emu.commands.files import open_output
from emu.errors import BadInput

GROUPS = {  # group: module
    "engine": "engine", "mmu": "mmu", "dmm": "dmm", "devices": "devices", "start": "startup", "fleet": "fleet",
}  # fmt: skip
ON_DEMAND = {"linux": "linux", "linux-fleet": "linux_fleet", "smp": "smp"}  # long, or in need of a package source
POLICIES = "policies"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    groups = f"{', '.join(GROUPS)} (all by default), {', '.join(ON_DEMAND)}; or {POLICIES}"
    parser.add_argument("groups", metavar="GROUP", nargs="*", help=groups)
    parser.add_argument("--rounds", type=int, default=7, metavar="N", help="rounds in turn, of which the median counts")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows to FILE as one JSON object too")
    policies = parser.add_argument_group("for policies")
    policies.add_argument("--guest", metavar="GUEST", help="what to record (default: memory, with three patterns)")
    policies.add_argument("--append", type=text, metavar="TEXT", help="the guest's command line")
    policies.add_argument("--trace", metavar="FILE", help="a run recorded earlier, instead of a guest")
    policies.add_argument("--plot", metavar="FILE", help="draw the fault rates too, as a PNG picture")


def main(options: argparse.Namespace) -> int:
    if POLICIES in options.groups:
        return _policies(options)
    for option in ("guest", "append", "trace", "plot"):
        if getattr(options, option) is not None:
            raise BadInput(f"--{option}", f"belongs to `emu bench {POLICIES}`")
    modules = GROUPS | ON_DEMAND
    unknown = [group for group in options.groups if group not in modules]
    if unknown:
        raise BadInput(unknown[0], f"no such group of benchmarks (there are {', '.join([*modules, POLICIES])})")
    if options.rounds < 1:
        raise BadInput("--rounds", f"{options.rounds} is not a positive number")
    if options.json:
        try:
            options.json.touch()
        except OSError as error:
            raise BadInput("--json", f"{options.json} cannot be written: {error.strerror or error}") from None

    from emu.bench.harness import measure, table

    rows = []
    for group in options.groups or GROUPS:
        for case in import_module(f"emu.bench.{modules[group]}").cases():
            rows.append(measure(case, options.rounds))
            lines = table(rows[-1:]).splitlines()
            print("\n".join(lines if len(rows) == 1 else lines[1:]), flush=True)
    if options.json:
        options.json.write_text(json.dumps({"rows": [row.as_json() for row in rows]}, indent=1) + "\n")
    return 0


def _policies(options: argparse.Namespace) -> int:
    if options.groups != [POLICIES]:
        raise BadInput(POLICIES, "stands alone: it measures no time")
    if options.trace is not None and (options.guest is not None or options.append is not None):
        raise BadInput("--trace", "takes the place of --guest and --append")
    from emu.bench import policies

    if options.plot is not None:
        policies.check_plotting()
    inputs = [name for name in (options.trace, options.guest) if name is not None]
    json_name = None if options.json is None else str(options.json)
    with ExitStack() as files:
        json_file = open_output(files, "--json", json_name, inputs, whole=True)
        plot_file = open_output(files, "--plot", options.plot, inputs, [json_file], whole=True)
        comparisons = []
        for title, trace in policies.runs(options.trace, options.guest, options.append):
            comparisons.append(policies.compare(trace, title))
            print(policies.table(comparisons[-1]), end="\n\n", flush=True)
        if json_file is not None:
            rows = [comparison.as_json() for comparison in comparisons]
            json_file.write((json.dumps({"comparisons": rows}, indent=1) + "\n").encode())
        if plot_file is not None:
            plot_file.write(policies.plot(comparisons))
    return 0
