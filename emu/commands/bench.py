"""Measure emu, side by side with a peer in one run.

Prints a table of medians: engine (loops), mmu (TLB misses, delivery), dmm (what the mapping's changes cost), devices
(registers and disks), start (a whole run), linux (Debian's kernel to its end, fetched by apt-get).  Ratios above 1 are
in our favour.  Machines are noisy: look at ratios first.
"""

from __future__ import annotations

import argparse
import json
from importlib import import_module
from pathlib import Path

from emu.errors import BadInput

GROUPS = {"engine": "engine", "mmu": "mmu", "dmm": "dmm", "devices": "devices", "start": "startup"}  # group: module
ON_DEMAND = {"linux": "linux"}  # long, or in need of a package source


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("groups", metavar="GROUP", nargs="*", help=f"{', '.join(GROUPS)} (all by default), linux")
    parser.add_argument("--rounds", type=int, default=7, metavar="N", help="rounds in turn, of which the median counts")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows to FILE as one JSON object too")


def main(options: argparse.Namespace) -> int:
    modules = GROUPS | ON_DEMAND
    unknown = [group for group in options.groups if group not in modules]
    if unknown:
        raise BadInput(unknown[0], f"no such group of benchmarks (there are {', '.join(modules)})")
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
