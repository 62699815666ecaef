"""The clock's share of every translated block, as code within the block.

Unicorn calls two functions at the beginning of each block: the block hook, and ``check_exit_request``, which looks
whether somebody called ``uc_emu_stop``.  That is most of the time of a small loop.  Both calls are made by
``tcg_gen_callN`` when a block is translated; here they are replaced by a few operations of the translator's::

    now = cpu.vtime;  cpu.vtime = now + size;  cpu.block_gva = gva;  cpu.block_size = size
    if now >= cpu.limit:  on_block(size = INLINE)        # emu.cpu.clock, which takes it back and decides

Nothing else stops the engine at the beginning of a block: whoever wants that lowers ``cpu.limit``.  Engines that are
no processor's, and blocks of a single instruction (``cpu.single``), are translated as ever.

An interrupt that waits while IF is 0 leaves the limit as it is.  The instructions that may set IF end their block, and
their helpers' calls are followed by::

    if cpu.intr_line:  cpu.limit = 0

The operations' numbers are those of QEMU 5.0.1's tcg-opc.h, which do not depend on how Unicorn was built.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from emu.engine.engine import running_cpu
from emu.engine.library import LIBRARY, called_address, replace_import
from emu.engine.native import callback, external, inlined, load32, load64, store32, store64
from emu.engine.state import Cpu, cpu_offset, cpu_record

INLINE = -1  # size that the block hook gets when the code above calls it

_SET_LABEL, _LD_I64, _ST_I64, _ADD_I64, _AND_I64, _EXTU_I32_I64 = 1, 73, 77, 78, 87, 100  # INDEX_op_*
_VTIME, _LIMIT, _GVA, _SIZE = map(cpu_offset, ("vtime", "limit", "block_gva", "block_size"))
_INTR_LINE = cpu_offset("intr_line")

# Helpers of the instructions that may set IF: POPF, IRET, STI, SYSRET, RSM; far jumps and calls may switch tasks.
_IF_HELPERS = (
    "write_eflags",
    "iret_real",
    "iret_protected",
    "sti",
    "sysret",
    "rsm",
    "ljmp_protected",
    "lcall_protected",
)
_if_helpers = np.zeros(len(_IF_HELPERS), np.int64)


def if_helpers() -> np.ndarray[Any, np.dtype[np.int64]]:
    """The host addresses of the functions that may set IF, as translated code calls them."""
    _if_helpers[:] = [called_address(name) for name in _IF_HELPERS]
    return _if_helpers


# What Unicorn's translator calls.  The context is its TCGContext; temporaries are host addresses of TCGTemps.
_call = external(LIBRARY, "tcg_gen_callN_x86_64", "vqqqiq")
_op1 = external(LIBRARY, "tcg_gen_op1_x86_64", "vqiq")
_op2 = external(LIBRARY, "tcg_gen_op2_x86_64", "vqiqq")
_op3 = external(LIBRARY, "tcg_gen_op3_x86_64", "vqiqqq")
_brcond_i64 = external(LIBRARY, "tcg_gen_brcond_i64_x86_64", "vqiqqq")
_temp_new = external(LIBRARY, "tcg_temp_new_internal_x86_64", "qqib")
_const_i64 = external(LIBRARY, "tcg_const_i64_x86_64", "qqq")
_new_label = external(LIBRARY, "gen_new_label_x86_64", "qq")
_TCG_I64, _TCG_LESS = 1, 2  # TCG_TYPE_I64, TCG_COND_LT


@inlined
def _branch_if_less(context: int, a: int, b: int, label: int) -> None:
    """Translate to a branch to ``label`` when ``a < b``, signed."""
    _brcond_i64(context, _TCG_LESS, a - context, b - context, label)


@inlined
def _constant(context: int, value: int) -> int:
    """A temporary that holds ``value``."""
    return context + _const_i64(context, value)


@inlined
def _new_temporary(context: int) -> int:
    """A temporary without a value."""
    return _temp_new(context, _TCG_I64, False)


@inlined
def _may_set_if(cpu: Cpu, function: int) -> bool:
    for index in range(len(_IF_HELPERS)):
        if load64(cpu.if_helpers_at + 8 * index) == function:
            return True
    return False


@inlined
def _look_for_interrupt(context: int, cpu: Cpu) -> None:
    """Translate to ``cpu.limit &= cpu.intr_line - 1``, which is without a branch."""
    base, line, limit = _constant(context, cpu.at), _new_temporary(context), _new_temporary(context)
    _op3(context, _LD_I64, line, base, _INTR_LINE)
    _op3(context, _ADD_I64, line, line, _constant(context, -1))
    _op3(context, _LD_I64, limit, base, _LIMIT)
    _op3(context, _AND_I64, limit, limit, line)
    _op3(context, _ST_I64, limit, base, _LIMIT)


@callback("vqqqiq")
def on_generate_call(context: int, function: int, result: int, count: int, arguments: int) -> None:
    """tcg_gen_callN(TCGContext *, void *func, TCGTemp *ret, int nargs, TCGTemp **args)."""
    cpu_at = running_cpu()
    if cpu_at == 0:
        _call(context, function, result, count, arguments)
        return
    cpu = cpu_record(cpu_at)
    cpu.tcg_context = context
    if cpu.single or (function != cpu.check_exit_at and function != cpu.on_block_at):
        _call(context, function, result, count, arguments)
        if _may_set_if(cpu, function):
            _look_for_interrupt(context, cpu)
        return
    if function == cpu.check_exit_at:
        return
    # the hook's arguments: engine, gva (64 bits), size (32 bits, known only when the block is complete), cpu
    gva, size, base = load64(arguments + 8), load64(arguments + 16), load64(arguments + 24)
    now, wide = _new_temporary(context), _new_temporary(context)
    after, limit = _new_temporary(context), _new_temporary(context)
    _op3(context, _LD_I64, now, base, _VTIME)
    _op2(context, _EXTU_I32_I64, wide, size)
    _op3(context, _ADD_I64, after, now, wide)
    _op3(context, _ST_I64, after, base, _VTIME)
    _op3(context, _ST_I64, gva, base, _GVA)
    _op3(context, _ST_I64, wide, base, _SIZE)
    _op3(context, _LD_I64, limit, base, _LIMIT)
    label = _new_label(context)
    _branch_if_less(context, now, limit, label)
    # temporaries do not outlive a branch
    store64(arguments, _constant(context, 0))
    store64(arguments + 8, _constant(context, 0))
    store64(arguments + 16, _constant(context, INLINE))
    store64(arguments + 24, _constant(context, cpu_at))
    _call(context, function, result, count, arguments)
    store32(label, load32(label) | 1)  # TCGLabel.present
    _op1(context, _SET_LABEL, label)


replace_import("tcg_gen_callN_x86_64", on_generate_call)
