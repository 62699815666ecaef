"""PHADDW and relatives of a register with itself: both halves of the result are of the old value (SDM vol. 2, PHADDW).

The engine's helpers store the lower half before they read the upper one, so they are given a copy.
"""

from __future__ import annotations

import numpy as np

from emu.engine.library import call_before_helper
from emu.engine.native import address_of, callback, global_cell, load64, store64

_copy = np.zeros(2, np.int64)
_copy_cell, _copy_cell_at = global_cell("emu_cpu_horizontal")
_copy_cell[0] = address_of(_copy)


@callback("qqq")
def before_horizontal(arguments_at: int, helper: int) -> int:
    """Before helper_phadd*(CPUX86State *, Reg *destination, Reg *source)."""
    source = load64(arguments_at + 16)
    if load64(arguments_at + 8) == source:
        at = load64(_copy_cell_at())
        store64(at, load64(source))
        store64(at + 8, load64(source + 8))
        store64(arguments_at + 16, at)
    return helper


for _name in ("phaddw", "phaddd", "phaddsw", "phsubw", "phsubd", "phsubsw"):
    for _registers in ("mmx", "xmm"):
        call_before_helper(f"{_name}_{_registers}", before_horizontal)
