"""Page-table entry bits x accesses x control bits, enumerated, on the emulator and both oracles.

The cases are those that the oracles agree on (`tests.oracles.test_oracles_agree`): named like kvm-unit-tests' access.c,
"4level-4k pte.rw access.write". Every thirteenth of them runs in short, all of them with EMU_LONG=1.

The same walker also runs uncompiled. A few of the cases go through that twin, in a process of their own, and must give
what the compiled one gives.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mmu.harness import ARCHITECTURES, EmuMmu, with_code
from tests.mmu.test_differential import check
from tests.oracles.paging_cases import LONG_RUN, Case
from tests.oracles.test_oracles_agree import LAYOUTS, SMALL_MEMORY, Layout, build, deviations, enumerated
from tests.oracles.unicorn_mmu import UnicornMmu

SHORT_STEP = 13  # no divisor of the number of circumstances, so that every bit meets many of them
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module", params=ARCHITECTURES)
def emulator(request: pytest.FixtureRequest) -> EmuMmu:
    return EmuMmu(SMALL_MEMORY, request.param)


@pytest.fixture(scope="module")
def unicorn_mmu() -> UnicornMmu:
    return UnicornMmu(SMALL_MEMORY)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_enumerated_cases(layout: Layout, emulator: EmuMmu, unicorn_mmu: UnicornMmu) -> None:
    for name, case in itertools.islice(enumerated(layout), 0, None, 1 if LONG_RUN else SHORT_STEP):
        check(case, emulator, unicorn_mmu, name)


# The uncompiled twin

TWIN_NAMES = (
    "",
    "access.write",
    "access.fetch",
    "access.crossing",
    "access.crossing access.write",
    "pte.p",
    "pte.rw access.write",
    "pte.rw access.write cr0.wp",
    "pte.us access.user",
    "pde.us access.user access.write",
    "pte.a pte.d",
    "pte.nx efer.nxe access.fetch",
    "pde.nx access.user",
    "cr4.smep access.fetch",
    "cr4.smap",
    "cr4.smap eflags.ac",
    "pde.ps",
    "pdpte.ps",
    "pde.bit51",
    "pte.bit40",
)


def twin_cases() -> dict[str, Case]:
    """Some cases of every layout."""
    cases = {}
    for layout in LAYOUTS:
        for name in TWIN_NAMES:
            if set(name.split()) <= set(deviations(layout)):
                case = build(layout, tuple(name.split()))
                assert case is not None
                cases[f"{layout.name} {name}"] = case
    return cases


def twin_outcomes(mmu: str) -> dict[str, str]:
    """What the emulator, compiled or not, makes of `twin_cases`."""
    emulator = EmuMmu(SMALL_MEMORY, mmu)
    outcomes = {}
    for name, case in twin_cases().items():
        image = case.memory().image
        emulator.load(image, with_code(image, case.frames()))
        outcomes[name] = repr([emulator.perform(case.control, access) for access in case.accesses])
    return outcomes


@pytest.mark.parametrize("mmu", ARCHITECTURES)
def test_uncompiled_twin(mmu: str) -> None:
    program = f"import json; from tests.mmu import test_walk as t; print(json.dumps(t.twin_outcomes({mmu!r})))"
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "1", "PYTHONPATH": str(ROOT)}
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout) == twin_outcomes(mmu)
