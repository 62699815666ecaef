"""Cases for every implementation of x86 address translation: random ones, drawn by Hypothesis.

A `Case` is a physical memory with page tables in it, the control registers, and a few accesses. Frames 1 to 8 can be
tables, everything else is data. Data words are all different, so that a value tells where it was read, and each 32-bit
half is below the memory size, so that a walk led astray through a data frame mostly stays inside memory.

What the generator leans to
    - walks that reach a leaf: indices are taken from the slots that were filled, in runs so that neighbours exist;
    - the edges: first, middle and last slots, first and last bytes of a page, accesses over the end of a page;
    - few bits out of the ordinary at a time: entries start from present, writable, user and get deviations.
    Tables are shared between slots and point at themselves and at tables above them; data is used as a table; large
    pages stand at every level, also where the bit is ignored or reserved.

What it keeps out: 32-bit accesses over the end of the 4 GiB space.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

from tests.oracles import paging_model as x86
from tests.oracles.paging_model import PAGE, Access, Control, Kind, Memory

T = TypeVar("T")

MEMORY_SIZE = 4 << 20  # bytes: the smallest that holds one 4 MiB page and two of 2 MiB
TABLE_GFNS = tuple(range(1, 9))
DATA_GFNS = (0, 9, 10, 63, 0x200, 0x201, 0x3FE, 0x3FF)

LONG_RUN = os.environ.get("EMU_LONG") == "1"


def case_settings(short: int, long: int) -> settings:
    """Settings for a test over cases: `short` examples, always the same ones, or `long` ones with EMU_LONG=1."""
    return settings(
        max_examples=long if LONG_RUN else short,
        derandomize=not LONG_RUN,
        database=None,
        deadline=None,
        phases=[Phase.explicit, Phase.generate, Phase.shrink],
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )


@dataclass(frozen=True)
class Level:
    """One level of tables: the index's lowest gva bit and number of values, and whether PS maps a page there."""

    name: str
    shift: int
    slots: int
    large: bool


@dataclass(frozen=True)
class Mode:
    """A paging mode as the generator needs it: its levels from the root, entry size in bytes, control bits."""

    name: str
    levels: tuple[Level, ...]
    entry_size: int
    cr0: int
    cr4: int
    efer: int

    @property
    def long(self) -> bool:
        """4- or 5-level paging, with its protection keys."""
        return bool(self.efer & x86.EFER_LMA)

    def canonical(self, gva: int) -> int:
        """The address with the bits above the topmost level's copied from the highest of these."""
        top = self.levels[0].shift + 8
        return gva | -1 << top & (1 << 64) - 1 if self.long and gva >> top & 1 else gva

    @property
    def paging(self) -> bool:
        return bool(self.cr0 & x86.CR0_PG)


_PG = x86.CR0_PE | x86.CR0_PG
_LONG = x86.EFER_LME | x86.EFER_LMA
_PTE8 = Level("pte", 12, 512, large=False)
_PDE8 = Level("pde", 21, 512, large=True)

UNPAGED = Mode("unpaged", (), 4, x86.CR0_PE, 0, 0)
BITS32 = Mode("32bit", (Level("pde", 22, 1024, large=False), Level("pte", 12, 1024, large=False)), 4, _PG, 0, 0)
PSE = Mode("pse", (Level("pde", 22, 1024, large=True), Level("pte", 12, 1024, large=False)), 4, _PG, x86.CR4_PSE, 0)
PAE = Mode("pae", (Level("pdpte", 30, 4, large=False), _PDE8, _PTE8), 8, _PG, x86.CR4_PAE, 0)
LONG = Mode(
    "4level",
    (Level("pml4e", 39, 512, large=False), Level("pdpte", 30, 512, large=True), _PDE8, _PTE8),
    8,
    _PG,
    x86.CR4_PAE,
    _LONG,
)
LONG5 = Mode(
    "5level",
    (Level("pml5e", 48, 512, large=False), *LONG.levels),
    8,
    _PG,
    x86.CR4_PAE | x86.CR4_LA57,
    _LONG,
)
MODES = (UNPAGED, BITS32, PSE, PAE, LONG, LONG5)


@dataclass(frozen=True)
class Case:
    """Page tables, control state and accesses, made in this order on one memory, each on an empty TLB.

    Attributes:
        mode: name of the paging mode.
        control: registers and privilege, the same for all accesses.
        entries: table entries, gpa -> value; a frame that holds one holds zeros (not present) otherwise.
        accesses: the accesses.
        memory_size: bytes of physical memory from 0; entries may point beyond it, see `Outcome.outside`.
    """

    mode: str
    control: Control
    entries: dict[int, int]
    accesses: tuple[Access, ...]
    memory_size: int = MEMORY_SIZE

    @property
    def entry_size(self) -> int:
        return 8 if self.control.cr4 & x86.CR4_PAE else 4

    def frames(self) -> dict[int, bytes]:
        """The frames that hold tables, by gfn; all other memory is `data_image`."""
        frames = {gpa // PAGE: bytearray(PAGE) for gpa in self.entries}
        for gpa, value in self.entries.items():
            frames[gpa // PAGE][gpa % PAGE : gpa % PAGE + self.entry_size] = value.to_bytes(self.entry_size, "little")
        return {gfn: bytes(frame) for gfn, frame in frames.items()}

    def memory(self) -> Memory:
        """A fresh physical memory for the model."""
        return Memory(data_image(self.memory_size), self.frames())

    def image(self) -> bytearray:
        """The whole physical memory at the start, a fresh copy."""
        image = bytearray(data_image(self.memory_size))
        for gfn, frame in self.frames().items():
            image[gfn * PAGE : (gfn + 1) * PAGE] = frame
        return image

    def __repr__(self) -> str:
        entries = ", ".join(f"{gpa:#x}: {value:#x}" for gpa, value in self.entries.items())
        size = "" if self.memory_size == MEMORY_SIZE else f", memory_size={self.memory_size:#x}"
        return f"Case({self.mode!r}, {self.control!r}, {{{entries}}}, {self.accesses!r}{size})"


@functools.cache
def data_image(size: int) -> bytes:
    """Memory without tables: 32-bit words below 4 MiB, all different in each 4 MiB."""
    gpas = np.arange(0, size, 4, dtype=np.uint64)
    return (gpas // 4 * np.uint64(0x2545F5) % np.uint64(MEMORY_SIZE)).astype("<u4").tobytes()


# Drawing. Hypothesis is slow at making strategies, not at drawing from them, so plain integers are all that is drawn.

_below = functools.cache(lambda n: st.integers(0, n - 1))


def _pick(draw: st.DrawFn, options: Sequence[T]) -> T:
    return options[draw(_below(len(options)))]


def _rarely(draw: st.DrawFn, one_in: int) -> bool:
    return draw(_below(one_in)) == one_in - 1


# Entries

_ORDINARY = x86.PRESENT | x86.WRITABLE | x86.USER
_WEIGHTS = {  # flags flipped in an ordinary entry
    0: 14,
    x86.ACCESSED: 3,
    x86.ACCESSED | x86.DIRTY: 3,
    x86.WRITABLE: 3,
    x86.USER: 3,
    x86.WRITABLE | x86.USER: 2,
    x86.EXECUTE_DISABLE: 2,
    x86.PRESENT: 1,
    1 << 3 | 1 << 4 | 1 << 8 | 7 << 9: 1,  # PWT, PCD, G and the bits left to software
}
_DEVIATIONS = tuple(flags for flags, weight in _WEIGHTS.items() for _ in range(weight))
_KEYS = (0, 1, 2, 5, 8, 15)  # protection keys in use
_EDGE_BITS = (7, 12, 13, 20, 21, 29, 30, 32, 39, 40, 47, 51, 52, 58, 62, 63)  # where fields and reserved bits begin
_CHOICES = ("table",) * 9 + ("large",) * 3 + ("shared",) * 3 + ("data",)


def _entry(draw: st.DrawFn, base: int) -> int:
    """An entry for a frame at gpa `base`: seldom a bit at the edge of a field flipped, more seldom all at random."""
    value = (base | _ORDINARY) ^ _pick(draw, _DEVIATIONS)
    if _rarely(draw, 24):
        value ^= 1 << _pick(draw, _EDGE_BITS)
        if _rarely(draw, 4):
            value ^= draw(_below(2**64))
    return value


def _slots(draw: st.DrawFn, slots: int) -> range:
    """A short run of slots, most often at an edge."""
    edges = (0, 0, 1, slots // 2 - 1, slots // 2, slots - 2, slots - 1)
    edge = draw(_below(len(edges) + 2))
    first = edges[edge] if edge < len(edges) else draw(_below(slots))
    return range(first, min(slots, first + 1 + draw(_below(3))))


def _tables(draw: st.DrawFn, mode: Mode, root: int) -> dict[int, int]:
    """Tables below `root` (the gpa of the root table): entries by gpa."""
    free = [gfn * PAGE for gfn in TABLE_GFNS if gfn != root // PAGE]
    used = [root & -PAGE]
    entries: dict[int, int] = {}
    tables = [(root, 0)]  # tables to fill, and the index of their level
    for table, depth in tables:
        level = mode.levels[depth]
        leaf = depth == len(mode.levels) - 1
        for slot in _slots(draw, level.slots):
            choice = _pick(draw, _CHOICES)
            flags = 0
            if choice == "large" and level.large:
                flags = x86.PAGE_SIZE
                base = _pick(draw, (0, 0, 1)) * (1 << level.shift) % MEMORY_SIZE
            elif choice == "shared" or (choice == "table" and not leaf and not free):
                base = _pick(draw, used)
            elif choice != "data" and not leaf:
                base = free.pop(0) if free else used[-1]
                used.append(base)
                tables.append((base, depth + 1))
                if choice == "large":  # where PS is reserved or ignored
                    flags = x86.PAGE_SIZE
            else:
                base = _pick(draw, DATA_GFNS) * PAGE
            value = _entry(draw, base) ^ flags
            if mode.long and _rarely(draw, 3):
                value |= _pick(draw, _KEYS) << 59
            if mode is PAE and depth == 0 and not _rarely(draw, 8):
                value &= ~(x86.EXECUTE_DISABLE | x86.WRITABLE | x86.USER)  # a PDPTE has no rights
            entries.setdefault(table + slot * mode.entry_size, value % 2 ** (8 * mode.entry_size))
    return entries


def _control(draw: st.DrawFn, mode: Mode, cr3: int) -> Control:
    """Control state for a mode: every bit that permissions depend on, at random."""
    bits = draw(_below(2**5))
    cr0 = mode.cr0 | (x86.CR0_WP if bits & 1 else 0)
    cr4 = mode.cr4 | (x86.CR4_SMEP if bits & 2 else 0) | (x86.CR4_SMAP if bits & 4 else 0)
    if bits & 8 and mode.cr4 & x86.CR4_PAE:
        cr4 |= x86.CR4_PSE  # ignored there
    nxe = _pick(draw, (x86.EFER_NXE, x86.EFER_NXE, 0))
    pkru = pkrs = 0
    if mode.long and _rarely(draw, 3):
        cr4 |= _pick(draw, (x86.CR4_PKE, x86.CR4_PKS, x86.CR4_PKE | x86.CR4_PKS))
    if mode.long and _rarely(draw, 2):  # the registers mean nothing without those bits
        pkru, pkrs = (_pick(draw, (draw(_below(2**32)), 0x5555_5554, 0xC, 0x8, 0x2, 1 << 31)) for _ in range(2))
    cpl, ac = _pick(draw, (0, 0, 0, 3, 3, 3, 1, 2)), bool(bits & 16)
    return Control(cr0, cr3, cr4, mode.efer | nxe, cpl, ac, pkru, pkrs)


# Accesses


def _page(draw: st.DrawFn, mode: Mode, root: int, entries: dict[int, int]) -> int:
    """The first gva of a smallest page, most often one that the entries map."""
    if not mode.paging:
        return _pick(draw, (*DATA_GFNS, *TABLE_GFNS, draw(_below(2**20)))) * PAGE
    gva = 0
    table: int | None = root
    for level in mode.levels:
        filled: list[int] = []
        if table is not None:
            end = table + level.slots * mode.entry_size
            filled = [(gpa - table) // mode.entry_size for gpa in entries if table <= gpa < end]
        if table is not None and filled and not _rarely(draw, 32):
            slot = _pick(draw, filled)
            value = entries[table + slot * mode.entry_size]
            table = value & 0x000F_FFFF_FFFF_F000
            if value & x86.PAGE_SIZE and level.large:
                table = None  # a large page: the lower indices only choose a place in it
        else:
            slot = _pick(draw, (0, 1, level.slots - 1, draw(_below(level.slots))))
            if level.shift == 21 and not _rarely(draw, 4):
                slot &= 1  # memory ends in the second 2 MiB
            table = None
        gva |= slot << level.shift
    return gva if _rarely(draw, 16) else mode.canonical(gva)


_KINDS = tuple(Kind)


def _access(draw: st.DrawFn, mode: Mode, root: int, entries: dict[int, int]) -> Access:
    """One access of any kind: sizes 1, 2, 4 and 8, fetches also the others, implicit ones reads of 8 bytes."""
    page = _page(draw, mode, root, entries)
    kind = _pick(draw, _KINDS)
    implicit = kind is Kind.READ and _rarely(draw, 4)
    size = 8 if implicit else 1 + draw(_below(8)) if kind is Kind.FETCH else _pick(draw, (1, 2, 4, 8))
    if size > 1 and _rarely(draw, 4):
        offset = PAGE - 1 - draw(_below(size - 1))  # over the end of the page
    else:
        offset = min(_pick(draw, (0, 1, 7, 8, 0x7FF, 0xFF8, 0xFFC, 0xFFF, draw(_below(PAGE)))), PAGE - size)
    gva = page + offset
    if not mode.long:
        gva = min(gva, 2**32 - size)
    value = draw(_below(2 ** (8 * size))) if kind is Kind.WRITE else 0
    return Access(kind, gva, size, implicit, value)


@st.composite
def cases(draw: st.DrawFn, modes: tuple[Mode, ...] = MODES, max_accesses: int = 6) -> Case:
    """A random case of one of the modes, with 1 to `max_accesses` accesses."""
    mode = _pick(draw, (*modes, *(mode for mode in modes if mode.paging)))
    root = _pick(draw, TABLE_GFNS) * PAGE
    if mode is PAE:
        root |= _pick(draw, (0, 0, 0x20, 0xFE0))  # four entries, aligned to 32 bytes
    cr3 = root
    if mode.paging and _rarely(draw, 4):
        cr3 |= draw(_below(0x20 if mode is PAE else 0x1000))  # cache control and ignored bits
    control = _control(draw, mode, cr3)
    entries = _tables(draw, mode, root) if mode.paging else {}
    made = tuple(_access(draw, mode, root, entries) for _ in range(1 + draw(_below(max_accesses))))
    return Case(mode.name, control, entries, made)
