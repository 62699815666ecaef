"""Breakpoints from outside the guest, which cannot see them: a debugger's.

They are looked for when a block of code begins, so each block takes the slow way in while there are any.  A block that
holds one is not entered: the run ends before it, and who runs the VM steps through the block
(:mod:`emu.debug.breaks`).  What the guest does stays what it would have been.
"""

from __future__ import annotations

from emu.engine.native import load64, outlined
from emu.engine.state import vm_record


@outlined("qqqq")
def holds_breakpoint(vm_at: int, gva: int, size: int) -> int:
    """1 when a breakpoint lies in the ``size`` bytes of code at ``gva``."""
    vm = vm_record(vm_at)
    for index in range(vm.breaks):
        if 0 <= load64(vm.breaks_at + 8 * index) - gva < size:
            return 1
    return 0
