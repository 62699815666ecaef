"""Paging architectures as the DMM sees them: told what changes below them, never asked for a translation."""

from __future__ import annotations

from typing import Any

import numpy as np

from emu import engine
from emu.addr import NO_FRAME
from emu.dmm.rmap import Rmap
from emu.mmu import shadow
from emu.mmu.fill import drop_frame_code
from emu.native import address_of, compiled
from emu.ram import FRAME_CODE, FRAME_TABLE, MachineMemory
from emu.state import state_at


@compiled
def flush_tlb(vm_at: int) -> None:
    """Drop every TLB entry of a VM's engine."""
    engine.flush_tlb(state_at(vm_at))


@compiled
def _drop_frame_code(vm_at: int, mfn: int) -> None:
    drop_frame_code(vm_at, mfn)


class Paging:
    """How a VM's gvas become machine addresses.  ``nested``: each TLB miss walks the guest's tables and the P2M.

    Args:
        native: the VM's shared record (:mod:`emu.state`).
        vm_at: its host address.
        memory: machine memory.
    """

    name = "nested"

    def __init__(self, native: Any, vm_at: int, memory: MachineMemory) -> None:
        self._vm_at = vm_at
        self._memory = memory
        self._native = native
        native.nested = 1
        native.root_mfn = NO_FRAME

    def forget(self, gfn: int, mfn: int) -> None:
        """``mfn`` is about to be taken from behind ``gfn``: nothing may lead to it any more."""
        self._forget_code(mfn)
        flush_tlb(self._vm_at)

    def restrict(self, gfn: int, mfn: int) -> None:
        """Rights on ``gfn`` are about to be withdrawn: what was granted must be asked for again."""
        flush_tlb(self._vm_at)

    def rewritten(self, gfn: int, mfn: int) -> None:
        """The contents of ``gfn`` were changed from outside the guest."""
        self._forget_code(mfn)

    def forget_translations(self) -> None:
        """What stands behind gfns without frames has changed."""
        flush_tlb(self._vm_at)

    def close(self) -> None:
        """Give back what the architecture owns."""

    def _forget_code(self, mfn: int) -> None:
        if self._memory.flags[mfn] & FRAME_CODE:
            _drop_frame_code(self._vm_at, mfn)


class ShadowPaging(Paging):
    """``shadow``: the guest reaches memory through shadow tables alone (:mod:`emu.mmu.shadow`).

    Args:
        tables: shadow tables that may exist at a time; each takes a machine frame.
    """

    name = "shadow"

    def __init__(self, native: Any, vm_at: int, memory: MachineMemory, tables: int) -> None:
        super().__init__(native, vm_at, memory)
        native.nested = 0
        first = memory.take_run(tables)
        buckets = 1 << (tables - 1).bit_length()
        self.first, self.tables = first, tables
        self.key = np.full(tables, -1, np.int64)
        self.role = np.zeros(tables, np.int64)
        self.link = np.arange(1, tables + 1, dtype=np.int32)
        self.link[-1] = -1
        self.writes = np.zeros(tables, np.int32)
        self.bucket = np.full(buckets, -1, np.int32)
        self.rmap = Rmap(native, memory.frames, tables * shadow.ENTRIES)
        self.entries = memory.pages[first : first + tables].view(np.int64).reshape(-1)
        native.shadow_first, native.shadow_slots, native.shadow_free, native.shadow_used = first, tables, 0, 0
        native.shadow_host = memory.at + first * 4096
        native.shadow_key_at = address_of(self.key)
        native.shadow_role_at = address_of(self.role)
        native.shadow_link_at = address_of(self.link)
        native.shadow_writes_at = address_of(self.writes)
        native.shadow_bucket_at = address_of(self.bucket)
        native.shadow_bucket_mask = buckets - 1

    def forget(self, gfn: int, mfn: int) -> None:
        shadow.forget_gfn(self._vm_at, gfn, mfn)
        super().forget(gfn, mfn)

    def restrict(self, gfn: int, mfn: int) -> None:
        shadow.forget_gfn(self._vm_at, gfn, mfn)
        super().restrict(gfn, mfn)

    def rewritten(self, gfn: int, mfn: int) -> None:
        if self._memory.flags[mfn] & FRAME_TABLE:
            shadow.forget_gfn(self._vm_at, gfn, mfn)
            flush_tlb(self._vm_at)
        super().rewritten(gfn, mfn)

    def forget_translations(self) -> None:
        shadow.forget_everything(self._vm_at)
        super().forget_translations()

    def close(self) -> None:
        self._memory.give_back(range(self.first + self.tables - 1, self.first - 1, -1))
