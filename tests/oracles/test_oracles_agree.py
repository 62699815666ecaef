"""The two oracles for the MMU, the model of the manual and the walker inside Unicorn, say the same.

Random cases come from Hypothesis. The enumerated ones follow kvm-unit-tests' access.c: a fixed path of tables, and
named deviations such as "pte.rw", "cr0.wp" or "access.user" from the starting point, which is a read by the supervisor
through entries that allow everything. Each single entry bit meets all combinations of access and control bits; besides
there are all pairs of deviations. With EMU_LONG=1 it is pairs of entry bits, and triples.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest
from hypothesis import given

from tests.oracles import paging_model as x86
from tests.oracles.paging_cases import (
    LONG,
    LONG5,
    LONG_RUN,
    MEMORY_SIZE,
    MODES,
    PAE,
    Case,
    Mode,
    case_settings,
    cases,
)
from tests.oracles.paging_model import PAGE, SDM, Access, Control, Kind, Outcome, perform
from tests.oracles.unicorn_mmu import UnicornMmu

SMALL_MEMORY = 64 << 10  # bytes, for the enumerated cases


@pytest.fixture(scope="module")
def unicorn_mmu() -> UnicornMmu:
    return UnicornMmu(MEMORY_SIZE)


@pytest.fixture(scope="module")
def small_unicorn_mmu() -> UnicornMmu:
    return UnicornMmu(SMALL_MEMORY)


def check(case: Case, engine: UnicornMmu, name: str = "") -> None:
    """Run a case on both oracles and compare each outcome; the changed words in it cover all memory."""
    memory = case.memory()
    engine.load(memory.image, case.frames())
    for access in case.accesses:
        ours, theirs = perform(memory, case.control, access), engine.perform(case.control, access)
        if ours.undefined:
            break
        assert ours == theirs, f"{name}\n{access}\nmodel:   {ours}\nunicorn: {theirs}\n{case}"


@case_settings(short=1500, long=100_000)
@given(case=cases())
def test_random_cases(case: Case, unicorn_mmu: UnicornMmu) -> None:
    check(case, unicorn_mmu)


# Enumerated cases

PATH_GVA = 0x0000_0000_0000_5123  # index 0 in every table but the lowest, index 5 there
LOWEST = 5
NEXT_PAGE_ENTRY = 6  # what an access over the end of the page meets: user, writable


@dataclass(frozen=True)
class Layout:
    """A path of tables for one mode: `leaf` is the depth of the entry that maps the page."""

    mode: Mode
    leaf: int

    @property
    def name(self) -> str:
        size = {12: "4k", 21: "2m", 22: "4m", 30: "1g"}[self.mode.levels[self.leaf].shift]
        return f"{self.mode.name}-{size}"

    @property
    def path(self) -> list[str]:
        return [level.name for level in self.mode.levels[: self.leaf + 1]]


LAYOUTS = [
    Layout(mode, depth)
    for mode in MODES
    for depth, level in enumerate(mode.levels)
    if level.large or depth == len(mode.levels) - 1
]

_FLAGS = {"p": 0, "rw": 1, "us": 2, "a": 5, "d": 6, "ps": 7, "g": 8, "bit9": 9}  # name: bit of the entry
_WIDE_FLAGS = {"bit12": 12, "bit20": 20, "bit21": 21, "bit29": 29}  # PAT and the low address bits of large pages
_HIGH_FLAGS = {"bit39": 39, "bit40": 40, "bit51": 51, "bit52": 52, "key1": 59, "key2": 60, "bit62": 62, "nx": 63}
RIGHTS_BY_KEY = 0b10_01_00  # key 1: no access, key 2: no writes
_CONTROL = {  # name: (register, bit) flipped
    "cr0.wp": ("cr0", x86.CR0_WP),
    "cr4.pse": ("cr4", x86.CR4_PSE),
    "cr4.smep": ("cr4", x86.CR4_SMEP),
    "cr4.smap": ("cr4", x86.CR4_SMAP),
    "cr4.pke": ("cr4", x86.CR4_PKE),
    "cr4.pks": ("cr4", x86.CR4_PKS),
    "efer.nxe": ("efer", x86.EFER_NXE),
}
_PAIRED_ONLY = ("cr4.pse", "cr4.pke", "cr4.pks", "access.crossing")  # not in all combinations
_ACCESS = ("access.user", "access.write", "access.fetch", "access.implicit", "access.crossing", "eflags.ac")


def deviations(layout: Layout) -> list[str]:
    """The names of all that can differ from the ordinary in this layout, an entry's as "pde.rw"."""
    names = [*_CONTROL, *_ACCESS]
    if not layout.mode.long:
        names = [name for name in names if name not in ("cr4.pke", "cr4.pks")]
    for depth, entry in enumerate(layout.path):
        flags = dict(_FLAGS)
        if depth == layout.leaf and layout.mode.levels[depth].large:
            flags |= _WIDE_FLAGS
        if layout.mode.entry_size == 8:
            flags |= _HIGH_FLAGS
        names += [f"{entry}.{flag}" for flag in flags]
    return names


def build(layout: Layout, names: tuple[str, ...]) -> Case | None:
    """The case with these deviations; None when they make no access."""
    if {"access.write", "access.fetch"} <= set(names):
        return None
    if "access.implicit" in names and {"access.write", "access.fetch"} & set(names):
        return None
    mode, path = layout.mode, layout.path
    flips = {**_FLAGS, **_WIDE_FLAGS, **_HIGH_FLAGS}
    entries: dict[int, int] = {}
    for depth, entry in enumerate(path):
        table = (depth + 1) * PAGE
        base = 0 if depth == layout.leaf and mode.levels[depth].large else table + PAGE
        value = base | x86.PRESENT | x86.WRITABLE | x86.USER
        if depth == layout.leaf and mode.levels[depth].large:
            value |= x86.PAGE_SIZE
        if mode is PAE and depth == 0:
            value &= ~(x86.WRITABLE | x86.USER)
        lowest = depth == len(mode.levels) - 1
        if lowest:
            entries[table + NEXT_PAGE_ENTRY * mode.entry_size] = value + PAGE
        for name in names:
            owner, flag = name.split(".")
            if owner == entry:
                value ^= 1 << flips[flag]
        entries[table + (LOWEST if lowest else 0) * mode.entry_size] = value

    cpl, ac = 3 if "access.user" in names else 0, "eflags.ac" in names
    control = Control(mode.cr0, PAGE, mode.cr4, mode.efer, cpl, ac, RIGHTS_BY_KEY, RIGHTS_BY_KEY)
    for name in names:
        if name in _CONTROL:
            register, bit = _CONTROL[name]
            control = replace(control, **{register: getattr(control, register) ^ bit})

    kind = Kind.WRITE if "access.write" in names else Kind.FETCH if "access.fetch" in names else Kind.READ
    gva = PATH_GVA | 0xFFD if "access.crossing" in names else PATH_GVA
    access = Access(kind, gva, 8, "access.implicit" in names, 0x0123_4567_89AB_CDEF if kind is Kind.WRITE else 0)
    return Case(mode.name, control, entries, (access,), SMALL_MEMORY)


def enumerated(layout: Layout) -> Iterator[tuple[str, Case]]:
    """All cases of a layout, with their names; some come twice."""
    names = deviations(layout)
    circumstances = [name for name in (*_CONTROL, *_ACCESS) if name not in _PAIRED_ONLY]
    entry_bits = [name for name in names if name not in (*_CONTROL, *_ACCESS)]
    everything = itertools.chain(
        (
            (*bits, *others)
            for bits in _subsets(entry_bits, 2 if LONG_RUN else 1)
            for others in _subsets(circumstances, len(circumstances))
        ),
        _subsets(names, 3 if LONG_RUN else 2),
    )
    for chosen in everything:
        case = build(layout, chosen)
        if case is not None:
            yield " ".join((layout.name, *chosen)), case


def _subsets(names: list[str], most: int) -> Iterator[tuple[str, ...]]:
    for count in range(most + 1):
        yield from itertools.combinations(names, count)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_enumerated_cases(layout: Layout, small_unicorn_mmu: UnicornMmu) -> None:
    for name, case in enumerated(layout):
        check(case, small_unicorn_mmu, name)


# Single points


def outcome(layout: Layout, *names: str, rules: x86.Rules = SDM) -> Outcome:
    case = build(layout, names)
    assert case is not None
    return perform(case.memory(), case.control, case.accesses[0], rules=rules)


def test_known_error_codes() -> None:
    """Both oracles could be wrong together: a few cases with the answer written by hand."""
    plain = next(layout for layout in LAYOUTS if layout.name == "4level-4k")
    for names, error_code in [
        ("pte.p", 0x00),
        ("pte.p access.user access.write", 0x06),
        ("pte.us access.user", 0x05),
        ("pde.us access.user access.write", 0x07),
        ("pte.rw cr0.wp access.write", 0x03),
        ("pte.nx efer.nxe access.fetch", 0x11),
        ("pml4e.nx efer.nxe access.fetch access.user pdpte.us", 0x15),
        ("pte.nx", 0x09),
        ("pml4e.ps access.user", 0x0D),
        ("cr4.smep access.fetch", 0x11),
        ("cr4.smap access.write", 0x03),
        ("pte.p access.fetch", 0x00),
        ("cr4.smap access.implicit access.user", 0x01),
        ("pte.key1 cr4.pke", 0x21),
        ("pte.key1 cr4.pke access.user access.write", 0x27),
        ("pte.key2 cr4.pke access.user access.write", 0x27),
        ("pte.key2 cr4.pke access.write cr0.wp", 0x23),
        ("pte.key2 cr4.pke access.write cr0.wp pte.rw", 0x23),
        ("pte.key1 pte.us cr4.pks", 0x21),
        ("pte.key2 pte.us cr4.pks access.write cr0.wp", 0x23),
        ("pte.key1 pte.us cr4.pks access.user", 0x25),
        ("pte.key1 pte.nx efer.nxe cr4.pke access.fetch", 0x11),
    ]:
        assert outcome(plain, *names.split()).fault == (14, error_code, PATH_GVA), names
    for names in (
        "pte.rw access.write", "pte.us pte.rw", "cr4.smap eflags.ac", "cr4.smep access.user access.fetch",
        "pte.key1", "pte.key1 cr4.pks", "pte.key1 pte.us cr4.pke", "pte.key2 cr4.pke access.write", "pte.key2 cr4.pke",
        "pte.key1 cr4.pke access.fetch", "pde.key1 cr4.pke",
    ):  # fmt: skip
        assert outcome(plain, *names.split()).fault is None, names


def test_rules_differ_only_where_stated() -> None:
    """QEMU and the manual, over all enumerated cases: every difference belongs to one of the switches of `Rules`."""
    for layout in LAYOUTS:
        for name, case in enumerated(layout):
            qemu, sdm = (
                perform(case.memory(), case.control, case.accesses[0], rules=rules) for rules in (x86.QEMU, SDM)
            )
            if qemu == sdm:
                continue
            pdpte_reserved = layout.mode is PAE and " pdpte." in name
            giga_fault = sdm.fault is not None and (
                layout.name.endswith("level-1g") or "level" in name and "pdpte.ps" in name
            )
            implicit_ac = "access.implicit" in name and "eflags.ac" in name
            assert pdpte_reserved or giga_fault or implicit_ac or "cr4.pks" in name, name


@pytest.mark.parametrize("cpl", [0, 3])
@pytest.mark.parametrize("names", [(), ("pte.us",), ("pte.nx", "efer.nxe"), ("pte.p",), ("cr4.smep",), ("pde.rw",)])
@pytest.mark.parametrize("mode", [mode for mode in MODES if mode.paging], ids=lambda mode: mode.name)
def test_fetch_probe_is_a_fetch(mode: Mode, names: tuple[str, ...], cpl: int, small_unicorn_mmu: UnicornMmu) -> None:
    """Running an instruction at an address gives what the probe of that address gives."""
    if mode.entry_size == 4:
        names = tuple(name for name in names if not name.endswith("nx"))
    case = build(Layout(mode, len(mode.levels) - 1), (*names, "access.fetch"))
    assert case is not None
    control = replace(case.control, cpl=cpl)
    image = case.image()
    target = 0x1000 * (len(mode.levels) + 1) + PATH_GVA % PAGE
    image[target] = 0xCC
    outcomes = []
    for run in (False, True):
        small_unicorn_mmu.load(bytes(image))
        if run:
            outcomes.append(small_unicorn_mmu.run_at(control, PATH_GVA))
        else:
            outcomes.append(small_unicorn_mmu.perform(control, Access(Kind.FETCH, PATH_GVA)))
    assert outcomes[0] == outcomes[1]
    assert outcomes[0].fault is not None or outcomes[0].gpas == (target,)


def test_addresses_that_are_not_canonical(unicorn_mmu: UnicornMmu) -> None:
    case = next(build(Layout(LONG, 3), (name,)) for name in ["cr0.wp"])
    assert case is not None
    gvas = (0x0000_8000_0000_0000, 0xFFFF_7FFF_FFFF_FFF8, 0x0123_4567_89AB_CDE0, 0x0000_7FFF_FFFF_FFFC)
    accesses = tuple(Access(kind, gva, 8) for kind in Kind for gva in gvas)
    check(replace(case, accesses=accesses, memory_size=MEMORY_SIZE), unicorn_mmu)
    case = build(Layout(LONG5, 4), ("cr0.wp",))
    assert case is not None
    gvas = (0x0100_0000_0000_0000, 0xFEFF_FFFF_FFFF_FFF8, 0x0000_8000_0000_0000, 0x00FF_FFFF_FFFF_FFFC)
    accesses = tuple(Access(kind, gva, 8) for kind in Kind for gva in gvas)
    check(replace(case, accesses=accesses, memory_size=MEMORY_SIZE), unicorn_mmu)


def test_pse36_reaches_40_bits(unicorn_mmu: UnicornMmu) -> None:
    """Bits 20:13 of a 4 MiB page's entry are bits 39:32 of its address, bit 21 is reserved."""
    control = Control(x86.CR0_PE | x86.CR0_PG, PAGE, x86.CR4_PSE, 0, 0)
    for bit in range(13, 22):
        entries = {PAGE: 0x87 | 1 << bit}
        case = Case("pse", control, entries, (Access(Kind.READ, 0x1234, 4),))
        check(case, unicorn_mmu)
        result = perform(case.memory(), control, case.accesses[0])
        if bit == 21:
            assert result.fault == (14, x86.ERROR_P | x86.ERROR_RSVD, 0x1234)
        else:
            assert result.gpas == (0x1234 | 1 << bit - 13 + 32,)
