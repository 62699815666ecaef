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

from emu.cpu.guestmem import load_linear_code_byte
from emu.engine.alone import (
    AGAIN,
    ASKED,
    EXECUTING,
    FETCHING,
    LAST,
    NOT_ALONE,
    NOWHERE,
    ask,
    clear_shadow,
    set_shadow,
    within_block,
)
from emu.engine.cpustate import HF_INHIBIT_IRQ, HFLAGS
from emu.engine.engine import stop
from emu.engine.events import Cr3Switch, Event, ShadowFill, ShadowZap, TableWrite
from emu.engine.native import inlined, load32, outlined
from emu.engine.state import Cpu, Vm, cpu_record, vm_of

UNLIMITED = 1 << 62  # step_count: no limit
BEGINS, SETTLED, BEGINS_ALONE = 0, 1, 2  # results of at_block
WITHIN_BLOCK = 1 << Cr3Switch.KIND | 1 << TableWrite.KIND | 1 << ShadowFill.KIND | 1 << ShadowZap.KIND


# --- native plane -----------------------------------------------------------------------------------------------


@inlined
def _restart(cpu: Cpu) -> None:
    """Have the engine begin anew at the block that it is about to execute."""
    cpu.stopped = 1
    stop(cpu)


@inlined
def _is_over(cpu: Cpu) -> bool:
    vm = vm_of(cpu)
    return bool(vm.step_hit or vm.step_count <= 0)


@outlined("qq")
def _code_sum(cpu_at: int) -> int:
    """A checksum of the code of the block that was entered last."""
    cpu = cpu_record(cpu_at)
    value = 0
    for gva in range(cpu.block_gva, cpu.block_gva + cpu.block_size):
        value = (value * 31 + load_linear_code_byte(cpu, gva)) & 0xFFFF_FFFF_FFFF
    return value


@inlined
def _leave_alone(cpu: Cpu) -> None:
    """The instruction that ran alone has been executed."""
    if cpu.step_alone == EXECUTING:
        if cpu.counting:
            vm_of(cpu).step_count -= 1
        if within_block(cpu) and _code_sum(cpu.at) != cpu.step_sum:
            # it has changed its own block: the engine would have left that, and a new block begins behind it
            cpu.vtime -= cpu.block_gva + cpu.block_size - cpu.step_gva
            cpu.block_size = 0
            cpu.entered_size = 0
            cpu.step_gva = NOWHERE
    cpu.step_alone = NOT_ALONE
    cpu.step_shadow = 0  # the engine has cleared it behind the instruction


@inlined
def note_executed(cpu: Cpu) -> None:
    """What a processor was about to do is done, and no block of its own follows that would note it."""
    if cpu.stepping and cpu.step_alone == EXECUTING:
        _leave_alone(cpu)
        if _is_over(cpu):
            vm_of(cpu).stop = 1


@outlined("qqqi")
def at_block(cpu_at: int, gva: int, size: int) -> int:
    """The engine is about to execute a block while stepping is on.

    Returns:
        SETTLED; BEGINS when the block begins as it does without stepping; BEGINS_ALONE when it then holds the one
        instruction that is to run alone.
    """
    cpu = cpu_record(cpu_at)
    vm = vm_of(cpu)
    begins = BEGINS
    if cpu.step_alone == AGAIN:
        clear_shadow(cpu)
        cpu.step_alone = NOT_ALONE
        begins = BEGINS_ALONE
    elif cpu.step_alone == EXECUTING or cpu.step_alone == FETCHING:
        _leave_alone(cpu)
    if not within_block(cpu) or gva != cpu.step_gva:
        cpu.step_gva = NOWHERE
        if _is_over(cpu):
            vm.stop = 1
        return begins
    rest = cpu.block_gva + cpu.block_size - gva
    if cpu.step_alone == ASKED:
        if size >= rest:
            cpu.step_alone = LAST
            clear_shadow(cpu)
            _restart(cpu)
        else:
            cpu.step_alone = EXECUTING
            cpu.step_gva = gva + size
            cpu.step_size = size
            cpu.step_sum = _code_sum(cpu_at)
    elif cpu.step_alone == LAST:
        if size > rest and not cpu.step_shadow:
            set_shadow(cpu)
            _restart(cpu)
        else:
            cpu.step_alone = EXECUTING
            cpu.step_gva = NOWHERE
    elif _is_over(cpu):
        cpu.step_over = 1
        _restart(cpu)
    elif cpu.counting or size > rest:  # a longer block than before would run past the end
        ask(cpu, gva)
        _restart(cpu)
    else:
        cpu.step_gva = gva + size if size < rest else NOWHERE
    return SETTLED


@inlined
def entered_block(cpu: Cpu, gva: int, alone: bool) -> None:
    """A block has begun while stepping is on; ``alone`` as :func:`at_block` has said."""
    if alone or cpu.single or load32(cpu.env + HFLAGS) & HF_INHIBIT_IRQ:
        cpu.step_alone = EXECUTING  # it holds one instruction anyway
    elif cpu.counting:
        ask(cpu, gva)
        _restart(cpu)
    elif not vm_of(cpu).step_precise:
        cpu.stepping = 0  # what is waited for happens outside blocks


# --- Python plane -----------------------------------------------------------------------------------------------


def begin(
    vm: Vm, cpus: Iterable[Cpu], instructions: int, kinds: Iterable[type[Event]], counted: int | None = None
) -> None:
    """From now on run until ``instructions`` have been executed or an event of ``kinds`` has happened.

    Args:
        cpus: the records of all processors of the VM.
        counted: the number of the processor whose instructions count; all by default.
    """
    mask = sum(1 << kind.KIND for kind in frozenset(kinds))
    vm.event_stop_mask = mask
    vm.step_precise = int(mask & WITHIN_BLOCK != 0)
    vm.step_count = instructions
    vm.step_hit = 0
    for cpu in cpus:
        cpu.counting = int(instructions != UNLIMITED and counted in (None, cpu.index))
        cpu.step_over = 0
        cpu.stepping = int(cpu.counting or mask != 0 or is_within_block(cpu))


def is_over(vm: Vm) -> bool:
    """Whether what :func:`begin` asked for has happened."""
    return bool(vm.step_hit or vm.step_count <= 0)


def is_within_block(cpu: Cpu) -> bool:
    """Whether a processor stands in the middle of a block, where nothing may happen to it but its next instruction."""
    return bool(cpu.step_gva != NOWHERE and cpu.block_size)
