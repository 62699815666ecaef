"""Device registers that the native plane answers, and in part writes, by the devices' records (emu.devices.shared)."""

from __future__ import annotations

import numpy as np

from emu.addr import PAGE_SHIFT
from emu.cpu.apic import load_apic, store_apic
from emu.cpu.clock import device_time
from emu.cpu.pic import load_pic, store_pic
from emu.cpu.pit import load_pit, load_system_control, store_pit
from emu.devices import acpi_pm, hpet
from emu.devices.bus import NATIVE_MMIO
from emu.devices.console import ConsoleRecord
from emu.devices.hpet import TICK_NS, HpetState
from emu.devices.output import CAPACITY, OutputRecord
from emu.devices.shared import (
    ASK,
    CONSOLE,
    HPET,
    LOCAL_APIC,
    PIC,
    PIT,
    PM_TIMER,
    SYSTEM_CONTROL,
    UART,
    Head,
    field_names,
)
from emu.devices.uart import RBR_THR, UartRecord
from emu.engine.native import inlined, load8, load64, record_at, store8
from emu.engine.state import Cpu, vm_of

_HEAD = record_at(np.dtype([(name, np.int64) for name in field_names(Head)]), "DeviceHead")
_HPET = record_at(np.dtype([(name, np.int64) for name in field_names(HpetState)]), "Hpet")
_UART = record_at(np.dtype([(name, np.int64) for name in field_names(UartRecord)]), "Uart")
_CONSOLE = record_at(np.dtype([(name, np.int64) for name in field_names(ConsoleRecord)]), "DebugConsole")
_OUTPUT = record_at(np.dtype([(name, np.int64) for name in field_names(OutputRecord)]), "ConsoleOutput")

_HPET_COUNTER, _HPET_ENABLE = hpet.COUNTER, hpet.ENABLE
_PM_TIMER, _PM_HZ, _PM_MASK, _NS = acpi_pm.TIMER, acpi_pm.TIMER_HZ, (1 << acpi_pm.TIMER_BITS) - 1, acpi_pm.NS


# --- I/O ports --------------------------------------------------------------------------------------------------


@inlined
def _port_record(cpu: Cpu, port: int) -> int:
    """Host address of the record of the device at a port; 0 when it has none."""
    vm = vm_of(cpu)
    return 0 if vm.ask_devices else load64(vm.port_table_at + 8 * port)


@inlined
def load_port(cpu: Cpu, port: int, size: int) -> int:
    """IN: what is there, or ASK."""
    at = _port_record(cpu, port)
    if at == 0:
        return ASK
    head = _HEAD(at)
    offset = port - head.first
    if head.kind == PM_TIMER:
        return _pm_timer(cpu) if size == 4 and offset == _PM_TIMER else ASK
    if size != 1:
        return ASK
    if head.kind == PIC:
        return load_pic(at, offset)
    if head.kind == PIT:
        return load_pit(cpu.at, at, offset)
    if head.kind == SYSTEM_CONTROL:
        return load_system_control(cpu.at, at)
    return load64(head.reads_at + 8 * offset) if head.reads_at else ASK


@inlined
def store_port(cpu: Cpu, port: int, size: int, value: int) -> int:
    """OUT: 0 when it is done, or ASK."""
    at = _port_record(cpu, port)
    if at == 0 or size != 1 or vm_of(cpu).closed:
        return ASK
    head = _HEAD(at)
    offset = port - head.first
    value &= 0xFF
    if head.kind == PIC:
        return store_pic(at, offset, value)
    if head.kind == PIT:
        return store_pit(cpu.at, at, offset, value)
    if head.kind == CONSOLE:
        return _print(_CONSOLE(at).output_at, value)
    if head.kind == UART and offset == RBR_THR:
        return _transmit(at, value)
    return 0 if head.writes_at and load64(head.writes_at + 8 * offset) == value else ASK


@inlined
def _print(output_at: int, byte: int) -> int:
    """Collect a byte of console output: 0 when that is done, or ASK."""
    if output_at == 0:
        return ASK
    output = _OUTPUT(output_at)
    if output.count == CAPACITY or load8(output.urgent_at + byte):
        return ASK
    store8(output.data_at + output.count, byte)
    output.count += 1
    return 0


@inlined
def _transmit(at: int, byte: int) -> int:
    """A character into THR: 0 when that is done, or ASK."""
    uart = _UART(at)
    if not uart.transmits:
        return ASK
    status = _print(uart.output_at, byte)
    if status == 0:
        uart.thre_event = 1
    return status


@inlined
def _pm_timer(cpu: Cpu) -> int:
    """The power management timer, see :mod:`emu.devices.acpi_pm`."""
    now = device_time(cpu)
    return now // _NS * _PM_HZ + now % _NS * _PM_HZ // _NS & _PM_MASK


# --- memory -----------------------------------------------------------------------------------------------------


@inlined
def _mmio_record(cpu: Cpu, gpa: int) -> int:
    """Host address of the record of the device at a gpa; 0 when it has none."""
    vm = vm_of(cpu)
    if gpa < NATIVE_MMIO or vm.ask_devices:
        return 0
    return load64(vm.mmio_table_at + (gpa - NATIVE_MMIO >> PAGE_SHIFT << 3))


@inlined
def load_mmio(cpu: Cpu, gpa: int, size: int) -> int:
    """A load from device registers in memory: what is there, or ASK."""
    at = _mmio_record(cpu, gpa)
    if at == 0:
        return ASK
    head = _HEAD(at)
    if head.kind == LOCAL_APIC:
        return load_apic(cpu, gpa - head.first, size)
    if head.kind == HPET:
        return _hpet_counter(cpu, at, gpa - head.first, size)
    return ASK


@inlined
def store_mmio(cpu: Cpu, gpa: int, size: int, value: int) -> int:
    """A store to device registers in memory: 0 when it is done, or ASK."""
    at = _mmio_record(cpu, gpa)
    if at == 0 or vm_of(cpu).closed:
        return ASK
    head = _HEAD(at)
    if head.kind == LOCAL_APIC:
        return store_apic(cpu, gpa - head.first, size, value)
    return ASK


@inlined
def _hpet_counter(cpu: Cpu, at: int, offset: int, size: int) -> int:
    """The main counter, whole or half of it; ASK for other registers, and when a timer has ended."""
    timers = _HPET(at)
    now = device_time(cpu) // TICK_NS
    if offset & ~4 != _HPET_COUNTER or offset & size - 1 or size < 4 or now >= timers.quiet:
        return ASK
    value = timers.counter
    if timers.configuration & _HPET_ENABLE:
        value += now - timers.started
    return value if size == 8 else value >> 8 * (offset & 7) & 0xFFFF_FFFF
