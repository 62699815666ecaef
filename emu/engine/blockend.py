"""Where a block of code ends: before the first instruction that has a byte on another page than the block begins on.

Unicorn translates beyond the end of a page, and a page that is not there is a fault before any instruction of the block
has been executed.  So a fetch from another page, unless it is one of the block's first instruction, ends the
translation; it begins anew with one instruction less.  Where blocks end so depends on the code alone: not on what is
behind the page, which may change at any moment, by the block's own instructions, too.
"""

from __future__ import annotations

from emu.addr import PAGE_MASK
from emu.engine.engine import running_cpu
from emu.engine.library import call_before, function_address
from emu.engine.native import callback, global_cell, inlined, load32, load64, store32, store64
from emu.engine.state import cpu_record

_FIRST, _COUNT = 8, 28  # in DisasContextBase (QEMU 5.0, translator.h): pc_first u64, num_insns i32

_leave, _leave_at = global_cell("emu_engine_leave")
_leave[0] = function_address("cpu_loop_exit_x86_64")


@callback("qqq")
def before_translation(arguments_at: int, translate: int) -> int:
    """Before translator_loop(TranslatorOps *, DisasContextBase *, CPUState *, TranslationBlock *, int most)."""
    cpu_at = running_cpu()
    if cpu_at:
        cpu = cpu_record(cpu_at)
        cpu.translating = load64(arguments_at + 8)
        if cpu.cut_count and cpu.cut_gva == load64(load64(arguments_at + 24)):
            store32(arguments_at + 32, min(cpu.cut_count, load32(arguments_at + 32)))
        cpu.cut_count = 0
    return translate


@inlined
def _before_fetch(arguments_at: int, fetch: int, size: int) -> int:
    """Before the translator reads ``size`` bytes of code: cpu_ld*_code(CPUX86State *, uint64_t gva)."""
    cpu_at = running_cpu()
    if cpu_at == 0:
        return fetch
    cpu = cpu_record(cpu_at)
    first = load64(cpu.translating + _FIRST)
    count = load32(cpu.translating + _COUNT)
    if (load64(arguments_at + 8) + size - 1 ^ first) & ~PAGE_MASK == 0 or count == 1:
        return fetch
    cpu.cut_gva = first
    cpu.cut_count = count - 1
    store64(arguments_at, cpu.engine_cpu_at)
    return load64(_leave_at())


@callback("qqq")
def before_fetch_1(arguments_at: int, fetch: int) -> int:
    return _before_fetch(arguments_at, fetch, 1)


@callback("qqq")
def before_fetch_2(arguments_at: int, fetch: int) -> int:
    return _before_fetch(arguments_at, fetch, 2)


@callback("qqq")
def before_fetch_4(arguments_at: int, fetch: int) -> int:
    return _before_fetch(arguments_at, fetch, 4)


@callback("qqq")
def before_fetch_8(arguments_at: int, fetch: int) -> int:
    return _before_fetch(arguments_at, fetch, 8)


call_before("translator_loop_x86_64", before_translation)
call_before("cpu_ldub_code_x86_64", before_fetch_1)
call_before("cpu_lduw_code_x86_64", before_fetch_2)
call_before("cpu_ldl_code_x86_64", before_fetch_4)
call_before("cpu_ldq_code_x86_64", before_fetch_8)
