"""The local APIC of the running processor, as far as it needs no Python: most of its registers, TPR, EOI, INTA.

:mod:`emu.devices.lapic` has the rules and their sources. What is done here is the same there, on the same record; what
is not is left to it (ASK): registers whose access starts or stops something, level-triggered interrupts, the 8259.
"""

from __future__ import annotations

import numpy as np

from emu.cpu.clock import device_time
from emu.devices import lapic_registers as reg
from emu.devices.lapic_state import ApicRecord
from emu.devices.lapic_timer import TSC_DEADLINE, TimerState
from emu.devices.shared import ASK, field_names
from emu.engine.native import inlined, load32, outlined, record_at, signed, store32
from emu.engine.state import Cpu, cpu_record, vm_of

_APIC = record_at(np.dtype([(name, np.int64) for name in field_names(ApicRecord)]), "Apic")
_TIMER = record_at(np.dtype([(name, np.int64) for name in field_names(TimerState)]), "ApicTimer")

_ID, _TPR, _PPR, _EOI, _SVR, _ISR, _TMR, _IRR = reg.ID, reg.TPR, reg.PPR, reg.EOI, reg.SVR, reg.ISR, reg.TMR, reg.IRR
_TIMER_CURRENT, _REGISTERS = reg.TIMER_CURRENT, reg.REGISTERS
_KEPT = signed(sum(1 << number for number in reg.READABLE - {reg.TIMER_CURRENT}))  # what is read is what is there
_X2APIC_KEPT = signed(sum(1 << number for number in reg.X2APIC_READABLE - {reg.TIMER_CURRENT, reg.ICR}))
_MODE = reg.BASE_ENABLED | reg.BASE_X2APIC  # bits of the base
_XAPIC_MODE = reg.BASE_ENABLED


@inlined
def _highest(at: int) -> int:
    """The highest vector whose bit is set in the ISR or IRR at a host address; -1 for none."""
    for word in range(7, -1, -1):
        bits = load32(at + 4 * word)
        if bits:
            number = 32 * word
            for shift in (16, 8, 4, 2, 1):
                if bits >> shift:
                    bits >>= shift
                    number += shift
            return number
    return -1


@inlined
def _flip(at: int, vector: int) -> None:
    word = at + 4 * (vector >> 5)
    store32(word, load32(word) ^ 1 << (vector & 31))


@outlined("qqq")
def _update(cpu_at: int, new_tpr: int) -> int:
    """Take a new TPR (or ASK for the old one), then find the PPR and the level of the processor's interrupt line."""
    cpu = cpu_record(cpu_at)
    apic = _APIC(cpu.apic_at)
    registers = apic.registers_at
    if new_tpr != ASK:
        store32(registers + 4 * _TPR, new_tpr)
    tpr, served = load32(registers + 4 * _TPR), _highest(registers + 4 * _ISR)
    ppr = tpr if tpr >> 4 >= served >> 4 else served & 0xF0
    store32(registers + 4 * _PPR, ppr)
    output = 1 if apic.extint or _highest(registers + 4 * _IRR) >> 4 > ppr >> 4 else 0
    if output != apic.output:
        apic.output = output
        cpu.intr_line = output
        if output:
            cpu.limit = 0
            cpu.wake_at = device_time(cpu)
    return 0


@outlined("qq")
def _end_of_interrupt(cpu_at: int) -> int:
    """A write to the EOI register; 0, or ASK with nothing done."""
    cpu = cpu_record(cpu_at)
    registers = _APIC(cpu.apic_at).registers_at
    vector = _highest(registers + 4 * _ISR)
    if vector >= 0:
        if load32(registers + 4 * _TMR + 4 * (vector >> 5)) >> (vector & 31) & 1:
            return ASK
        _flip(registers + 4 * _ISR, vector)
        _update(cpu_at, ASK)
    return 0


@inlined
def _count(cpu: Cpu, timer_at: int) -> int:
    """The timer's current count; ASK when it has ended and the device does not know yet."""
    timer = _TIMER(timer_at)
    if timer.end == 0:
        return 0
    now = device_time(cpu)
    if 0 < timer.end <= now:
        return ASK
    return 0 if timer.mode == TSC_DEADLINE else -(now - timer.end >> timer.shift)


@inlined
def _load(cpu: Cpu, number: int, kept: int) -> int:
    """A register, if it is one of those in the bit mask ``kept``, or the current count; else ASK."""
    apic = _APIC(cpu.apic_at)
    if kept >> number & 1:
        return load32(apic.registers_at + 4 * number)
    if number == _TIMER_CURRENT:
        return _count(cpu, apic.timer_at)
    return ASK


@inlined
def _store(cpu: Cpu, number: int, value: int) -> int:
    """Write TPR or EOI; ASK for another register, and when the device has to do it."""
    if number == _TPR:
        return _update(cpu.at, value & 0xFF)
    if number == _EOI:
        return _end_of_interrupt(cpu.at)
    return ASK


@inlined
def load_task_priority(cpu: Cpu) -> int:
    """The class of the TPR, 0 to 15, which long mode has as CR8 (SDM vol. 3A, 10.8.6.1)."""
    return load32(_APIC(cpu.apic_at).registers_at + 4 * _TPR) >> 4


@inlined
def store_task_priority(cpu: Cpu, priority: int) -> None:
    """Write the TPR as MOV to CR8 does."""
    _update(cpu.at, priority << 4)


@inlined
def load_apic(cpu: Cpu, offset: int, size: int) -> int:
    """A load from the page with the registers, or ASK."""
    if size != 4 or offset & 0xF or offset >> 4 >= _REGISTERS or _APIC(cpu.apic_at).base & _MODE != _XAPIC_MODE:
        return ASK
    return _load(cpu, offset >> 4, _KEPT)


@inlined
def store_apic(cpu: Cpu, offset: int, size: int, value: int) -> int:
    """A store to the page with the registers: 0 when it is done, or ASK."""
    if size != 4 or offset & 0xF or _APIC(cpu.apic_at).base & _MODE != _XAPIC_MODE:
        return ASK
    return _store(cpu, offset >> 4, value)


@inlined
def load_x2apic(cpu: Cpu, number: int) -> int:
    """An x2APIC register by MSR, or ASK."""
    if vm_of(cpu).ask_devices or number >= _REGISTERS or _APIC(cpu.apic_at).base & _MODE != _MODE:
        return ASK
    return _load(cpu, number, _X2APIC_KEPT)


@inlined
def store_x2apic(cpu: Cpu, number: int, value: int) -> int:
    """Write an x2APIC register by MSR: 0 when it is done, or ASK."""
    if vm_of(cpu).ask_devices or _APIC(cpu.apic_at).base & _MODE != _MODE:
        return ASK
    if number == _TPR and value & ~0xFF or number == _EOI and value:
        return ASK
    return _store(cpu, number, value)


@inlined
def acknowledge(cpu: Cpu) -> int:
    """The processor accepts an interrupt: its vector; ASK, with nothing done, when the 8259 has it."""
    if vm_of(cpu).ask_devices:
        return ASK
    apic = _APIC(cpu.apic_at)
    registers = apic.registers_at
    vector = _highest(registers + 4 * _IRR)
    if vector >> 4 > load32(registers + 4 * _PPR) >> 4:
        _flip(registers + 4 * _IRR, vector)
        _flip(registers + 4 * _ISR, vector)
        _update(cpu.at, ASK)
        return vector
    return ASK if apic.extint else load32(registers + 4 * _SVR) & 0xFF
