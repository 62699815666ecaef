"""``python -m tests.conformance [FOLDER]``: run the suites on both paging architectures and on QEMU, print a table."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from tests.conformance.runner import MACHINES, Run, run_case, worse
from tests.conformance.suites import all_cases


def main() -> int:
    """Status 1 when emu does worse than QEMU somewhere, or its two paging architectures differ."""
    parser = argparse.ArgumentParser(prog="python -m tests.conformance", description=__doc__)
    parser.add_argument("folder", nargs="?", default=os.environ.get("EMU_CONFORMANCE"), help="default: EMU_CONFORMANCE")
    parser.add_argument("--suite", action="append", metavar="NAME", help="only this suite, repeatable")
    parser.add_argument("-k", default="", metavar="TEXT", help="only cases with this in their name")
    parser.add_argument("--on", default=",".join(MACHINES), help="the machines (default: %(default)s)")
    parser.add_argument("--patience", type=float, default=1, metavar="N", help="N times the usual limits of wall time")
    parser.add_argument("--logs", type=Path, metavar="FOLDER", help="write each console there")
    arguments = parser.parse_args()
    if not arguments.folder or not Path(arguments.folder).is_dir():
        parser.error(
            "name the folder of built images, or set EMU_CONFORMANCE; docs/conformance.md tells how to build it"
        )
    folder = Path(arguments.folder).resolve()
    cases = [
        case
        for case in all_cases(folder)
        if (not arguments.suite or case.suite in arguments.suite) and arguments.k in case.name
    ]
    bad = 0
    print(f"{'suite':10} {'case':24} {'machine':7} {'ended':12} {'user s':>7}  results")
    for case in cases:
        runs: dict[str, Run] = {}
        for machine in arguments.on.split(","):
            run = runs[machine] = run_case(case, machine, folder, arguments.patience)
            passed = "" if run.passed else "  NOT PASSED"
            row = f"{case.suite:10} {case.name:24} {machine:7} {run.ended:12} {run.user_seconds:7.2f}  {run.tally()}"
            print(row + passed, flush=True)
            if arguments.logs:
                arguments.logs.mkdir(parents=True, exist_ok=True)
                name = f"{case.suite}-{case.name}-{machine}".replace(" ", "_").replace("/", "_")
                (arguments.logs / name).write_text(f"{run.console}\n-- {run.ended}\n{run.said}")
        lines = [
            f"{machine} {line}"
            for machine, run in runs.items()
            if machine != "qemu"
            for line in worse(run, runs.get("qemu"))
        ]
        if {"shadow", "nested"} <= runs.keys() and runs["shadow"].results != runs["nested"].results:
            lines.append("shadow and nested paging differ")
        bad += bool(lines)
        for line in lines:
            print(f"    {line}", flush=True)
    print(f"{len(cases)} cases, {bad} of them worse than on QEMU, or not the same in both paging architectures")
    return 1 if bad else 0


sys.exit(main())
