"""Memory events: one stream per VM, one small record a kind.

Native code and Python record into the same ring through :func:`record`, so the order is the order in which things
happened.  A listener gets each event as an instance of one of the dataclasses below; their docstrings say when they
fire.  Listening never changes what a guest sees or when.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import numpy as np

from emu.engine.native import address_of, compiled, inlined, load64, store64
from emu.engine.ram import sparse_zeros
from emu.engine.state import Cpu, cpu_number, show_time, vm_of, vm_record

WORDS = 8  # int64 per ring entry: sequence number, virtual time, kind, five fields
RING_CAPACITY = 1 << 15  # entries, at the least
RING_MARGIN = 1 << 12  # entries kept free for what happens within one block, beside the dropping of all shadow entries

# kinds, in the order of the classes at the end of this module
(PAGE_FAULT, EXCEPTION, INTERRUPT, CR3_SWITCH, TABLE_WRITE, SHADOW_FILL, SHADOW_ZAP,
 DMM_FAULT, REMAP, PROTECT, EVICT, POOL_RESIZE, DISCARD,
 SHARE, UNSHARE, BALLOON_INFLATE, BALLOON_DEFLATE, RETIRE, POOL_REFUSED) = range(19)  # fmt: skip
KINDS = 19


# --- native plane -----------------------------------------------------------------------------------------------


@inlined
def record(cpu: Cpu, kind: int, a: int, b: int, c: int, d: int, e: int) -> None:
    """Count an event, end a step that waits for its kind, and put it into the ring when somebody listens to it."""
    vm = vm_of(cpu)
    at = vm.event_counts_at + 8 * kind
    store64(at, load64(at) + 1)
    time = show_time(cpu)  # whether anybody listens or not: that changes nothing
    if vm.event_stop_mask >> kind & 1:
        vm.step_hit = 1
        vm.stop = 1
        cpu.limit = 0
    if not vm.event_mask >> kind & 1:
        return
    at = vm.event_ring_at + (vm.event_head % vm.event_capacity) * (8 * WORDS)
    store64(at, vm.event_head)
    store64(at + 8, time)
    store64(at + 16, kind | cpu.index << 8)
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
def time_from_python(vm_at: int) -> int:
    """The VM's virtual time in ns; looking changes nothing."""
    vm = vm_record(vm_at)
    return max(vm.clock, cpu_number(vm, vm.current).vtime)


@compiled
def record_from_python(vm_at: int, kind: int, a: int, b: int, c: int, d: int, e: int) -> None:
    vm = vm_record(vm_at)
    record(cpu_number(vm, vm.current), kind, a, b, c, d, e)


# --- the kinds --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Event:
    """What every event carries.

    Attributes:
        sequence: position in the VM's stream, from 0.
        time: virtual time in ns.
        vm: name of the VM.
        cpu: number of the processor on which it happened, or which ran last before the DMM made it happen.
    """

    KIND: ClassVar[int]
    NAME: ClassVar[str]

    sequence: int
    time: int
    vm: str
    cpu: int

    def sentence(self) -> str:
        """The event in one English sentence."""
        raise NotImplementedError


def _rights(bits: int) -> str:
    return "".join(letter if bits >> i & 1 else "-" for i, letter in enumerate("rwx"))


@dataclass(frozen=True, slots=True)
class PageFault(Event):
    """The guest is about to get a page fault (#PF), before its handler runs.

    Attributes:
        gva: the faulting address, which is CR2.
        error: the error code (SDM vol. 3A, 4.7).
        rip: of the faulting instruction.
        cpl: privilege level it ran at.
    """

    KIND: ClassVar[int] = PAGE_FAULT
    NAME: ClassVar[str] = "page-fault"
    gva: int
    error: int
    rip: int
    cpl: int

    def sentence(self) -> str:
        what = "fetch from" if self.error & 16 else "write to" if self.error & 2 else "read of"
        why = "reserved bit set" if self.error & 8 else "not permitted" if self.error & 1 else "not present"
        return f"guest page fault: {what} {self.gva:#x} at rip {self.rip:#x}, CPL {self.cpl}: {why}"


@dataclass(frozen=True, slots=True)
class ExceptionDelivery(Event):
    """An exception or software interrupt is delivered to the guest.

    Attributes:
        vector: 0 to 255.
        error: error code, -1 when the vector has none.
        rip: the return address that the handler gets.
        cpl: privilege level before.
        software: 1 for INT n, INT3, INTO.
    """

    KIND: ClassVar[int] = EXCEPTION
    NAME: ClassVar[str] = "exception"
    vector: int
    error: int
    rip: int
    cpl: int
    software: int

    def sentence(self) -> str:
        error = "" if self.error < 0 else f" with error code {self.error:#x}"
        kind = "software interrupt" if self.software else "exception"
        return f"{kind} {self.vector}{error} delivered at rip {self.rip:#x}, CPL {self.cpl}"


@dataclass(frozen=True, slots=True)
class InterruptDelivery(Event):
    """A hardware interrupt is delivered to the guest.

    Attributes:
        vector: 0 to 255.
        rip: of the interrupted instruction.
        cpl: privilege level before.
    """

    KIND: ClassVar[int] = INTERRUPT
    NAME: ClassVar[str] = "interrupt"
    vector: int
    rip: int
    cpl: int

    def sentence(self) -> str:
        return f"hardware interrupt {self.vector} delivered at rip {self.rip:#x}, CPL {self.cpl}"


@dataclass(frozen=True, slots=True)
class Cr3Switch(Event):
    """The guest runs on other page tables than before, seen at its first access under them.

    Attributes:
        before, after: CR3.
        mode: paging mode now: 0 none, 1 32-bit, 2 PAE, 3 4-level.
    """

    KIND: ClassVar[int] = CR3_SWITCH
    NAME: ClassVar[str] = "cr3-switch"
    before: int
    after: int
    mode: int

    def sentence(self) -> str:
        mode = ("no paging", "32-bit paging", "PAE paging", "4-level paging")[self.mode]
        return f"CR3 switched from {self.before:#x} to {self.after:#x} ({mode})"


@dataclass(frozen=True, slots=True)
class TableWrite(Event):
    """The guest wrote into one of its page tables and the write was trapped (shadow mode only).

    Attributes:
        gpa: where it wrote.
        size: bytes, 1 to 8.
        before, after: contents, ``size`` bytes.
        zapped: shadow entries that were dropped by it.
    """

    KIND: ClassVar[int] = TABLE_WRITE
    NAME: ClassVar[str] = "table-write"
    gpa: int
    size: int
    before: int
    after: int
    zapped: int

    def sentence(self) -> str:
        return (
            f"page-table write at gpa {self.gpa:#x}, {self.size} bytes: {self.before:#x} became {self.after:#x}, "
            f"{self.zapped} shadow entries dropped"
        )


@dataclass(frozen=True, slots=True)
class ShadowFill(Event):
    """A shadow entry was made for a guest page (shadow mode only).

    Attributes:
        gva: page that the guest touched.
        gfn, mfn: what it leads to.
        entry: the shadow entry, a real x86 page-table entry.
    """

    KIND: ClassVar[int] = SHADOW_FILL
    NAME: ClassVar[str] = "shadow-fill"
    gva: int
    gfn: int
    mfn: int
    entry: int

    def sentence(self) -> str:
        rights = "writable" if self.entry & 2 else "write-trapped" if self.entry & 512 else "read-only"
        return f"shadow entry for gva {self.gva:#x} filled: gfn {self.gfn:#x} is mfn {self.mfn:#x}, {rights}"


@dataclass(frozen=True, slots=True)
class ShadowZap(Event):
    """A shadow entry was dropped (shadow mode only).

    Attributes:
        mfn: the frame that it mapped.
        entry: what it was.
        table: the mfn of the shadow table that held it.
        index: its index there.
    """

    KIND: ClassVar[int] = SHADOW_ZAP
    NAME: ClassVar[str] = "shadow-zap"
    mfn: int
    entry: int
    table: int
    index: int

    def sentence(self) -> str:
        return f"shadow entry {self.index} of table mfn {self.table:#x} dropped: it mapped mfn {self.mfn:#x}"


@dataclass(frozen=True, slots=True)
class DmmFault(Event):
    """The guest touched a gfn whose mapping did not allow it, and the DMM settled that.  No guest ever sees this.

    Attributes:
        gfn: what was touched.
        intent: 1 read, 2 write, 4 execute.
        cause: page type before (:class:`emu.dmm.p2m.PageType`).
        mfn: the frame behind it now.
    """

    KIND: ClassVar[int] = DMM_FAULT
    NAME: ClassVar[str] = "dmm-fault"
    gfn: int
    intent: int
    cause: int
    mfn: int

    def sentence(self) -> str:
        how = {1: "demand-zero", 2: "rights", 3: "swap-in", 4: "demand-load", 6: "shared"}[self.cause]
        return f"DMM fault ({how}): gfn {self.gfn:#x} wanted {_rights(self.intent)}, now in mfn {self.mfn:#x}"


@dataclass(frozen=True, slots=True)
class Remap(Event):
    """A gfn moved to another frame while the guest runs.

    Attributes:
        gfn: what moved.
        before, after: its mfn.
    """

    KIND: ClassVar[int] = REMAP
    NAME: ClassVar[str] = "remap"
    gfn: int
    before: int
    after: int

    def sentence(self) -> str:
        return f"gfn {self.gfn:#x} moved from mfn {self.before:#x} to mfn {self.after:#x}"


@dataclass(frozen=True, slots=True)
class Protect(Event):
    """The DMM changed its rights on a gfn.

    Attributes:
        gfn: which.
        before, after: rights: 1 read, 2 write, 4 execute.
    """

    KIND: ClassVar[int] = PROTECT
    NAME: ClassVar[str] = "protect"
    gfn: int
    before: int
    after: int

    def sentence(self) -> str:
        return f"rights on gfn {self.gfn:#x} changed from {_rights(self.before)} to {_rights(self.after)}"


@dataclass(frozen=True, slots=True)
class Evict(Event):
    """A gfn lost its frame to make room; its contents can be had again.

    Attributes:
        gfn: which.
        mfn: the frame that it had.
        became: its page type now (:class:`emu.dmm.p2m.PageType`): EVICTED when a policy keeps the contents, EMPTY when
            they were zeros, IMAGE when they were still those of the guest image.
        stored: 1 when the contents had to be stored, 0 when a copy of them was there already or none is needed.
    """

    KIND: ClassVar[int] = EVICT
    NAME: ClassVar[str] = "evict"
    gfn: int
    mfn: int
    became: int
    stored: int

    def sentence(self) -> str:
        what = {1: "all zeros", 3: "stored" if self.stored else "unchanged since it was stored", 4: "still the image's"}
        return f"gfn {self.gfn:#x} evicted from mfn {self.mfn:#x}: {what[self.became]}"


@dataclass(frozen=True, slots=True)
class PoolResize(Event):
    """The VM's pool of machine frames grew or shrank.

    Attributes:
        before, after: frames.
    """

    KIND: ClassVar[int] = POOL_RESIZE
    NAME: ClassVar[str] = "pool-resize"
    before: int
    after: int

    def sentence(self) -> str:
        return f"pool resized from {self.before} to {self.after} frames"


@dataclass(frozen=True, slots=True)
class Discard(Event):
    """The guest gave up a page (its balloon inflated, or it reported the page free): the contents are gone.

    Attributes:
        gfn: which; it reads as zeros from now on.
        mfn: the frame that is free now.
    """

    KIND: ClassVar[int] = DISCARD
    NAME: ClassVar[str] = "discard"
    gfn: int
    mfn: int

    def sentence(self) -> str:
        return f"gfn {self.gfn:#x} discarded, mfn {self.mfn:#x} is free"


@dataclass(frozen=True, slots=True)
class Share(Event):
    """A gfn gave up its frame for another one with the same contents, which it shares from now on.

    Attributes:
        gfn: which.
        before: the frame that it had.
        after: the frame that it shares.
        users: how many gfns, of all VMs, share that now.
    """

    KIND: ClassVar[int] = SHARE
    NAME: ClassVar[str] = "share"
    gfn: int
    before: int
    after: int
    users: int

    def sentence(self) -> str:
        others = self.users - 1
        return f"gfn {self.gfn:#x} leaves mfn {self.before:#x} and shares mfn {self.after:#x} with {others} others"


@dataclass(frozen=True, slots=True)
class Unshare(Event):
    """A shared gfn has a frame of its own again, because it is about to be written to (copy-on-write break).

    Attributes:
        gfn: which.
        before: the frame that it shared.
        after: its own; the same frame where nobody else used that any more.
    """

    KIND: ClassVar[int] = UNSHARE
    NAME: ClassVar[str] = "unshare"
    gfn: int
    before: int
    after: int

    def sentence(self) -> str:
        if self.before == self.after:
            return f"gfn {self.gfn:#x} is the last user of shared mfn {self.before:#x} and has it for its own now"
        return f"gfn {self.gfn:#x} leaves shared mfn {self.before:#x} for mfn {self.after:#x} of its own"


@dataclass(frozen=True, slots=True)
class BalloonInflate(Event):
    """The guest put a page into its balloon.

    Attributes:
        gfn: which; its contents are gone.
    """

    KIND: ClassVar[int] = BALLOON_INFLATE
    NAME: ClassVar[str] = "balloon-inflate"
    gfn: int

    def sentence(self) -> str:
        return f"gfn {self.gfn:#x} went into the balloon"


@dataclass(frozen=True, slots=True)
class BalloonDeflate(Event):
    """The guest took a page out of its balloon.

    Attributes:
        gfn: which.
    """

    KIND: ClassVar[int] = BALLOON_DEFLATE
    NAME: ClassVar[str] = "balloon-deflate"
    gfn: int

    def sentence(self) -> str:
        return f"gfn {self.gfn:#x} came out of the balloon"


@dataclass(frozen=True, slots=True)
class Retire(Event):
    """A machine frame was taken out of service for ever.

    Attributes:
        mfn: which.
        replacement: the frame that does its work now, the same one when it had none.
    """

    KIND: ClassVar[int] = RETIRE
    NAME: ClassVar[str] = "retire"
    mfn: int
    replacement: int

    def sentence(self) -> str:
        moved = "" if self.mfn == self.replacement else f", mfn {self.replacement:#x} stands in for it"
        return f"mfn {self.mfn:#x} taken out of service{moved}"


@dataclass(frozen=True, slots=True)
class PoolRefused(Event):
    """A policy wanted the pool to have another size, and it cannot: nothing has changed.

    Attributes:
        size, wanted: frames that it has, and was to have.
    """

    KIND: ClassVar[int] = POOL_REFUSED
    NAME: ClassVar[str] = "pool-refused"
    size: int
    wanted: int

    def sentence(self) -> str:
        return f"pool cannot be resized from {self.size} to {self.wanted} frames"


EVENT_TYPES: tuple[type[Event], ...] = (
    PageFault, ExceptionDelivery, InterruptDelivery, Cr3Switch, TableWrite, ShadowFill, ShadowZap,
    DmmFault, Remap, Protect, Evict, PoolResize, Discard,
    Share, Unshare, BalloonInflate, BalloonDeflate, Retire, PoolRefused,
)  # fmt: skip
BY_NAME = {kind.NAME: kind for kind in EVENT_TYPES}

_SIGNED = {"error"}  # fields whose -1 means "none"; every other field is an unsigned 64-bit integer
_FIELDS = [tuple(field.name for field in fields(kind))[4:] for kind in EVENT_TYPES]

Listener = Callable[[Event], None]


class EventLog:
    """One VM's event stream: counts every kind, and hands recorded events to listeners in order.

    Args:
        name: the VM's name.
        native: the VM's shared record (:mod:`emu.engine.state`).
        native_at: its host address.
        shadow_entries: that there can be: all may be dropped at once.
    """

    def __init__(self, name: str, native: Any, native_at: int, shadow_entries: int) -> None:
        self._name = name
        self._native = native
        margin = RING_MARGIN + shadow_entries
        self._capacity = max(RING_CAPACITY, 1 << (2 * margin - 1).bit_length())
        self._ring = sparse_zeros(self._capacity * WORDS, np.int64).reshape(self._capacity, WORDS)
        self._counts = np.zeros(KINDS, np.int64)
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
        return time_from_python(self._vm_at)

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
        number, cpu = row[2] & 0xFF, row[2] >> 8
        kind = EVENT_TYPES[number]
        names = _FIELDS[number]
        values = (
            value if name in _SIGNED else value & 0xFFFF_FFFF_FFFF_FFFF
            for name, value in zip(names, row[3:], strict=False)
        )
        return kind(row[0], row[1], self._name, cpu, *values)
