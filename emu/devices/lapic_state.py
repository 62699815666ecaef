"""The state of a local APIC, in place for both planes: the native plane reads and in part changes it (emu.cpu.apic)."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

from emu.devices import lapic_registers as reg
from emu.devices.lapic_timer import ApicTimer
from emu.devices.shared import Shared, record

_VECTOR_BYTES = 32


@record
class ApicRecord(Shared):
    """What the native plane gets the address of."""

    base: int  # IA32_APIC_BASE
    registers_at: int  # host address of the registers, a u32 each
    timer_at: int  # host address of the timer's record
    extint: int  # the 8259 asks and is let through
    output: int  # level that the processor was told last


class _Vectors:
    """ISR, TMR or IRR: eight registers as one number with a bit for each vector."""

    def __init__(self, first: int) -> None:
        self._bytes = slice(4 * first, 4 * first + _VECTOR_BYTES)

    def __get__(self, apic: ApicState, owner: type) -> int:
        return int.from_bytes(apic.register_bytes[self._bytes], "little")

    def __set__(self, apic: ApicState, value: int) -> None:
        apic.register_bytes[self._bytes] = value.to_bytes(_VECTOR_BYTES, "little")


class ApicState(ApicRecord):
    """The record, with what it points to.

    Attributes:
        registers: by their numbers; the timer's current count is not kept there.
        register_bytes: the same as bytes.
        isr, tmr, irr: those among the registers, a bit for each vector.
        timer: the timer.
    """

    isr, tmr, irr = _Vectors(reg.ISR), _Vectors(reg.TMR), _Vectors(reg.IRR)

    def __init__(self) -> None:
        super().__init__()
        self._words = (ctypes.c_uint32 * reg.REGISTERS)()
        self.register_bytes = memoryview(self._words).cast("B")
        self.registers = self.register_bytes.cast("I")
        self.timer = ApicTimer()
        self.registers_at, self.timer_at = ctypes.addressof(self._words), self.timer.shared_at

    def set_registers(self, values: Sequence[int]) -> None:
        """Give all registers their values."""
        self._words[:] = list(values)
