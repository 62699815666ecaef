"""The 8254 and port 0x61, as far as they need no Python: reading and latching counts, while counter 0's OUT stays.

:mod:`emu.devices.pit` has the rules and their sources. What is done here is the same there, on the same records.
"""

from __future__ import annotations

import numpy as np

from emu.cpu.clock import device_time
from emu.devices.pit import (
    CONTROL,
    HZ,
    NS,
    OUT_2,
    READ_BACK,
    REFRESH,
    REFRESH_CLOCKS,
    PitState,
    SystemControlState,
)
from emu.devices.pit_counter import HIGH, LOW_HIGH, CounterState
from emu.devices.shared import ASK, NONE, field_names
from emu.engine.native import inlined, outlined, record_at
from emu.engine.state import Cpu, cpu_record

_COUNTER = record_at(np.dtype([(name, np.int64) for name in field_names(CounterState)]), "PitCounter")
_PIT = record_at(np.dtype([(name, np.int64) for name in field_names(PitState)]), "Pit")
_SYSTEM_CONTROL = record_at(np.dtype([(name, np.int64) for name in field_names(SystemControlState)]), "SystemControl")


@inlined
def _clock_now(cpu: Cpu) -> int:
    """How many clocks of the PIT have come."""
    now = device_time(cpu)
    return now // NS * HZ + now % NS * HZ // NS


@inlined
def _advance(counter: CounterState, clock: int) -> bool:
    """Bring a counter whose OUT nobody follows to a clock; False, with nothing done, if it is loaded on the way."""
    if counter.load_clock != NONE and counter.load_clock <= clock:
        return False
    counter.now = max(counter.now, clock)
    return True


@inlined
def _clocks(counter: CounterState) -> int:
    """Clocks since the load."""
    return (counter.now if counter.pause_clock == NONE else counter.pause_clock) - counter.start_clock


@inlined
def _count(counter: CounterState) -> int:
    """What the counting element reads as; not for BCD."""
    if counter.start_clock == NONE:
        return counter.register
    clocks = _clocks(counter)
    value = counter.initial - clocks
    if counter.mode == 2:
        value = counter.initial - clocks % counter.initial
    elif counter.mode == 3:
        phase, high = clocks % counter.initial, (counter.initial + 1) // 2
        value = (counter.initial & ~1) - 2 * (phase - high if phase >= high else phase)
    return value & 0xFFFF


@inlined
def _out(counter: CounterState) -> bool:
    """Level of OUT."""
    if counter.start_clock == NONE:
        return counter.mode != 0
    clocks = _clocks(counter)
    if counter.mode == 2 or counter.mode == 3:
        phase = clocks % counter.initial
        high = phase != counter.initial - 1 if counter.mode == 2 else phase < (counter.initial + 1) // 2
        return counter.pause_clock != NONE or high
    return clocks != counter.initial if counter.mode >= 4 else clocks >= counter.initial


@inlined
def _counter_now(cpu: Cpu, pit: PitState, number: int) -> int:
    """Host address of a counter's record, brought to the present; 0 when the device has to do that."""
    clock = _clock_now(cpu)
    if clock >= pit.quiet:
        return 0
    first = _COUNTER(pit.counter_0_at)
    at = pit.counter_0_at if number == 0 else pit.counter_1_at if number == 1 else pit.counter_2_at
    counter = _COUNTER(at)
    if counter.bcd or counter.latched_status != NONE or not _advance(counter, clock):
        return 0
    first.now = max(first.now, clock)
    return at


@outlined("qqqq")
def load_pit(cpu_at: int, at: int, offset: int) -> int:
    """Read a counter of the PIT whose record is at ``at``, or ASK."""
    if offset == CONTROL:
        return 0
    counter_at = _counter_now(cpu_record(cpu_at), _PIT(at), offset)
    if counter_at == 0:
        return ASK
    counter = _COUNTER(counter_at)
    value = _count(counter) if counter.latched_count == NONE else counter.latched_count
    high = counter.access == HIGH
    if counter.access == LOW_HIGH:
        high = counter.high_next != 0
        counter.high_next = 0 if high else 1
    if not counter.high_next:
        counter.latched_count = NONE
    return value >> 8 if high else value & 0xFF


@outlined("qqqqq")
def store_pit(cpu_at: int, at: int, offset: int, value: int) -> int:
    """Latch a count: 0 when that is done, or ASK for any other write."""
    number = value >> 6
    if offset != CONTROL or number == READ_BACK or value & 0x30:
        return ASK
    counter_at = _counter_now(cpu_record(cpu_at), _PIT(at), number)
    if counter_at == 0:
        return ASK
    counter = _COUNTER(counter_at)
    if counter.latched_count == NONE:
        counter.latched_count = _count(counter)
        counter.high_next = 0
    return 0


@outlined("qqq")
def load_system_control(cpu_at: int, at: int) -> int:
    """Read port 0x61, whose record is at ``at``, or ASK."""
    port = _SYSTEM_CONTROL(at)
    clock = _clock_now(cpu_record(cpu_at))
    counter = _COUNTER(port.counter_2_at)
    if not _advance(counter, clock):
        return ASK
    return port.written | REFRESH * (clock // REFRESH_CLOCKS & 1) | (OUT_2 if _out(counter) else 0)
