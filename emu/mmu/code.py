"""Frames that hold code: how no store to them leaves stale translations behind, on whatever processor.

An engine entry that allows execution also makes stores slow, because they must look for translated code; one that does
not makes the engine miss writes into code.  So data entries are given without execution, until code is fetched from
the frame (``FRAME_CODE``).  From then on entries through which the guest may execute carry execution, and stores
through them are exact even within the running block.  A store through a mapping without execution rights drops the
frame's code first and makes it a data frame again; when the running block itself lies in the frame, the storing
instruction is refused and executed on its own (``CODE_IN_USE``), so that what follows it is translated anew.

An engine knows its own translations only.  ``code_cpus`` notes for each frame which processors translated code from it.
Stores to a frame with code of other processors go through the write trap, which drops what they overlap on all of
them.  When a processor translates from a frame for the first time, direct entries that others may have for stores to it
must go: ``written_at`` notes for each frame when such an entry was last given, counted in flushes of all TLBs, so that
a frame that nobody has written to since the last one costs no flush.
"""

from __future__ import annotations

from emu.addr import FETCH, PAGE_MASK
from emu.engine import cpustate
from emu.engine.engine import drop_code_at, flush_all_tlbs, flush_tlb
from emu.engine.native import (
    inlined,
    load8,
    load16,
    load32,
    load64,
    outlined,
    store8,
    store16,
    store32,
    store64,
)
from emu.engine.ram import FRAME_CODE
from emu.engine.state import Cpu, Vm, cpu_number, cpu_record, vm_of
from emu.mmu.walk import OK, p2m_entry, walk

CODE_IN_USE = 6  # in ``cpu.miss_kind``: the instruction stores into the frame of its own block


@inlined
def store_bytes(host: int, size: int, value: int) -> None:
    if size == 8:
        store64(host, value)
    elif size == 4:
        store32(host, value)
    elif size == 2:
        store16(host, value)
    else:
        store8(host, value)


@inlined
def load_bytes(host: int, size: int) -> int:
    if size == 8:
        return load64(host)
    if size == 4:
        return load32(host)
    if size == 2:
        return load16(host)
    return load8(host)


@inlined
def translators_of(vm: Vm, mfn: int) -> int:
    """The processors that translated code from frame ``mfn``, one bit each."""
    return load16(vm.code_cpus_at + 2 * mfn)


@outlined("vqq")
def drop_frame_code(cpu_at: int, mfn: int) -> None:
    """Drop the code that any processor translated from ``mfn``; from now on it is a data frame."""
    vm = vm_of(cpu_record(cpu_at))
    translators = translators_of(vm, mfn)
    for index in range(vm.cpu_count):
        if translators >> index & 1:
            cpu = cpu_number(vm, index)
            drop_code_at(cpu, mfn << 12, PAGE_MASK + 1)
            flush_tlb(cpu)
    store16(vm.code_cpus_at + 2 * mfn, 0)
    flags_at = vm.frame_flags_at + mfn
    store8(flags_at, load8(flags_at) & ~FRAME_CODE)


@outlined("qqqq")
def _runs_from(cpu_at: int, mfn: int, user: int) -> int:
    """1 when the running block lies in frame ``mfn``, at least in part; changes the results of the last walk."""
    cpu = cpu_record(cpu_at)
    for gva in (cpu.block_gva, cpu.block_gva + cpu.block_size - 1):
        if walk(cpu, gva, FETCH, user != 0) == OK and p2m_entry(cpu, cpu.walk_gpa >> 12) >> 12 == mfn:
            return 1
    return 0


@outlined("qqqq")
def drop_changed_code(cpu_at: int, mfn: int, user: int) -> int:
    """Drop the code of a frame that the running instruction changes; 1 when that instruction must run on its own."""
    cpu = cpu_record(cpu_at)
    in_use = 0
    if not cpu.single and cpu.block_size:
        in_use = _runs_from(cpu_at, mfn, user)
    drop_frame_code(cpu_at, mfn)
    return in_use


@inlined
def note_translator(cpu: Cpu, mfn: int) -> None:
    """The processor is about to translate code from a frame: no store to it may go unseen any more."""
    vm = vm_of(cpu)
    translators = translators_of(vm, mfn)
    if translators >> cpu.index & 1:
        return
    store16(vm.code_cpus_at + 2 * mfn, translators | 1 << cpu.index)
    flags_at = vm.frame_flags_at + mfn
    store8(flags_at, load8(flags_at) | FRAME_CODE)
    if vm.started == 1:
        flush_tlb(cpu)  # there may be data entries that do not look for code
    elif load32(vm.written_at + 4 * mfn) == vm.flush_epoch:
        flush_all_tlbs(vm)


@outlined("qqqqqq")
def stores_into_block(cpu_at: int, mfn: int, offset: int, size: int, user: int) -> int:
    """1 when a store to frame ``mfn`` changes bytes of the running block; may change the results of the last walk."""
    cpu = cpu_record(cpu_at)
    if cpu.single or not cpu.block_size:
        return 0
    begins = cpu.block_gva & PAGE_MASK
    if (offset - begins) & PAGE_MASK >= cpu.block_size and (begins - offset) & PAGE_MASK >= size:
        return 0
    return _runs_from(cpu_at, mfn, user)


@outlined("vqqqqq")
def store_beside_code(cpu_at: int, mfn: int, offset: int, size: int, value: int) -> None:
    """A store that was trapped for the sake of other processors, which translated code from the frame.

    Only code that overlaps it is dropped, on every processor, so data may lie beside code.
    """
    vm = vm_of(cpu_record(cpu_at))
    translators = translators_of(vm, mfn)
    last = min(size, PAGE_MASK + 1 - offset)
    for index in range(vm.cpu_count):
        if translators >> index & 1:
            drop_code_at(cpu_number(vm, index), (mfn << 12) + offset, last)
    if offset & (size - 1) == 0:  # the engine repeats an unaligned store byte by byte
        store_bytes(vm.ram_at + (mfn << 12) + offset, size, value)


@inlined
def note_direct_entry(vm: Vm, mfn: int) -> None:
    """A processor gets an entry through which it stores into a frame directly."""
    store32(vm.written_at + 4 * mfn, vm.flush_epoch)


@outlined("qqq")
def drop_marked_code(cpu_at: int, running: int) -> int:
    """Walks have set accessed or dirty bits among code: drop that.

    Args:
        running: 1 when an instruction is being executed; may change the results of the last walk.

    Returns:
        1 when the running block lies there, so that the running instruction must be executed on its own.
    """
    cpu = cpu_record(cpu_at)
    user = load32(cpu.env + cpustate.HFLAGS) & cpustate.HF_CPL == 3
    in_use = 0
    while cpu.marked_code:  # looking for the running block walks, too
        cpu.marked_code -= 1
        mfn = load64(cpu.marked_at + 8 * cpu.marked_code)
        if running:
            in_use |= drop_changed_code(cpu_at, mfn, 1 if user else 0)
        else:
            drop_frame_code(cpu_at, mfn)
    return in_use
