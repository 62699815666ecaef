"""VirtualMachine: one guest with its engine, its mapping, its devices and its events."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from enum import Enum, auto
from typing import cast

import numpy as np

from emu.addr import MMIO_SIZE, NO_FRAME, PAGE_SHIFT
from emu.audit.audit import audit
from emu.boot.guest import Guest
from emu.cpu import runloop, stepping
from emu.cpu.models import parse_cpu
from emu.cpu.runloop import Reason
from emu.devices import layout
from emu.devices.parts import NO_PARTS, Parts
from emu.devices.platform import Platform
from emu.dmm.dmm import DMM
from emu.dmm.errors import NoProgress
from emu.dmm.p2m import INTENTS, P2M, PageType
from emu.dmm.physical import PhysicalMemory
from emu.dmm.policy import Policy
from emu.dmm.pool import Pool
from emu.dmm.space import SharedMachine, Space
from emu.engine import engine
from emu.engine.cpustate import CpuState
from emu.engine.eventlog import EventLog
from emu.engine.events import EVENT_TYPES, Event
from emu.engine.native import address_of, signed
from emu.engine.state import RUNNING, Cpu, Vm, VmStructure
from emu.errors import EmuError
from emu.machine.deviceaccess import DeviceAccess
from emu.machine.inputs import ProcessorInputs
from emu.machine.processor import Processor
from emu.machine.reset import Reset, reset, start
from emu.machine.schedule import Schedule
from emu.mmu.paging import Paging, ShadowPaging
from emu.mmu.shadowtables import ENTRIES
from emu.units import NEVER

# Longest stay in the native plane, in virtual time, so that signals and threads of the host are served: it is a second
# where the engine takes a microsecond for a byte of code.
SLICE_NS = 1_000_000
_REASONS = tuple(Reason)
_NO_RESTARTS = (Reset.PROCESSORS, Reset.WAKE)  # the guest goes on
VECTOR_NMI = 2
A20 = 1 << 20  # address line 20, which a PC can hold low
MOST_WAITS = 10_000  # for the DMM without a single instruction in between


class EngineFault(EmuError):
    """The engine stopped with an error that emu has no explanation for: a bug in emu or in Unicorn."""


class Stop(Enum):
    """Why :meth:`VirtualMachine.run` returned."""

    EXIT = auto()  # the guest wrote to the exit port: ``exit_value``
    POWER_OFF = auto()  # the guest switched the machine off
    RESET = auto()  # the guest reset the machine, and shall not start again
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
        model: what its processors are (:class:`emu.cpu.models.Model`).
        guest: what :meth:`boot` placed in it, None before that.
        processors: its virtual CPUs, in the order of their numbers.
        machine: what it shares with the other VMs of its machine.
        dmm, p2m, pool: its memory.
        memory: the same as devices and tools read and write it.
        events: its event stream.
        platform: its devices.
        exit_value: what the guest wrote to the exit port, None before that.
        exits: how often the native plane was left, by reason.
        restarts: whether a reset starts the guest again; else :meth:`run` returns RESET.
        resets: how often the guest has reset the machine.
        selected: the number of the processor to look at; None for the one that runs, or ran last.
    """

    def __init__(
        self, machine: SharedMachine, name: str, index: int, ram: int, pool: int, mmu: str, tables: int,
        parts: Parts = NO_PARTS, cpus: int = 1, schedule: Schedule | None = None,
        cpu: str | None = None,
    ) -> None:  # fmt: skip
        self.name = name
        self.model = parse_cpu(cpu)
        self.ram = ram
        self.machine = machine
        self._parts = parts
        memory = machine.memory
        record = VmStructure()
        self.native = native = cast(Vm, record)
        self.native_at = native.at = ctypes.addressof(record)
        self.processors = tuple(
            Processor(number, self.native_at, memory, self.model) for number in range(cpus)
        )
        self.selected: int | None = None
        self._records = np.array([processor.native_at for processor in self.processors])
        memory_gfns = [range(r.start >> PAGE_SHIFT, r.stop >> PAGE_SHIFT) for r in layout.ram_ranges(ram)]
        self.p2m = P2M(max(MMIO_SIZE >> PAGE_SHIFT, memory_gfns[-1].stop), memory_gfns)
        self._fill_native(schedule or Schedule())
        self.events = EventLog(name, native, self.native_at, tables * ENTRIES)
        self.paging: Paging
        if mmu == "shadow":
            self.paging = ShadowPaging(native, memory, tables, index)
        else:
            self.paging = Paging(native, memory)
        self.pool = Pool(memory, pool, index)
        self.dmm = DMM(Space(machine, name, index, self.pool, self.p2m, self.paging, self.events))
        self.memory = PhysicalMemory(self.dmm)
        self._inputs = ProcessorInputs(
            native, self.processors, self.paging,
            now=lambda: self.now, reset=self._guest_resets_cpu, stop=self._attention,
        )  # fmt: skip
        self.platform = Platform(
            ram, self.memory, lambda: self.now, parts,
            cpus=cpus, running=lambda: self.native.current,
            set_intr=self._inputs.set_intr, raise_nmi=self._inputs.raise_nmi,
            on_init=self._inputs.init, on_startup=self._inputs.start_up, set_a20=self._set_a20,
            balloon=self.dmm.balloon, on_exit=self._guest_exits,
            on_power_off=lambda: self._guest_ends(Stop.POWER_OFF),
            on_suspend=self._guest_sleeps, on_wake=lambda: self._guest_resets(Reset.WAKE),
            on_reset=self._guest_resets, on_cpu_reset=self._guest_resets_cpu,
            on_load=lambda: self._guest_resets(Reset.KERNEL),
        )  # fmt: skip
        for processor, apic in zip(self.processors, self.platform.lapics, strict=True):
            processor.native.apic_at = apic.shared_at
        self._devices = DeviceAccess(
            native, lambda: self._running.native, self.platform, self.memory, self.dmm.policies
        )
        self.guest: Guest | None = None
        self.exit_value: int | None = None
        self.restarts = True
        self.resets = 0
        self._ended: Stop | None = None
        self._reset_requested: Reset | None = None
        self.exits = Exits()
        self._stop_requested = False
        self._asleep = False
        self._waits = 0  # for the DMM, one after the other at the virtual time _waited_at
        self._waited_at = -1

    def _fill_native(self, schedule: Schedule) -> None:
        native, memory = self.native, self.machine.memory
        native.cpus_at, native.cpu_count = address_of(self._records), len(self.processors)
        native.started = 1
        native.quantum, native.shortest_quantum = schedule.quantum, schedule.shortest_quantum
        if schedule.seed is not None:
            native.seeded, native.seed = 1, signed(schedule.seed)
        native.ram_at = memory.at
        native.void_mfn = NO_FRAME
        native.m2p_at = address_of(self.machine.m2p.gfn)
        native.p2m_at = address_of(self.p2m.entries)
        native.p2m_size = len(self.p2m)
        native.deadline = native.pause_at = NEVER
        native.a20_mask = -1
        native.step_count = stepping.UNLIMITED

    # --- processors ---

    @property
    def _running(self) -> Processor:
        """The processor that runs, or ran last."""
        return self.processors[self.native.current]

    @property
    def processor(self) -> Processor:
        """The processor to look at (:attr:`selected`)."""
        return self._running if self.selected is None else self.processors[self.selected]

    @property
    def cpu(self) -> CpuState:
        """The registers of :attr:`processor`."""
        return self.processor.registers

    @contextmanager
    def looking_at(self, cpu: int | None) -> Iterator[None]:
        """Have ``cpu`` selected for a while."""
        before, self.selected = self.selected, cpu
        try:
            yield
        finally:
            self.selected = before

    # --- set-up ---

    def boot(self, guest: Guest) -> None:
        """Place the guest's image in its memory (without touching a frame) and set its first CPU state."""
        for gfn in guest.image.gfns():
            if gfn < len(self.p2m):
                self.p2m.set(gfn, PageType.IMAGE)
        self.guest = guest
        self.platform.loader.present = guest.resume is not None and guest.resume is not guest.start
        start(guest, self.platform, self._running)

    def attach(self, policy: Policy) -> None:
        """Put a memory policy in force."""
        self.dmm.attach(policy)

    def audit_every_change(self) -> None:
        """Run :meth:`audit` after every change that the DMM makes (``--audit``)."""
        self.dmm.space.after_change = self.audit

    def audit(self) -> None:
        """Prove every structure of this VM consistent with every other.

        Raises:
            emu.audit.audit.AuditFailure: they are not; the message names the first contradiction.
        """
        audit(self.dmm.space, self.native)

    def close(self) -> None:
        """Take the VM off its machine: its frames are free for others, as are its images' files, and it runs no more.

        Its engines are gone at once; registers, time and events can still be looked at.

        Again does nothing.

        Raises:
            BadInput: a policy cannot settle what it has in files; all else is done.
        """
        if not self.dmm.space.is_closed:
            try:
                self.dmm.close()
            finally:
                self._parts.close()
                for processor in self.processors:
                    processor.close()

    # --- running ---

    @property
    def now(self) -> int:
        """Virtual time in ns: of the processor that runs, but no less than was shown to anybody."""
        return max(self.native.clock, self._running.native.vtime)

    @property
    def eflags(self) -> int:
        """EFLAGS of :attr:`processor`, with the arithmetic flags computed."""
        return self.processor.eflags

    @property
    def waits_for_input(self) -> bool:
        """Whether the last run left the guest halted with no device that wakes it by itself, as a timer does."""
        return self._asleep and self.platform.wake_deadline() == NEVER

    def request_stop(self) -> None:
        """Make :meth:`run` return before the guest's next block of code.  May be called from listeners and devices."""
        self._stop_requested = True
        self._attention()

    @property
    def is_stopping(self) -> bool:
        """Whether :meth:`run` is about to return because somebody has requested it."""
        return self._stop_requested

    def on_disk_failure(self, tell: Callable[[str, str], None]) -> None:
        """Call ``tell`` with an image's name and a reason, when the host first cannot read or write there."""
        for image in self._parts.images:
            image.on_failure = tell

    def forget_end(self) -> None:
        """Let a guest that has ended by the exit port, a power-off or a reset go on behind that."""
        self._ended = None
        self.native.closed = 0
        self.exit_value = None

    def run(self, until: int | None = None) -> Stop:
        """Run the guest until it ends, somebody requests a stop, or virtual time reaches ``until`` (ns).

        Raises:
            emu.dmm.errors.OutOfFrames: a page needs a frame and there is none.
            EngineFault: the engine failed in a way that no guest can cause.
            Exception: whatever a device, policy or listener raised.
        """
        return self._run(until, stepping.UNLIMITED, ())

    def step(self, instructions: int = 1, until: int | None = None, cpu: int | None = None) -> Stop:
        """As :meth:`run`, but for so many instructions at most; each pass of a repeated string instruction counts.

        The entry into a handler is part of the instruction that it follows.  A stepped run is the same as a free one,
        event for event and at the same virtual times, though :attr:`now` is that of the end of a block within it.

        Args:
            cpu: the number of the processor whose instructions count, while the others run in their turns; by default
                all count, in the order in which they are executed.

        Returns:
            STEP when they have been executed; else as :meth:`run`.

        Raises:
            ValueError: there is no such processor; else as :meth:`run`.
        """
        if cpu is not None and not 0 <= cpu < len(self.processors):
            raise ValueError(f"{self.name} has no processor {cpu}")
        return self._run(until, instructions, (), cpu)

    def run_to_event(self, kinds: Iterable[type[Event]] = EVENT_TYPES, until: int | None = None) -> Stop:
        """As :meth:`run`, but no further than the instruction in which the next event of ``kinds`` happens.

        It stops behind that instruction, and before it when the instruction waited for the DMM.

        Returns:
            STEP when one has happened; else as :meth:`run`.
        """
        return self._run(until, stepping.UNLIMITED, kinds)

    def _run(
        self, until: int | None, instructions: int, kinds: Iterable[type[Event]], counted: int | None = None
    ) -> Stop:
        if self.dmm.space.is_closed:
            raise ValueError(f"{self.name} has been removed from its machine")
        limit = NEVER if until is None else until
        native = self.native
        self._asleep = False
        within_block = stepping.is_within_block(self._running.native)
        stepping.begin(native, [processor.native for processor in self.processors], instructions, kinds, counted)
        reason = Reason.STOP
        reached = self._reached()
        while True:
            if stepping.is_over(native):
                return Stop.STEP
            if not within_block:
                if self._ended is not None:
                    return self._ended
                if self._stop_requested:
                    self._stop_requested = False
                    return Stop.REQUESTED
                if reached >= limit:
                    return Stop.DEADLINE
            if reason != Reason.NEED or self.events.has_listeners:  # the DMM changes nobody's plans
                self._devices.plan()
            native.pause_at = min(limit, reached + SLICE_NS)
            native.stop = int(
                self._ended is not None or self._stop_requested or self._reset_requested is not None
                or bool(self._inputs.inits)
            )
            reason = _REASONS[runloop.run(self.native_at)]
            self.platform.output.flush()
            reached = native.reached
            running = self.processors[native.current]
            self.exits.count(reason)
            self.events.drain()
            self._devices.reraise()
            if reason == Reason.NEED:
                self._resolve(running.native)
            elif reason == Reason.INTERRUPT:
                self._inject(self.platform.acknowledge(native.current))
            elif reason == Reason.NMI:
                running.native.nmi_pending = 0
                running.registers.block_nmi()
                self._inject(VECTOR_NMI)
            elif reason == Reason.HALT:
                if self._ended is None and self._reset_requested is None and not self._sleep(limit):
                    if not self.platform.asleep:
                        running.native.activity = RUNNING  # if it is run again, it goes on behind its HLT
                    running.native.vtime = max(running.native.vtime, native.round_start)
                    return Stop.HALTED
                reached = self._reached()
            elif reason == Reason.SHUTDOWN and self._reset_requested is None:
                if self._ended is not None or not self._resumes:
                    return self._ended or Stop.CRASH  # what follows the end in its block of code does not count
                self._guest_resets_cpu()
            elif reason == Reason.ENGINE_ERROR:
                error = engine.error_text(running.native.engine_error)
                raise EngineFault(f"{self.name}: {error} at pc {running.registers.pc:#x}")
            within_block = stepping.is_within_block(running.native)
            if native.suspends:
                native.suspends = 0
                for processor in self.processors:
                    processor.init()
                within_block = False
                reached = self._reached()
            if self._reset_requested is not None and (not within_block or reason == Reason.SHUTDOWN):
                self._reset(self._reset_requested)
                within_block = False
                reached = self._reached()
            if not within_block:
                if self._inputs.inits:
                    self._inputs.take_inits()
                    reached = self._reached()
                if reached >= self._devices.deadline or reached >= self.dmm.policies.next_epoch:
                    self._tick()
                    reached = self._reached()

    def _reached(self) -> int:
        """The virtual time in ns that every processor with something to do has come to; the VM's time is not less."""
        return int(runloop.note_reached(self.native_at))

    def _inject(self, vector: int) -> None:
        """Deliver an interrupt to the processor that runs."""
        if runloop.inject(self._running.native_at, vector) == runloop.NEED_DMM:
            # the vector is taken from the controller: it stays pending until the page is there
            self._resolve(self._running.native)

    def _resolve(self, native: Cpu) -> None:
        """The guest waits for the DMM."""
        if native.vtime != self._waited_at:
            self._waited_at = native.vtime
            self._waits = 0
        self._waits += 1
        if self._waits > MOST_WAITS:
            raise NoProgress(self.name, native.need_gfn, self.pool.size)
        self.dmm.resolve(native.need_gfn, INTENTS[native.need_intent])

    def _sleep(self, limit: int) -> bool:
        """No processor has anything to do: jump to the next deadline.  False when nothing can wake any of them."""
        native = self.native
        if not any(processor.can_be_woken for processor in self.processors) and not self.platform.asleep:
            return False
        if self.platform.monitor.watchers:
            self.platform.monitor.look(self._reached())  # nothing is drawn while all sleep
        while self._ended is None and not any(processor.has_work for processor in self.processors):
            if self._reset_requested is not None:
                return True
            if min(self.platform.wake_deadline(), limit) == NEVER:
                return False  # a policy's epoch wakes nobody
            wake = min(self.platform.wake_deadline(), self.dmm.policies.next_epoch)
            native.round_start = max(self._reached(), min(wake, limit))
            native.clock = max(native.clock, native.round_start)
            native.log_time = max(native.log_time, native.round_start)
            if wake > limit:
                self._asleep = True
                return True
            self._tick()
            if self._stop_requested:
                return True
        return True

    def _tick(self) -> None:
        now = self._reached()
        self.platform.tick(now)
        self.dmm.policies.run_epochs(now)
        self._devices.plan()

    def _attention(self) -> None:
        self.native.stop = 1
        self._running.native.limit = 0

    # --- called by devices ---

    def _guest_exits(self, value: int) -> None:
        if self._ended is None:
            self.exit_value = value
        self._guest_ends(Stop.EXIT)

    def _guest_ends(self, how: Stop) -> None:
        if self._ended is None:
            self._ended = how
            self.native.closed = 1
        self._attention()

    @property
    def _resumes(self) -> bool:
        """Whether the guest goes on behind a reset of its processor."""
        return self.guest is not None and self.guest.resume is not None and self.platform.resumes

    def _guest_resets(self, kind: Reset = Reset.MACHINE) -> None:
        if self._ended is not None or not self.restarts and kind not in _NO_RESTARTS:
            self._guest_ends(Stop.RESET)
        else:
            self._reset_requested = kind
            self.native.closed = 1
            self._attention()

    def _guest_sleeps(self) -> None:
        """The guest goes to S3: no processor executes another instruction."""
        self.native.suspends = 1
        self._attention()

    def _guest_resets_cpu(self) -> None:
        self._guest_resets(Reset.PROCESSORS if self._resumes else Reset.MACHINE)

    def _reset(self, kind: Reset) -> None:
        """Carry out the reset that the guest has asked for; no engine runs."""
        assert self.guest is not None
        self._reset_requested = None
        self.native.closed = 0
        self._inputs.inits.clear()
        self.resets += kind not in _NO_RESTARTS
        reset(kind, self.guest, self.platform, self.processors, self.dmm, self.memory, self.now)
        self._devices.map_apic()
        self._devices.plan()

    def _set_a20(self, level: bool) -> None:
        mask = -1 if level else ~A20
        if mask != self.native.a20_mask:
            self.native.a20_mask = mask
            self.paging.forget_translations()
