"""What the programs of `tests.mmu.programs` work on: their memory, their steps, and the tables that never change.

Memory (all in the lowest 4 MiB)
    gfn 1 to 8      tables that change; 1, 2 and 3 are roots, entry 0 of each is fixed
    gfn 0xB, 0xC    code for the supervisor, code for the user: fixed
    gfn 0x10 ..     the tables below entry 0 of the roots: fixed
    other gfns      data
The fixed tables map, in every root, gpas below 256 KiB at their own address for the supervisor, except that user code
is readable for the user, and the same once more for everybody at ALIAS.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from tests.mmu.harness import CODE_GFNS
from tests.mmu.instructions import CODE
from tests.oracles import paging_model as x86
from tests.oracles.paging_cases import LONG, LONG5, PAE, Mode
from tests.oracles.paging_model import PAGE, Access, Control, Kind, Memory, Outcome, Rules

RULES = Rules(pdpte_registers=True, giga_accessed_early=False, implicit_obeys_ac=True, pks=True)

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
OUT_OF_BOUNDS = {*CODE_GFNS, *(FIXED_TABLES // PAGE + i for i in range(6))}


@dataclass(frozen=True)
class Step:
    """One operation and what must come of it.

    Attributes:
        name: "read", "write", "fetch", "add", "xadd", "invlpg", "cr0", "cr3", "cr4", "efer", "pkru", "pkrs", "mode",
            or "disturb".
        control: the registers before the operation, its privilege level and EFLAGS.AC.
        access: of a memory operation; of "invlpg" the address.
        after: the control registers after it.
        outcome: of the memory operation.
        disturbance: (action, gfn) of "disturb", see `EmuMmu.disturb`.
        cpu: the processor that does it.
    """

    name: str
    control: Control
    after: Control
    access: Access | None = None
    outcome: Outcome = Outcome()
    disturbance: tuple[str, int] = ("", 0)
    cpu: int = 0

    def __repr__(self) -> str:
        what = self.disturbance if self.name == "disturb" else self.access or self.after
        return f"cpu {self.cpu}: {self.name} {what} cpl={self.control.cpl} ac={self.control.ac}"


@dataclass(frozen=True)
class Program:
    """Memory at the start, as frames over `data_image(MEMORY_SIZE)`, and at the end; the steps between.

    `controls` are the registers that each processor begins with.
    """

    mode: str
    controls: tuple[Control, ...]
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
        return f"Program({self.mode}, {self.controls}, {words})\n{lines}"


class WatchedMemory(Memory):
    """A memory that notes whether anything outside it was wanted."""

    outside = False

    def read(self, gpa: int, size: int) -> bytes:
        self.outside |= gpa >= len(self.image)
        return super().read(gpa, size)

    def copy(self) -> WatchedMemory:
        return WatchedMemory(self.image, {gfn: bytes(frame) for gfn, frame in self.frames.items()})


def fixed_frames(mode: Mode) -> dict[int, bytes]:
    """The code, the tables below entry 0 of every root, and what the roots of a mode hold there."""
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
    put(FIXED_TABLES + 4 * PAGE, FIXED_TABLES + 3 * PAGE | _PRESET, 8)  # PML4 of 5-level paging
    for root in ROOTS:
        put(root, *fixed_entry(mode))
    code = {gpa // PAGE: CODE for gpa in (SUPERVISOR_CODE, USER_CODE)}
    return code | {gfn: bytes(frame) for gfn, frame in frames.items()}


def fixed_entry(mode: Mode) -> tuple[int, int]:
    """Entry 0 of every root: its value and size."""
    if mode is LONG:
        return FIXED_TABLES + 3 * PAGE | _PRESET, 8
    if mode is LONG5:
        return FIXED_TABLES + 4 * PAGE | _PRESET, 8
    if mode is PAE:
        return FIXED_TABLES + 2 * PAGE | x86.PRESENT, 8
    return FIXED_TABLES | _PRESET, 4


PAGE_FAULT = 14


def perform(memory: Memory, control: Control, name: str, access: Access, rules: Rules) -> Outcome:
    """`paging_model.perform`, also for "add" and "xadd": a read, then a write of the sum.

    The processor asks for the right to write before it reads, so that every page fault has W/R set (SDM vol. 3A, 4.7).
    """
    if name not in ("add", "xadd"):
        return x86.perform(memory, control, access, rules=rules)
    load = x86.perform(memory, control, Access(Kind.READ, access.gva, access.size), rules=rules)
    if load.fault and load.fault[0] == PAGE_FAULT:
        return replace(load, fault=(PAGE_FAULT, load.fault[1] | x86.ERROR_WR, load.fault[2]))
    if load.fault or load.outside:
        return load
    assert load.value is not None
    total = (load.value + access.value) % 2 ** (8 * access.size)
    store = x86.perform(memory, control, replace(access, value=total), rules=rules)
    changed = tuple(sorted({**dict(load.changed), **dict(store.changed)}.items()))
    value = load.value if name == "xadd" and store.fault is None else None
    return replace(store, value=value, changed=changed)
