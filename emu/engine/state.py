"""The records that the native plane and the Python plane share: one for each VM, one for each of its processors.

Every field is an int64.  A native function takes the record of a processor, ``cpu``, and reaches that of its VM by
:func:`vm_of`; Python reaches the same memory without a copy (:mod:`emu.machine.vm`, :mod:`emu.machine.processor`).
Fields named ``*_at`` are host addresses.

The field lists are the annotations below: nothing else has to be changed for a new field, and mypy knows them.
"""

from __future__ import annotations

import ctypes
from typing import Protocol

import numpy as np

from emu.engine.native import inlined, load64, record_at

# activity of a processor (SDM vol. 3A, 8.4.2; HLT)
RUNNING, HALTED, WAITING = 0, 1, 2  # WAITING: for a start-up message (SIPI); it has no translations


class Cpu(Protocol):
    """One processor."""

    at: int  # of this record
    vm_at: int  # of the record of its VM
    index: int  # its number in the VM, from 0

    # the engine (emu.engine.engine)
    uc: int
    engine_cpu_at: int
    env: int  # host address of the CPU state (emu.engine.cpustate)
    fault_address_at: int
    tlb_at: int
    vtime_at: int
    scratch_at: int
    check_exit_at: int
    on_block_at: int
    if_helpers_at: int

    # the instruction that is translated or checked (emu.cpu.decode, emu.cpu.translation, emu.cpu.checks)
    absent_at: int  # of a u8 for each opcode (emu.cpu.decode): 1 where the model of processor does not have it
    tcg_context: int  # host address of the engine's TCGContext
    before_at: int  # host address of the function that is called before some instructions
    insn_flags: int
    insn_prefixes: int
    insn_rex: int
    insn_opcode: int
    insn_modrm: int
    insn_at: int
    insn_stack: int
    insn_cut: int
    rf_gva: int  # of the instruction before which RF was cleared last
    rf_time: int  # ns; when that was

    # virtual time and blocks of code (emu.cpu.clock, emu.engine.blockclock)
    vtime: int  # ns
    limit: int  # ns; the block clock looks at what wants attention then
    flush_at_block: int
    translating: int  # host address of the translator's DisasContextBase (emu.engine.blockend)
    cut_gva: int  # the block at this gva, which is translated next,
    cut_count: int  # shall hold so many instructions at most
    stopped: int
    block_gva: int
    block_size: int
    done_size: int  # of the block that had been executed when code was last missed
    entered_gva: int
    entered_size: int
    single: int  # instructions that the engine executes alone: 1, or 0 for no limit

    # what it does, and what waits for it (emu.cpu.runloop)
    activity: int  # RUNNING, HALTED or WAITING
    wake_at: int  # ns; when what wakes it from HALTED came
    turn: int  # the number of the processor whose turn is at this place of a round (a list across the records)
    yielded: int  # it has given away the rest of its slice
    pause_rip: int  # of its last PAUSE in this slice, -1 for none
    intr_line: int  # level of its interrupt line
    nmi_pending: int
    shutdown: int
    engine_error: int

    # control registers as the present translations have them (emu.mmu.fill)
    mode: int
    cr0: int
    cr3: int
    cr4: int
    efer: int
    pdptes_for: int  # the CR3 that the PDPTE registers were loaded for
    pdpte0: int
    pdpte1: int
    pdpte2: int
    pdpte3: int
    pkrs: int  # IA32_PKRS
    cr4_allowed: int  # bits of CR4 that the model of processor has
    root_mfn: int
    root_level: int

    # results of the last walk and the last TLB miss (emu.mmu.walk, emu.mmu.fill)
    walk_at: int
    marked_at: int  # of an i64 for each frame whose code walks have changed
    walk_gpa: int
    walk_writable: int
    walk_user: int
    walk_nx: int
    walk_key: int
    walk_dirty: int
    walk_level: int
    marked_code: int  # frames noted at marked_at
    miss_kind: int
    miss_error: int
    split_left: int  # bytes still to come of a store that the engine makes byte by byte (emu.mmu.splitstore)
    miss_fetch: int  # nothing has begun: the next block cannot be fetched
    need_gfn: int
    need_intent: int

    # registers that the engine does not keep (emu.cpu.msr)
    caches_eax: int  # EAX of CPUID leaf 2; 0 leaves it to the engine
    caches_edx: int
    apic_at: int  # of the record of its local APIC (emu.devices.lapic_state)
    msr_value: int
    tsc_offset: int
    apic_enabled: int

    # the event that is being delivered (emu.cpu.delivery, emu.cpu.gates)
    pending: int
    pending_vector: int
    pending_error: int
    pending_software: int
    pending_rip: int
    pending_prior: int
    fault_vector: int
    fault_error: int
    fault_gva: int
    sys_value: int
    sys_mfn: int
    sys_page: int
    sys_page_mfn: int
    external: int
    new_stack: int
    task_switched: int
    task_traps: int  # the new task has asked for #DB (T in its TSS)
    task_selector: int  # of an instruction that leads to another task (emu.cpu.fartask)
    task_source: int
    task_following: int

    # debug registers (emu.cpu.breakpoints, emu.engine.debugregs)
    debugging: int
    watching: int
    watch_step: int
    watch_hits: int
    watch_stored: int
    held_hits: int  # of a MOV to SS: the #DB comes behind the next instruction
    held_gva: int  # where the instruction behind a MOV to SS is, whose breakpoint does not count; -1 for nowhere
    watch_mfn0: int
    watch_mfn1: int
    watch_mfn2: int
    watch_mfn3: int
    watch_mfn4: int
    watch_mfn5: int
    watch_mfn6: int
    watch_mfn7: int
    seen_dr0: int
    seen_dr1: int
    seen_dr2: int
    seen_dr3: int
    seen_dr4: int
    seen_dr5: int
    seen_dr6: int
    seen_dr7: int

    # data breakpoints from outside (emu.engine.debugregs)
    outside0: int
    outside1: int
    outside2: int
    outside3: int
    outside7: int  # as DR7
    outside_hits: int  # as DR6

    # stepping (emu.cpu.stepping, emu.engine.alone)
    stepping: int
    counting: int  # its instructions count as steps
    step_over: int
    step_gva: int
    step_alone: int
    step_shadow: int
    step_size: int
    step_sum: int


class Vm(Protocol):
    """One VM."""

    at: int  # of this record

    # processors and their turns (emu.cpu.runloop)
    cpus_at: int  # of an array with the host addresses of the processors' records
    cpu_count: int
    current: int  # the processor that runs, or ran last
    started: int  # processors that have ever run: with one, nothing is done for the others
    stop: int  # leave the native plane
    translated: int  # instructions since it was left for the time that translating takes
    deadline: int  # ns; no round goes beyond: something is to happen when every processor has come so far
    pause_at: int  # ns; the native plane is left at the end of the first round behind it
    clock: int  # ns; the latest time that the guest has seen, on any processor and from any device
    log_time: int  # ns; events that happen from now on are not earlier
    reached: int  # ns; what every processor with something to do had come to when somebody looked last
    round_start: int  # ns; every processor with something to do has come so far
    round_end: int  # ns
    round_place: int  # how many turns of the round are over
    round_shared: int  # more than one processor has something to do in it
    quantum: int  # ns; longest slice
    shortest_quantum: int  # ns; with a seed, quanta are drawn from here up to ``quantum``
    seeded: int
    seed: int

    # memory
    ram_at: int
    frames: int
    void_mfn: int
    frame_flags_at: int
    code_cpus_at: int  # of a u16 for each frame: the processors that translated code from it
    written_at: int  # of an i32 for each frame: flush_epoch when a processor was last let store into it directly
    flush_epoch: int  # how often all TLBs were flushed
    a20_mask: int
    p2m_at: int
    p2m_size: int
    m2p_at: int
    nested: int

    # shadow tables and reverse map (emu.mmu.shadow, emu.mmu.rmap)
    shadow_format: int
    shadow_first: int
    shadow_slots: int
    shadow_free: int
    shadow_used: int
    shadow_host: int
    shadow_key_at: int
    shadow_role_at: int
    shadow_link_at: int
    shadow_writes_at: int
    shadow_bucket_at: int
    shadow_bucket_mask: int
    rmap_head_at: int
    rmap_next_at: int
    rmap_prev_at: int

    # devices (emu.cpu.portio, emu.cpu.mmio, emu.cpu.msr, emu.cpu.registers)
    ask_devices: int  # nothing is answered in the native plane: for tests
    suspends: int  # the machine goes to sleep with the instruction that runs
    closed: int  # what the guest writes is lost: it has ended, though its block of code has not
    port_table_at: int  # tables of records (emu.devices.bus)
    mmio_table_at: int
    port_in_at: int
    port_out_at: int
    mmio_load_at: int
    mmio_store_at: int
    msr_load_at: int
    msr_store_at: int
    pio_at: int
    pio2_at: int
    random: int

    # event stream (emu.engine.events)
    event_ring_at: int
    event_capacity: int
    event_margin: int
    event_head: int
    event_tail: int
    event_mask: int
    event_counts_at: int
    event_stop_mask: int

    # stepping (emu.cpu.stepping)
    step_count: int
    step_precise: int
    step_hit: int

    # breakpoints from outside (emu.cpu.outside)
    breaks_at: int  # of an i64 for each: its gva
    breaks: int


def _dtype(record: type) -> np.dtype[np.void]:
    return np.dtype([(name, np.int64) for name in record.__annotations__])


CPU, VM = _dtype(Cpu), _dtype(Vm)
"""The records' dtypes: int64 fields only."""

cpu_record = record_at(CPU, "Cpu")
"""From the host address of a processor's record to the record, in native code."""

vm_record = record_at(VM, "Vm")
"""From the host address of a VM's record to the record, in native code."""


@inlined
def vm_of(cpu: Cpu) -> Vm:
    """The record of a processor's VM."""
    return vm_record(cpu.vm_at)


@inlined
def cpu_number(vm: Vm, index: int) -> Cpu:
    """The record of a processor of the VM."""
    return cpu_record(load64(vm.cpus_at + 8 * index))


@inlined
def show_time(cpu: Cpu) -> int:
    """The VM's time in ns as the guest may see it: never less than what it has seen before, on whatever processor.

    Within a round one processor runs after the other over the same stretch of virtual time, so the later one begins at
    a time that has been seen already.
    """
    vm = vm_of(cpu)
    if cpu.vtime > vm.clock:
        vm.clock = cpu.vtime
    return vm.clock


def _structure(record: type) -> type[ctypes.Structure]:
    fields = [(name, ctypes.c_int64) for name in record.__annotations__]
    return type(record.__name__, (ctypes.Structure,), {"_fields_": fields})


CpuStructure, VmStructure = _structure(Cpu), _structure(Vm)
"""The records for the Python plane: zeroed when made; ``ctypes.addressof`` gives their host address."""


def cpu_offset(field: str) -> int:
    """Bytes from the beginning of a processor's record to ``field``."""
    return int(CPU.fields[field][1])  # type: ignore[index]
