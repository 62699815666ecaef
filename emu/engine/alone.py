"""An instruction that runs alone: what a step needs to stop right behind it, see :mod:`emu.cpu.stepping`.

The engine ends a block behind its first instruction while there is an interrupt shadow.  So one is made
(``step_shadow``) where an instruction within a block shall run alone.
"""

from __future__ import annotations

from emu.engine.cpustate import BASE, CS, HF_CS64, HF_INHIBIT_IRQ, HFLAGS, RIP
from emu.engine.native import inlined, load32, load64, outlined, store32
from emu.engine.state import Cpu, cpu_record, vm_of

NOWHERE = -1  # step_gva: not within a block that was stopped

# step_alone: how far an instruction that runs alone has come
NOT_ALONE, ASKED, LAST, EXECUTING, FETCHING, AGAIN = 0, 1, 2, 3, 4, 5
# ASKED: the next block shall hold one instruction.  LAST: that is the last one of its block, so the engine shall make
# the block without the shadow.  EXECUTING: it is being executed.  FETCHING: nothing runs yet, code may be fetched.
# AGAIN: it stores into its own block, so the engine has left that and executes it once more, in a block of its own.

REFUSED = 8  # miss_kind: the access must be made by an instruction that runs alone
REFUSED_FETCH = 9  # miss_kind: the same for code; no instruction has begun


@inlined
def within_block(cpu: Cpu) -> bool:
    """Whether the guest was stopped in the middle of a block."""
    return bool(cpu.step_gva != NOWHERE and cpu.block_size != 0)


@inlined
def refuses(cpu: Cpu) -> bool:
    """Whether TLB misses and trapped stores must wait for an instruction that runs alone."""
    return bool(vm_of(cpu).step_precise and cpu.step_alone == NOT_ALONE)


@inlined
def set_shadow(cpu: Cpu) -> None:
    cpu.step_shadow = 1
    store32(cpu.env + HFLAGS, load32(cpu.env + HFLAGS) | HF_INHIBIT_IRQ)


@inlined
def clear_shadow(cpu: Cpu) -> None:
    """Take back :func:`set_shadow`; a shadow that the guest made stays."""
    if cpu.step_shadow:
        cpu.step_shadow = 0
        store32(cpu.env + HFLAGS, load32(cpu.env + HFLAGS) & ~HF_INHIBIT_IRQ)


@inlined
def ask(cpu: Cpu, gva: int) -> None:
    """The instruction at ``gva``, within the block that was entered, shall run alone when the engine starts."""
    cpu.step_gva = gva
    cpu.step_alone = ASKED
    set_shadow(cpu)


@outlined("vq")
def run_refused_alone(cpu_at: int) -> None:
    """The engine was left because of :func:`refuses`: let the access come again."""
    cpu = cpu_record(cpu_at)
    if cpu.miss_kind == REFUSED_FETCH:
        cpu.step_alone = FETCHING
        return
    rip = load64(cpu.env + RIP)
    if not load32(cpu.env + HFLAGS) & HF_CS64:
        rip = (rip + load64(cpu.env + CS + BASE)) & 0xFFFF_FFFF
    ask(cpu, rip)


@inlined
def forget_instruction(cpu: Cpu) -> None:
    """The instruction at RIP could not be executed yet, and its block was left."""
    clear_shadow(cpu)
    cpu.step_alone = NOT_ALONE
    cpu.step_gva = NOWHERE
