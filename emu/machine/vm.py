"""VirtualMachine: one guest with its engine, its mapping, its devices and its events."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Iterable, Sequence
from enum import Enum, auto
from typing import TYPE_CHECKING

import numpy as np

from emu.addr import MMIO_SIZE, NO_FRAME, PAGE_SHIFT
from emu.audit.audit import audit
from emu.boot.entry import enter_real_mode
from emu.boot.guest import Guest
from emu.cpu import breakpoints, clock, mmio, msr, portio, runloop, stepping
from emu.cpu.runloop import Reason
from emu.devices import layout
from emu.devices.disk import Disk
from emu.devices.platform import Platform
from emu.dmm.dmm import DMM
from emu.dmm.errors import NoProgress
from emu.dmm.p2m import INTENTS, P2M, PageType
from emu.dmm.policy import Policy
from emu.dmm.pool import Pool
from emu.engine import engine
from emu.engine.alone import NOWHERE
from emu.engine.cpustate import CpuState, set_hflags_mode
from emu.engine.events import EVENT_TYPES, Event, EventLog
from emu.engine.native import address_of
from emu.engine.state import State
from emu.errors import EmuError
from emu.machine.deviceaccess import DeviceAccess
from emu.mmu import fill
from emu.mmu.paging import Paging, ShadowPaging
from emu.mmu.shadow import ENTRIES

if TYPE_CHECKING:
    from emu.machine.machine import Machine

# Longest stay in the native plane, in virtual time, so that signals and threads of the host are served: it is a second
# where the engine takes a microsecond for a byte of code.
SLICE_NS = 1_000_000
_REASONS = tuple(Reason)
VECTOR_NMI = 2
A20 = 1 << 20  # address line 20, which a PC can hold low
MOST_WAITS = 10_000  # for the DMM without a single instruction in between


class EngineFault(EmuError):
    """The engine stopped with an error that emu has no explanation for: a bug in emu or in Unicorn."""


class Stop(Enum):
    """Why :meth:`VirtualMachine.run` returned."""

    EXIT = auto()  # the guest wrote to the exit port: ``exit_value``
    POWER_OFF = auto()  # the guest switched the machine off
    RESET = auto()  # the guest reset the machine
    CRASH = auto()  # triple fault
    HALTED = auto()  # HLT, and nothing can ever wake the guest
    DEADLINE = auto()  # the virtual time asked for has come
    REQUESTED = auto()  # :meth:`VirtualMachine.request_stop`
    STEP = auto()  # what :meth:`VirtualMachine.step` or :meth:`VirtualMachine.run_to_event` asked for has happened


class Exits:
    """How often the native plane was left, by reason."""

    def __init__(self) -> None:
        self._counts = [0] * len(Reason)

    def count(self, reason: Reason) -> None:
        self._counts[reason] += 1

    @property
    def counts(self) -> dict[str, int]:
        """By the reason's name in lower case."""
        return {reason.name.lower(): self._counts[reason] for reason in Reason}


class VirtualMachine:
    """One VM on a machine; made by :meth:`emu.machine.machine.Machine.create_vm`.

    Attributes:
        name: the VM's name.
        ram: bytes of its memory.
        guest: what :meth:`boot` placed in it, None before that.
        cpu: registers (:class:`emu.engine.cpustate.CpuState`).
        dmm, p2m, pool: its memory.
        events: its event stream.
        platform: its devices.
        exit_value: what the guest wrote to the exit port, None before that.
        exits: how often the native plane was left, by reason.
    """

    def __init__(
        self, machine: Machine, name: str, index: int, ram: int, pool: int, mmu: str, tables: int,
        disks: Sequence[Disk] = (), virtio_disk: Disk | None = None,
    ) -> None:  # fmt: skip
        self.name = name
        self.ram = ram
        self.machine = machine
        memory = machine.memory
        self.native = native = State()
        self.native_at = ctypes.addressof(self.native)
        self._scratch = np.zeros(16, np.int64)
        self.engine = engine.Engine(memory.at, memory.frames << PAGE_SHIFT)
        self.cpu = CpuState(self.engine.env)
        memory_gfns = [range(r.start >> PAGE_SHIFT, r.stop >> PAGE_SHIFT) for r in layout.ram_ranges(ram)]
        self.p2m = P2M(max(MMIO_SIZE >> PAGE_SHIFT, memory_gfns[-1].stop), memory_gfns)
        self._fill_native()
        self.events = EventLog(name, self.native, self.native_at, tables * ENTRIES)
        self.paging: Paging
        if mmu == "shadow":
            self.paging = ShadowPaging(self.native, self.native_at, memory, tables, index)
        else:
            self.paging = Paging(self.native, self.native_at, memory)
        self.pool = Pool(memory, pool, index)
        self.dmm = DMM(name, index, memory, machine.m2p, self.pool, self.p2m, self.paging, self.events)
        self.platform = Platform(
            ram, self.dmm, lambda: self.now, disks, virtio_disk,
            set_intr=lambda _, level: self._set_intr(level), raise_nmi=lambda _: self._raise_nmi(),
            on_init=lambda _: None, on_startup=lambda _, vector: None, set_a20=self._set_a20,
            balloon=self.dmm.balloon, on_exit=self._guest_exits,
            on_power_off=lambda: self._guest_ends(Stop.POWER_OFF), on_reset=lambda: self._guest_ends(Stop.RESET),
        )  # fmt: skip
        self._devices = DeviceAccess(native, self.platform, self.dmm)
        self.guest: Guest | None = None
        self.exit_value: int | None = None
        self._ended: Stop | None = None
        self.exits = Exits()
        self._stop_requested = False
        self._asleep = False
        self._waits = 0  # for the DMM, one after the other at the virtual time _waited_at
        self._waited_at = -1
        self._hook()
        weakref.finalize(self, engine.forget_clock, int(self.native.vtime_at))
        enter_real_mode(self.cpu)
        set_hflags_mode(self.engine.env)

    def _fill_native(self) -> None:
        native, memory = self.native, self.machine.memory
        native.at = self.native_at
        native.uc = self.engine.uc
        native.cpu_at = self.engine.cpu_at
        native.env = self.engine.env
        native.fault_address_at = self.engine.fault_address_at
        native.check_exit_at = self.engine.check_exit_at
        native.on_block_at = clock.on_block.address_of
        native.tlb_at = self.engine.tlb_at
        native.vtime_at = self.native_at + State.vtime.offset
        native.scratch_at = address_of(self._scratch)
        native.walk_at = address_of(self._scratch) + 32
        native.ram_at = memory.at
        native.void_mfn = NO_FRAME
        native.m2p_at = address_of(self.machine.m2p.gfn)
        native.p2m_at = address_of(self.p2m.entries)
        native.p2m_size = len(self.p2m)
        native.deadline = clock.NEVER
        native.a20_mask = -1
        native.window_mfn = -1
        native.root_mfn = -1
        native.cr3 = -1
        native.step_gva = NOWHERE
        native.step_count = stepping.UNLIMITED

    def _hook(self) -> None:
        from emu.cpu import delivery

        at = self.native_at
        e = self.engine
        e.hook(engine.HOOK_TLB_FILL, fill.on_tlb_fill, at)
        e.hook_trap(fill.on_trapped_store, at)
        e.hook_watch(breakpoints.on_watched_load, breakpoints.on_watched_store, at)
        e.hook(engine.HOOK_TRANSLATED, breakpoints.on_translated, at)
        e.hook(engine.HOOK_BLOCK, clock.on_block, at)
        e.hook(engine.HOOK_EXCEPTION, delivery.on_interrupt, at)
        e.hook(engine.HOOK_INVALID_INSTRUCTION, delivery.on_invalid_instruction, at)
        e.hook_instruction(engine.SYSCALL, delivery.on_syscall, at)
        e.hook_instruction(engine.SYSENTER, delivery.on_sysenter, at)
        e.hook_instruction(engine.CPUID, msr.on_cpuid, at)
        e.hook_instruction(engine.RDTSC, clock.on_rdtsc, at)
        e.hook_instruction(engine.RDTSCP, clock.on_rdtscp, at)
        e.hook_instruction(engine.IN, portio.on_in, at)
        e.hook_instruction(engine.OUT, portio.on_out, at)
        e.hook_mmio(mmio.on_mmio_load, mmio.on_mmio_store, at)

    # --- set-up ---

    def boot(self, guest: Guest) -> None:
        """Place the guest's image in its memory (without touching a frame) and set its first CPU state."""
        for gfn in guest.image.gfns():
            if gfn < len(self.p2m):
                self.p2m.set(gfn, PageType.IMAGE)
        self.guest = guest
        if guest.after_bios:
            self.platform.leave_as_bios()
        guest.start(self.cpu)
        set_hflags_mode(self.engine.env)

    def attach(self, policy: Policy) -> None:
        """Put a memory policy in force."""
        self.dmm.attach(policy)

    def audit_every_change(self) -> None:
        """Run :meth:`audit` after every change that the DMM makes (``--audit``)."""
        self.dmm.after_change = self.audit

    def audit(self) -> None:
        """Prove every structure of this VM consistent with every other.

        Raises:
            emu.audit.audit.AuditFailure: they are not; the message names the first contradiction.
        """
        audit(self)

    # --- running ---

    @property
    def now(self) -> int:
        """Virtual time in ns."""
        return int(self.native.vtime)

    @property
    def eflags(self) -> int:
        """EFLAGS with the arithmetic flags computed."""
        return int(runloop.eflags(self.native_at))

    @property
    def waits_for_input(self) -> bool:
        """Whether the last run left the guest halted with no device that wakes it by itself, as a timer does."""
        return self._asleep and self.platform.deadline() == clock.NEVER

    def request_stop(self) -> None:
        """Make :meth:`run` return before the guest's next block of code.  May be called from listeners and devices."""
        self._stop_requested = True
        self._attention()

    def forget_end(self) -> None:
        """Let a guest that has ended by the exit port, a power-off or a reset go on behind that."""
        self._ended = None
        self._devices.closed = False
        self.exit_value = None

    def run(self, until: int | None = None) -> Stop:
        """Run the guest until it ends, somebody requests a stop, or virtual time reaches ``until`` (ns).

        Raises:
            emu.dmm.errors.OutOfFrames: a page needs a frame and there is none.
            EngineFault: the engine failed in a way that no guest can cause.
            Exception: whatever a device, policy or listener raised.
        """
        return self._run(until, stepping.UNLIMITED, ())

    def step(self, instructions: int = 1, until: int | None = None) -> Stop:
        """As :meth:`run`, but for so many instructions at most; each pass of a repeated string instruction counts.

        The entry into a handler is part of the instruction that it follows.  A stepped run is the same as a free one,
        event for event and at the same virtual times, though :attr:`now` is that of the end of a block within it.

        Returns:
            STEP when they have been executed; else as :meth:`run`.
        """
        return self._run(until, instructions, ())

    def run_to_event(self, kinds: Iterable[type[Event]] = EVENT_TYPES, until: int | None = None) -> Stop:
        """As :meth:`run`, but no further than the instruction in which the next event of ``kinds`` happens.

        It stops behind that instruction, and before it when the instruction waited for the DMM.

        Returns:
            STEP when one has happened; else as :meth:`run`.
        """
        return self._run(until, stepping.UNLIMITED, kinds)

    def _run(self, until: int | None, instructions: int, kinds: Iterable[type[Event]]) -> Stop:
        if self.machine.m2p.dmms.get(self.dmm.index) is not self.dmm:
            raise ValueError(f"{self.name} has been removed from its machine")
        limit = clock.NEVER if until is None else until
        native = self.native
        self._asleep = False
        within_block = stepping.is_within_block(native)
        stepping.begin(native, instructions, kinds)
        reason = Reason.STOP
        while True:
            if stepping.is_over(native):
                return Stop.STEP
            if not within_block:
                if self._ended is not None:
                    return self._ended
                if self._stop_requested:
                    self._stop_requested = False
                    return Stop.REQUESTED
                if native.vtime >= limit:
                    return Stop.DEADLINE
            if reason != Reason.NEED or self.events.has_listeners:  # the DMM changes no device's plans
                self._devices.deadline = self.platform.deadline()
            device_deadline = min(self._devices.deadline, self.dmm.next_epoch)
            native.deadline = min(limit, device_deadline, native.vtime + SLICE_NS)
            native.stop = int(self._ended is not None or self._stop_requested)
            reason = _REASONS[runloop.run(self.native_at)]
            self.exits.count(reason)
            self.events.drain()
            self._devices.reraise()
            if reason == Reason.NEED:
                self._resolve()
            elif reason == Reason.INTERRUPT:
                self._interrupt()
            elif reason == Reason.NMI:
                self._deliver_nmi()
            elif reason == Reason.HALT:
                if self._ended is None and not self._sleep(limit):
                    return Stop.HALTED
            elif reason == Reason.SHUTDOWN:
                return self._ended or Stop.CRASH  # what follows the end in its block of code does not count
            elif reason == Reason.ENGINE_ERROR:
                raise EngineFault(f"{self.name}: {engine.error_text(int(native.engine_error))} at pc {self.cpu.pc:#x}")
            within_block = stepping.is_within_block(native)
            if native.vtime >= device_deadline and not within_block:
                self._tick()

    def _interrupt(self) -> None:
        vector = self.platform.acknowledge(0)
        if runloop.inject(self.native_at, vector) == runloop.NEED_DMM:
            self._resolve()  # the vector is taken from the controller: it stays pending until the page is there

    def _deliver_nmi(self) -> None:
        self.native.nmi_pending = 0
        self.cpu.block_nmi()
        if runloop.inject(self.native_at, VECTOR_NMI) == runloop.NEED_DMM:
            self._resolve()

    def _resolve(self) -> None:
        """The guest waits for the DMM."""
        native = self.native
        if native.vtime != self._waited_at:
            self._waited_at = native.vtime
            self._waits = 0
        self._waits += 1
        if self._waits > MOST_WAITS:
            raise NoProgress(self.name, native.need_gfn, self.pool.size)
        self.dmm.resolve(native.need_gfn, INTENTS[native.need_intent])

    def _sleep(self, limit: int) -> bool:
        """HLT: jump to the next deadline.  False when nothing can wake the guest."""
        native = self.native
        if not self.cpu.interrupts_enabled and not native.nmi_pending:
            return False
        while not native.intr_line and not native.nmi_pending and self._ended is None:
            if min(self.platform.deadline(), limit) == clock.NEVER:
                return False  # a policy's epoch wakes nobody
            wake = self._next_deadline()
            native.vtime = max(native.vtime, min(wake, limit))
            if wake > limit:
                self.cpu.rip -= 1  # still halted: execute HLT again when the run goes on
                self._asleep = True
                return True
            self._tick()
            if self._stop_requested and not native.intr_line:
                self.cpu.rip -= 1
                return True
        return True

    def _next_deadline(self) -> int:
        return min(self.platform.deadline(), self.dmm.next_epoch)

    def _tick(self) -> None:
        now = self.now
        self.platform.tick(now)
        self.dmm.run_epochs(now)
        self._devices.deadline = self.platform.deadline()

    def _attention(self) -> None:
        self.native.stop = 1
        self.native.limit = 0

    # --- called by devices ---

    def _set_intr(self, level: bool) -> None:
        self.native.intr_line = int(level)
        if level:
            self.native.limit = 0

    def _guest_exits(self, value: int) -> None:
        if self._ended is None:
            self.exit_value = value
        self._guest_ends(Stop.EXIT)

    def _guest_ends(self, how: Stop) -> None:
        if self._ended is None:
            self._ended = how
            self._devices.closed = True
        self._attention()

    def _raise_nmi(self) -> None:
        self.native.nmi_pending = 1
        self.native.limit = 0

    def _set_a20(self, level: bool) -> None:
        mask = -1 if level else ~A20
        if mask != self.native.a20_mask:
            self.native.a20_mask = mask
            self.paging.forget_translations()
