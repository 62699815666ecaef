"""What is called before or behind some instructions (:mod:`emu.cpu.translation`), which begin their block.

RIP and the flags are in the CPU state then, so an exception can be raised by the engine's own means.
"""

from __future__ import annotations

from emu.cpu.branchfaults import decode_running, linear_rip
from emu.cpu.decode import operand_address, rm_register
from emu.cpu.floatexceptions import (
    after_sse,
    after_x87,
    before_sse,
    before_x87,
    before_x87_store,
    raise_pending,
)
from emu.cpu.floatflags import show_sse
from emu.cpu.guestmem import load_operand, load_system
from emu.cpu.returns import return_near
from emu.cpu.segments import PRESENT, attributes_of, base_of
from emu.engine.cpustate import BASE, CR0, CR4, CR4_UMIP, EFLAGS, FLAG_RF, GDTR, HF_CPL, HFLAGS, LIMIT
from emu.engine.engine import leave_engine, running_cpu, stop
from emu.engine.helpers import original_enter_mmx, raise_exception
from emu.engine.native import callback, inlined, load32, load64, outlined, store64
from emu.engine.state import Cpu, cpu_record
from emu.engine.vectors import VECTOR_GP
from emu.mmu.walk import OK, is_canonical_base

# what to do
CONSUME_RF = 1  # RF is good for one instruction
TABLE_BASE = 2  # LGDT, LIDT: #GP(0) for a base that is not canonical
SEGMENT_BASE = 3  # WRFSBASE, WRGSBASE: the same
RETURN = 5  # RET with an immediate operand that is not sign-extended, which the engine does
SHOW_SSE = 4  # STMXCSR stores MXCSR with the flags that are set
SYSTEM_BASE = 6  # LLDT, LTR in long mode: #GP(selector) for such a base in the descriptor
X87_WAITING, X87_ARITHMETIC, X87_STORE, SSE = 7, 8, 9, 10  # see emu.cpu.floatexceptions
X87_DONE, SSE_DONE = 11, 12  # behind such an instruction
MMX_DONE = 13  # behind an instruction of SSSE3 on MMX registers: all of them are valid, and TOP is 0
MACHINE_STATUS = 14  # SMSW of 32 bits outside 64-bit mode, of which the engine stores 16 (AMD APM vol. 3, SMSW)


@outlined("vqq")
def _check_system_base(cpu_at: int, selector: int) -> None:
    """Look at the base in a descriptor of 16 bytes; all else is the engine's to check."""
    cpu = cpu_record(cpu_at)
    at = load64(cpu.env + GDTR + BASE) + (selector & 0xFFF8)
    if selector & 4 or selector < 8 or selector | 15 > load32(cpu.env + GDTR + LIMIT) or load_system(cpu, at, 8) != OK:
        return
    low = cpu.sys_value
    if attributes_of(low) & PRESENT and load_system(cpu, at + 8, 4) == OK:
        if not is_canonical_base(cpu, cpu.sys_value << 32 | base_of(low)):
            raise_exception(cpu, VECTOR_GP, selector & 0xFFFC)


@outlined("vqq")
def _look_at_exceptions(cpu_at: int, what: int) -> None:
    cpu = cpu_record(cpu_at)
    if what == SSE:
        before_sse(cpu)
    elif what == SSE_DONE:
        after_sse(cpu)
    elif what == X87_WAITING:
        raise_pending(cpu)
    elif what == X87_ARITHMETIC:
        before_x87(cpu)
    elif what == X87_STORE:
        before_x87_store(cpu)
    elif what == X87_DONE:
        after_x87(cpu)
    else:
        original_enter_mmx(cpu.env)


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
    if X87_WAITING <= what <= MMX_DONE:
        _look_at_exceptions(cpu.at, what)
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
    elif what == MACHINE_STATUS:
        if load32(env + HFLAGS) & HF_CPL < 3 or not load64(env + CR4) & CR4_UMIP:
            store64(env + 8 * rm_register(cpu), load64(env + CR0) & 0xFFFF_FFFF)
    elif what == SYSTEM_BASE and load32(env + HFLAGS) & HF_CPL == 0:
        if cpu.insn_modrm >> 6 == 3:
            _check_system_base(cpu.at, load64(env + 8 * rm_register(cpu)) & 0xFFFF)
        elif load_operand(cpu, operand_address(cpu.at, length), 2) == OK:
            _check_system_base(cpu.at, cpu.sys_value)


@inlined
def keep_rf(cpu: Cpu) -> None:
    """The instruction at RIP is executed again, as if it had not begun: RF is as it was before it."""
    if cpu.rf_time == cpu.vtime and cpu.rf_gva == linear_rip(cpu):
        store64(cpu.env + EFLAGS, load64(cpu.env + EFLAGS) | FLAG_RF)
