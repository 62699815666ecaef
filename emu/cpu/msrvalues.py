"""Which model-specific registers exist, and what they refuse (SDM vol. 4 and vol. 3A, 11.11 and 11.12; AMD APM vol. 2).

The registers of the local APIC and the time-stamp counter are :mod:`emu.cpu.msr`'s.
"""

from __future__ import annotations

from emu.engine import cpustate
from emu.engine.cpustate import EFER_LMA, EFER_LME, EFER_NXE, EFER_SCE
from emu.engine.identity import VENDOR
from emu.engine.native import inlined, load32, load64, outlined
from emu.engine.state import cpu_record
from emu.mmu.pte import MAXPHYADDR
from emu.mmu.walk import is_canonical_base

_AMD = 0x68747541  # the first four letters of "AuthenticAMD"

_PLATFORM_ID, _MICROCODE, _MICROCODE_UPDATE, _SMI_COUNT = 0x17, 0x8B, 0x79, 0x34
_SYSENTER_CS, _SYSENTER_ESP, _SYSENTER_EIP = 0x174, 0x175, 0x176
_MCG_CAP, _MCG_CTL, _MISC_ENABLE, _DEBUG_CONTROL = 0x179, 0x17B, 0x1A0, 0x1D9
_MTRR_CAP, _MTRR_VARIABLE, _MTRR_FIXED_64K, _MTRR_DEFAULT, _PAT = 0xFE, 0x200, 0x250, 0x2FF, 0x277
_MACHINE_CHECK, _MACHINE_CHECK_LAST = 0x400, 0x400 + 4 * 10 - 1  # the ten banks of MCG_CAP
_MASKED_ERRORS = 1 << 10 | 1 << 0  # which kernels leave out, for the sake of early processors
_EFER, _STAR, _LSTAR, _CSTAR, _FMASK = 0xC000_0080, 0xC000_0081, 0xC000_0082, 0xC000_0083, 0xC000_0084
_FS_BASE, _KERNEL_GS_BASE, _TSC_AUX = 0xC000_0100, 0xC000_0102, 0xC000_0103

_FFXSR = 1 << 14
_MTRR_TYPES = 1 << 0 | 1 << 1 | 1 << 4 | 1 << 5 | 1 << 6  # UC WC WT WP WB
_PAT_TYPES = _MTRR_TYPES | 1 << 7  # and UC-


@inlined
def _is_fixed_mtrr(index: int) -> bool:
    return index == _MTRR_FIXED_64K or index == 0x258 or index == 0x259 or 0x268 <= index <= 0x26F


@inlined
def _is_amd(index: int) -> bool:
    """Registers of AMD's processors that their guides name; those without meaning here read as 0 and can be written."""
    return (
        0xC001_0000 <= index <= 0xC001_0007  # performance counters
        or index == 0xC001_0010  # SYSCFG
        or index == 0xC001_0015  # HWCR
        or 0xC001_0016 <= index <= 0xC001_001D  # IORRs, TOP_MEM
        or index == 0xC001_001F  # NB_CFG
        or 0xC001_0030 <= index <= 0xC001_0035  # the brand
        or index == 0xC001_0055
        or index == 0xC001_0058  # MMIO configuration
        or 0xC001_0061 <= index <= 0xC001_006B  # P-states
        or 0xC001_0074 == index
        or 0xC001_0111 <= index <= 0xC001_0119  # SMM, SVM
        or index == 0xC001_0140
        or index == 0xC001_0141  # OSVW
        or 0xC001_0200 <= index <= 0xC001_020B
        or 0xC001_1002 <= index <= 0xC001_1005  # CPUID features
        or 0xC001_1019 <= index <= 0xC001_103F
    )


@outlined("qqq")
def exists(cpu_at: int, index: int) -> int:
    """1 when the engine has an answer for a register that the processor has."""
    known = (
        index <= 1  # machine check address and type
        or index == _PLATFORM_ID
        or index == _SMI_COUNT
        or index == _MICROCODE
        or index == _MICROCODE_UPDATE
        or index == _MTRR_CAP
        or _SYSENTER_CS <= index <= _SYSENTER_EIP
        or _MCG_CAP <= index <= _MCG_CTL
        or 0xC1 <= index <= 0xC2 or 0x186 <= index <= 0x187  # performance counters of the P6
        or 0x198 <= index <= 0x199
        or index == _MISC_ENABLE
        or index == _DEBUG_CONTROL
        or 0x1DB <= index <= 0x1DE  # last branches
        or _MTRR_VARIABLE <= index < _MTRR_VARIABLE + 16
        or _is_fixed_mtrr(index)
        or index == _PAT
        or index == _MTRR_DEFAULT
        or _MACHINE_CHECK <= index <= _MACHINE_CHECK_LAST
        or _EFER <= index <= _FMASK
        or _FS_BASE <= index <= _TSC_AUX
    )  # fmt: skip
    if not known and _is_amd(index):
        known = load32(cpu_record(cpu_at).env + VENDOR) == _AMD
    return 1 if known else 0


@inlined
def _all_of(value: int, types: int) -> bool:
    """Whether each byte of ``value`` is a memory type out of ``types``."""
    for index in range(8):
        memory_type = value >> (8 * index) & 0xFF
        if memory_type > 7 or not types >> memory_type & 1:
            return False
    return True


@inlined
def _is_type(memory_type: int) -> bool:
    return memory_type < 8 and _MTRR_TYPES >> memory_type & 1 != 0


@outlined("qqqq")
def accepts(cpu_at: int, index: int, value: int) -> int:
    """1 when a register that exists can be given ``value``."""
    cpu = cpu_record(cpu_at)
    env = cpu.env
    fits = True
    if index == _EFER:
        efer = load64(env + cpustate.EFER)
        paging = load64(env + cpustate.CR0) & cpustate.CR0_PG != 0
        fits = not value & ~(EFER_SCE | EFER_LME | EFER_LMA | EFER_NXE | _FFXSR)
        fits = fits and not (paging and (value ^ efer) & EFER_LME)
    elif index == _LSTAR or index == _CSTAR or index == _SYSENTER_ESP or index == _SYSENTER_EIP:
        fits = is_canonical_base(cpu, value)
    elif _FS_BASE <= index <= _KERNEL_GS_BASE:
        fits = is_canonical_base(cpu, value)
    elif index == _TSC_AUX or index == _FMASK:
        fits = value >> 32 == 0
    elif index == _PAT:
        fits = _all_of(value, _PAT_TYPES)
    elif _is_fixed_mtrr(index):
        fits = _all_of(value, _MTRR_TYPES)
    elif index == _MTRR_DEFAULT:
        fits = not value & ~0xCFF and _is_type(value & 0xFF)
    elif _MTRR_VARIABLE <= index < _MTRR_VARIABLE + 16:
        fits = value >> MAXPHYADDR == 0 and (not value & 0x7FF if index & 1 else _is_type(value & 0xFFF))
    elif _MACHINE_CHECK <= index <= _MACHINE_CHECK_LAST and index & 3 == 0:  # IA32_MCi_CTL: all errors, or none
        fits = value == 0 or value | _MASKED_ERRORS == -1
    elif _MACHINE_CHECK <= index <= _MACHINE_CHECK_LAST and index & 3 == 1:  # IA32_MCi_STATUS: SDM vol. 3B, 15.3.2.2
        fits = value == 0
    elif index == _MTRR_CAP or index == _MCG_CAP:
        fits = False
    return 1 if fits else 0
