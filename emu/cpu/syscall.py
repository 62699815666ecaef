"""SYSCALL and SYSENTER (AMD APM vol. 3; SDM vol. 2B); SYSRET and SYSEXIT are the engine's own."""

from __future__ import annotations

from emu.cpu.guestmem import load_code_byte
from emu.cpu.segments import BIG, FLAT_CODE, FLAT_DATA, LONG, set_segment
from emu.engine import cpustate
from emu.engine.cpustate import (
    CS,
    EFLAGS,
    FLAG_IF,
    FLAG_RF,
    FLAG_VM,
    HF_CS64,
    HFLAGS,
    RCX,
    RIP,
    RSP,
    SS,
    set_hflags_mode,
    write_eflags,
)
from emu.engine.engine import read_eflags
from emu.engine.native import inlined, load32, load64, store64
from emu.engine.state import Cpu

ENTERED, FAULTED = 0, 1

_R11 = 88  # byte offset in the CPU state
_LONGEST = 15  # bytes of an instruction


@inlined
def syscall_length(cpu: Cpu) -> int:
    """The length of the two-byte instruction 0F xx at RIP with its prefixes."""
    rip = load64(cpu.env + RIP)
    for prefixes in range(_LONGEST - 2):
        if load_code_byte(cpu, rip + prefixes) == 0x0F:
            return prefixes + 2
    return 2


@inlined
def _flat_segments(env: int, selector: int, code_width: int) -> None:
    set_segment(env, CS, selector & 0xFFFC, 0, 0xFFFF_FFFF, FLAT_CODE | code_width)
    set_segment(env, SS, (selector & 0xFFFC) + 8, 0, 0xFFFF_FFFF, FLAT_DATA | BIG)
    set_hflags_mode(env)


@inlined
def enter_syscall(cpu: Cpu, length: int) -> int:
    """SYSCALL; FAULTED when EFER.SCE is 0 or the CPU is in real mode (#UD), and nothing has changed."""
    env = cpu.env
    efer = load64(env + cpustate.EFER)
    if not efer & cpustate.EFER_SCE or not load64(env + cpustate.CR0) & cpustate.CR0_PE:
        return FAULTED
    star = load64(env + cpustate.STAR)
    selector = star >> 32 & 0xFFFF
    following = load64(env + RIP) + length
    if efer & cpustate.EFER_LMA:
        store64(env + RCX, following)
        flags = read_eflags(cpu) & ~FLAG_RF
        store64(env + _R11, flags)
        target = cpustate.LSTAR if load32(env + HFLAGS) & HF_CS64 else cpustate.CSTAR
        write_eflags(env, (flags & ~load64(env + cpustate.FMASK)) | 2)
        store64(env + RIP, load64(env + target))
        _flat_segments(env, selector, LONG)
    else:
        store64(env + RCX, following & 0xFFFF_FFFF)
        store64(env + EFLAGS, load64(env + EFLAGS) & ~(FLAG_IF | FLAG_RF | FLAG_VM))
        store64(env + RIP, star & 0xFFFF_FFFF)
        _flat_segments(env, selector, BIG)
    return ENTERED


@inlined
def enter_sysenter(cpu: Cpu) -> int:
    """SYSENTER; FAULTED when IA32_SYSENTER_CS is null (#GP(0)), and nothing has changed."""
    env = cpu.env
    selector = load64(env + cpustate.SYSENTER_CS) & 0xFFFF
    if selector & 0xFFFC == 0:
        return FAULTED
    store64(env + EFLAGS, load64(env + EFLAGS) & ~(FLAG_IF | FLAG_RF | FLAG_VM))
    if load64(env + cpustate.EFER) & cpustate.EFER_LMA:
        store64(env + RIP, load64(env + cpustate.SYSENTER_EIP))
        store64(env + RSP, load64(env + cpustate.SYSENTER_ESP))
        _flat_segments(env, selector, LONG)
    else:
        store64(env + RIP, load64(env + cpustate.SYSENTER_EIP) & 0xFFFF_FFFF)
        store64(env + RSP, load64(env + cpustate.SYSENTER_ESP) & 0xFFFF_FFFF)
        _flat_segments(env, selector, BIG)
    return ENTERED
