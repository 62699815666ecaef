"""RDMSR, WRMSR, CPUID and RDRAND: what the engine does not know of this machine.

The engine keeps the registers of the CPU itself (EFER, STAR, FS.base, MTRRs, ...).  The time-stamp counter is virtual
time, and the local APIC's registers belong to a device: these are answered here.
"""

from __future__ import annotations

from emu.cpu.clock import time_stamp
from emu.cpu.portio import DENIED
from emu.engine.cpustate import CC_SRC, FLAG_CF, RAX, RBX, RCX, RDX
from emu.engine.engine import (
    abandon_instruction,
    original_cpuid,
    original_rdmsr,
    original_rdrand,
    original_wrmsr,
    running_vm,
)
from emu.engine.library import replace_helper
from emu.engine.native import call_host, callback, inlined, load32, outlined, signed, store64
from emu.engine.state import state_at

_TSC = 0x10
_APIC_BASE = 0x1B
_TSC_ADJUST = 0x3B
_TSC_DEADLINE = 0x6E0
_X2APIC_FIRST, _X2APIC_LAST = 0x800, 0x8FF

# Sebastiano Vigna's SplitMix64, as int64
_GOLDEN, _MIX_1, _MIX_2 = (signed(v) for v in (0x9E37_79B9_7F4A_7C15, 0xBF58_476D_1CE4_E5B9, 0x94D0_49BB_1331_11EB))

HYPERVISOR_LEAF = 0x4000_0000
_TIMING_LEAF = 0x4000_0010  # EAX: TSC in kHz, EBX: APIC bus in kHz, as VMware and KVM have it
_KHZ = 1_000_000  # of the TSC, which counts virtual ns, and of the APIC timer
_SIGNATURE = (0x20756D65, 0x20756D65, 0x20756D65)  # "emu emu emu "

_LEAF_1_ECX = 1 << 21 | 1 << 24 | 1 << 31  # x2APIC, TSC-deadline timer, hypervisor present
_LEAF_1_ECX_ABSENT = 1 << 5 | 1 << 6 | 1 << 3  # VMX, SMX, MONITOR
_LEAF_1_EDX = 1 << 9  # APIC
_LEAF_7_EBX = 1 << 1  # TSC_ADJUST
_EXTENDED_1_ECX_ABSENT = 1 << 2  # SVM
_EXTENDED_7_EDX = 1 << 8  # the TSC runs at one rate, always


@inlined
def _is_of_a_device(index: int) -> bool:
    return index == _APIC_BASE or index == _TSC_DEADLINE or (_X2APIC_FIRST <= index <= _X2APIC_LAST)


@outlined("vqq")
def _refuse_if(vm_at, refused):
    """#GP(0) for the running instruction; does not return then."""
    if refused:
        vm = state_at(vm_at)
        vm.miss_kind = DENIED
        abandon_instruction(vm)


@inlined
def _set_edx_eax(env: int, value: int) -> None:
    store64(env + RAX, value & 0xFFFF_FFFF)
    store64(env + RDX, value >> 32 & 0xFFFF_FFFF)


@callback("vq")
def on_rdmsr(env):
    """The engine's helper for RDMSR."""
    if running_vm() == 0:  # an engine that is no VM's
        original_rdmsr(env)
        return
    vm = state_at(running_vm())
    index = load32(env + RCX)
    if index == _TSC:
        _set_edx_eax(env, time_stamp(vm))
    elif index == _TSC_ADJUST:
        _set_edx_eax(env, vm.tsc_offset)
    elif _is_of_a_device(index):
        _refuse_if(vm.at, call_host(vm.msr_load_at, index, 0, 0))
        _set_edx_eax(env, vm.msr_value)
    else:
        original_rdmsr(env)


@callback("vq")
def on_wrmsr(env):
    """The engine's helper for WRMSR."""
    if running_vm() == 0:
        original_wrmsr(env)
        return
    vm = state_at(running_vm())
    index = load32(env + RCX)
    value = load32(env + RAX) | load32(env + RDX) << 32
    if index == _TSC:
        vm.tsc_offset = value - vm.vtime
    elif index == _TSC_ADJUST:
        vm.tsc_offset = value
    elif _is_of_a_device(index):
        _refuse_if(vm.at, call_host(vm.msr_store_at, index, value, 0))
    else:
        original_wrmsr(env)


@callback("qq")
def on_rdrand(env):
    """The engine's helper for RDRAND, which would ask the host: a fixed sequence (SplitMix64), always successful."""
    if running_vm() == 0:
        return original_rdrand(env)
    vm = state_at(running_vm())
    vm.random += _GOLDEN
    value = vm.random
    value = (value ^ (value >> 30 & (1 << 34) - 1)) * _MIX_1
    value = (value ^ (value >> 27 & (1 << 37) - 1)) * _MIX_2
    store64(env + CC_SRC, FLAG_CF)
    return value ^ (value >> 31 & (1 << 33) - 1)


replace_helper("rdmsr", on_rdmsr)
replace_helper("wrmsr", on_wrmsr)
replace_helper("rdrand", on_rdrand)


@inlined
def _set(env: int, eax: int, ebx: int, ecx: int, edx: int) -> None:
    store64(env + RAX, eax)
    store64(env + RBX, ebx)
    store64(env + RCX, ecx)
    store64(env + RDX, edx)


@callback("iqq")
def on_cpuid(uc, vm_at):
    """Unicorn's UC_HOOK_INSN for CPUID."""
    vm = state_at(vm_at)
    env = vm.env
    leaf, subleaf = load32(env + RAX), load32(env + RCX)
    if leaf >> 16 == HYPERVISOR_LEAF >> 16:
        if leaf == HYPERVISOR_LEAF:
            _set(env, _TIMING_LEAF, _SIGNATURE[0], _SIGNATURE[1], _SIGNATURE[2])
        elif leaf == _TIMING_LEAF:
            _set(env, _KHZ, _KHZ, 0, 0)
        else:
            _set(env, 0, 0, 0, 0)
        return 1
    original_cpuid(env, vm.scratch_at)
    eax, ebx = load32(vm.scratch_at), load32(vm.scratch_at + 4)
    ecx, edx = load32(vm.scratch_at + 8), load32(vm.scratch_at + 12)
    if leaf == 1:
        ecx = (ecx | _LEAF_1_ECX) & ~_LEAF_1_ECX_ABSENT
        edx |= _LEAF_1_EDX
        if not vm.apic_enabled:
            ecx &= ~(1 << 21)
            edx &= ~_LEAF_1_EDX
    elif leaf == 7 and not subleaf:
        ebx |= _LEAF_7_EBX
    elif leaf == 0x8000_0001:
        ecx &= ~_EXTENDED_1_ECX_ABSENT
        if not vm.apic_enabled:
            edx &= ~_LEAF_1_EDX
    elif leaf == 0x8000_0007:
        edx |= _EXTENDED_7_EDX
    _set(env, eax, ebx, ecx, edx)
    return 1
