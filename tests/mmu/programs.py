"""Random programs of guest operations on page tables, made together with what each operation must come to.

A program starts from random tables and goes on with loads, stores, read-modify-writes and fetches, many of them
stores into the tables themselves; INVLPG, MOV CR3 to one of several roots, changes of CR0, CR4 and EFER, paging off
and on, and changes between the paging modes of 32-bit code. In some programs pages have protection keys, whose rights
change. The model of the manual decides what an operation does and keeps the memory as it should be, so that later
operations can be chosen with the tables in view.

Programs keep the architecture's rules: whenever a translation that a TLB may hold no longer is what the tables say, or
grants more, or claims an accessed or dirty flag that is clear now, the next operation gets rid of it. So what a TLB
holds at any moment must not matter. With two processors that is so for the TLB of each: a shootdown.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import astuple, dataclass, field, replace

from hypothesis import strategies as st

from tests.mmu.world import (
    ALIAS,
    CR4_PGE,
    DATA,
    GLOBAL,
    OUT_OF_BOUNDS,
    ROOTS,
    RULES,
    SUPERVISOR_CODE,
    TABLES,
    USER_CODE,
    Program,
    Step,
    WatchedMemory,
    fixed_entry,
    fixed_frames,
    perform,
)
from tests.oracles import paging_model as x86
from tests.oracles.paging_cases import (
    BITS32,
    LONG,
    LONG5,
    MEMORY_SIZE,
    PAE,
    PSE,
    Mode,
    _entry,
    _pick,
    _rarely,
    data_image,
)
from tests.oracles.paging_model import PAGE, Access, Control, Kind, Outcome, Translation

_below = functools.cache(lambda n: st.integers(0, n - 1))
KEY_NAMES = ("pkru", "pkrs")


@dataclass
class Cached:
    """What a TLB may hold of one page: a translation, and whether it was used to write."""

    translation: Translation
    dirty: bool
    is_global: bool


@dataclass
class Running:
    """What a processor of a program is like at the moment."""

    mode: Mode
    control: Control
    cached: dict[int, Cached] = field(default_factory=dict)  # by the page's gva


@dataclass
class Maker:
    """A program in the making; `cpu` is the processor whose operation is being made."""

    draw: st.DrawFn
    processors: list[Running]
    memory: WatchedMemory
    cpu: int = 0
    steps: list[Step] = field(default_factory=list)
    keys: bool = False  # pages have protection keys, of which the engine's own MMU knows less

    @property
    def mode(self) -> Mode:
        return self.processors[self.cpu].mode

    @property
    def control(self) -> Control:
        return self.processors[self.cpu].control

    @property
    def cached(self) -> dict[int, Cached]:
        return self.processors[self.cpu].cached

    def add(self, step: Step) -> None:
        self.steps.append(replace(step, cpu=self.cpu))

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
        if self.keys:
            value |= self.pick(0, 0, 1, 2, 15) << 59
        if self.mode is PAE and depth == 0 and not (self.steps and _rarely(self.draw, 8)):
            value &= 0xFF_FFFF_F000 | x86.PRESENT  # at first none that could not be loaded
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
        return self.mode.canonical(gva)

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
        if memory.outside or outcome.outside:
            return
        if not self.keys and outcome != perform(qemu_memory, control, name, access, x86.QEMU):
            return  # the oracles would not agree
        if any(gpa // PAGE in OUT_OF_BOUNDS or gpa in ROOTS for gpa, _ in outcome.changed):
            return
        self.add(Step(name, control, self.control, access, outcome))
        self.note_cached(access, outcome)
        self.memory = memory
        self.keep_the_rules()

    def control_operation(self) -> None:
        control = self.control
        name = self.pick("cr3", "cr3", "wp", "pse", "pge", "smep", "smap", "nxe", "pg", "mode", "mode", *KEY_NAMES)
        if name in KEY_NAMES:
            if self.keys:
                rights = self.pick(0, 0, 0b01_00, 0b10_00, 0b10_01_00, 0x5555_5554, 0xC000_0000, 0x8000_0000, 2)
                self.move(name, replace(control, **{name: rights}))
        elif name == "cr3":
            self.move("cr3", replace(control, cr3=self.pick(*ROOTS)))
        elif name == "wp":
            self.move("cr0", replace(control, cr0=control.cr0 ^ x86.CR0_WP))
        elif name in ("pse", "pge", "smep", "smap"):
            bit = {"pse": x86.CR4_PSE, "pge": CR4_PGE, "smep": x86.CR4_SMEP, "smap": x86.CR4_SMAP}[name]
            self.move("cr4", replace(control, cr4=control.cr4 ^ bit))
            if self.mode in (BITS32, PSE):
                self.processors[self.cpu].mode = PSE if self.control.cr4 & x86.CR4_PSE else BITS32
        elif name == "nxe":
            if self.loaded(replace(control, cr4=control.cr4 ^ CR4_PGE)) is None:  # for the flush
                return
            self.move("efer", replace(control, efer=control.efer ^ x86.EFER_NXE))
            self.flush_all()
        elif control.long_mode or name == "mode" and len(self.processors) > 1:  # all roots are of one mode
            return
        elif name == "pg":
            self.move("cr0", replace(control, cr0=control.cr0 ^ x86.CR0_PG))
        else:
            self.change_mode()

    def change_mode(self) -> None:
        """Between 4-byte and 8-byte entries: paging off, other tables for the fixed part, CR4, CR3, paging on."""
        if not self.control.cr4 & x86.CR4_PAE and not self.could_load_any_root():
            return
        if self.control.cr0 & x86.CR0_PG:
            self.move("cr0", replace(self.control, cr0=self.control.cr0 & ~x86.CR0_PG))
        cr4 = self.control.cr4 ^ x86.CR4_PAE
        self.processors[self.cpu].mode = PAE if cr4 & x86.CR4_PAE else PSE if cr4 & x86.CR4_PSE else BITS32
        value, size = fixed_entry(self.mode)
        for root in ROOTS:
            control = replace(self.control, cpl=0, ac=False)
            access = Access(Kind.WRITE, root, 8, value=value)
            outcome = perform(self.memory, control, "write", access, RULES)
            self.add(Step("write", control, control, access, outcome))
        assert size in (4, 8)
        root = self.pick(*ROOTS)
        cr0 = self.control.cr0 | x86.CR0_PG
        self.move("mode", replace(self.control, cr0=cr0, cr3=root, cr4=cr4))

    def loaded(self, after: Control) -> Control | None:
        """`after`, to which a control register is to be changed, with the PDPTEs that this loads; None for a #GP."""
        before = self.control
        paging = (before.cr0 ^ after.cr0) & x86.CR0_PG
        bits = x86.CR4_PAE | CR4_PGE | x86.CR4_PSE | x86.CR4_SMEP
        if not after.pae or (after.cr3 == before.cr3 and not paging and after != before):
            if not (before.cr4 ^ after.cr4) & bits or not after.pae:
                return after
        pdptes = x86.load_pdptes(self.memory, after)
        return None if pdptes is None else replace(after, pdptes=pdptes)

    def move(self, name: str, after: Control) -> None:
        """An operation on a control register, unless it would be a #GP, which the engine's own MMU knows nothing of."""
        loaded = self.loaded(after)
        if loaded is None:
            return
        after = loaded
        before = replace(self.control, cpl=0, ac=False)
        self.add(Step(name, before, after))
        changed = before.cr0 ^ after.cr0 | before.cr4 ^ after.cr4
        self.processors[self.cpu].control = after
        if changed & (x86.CR0_PG | x86.CR4_PAE | CR4_PGE):
            self.cached.clear()
        elif name == "cr3":
            for page in [page for page, cached in self.cached.items() if not cached.is_global]:
                del self.cached[page]
        elif name in ("cr0", "cr4"):  # rights are looked up anew, translations need not be
            self.cached.clear()
        self.keep_the_rules()

    def could_load_any_root(self) -> bool:
        """Whether each root, with another entry 0, could be that of PAE paging."""
        memory = self.memory.copy()
        for root in ROOTS:
            memory.write(root, bytes(8))
        pae = replace(self.control, cr0=x86.CR0_PG, cr4=x86.CR4_PAE)
        return all(x86.load_pdptes(memory, replace(pae, cr3=root)) is not None for root in ROOTS)

    def disturb(self) -> None:
        action = self.pick("evict", "evict", "remap", "remap", "", "r", "rx", "rw", "w", "x")
        gfn = self.pick(*TABLES, *TABLES, *DATA, SUPERVISOR_CODE, USER_CODE) // PAGE
        self.add(Step("disturb", self.control, self.control, disturbance=(action, gfn)))

    # What a TLB may hold

    def note_cached(self, access: Access, outcome: Outcome) -> None:
        """An access was made, by the tables that are still in `memory`."""
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
        """What the tables say of a page now, rights aside; None when they do not map it."""
        cr4 = self.control.cr4 & ~(x86.CR4_SMAP | x86.CR4_PKE | x86.CR4_PKS)
        control = replace(self.control, cpl=0, cr0=self.control.cr0 & ~x86.CR0_WP, cr4=cr4)
        found = x86.translate(self.memory, control, kind, gva & -PAGE, rules=RULES)
        return found if isinstance(found, Translation) else None

    def stale(self) -> Iterator[tuple[int, Cached]]:
        for page, cached in self.cached.items():
            old, new = cached.translation, self.look(page, Kind.WRITE if cached.dirty else Kind.READ)
            if new is None or new.updates or (new.gpa, new.page_size, new.key) != (old.gpa, old.page_size, old.key):
                yield page, cached
            elif any(was and not now for was, now in zip(astuple(old.rights), astuple(new.rights), strict=True)):
                yield page, cached

    def keep_the_rules(self) -> None:
        """Get rid of what the TLBs may hold and must not any more."""
        here = self.cpu
        for cpu in range(len(self.processors)):
            self.cpu = cpu
            self.keep_its_rules()
        self.cpu = here

    def keep_its_rules(self) -> None:
        if not self.control.cr0 & x86.CR0_PG:
            return
        stale = list(self.stale())
        if not stale:
            return
        can_load = self.loaded(self.control) is not None
        if can_load and not any(cached.is_global for _, cached in stale) and not self.draw(_below(3)):
            self.move("cr3", self.control)
            return
        for page, cached in stale:
            size = cached.translation.page_size
            gva = (page & -size) + self.pick(0, size - 1, page % size, size // 2)
            before = replace(self.control, cpl=0, ac=False)
            self.add(Step("invlpg", before, self.control, Access(Kind.READ, gva)))
            del self.cached[page]

    def flush_all(self) -> None:
        if self.control.cr0 & x86.CR0_PG:
            self.move("cr4", replace(self.control, cr4=self.control.cr4 ^ CR4_PGE))


@st.composite
def programs(draw: st.DrawFn, length: int = 40, cpus: int = 1) -> Program:
    """A random program of about `length` operations, without the rules' flushes, for so many processors."""
    mode = _pick(draw, (BITS32, PSE, PAE, PAE, LONG, LONG5))
    frames = fixed_frames(mode)
    efer = mode.efer | _pick(draw, (x86.EFER_NXE, x86.EFER_NXE, 0))
    cr4 = mode.cr4 | _pick(draw, (0, CR4_PGE))
    keys = cpus > 1 and mode.long and bool(draw(_below(2)))
    if keys:
        cr4 |= x86.CR4_PKE | x86.CR4_PKS
    control = Control(mode.cr0 | _pick(draw, (0, x86.CR0_WP)), ROOTS[0], cr4, efer, 0)
    for gpa in TABLES:
        frames.setdefault(gpa // PAGE, bytes(PAGE))
    processors = [Running(mode, replace(control, cr3=ROOTS[cpu])) for cpu in range(cpus)]
    maker = Maker(draw, processors, WatchedMemory(data_image(MEMORY_SIZE), frames), keys=keys)
    maker.initial_entries()
    if mode is PAE:
        for processor in processors:
            pdptes = x86.load_pdptes(maker.memory, processor.control)
            assert pdptes is not None
            processor.control = replace(processor.control, pdptes=pdptes)
    controls = tuple(processor.control for processor in processors)
    initial = {gfn: bytes(frame) for gfn, frame in maker.memory.frames.items()}
    for _ in range(length):
        kind = draw(_below(16))
        maker.cpu = draw(_below(cpus))
        if kind < 8:
            maker.access()
        elif kind < 12:
            maker.table_store()
        elif kind < 14:
            maker.control_operation()
        else:
            maker.disturb()
    return Program(mode.name, controls, initial, maker.steps, maker.memory)
