"""The event stream of a VM: one ring, one small record an event.

Its time never falls: what happens within a block of code has the time of the block's beginning, because nobody knows
yet how much of the block will be executed, and when another processor has its turn the time goes on from the end of
the turn before.

Native code and Python record into the same ring through :func:`record`, so the order is the order in which things
happened.  A listener gets each event as an instance of one of the classes in :mod:`emu.engine.events`.  Listening
never changes what a guest sees or when.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from emu.engine.eventkind import Event
from emu.engine.events import EVENT_TYPES
from emu.engine.native import address_of, compiled, inlined, load64, store64
from emu.engine.ram import sparse_zeros
from emu.engine.state import Cpu, Vm, cpu_number, vm_of, vm_record

WORDS = 8  # int64 per ring entry: sequence number, virtual time, kind and processor, five fields
_CPU_SHIFT = 8  # of the processor's number beside the kind
RING_CAPACITY = 1 << 15  # entries, at the least
RING_MARGIN = 1 << 12  # entries kept free for what happens within one block, beside the dropping of all shadow entries
_SIGNED = frozenset({"error"})  # fields whose -1 means "none"; every other field is an unsigned 64-bit integer


# --- native plane -----------------------------------------------------------------------------------------------


@inlined
def record(cpu: Cpu, kind: int, a: int, b: int, c: int, d: int, e: int) -> None:
    """Count an event, end a step that waits for its kind, and put it into the ring when somebody listens to it."""
    vm = vm_of(cpu)
    at = vm.event_counts_at + 8 * kind
    store64(at, load64(at) + 1)
    if vm.event_stop_mask >> kind & 1:
        vm.step_hit = 1
        vm.stop = 1
        cpu.limit = 0
    if not vm.event_mask >> kind & 1:
        return
    at = vm.event_ring_at + (vm.event_head % vm.event_capacity) * (8 * WORDS)
    store64(at, vm.event_head)
    store64(at + 8, max(vm.log_time, cpu.vtime - cpu.block_size))
    store64(at + 16, kind | cpu.index << _CPU_SHIFT)
    store64(at + 24, a)
    store64(at + 32, b)
    store64(at + 40, c)
    store64(at + 48, d)
    store64(at + 56, e)
    vm.event_head += 1
    if vm.event_head - vm.event_tail >= vm.event_capacity - vm.event_margin:
        vm.stop = 1
        cpu.limit = 0


@compiled
def record_from_python(vm_at: int, kind: int, a: int, b: int, c: int, d: int, e: int) -> None:
    vm = vm_record(vm_at)
    record(cpu_number(vm, vm.current), kind, a, b, c, d, e)


@compiled
def time_from_python(vm_at: int) -> int:
    """The VM's virtual time in ns; looking changes nothing."""
    vm = vm_record(vm_at)
    return max(vm.clock, cpu_number(vm, vm.current).vtime)


# --- Python plane -----------------------------------------------------------------------------------------------

Listener = Callable[[Event], None]


class EventLog:
    """One VM's event stream: counts every kind, and hands recorded events to listeners in order.

    Args:
        name: the VM's name.
        native: the VM's record (:mod:`emu.engine.state`).
        native_at: its host address.
        shadow_entries: that there can be: all may be dropped at once.
    """

    def __init__(self, name: str, native: Vm, native_at: int, shadow_entries: int) -> None:
        self._name = name
        self._native = native
        margin = RING_MARGIN + shadow_entries
        self._capacity = max(RING_CAPACITY, 1 << (2 * margin - 1).bit_length())
        self._ring = sparse_zeros(self._capacity * WORDS, np.int64).reshape(self._capacity, WORDS)
        self._counts = np.zeros(len(EVENT_TYPES), np.int64)
        self._listeners: list[tuple[Listener, frozenset[int]]] = []
        self._vm_at = native_at
        native.event_ring_at = address_of(self._ring)
        native.event_capacity, native.event_margin = self._capacity, margin
        native.event_counts_at = address_of(self._counts)

    @property
    def has_listeners(self) -> bool:
        """Whether anybody listens."""
        return bool(self._listeners)

    @property
    def now(self) -> int:
        """The VM's virtual time in ns."""
        return int(time_from_python(self._vm_at))

    def counts(self) -> dict[str, int]:
        """How often each kind has happened, by name."""
        return {kind.NAME: int(self._counts[kind.KIND]) for kind in EVENT_TYPES}

    def listen(self, listener: Listener, kinds: Iterable[type[Event]] = EVENT_TYPES) -> None:
        """Call ``listener`` with each event of ``kinds`` from now on; never from inside the engine."""
        self.drain()
        self._listeners.append((listener, frozenset(kind.KIND for kind in kinds)))
        self._update_mask()

    def unlisten(self, listener: Listener) -> None:
        """Stop calling ``listener``."""
        self.drain()
        self._listeners = [entry for entry in self._listeners if entry[0] is not listener]
        self._update_mask()

    def _update_mask(self) -> None:
        self._native.event_mask = sum(1 << kind for kind in frozenset().union(*(k for _, k in self._listeners)))

    def record(self, kind: type[Event], a: int, b: int = 0, c: int = 0, d: int = 0, e: int = 0) -> None:
        """Record an event that happened in the Python plane."""
        # numba dispatches plain ints fastest
        record_from_python(self._vm_at, kind.KIND, int(a), int(b), int(c), int(d), int(e))
        if self._native.event_head - self._native.event_tail >= self._capacity - self._native.event_margin:
            self.drain()

    def drain(self) -> None:
        """Hand everything recorded so far to the listeners."""
        native = self._native
        while native.event_tail < native.event_head:
            row = self._ring[native.event_tail % self._capacity].tolist()
            native.event_tail += 1
            event = self._decode(row)
            for listener, kinds in self._listeners:
                if event.KIND in kinds:
                    listener(event)

    def _decode(self, row: list[int]) -> Event:
        kind, cpu = EVENT_TYPES[row[2] & ((1 << _CPU_SHIFT) - 1)], row[2] >> _CPU_SHIFT
        values = (
            value if name in _SIGNED else value & 0xFFFF_FFFF_FFFF_FFFF
            for name, value in zip(kind.FIELDS, row[3:], strict=False)
        )
        return kind(row[0], row[1], self._name, cpu, *values)
