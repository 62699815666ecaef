"""The emulator's MMU, in both paging architectures, against both oracles, on random page tables.

The model says what every access must do, down to each accessed and dirty bit. Unicorn's walker must have been seen to
do the same, except where a difference is on the list below. All accesses of a case are made on one memory, so that
the shadow tables of one access serve the next; at its end all of memory is compared.

Every departure from the oracles
    - From the manual, with QEMU: `RULES.implicit_obeys_ac`. The engine does not tell the processor's own accesses from
      the program's, so EFLAGS.AC suspends SMAP for both at CPL 0 to 2.
    - From QEMU, with the manual: `RULES.pdpte_registers` and `RULES.pks`, see there. Before every third access the
      PDPTE registers of PAE paging are loaded again.
    - From QEMU, with the manual: `RULES.giga_accessed_early`. The accessed flag of an entry that maps 1 GiB is set by
      accesses that succeed only.
    - From both: physical addresses beyond the guest's memory read as ones, as on a bus that nothing drives
      (`MemoryWithHoles`); the oracles give zeros. Such an access is ordinary here, `Outcome.outside` is never set.
    - Left out: implicit accesses at CPL 3, which are recognised by the instruction, and that must stand in the
      memory which the tables describe. They have tests of their own (`test_implicit`).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.mmu.harness import ARCHITECTURES, CODE_GFNS, HOLE, EmuMmu, MemoryWithHoles, with_code
from tests.oracles import paging_model as x86
from tests.oracles.paging_cases import DATA_GFNS, LONG_RUN, MEMORY_SIZE, TABLE_GFNS, Case, case_settings, cases
from tests.oracles.paging_model import (
    PAGE,
    Access,
    Control,
    Kind,
    Memory,
    Outcome,
    Rules,
    load_pdptes,
    perform,
)
from tests.oracles.unicorn_mmu import UnicornMmu

RULES = Rules(pdpte_registers=True, giga_accessed_early=False, implicit_obeys_ac=True, pks=True)

RELOAD_EVERY = 3  # accesses
AUDIT_EVERY = 1 if LONG_RUN else 4  # accesses of a pair

Disturbances = list[list[tuple[str, int]]]  # for each access what happens below the guest before it: (action, gfn)


def left_out(control: Control, access: Access) -> bool:
    return access.implicit and control.cpl == 3


def visible(outcome: Outcome, access: Access, memory_size: int) -> Outcome:
    """What the emulator can be asked for: addresses of fetches only, and HOLE for those beyond memory."""
    gpas = outcome.gpas if access.kind is Kind.FETCH else ()
    return replace(outcome, gpas=tuple(gpa if gpa < memory_size else HOLE for gpa in gpas))


def reloaded(emulator: EmuMmu, memory: Memory, control: Control) -> Control | None:
    """The control state with its PDPTE registers loaded, on the emulator, too; None where they cannot be at first."""
    if not control.pae:
        return control
    pdptes = load_pdptes(memory, control)
    assert emulator.load_pdptes(control) == (pdptes is not None)
    if pdptes is None:
        return None if control.pdptes is None else control
    return replace(control, pdptes=pdptes)


def check(
    case: Case, emulator: EmuMmu, engine: UnicornMmu, name: str = "", disturbances: Disturbances | None = None
) -> int:
    """Run a case on the emulator and on both oracles.

    Returns:
        The number of accesses in which Unicorn had its say.
    """
    image = case.memory().image
    frames = with_code(image, case.frames())
    memory, qemu_memory = MemoryWithHoles(image, frames), Memory(image, frames)
    emulator.load(image, frames)
    engine.load(image, frames)
    code = {gfn: frames[gfn] for gfn in CODE_GFNS}
    comparable = 0
    compare_unicorn = True
    control: Control | None = case.control
    for number, access in enumerate(case.accesses):
        if number % RELOAD_EVERY == 0:
            control = reloaded(emulator, memory, control or case.control)
        if control is None or left_out(control, access):
            continue
        for action, gfn in disturbances[number % len(disturbances)] if disturbances else ():
            emulator.disturb(action, gfn)
        expected = perform(memory, control, access, rules=RULES)
        emulator.watch(memory.frames)
        ours = emulator.perform(control, access)
        model = visible(expected, access, case.memory_size)
        assert ours == model, f"{name}\n{access}\n{disturbances}\n{case}\nemulator: {ours}\nmodel:    {model}"
        if compare_unicorn:
            qemu = perform(qemu_memory, control, access)
            compare_unicorn = qemu == expected
        if compare_unicorn:
            theirs = visible(engine.perform(control, access), access, case.memory_size)
            assert ours == theirs, f"{name}\n{access}\n{disturbances}\n{case}\nemulator: {ours}\nunicorn:  {theirs}"
            comparable += 1
        if any(bytes(memory.frames[gfn]) != code[gfn] for gfn in CODE_GFNS):
            break  # the access has overwritten the instructions that make accesses
    expected_image = bytearray(image)
    for gfn, frame in memory.frames.items():
        expected_image[gfn * PAGE : (gfn + 1) * PAGE] = frame
    assert emulator.memory() == expected_image, f"{name}: memory differs after\n{case}"
    return comparable


def check_pair(pair: tuple[Case, Case], turns: list[int], disturbances: Disturbances, emulator: EmuMmu) -> None:
    """Run two cases on one memory, each on a processor of its own, taking turns; the model is the oracle."""
    image = pair[0].memory().image
    frames = with_code(image, merged(pair[0].frames(), pair[1].frames()))
    memory = MemoryWithHoles(image, frames)
    emulator.load(image, frames)
    code = {gfn: frames[gfn] for gfn in CODE_GFNS}
    controls: list[Control | None] = [reloaded(emulator.on(cpu), memory, pair[cpu].control) for cpu in range(2)]
    for number, cpu in enumerate(turns):
        case = pair[cpu]
        access = case.accesses[number % len(case.accesses)]
        if number % RELOAD_EVERY == RELOAD_EVERY - 1:
            controls[cpu] = reloaded(emulator.on(cpu), memory, controls[cpu] or case.control)
        control = controls[cpu]
        if control is None or left_out(control, access):
            continue
        for action, gfn in disturbances[number % len(disturbances)]:
            emulator.disturb(action, gfn)
        expected = visible(perform(memory, control, access, rules=RULES), access, case.memory_size)
        emulator.watch(memory.frames)
        ours = emulator.on(cpu).perform(control, access)
        assert ours == expected, f"{turns}\n{access} on {cpu}\n{disturbances}\n{pair}\nemulator: {ours}\n{expected}"
        if number % AUDIT_EVERY == 0:
            emulator.vm.audit()
        if any(bytes(memory.frames[gfn]) != code[gfn] for gfn in CODE_GFNS):
            break
    expected_image = bytearray(image)
    for gfn, frame in memory.frames.items():
        expected_image[gfn * PAGE : (gfn + 1) * PAGE] = frame
    assert emulator.memory() == expected_image, f"memory differs after\n{turns}\n{pair}"


def merged(first: dict[int, bytes], second: dict[int, bytes]) -> dict[int, bytes]:
    """The tables of both; where both have an entry, or parts of one, the first one's."""
    result = first | second
    for gfn in first.keys() & second.keys():
        ours, theirs = (np.frombuffer(frames[gfn], np.uint64) for frames in (first, second))
        result[gfn] = np.where(ours, ours, theirs).tobytes()
    return result


@pytest.fixture(scope="module", params=ARCHITECTURES)
def emulator(request: pytest.FixtureRequest) -> EmuMmu:
    return EmuMmu(MEMORY_SIZE, request.param)


@pytest.fixture(scope="module")
def unicorn_mmu() -> UnicornMmu:
    return UnicornMmu(MEMORY_SIZE)


@case_settings(short=400, long=50_000)
@given(case=cases())
def test_random_cases(case: Case, emulator: EmuMmu, unicorn_mmu: UnicornMmu) -> None:
    check(case, emulator, unicorn_mmu)


_disturbance = st.tuples(
    st.sampled_from(("evict", "evict", "remap", "remap", "", "r", "rx", "rw")),
    st.sampled_from((*TABLE_GFNS, *TABLE_GFNS, *DATA_GFNS, *CODE_GFNS)),
)
_disturbances = st.lists(st.lists(_disturbance, max_size=4), min_size=1, max_size=6)


@case_settings(short=400, long=50_000)
@given(case=cases(), disturbances=_disturbances)
def test_random_cases_on_moving_ground(
    case: Case, disturbances: Disturbances, emulator: EmuMmu, unicorn_mmu: UnicornMmu
) -> None:
    """The same while pages are evicted, moved and protected below the guest: nothing that it can see may change."""
    check(case, emulator, unicorn_mmu, disturbances=disturbances)


@pytest.fixture(scope="module", params=ARCHITECTURES)
def two_processors(request: pytest.FixtureRequest) -> EmuMmu:
    return EmuMmu(MEMORY_SIZE, request.param, cpus=2)


@case_settings(short=250, long=50_000)
@given(
    pair=st.tuples(cases(), cases()),
    turns=st.lists(st.integers(0, 1), min_size=4, max_size=16),
    disturbances=_disturbances,
)
def test_two_processors_with_tables_of_their_own(
    pair: tuple[Case, Case], turns: list[int], disturbances: Disturbances, two_processors: EmuMmu
) -> None:
    """Mostly in different paging modes; the tables lie among each other, and each may write the other's."""
    check_pair(pair, turns, disturbances, two_processors)


def test_unaligned_store_that_changes_its_own_translation(emulator: EmuMmu, unicorn_mmu: UnicornMmu) -> None:
    """The engine stores it byte by byte, into a table that has been executed: one translation must serve all bytes."""
    accesses = (Access(Kind.FETCH, 0x401FFF), Access(Kind.WRITE, 0x401007, 2, value=0x1D0))
    control = Control(x86.CR0_PE | x86.CR0_PG, 0x7000, x86.CR4_PSE, 0, 0)
    check(Case("pse", control, {0x7004: 0x7063}, accesses), emulator, unicorn_mmu)


def test_smep_and_smap_mean_nothing_without_paging(emulator: EmuMmu, unicorn_mmu: UnicornMmu) -> None:
    control = Control(x86.CR0_PE | x86.CR0_WP, 0, x86.CR4_SMEP | x86.CR4_SMAP, 0, 0)
    accesses = tuple(Access(kind, 0x200FFE, 4) for kind in (Kind.WRITE, Kind.READ, Kind.FETCH, Kind.WRITE))
    check(Case("unpaged", control, {}, accesses), emulator, unicorn_mmu)
