"""IN and OUT: the processor's permission check, and the way to the Python plane's port bus.

The engine itself lets every program do I/O, so the check stands here (SDM vol. 1, 19.5).
"""

from __future__ import annotations

from emu.cpu.clock import BLOCK_ACCESS_NS, DEVICE_ACCESS_NS
from emu.cpu.guestmem import load_system
from emu.cpu.registers import load_port, store_port
from emu.cpu.segments import cpl
from emu.devices.layout import IDE2_PORT, IDE_PORT
from emu.devices.shared import ASK
from emu.engine.cpustate import BASE, CR0, CR0_PE, EFLAGS, FLAG_VM, FLAGS, LIMIT, TR
from emu.engine.engine import abandon_instruction
from emu.engine.native import call_host, callback, inlined, load16, load32, load64, store16, store32, store64
from emu.engine.state import Cpu, cpu_record, show_time, vm_of
from emu.mmu.walk import NEED, OK

SUSPENDED = 13  # in ``cpu.miss_kind``: it has put the machine to sleep
DENIED = 5  # result of a permission check, and in ``cpu.miss_kind``: #GP(0)
_TSS_32 = 9  # descriptor type of a 32- or 64-bit TSS, bit 1 is "busy"
_PIO_END, _PIO_MODE, _PIO_DATA = 8, 16, 24  # offsets in emu.devices.pio's layout
_PIO_READING, _PIO_WRITING = 1, 2
_IO_MAP_BASE = 0x66  # u16 in the TSS: offset of the I/O permission bit map


@inlined
def _io_permission(cpu: Cpu, port: int, size: int) -> int:
    """Whether the running program may access ``size`` ports from ``port``: OK, DENIED, or NEED for the DMM."""
    env = cpu.env
    eflags = load64(env + EFLAGS)
    if not load64(env + CR0) & CR0_PE:
        return OK
    if not eflags & FLAG_VM and cpl(cpu) <= eflags >> 12 & 3:
        return OK
    base, limit = load64(env + TR + BASE), load32(env + TR + LIMIT)
    if load32(env + TR + FLAGS) >> 8 & 0x9D != 0x80 | _TSS_32 or limit < _IO_MAP_BASE + 1:
        return DENIED
    status = load_system(cpu, base + _IO_MAP_BASE, 2)
    if status != OK:
        return NEED if status == NEED else DENIED
    offset = cpu.sys_value + (port >> 3)
    if offset + 1 > limit:  # the processor always reads two bytes
        return DENIED
    status = load_system(cpu, base + offset, 2)
    if status != OK:
        return NEED if status == NEED else DENIED
    return DENIED if cpu.sys_value >> (port & 7) & ((1 << size) - 1) else OK


@inlined
def _block_position(cpu: Cpu, port: int, size: int, mode: int) -> int:
    """Where in the open block of a disk's data register (emu.devices.pio) the access goes, and move on; or -1.

    The last access of a block is the device's.
    """
    vm = vm_of(cpu)
    if port == IDE_PORT:
        at = vm.pio_at
    elif port == IDE2_PORT:
        at = vm.pio2_at
    else:
        return -1
    if size == 1 or load64(at + _PIO_MODE) != mode:
        return -1
    position = load64(at)
    if position + size >= load64(at + _PIO_END):
        return -1
    store64(at, position + size)
    cpu.vtime += BLOCK_ACCESS_NS
    return at + _PIO_DATA + position


@callback("iqiiq")
def on_in(uc: int, port: int, size: int, cpu_at: int) -> int:
    """Unicorn's UC_HOOK_INSN for IN and INS."""
    cpu = cpu_record(cpu_at)
    status = _io_permission(cpu, port, size)
    if status != OK:
        cpu.miss_kind = status
        abandon_instruction(cpu)
    at = _block_position(cpu, port, size, _PIO_READING)
    if at >= 0:
        return load16(at) if size == 2 else load32(at)
    cpu.vtime += DEVICE_ACCESS_NS
    show_time(cpu)
    found = load_port(cpu, port, size)
    return call_host(vm_of(cpu).port_in_at, port, size, 0) if found == ASK else found


@callback("vqiiiq")
def on_out(uc: int, port: int, size: int, value: int, cpu_at: int) -> None:
    """Unicorn's UC_HOOK_INSN for OUT and OUTS."""
    cpu = cpu_record(cpu_at)
    status = _io_permission(cpu, port, size)
    if status != OK:
        cpu.miss_kind = status
        abandon_instruction(cpu)
    at = _block_position(cpu, port, size, _PIO_WRITING)
    if at >= 0:
        if size == 2:
            store16(at, value & 0xFFFF)
        else:
            store32(at, value & 0xFFFF_FFFF)
        return
    cpu.vtime += DEVICE_ACCESS_NS
    show_time(cpu)
    value &= 0xFFFF_FFFF
    if store_port(cpu, port, size, value) == ASK:
        call_host(vm_of(cpu).port_out_at, port, size, value)
        if vm_of(cpu).suspends:
            cpu.miss_kind = SUSPENDED
            abandon_instruction(cpu)
