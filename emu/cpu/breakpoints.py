"""Debug registers: instruction and data breakpoints (SDM vol. 3B, 17.2 and 17.3.1).

The engine knows the registers but not what they are for: it has no data breakpoints, and its instruction breakpoints,
which work with flat code segments only, are left out (:mod:`emu.engine.translator`).  What is done here costs nothing
while DR7 enables nothing:

* The engine tells when it has translated a block.  One that ends with MOV to a debug register is thrown away again at
  once, so every execution of such an instruction is noticed, and sets ``cpu.debugging``.
* While that is set, :func:`at_debugged_block` sees each block before it runs.  An instruction breakpoint within the
  block makes the engine run it one instruction at a time (an interrupt shadow does that), one at its start is the #DB.
* A MOV or POP to SS holds what it hits back until behind the next instruction, or the delivery of an exception, and the
  next instruction's own breakpoint does not count on Intel's processors (vol. 3A, 6.8.3); on AMD's it does.
* Pages with data breakpoints are kept out of the engine's TLB.  An access to one is refused, and the instruction then
  runs alone, with the page mapped through an alias of machine memory (``WATCH_BASE``) where each access is seen.
"""

from __future__ import annotations

from emu.addr import PAGE_MASK, READ, WATCH_BASE, WRITE
from emu.cpu.branchfaults import last_instruction
from emu.cpu.guestmem import load_linear_code_byte
from emu.engine.cpustate import DR, EFLAGS, FLAG_RF, HF_CS64, HF_INHIBIT_IRQ, HFLAGS, RIP
from emu.engine.debugregs import (
    ABOUT_TO_STEP,
    ALL,
    DR6,
    DR6_HITS,
    DR7,
    DR7_ENABLED,
    GUESTS,
    NOT_WATCHING,
    ON_EXECUTE,
    STEPPING,
    WATCH_MFN_OFFSET,
    enabled,
    first_byte,
    kind_of,
    waits_for,
    watched_bytes,
    watches,
)
from emu.engine.engine import drop_code, flush_tlb
from emu.engine.identity import INTEL, VENDOR
from emu.engine.native import callback, inlined, load8, load16, load32, load64, outlined, store8, store32, store64
from emu.engine.ram import FRAME_CODE
from emu.engine.state import Cpu, cpu_offset, cpu_record, vm_of
from emu.engine.vectors import VECTOR_DB
from emu.mmu.code import drop_frame_code
from emu.mmu.fill import store_to_frame

_SEEN_OFFSET = cpu_offset("seen_dr0")
_MOST_TRANSLATED = 100_000  # instructions: a guest whose code changes all the time makes the engine translate for ever
_NOTICE = 3  # blocks: one that writes a debug register, and the next one, and one to spare


# --- noticing changes -------------------------------------------------------------------------------------------


@callback("vqqqq")
def on_translated(uc: int, block_at: int, previous_at: int, cpu_at: int) -> None:
    """Unicorn's UC_HOOK_EDGE_GENERATED: a block was translated, and runs now.

    ``block_at`` is a uc_tb: address u64, instructions u16, size u16.
    """
    gva = load64(block_at)
    size = load16(block_at + 10)
    cpu = cpu_record(cpu_at)
    vm = vm_of(cpu)
    vm.translated += load16(block_at + 8)
    if vm.translated > _MOST_TRANSLATED:
        vm.translated = 0
        vm.stop = 1  # so that signals and limits of the host are heard, however little time passes in the guest
        cpu.limit = 0
    if size < 3 or load_linear_code_byte(cpu, gva + size - 2) != 0x23:
        return
    if load_linear_code_byte(cpu, gva + size - 3) == 0x0F:  # MOV DRn, r
        drop_code(cpu, gva, size)
        cpu.debugging = _NOTICE
        cpu.limit = 0


@inlined
def _take_over_registers(cpu: Cpu) -> bool:
    """Act on the debug registers as they are now; True when the TLB was flushed for it."""
    env = cpu.env
    changed = False
    for index in range(8):
        value = load64(env + DR + 8 * index)
        if index != 6 and load64(cpu.at + _SEEN_OFFSET + 8 * index) != value:
            store64(cpu.at + _SEEN_OFFSET + 8 * index, value)
            changed = True
    if not changed:
        return False
    watched_before = cpu.watching
    cpu.watching = int(cpu.outside7 != 0)
    dr7 = load64(env + DR7)
    for index in range(4):
        if watches(dr7, index):
            cpu.watching = 1
    if cpu.watching or watched_before:
        flush_tlb(cpu)
        return True
    return False


# --- instruction breakpoints --------------------------------------------------------------------------------------


@inlined
def run_alone(cpu: Cpu) -> None:
    """Make the engine end its next block after one instruction."""
    hflags_at = cpu.env + HFLAGS
    store32(hflags_at, load32(hflags_at) | HF_INHIBIT_IRQ)


@inlined
def begin_watched_step(cpu: Cpu) -> None:
    """The instruction at RIP was refused a watched page: run it alone and see what it does."""
    cpu.watch_step = ABOUT_TO_STEP
    run_alone(cpu)


@inlined
def again_watched_step(cpu: Cpu) -> None:
    """The instruction that runs alone did not get to its end: it will be started again."""
    if cpu.watch_step == STEPPING:
        flush_tlb(cpu)  # what it mapped already must be mapped, and noted, again
        begin_watched_step(cpu)


@inlined
def end_watched_step(cpu: Cpu) -> int:
    """Hide the watched pages again; returns the breakpoints that were hit: bit 0 to 3 the guest's, as DR6 has them."""
    cpu.watch_step = NOT_WATCHING
    for index in range(ALL):
        if cpu.watch_stored >> index & 1:
            drop_frame_code(cpu.at, load64(cpu.at + WATCH_MFN_OFFSET + 8 * index))
    cpu.watch_stored = 0
    flush_tlb(cpu)
    return cpu.watch_hits


@inlined
def note_hits(cpu: Cpu, hits: int) -> None:
    """Set B0 to B3 of DR6 for the guest's breakpoints that were hit; those from outside stop the run."""
    dr6_at = cpu.env + DR6
    store64(dr6_at, load64(dr6_at) | hits & DR6_HITS)
    if hits >> GUESTS:
        cpu.outside_hits = hits >> GUESTS
        vm_of(cpu).step_hit = 1
        vm_of(cpu).stop = 1


@inlined
def _raise_debug(cpu: Cpu, hits: int) -> None:
    """Make #DB pending at the current RIP."""
    env = cpu.env
    store64(env + DR6, load64(env + DR6) & ~DR6_HITS)
    note_hits(cpu, hits | cpu.held_hits)
    cpu.held_hits = 0
    cpu.pending = 1
    cpu.pending_vector = VECTOR_DB
    cpu.pending_error = -1
    cpu.pending_software = 0
    cpu.pending_rip = load64(env + RIP)
    cpu.pending_prior = 0


@outlined("qq")
def _follows_stack_load(cpu_at: int) -> int:
    """1 when the block that was entered last ends with MOV SS or POP SS."""
    cpu = cpu_record(cpu_at)
    if last_instruction(cpu_at) == 0:
        return 0
    return 1 if cpu.insn_opcode == 0x17 or (cpu.insn_opcode == 0x8E and cpu.insn_modrm >> 3 & 7 == 2) else 0


@inlined
def _check_instructions(cpu: Cpu, gva: int, size: int) -> bool:
    """Whether an instruction breakpoint wants the engine to stop before the block at ``gva``."""
    env = cpu.env
    dr7 = load64(env + DR7)
    hits = 0
    alone = False
    for index in range(4):
        if enabled(dr7, index) and kind_of(dr7, index) == ON_EXECUTE:
            at = load64(env + DR + 8 * index)
            if not load32(env + HFLAGS) & HF_CS64:
                at &= 0xFFFF_FFFF
            if at == gva:
                hits |= 1 << index
            elif gva < at < gva + size:
                alone = True
    resumes = load64(env + EFLAGS) & FLAG_RF != 0
    if hits and load32(env + HFLAGS) & HF_INHIBIT_IRQ and load32(env + VENDOR) == INTEL:
        if cpu.held_gva == gva or _follows_stack_load(cpu.at):
            cpu.held_gva = gva  # good for the instruction, however often it has to be begun
            return False
    if hits and not resumes:
        _raise_debug(cpu, hits)
        return True
    if (alone or resumes) and not load32(env + HFLAGS) & HF_INHIBIT_IRQ:
        run_alone(cpu)  # RF is good for one instruction only
        return True
    return False


@outlined("qqqq")
def at_debugged_block(cpu_at: int, gva: int, size: int) -> int:
    """A block is about to run while ``cpu.debugging`` is set; 1 when the engine must stop before it."""
    cpu = cpu_record(cpu_at)
    if cpu.watch_step == STEPPING:
        stored = cpu.watch_stored
        hits = end_watched_step(cpu)
        note_hits(cpu, hits & ~DR6_HITS)
        guests = hits & DR6_HITS
        if guests and _follows_stack_load(cpu_at):
            cpu.held_hits = guests
            run_alone(cpu)  # it is the interrupt shadow that the engine has cleared, too
            return 1
        if guests:
            _raise_debug(cpu, guests)
        if hits or stored:
            return 1  # this block may be one of those that were dropped
    if cpu.held_hits and not load32(cpu.env + HFLAGS) & HF_INHIBIT_IRQ:  # the next instruction, or an event, is over
        _raise_debug(cpu, 0)
        return 1
    if cpu.held_gva >= 0 and not load32(cpu.env + HFLAGS) & HF_INHIBIT_IRQ:
        cpu.held_gva = -1
    _take_over_registers(cpu)
    if cpu.debugging > 1:
        cpu.debugging -= 1
    elif not load64(cpu.env + DR7) & DR7_ENABLED and not cpu.outside7:
        cpu.debugging = 0
        return 0
    if _check_instructions(cpu, gva, size):
        return 1
    if cpu.watch_step == ABOUT_TO_STEP:
        cpu.watch_step = STEPPING
        cpu.watch_hits = 0
        for index in range(ALL):
            store64(cpu.at + WATCH_MFN_OFFSET + 8 * index, -1)
    return 0


# --- data breakpoints ---------------------------------------------------------------------------------------------


@inlined
def _note_access(cpu: Cpu, machine: int, size: int, access: int) -> None:
    """Remember which breakpoints an access through the watched alias hits."""
    mfn = machine >> 12
    offset = machine & PAGE_MASK
    for index in range(ALL):
        if load64(cpu.at + WATCH_MFN_OFFSET + 8 * index) == mfn and waits_for(cpu, index, access):
            first = first_byte(cpu, index) & PAGE_MASK
            if offset < first + watched_bytes(cpu, index) and first < offset + size:
                cpu.watch_hits |= 1 << index


@inlined
def _store_watched(cpu: Cpu, mfn: int, offset: int, size: int, value: int) -> None:
    """Store as the guest does, but leave code in the frame alone until the instruction is over.

    The engine is in the middle of a store to this page, and may be executing a block of it.
    """
    flags_at = vm_of(cpu).frame_flags_at + mfn
    code = load8(flags_at) & FRAME_CODE
    store8(flags_at, load8(flags_at) & ~FRAME_CODE)
    store_to_frame(cpu, mfn, offset, size, value)
    if code:
        store8(flags_at, load8(flags_at) | FRAME_CODE)
        for index in range(ALL):
            if load64(cpu.at + WATCH_MFN_OFFSET + 8 * index) == mfn:
                cpu.watch_stored |= 1 << index


@callback("bqiqiqq")
def on_watched_load(uc: int, kind: int, address: int, size: int, value: int, cpu_at: int) -> bool:
    """Unicorn's UC_HOOK_MEM_READ_PROT over the watched alias: a load that the engine then makes."""
    _note_access(cpu_record(cpu_at), address - WATCH_BASE, size, READ)
    return True


@callback("bqiqiqq")
def on_watched_store(uc: int, kind: int, address: int, size: int, value: int, cpu_at: int) -> bool:
    """Unicorn's UC_HOOK_MEM_WRITE_PROT over the watched alias; the engine discards the store afterwards."""
    cpu = cpu_record(cpu_at)
    machine = address - WATCH_BASE
    _note_access(cpu, machine, size, WRITE)
    if address & (size - 1) == 0:  # the engine repeats an unaligned store byte by byte
        _store_watched(cpu, machine >> 12, machine & PAGE_MASK, size, value)
    return True
