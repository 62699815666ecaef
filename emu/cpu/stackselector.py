"""MOV SS and LSS in 64-bit mode: a null selector is refused unless its RPL is the CPL (SDM vol. 2B, MOV: #GP(0)).

The engine's helper that loads segment registers looks at all other rules itself.
"""

from __future__ import annotations

from emu.engine.cpustate import HF_CPL, HF_CS64, HFLAGS
from emu.engine.engine import running_cpu
from emu.engine.library import call_before_helper, function_address
from emu.engine.native import callback, global_cell, load32, load64, store64
from emu.engine.vectors import VECTOR_GP

_SS = 2  # number of the register
_RETURN_ADDRESS = 48  # offset in what ``arguments_at`` points at

_raise, _raise_at = global_cell("emu_cpu_refuse_stack_selector")
_raise[0] = function_address("raise_exception_err_ra_x86_64")


@callback("qqq")
def before_load_segment(arguments_at: int, load: int) -> int:
    """Before helper_load_seg(CPUX86State *, int register, int selector); what is returned is called instead.

    That is raise_exception_err_ra(CPUX86State *, int vector, int error, uintptr_t code) for a refused selector.
    """
    if load32(arguments_at + 8) != _SS or running_cpu() == 0:
        return load
    hflags = load32(load64(arguments_at) + HFLAGS)
    selector = load32(arguments_at + 16) & 0xFFFF
    if selector > 3 or selector == hflags & HF_CPL or not hflags & HF_CS64:
        return load
    store64(arguments_at + 8, VECTOR_GP)
    store64(arguments_at + 16, 0)
    store64(arguments_at + 24, load64(arguments_at + _RETURN_ADDRESS))
    return load64(_raise_at())


call_before_helper("load_seg", before_load_segment)
