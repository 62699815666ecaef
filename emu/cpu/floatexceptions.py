"""Floating-point exceptions that the guest does not mask (SDM vol. 1, 8.5 to 8.7, 11.5).

Blocks are translated for what is masked: two spare bits of HFLAGS say that the x87's control word or MXCSR lets an
exception through, so programs that mask all of them, which is nearly every one, pay nothing.  With such a bit each
instruction that may raise one is a block of its own.  :func:`before_sse` and :func:`before_x87` keep what it may
change; :func:`after_sse` and :func:`after_x87` look at the engine's flags, and where the instruction was not to be
completed, put that back.

* SSE: #XM, or #UD while CR4.OSXMMEXCPT is 0, with the destination as it was.
* x87: the exception stays pending until the next waiting instruction, which is #MF while CR0.NE is 1.

Not done: the denormal-operand exception, which the engine does not see; the results with an adjusted exponent of an
overflow or underflow in registers; FERR# and interrupt 13 while CR0.NE is 0.
"""

from __future__ import annotations

import numpy as np

from emu.cpu.branchfaults import decode_running
from emu.cpu.floatflags import (
    EXCEPTIONS,
    FPU_CONTROL,
    FPU_STATUS,
    MXCSR,
    SSE_FLAGS,
    SUMMARY,
    TOP,
    X87_FLAGS,
    show_sse,
    show_x87,
)
from emu.engine.cpustate import CC_DST, CR0, CR0_NE, CR4, CR4_OSXMMEXCPT, HFLAGS, RIP
from emu.engine.engine import leave_engine, stop
from emu.engine.helpers import (
    original_fistl,
    original_fistll,
    original_fisttl,
    original_fisttll,
    original_fstl,
    original_fsts,
    raise_exception,
)
from emu.engine.native import (
    address_of,
    global_cell,
    inlined,
    load8,
    load16,
    load32,
    load64,
    outlined,
    store8,
    store32,
    store64,
)
from emu.engine.state import Cpu
from emu.engine.vectors import VECTOR_MF, VECTOR_UD, VECTOR_XM

_INVALID, _ZERO_DIVIDE, _OVERFLOW, _UNDERFLOW = 1, 4, 8, 16
_BEFORE_RESULT = _INVALID | 2 | _ZERO_DIVIDE  # exceptions that leave the destination as it is
_NOT_STORED = _INVALID | _OVERFLOW | _UNDERFLOW  # exceptions with which a store does not store
_REGISTERS, _X87_REGISTERS, _XMM, _XMM_SIZE = 0, TOP, 824, 64  # in the CPU state
_GENERAL_WORDS, _X87_WORDS = 16, 18  # sixteen registers; TOP, status, control, tags, eight registers of 16 bytes
_FLAG_WORDS = (HFLAGS - CC_DST) // 8

_kept = np.zeros(_GENERAL_WORDS + _FLAG_WORDS + _X87_WORDS + 34, np.int64)
_kept_cell, _kept_cell_at = global_cell("emu_cpu_floatexceptions")
_kept_cell[0] = address_of(_kept)


@inlined
def _copy(source: int, target: int, words: int) -> None:
    for offset in range(0, 8 * words, 8):
        store64(target + offset, load64(source + offset))


@inlined
def _x87_at(env: int) -> int:
    """TOP, the status and control words, the tags and the registers lie side by side, from a multiple of 4 on."""
    return env + _X87_REGISTERS


@outlined("vqq")
def _keep(env: int, restore: int) -> None:
    """Keep what an arithmetic instruction may change, or put it back."""
    at = load64(_kept_cell_at())
    for place, words in (
        (env + _REGISTERS, _GENERAL_WORDS),
        (env + CC_DST, _FLAG_WORDS),
        (_x87_at(env), _X87_WORDS + 1),
    ):
        if restore:
            _copy(at, place, words)
        else:
            _copy(place, at, words)
        at += 8 * words
    for register in range(16):
        place = env + _XMM + _XMM_SIZE * register
        if restore:
            _copy(at + 16 * register, place, 2)
        else:
            _copy(place, at + 16 * register, 2)


# --- SSE ----------------------------------------------------------------------------------------------------------


@inlined
def before_sse(cpu: Cpu) -> None:
    """An instruction that may raise SIMD floating-point exceptions is to be executed."""
    show_sse(cpu.env)
    store8(cpu.env + SSE_FLAGS, 0)
    _keep(cpu.env, 0)


@inlined
def after_sse(cpu: Cpu) -> None:
    """It was executed; when it raises an exception this does not return."""
    env = cpu.env
    flags = load8(env + SSE_FLAGS) & EXCEPTIONS
    unmasked = flags & ~(load32(env + MXCSR) >> 7)
    if unmasked == 0:
        return
    if unmasked & _BEFORE_RESULT:
        flags &= _BEFORE_RESULT
    store8(env + SSE_FLAGS, 0)
    _keep(env, 1)
    store32(env + MXCSR, load32(env + MXCSR) | flags)
    raise_exception(cpu, VECTOR_XM if load64(env + CR4) & CR4_OSXMMEXCPT else VECTOR_UD, 0)


# --- x87 ----------------------------------------------------------------------------------------------------------


@inlined
def raise_pending(cpu: Cpu) -> None:
    """A waiting instruction is to be executed; when an exception is pending this does not return."""
    show_x87(cpu.env)
    if load16(cpu.env + FPU_STATUS) & SUMMARY and load64(cpu.env + CR0) & CR0_NE:
        raise_exception(cpu, VECTOR_MF, 0)


@inlined
def before_x87(cpu: Cpu) -> None:
    """A waiting x87 instruction that may raise exceptions of its own is to be executed."""
    raise_pending(cpu)
    store8(cpu.env + X87_FLAGS, 0)
    _keep(cpu.env, 0)


@inlined
def after_x87(cpu: Cpu) -> None:
    """It was executed."""
    env = cpu.env
    flags = load8(env + X87_FLAGS) & EXCEPTIONS
    if flags & ~load16(env + FPU_CONTROL) & _BEFORE_RESULT:
        _keep(env, 1)
        store8(env + X87_FLAGS, flags & _BEFORE_RESULT)
    show_x87(env)


@inlined
def _convert(env: int, opcode: int, extension: int) -> None:
    """Set the engine's flags as a store of ST(0) to memory does."""
    if opcode == 0xD9:
        original_fsts(env)
    elif extension == 1 and opcode == 0xDD:
        original_fisttll(env)
    elif extension == 7:
        original_fistll(env)
    elif opcode == 0xDD:
        original_fstl(env)
    else:
        value = original_fisttl(env) if extension == 1 else original_fistl(env)
        if opcode == 0xDF and not -0x8000 <= value < 0x8000:
            store8(env + X87_FLAGS, _INVALID)


@inlined
def before_x87_store(cpu: Cpu) -> None:
    """An instruction that converts ST(0) and stores it to memory is to be executed.

    When the exception that it raises is not masked, it is complete without the store, and this does not return.
    """
    env = cpu.env
    before_x87(cpu)
    length = decode_running(cpu)
    if length == 0:
        return
    _convert(env, cpu.insn_opcode, cpu.insn_modrm >> 3 & 7)
    if load8(env + X87_FLAGS) & ~load16(env + FPU_CONTROL) & _NOT_STORED:
        show_x87(env)
        store64(env + RIP, load64(env + RIP) + length)
        cpu.stopped = 1
        stop(cpu)
        leave_engine(cpu)
    store8(env + X87_FLAGS, 0)
