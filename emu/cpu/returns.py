"""IRET, SYSRET, RET and far CALL: what the engine's own do not look at (SDM vol. 2A, CALL, IRET; vol. 2B, RET, SYSRET).

In long mode the flags that IRET pops must not have VM, and the address that it pops, or that SYSRET takes from RCX,
must be canonical: else #GP(0), with nothing changed.

A return to an outer level takes away the data segments that this level may not use, and null selectors with an RPL: the
selector becomes 0.  The bases of FS and GS, which count in 64-bit mode, stay as they are.

RF counts for the instruction that IRET returns to.  While no breakpoint is enabled nobody can tell, and it is dropped
at once: the engine would translate that instruction anew for it.
"""

from __future__ import annotations

from emu.cpu.decode import MEMORY, P_DATA, code_byte_at
from emu.cpu.segments import attributes_of, load_descriptor, stack_mask, system_type
from emu.engine import cpustate
from emu.engine.cpustate import (
    BASE,
    DS,
    EFER_LMA,
    EFLAGS,
    ES,
    FLAG_RF,
    FLAG_VM,
    FS,
    GS,
    HF_CPL,
    HF_CS32,
    HF_CS64,
    HFLAGS,
    RCX,
    RIP,
    RSP,
    SELECTOR,
    SS,
)
from emu.engine.debugregs import DR7, DR7_ENABLED
from emu.engine.engine import running_cpu
from emu.engine.helpers import (
    load_guest_32,
    load_guest_64,
    original_call_protected,
    original_iret_protected,
    original_iret_real,
    original_return_protected,
    original_sysret,
    raise_exception,
)
from emu.engine.native import callback, inlined, load32, load64, outlined, store32, store64
from emu.engine.state import Cpu, cpu_record
from emu.engine.vectors import VECTOR_GP
from emu.mmu.walk import OK, is_canonical

_CALL_GATE_16 = 4  # descriptor type
_WIDE, _LONG = 1, 2  # operand sizes, as the engine passes them: 32 and 64 bits


@inlined
def _check_frame(cpu: Cpu, size: int) -> None:
    """The frame that IRET finds on the stack in long mode."""
    env = cpu.env
    if load32(env + HFLAGS) & HF_CS64:
        at = load64(env + RSP)
    else:
        mask = 0xFFFF_FFFF if load32(env + SS + cpustate.FLAGS) >> 22 & 1 else 0xFFFF
        at = ((load64(env + RSP) & mask) + load64(env + SS + BASE)) & 0xFFFF_FFFF
    if size == _LONG:
        refused = not is_canonical(cpu, load_guest_64(env, at)) or load_guest_64(env, at + 16) & FLAG_VM != 0
    else:
        load_guest_32(env, at)  # of a page that is not there CR2 tells the frame's first address
        refused = size == _WIDE and load_guest_32(env, at + 8) & FLAG_VM != 0
    if refused:
        raise_exception(cpu, VECTOR_GP, 0)


@inlined
def _settle_segments(env: int, level: int, fs_base: int, gs_base: int) -> None:
    """The processor has returned, from CPL ``level``; these were the bases then."""
    if load32(env + HFLAGS) & HF_CPL == level or load64(env + EFLAGS) & FLAG_VM:
        return
    for segment in (ES, DS, FS, GS):
        if load32(env + segment + SELECTOR) & 0xFFFC == 0:
            store32(env + segment + SELECTOR, 0)
            if segment == FS:
                store64(env + FS + BASE, fs_base)
            elif segment == GS:
                store64(env + GS + BASE, gs_base)


@inlined
def _drop_rf(env: int) -> None:
    if load64(env + EFLAGS) & FLAG_RF and not load64(env + DR7) & DR7_ENABLED:
        store64(env + EFLAGS, load64(env + EFLAGS) & ~FLAG_RF)


@callback("vqii")
def on_iret_protected(env: int, size: int, following: int) -> None:
    """The engine's helper for IRET in protected mode."""
    if running_cpu() != 0 and load64(env + cpustate.EFER) & EFER_LMA:
        _check_frame(cpu_record(running_cpu()), size)
    level, fs_base, gs_base = load32(env + HFLAGS) & HF_CPL, load64(env + FS + BASE), load64(env + GS + BASE)
    original_iret_protected(env, size, following)
    _settle_segments(env, level, fs_base, gs_base)
    _drop_rf(env)


@callback("vqii")
def on_return_protected(env: int, size: int, released: int) -> None:
    """The engine's helper for far RET in protected mode."""
    level, fs_base, gs_base = load32(env + HFLAGS) & HF_CPL, load64(env + FS + BASE), load64(env + GS + BASE)
    original_return_protected(env, size, released)
    _settle_segments(env, level, fs_base, gs_base)


@callback("vqi")
def on_iret_real(env: int, size: int) -> None:
    """The engine's helper for IRET in real and virtual-8086 mode."""
    original_iret_real(env, size)
    _drop_rf(env)


@callback("vqiqiq")
def on_call_protected(env: int, selector: int, offset: int, size: int, following: int) -> None:
    """The engine's helper for far CALL in protected mode: a 16-bit gate has an offset of 16 bits."""
    narrow = False
    if running_cpu() != 0 and selector & 0xFFFC:
        cpu = cpu_record(running_cpu())
        if load_descriptor(cpu, selector & 0xFFFF) == OK:
            narrow = system_type(attributes_of(cpu.sys_value)) == _CALL_GATE_16
    original_call_protected(env, selector, offset, size, following)
    if narrow:
        store64(env + RIP, load64(env + RIP) & 0xFFFF)


@outlined("vq")
def _return_near(cpu_at: int) -> None:
    cpu = cpu_record(cpu_at)
    env = cpu.env
    long_mode = cpu.insn_flags & HF_CS64 != 0
    wide = (cpu.insn_flags & HF_CS32 != 0) != (cpu.insn_prefixes & P_DATA != 0)
    rsp = load64(env + RSP)
    mask = -1 if long_mode else stack_mask(load32(env + SS + cpustate.FLAGS))
    at = rsp if long_mode else (rsp & mask) + load64(env + SS + cpustate.BASE) & 0xFFFF_FFFF
    slot = 8 if long_mode else 4 if wide else 2
    target = load_guest_64(env, at) if long_mode else load_guest_32(env, at) & (-1 if wide else 0xFFFF)
    released = code_byte_at(cpu, cpu.insn_at, MEMORY) | code_byte_at(cpu, cpu.insn_at + 1, MEMORY) << 8
    store64(env + RSP, rsp & ~mask | (rsp + slot + released) & mask)
    store64(env + RIP, target)


@inlined
def return_near(cpu: Cpu) -> None:
    """RET imm16, which was decoded; when its load faults it does not return."""
    _return_near(cpu.at)


@callback("vqi")
def on_sysret(env: int, size: int) -> None:
    """The engine's helper for SYSRET."""
    if running_cpu() != 0 and size == _LONG and not is_canonical(cpu_record(running_cpu()), load64(env + RCX)):
        raise_exception(cpu_record(running_cpu()), VECTOR_GP, 0)
    original_sysret(env, size)
