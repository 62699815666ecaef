"""Processor: one virtual CPU of a VM, that is an engine, the record that the native plane works on, and registers."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable
from typing import cast

import numpy as np

from emu.boot.entry import CODE_16, enter_real_mode
from emu.cpu import (
    breakpoints,
    checks,
    clock,
    controlregs,
    delivery,
    floatflags,
    mmio,
    msr,
    portio,
    runloop,
    translation,
)
from emu.cpu.features import OPCODES
from emu.cpu.models import Model
from emu.engine import blockclock, engine
from emu.engine.alone import NOWHERE
from emu.engine.cpustate import CpuState, set_hflags_mode
from emu.engine.identity import assume
from emu.engine.native import address_of
from emu.engine.ram import MachineMemory
from emu.engine.state import HALTED, RUNNING, WAITING, Cpu, CpuStructure, cpu_offset
from emu.mmu import fill, splitstore  # noqa: F401
from emu.mmu.walk import MARKED_MOST, NO_PDPTES

_FLAGS_AT_RESET = 2


class Processor:
    """One processor; a VM has one or more.

    Args:
        index: its number in the VM, which is the ID of its local APIC.
        vm_at: host address of its VM's record.
        memory: machine memory.
        model: what it is.

    Attributes:
        index: the same.
        native: its record (:class:`emu.engine.state.Cpu`); ``native_at``: the host address of that.
        engine: its engine.
        registers: its registers (:class:`emu.engine.cpustate.CpuState`).
    """

    def __init__(self, index: int, vm_at: int, memory: MachineMemory, model: Model) -> None:
        self.index = index
        self._closed_eflags: int | None = None  # EFLAGS when the engine was closed
        self._caches = model.caches
        self._version, self._cr4_bits = model.identity.version, controlregs.cr4_bits(model.features)
        record = CpuStructure()
        self.native = cast(Cpu, record)
        self.native_at = ctypes.addressof(record)
        self.engine = engine.Engine(memory.at, memory.frames << 12)
        assume(self.engine.env, model.identity)
        self.registers = CpuState(self.engine.env)
        self._absent = np.zeros(0x400, np.uint8)
        for feature, opcodes in OPCODES.items():
            self._absent[list(opcodes)] = feature not in model.features
        self._scratch = np.zeros(16 + MARKED_MOST, np.int64)
        self._fill_native(vm_at)
        self._hook()
        weakref.finalize(self, engine.forget_clock, self.native.vtime_at)
        floatflags.reset_floating_point(self.engine.env)
        enter_real_mode(self.registers)
        set_hflags_mode(self.engine.env)
        self.native.activity = WAITING if index else RUNNING
        self._power_up = self.registers.save()

    def _fill_native(self, vm_at: int) -> None:
        native = self.native
        native.at, native.vm_at, native.index = self.native_at, vm_at, self.index
        native.turn = self.index
        native.uc = self.engine.uc
        native.engine_cpu_at = self.engine.cpu_at
        native.env = self.engine.env
        native.fault_address_at = self.engine.fault_address_at
        native.check_exit_at = self.engine.check_exit_at
        native.on_block_at = clock.on_block.address_of
        native.if_helpers_at = address_of(blockclock.if_helpers())
        native.before_at = checks.before_instruction.address_of
        native.tlb_at = self.engine.tlb_at
        native.vtime_at = self.native_at + cpu_offset("vtime")
        native.scratch_at = address_of(self._scratch)
        native.walk_at = address_of(self._scratch) + 32
        native.marked_at = address_of(self._scratch) + 128
        native.root_mfn = native.cr3 = native.pause_rip = -1
        native.pdptes_for = NO_PDPTES
        native.cr4_allowed = self._cr4_bits
        native.caches_eax, native.caches_edx = self._caches
        native.absent_at = address_of(self._absent)
        native.step_gva = NOWHERE
        native.apic_enabled = 1

    def _hook(self) -> None:
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
        e.on_misaligned(translation.on_misaligned)
        e.hook_mmio(mmio.on_mmio_load, mmio.on_mmio_store, at)

    # --- what it does ---

    @property
    def eflags(self) -> int:
        """EFLAGS with the arithmetic flags computed."""
        if self._closed_eflags is not None:
            return self._closed_eflags
        return int(runloop.eflags(self.native_at))

    @property
    def is_running(self) -> bool:
        """Whether it executes code: it is neither halted nor waiting for a start-up message."""
        return self.native.activity == RUNNING

    @property
    def activity(self) -> str:
        """"running", "halted", or "waiting" for a start-up message."""
        return {RUNNING: "running", HALTED: "halted", WAITING: "waiting"}[self.native.activity]

    @property
    def has_work(self) -> bool:
        """Whether it runs, or something wakes it from HLT."""
        return bool(runloop.has_work(self.native_at))

    @property
    def can_be_woken(self) -> bool:
        """Whether an interrupt can wake it from HLT."""
        return self.native.activity == HALTED and self.registers.interrupts_enabled

    @property
    def has_started(self) -> bool:
        """Whether it has ever run."""
        return self.native.activity != WAITING or self.native.vtime > 0

    def close(self) -> None:
        """End the engine: what it has of the host's memory is free.  The registers stay, to be looked at."""
        if self._closed_eflags is not None:
            return
        self._closed_eflags = self.eflags
        self._saved = np.frombuffer(self.registers.save(), np.uint8).copy()
        native = self.native
        native.activity = WAITING  # nothing of its TLB needs to be dropped any more
        native.env = address_of(self._saved)
        native.uc = 0
        self.registers = CpuState(native.env)
        engine.forget_clock(native.vtime_at)
        self.engine.close()

    # --- messages of its local APIC ---

    def init(self) -> None:
        """INIT: the state of SDM vol. 3A, table 9-1, then wait for a start-up message.

        x87, SSE and the other model-specific registers stay as they are.
        """
        registers, native = self.registers, self.native
        for name in ("rax", "rbx", "rcx", "rsi", "rdi", "rbp", "rsp", "rip", "cr2", *(f"r{i}" for i in range(8, 16))):
            setattr(registers, name, 0)
        registers.rdx = self._version
        for index in range(4):
            setattr(registers, f"dr{index}", 0)
        registers.dr6, registers.dr7 = 0xFFFF_0FF0, 0x400
        registers.eflags = _FLAGS_AT_RESET
        enter_real_mode(registers)
        registers.forget_modes()
        set_hflags_mode(self.engine.env)
        native.pending = native.pending_prior = native.nmi_pending = native.single = 0
        native.block_size = native.entered_size = native.step_alone = native.step_shadow = 0
        native.step_gva = NOWHERE
        native.cr3 = native.root_mfn = -1
        native.pdptes_for = NO_PDPTES
        native.activity = WAITING
        runloop.forget_translations(self.native_at)

    def reset(self, now: int) -> None:
        """The state after power-up, with every register: the first processor runs, the others wait.

        Args:
            now: virtual time in ns.
        """
        self.init()
        self.registers.restore(self._power_up)
        native = self.native
        native.tsc_offset = native.shutdown = native.intr_line = native.yielded = 0
        native.apic_enabled = 1
        native.vtime = max(native.vtime, now)
        native.activity = WAITING if self.index else RUNNING

    def begin(self, start: Callable[[CpuState], None]) -> None:
        """Let a guest set the first state of a processor that is as after power-up."""
        start(self.registers)
        set_hflags_mode(self.engine.env)

    def start_up(self, vector: int, now: int) -> bool:
        """A start-up message (SIPI): begin in real mode at ``vector`` << 12.  False when it does not wait for one.

        Args:
            now: virtual time in ns.
        """
        if self.native.activity != WAITING:
            return False
        self.registers.cs.set(vector << 8, vector << 12, 0xFFFF, CODE_16)
        self.registers.rip = 0
        set_hflags_mode(self.engine.env)
        self.native.vtime = max(self.native.vtime, now)
        self.native.activity = RUNNING
        return True
