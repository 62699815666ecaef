"""Segment descriptors and segment registers as the native plane handles them (SDM vol. 3A, 3.4 and 3.5).

A descriptor is the int64 of its 8 bytes; ``attributes`` is its upper half, which is also what the engine keeps in the
``FLAGS`` of a segment register.
"""

from __future__ import annotations

from emu.cpu.guestmem import load_system
from emu.engine import cpustate
from emu.engine.cpustate import BASE, FLAGS, GDTR, LDTR, LIMIT, SELECTOR
from emu.engine.native import inlined, load32, load64, outlined, store32, store64
from emu.engine.state import Cpu, cpu_record

# attributes
TYPE_BUSY = 1 << 9  # of a TSS
READABLE = 1 << 9  # of code
WRITABLE = 1 << 9  # of data
CONFORMING = 1 << 10  # code
EXPAND_DOWN = 1 << 10  # data
CODE = 1 << 11
NOT_SYSTEM = 1 << 12
PRESENT = 1 << 15
LONG = 1 << 21  # L: 64-bit code
BIG = 1 << 22  # D/B: 32-bit code or stack
GRANULAR = 1 << 23

# attributes of the flat segments that SYSCALL and SYSENTER load, without DPL, L and D/B
FLAT_CODE = GRANULAR | PRESENT | NOT_SYSTEM | CODE | READABLE | 1 << 8
FLAT_DATA = GRANULAR | PRESENT | NOT_SYSTEM | WRITABLE | 1 << 8

BEYOND_TABLE = 4  # result of load_descriptor, beside those of emu.cpu.guestmem


@inlined
def attributes_of(descriptor: int) -> int:
    return descriptor >> 32 & 0xFFFF_FFFF


@inlined
def dpl_of(attributes: int) -> int:
    return attributes >> 13 & 3


@inlined
def system_type(attributes: int) -> int:
    """The type field together with the S bit: below 16 for system descriptors and gates."""
    return attributes >> 8 & 31


@inlined
def base_of(descriptor: int) -> int:
    return (descriptor >> 16 & 0xFF_FFFF) | (descriptor >> 32 & 0xFF00_0000)


@inlined
def limit_of(descriptor: int) -> int:
    """The segment's last offset in bytes."""
    limit = (descriptor & 0xFFFF) | (descriptor >> 32 & 0xF_0000)
    if attributes_of(descriptor) & GRANULAR:
        limit = limit << 12 | 0xFFF
    return limit


@outlined("qqq")
def _load_descriptor(cpu_at: int, selector: int) -> int:
    cpu = cpu_record(cpu_at)
    table = cpu.env + (LDTR if selector & 4 else GDTR)
    index = selector & 0xFFF8
    if index + 7 > load32(table + LIMIT):
        return BEYOND_TABLE
    return load_system(cpu, load64(table + BASE) + index, 8)


@inlined
def load_descriptor(cpu: Cpu, selector: int) -> int:
    """Load the descriptor of a selector that is not null into ``sys_value``; BEYOND_TABLE when it has none."""
    return _load_descriptor(cpu.at, selector)


@inlined
def set_segment(env: int, segment: int, selector: int, base: int, limit: int, attributes: int) -> None:
    """Write a segment register, hidden part included."""
    at = env + segment
    store32(at + SELECTOR, selector)
    store64(at + BASE, base)
    store32(at + LIMIT, limit)
    store32(at + FLAGS, attributes)


@inlined
def set_segment_v86(env: int, segment: int, selector: int) -> None:
    """Write a segment register as virtual-8086 mode does (SDM vol. 3B, 20.1.1)."""
    set_segment(env, segment, selector, selector << 4, 0xFFFF, PRESENT | NOT_SYSTEM | WRITABLE | 1 << 8 | 3 << 13)


@inlined
def stack_mask(attributes: int) -> int:
    """The part of (E)SP that a stack segment uses."""
    return 0xFFFF_FFFF if attributes & BIG else 0xFFFF


@inlined
def stack_has_room(attributes: int, limit: int, sp: int, size: int) -> bool:
    """Whether ``size`` bytes can be pushed below ``sp`` (SDM vol. 3A, 5.3)."""
    mask = stack_mask(attributes)
    first = (sp - size) & mask
    last = (sp - 1) & mask
    if first > last:
        return False  # wraps around
    if attributes & EXPAND_DOWN:
        return first > limit
    return last <= limit


@inlined
def cpl(cpu: Cpu) -> int:
    return load32(cpu.env + cpustate.HFLAGS) & cpustate.HF_CPL
