"""What Unicorn keeps to itself when it asks for a TLB entry: whose access it is, and where the engine stands.

Unicorn's own function for TLB misses puts the CPU's state back to the beginning of the instruction before it asks.  An
instruction in the middle of which that happens, a task switch for one, then goes on with the old RIP and condition
codes.  Here it is told not to; who refuses the entry has the state put back, and the instruction is executed again.

The index of the engine's TLB says whose access it is.  At CPL 3 the processor's own accesses, to descriptor tables and
the TSS, have a supervisor's index (SDM vol. 3A, 4.6).
"""

from __future__ import annotations

from emu.addr import PAGE_MASK
from emu.engine.library import LIBRARY, call_before
from emu.engine.native import callback, external, global_cell, inlined, load8, load32, load64, outlined, store64
from emu.engine.state import Cpu, cpu_record, vm_of

_USER_INDEX = 1  # QEMU 5.0, target/i386/cpu.h: MMU_USER_IDX
_PAGES = 72  # in a block: the machine addresses of its first and second page, -1 for none

_lookup = external(LIBRARY, "tcg_tb_lookup_x86_64", "qqq")
_restore = external(LIBRARY, "cpu_restore_state_x86_64", "bqqb")

_gva, _gva_at = global_cell("emu_engine_miss_gva")
_index, _index_at = global_cell("emu_engine_miss_index")
_code, _code_at = global_cell("emu_engine_miss_code")  # where the engine's code is that made the access; 0: a fetch
_offset, _offset_at = global_cell("emu_engine_miss_offset")  # of the instruction in its block


@callback("qqq")
def before_fill(arguments_at: int, fill: int) -> int:
    """Before unicorn_fill_tlb(CPUState *, vaddr, int size, MMUAccessType, int index, bool probe, uintptr_t code)."""
    store64(_gva_at(), load64(arguments_at + 8))
    store64(_index_at(), load32(arguments_at + 32))
    store64(_code_at(), load64(arguments_at + 56))
    store64(arguments_at + 56, 0)  # nothing to put back
    return fill


@inlined
def missed_gva() -> int:
    """The exact gva of the access that missed."""
    return load64(_gva_at())


@inlined
def is_user_access() -> bool:
    """Whether the engine makes the access that missed with the rights of CPL 3."""
    return load64(_index_at()) == _USER_INDEX


@inlined
def restore_state(cpu: Cpu) -> None:
    """Put RIP and the flags back to the beginning of the instruction whose access missed."""
    _restore(cpu.engine_cpu_at, load64(_code_at()), False)


@outlined("qqq")
def missing_block(cpu_at: int, rip: int) -> int:
    """Begin to look at the instruction whose access missed, at ``rip``, for :func:`code_byte`.

    Returns:
        The host address of its block (QEMU 5.0, exec-all.h: TranslationBlock), 0 when that is not known.
    """
    cpu = cpu_record(cpu_at)
    if cpu.tcg_context == 0 or load64(_code_at()) == 0:
        return 0
    block = _lookup(cpu.tcg_context, load64(_code_at()))
    if block:
        store64(_offset_at(), rip + load64(block + 8) - load64(block))  # pc, cs_base
    return block


@inlined
def code_byte(cpu: Cpu, block: int, place: int) -> int:
    """A byte of the instruction that :func:`missing_block` was asked about, as it was translated; -1 beyond it."""
    offset = (load64(block) & PAGE_MASK) + load64(_offset_at()) + place
    page = load64(block + _PAGES + (offset >> 12 << 3))
    return -1 if offset >> 12 > 1 or page == -1 else load8(vm_of(cpu).ram_at + page + (offset & PAGE_MASK))


call_before("unicorn_fill_tlb_x86_64", before_fill)
