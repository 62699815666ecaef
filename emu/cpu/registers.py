"""Device registers that the native plane answers, and in part writes, by the devices' records (emu.devices.shared)."""

from __future__ import annotations

import numpy as np

from emu.addr import PAGE_SHIFT
from emu.cpu.apic import ASK, load_apic, store_apic
from emu.devices.bus import NATIVE_MMIO
from emu.devices.shared import LOCAL_APIC, Head, field_names
from emu.engine.native import inlined, load64, record_at
from emu.engine.state import Cpu, vm_of

_HEAD = record_at(np.dtype([(name, np.int64) for name in field_names(Head)]), "DeviceHead")


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
        return load_apic(cpu, gpa - head.base, size)
    return ASK


@inlined
def store_mmio(cpu: Cpu, gpa: int, size: int, value: int) -> int:
    """A store to device registers in memory: 0 when it is done, or ASK."""
    at = _mmio_record(cpu, gpa)
    if at == 0 or vm_of(cpu).closed:
        return ASK
    head = _HEAD(at)
    if head.kind == LOCAL_APIC:
        return store_apic(cpu, gpa - head.base, size, value)
    return ASK
