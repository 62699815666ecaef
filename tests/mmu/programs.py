"""Random programs of guest operations on page tables, made together with what each operation must come to.

A program starts from random tables and goes on with loads, stores, read-modify-writes and fetches, many of them stores
into the tables themselves; INVLPG, MOV CR3 to one of several roots, changes of CR0, CR4 and EFER, paging off and on,
and changes between the paging modes of 32-bit code. The model of the manual decides what an operation does and keeps
the memory as it should be, so that later operations can be chosen with the tables in view.

Programs keep the architecture's rules: whenever a translation that a TLB may hold no longer is what the tables say, or
grants more, or claims an accessed or dirty flag that is clear now, the next operation gets rid of it. So what a TLB
holds at any moment must not matter.

Memory (all in the lowest 4 MiB)
    gfn 1 to 8      tables that change; 1, 2 and 3 are roots, entry 0 of each is fixed
    gfn 0xB, 0xC    code for the supervisor, code for the user: fixed
    gfn 0x10 ..     the tables below entry 0 of the roots: fixed
    other gfns      data
The fixed tables map, in every root, gpas below 256 KiB at their own address for the supervisor, except that user code
is readable for the user, and the same once more for everybody at ALIAS.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import astuple, dataclass, field, replace

from hypothesis import strategies as st

from tests.mmu.harness import CODE_GFNS
from tests.oracles import paging_model as x86
from tests.oracles.paging_cases import BITS32, LONG, MEMORY_SIZE, PAE, PSE, Mode, _entry, _pick, _rarely, data_image
from tests.oracles.paging_model import PAGE, Access, Control, Kind, Memory, Outcome, Rules, Translation

RULES = Rules(pdpte_low_reserved=False, giga_accessed_early=False, implicit_obeys_ac=True)

ROOTS = (0x1000, 0x2000, 0x3000)
TABLES = tuple(gfn * PAGE for gfn in range(1, 9))
DATA = tuple(gfn * PAGE for gfn in (0, 9, 10, 0x20, 0x3F, 0x200, 0x3FF))
SUPERVISOR_CODE, USER_CODE = CODE_GFNS[0] * PAGE, CODE_GFNS[1] * PAGE
FIXED_TABLES = 0x10000  # and five pages more
ALIAS = 0x100000
WINDOW = 0x40000  # bytes that the fixed tables map
CR4_PGE = 1 << 7
GLOBAL = 1 << 8

_PRESET = x86.PRESENT | x86.WRITABLE | x86.USER | x86.ACCESSED | x86.DIRTY
_OUT_OF_BOUNDS = {*CODE_GFNS, *(FIXED_TABLES // PAGE + i for i in range(6))}

_below = functools.cache(lambda n: st.integers(0, n - 1))


@dataclass(frozen=True)
class Step:
    """One operation and what must come of it.

    Attributes:
        name: "read", "write", "fetch", "add", "xadd", "invlpg", "cr0", "cr3", "cr4", "efer", "mode", or "disturb".
        control: the registers before the operation, its privilege level and EFLAGS.AC.
        access: of a memory operation; of "invlpg" the address.
        after: the control registers after it.
        outcome: of the memory operation.
        disturbance: (action, gfn) of "disturb", see `EmuMmu.disturb`.
    """

    name: str
    control: Control
    after: Control
    access: Access | None = None
    outcome: Outcome = Outcome()
    disturbance: tuple[str, int] = ("", 0)

    def __repr__(self) -> str:
        what = self.disturbance if self.name == "disturb" else self.access or self.after
        return f"{self.name} {what} cpl={self.control.cpl} ac={self.control.ac}"


@dataclass(frozen=True)
class Program:
    """Memory at the start, as frames over `data_image(MEMORY_SIZE)`, and at the end; the steps between."""

    mode: str
    control: Control
    frames: dict[int, bytes]
    steps: list[Step]
    memory: Memory

    def __repr__(self) -> str:
        lines = "\n".join(f"{number:3} {step}" for number, step in enumerate(self.steps))
        words = {
            hex(gfn * PAGE + i): hex(int.from_bytes(frame[i : i + 8], "little"))
            for gfn, frame in self.frames.items()
            if gfn * PAGE in TABLES
            for i in range(0, PAGE, 8)
            if any(frame[i : i + 8])
        }
        return f"Program({self.mode}, {self.control}, {words})\n{lines}"


class WatchedMemory(Memory):
    """A memory that notes whether anything outside it was wanted."""

    outside = False

    def read(self, gpa: int, size: int) -> bytes:
        self.outside |= gpa >= len(self.image)
        return super().read(gpa, size)

    def copy(self) -> WatchedMemory:
        return WatchedMemory(self.image, {gfn: bytes(frame) for gfn, frame in self.frames.items()})


def fixed_frames(mode: Mode) -> dict[int, bytes]:
    """The tables below entry 0 of every root, and what the roots of a mode hold there."""
    frames: dict[int, bytearray] = {}

    def put(gpa: int, value: int, size: int) -> None:
        frame = frames.setdefault(gpa // PAGE, bytearray(PAGE))
        frame[gpa % PAGE : gpa % PAGE + size] = value.to_bytes(size, "little")

    def fill(table: int, size: int) -> None:
        for gpa in range(0, WINDOW, PAGE):
            user = x86.USER if gpa == USER_CODE else 0
            put(table + gpa // PAGE * size, gpa | _PRESET & ~x86.USER | user, size)
            put(table + (ALIAS + gpa) // PAGE * size, gpa | _PRESET, size)

    fill(FIXED_TABLES, 4)  # 32-bit
    fill(FIXED_TABLES + PAGE, 8)
    put(FIXED_TABLES + 2 * PAGE, FIXED_TABLES + PAGE | _PRESET, 8)  # page directory
    put(FIXED_TABLES + 3 * PAGE, FIXED_TABLES + 2 * PAGE | _PRESET, 8)  # PDPT of 4-level paging
    for root in ROOTS:
        put(root, *fixed_entry(mode))
    return {gfn: bytes(frame) for gfn, frame in frames.items()}


def fixed_entry(mode: Mode) -> tuple[int, int]:
    """Entry 0 of every root: its value and size."""
    if mode is LONG:
        return FIXED_TABLES + 3 * PAGE | _PRESET, 8
    if mode is PAE:
        return FIXED_TABLES + 2 * PAGE | x86.PRESENT, 8
    return FIXED_TABLES | _PRESET, 4


@dataclass
class Cached:
    """What a TLB may hold of one page: a translation, and whether it was used to write."""

    translation: Translation
    dirty: bool
    is_global: bool


@dataclass
class Maker:
    """A program in the making."""

    draw: st.DrawFn
    mode: Mode
    control: Control
    memory: WatchedMemory
    steps: list[Step] = field(default_factory=list)
    cached: dict[int, Cached] = field(default_factory=dict)  # by the page's gva

    def pick(self, *options):  # type: ignore[no-untyped-def]
        return _pick(self.draw, options)

    # Addresses and entries

    def slots(self, depth: int) -> list[int]:
        last = self.mode.levels[depth].slots - 1
        return [0, 1, 2, last - 1, last] if depth else sorted({1, 2, min(3, last), last})

    def some_entry(self, depth: int) -> int:
        """An entry for a table at a depth: mostly fit for it."""
        leaf = depth == len(self.mode.levels) - 1
        choice = self.pick("table", "table", "table", "data", "large")
        if choice == "large" and self.mode.levels[depth].large:
            base = x86.PAGE_SIZE | self.pick(0, 0, 1) * (1 << self.mode.levels[depth].shift) % MEMORY_SIZE
        elif choice == "data" or leaf and not _rarely(self.draw, 3):
            base = self.pick(*DATA)
        else:
            base = self.pick(*TABLES)
        value = _entry(self.draw, base) | self.pick(0, 0, GLOBAL)
        if self.mode is PAE and depth == 0 and not _rarely(self.draw, 8):
            value &= ~(x86.EXECUTE_DISABLE | x86.WRITABLE | x86.USER)
        return value % 2 ** (8 * self.mode.entry_size)

    def initial_entries(self) -> None:
        size = self.mode.entry_size
        for table in TABLES:
            for depth in range(len(self.mode.levels)):
                if (depth == 0) == (table in ROOTS):
                    for _ in range(1 + self.draw(_below(2))):
                        entry = self.some_entry(depth)
                        slot = self.pick(*self.slots(depth))
                        if slot or depth:
                            self.memory.write(table + slot * size, entry.to_bytes(size, "little"))

    def some_gva(self) -> int:
        """The first address of some page, most often one that the tables map."""
        if not self.control.cr0 & x86.CR0_PG:
            return self.pick(*TABLES, *DATA)
        kind = self.draw(_below(8))
        if kind == 0:
            return self.pick(*TABLES, *DATA[:5]) + self.pick(0, ALIAS)
        gva, table = 0, self.control.cr3 & -PAGE
        for depth, level in enumerate(self.mode.levels):
            slots = self.slots(depth)
            size = self.mode.entry_size
            filled = [slot for slot in slots if self.memory.read(table + slot * size, 1)[0] & x86.PRESENT]
            slot = self.pick(*(filled or slots))
            entry = int.from_bytes(self.memory.read(table + slot * size, size), "little")
            gva |= slot << level.shift
            if entry & x86.PAGE_SIZE and level.large:
                gva |= self.pick(0, 1, 8, 0x3F) * PAGE
                break
            table = entry & 0x000F_FFFF_FFFF_F000 if entry & 0x000F_FFFF_FFFF_F000 < MEMORY_SIZE else 0
        if self.mode is LONG and gva >> 47:
            gva |= 0xFFFF << 48
        return gva

    def gva_of(self, gpa: int) -> int:
        """Some address that leads to gpa, which is below WINDOW."""
        if not self.control.cr0 & x86.CR0_PG:
            return gpa
        known = [page for page, cached in self.cached.items() if cached.translation.gpa & -PAGE == gpa & -PAGE]
        return self.pick(0, ALIAS, *known) + gpa % PAGE if known else self.pick(gpa, ALIAS + gpa)

    # Operations

    def access(self) -> None:
        name = self.pick("read", "read", "write", "write", "fetch", "add", "xadd")
        size = self.pick(1, 2, 4, 4, 8) if name in ("read", "write") else 4
        offset = self.pick(0, 8, 0x7FC, 0xFF8, 0xFFD, self.draw(_below(PAGE)))
        gva = self.some_gva() + offset
        self.memory_operation(name, gva, size, self.draw(_below(2 ** (8 * size))))

    def table_store(self) -> None:
        """Change an entry, wholly or in part."""
        depth = self.draw(_below(len(self.mode.levels)))
        table = self.pick(*(ROOTS if depth == 0 else TABLES))
        entry_size = self.mode.entry_size
        gpa = table + self.pick(*self.slots(depth)) * entry_size
        before = int.from_bytes(self.memory.read(gpa, entry_size), "little")
        after = self.some_entry(depth) if self.draw(_below(2)) else before ^ 1 << self.pick(0, 0, 1, 2, 5, 6, 7, 8, 12)
        after %= 2 ** (8 * entry_size)
        part = self.pick("whole", "whole", "byte", "word", "half", "unaligned", "high")
        size = {"whole": entry_size, "byte": 1, "word": 2, "half": 4, "unaligned": 4, "high": 1}[part]
        skip = {"unaligned": 1, "high": entry_size - 1}.get(part, 0)
        if part == "unaligned" and entry_size == 4:
            size = 2
        value = after >> 8 * skip & (1 << 8 * size) - 1
        self.memory_operation("write", self.gva_of(gpa) + skip, size, value)

    def memory_operation(self, name: str, gva: int, size: int, value: int) -> None:
        if not self.control.long_mode:
            gva = min(gva % 2**32, 2**32 - size)
        control = replace(self.control, cpl=self.pick(0, 0, 3), ac=bool(self.draw(_below(2))))
        if name == "fetch":
            access = Access(Kind.FETCH, gva, size)
        elif name == "read":
            access = Access(Kind.READ, gva, size)
        else:
            access = Access(Kind.WRITE, gva, size, value=value)
        memory, qemu_memory = self.memory.copy(), self.memory.copy()
        outcome = perform(memory, control, name, access, RULES)
        if memory.outside or outcome != perform(qemu_memory, control, name, access, x86.QEMU):
            return  # the oracles would not agree
        if any(gpa // PAGE in _OUT_OF_BOUNDS or gpa in ROOTS for gpa, _ in outcome.changed):
            return
        self.memory = memory
        self.steps.append(Step(name, control, self.control, access, outcome))
        self.note_cached(access, outcome)
        self.keep_the_rules()

    def control_operation(self) -> None:
        control = self.control
        name = self.pick("cr3", "cr3", "wp", "pse", "pge", "smep", "smap", "nxe", "pg", "mode", "mode")
        if name == "cr3":
            self.move("cr3", replace(control, cr3=self.pick(*ROOTS)))
        elif name == "wp":
            self.move("cr0", replace(control, cr0=control.cr0 ^ x86.CR0_WP))
        elif name in ("pse", "pge", "smep", "smap"):
            bit = {"pse": x86.CR4_PSE, "pge": CR4_PGE, "smep": x86.CR4_SMEP, "smap": x86.CR4_SMAP}[name]
            self.move("cr4", replace(control, cr4=control.cr4 ^ bit))
            if self.mode in (BITS32, PSE):
                self.mode = PSE if self.control.cr4 & x86.CR4_PSE else BITS32
        elif name == "nxe":
            self.move("efer", replace(control, efer=control.efer ^ x86.EFER_NXE))
            self.flush_all()
        elif control.long_mode:
            return
        elif name == "pg":
            self.move("cr0", replace(control, cr0=control.cr0 ^ x86.CR0_PG))
        else:
            self.change_mode()

    def change_mode(self) -> None:
        """Between 4-byte and 8-byte entries: paging off, other tables for the fixed part, CR4, CR3, paging on."""
        if self.control.cr0 & x86.CR0_PG:
            self.move("cr0", replace(self.control, cr0=self.control.cr0 & ~x86.CR0_PG))
        cr4 = self.control.cr4 ^ x86.CR4_PAE
        self.mode = PAE if cr4 & x86.CR4_PAE else PSE if cr4 & x86.CR4_PSE else BITS32
        value, size = fixed_entry(self.mode)
        for root in ROOTS:
            control = replace(self.control, cpl=0, ac=False)
            access = Access(Kind.WRITE, root, 8, value=value)
            outcome = perform(self.memory, control, "write", access, RULES)
            self.steps.append(Step("write", control, control, access, outcome))
        assert size in (4, 8)
        root = self.pick(*ROOTS)
        cr0 = self.control.cr0 | x86.CR0_PG
        self.move("mode", replace(self.control, cr0=cr0, cr3=root, cr4=cr4))

    def move(self, name: str, after: Control) -> None:
        """An operation on a control register."""
        before = replace(self.control, cpl=0, ac=False)
        self.steps.append(Step(name, before, after))
        changed = before.cr0 ^ after.cr0 | before.cr4 ^ after.cr4
        self.control = after
        if changed & (x86.CR0_PG | x86.CR4_PAE | CR4_PGE):
            self.cached.clear()
        elif name == "cr3":
            self.cached = {page: cached for page, cached in self.cached.items() if cached.is_global}
        elif name in ("cr0", "cr4"):  # rights are looked up anew, translations need not be
            self.cached.clear()
        self.keep_the_rules()

    def disturb(self) -> None:
        action = self.pick("evict", "evict", "remap", "remap", "", "r", "rx", "rw", "w", "x")
        gfn = self.pick(*TABLES, *TABLES, *DATA, SUPERVISOR_CODE, USER_CODE) // PAGE
        self.steps.append(Step("disturb", self.control, self.control, disturbance=(action, gfn)))

    # What a TLB may hold

    def note_cached(self, access: Access, outcome: Outcome) -> None:
        if not self.control.cr0 & x86.CR0_PG:
            return
        for gva, _ in access.parts():
            found = self.look(gva)
            if found is None:
                break
            page = gva & -PAGE
            dirty = access.kind is Kind.WRITE and outcome.fault is None
            dirty |= page in self.cached and self.cached[page].dirty
            self.cached[page] = Cached(found, dirty, bool(self.control.cr4 & CR4_PGE))

    def look(self, gva: int, kind: Kind = Kind.READ) -> Translation | None:
        """What the tables say now, rights aside: None unless they map the page and its accessed flags are set."""
        control = replace(self.control, cpl=0, cr0=self.control.cr0 & ~x86.CR0_WP, cr4=self.control.cr4 & ~x86.CR4_SMAP)
        found = x86.translate(self.memory, control, kind, gva & -PAGE, rules=RULES)
        return found if isinstance(found, Translation) and not found.updates else None

    def stale(self) -> Iterator[tuple[int, Cached]]:
        for page, cached in self.cached.items():
            old, new = cached.translation, self.look(page)
            if new is None or (new.gpa, new.page_size) != (old.gpa, old.page_size):
                yield page, cached
            elif any(was and not now for was, now in zip(astuple(old.rights), astuple(new.rights), strict=True)):
                yield page, cached
            elif cached.dirty and self.look(page, Kind.WRITE) is None:
                yield page, cached

    def keep_the_rules(self) -> None:
        """Get rid of what a TLB may hold and must not any more."""
        if not self.control.cr0 & x86.CR0_PG:
            return
        stale = list(self.stale())
        if not stale:
            return
        if not any(cached.is_global for _, cached in stale) and not self.draw(_below(3)):
            self.move("cr3", self.control)
            return
        for page, cached in stale:
            size = cached.translation.page_size
            gva = (page & -size) + self.pick(0, size - 1, page % size, size // 2)
            before = replace(self.control, cpl=0, ac=False)
            self.steps.append(Step("invlpg", before, self.control, Access(Kind.READ, gva)))
            del self.cached[page]

    def flush_all(self) -> None:
        if self.control.cr0 & x86.CR0_PG:
            self.move("cr4", replace(self.control, cr4=self.control.cr4 ^ CR4_PGE))


def perform(memory: Memory, control: Control, name: str, access: Access, rules: Rules) -> Outcome:
    """`paging_model.perform`, also for "add" and "xadd": a read, then a write of the sum."""
    if name not in ("add", "xadd"):
        return x86.perform(memory, control, access, rules=rules)
    load = x86.perform(memory, control, Access(Kind.READ, access.gva, access.size), rules=rules)
    if load.fault or load.outside:
        return load
    assert load.value is not None
    total = (load.value + access.value) % 2 ** (8 * access.size)
    store = x86.perform(memory, control, replace(access, value=total), rules=rules)
    changed = tuple(sorted({**dict(load.changed), **dict(store.changed)}.items()))
    value = load.value if name == "xadd" and store.fault is None else None
    return replace(store, value=value, changed=changed)


@st.composite
def programs(draw: st.DrawFn, length: int = 40) -> Program:
    """A random program of about `length` operations, without the rules' flushes."""
    mode = _pick(draw, (BITS32, PSE, PAE, PAE, LONG, LONG))
    frames = fixed_frames(mode)
    efer = mode.efer | _pick(draw, (x86.EFER_NXE, x86.EFER_NXE, 0))
    cr4 = mode.cr4 | _pick(draw, (0, CR4_PGE))
    control = Control(mode.cr0 | _pick(draw, (0, x86.CR0_WP)), ROOTS[0], cr4, efer, 0)
    for gpa in TABLES:
        frames.setdefault(gpa // PAGE, bytes(PAGE))
    maker = Maker(draw, mode, control, WatchedMemory(data_image(MEMORY_SIZE), frames))
    maker.initial_entries()
    initial = {gfn: bytes(frame) for gfn, frame in maker.memory.frames.items()}
    for _ in range(length):
        kind = draw(_below(16))
        if kind < 8:
            maker.access()
        elif kind < 12:
            maker.table_store()
        elif kind < 14:
            maker.control_operation()
        else:
            maker.disturb()
    return Program(mode.name, control, initial, maker.steps, maker.memory)
