"""The record that the native plane and the Python plane share, one per VM.

Every field is an int64.  Native functions receive the record as ``vm``; Python reaches the same memory, without a
copy, as ``machine_vm.native`` (see :mod:`emu.machine.vm`).  Fields named ``*_at`` are host addresses.
"""

from __future__ import annotations

import ctypes

import numpy as np

from emu.engine.native import record_at

_FIELDS = """
at uc cpu_at env fault_address_at tlb_at vtime_at scratch_at
ram_at frames void_mfn frame_flags_at
vtime deadline limit stop flush_at_block stopped block_gva block_size
mode cr0 cr3 cr4 efer
p2m_at p2m_size m2p_at
nested root_mfn root_level shadow_format
shadow_first shadow_slots shadow_free shadow_used shadow_host
shadow_key_at shadow_role_at shadow_link_at shadow_writes_at shadow_bucket_at shadow_bucket_mask
rmap_head_at rmap_next_at rmap_prev_at
walk_at walk_gpa walk_writable walk_user walk_nx walk_dirty walk_level marked_code
miss_kind miss_gva miss_error need_gfn need_intent
window_mfn single port_in_at port_out_at mmio_load_at mmio_store_at msr_load_at msr_store_at msr_value
tsc_offset apic_enabled
pio_at check_exit_at on_block_at entered_gva entered_size a20_mask random nmi_pending
pending pending_vector pending_error pending_software pending_rip pending_prior
fault_vector fault_error fault_gva sys_value sys_mfn sys_page sys_page_mfn external new_stack task_switched
debugging watching watch_step watch_hits watch_stored watch_mfn0 watch_mfn1 watch_mfn2 watch_mfn3
seen_dr0 seen_dr1 seen_dr2 seen_dr3 seen_dr4 seen_dr5 seen_dr6 seen_dr7
shutdown intr_line engine_error
event_ring_at event_capacity event_margin event_head event_tail event_mask event_counts_at event_stop_mask
stepping step_count step_precise step_hit step_over step_gva step_alone step_shadow step_size step_sum
""".split()

STATE = np.dtype([(name, np.int64) for name in _FIELDS])
"""The shared record's dtype: int64 fields only."""

state_at = record_at(STATE, "VM")
"""From the host address of a record to the record, in native code."""


class State(ctypes.Structure):
    """A record, zeroed, for the Python plane; ``ctypes.addressof`` gives its host address."""

    _fields_ = [(name, ctypes.c_int64) for name in _FIELDS]
