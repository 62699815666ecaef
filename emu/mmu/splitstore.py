"""Stores that the engine makes byte by byte: unaligned ones over the end of a page, or beside code.

Where such a store reaches the running block, the engine notices with the first byte that does, leaves the block, and
executes the instruction once more.  The bytes before that one are stored already, and an instruction that reads what it
changes would change them twice.  So the whole store is looked at before its first byte.
"""

from __future__ import annotations

from emu.addr import PAGE_MASK, WRITE
from emu.engine.cpustate import HF_CPL, HFLAGS
from emu.engine.engine import drop_code_at, running_cpu, stop
from emu.engine.library import call_before, function_address
from emu.engine.native import callback, global_cell, inlined, load32, load64, outlined, store64
from emu.engine.state import Cpu, cpu_record
from emu.mmu.code import CODE_IN_USE, drop_frame_code, stores_into_block
from emu.mmu.walk import OK, p2m_entry, walk

_leave, _leave_at = global_cell("emu_mmu_leave_split_store")
_leave[0] = function_address("cpu_loop_exit_restore_x86_64")


@outlined("qqqq")
def _part_in_block(cpu_at: int, gva: int, size: int) -> int:
    """1 when a part of a store, within a page, reaches the running block; drops what it changes of a lone one."""
    cpu = cpu_record(cpu_at)
    begins = cpu.block_gva
    if (gva - begins) & PAGE_MASK >= cpu.block_size and (begins - gva) & PAGE_MASK >= size:
        return 0
    user = load32(cpu.env + HFLAGS) & HF_CPL == 3
    if walk(cpu, gva, WRITE, user) != OK:
        return 0
    mfn = p2m_entry(cpu, cpu.walk_gpa >> 12) >> 12
    if cpu.single:
        drop_code_at(cpu, (mfn << 12) + (gva & PAGE_MASK), size)
        return 0
    if not stores_into_block(cpu_at, mfn, gva & PAGE_MASK, size, 1 if user else 0):
        return 0
    drop_frame_code(cpu_at, mfn)
    return 1


@inlined
def _reaches_block(cpu: Cpu, gva: int, size: int) -> bool:
    first = min(size, PAGE_MASK + 1 - (gva & PAGE_MASK))
    if _part_in_block(cpu.at, gva, first):
        return True
    return first < size and _part_in_block(cpu.at, gva + first, size - first) != 0


@callback("qqq")
def before_byte(arguments_at: int, store: int) -> int:
    """Before helper_ret_stb_mmu(CPUX86State *, uint64_t gva, uint8_t, int operation, uintptr_t code) for a byte."""
    cpu_at = running_cpu()
    if cpu_at == 0:
        return store
    cpu = cpu_record(cpu_at)
    if cpu.split_left == 0:
        size = 1 << (load32(arguments_at + 24) >> 4 & 3)  # of the whole store: MO_SIZE
        if cpu.block_size and _reaches_block(cpu, load64(arguments_at + 8), size):
            cpu.miss_kind = CODE_IN_USE
            stop(cpu)
            store64(arguments_at, cpu.engine_cpu_at)
            store64(arguments_at + 8, load64(arguments_at + 32))
            return load64(_leave_at())
        cpu.split_left = size
    cpu.split_left -= 1
    return store


call_before("helper_ret_stb_mmu_x86_64", before_byte)
