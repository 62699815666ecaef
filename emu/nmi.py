"""Non-maskable interrupts: one is remembered while another is being handled, which IRET ends (SDM vol. 3A, 6.7.1)."""

from __future__ import annotations

from typing import Any

from emu.engine import original_iret_protected, original_iret_real, running_vm
from emu.enginelib import replace_helper
from emu.native import callback, outlined
from emu.state import state_at

VECTOR_NMI = 2


@outlined("vq")
def _unblock(vm_at):
    if vm_at:
        vm = state_at(vm_at)
        vm.nmi_blocked = 0
        if vm.nmi_pending:
            vm.stop = 1
            vm.limit = 0


@callback("vqii")
def on_iret_protected(env, shift, next_eip):
    """The engine's helper for IRET in protected mode."""
    _unblock(running_vm())
    original_iret_protected(env, shift, next_eip)


@callback("vqi")
def on_iret_real(env, shift):
    """The engine's helper for IRET in real and virtual-8086 mode."""
    _unblock(running_vm())
    original_iret_real(env, shift)


replace_helper("iret_protected", on_iret_protected)
replace_helper("iret_real", on_iret_real)


def raise_nmi(native: Any) -> None:
    """The NMI pin of the VM with this record has risen."""
    native.nmi_pending = 1
    native.stop = 1
    native.limit = 0


def is_due(native: Any) -> bool:
    """Whether an NMI shall be delivered now."""
    return bool(native.nmi_pending and not native.nmi_blocked)


def begin(native: Any) -> None:
    """One is about to be delivered."""
    native.nmi_pending = 0
    native.nmi_blocked = 1
