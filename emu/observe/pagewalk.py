"""A page walk to look at: how a gva becomes a machine address, level by level, with the bits in words.

Nothing changes by looking: no accessed or dirty bit is set and no page is populated.  This walker is plain Python and
shares no code with :mod:`emu.mmu.walk`, which the guest runs on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from emu.addr import PAGE_MASK, PAGE_SHIFT, PAGE_SIZE
from emu.dmm.p2m import RESIDENT, Intent, PageType
from emu.engine.cpustate import CR0_PG, CR4_LA57, CR4_PAE, CR4_PKE, CR4_PKS, CR4_PSE, EFER_LMA, EFER_NXE
from emu.mmu import pte

if TYPE_CHECKING:
    from emu.machine.vm import VirtualMachine

MODE_NAMES = ("no paging", "32-bit paging", "PAE paging", "4-level paging", "5-level paging")
NO_PAGING, PAGING_32, PAGING_PAE, PAGING_4LEVEL, PAGING_5LEVEL = range(5)

_ENTRY_NAMES = {1: "PTE", 2: "PDE", 3: "PDPTE", 4: "PML4E", 5: "PML5E"}
_ADDRESS_64 = ((1 << 52) - 1) & ~PAGE_MASK
_NX = 1 << 63
_BIT_NAMES = (
    (pte.P, "present"), (pte.W, "writable"), (pte.U, "user"), (1 << 3, "write-through"), (1 << 4, "uncached"),
    (pte.A, "accessed"), (pte.D, "dirty"), (pte.G, "global"), (_NX, "no-execute"),
)  # fmt: skip


@dataclass(frozen=True)
class Step:
    """One entry on the way.

    Attributes:
        name: PML5E, PML4E, PDPTE, PDE or PTE.
        table: gpa of the guest table; for a shadow table its machine address.
        index: of the entry in the table.
        entry: its value; None when the table cannot be read.
        bits: its flags in words.
        verdict: where it leads, or why it leads nowhere.
    """

    name: str
    table: int
    index: int
    entry: int | None
    bits: str
    verdict: str


@dataclass(frozen=True)
class Backing:
    """What the P2M says about a gfn.

    Attributes:
        gfn: guest frame number.
        type: page type.
        mfn: its machine frame; None while it has none.
        rights: what the DMM grants at this moment.
    """

    gfn: int
    type: PageType
    mfn: int | None
    rights: Intent


@dataclass(frozen=True)
class Walk:
    """The walk of one gva.

    Attributes:
        gva: what was looked up.
        mode: paging mode in words.
        cr3: control register 3.
        guest: the steps through the guest's own tables.
        gpa: where they lead; None when they lead nowhere.
        verdict: the guest walk in words.
        shadow: the steps through the shadow tables; None when there are none (nested paging, or no root yet).
        backing: the P2M entry of the gpa; None without a gpa.
    """

    gva: int
    mode: str
    cr3: int
    guest: tuple[Step, ...]
    gpa: int | None
    verdict: str
    shadow: tuple[Step, ...] | None
    backing: Backing | None


def explain(vm: VirtualMachine, gva: int) -> Walk:
    """Walk ``gva`` through the guest's tables, the shadow tables and the P2M as they are now."""
    mode = paging_mode(vm)
    if mode < PAGING_4LEVEL:
        gva &= 0xFFFF_FFFF
    steps, gpa, verdict = _guest_walk(vm, gva, mode)
    shadow = _shadow_walk(vm, gva)
    page = backing(vm, gpa >> PAGE_SHIFT) if gpa is not None else None
    return Walk(gva, MODE_NAMES[mode], vm.cpu.cr3, tuple(steps), gpa, verdict, shadow, page)


def translate(vm: VirtualMachine, gva: int) -> int | None:
    """The gpa that the guest's tables map ``gva`` to, whatever the rights; None when they map it nowhere."""
    mode = paging_mode(vm)
    return _guest_walk(vm, gva if mode >= PAGING_4LEVEL else gva & 0xFFFF_FFFF, mode)[1]


def peek(vm: VirtualMachine, gpa: int, size: int) -> bytes | None:
    """Guest memory within one page; None when the page is not resident.  Without memory it reads as all ones."""
    gfn, offset = gpa >> PAGE_SHIFT, gpa & PAGE_MASK
    if not vm.dmm.is_memory(gfn):
        return b"\xff" * size
    if vm.p2m.type(gfn) not in RESIDENT:
        return None
    return bytes(vm.machine.memory.pages[vm.p2m.mfn(gfn), offset : offset + size])


def peek_virtual(vm: VirtualMachine, gva: int, size: int) -> bytes:
    """What can be read at ``gva``: up to ``size`` bytes, fewer where a page is not mapped or not resident."""
    data = b""
    while len(data) < size:
        at = gva + len(data)
        gpa = translate(vm, at)
        piece = None if gpa is None else peek(vm, gpa, min(size - len(data), PAGE_SIZE - (at & PAGE_MASK)))
        if piece is None:
            break
        data += piece
    return data


def backing(vm: VirtualMachine, gfn: int) -> Backing:
    """What stands behind ``gfn``."""
    if gfn >= len(vm.p2m):
        return Backing(gfn, PageType.HOLE, None, Intent(0))
    kind = vm.p2m.type(gfn)
    return Backing(gfn, kind, vm.p2m.mfn(gfn) if kind in RESIDENT else None, vm.p2m.rights(gfn))


def paging_mode(vm: VirtualMachine) -> int:
    """NO_PAGING, PAGING_32, PAGING_PAE, PAGING_4LEVEL or PAGING_5LEVEL, from the control registers."""
    cpu = vm.cpu
    if not cpu.cr0 & CR0_PG:
        return NO_PAGING
    if cpu.efer & EFER_LMA:
        return PAGING_5LEVEL if cpu.cr4 & CR4_LA57 else PAGING_4LEVEL
    return PAGING_PAE if cpu.cr4 & CR4_PAE else PAGING_32


# --- the guest's tables -----------------------------------------------------------------------------------------


def _guest_walk(vm: VirtualMachine, gva: int, mode: int) -> tuple[list[Step], int | None, str]:
    """The steps, the gpa or None, and the verdict."""
    if mode == NO_PAGING:
        return [], gva, f"no paging: the gpa is {gva:#x}"
    top = 56 if mode == PAGING_5LEVEL else 47
    if mode >= PAGING_4LEVEL and gva >> top not in (0, (1 << 64 - top) - 1):
        return [], None, f"not canonical: bits 63 to {top} differ, so no walk is made"
    cr3 = vm.cpu.cr3
    size, width, address = (4, 10, 0xFFFF_F000) if mode == PAGING_32 else (8, 9, _ADDRESS_64)
    table = cr3 & 0xFFFF_FFE0 if mode == PAGING_PAE else cr3 & address
    steps: list[Step] = []
    writable = user = executable = True
    for level in range(mode + 1, 0, -1):
        name = _ENTRY_NAMES[level]
        shift = PAGE_SHIFT + width * (level - 1)
        index = gva >> shift & ((1 << width) - 1)
        if mode == PAGING_PAE and level == 3:
            data = _pdpte(vm, table, index)
        else:
            data = peek(vm, table + index * size, size)
        if data is None:
            verdict = f"its page, gfn {table >> PAGE_SHIFT:#x}, is not resident"
            steps.append(Step(name, table, index, None, "", verdict))
            return steps, None, f"the table at gpa {table:#x} cannot be looked at: {verdict}"
        entry = int.from_bytes(data, "little")
        large = _maps_large_page(vm, entry, mode, level)
        leaf = large or level == 1
        bits = describe_bits(entry, leaf)
        reserved = _reserved_bits(vm, entry, mode, level, large)
        if not entry & pte.P or reserved:
            verdict = f"reserved bits set: {reserved:#x}" if entry & pte.P else "not present"
            steps.append(Step(name, table, index, entry, bits, verdict))
            return steps, None, f"the walk ends at the {name}: {verdict}"
        if not (mode == PAGING_PAE and level == 3):  # these four entries have no rights
            writable, user = writable and bool(entry & pte.W), user and bool(entry & pte.U)
            executable = executable and not entry & _NX
        if leaf:
            break
        steps.append(Step(name, table, index, entry, bits, f"table at gpa {entry & address:#x}"))
        table = entry & address
    if large and mode == PAGING_32:
        frame = entry & 0xFFC0_0000 | (entry & pte.PDE32_HIGH) << 19
    else:
        frame = entry & address & -(1 << shift)
    steps.append(Step(name, table, index, entry, bits, f"{_page_size(shift)} page at gpa {frame:#x}"))
    gpa = frame | gva & ((1 << shift) - 1)
    rights = f"{'writable' if writable else 'read-only'}, {'user' if user else 'supervisor only'}"
    if mode >= PAGING_4LEVEL and vm.cpu.cr4 & (CR4_PKE | CR4_PKS):
        rights += f", key {(entry & pte.KEY) >> pte.KEY_SHIFT}"
    return steps, gpa, f"gpa {gpa:#x}, {rights}{'' if executable else ', no-execute'}"


def _pdpte(vm: VirtualMachine, table: int, index: int) -> bytes | None:
    """A PDPTE of PAE paging, from the registers; from memory where they have not been loaded yet."""
    native = vm.processor.native
    if native.pdptes_for != vm.cpu.cr3:
        return peek(vm, table + 8 * index, 8)
    registers = (native.pdpte0, native.pdpte1, native.pdpte2, native.pdpte3)
    return int(registers[index]).to_bytes(8, "little", signed=True)


def _maps_large_page(vm: VirtualMachine, entry: int, mode: int, level: int) -> bool:
    if not entry & pte.PS or level in (1, 4, 5):
        return False
    if mode == PAGING_32:
        return bool(vm.cpu.cr4 & CR4_PSE)
    return level == 2 or mode >= PAGING_4LEVEL


def _reserved_bits(vm: VirtualMachine, entry: int, mode: int, level: int, large: bool) -> int:
    """The bits of a present entry that are set and must not be (SDM vol. 3A, 4.3 to 4.5)."""
    if mode == PAGING_32:
        return entry & pte.PDE32_RESERVED if large else 0
    reserved = pte.RESERVED_HIGH
    if mode == PAGING_PAE:
        reserved |= pte.RESERVED_PAE
    if not vm.cpu.efer & EFER_NXE or (mode == PAGING_PAE and level == 3):
        reserved |= _NX
    if level >= 4:
        reserved |= pte.PS
    if large:
        reserved |= (1 << (PAGE_SHIFT + 9 * (level - 1))) - 1 & ~0x1FFF
    return entry & reserved


def _page_size(shift: int) -> str:
    return {12: "4 KiB", 21: "2 MiB", 22: "4 MiB", 30: "1 GiB"}[shift]


def describe_bits(entry: int, leaf: bool) -> str:
    """The flags of an entry in words; dirty and global only mean something where a page is mapped."""
    only_leaf = 0 if leaf else pte.D | pte.G
    return ", ".join(word for bit, word in _BIT_NAMES if entry & bit & ~only_leaf)


# --- the shadow tables ------------------------------------------------------------------------------------------


def _shadow_walk(vm: VirtualMachine, gva: int) -> tuple[Step, ...] | None:
    native = vm.processor.native
    if vm.native.nested or native.root_mfn < 0:
        return None
    steps: list[Step] = []
    mfn = int(native.root_mfn)
    for level in range(int(native.root_level), 0, -1):
        index = gva >> (PAGE_SHIFT + 9 * (level - 1)) & 511
        entry = int.from_bytes(vm.machine.memory.pages[mfn, 8 * index : 8 * index + 8].tobytes(), "little")
        bits = describe_bits(entry & ~pte.TRAP, level == 1)
        if level == 1 and entry & pte.TRAP:
            bits += ", writes trapped"
        table, mfn = mfn << PAGE_SHIFT, (entry & _ADDRESS_64) >> PAGE_SHIFT
        if not entry & pte.P:
            steps.append(Step(_ENTRY_NAMES[level], table, index, entry, bits, "not filled yet"))
            break
        what = "page" if level == 1 else "shadow table"
        steps.append(Step(_ENTRY_NAMES[level], table, index, entry, bits, f"{what} in mfn {mfn:#x}"))
    return tuple(steps)


# --- as text ----------------------------------------------------------------------------------------------------


def render(walk: Walk) -> str:
    """The walk as lines of text, without a line end behind the last one."""
    paging = f"{walk.mode}, CR3 {walk.cr3:#x}" if walk.guest else walk.mode
    lines = [f"page walk of gva {walk.gva:#x} ({paging})"]
    if walk.guest:
        lines.append("  guest tables")
        lines += _table_lines(walk.guest)
    lines.append(f"    => {walk.verdict}")
    if walk.shadow is not None:
        lines.append("  shadow tables")
        lines += _table_lines(walk.shadow)
    if walk.backing is not None:
        lines.append("  P2M")
        lines.append(f"    {describe_backing(walk.backing)}")
    return "\n".join(lines)


def describe_backing(page: Backing) -> str:
    """A P2M entry in words."""
    meaning = {
        PageType.HOLE: "no memory, reads as all ones",
        PageType.MMIO: "MMIO, registers of devices",
        PageType.EMPTY: "EMPTY, never touched: zero-filled on the first touch",
        PageType.IMAGE: "IMAGE, never touched: loaded from the guest's image on the first touch",
        PageType.EVICTED: "EVICTED, a policy keeps its contents",
    }.get(page.type, page.type.name)
    if page.mfn is None:
        return f"gfn {page.gfn:#x}: {meaning}"
    rights = "".join(letter if page.rights & right else "-" for letter, right in zip("rwx", Intent, strict=True))
    return f"gfn {page.gfn:#x}: {meaning}, mfn {page.mfn:#x}, the DMM grants {rights}"


def _table_lines(steps: tuple[Step, ...]) -> list[str]:
    lines = []
    for step in steps:
        entry = "?" if step.entry is None else f"{step.entry:#x}"
        where = f"{step.table:#x}[{step.index}]"
        lines.append(f"    {step.name:<5}  {where:<16} {entry:<18} {step.verdict:<26} {step.bits}".rstrip())
    return lines
