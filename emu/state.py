"""The record that the native plane and the Python plane share, one per VM.

Every field is an int64.  Native functions receive the record as ``vm``; Python reaches the same memory, without a
copy, as ``machine_vm.native`` (see :mod:`emu.vm`).  Fields named ``*_at`` are host addresses.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from emu.native import record_at

_FIELDS = """
uc env fault_address_at tlb_at vtime_at scratch_at
ram_at frames void_mfn frame_flags_at
vtime deadline check_at_block stop flush_at_block stopped block_gva block_size
mode cr0 cr3 cr4 efer
p2m_at p2m_size m2p_at
nested root_mfn root_level shadow_format
shadow_first shadow_slots shadow_free shadow_used shadow_host
shadow_key_at shadow_role_at shadow_link_at shadow_writes_at shadow_bucket_at shadow_bucket_mask
rmap_head_at rmap_next_at rmap_prev_at
walk_at walk_gpa walk_writable walk_user walk_nx walk_dirty walk_level
miss_kind miss_gva miss_error need_gfn need_intent
window_mfn
pending pending_vector pending_error pending_software pending_rip
shutdown intr_line engine_error
event_ring_at event_capacity event_head event_tail event_mask event_counts_at event_stop_mask
step_count step_rip
""".split()

STATE = np.dtype([(name, np.int64) for name in _FIELDS])
"""The shared record's dtype: int64 fields only."""

state_at = record_at(STATE)
"""From the host address of a record to the record, in native code."""


def new_state() -> np.ndarray[Any, Any]:
    """A zeroed record as an array of length 1; ``new_state()[0]`` gives attribute access to its fields."""
    return np.zeros(1, STATE).view(np.recarray)
