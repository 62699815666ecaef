"""IN and OUT: the processor's permission check, and the way to the Python plane's port bus.

The engine itself lets every program do I/O, so the check stands here (SDM vol. 1, 19.5).
"""

from __future__ import annotations

from typing import Any

from emu.cpustate import BASE, CR0, CR0_PE, EFLAGS, FLAG_VM, FLAGS, LIMIT, TR
from emu.engine import abandon_instruction
from emu.guestmem import load_system
from emu.mmu.walk import NEED, OK
from emu.native import call_host, callback, inlined, load32, load64
from emu.segments import cpl
from emu.state import state_at

DENIED = 5  # result of a permission check, and in ``vm.miss_kind``: #GP(0)
_TSS_32 = 9  # descriptor type of a 32- or 64-bit TSS, bit 1 is "busy"
_IO_MAP_BASE = 0x66  # u16 in the TSS: offset of the I/O permission bit map


@inlined
def _io_permission(vm: Any, port: int, size: int) -> int:
    """Whether the running program may access ``size`` ports from ``port``: OK, DENIED, or NEED for the DMM."""
    env = vm.env
    eflags = load64(env + EFLAGS)
    if not load64(env + CR0) & CR0_PE:
        return OK
    if not eflags & FLAG_VM and cpl(vm) <= eflags >> 12 & 3:
        return OK
    base, limit = load64(env + TR + BASE), load32(env + TR + LIMIT)
    if load32(env + TR + FLAGS) >> 8 & 0x9D != 0x80 | _TSS_32 or limit < _IO_MAP_BASE + 1:
        return DENIED
    status = load_system(vm, base + _IO_MAP_BASE, 2)
    if status != OK:
        return NEED if status == NEED else DENIED
    offset = vm.sys_value + (port >> 3)
    if offset + 1 > limit:  # the processor always reads two bytes
        return DENIED
    status = load_system(vm, base + offset, 2)
    if status != OK:
        return NEED if status == NEED else DENIED
    return DENIED if vm.sys_value >> (port & 7) & ((1 << size) - 1) else OK


@callback("iqiiq")
def on_in(uc, port, size, vm_at):
    """Unicorn's UC_HOOK_INSN for IN and INS."""
    vm = state_at(vm_at)
    status = _io_permission(vm, port, size)
    if status != OK:
        vm.miss_kind = status
        abandon_instruction(vm)
    return call_host(vm.port_in_at, port, size, 0)


@callback("vqiiiq")
def on_out(uc, port, size, value, vm_at):
    """Unicorn's UC_HOOK_INSN for OUT and OUTS."""
    vm = state_at(vm_at)
    status = _io_permission(vm, port, size)
    if status != OK:
        vm.miss_kind = status
        abandon_instruction(vm)
    call_host(vm.port_out_at, port, size, value & 0xFFFF_FFFF)
