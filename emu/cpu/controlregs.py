"""MOV to control and debug registers: what the engine does not do of it, and the values that a processor refuses.

SDM vol. 2B, MOV to control registers; vol. 3A, 2.5; vol. 3B, 17.2.  The engine checks nothing and has no UMIP, no PCIDs
and no PDPTE registers.  Its own TLB knows no PCIDs either: each MOV to CR3 drops all of it, and bit 63 of the operand
is only a hint.

UMIP: the engine's translator asks before SGDT, SIDT, SLDT, STR and SMSW whether a hypervisor intercepts them, if HFLAGS
say that there is one.  There never is, so HFLAGS say so while CR4.UMIP is set, and the answer is #GP at CPL 3.
"""

from __future__ import annotations

from collections.abc import Iterable

from emu.cpu.apic import load_task_priority, store_task_priority
from emu.engine import cpustate
from emu.engine.cpustate import (
    CR0,
    CR0_AM,
    CR0_CD,
    CR0_ET,
    CR0_NW,
    CR0_PE,
    CR0_PG,
    CR3,
    CR4,
    CR4_DE,
    CR4_LA57,
    CR4_PAE,
    CR4_PCIDE,
    CR4_PGE,
    CR4_PKE,
    CR4_PKS,
    CR4_PSE,
    CR4_SMEP,
    CR4_UMIP,
    CS,
    EFER,
    EFER_LMA,
    EFER_LME,
    FLAGS,
    HF_CPL,
    HF_CS64,
    HF_GUEST,
    HFLAGS,
    TR,
)
from emu.engine.debugregs import DR6, DR6_BD, DR7, DR7_GD
from emu.engine.engine import abandon_instruction, flush_tlb, running_cpu
from emu.engine.helpers import (
    flush_code,
    original_get_dr,
    original_read_cr,
    original_set_dr,
    original_write_cr,
    raise_exception,
)
from emu.engine.library import replace_helper
from emu.engine.native import callback, inlined, load32, load64, outlined, store32, store64
from emu.engine.state import Cpu, cpu_record
from emu.engine.vectors import VECTOR_DB, VECTOR_GP
from emu.mmu import pte
from emu.mmu.walk import FAULT, OK, load_pdptes

_CR0_BITS = 0xE005_002F | CR0_ET  # PG CD NW AM WP NE TS EM MP PE; the others are ignored
_CR3_RESERVED = pte.RESERVED_HIGH | 0x7FF << 52  # 62:MAXPHYADDR, in long mode
_PCID = 0xFFF  # of CR3
_KEEP_TRANSLATIONS = 63  # bit of the operand of MOV to CR3, with PCIDs
_LONG = 1 << 21  # L in the flags of CS
_TSS_16 = 1  # type of a descriptor, busy or not

_SGDT_AND_OTHERS = (0x66, 0x67, 0x68, 0x69)  # SVM_EXIT_IDTR_READ, GDTR_READ, LDTR_READ, TR_READ
_SMSW = 0  # SVM_EXIT_READ_CR0


_CR4_BITS = {
    "tsc": 1 << 2, "de": 1 << 3, "pse": 1 << 4, "pae": 1 << 5, "mce": 1 << 6, "pge": 1 << 7, "mmx": 1 << 8,
    "fxsr": 1 << 9, "sse": 1 << 10, "umip": 1 << 11, "la57": 1 << 12, "fsgsbase": 1 << 16, "pcid": 1 << 17,
    "xsave": 1 << 18, "smep": 1 << 20, "smap": 1 << 21, "pku": 1 << 22, "pks": 1 << 24,
}  # fmt: skip


def cr4_bits(features: Iterable[str]) -> int:
    """The bits of CR4 that these features bring (SDM vol. 3A, 2.5); the others are reserved.

    PCE came with the processors that have MMX.
    """
    return sum(bit for name, bit in _CR4_BITS.items() if name in features)


# --- native plane -----------------------------------------------------------------------------------------------


@inlined
def _in_long_mode(cpu: Cpu) -> bool:
    return load64(cpu.env + EFER) & EFER_LMA != 0


@inlined
def _load_pdptes_if(cpu: Cpu, cr0: int, cr4: int, cr3: int) -> int:
    """Load the PDPTE registers if PAE paging is in use with these control registers; OK, FAULT or NEED."""
    if not cr0 & CR0_PG or not cr4 & CR4_PAE or load64(cpu.env + EFER) & EFER_LME:
        return OK
    return load_pdptes(cpu.at, cr3)


@inlined
def _check_cr0(cpu: Cpu, value: int) -> int:
    env = cpu.env
    before = load64(env + CR0)
    paging = value & CR0_PG != 0
    if value >> 32 or (paging and not value & CR0_PE) or (value & CR0_NW and not value & CR0_CD):
        return FAULT
    cr4 = load64(env + CR4)
    if not paging and before & CR0_PG and (cr4 & CR4_PCIDE or load32(env + HFLAGS) & HF_CS64):
        return FAULT
    if paging and not before & CR0_PG and load64(env + EFER) & EFER_LME:
        narrow_tss = load32(env + TR + FLAGS) >> 8 & 0xD == _TSS_16
        if not cr4 & CR4_PAE or load32(env + CS + FLAGS) & _LONG or narrow_tss:
            return FAULT
    if (before ^ value) & (CR0_CD | CR0_NW | CR0_PG):
        return _load_pdptes_if(cpu, value, cr4, load64(env + CR3))
    return OK


@inlined
def _check_cr3(cpu: Cpu, value: int) -> int:
    cr4 = load64(cpu.env + CR4)
    if _in_long_mode(cpu):
        keep = value >> _KEEP_TRANSLATIONS & 1
        return FAULT if value & _CR3_RESERVED or (keep and not cr4 & CR4_PCIDE) else OK
    return _load_pdptes_if(cpu, load64(cpu.env + CR0), cr4, value)


@inlined
def _check_cr4(cpu: Cpu, value: int) -> int:
    env = cpu.env
    before = load64(env + CR4)
    changed = before ^ value
    if value & ~cpu.cr4_allowed:
        return FAULT
    if _in_long_mode(cpu):
        if not value & CR4_PAE or changed & CR4_LA57:
            return FAULT
        if changed & value & CR4_PCIDE and load64(env + CR3) & _PCID:
            return FAULT
    elif changed & value & CR4_PCIDE:
        return FAULT
    if changed & (CR4_PAE | CR4_PGE | CR4_PSE | CR4_SMEP):
        return _load_pdptes_if(cpu, load64(env + CR0), value, load64(env + CR3))
    return OK


@outlined("qqqq")
def _check(cpu_at: int, index: int, value: int) -> int:
    """Whether ``value`` may go to control register ``index``: OK, FAULT (#GP), or NEED."""
    cpu = cpu_record(cpu_at)
    if index == 0:
        return _check_cr0(cpu, value)
    if index == 3:
        return _check_cr3(cpu, value)
    if index == 4:
        return _check_cr4(cpu, value)
    return FAULT if index == 8 and value >> 4 else OK


@outlined("vqq")
def _changed_cr4(cpu_at: int, before: int) -> None:
    """CR4 has a new value."""
    cpu = cpu_record(cpu_at)
    env = cpu.env
    now = load64(env + CR4)
    hflags = load32(env + HFLAGS) & ~HF_GUEST
    store32(env + HFLAGS, hflags | HF_GUEST if now & CR4_UMIP else hflags)
    if (before ^ now) & (CR4_PKE | CR4_PKS | CR4_PCIDE):  # for the others the engine does it
        flush_tlb(cpu)


@callback("vqiq")
def on_write_cr(env: int, index: int, value: int) -> None:
    """The engine's helper for MOV to a control register."""
    if running_cpu() == 0:  # an engine that is no VM's
        original_write_cr(env, index, value)
        return
    cpu = cpu_record(running_cpu())
    if not load32(env + HFLAGS) & HF_CS64:
        value &= 0xFFFF_FFFF
    status = _check(cpu.at, index, value)
    if status == FAULT:
        raise_exception(cpu, VECTOR_GP, 0)
    if status != OK:
        cpu.miss_kind = status
        abandon_instruction(cpu)
    if index == 0:
        value = value & _CR0_BITS | CR0_ET
    elif index == 3:
        value &= (1 << _KEEP_TRANSLATIONS) - 1
    cr0, cr4 = load64(env + CR0), load64(env + CR4)
    if index == 8:
        store_task_priority(cpu, value)
        return
    original_write_cr(env, index, value)
    if index == 0 and (cr0 ^ value) & (CR0_CD | CR0_NW):
        flush_tlb(cpu)  # there may be other PDPTEs
    if index == 0 and (cr0 ^ value) & CR0_AM:
        flush_code(cpu)  # it was translated with alignment checks, or without
    if index == 4:
        _changed_cr4(cpu.at, cr4)


@callback("qqi")
def on_read_cr(env: int, index: int) -> int:
    """The engine's helper for MOV from a control register."""
    if index == 8 and running_cpu() != 0:
        return load_task_priority(cpu_record(running_cpu()))
    return original_read_cr(env, index)


@callback("vqiq")
def on_intercept(env: int, what: int, parameter: int) -> None:
    """The engine's helper that asks whether a hypervisor intercepts an instruction: #GP where UMIP forbids it."""
    if running_cpu() == 0 or load32(env + HFLAGS) & HF_CPL != 3:
        return
    if what in _SGDT_AND_OTHERS or what == _SMSW:
        raise_exception(cpu_record(running_cpu()), VECTOR_GP, 0)


@inlined
def _check_access(env: int, cpu: Cpu) -> None:
    """#DB before any access while DR7.GD is set, which the exception clears (SDM vol. 3B, 17.2.4)."""
    dr7 = load64(env + DR7)
    if dr7 & DR7_GD:
        store64(env + DR7, dr7 & ~DR7_GD)
        store64(env + DR6, load64(env + DR6) | DR6_BD)
        raise_exception(cpu, VECTOR_DB, 0)


@callback("vqiq")
def on_set_dr(env: int, number: int, value: int) -> None:
    """The engine's helper for MOV to a debug register."""
    if running_cpu() != 0:
        cpu = cpu_record(running_cpu())
        _check_access(env, cpu)
        upper = value >> 32 & 0xFFFF_FFFF if load32(env + HFLAGS) & HF_CS64 else 0
        if number >= 4 and upper and not (number < 6 and load64(env + cpustate.CR4) & CR4_DE):
            raise_exception(cpu, VECTOR_GP, 0)
    original_set_dr(env, number, value)


@callback("qqi")
def on_get_dr(env: int, number: int) -> int:
    """The engine's helper for MOV from a debug register."""
    if running_cpu() != 0:
        _check_access(env, cpu_record(running_cpu()))
    return original_get_dr(env, number)


replace_helper("svm_check_intercept_param", on_intercept)
