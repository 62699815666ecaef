"""Loads and stores to device registers in memory: how they get from the engine to the devices."""

from __future__ import annotations

from emu.cpu.clock import DEVICE_ACCESS_NS
from emu.cpu.registers import load_mmio, store_mmio
from emu.devices.shared import ASK
from emu.engine.native import call_host, callback
from emu.engine.state import cpu_record, show_time, vm_of


@callback("qqqiq")
def on_mmio_load(uc: int, gpa: int, size: int, cpu_at: int) -> int:
    """Unicorn's uc_cb_mmio_read_t: a load of ``size`` (1, 2, 4 or 8) bytes."""
    cpu = cpu_record(cpu_at)
    cpu.vtime += DEVICE_ACCESS_NS
    show_time(cpu)
    value = load_mmio(cpu, gpa, size)
    return call_host(vm_of(cpu).mmio_load_at, gpa, size, 0) if value == ASK else value


@callback("vqqiqq")
def on_mmio_store(uc: int, gpa: int, size: int, value: int, cpu_at: int) -> None:
    """Unicorn's uc_cb_mmio_write_t: a store of the low ``size`` bytes of ``value``."""
    cpu = cpu_record(cpu_at)
    cpu.vtime += DEVICE_ACCESS_NS
    show_time(cpu)
    if store_mmio(cpu, gpa, size, value) == ASK:
        call_host(vm_of(cpu).mmio_store_at, gpa, size, value)
