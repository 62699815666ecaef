"""What the debug registers say (SDM vol. 3B, 17.2), and which TLB entries that allows.

A debugger from outside the guest has four data breakpoints of its own (``cpu.outside0``, …), which the guest does not
see: they are those numbered 4 to 7, and stop the run instead of raising #DB.

Pages with data breakpoints are kept out of the engine's TLB, except while one instruction runs alone: then they are
mapped through ``WATCH_BASE``, where each access is seen.  See :mod:`emu.cpu.breakpoints`.
"""

from __future__ import annotations

from emu.addr import FETCH, PAGE_MASK, WATCH_BASE, WRITE
from emu.engine import cpustate
from emu.engine.cpustate import DR
from emu.engine.engine import PROT_EXEC, PROT_WRITE
from emu.engine.native import inlined, load32, load64, outlined, store32, store64
from emu.engine.state import Cpu, cpu_offset, cpu_record

DR6_HITS = 15  # B0 to B3: the breakpoints that were hit
DR6_BT = 1 << 15  # a switch to a task whose TSS has T set
DR6_BS = 1 << 14  # a single step
DR6_BD = 1 << 13  # an access to a debug register while DR7.GD was set
DR7_ENABLED = 0xFF  # L0 G0 .. L3 G3
DR7_GD = 1 << 13
DR6, DR7 = DR + 48, DR + 56  # offsets in the CPU state
ON_EXECUTE, ON_WRITE, ON_PORT, ON_ACCESS = 0, 1, 2, 3  # R/W0 to R/W3: what a breakpoint waits for

WATCHED = 7  # miss_kind: refused because a data breakpoint waits for the access

# steps of an instruction that touches a watched page, in cpu.watch_step
NOT_WATCHING, ABOUT_TO_STEP, STEPPING = 0, 1, 2

GUESTS, ALL = 4, 8  # breakpoints: those of the guest, and with them those from outside

WATCH_MFN_OFFSET = cpu_offset("watch_mfn0")
_OUTSIDE_OFFSET = cpu_offset("outside0")


@inlined
def enabled(dr7: int, index: int) -> bool:
    return dr7 >> (2 * index) & 3 != 0


@inlined
def kind_of(dr7: int, index: int) -> int:
    return dr7 >> (16 + 4 * index) & 3


@inlined
def length_of(dr7: int, index: int) -> int:
    """Bytes watched: 1, 2, 4 or 8."""
    coded = dr7 >> (18 + 4 * index) & 3
    return 8 if coded == 2 else coded + 1


@inlined
def watches(dr7: int, index: int) -> bool:
    kind = kind_of(dr7, index)
    return enabled(dr7, index) and (kind == ON_WRITE or kind == ON_ACCESS)


@inlined
def control_of(cpu: Cpu, index: int) -> int:
    """The word, in the form of DR7, that holds breakpoint ``index`` at the place of ``index & 3``."""
    return load64(cpu.env + DR7) if index < GUESTS else cpu.outside7


@inlined
def waits_for(cpu: Cpu, index: int, access: int) -> bool:
    """Whether breakpoint ``index`` is one for this kind of data access (READ, WRITE)."""
    control = control_of(cpu, index)
    return watches(control, index & 3) and (access == WRITE or kind_of(control, index & 3) == ON_ACCESS)


@inlined
def watched_bytes(cpu: Cpu, index: int) -> int:
    """How many bytes data breakpoint ``index`` watches."""
    return length_of(control_of(cpu, index), index & 3)


@inlined
def first_byte(cpu: Cpu, index: int) -> int:
    """The first byte that data breakpoint ``index`` watches: the address is aligned to the length."""
    at = cpu.env + DR + 8 * index if index < GUESTS else cpu.at + _OUTSIDE_OFFSET + 8 * (index - GUESTS)
    gva = load64(at) & -watched_bytes(cpu, index)
    return gva if load64(cpu.env + cpustate.EFER) & cpustate.EFER_LMA else gva & 0xFFFF_FFFF


# --- TLB entries of watched pages ---------------------------------------------------------------------------------


@inlined
def _page_of(cpu: Cpu, gva: int) -> int:
    page = gva & ~PAGE_MASK
    return page if load64(cpu.env + cpustate.EFER) & cpustate.EFER_LMA else page & 0xFFFF_FFFF


@outlined("qqqq")
def watches_page(cpu_at: int, gva: int, access: int) -> int:
    """1 when a data breakpoint waits for this kind of access on the page at ``gva``."""
    cpu = cpu_record(cpu_at)
    page = _page_of(cpu, gva)
    for index in range(ALL):
        if waits_for(cpu, index, access) and (first_byte(cpu, index) & ~PAGE_MASK) == page:
            return 1
    return 0


@outlined("vqqqq")
def restrict_entry(cpu_at: int, gva: int, access: int, entry_at: int) -> None:
    """Change the TLB entry just made for a page, so that no access that a breakpoint waits for goes unseen."""
    cpu = cpu_record(cpu_at)
    if not watches_page(cpu.at, gva, WRITE):
        return
    permissions = load32(entry_at + 8)
    if access == FETCH:
        store32(entry_at + 8, permissions & PROT_EXEC)
        return
    permissions &= ~PROT_EXEC
    if cpu.watch_step != STEPPING:
        store32(entry_at + 8, permissions & ~PROT_WRITE)
        return
    machine = load64(entry_at) & (WATCH_BASE // 2 - 1)
    store64(entry_at, WATCH_BASE + machine)
    store32(entry_at + 8, permissions)
    for index in range(ALL):
        if (first_byte(cpu, index) & ~PAGE_MASK) == _page_of(cpu, gva):
            store64(cpu.at + WATCH_MFN_OFFSET + 8 * index, machine >> 12)
