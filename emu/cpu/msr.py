"""RDMSR, WRMSR, CPUID and RDRAND: what the engine does not know of this machine.

The engine keeps the registers of the CPU itself (EFER, STAR, FS.base, MTRRs, ...), and what its model is
(:mod:`emu.cpu.models`).  The time-stamp counter is virtual time, and the local APIC's registers belong to a device:
these are answered here.
"""

from __future__ import annotations

from emu.cpu.apic import load_x2apic, store_x2apic
from emu.cpu.clock import time_stamp
from emu.cpu.features import FEATURES
from emu.cpu.msrvalues import accepts, exists
from emu.cpu.portio import DENIED
from emu.devices.shared import ASK
from emu.engine.cpustate import CC_SRC, FLAG_CF, RAX, RBX, RCX, RDX, RIP
from emu.engine.engine import (
    abandon_instruction,
    flush_tlb,
    leave_engine,
    original_cpuid,
    original_pause,
    original_rdmsr,
    original_rdrand,
    original_wrmsr,
    running_cpu,
    stop,
)
from emu.engine.identity import INTEL, VENDOR, word_at
from emu.engine.library import replace_helper
from emu.engine.native import call_host, callback, inlined, load32, load64, outlined, signed, store64
from emu.engine.state import cpu_record, show_time, vm_of

_TSC = 0x10
_APIC_BASE = 0x1B
_TSC_ADJUST = 0x3B
_TSC_DEADLINE = 0x6E0
_PKRS = 0x6E1
_X2APIC_FIRST, _X2APIC_LAST = 0x800, 0x8FF

# Sebastiano Vigna's SplitMix64, as int64
_GOLDEN, _MIX_1, _MIX_2 = (signed(v) for v in (0x9E37_79B9_7F4A_7C15, 0xBF58_476D_1CE4_E5B9, 0x94D0_49BB_1331_11EB))

HYPERVISOR_LEAF = 0x4000_0000
_TIMING_LEAF = 0x4000_0010  # EAX: TSC in kHz, EBX: APIC bus in kHz, as VMware and KVM have it
_KHZ = 1_000_000  # of the TSC, which counts virtual ns, and of the APIC timer
_SIGNATURE = (0x20756D65, 0x20756D65, 0x20756D65)  # "emu emu emu "

_APIC, _X2APIC, _TSC_DEADLINE_TIMER, _TSC_ADJUST_THERE, _PKS = (FEATURES[name][1] for name in (
    "apic", "x2apic", "tsc-deadline", "tsc_adjust", "pks",
))  # fmt: skip
_WORD_1_EDX, _WORD_1_ECX, _WORD_7_EBX, _WORD_7_ECX = map(word_at, ("1.edx", "1.ecx", "7.ebx", "7.ecx"))
_X2APIC_ENABLE = 1 << 10  # in IA32_APIC_BASE

# several processors: the cores of one package, a thread each (SDM vol. 2A, CPUID; AMD APM vol. 3, E.4)
_LEAF_1_EDX_SEVERAL = 1 << 28  # HTT
_EXTENDED_1_ECX_SEVERAL = 1 << 1  # CmpLegacy
_DESCRIPTOR_LEAF, _CACHE_LEAF, _TOPOLOGY_LEAF = 2, 4, 0xB
_THREADS, _CORES = 1 << 8, 2 << 8  # kinds of levels


@inlined
def _is_of_a_device(index: int) -> bool:
    return index == _APIC_BASE or index == _TSC_DEADLINE or (_X2APIC_FIRST <= index <= _X2APIC_LAST)


@inlined
def _is_missing(env: int, index: int, value: int) -> bool:
    """Whether the model of processor lacks what a register, or the value to be written to it, is about."""
    if index == _TSC_ADJUST:
        return not load32(env + _WORD_7_EBX) & _TSC_ADJUST_THERE
    if index == _TSC_DEADLINE:
        return not load32(env + _WORD_1_ECX) & _TSC_DEADLINE_TIMER
    if index == _PKRS:
        return value >> 32 != 0 or not load32(env + _WORD_7_ECX) & _PKS
    if index == _APIC_BASE:
        if value & _X2APIC_ENABLE and not load32(env + _WORD_1_ECX) & _X2APIC:
            return True
        return not load32(env + _WORD_1_EDX) & _APIC
    return False


@outlined("vqq")
def _refuse_if(cpu_at: int, refused: int) -> None:
    """#GP(0) for the running instruction; does not return then."""
    if refused:
        cpu = cpu_record(cpu_at)
        cpu.miss_kind = DENIED
        abandon_instruction(cpu)


@inlined
def _set_edx_eax(env: int, value: int) -> None:
    store64(env + RAX, value & 0xFFFF_FFFF)
    store64(env + RDX, value >> 32 & 0xFFFF_FFFF)


@callback("vq")
def on_rdmsr(env: int) -> None:
    """The engine's helper for RDMSR."""
    if running_cpu() == 0:  # an engine that is no VM's
        original_rdmsr(env)
        return
    cpu = cpu_record(running_cpu())
    index = load32(env + RCX)
    _refuse_if(cpu.at, 1 if _is_missing(env, index, 0) else 0)
    if index == _TSC:
        _set_edx_eax(env, time_stamp(cpu))
    elif index == _TSC_ADJUST:
        _set_edx_eax(env, cpu.tsc_offset)
    elif index == _PKRS:
        _set_edx_eax(env, cpu.pkrs)
    elif _is_of_a_device(index):
        value = load_x2apic(cpu, index - _X2APIC_FIRST) if index >= _X2APIC_FIRST else ASK
        if value == ASK:
            _refuse_if(cpu.at, call_host(vm_of(cpu).msr_load_at, index, 0, 0))
            value = cpu.msr_value
        _set_edx_eax(env, value)
    else:
        _refuse_if(cpu.at, 1 - exists(cpu.at, index))
        original_rdmsr(env)


@callback("vq")
def on_wrmsr(env: int) -> None:
    """The engine's helper for WRMSR."""
    if running_cpu() == 0:
        original_wrmsr(env)
        return
    cpu = cpu_record(running_cpu())
    index = load32(env + RCX)
    value = load32(env + RAX) | load32(env + RDX) << 32
    _refuse_if(cpu.at, 1 if _is_missing(env, index, value) else 0)
    if index == _TSC:
        cpu.tsc_offset = value - show_time(cpu)
    elif index == _TSC_ADJUST:
        cpu.tsc_offset = value
    elif index == _PKRS:
        cpu.pkrs = value
        flush_tlb(cpu)
    elif _is_of_a_device(index):
        if index < _X2APIC_FIRST or store_x2apic(cpu, index - _X2APIC_FIRST, value) == ASK:
            _refuse_if(cpu.at, call_host(vm_of(cpu).msr_store_at, index, value, 0))
    else:
        _refuse_if(cpu.at, 0 if exists(cpu.at, index) and accepts(cpu.at, index, value) else 1)
        original_wrmsr(env)


@callback("qq")
def on_rdrand(env: int) -> int:
    """The engine's helper for RDRAND, which would ask the host: a fixed sequence (SplitMix64), always successful."""
    if running_cpu() == 0:
        return original_rdrand(env)
    cpu = cpu_record(running_cpu())
    vm = vm_of(cpu)
    vm.random += _GOLDEN
    value = vm.random
    value = (value ^ (value >> 30 & (1 << 34) - 1)) * _MIX_1
    value = (value ^ (value >> 27 & (1 << 37) - 1)) * _MIX_2
    store64(env + CC_SRC, FLAG_CF)
    return value ^ (value >> 31 & (1 << 33) - 1)


@callback("vqi")
def on_pause(env: int, length: int) -> None:
    """The engine's helper for PAUSE, which ends the block.  The engine's own would leave its execution loop, too.

    The second one at the same place in a slice is taken for a spin loop, which waits for another processor: it gives
    away the rest of the slice, if others have something to do.
    """
    if running_cpu() == 0:
        original_pause(env, length)
        return
    cpu = cpu_record(running_cpu())
    rip = load64(env + RIP)
    if vm_of(cpu).round_shared:
        if rip == cpu.pause_rip:
            cpu.yielded = 1
            cpu.limit = 0
            if not cpu.stepping:  # PAUSE ends its block, so the engine need not come back to find that out
                cpu.block_size = 0
                cpu.stopped = 1
                stop(cpu)
        cpu.pause_rip = rip
    store64(env + RIP, rip + length)
    leave_engine(cpu)


replace_helper("pause", on_pause)
replace_helper("rdmsr", on_rdmsr)
replace_helper("wrmsr", on_wrmsr)
replace_helper("rdrand", on_rdrand)


@inlined
def _set(env: int, eax: int, ebx: int, ecx: int, edx: int) -> None:
    store64(env + RAX, eax)
    store64(env + RBX, ebx)
    store64(env + RCX, ecx)
    store64(env + RDX, edx)


@outlined("vqqq")
def _describe_topology(cpu_at: int, leaf: int, subleaf: int) -> None:
    """Change the registers of CPUID where it tells how many processors there are, and which one this is."""
    cpu = cpu_record(cpu_at)
    env, count = cpu.env, vm_of(cpu).cpu_count
    id_bits = 0
    while 1 << id_bits < count:
        id_bits += 1
    if leaf == 1:
        store64(env + RBX, (load32(env + RBX) & 0xFFFF) | count << 16 | cpu.index << 24)
        store64(env + RDX, load32(env + RDX) | _LEAF_1_EDX_SEVERAL)
    elif leaf == _CACHE_LEAF:
        if load32(env + RAX) & 31:  # there is such a cache
            store64(env + RAX, load32(env + RAX) | ((1 << id_bits) - 1) << 26)  # core IDs of the package
    elif leaf == _TOPOLOGY_LEAF:
        if subleaf == 0:
            _set(env, 0, 1, _THREADS, cpu.index)
        elif subleaf == 1:
            _set(env, id_bits, count, 1 | _CORES, cpu.index)
        else:
            _set(env, 0, 0, subleaf & 0xFF, cpu.index)
    elif leaf == 0x8000_0001:
        if load32(env + VENDOR) != INTEL:
            store64(env + RCX, load32(env + RCX) | _EXTENDED_1_ECX_SEVERAL)
    elif leaf == 0x8000_0008:
        store64(env + RCX, id_bits << 12 | (count - 1))
    elif leaf == 0x8000_001E:
        _set(env, cpu.index, cpu.index, 0, 0)


@callback("iqq")
def on_cpuid(uc: int, cpu_at: int) -> int:
    """Unicorn's UC_HOOK_INSN for CPUID."""
    cpu = cpu_record(cpu_at)
    env = cpu.env
    leaf, subleaf = load32(env + RAX), load32(env + RCX)
    if leaf >> 16 == HYPERVISOR_LEAF >> 16:
        if leaf == HYPERVISOR_LEAF:
            _set(env, _TIMING_LEAF, _SIGNATURE[0], _SIGNATURE[1], _SIGNATURE[2])
        elif leaf == _TIMING_LEAF:
            _set(env, _KHZ, _KHZ, 0, 0)
        else:
            _set(env, 0, 0, 0, 0)
        return 1
    original_cpuid(env, cpu.scratch_at)
    eax, ebx = load32(cpu.scratch_at), load32(cpu.scratch_at + 4)
    ecx, edx = load32(cpu.scratch_at + 8), load32(cpu.scratch_at + 12)
    if leaf == _DESCRIPTOR_LEAF and cpu.caches_eax:
        eax, ebx, ecx, edx = cpu.caches_eax, 0, 0, cpu.caches_edx
    if not cpu.apic_enabled:
        if leaf == 1:
            ecx &= ~_X2APIC
        if leaf == 1 or leaf == 0x8000_0001:
            edx &= ~_APIC
    _set(env, eax, ebx, ecx, edx)
    if vm_of(cpu).cpu_count > 1:
        _describe_topology(cpu.at, leaf, subleaf)
    return 1
