"""What the translator is shown: each instruction passes here before the engine translates it.

``translator_loop`` of the engine gets a copy of its table of functions in which ``translate_insn`` is a function of
emu's (:mod:`emu.cpu.translation`).  That one may

* end the block before the instruction (:func:`end_block`),
* have a function of emu's called before the instruction, at the beginning of its block (:func:`call_before`),
* let the translator read other bytes than those in memory (:func:`show`),
* change the mode that the translator believes in, for one instruction (the ``DC_`` offsets),
* ask for an aligned 128-bit operand (:func:`require_alignment`) or for aligned operands of any size,
* ask for fewer bytes of an operand (:func:`narrow_load`), or for the end of the block behind the instruction.

Offsets are those of QEMU 5.0.1's ``DisasContext`` and ``TranslationBlock`` on a 64-bit host.  Nothing of it happens
without numba: the engine leaves its translator by a jump, which no interpreted frame survives.
"""

from __future__ import annotations

import numpy as np

from emu.addr import PAGE_MASK
from emu.engine.engine import running_cpu
from emu.engine.library import LIBRARY, replace_import
from emu.engine.native import (
    INTERPRETED,
    address_of,
    call_host,
    callback,
    external,
    global_cell,
    inlined,
    load32,
    load64,
    store32,
    store64,
)
from emu.engine.state import Cpu

# DisasContext: what the translator knows of the block and the instruction
DC_TB, DC_PC_FIRST, DC_PC_NEXT, DC_IS_JMP, DC_NUM_INSNS = 0, 8, 16, 24, 28
DC_CS_BASE = 72
DC_FLAGS = 168  # HFLAGS as the instruction is translated under

TB_FLAGS = 16  # TranslationBlock: HFLAGS, with TF, IOPL, RF, VM and AC from EFLAGS

_TOO_MANY = 1  # DisasJumpType: end the block before ``pc_next``
_ALIGN_16, _ALIGN_NATURALLY, _SIZE, _64 = 4 << 4, 7 << 4, 3, 3  # MemOp
_ONE, _EVERY = 1, 2  # operands that must be aligned
_32, _LOADED = 2, -1  # MemOp; the one narrow load has been made

# The table that the translator works with: its own seven functions, and behind them what else it needs to remember.
_TABLE_WORDS = 16
_INIT, _BREAKPOINT, _TRANSLATE, _FUNCTIONS = 0, 3, 4, 7
_ORIGINAL, _OURS, _SHOWN_AT, _SHOWN_SIZE, _SHOWN, _ALIGN, _NARROW, _ARGUMENT, _NO_BREAKPOINT = range(
    _FUNCTIONS, _FUNCTIONS + 9
)
_table = np.zeros(_TABLE_WORDS, np.int64)
_table_cell, _table_cell_at = global_cell("emu_engine_translator")
_table_cell[0] = address_of(_table)

_translator_loop = external(LIBRARY, "translator_loop_x86_64", "vqqqqi")
_load_code_byte = external(LIBRARY, "cpu_ldub_code_x86_64", "iqq")
_load_i64 = external(LIBRARY, "tcg_gen_qemu_ld_i64_x86_64", "vqqqqi")
_store_i64 = external(LIBRARY, "tcg_gen_qemu_st_i64_x86_64", "vqqqqi")
_load_i32 = external(LIBRARY, "tcg_gen_qemu_ld_i32_x86_64", "vqqqqi")
_store_i32 = external(LIBRARY, "tcg_gen_qemu_st_i32_x86_64", "vqqqqi")
_const_i64 = external(LIBRARY, "tcg_const_i64_x86_64", "qqq")
_call = external(LIBRARY, "tcg_gen_callN_x86_64", "vqqqiq")


@inlined
def _table_at() -> int:
    return load64(_table_cell_at())


# --- for the function that sees each instruction ------------------------------------------------------------------


@inlined
def is_first(disas: int) -> bool:
    """Whether the instruction is the first of its block."""
    return load32(disas + DC_NUM_INSNS) == 1


@inlined
def code_byte(cpu: Cpu, gva: int) -> int:
    """The byte of code at ``gva`` as the translator fetches it.  Does not return where that faults.

    Where the block has to end before the instruction (:mod:`emu.engine.blockend`) it is 0, and ``cpu.insn_cut`` is 1.
    """
    disas = cpu.translating
    if (gva ^ load64(disas + DC_PC_FIRST)) & ~PAGE_MASK:
        if not is_first(disas):
            cpu.insn_cut = 1
            return 0
        _load_code_byte(cpu.env, gva & ~PAGE_MASK)  # the first byte there is the one that faults
    return _load_code_byte(cpu.env, gva) & 0xFF


@inlined
def translate(disas: int, engine_cpu: int) -> None:
    """Have the engine translate the instruction."""
    call_host(load64(_table_at() + 8 * _ORIGINAL), disas, engine_cpu, 0)


@inlined
def end_block(disas: int) -> None:
    """The instruction is not translated; the block ends before it."""
    store32(disas + DC_IS_JMP, _TOO_MANY)


@inlined
def forget_instruction() -> None:
    """Nothing is shown or asked for; to be called for each instruction, because the one before may have been left."""
    at = _table_at()
    store64(at + 8 * _SHOWN_SIZE, 0)
    store64(at + 8 * _ALIGN, 0)
    store64(at + 8 * _NARROW, 0)


@inlined
def show(gva: int, size: int, code: int) -> None:
    """The translator reads ``size`` bytes (8 at most) at ``gva`` from ``code`` instead of memory."""
    at = _table_at()
    store64(at + 8 * _SHOWN_AT, gva)
    store64(at + 8 * _SHOWN_SIZE, size)
    store64(at + 8 * _SHOWN, code)


@inlined
def require_alignment() -> None:
    """The first 64 bits that the instruction loads or stores begin an operand that must be aligned to 16 bytes."""
    store64(_table_at() + 8 * _ALIGN, _ONE)


@inlined
def require_natural_alignment() -> None:
    """Each operand that the instruction loads or stores must be aligned to its size."""
    store64(_table_at() + 8 * _ALIGN, _EVERY)


@inlined
def narrow_load(size: int) -> None:
    """The instruction's operand in memory has ``size`` bytes, 4 or 8, where the engine would load 8 or 16."""
    store64(_table_at() + 8 * _NARROW, size)


@inlined
def end_block_behind(disas: int) -> None:
    """The instruction was translated; it is the last one of its block."""
    if load32(disas + DC_IS_JMP) == 0:
        store32(disas + DC_IS_JMP, _TOO_MANY)


@inlined
def call_before(context: int, function: int, argument: int) -> None:
    """Have ``function``, which took the place of a helper with one pointer, called with the constant ``argument``.

    Only at the beginning of a block, where RIP and the flags are in the CPU state.

    Args:
        context: the TCGContext, from ``cpu.tcg_context``.
    """
    at = _table_at() + 8 * _ARGUMENT
    store64(at, context + _const_i64(context, argument))
    _call(context, function, 0, 1, at)


@inlined
def call_behind(context: int, function: int, argument: int) -> None:
    """As :func:`call_before`, once the instruction was translated.

    It is called when the instruction is done and has not faulted.  RIP and the kind of flags are those from the
    beginning of the block.
    """
    call_before(context, function, argument)


@callback("bqqq")
def _on_breakpoint(disas: int, engine_cpu: int, breakpoint_at: int) -> bool:
    """The translator's function that ends a block at an instruction breakpoint: it is found when it is reached."""
    return False


# --- in the place of the engine's functions -----------------------------------------------------------------------


@callback("vqqqqi")
def _on_translator_loop(operations: int, disas: int, engine_cpu: int, block: int, most: int) -> None:
    if running_cpu() == 0:
        _translator_loop(operations, disas, engine_cpu, block, most)
        return
    at = _table_at()
    for index in range(_FUNCTIONS):
        store64(at + 8 * index, load64(operations + 8 * index))
    store64(at + 8 * _ORIGINAL, load64(operations + 8 * _TRANSLATE))
    store64(at + 8 * _TRANSLATE, load64(at + 8 * _OURS))
    store64(at + 8 * _BREAKPOINT, load64(at + 8 * _NO_BREAKPOINT))
    _translator_loop(at, disas, engine_cpu, block, most)


@callback("iqq")
def _on_load_code_byte(env: int, gva: int) -> int:
    at = _table_at()
    offset = gva - load64(at + 8 * _SHOWN_AT)
    if 0 <= offset < load64(at + 8 * _SHOWN_SIZE):
        return load64(at + 8 * _SHOWN) >> (8 * offset) & 0xFF
    return _load_code_byte(env, gva)


@inlined
def _with_alignment(operation: int) -> int:
    if running_cpu() == 0:
        return operation
    at = _table_at() + 8 * _ALIGN
    if load64(at) == _EVERY:
        return operation | _ALIGN_NATURALLY
    if load64(at) == _ONE and operation & _SIZE == _64:
        store64(at, 0)
        return operation | _ALIGN_16
    return operation


@callback("vqqqqi")
def _on_load_i64(context: int, value: int, gva: int, index: int, operation: int) -> None:
    if running_cpu() != 0:
        at = _table_at() + 8 * _NARROW
        size = load64(at)
        if size == _LOADED:
            return
        if size:
            store64(at, _LOADED)
            if size == 4:
                operation = operation & ~_SIZE | _32
    _load_i64(context, value, gva, index, _with_alignment(operation))


@callback("vqqqqi")
def _on_store_i64(context: int, value: int, gva: int, index: int, operation: int) -> None:
    _store_i64(context, value, gva, index, _with_alignment(operation))


@callback("vqqqqi")
def _on_load_i32(context: int, value: int, gva: int, index: int, operation: int) -> None:
    _load_i32(context, value, gva, index, _with_alignment(operation))


@callback("vqqqqi")
def _on_store_i32(context: int, value: int, gva: int, index: int, operation: int) -> None:
    _store_i32(context, value, gva, index, _with_alignment(operation))


def see_each_instruction(function: object) -> None:
    """From now on ``function``, a callback (DisasContext, engine's CPU), translates each instruction."""
    _table[_OURS] = function.address_of  # type: ignore[attr-defined]
    _table[_NO_BREAKPOINT] = _on_breakpoint.address_of
    if not INTERPRETED:
        replace_import("translator_loop_x86_64", _on_translator_loop)
        replace_import("cpu_ldub_code_x86_64", _on_load_code_byte)
        replace_import("tcg_gen_qemu_ld_i64_x86_64", _on_load_i64)
        replace_import("tcg_gen_qemu_st_i64_x86_64", _on_store_i64)
        replace_import("tcg_gen_qemu_ld_i32_x86_64", _on_load_i32)
        replace_import("tcg_gen_qemu_st_i32_x86_64", _on_store_i32)
