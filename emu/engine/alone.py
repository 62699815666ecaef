"""An instruction that runs alone: what a step needs to stop right behind it, see :mod:`emu.cpu.stepping`.

The engine ends a block behind its first instruction while there is an interrupt shadow.  So one is made
(``step_shadow``) where an instruction within a block shall run alone.
"""

from __future__ import annotations

from typing import Any

from emu.engine.cpustate import BASE, CS, HF_CS64, HF_INHIBIT_IRQ, HFLAGS, RIP
from emu.engine.native import inlined, load32, load64, outlined, store32
from emu.engine.state import state_at

NOWHERE = -1  # step_gva: not within a block that was stopped

# step_alone: how far an instruction that runs alone has come
NOT_ALONE, ASKED, LAST, RUNNING, FETCHING = 0, 1, 2, 3, 4
# ASKED: the next block shall hold one instruction.  LAST: that is the last one of its block, so the engine shall make
# the block without the shadow.  RUNNING: it is being executed.  FETCHING: nothing runs yet, code may be fetched.

REFUSED = 8  # miss_kind: the access must be made by an instruction that runs alone
REFUSED_FETCH = 9  # miss_kind: the same for code; no instruction has begun


@inlined
def within_block(vm: Any) -> bool:
    """Whether the guest was stopped in the middle of a block."""
    return bool(vm.step_gva != NOWHERE and vm.block_size != 0)


@inlined
def refuses(vm: Any) -> bool:
    """Whether TLB misses and trapped stores must wait for an instruction that runs alone."""
    return bool(vm.step_precise and vm.step_alone == NOT_ALONE)


@inlined
def set_shadow(vm: Any) -> None:
    vm.step_shadow = 1
    store32(vm.env + HFLAGS, load32(vm.env + HFLAGS) | HF_INHIBIT_IRQ)


@inlined
def clear_shadow(vm: Any) -> None:
    """Take back :func:`set_shadow`; a shadow that the guest made stays."""
    if vm.step_shadow:
        vm.step_shadow = 0
        store32(vm.env + HFLAGS, load32(vm.env + HFLAGS) & ~HF_INHIBIT_IRQ)


@inlined
def ask(vm: Any, gva: int) -> None:
    """The instruction at ``gva``, within the block that was entered, shall run alone when the engine starts."""
    vm.step_gva = gva
    vm.step_alone = ASKED
    set_shadow(vm)


@outlined("vq")
def run_refused_alone(vm_at: int) -> None:
    """The engine was left because of :func:`refuses`: let the access come again."""
    vm = state_at(vm_at)
    if vm.miss_kind == REFUSED_FETCH:
        vm.step_alone = FETCHING
        return
    rip = load64(vm.env + RIP)
    if not load32(vm.env + HFLAGS) & HF_CS64:
        rip = (rip + load64(vm.env + CS + BASE)) & 0xFFFF_FFFF
    ask(vm, rip)


@inlined
def forget_instruction(vm: Any) -> None:
    """The instruction at RIP could not be executed yet, and its block was left."""
    clear_shadow(vm)
    vm.step_alone = NOT_ALONE
    vm.step_gva = NOWHERE
