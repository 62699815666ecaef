"""Loads and stores to device registers in memory: how they get from the engine to the devices."""

from __future__ import annotations

from emu.cpu.clock import DEVICE_ACCESS_NS
from emu.engine.native import call_host, callback
from emu.engine.state import state_at


@callback("qqqiq")
def on_mmio_load(uc, gpa, size, vm_at):
    """Unicorn's uc_cb_mmio_read_t: a load of ``size`` (1, 2, 4 or 8) bytes."""
    vm = state_at(vm_at)
    vm.vtime += DEVICE_ACCESS_NS
    return call_host(vm.mmio_load_at, gpa, size, 0)


@callback("vqqiqq")
def on_mmio_store(uc, gpa, size, value, vm_at):
    """Unicorn's uc_cb_mmio_write_t: a store of the low ``size`` bytes of ``value``."""
    vm = state_at(vm_at)
    vm.vtime += DEVICE_ACCESS_NS
    call_host(vm.mmio_store_at, gpa, size, value)
