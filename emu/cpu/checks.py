"""What is called before some instructions (:mod:`emu.cpu.translation`), at the beginning of their block.

RIP and the flags are in the CPU state then, so an exception can be raised by the engine's own means.
"""

from __future__ import annotations

from emu.cpu.branchfaults import decode_running, linear_rip
from emu.cpu.decode import operand_address, rm_register
from emu.cpu.floatflags import show_sse
from emu.cpu.guestmem import load_system
from emu.cpu.returns import return_near
from emu.engine.cpustate import EFLAGS, FLAG_RF
from emu.engine.engine import leave_engine, running_cpu, stop
from emu.engine.helpers import raise_exception
from emu.engine.native import callback, inlined, load64, store64
from emu.engine.state import Cpu, cpu_record
from emu.engine.vectors import VECTOR_GP
from emu.mmu.walk import OK, is_canonical_base

# what to do
CONSUME_RF = 1  # RF is good for one instruction
TABLE_BASE = 2  # LGDT, LIDT: #GP(0) for a base that is not canonical
SEGMENT_BASE = 3  # WRFSBASE, WRGSBASE: the same
RETURN = 5  # RET with an immediate operand that is not sign-extended, which the engine does
SHOW_SSE = 4  # STMXCSR stores MXCSR with the flags that are set


@callback("vq")
def before_instruction(what: int) -> None:
    """In the place of the helper for SKINIT, which this processor does not have."""
    if running_cpu() == 0:
        return
    cpu = cpu_record(running_cpu())
    env = cpu.env
    if what == CONSUME_RF:
        store64(env + EFLAGS, load64(env + EFLAGS) & ~FLAG_RF)
        cpu.rf_gva = linear_rip(cpu)
        cpu.rf_time = cpu.vtime
        return
    if what == SHOW_SSE:
        show_sse(env)
        return
    length = decode_running(cpu)
    if length == 0:
        return
    if what == RETURN:
        return_near(cpu)
        cpu.stopped = 1  # the engine's own is not executed
        stop(cpu)
        leave_engine(cpu)
    if what == TABLE_BASE:
        at = operand_address(cpu.at, length)
        if load_system(cpu, at + 2, 8) == OK and not is_canonical_base(cpu, cpu.sys_value):
            raise_exception(cpu, VECTOR_GP, 0)
    elif what == SEGMENT_BASE:
        if not is_canonical_base(cpu, load64(env + 8 * rm_register(cpu))):
            raise_exception(cpu, VECTOR_GP, 0)


@inlined
def keep_rf(cpu: Cpu) -> None:
    """The instruction at RIP is executed again, as if it had not begun: RF is as it was before it."""
    if cpu.rf_time == cpu.vtime and cpu.rf_gva == linear_rip(cpu):
        store64(cpu.env + EFLAGS, load64(cpu.env + EFLAGS) | FLAG_RF)
