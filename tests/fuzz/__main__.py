"""``python -m tests.fuzz``: make cases from seeds, run them on emu and on a witness, show what no rule explains."""

from __future__ import annotations

import argparse
import itertools
import sys
from collections import Counter

from tests.fuzz.cases import make_cases
from tests.fuzz.compare import difference, show, show_values
from tests.fuzz.machines import run
from tests.fuzz.rules import explain


def main() -> int:
    """Status 1 when there is a difference that no rule explains."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="the first seed (default 0)")
    parser.add_argument("--seeds", type=int, default=1, help="how many; 0 for no end")
    parser.add_argument("--count", type=int, default=3000, help="cases of each seed (default 3000)")
    parser.add_argument("--mmu", default="shadow", help="shadow or nested")
    parser.add_argument("--witness", default="qemu", help="qemu, bochs, or the other --mmu")
    parser.add_argument("--case", type=int, help="only this case")
    arguments = parser.parse_args()
    found, known = 0, Counter[str]()
    seeds = (
        range(arguments.seed, arguments.seed + arguments.seeds) if arguments.seeds else itertools.count(arguments.seed)
    )
    for seed in seeds:
        cases = make_cases(seed, arguments.count)
        numbers = range(len(cases)) if arguments.case is None else [arguments.case]
        cases = [cases[number] for number in numbers]
        ends = [run(machine, cases) for machine in (arguments.mmu, arguments.witness)]
        for number, case, emu, witness in zip(numbers, cases, *ends, strict=True):
            if emu is None or witness is None:
                known[f"{arguments.witness if emu else arguments.mmu} is lost"] += 1
                found += emu is None
                print(f"{seed}/{number} {'witness' if emu else 'emu'} is lost in {show(case)}")
                continue
            differ = difference(case, emu, witness)
            names, left = explain(differ) if differ else (set(), set())
            known.update(names)
            if differ and left:
                found += 1
                print(f"{seed}/{number} {show(case)} -> vector {emu.value(case, 'vector')}")
                for line in show_values(differ, left):
                    print(f"    {line}")
    for name, count in known.most_common():
        print(f"{count} times: {name}")
    print(f"{found} differences that no rule explains")
    return 1 if found else 0


sys.exit(main())
