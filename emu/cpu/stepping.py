"""Stepping: how the guest is stopped right behind an instruction without noticing it.

What a guest does depends on where its blocks of code end: time advances and interrupts are taken there.  So a step that
ends in the middle of a block changes neither.  The block stays entered, with all of its time; its rest is begun later
without any of what happens when a block begins (``step_gva`` is where).  A stepped run therefore has the same events at
the same virtual times as a free one.

Two things need that an instruction runs alone, in a block of its own (:mod:`emu.engine.alone`):

* counting instructions: every one of them runs alone,
* stopping at what happens within a block, which is TLB misses and trapped stores: they are refused, and the instruction
  that made them runs alone, with nothing refused.

The last instruction of a block runs alone without an interrupt shadow, under which some of them behave differently.
While no step is asked for, none of this costs anything.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from emu.cpu.guestmem import load_linear_code_byte
from emu.engine.alone import (
    ASKED,
    FETCHING,
    LAST,
    NOT_ALONE,
    NOWHERE,
    RUNNING,
    ask,
    clear_shadow,
    set_shadow,
    within_block,
)
from emu.engine.cpustate import HF_INHIBIT_IRQ, HFLAGS
from emu.engine.engine import stop
from emu.engine.events import Cr3Switch, Event, ShadowFill, ShadowZap, TableWrite
from emu.engine.native import inlined, load32, outlined
from emu.engine.state import state_at

UNLIMITED = 1 << 62  # step_count: no limit
WITHIN_BLOCK = 1 << Cr3Switch.KIND | 1 << TableWrite.KIND | 1 << ShadowFill.KIND | 1 << ShadowZap.KIND


# --- native plane -----------------------------------------------------------------------------------------------


@inlined
def _restart(vm: Any) -> None:
    """Have the engine begin anew at the block that it is about to execute."""
    vm.stopped = 1
    stop(vm)


@inlined
def _is_over(vm: Any) -> bool:
    return bool(vm.step_hit or vm.step_count <= 0)


@outlined("qq")
def _code_sum(vm_at: int) -> int:
    """A checksum of the code of the block that was entered last."""
    vm = state_at(vm_at)
    value = 0
    for gva in range(vm.block_gva, vm.block_gva + vm.block_size):
        value = (value * 31 + load_linear_code_byte(vm, gva)) & 0xFFFF_FFFF_FFFF
    return value


@inlined
def _leave_alone(vm: Any) -> None:
    """The instruction that ran alone has been executed."""
    if vm.step_alone == RUNNING:
        if vm.step_count != UNLIMITED:
            vm.step_count -= 1
        if within_block(vm) and _code_sum(vm.at) != vm.step_sum:
            # it has changed its own block: the engine would have left that, and begun anew with this instruction
            vm.vtime += vm.step_size
            vm.step_gva = NOWHERE
    vm.step_alone = NOT_ALONE
    vm.step_shadow = 0  # the engine has cleared it behind the instruction


@outlined("qqqi")
def at_block(vm_at: int, gva: int, size: int) -> int:
    """The engine is about to execute a block while stepping is on.

    Returns:
        1 when that is settled, 0 when the block begins as it does without stepping.
    """
    vm = state_at(vm_at)
    if vm.step_alone == RUNNING or vm.step_alone == FETCHING:
        _leave_alone(vm)
    if not within_block(vm) or gva != vm.step_gva:
        vm.step_gva = NOWHERE
        if _is_over(vm):
            vm.stop = 1
        return 0
    rest = vm.block_gva + vm.block_size - gva
    if vm.step_alone == ASKED:
        if size >= rest:
            vm.step_alone = LAST
            clear_shadow(vm)
            _restart(vm)
        else:
            vm.step_alone = RUNNING
            vm.step_gva = gva + size
            vm.step_size = size
            vm.step_sum = _code_sum(vm_at)
    elif vm.step_alone == LAST:
        if size > rest and not vm.step_shadow:
            set_shadow(vm)
            _restart(vm)
        else:
            vm.step_alone = RUNNING
            vm.step_gva = NOWHERE
    elif _is_over(vm):
        vm.step_over = 1
        _restart(vm)
    elif vm.step_count != UNLIMITED or size > rest:  # a longer block than before would run past the end
        ask(vm, gva)
        _restart(vm)
    else:
        vm.step_gva = gva + size if size < rest else NOWHERE
    return 1


@inlined
def entered_block(vm: Any, gva: int) -> None:
    """A block has begun while stepping is on."""
    if vm.single or load32(vm.env + HFLAGS) & HF_INHIBIT_IRQ:
        vm.step_alone = RUNNING  # it holds one instruction anyway
    elif vm.step_count != UNLIMITED:
        ask(vm, gva)
        _restart(vm)
    elif not vm.step_precise:
        vm.stepping = 0  # what is waited for happens outside blocks


# --- Python plane -----------------------------------------------------------------------------------------------


def begin(native: Any, instructions: int, kinds: Iterable[type[Event]]) -> None:
    """From now on run until ``instructions`` have been executed or an event of ``kinds`` has happened."""
    mask = sum(1 << kind.KIND for kind in frozenset(kinds))
    native.event_stop_mask = mask
    native.step_precise = int(mask & WITHIN_BLOCK != 0)
    native.step_count = instructions
    native.step_hit = 0
    native.step_over = 0
    native.stepping = int(instructions != UNLIMITED or mask != 0 or is_within_block(native))


def is_over(native: Any) -> bool:
    """Whether what :func:`begin` asked for has happened."""
    return bool(native.step_hit or native.step_count <= 0)


def is_within_block(native: Any) -> bool:
    """Whether the guest stands in the middle of a block, where nothing may happen to it but its next instruction."""
    return bool(native.step_gva != NOWHERE and native.block_size)
