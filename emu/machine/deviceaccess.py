"""What the engine calls when a guest accesses a device: by a port, in memory, or as a model-specific register.

Python functions with int64 arguments, called from native code (:mod:`emu.cpu.portio`, :mod:`emu.cpu.mmio`,
:mod:`emu.cpu.msr`) in the middle of an instruction.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from emu.addr import PAGE_SHIFT
from emu.devices import layout
from emu.devices.platform import Platform
from emu.dmm.physical import PhysicalMemory
from emu.dmm.policylist import PolicyList
from emu.engine.native import host_function, signed
from emu.engine.state import Cpu, Vm

_TSC_DEADLINE = 0x6E0  # IA32_TSC_DEADLINE


class DeviceAccess:
    """The device accesses of one VM.

    Args:
        native: the VM's record (:mod:`emu.engine.state`), which gets the functions' host addresses.
        running: gives the record of the processor that runs.
        platform: the devices.
        memory: of the VM; told where there are registers in it.
        policies: of the VM; they are due at times of their own.

    Attributes:
        deadline: of the devices, after the last access: virtual time in ns.
    """

    def __init__(
        self, native: Vm, running: Callable[[], Cpu], platform: Platform, memory: PhysicalMemory,
        policies: PolicyList,
    ) -> None:  # fmt: skip
        self._native = native
        self._running = running
        self._platform = platform
        self._memory = memory
        self._policies = policies
        self._epoch = policies.next_epoch
        self.deadline = platform.deadline()
        self._apic_mapped = True
        self._raised: BaseException | None = None
        self._thunks: list[Any] = []  # keeps what native code calls alive
        functions = {
            "port_in_at": self._read_port, "port_out_at": self._write_port,
            "mmio_load_at": self._load_mmio, "mmio_store_at": self._store_mmio,
            "msr_load_at": self._load_msr, "msr_store_at": self._store_msr,
        }  # fmt: skip
        for field, function in functions.items():
            thunk = host_function(self._guarded(function))
            self._thunks.append(thunk)
            setattr(native, field, thunk.address_of)
        native.pio_at, native.pio2_at = (channel.buffer.address for channel in platform.ide)
        native.port_table_at = platform.bus.table_at
        native.mmio_table_at = platform.mmio.table_at
        for gfns in platform.mmio.gfns():
            memory.set_mmio(gfns)

    def plan(self) -> None:
        """Tell native code when something is due.  It must know at all times: rounds of turns end there."""
        self._plan_for(self._platform.deadline())

    def _plan_for(self, deadline: int) -> None:
        self.deadline, self._epoch = deadline, self._policies.next_epoch
        self._native.deadline = min(self.deadline, self._epoch)

    def reraise(self) -> None:
        """Raise what a device raised while the engine ran."""
        if self._raised is not None:
            error, self._raised = self._raised, None
            raise error

    def _guarded(self, function: Callable[..., int]) -> Callable[..., int]:
        """An exception must not pass through the engine: it stops the engine and is raised again outside."""

        def call(*arguments: int) -> int:
            try:
                value = function(*arguments)
                deadline = self._platform.deadline()  # the access may have moved it
                if deadline != self.deadline or self._policies.next_epoch != self._epoch:
                    self._plan_for(deadline)
                    if self._native.deadline < self._native.round_end:
                        self._native.round_end = self._native.deadline
                        self._running().limit = 0
                return value
            except BaseException as error:  # raised again by reraise
                if self._raised is None:
                    self._raised = error
                self._native.stop = 1
                self._running().limit = 0
                return 0

        return call

    def _read_port(self, port: int, size: int, _: int) -> int:
        return self._platform.bus.read(port, size)

    def _write_port(self, port: int, size: int, value: int) -> int:
        if not self._native.closed:
            self._platform.bus.write(port, size, value)
        return 0

    def _load_mmio(self, gpa: int, size: int, _: int) -> int:
        return signed(self._platform.mmio.read(gpa, size))

    def _store_mmio(self, gpa: int, size: int, value: int) -> int:
        if not self._native.closed:
            self._platform.mmio.write(gpa, size, value & ((1 << 8 * size) - 1))
        return 0

    def _load_msr(self, index: int, _: int, __: int) -> int:
        """Leaves the value in ``msr_value``; 1 when the register does not exist."""
        value = self._platform.read_msr(self._running().index, index)
        if value is None:
            return 1
        if index == _TSC_DEADLINE and value:
            value += self._running().tsc_offset
        self._running().msr_value = signed(value)
        return 0

    def _store_msr(self, index: int, value: int, _: int) -> int:
        """1 when the register does not exist or does not take the value."""
        value &= (1 << 64) - 1
        if index == _TSC_DEADLINE and value:  # the device knows virtual time
            value = max(value - self._running().tsc_offset, 1)
        cpu = self._running()
        accepted = self._platform.write_msr(cpu.index, index, value)
        cpu.apic_enabled = int(self._platform.lapics[cpu.index].enabled)
        self.map_apic()
        return int(not accepted)

    def map_apic(self) -> None:
        """Have the local APIC's registers in memory where they are now."""
        if self._platform.apic_page_mapped != self._apic_mapped:
            self._apic_mapped = not self._apic_mapped
            gfn = layout.LOCAL_APIC >> PAGE_SHIFT
            self._memory.set_mmio(range(gfn, gfn + 1), self._apic_mapped)
