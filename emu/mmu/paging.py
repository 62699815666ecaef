"""Paging architectures as the DMM sees them: told what changes below them, never asked for a translation."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import numpy as np

from emu.addr import NO_FRAME
from emu.engine.cpustate import load_u64
from emu.engine.engine import flush_all_tlbs
from emu.engine.framestack import FrameStack
from emu.engine.native import address_of, compiled, load64, store8, store64
from emu.engine.ram import FRAME_CODE, FRAME_TABLE, MachineMemory, sparse_zeros
from emu.engine.state import Cpu, CpuStructure, Vm, cpu_record, vm_of
from emu.mmu import shadow, shadowtables
from emu.mmu.code import drop_frame_code
from emu.mmu.rmap import Rmap
from emu.mmu.walk import ACCESSED, YOUNG

Array = np.ndarray[Any, Any]


@compiled
def flush_tlbs(cpu_at: int) -> None:
    """Drop every TLB entry of all processors of a VM."""
    flush_all_tlbs(vm_of(cpu_record(cpu_at)))


@compiled
def _drop_frame_code(cpu_at: int, mfn: int) -> None:
    drop_frame_code(cpu_at, mfn)


@compiled
def _take_accessed(cpu_at: int, gfns_at: int, count: int, accessed_at: int, young: int) -> int:
    vm = vm_of(cpu_record(cpu_at))
    taken = 0
    wanted = ACCESSED | YOUNG if young else ACCESSED
    for i in range(count):
        gfn = load64(gfns_at + 8 * i)
        at = vm.p2m_at + gfn * 8
        entry = load64(at)
        store8(accessed_at + i, 1 if entry & wanted else 0)
        if entry & ACCESSED:
            taken += 1
            if not vm.nested:
                shadow.forget_uses(cpu_at, gfn, entry >> 12)
            store64(at, entry & ~wanted if young else (entry & ~ACCESSED) | YOUNG)
        elif entry & wanted:
            store64(at, entry & ~wanted)
    return taken


class Paging:
    """How a VM's gvas become machine addresses.  ``nested``: each TLB miss walks the guest's tables and the P2M.

    Args:
        native: the VM's record (:mod:`emu.engine.state`).
        memory: machine memory.

    Attributes:
        flags: uint8 array, one for each machine frame: what this VM notes about it (FRAME_CODE, FRAME_TABLE).
    """

    name = "nested"

    def __init__(self, native: Vm, memory: MachineMemory) -> None:
        self._memory = memory
        self._native = native
        self.flags = sparse_zeros(memory.frames, np.uint8)
        native.frame_flags_at = address_of(self.flags)
        self._code_cpus = sparse_zeros(memory.frames, np.uint16)
        self._written = sparse_zeros(memory.frames, np.int32)
        native.code_cpus_at, native.written_at = address_of(self._code_cpus), address_of(self._written)
        native.flush_epoch = 1
        native.nested = 1
        self.void_moved()

    def processors(self) -> list[Cpu]:
        """The records of the VM's processors."""
        native = self._native
        places = (load_u64(native.cpus_at + 8 * index) for index in range(native.cpu_count))
        return [cast(Cpu, CpuStructure.from_address(place)) for place in places]

    @property
    def _cpu_at(self) -> int:
        """The host address of the record of the processor that runs, or ran last: what happens now is its."""
        return load_u64(self._native.cpus_at + 8 * self._native.current)

    def forget(self, gfn: int, mfn: int) -> None:
        """``mfn`` is about to be taken from behind ``gfn``: nothing may lead to it any more."""
        self._forget_code(mfn)
        flush_tlbs(self._cpu_at)

    def restrict(self, gfn: int, mfn: int) -> None:
        """Rights on ``gfn`` are about to be withdrawn: what was granted must be asked for again."""
        flush_tlbs(self._cpu_at)

    def rewritten(self, gfn: int, mfn: int) -> None:
        """The contents of ``gfn`` were changed from outside the guest."""
        self._forget_code(mfn)

    def forget_translations(self) -> None:
        """What stands behind gfns without frames has changed."""
        flush_tlbs(self._cpu_at)

    def forget_holes(self, gfns: Iterable[int]) -> None:
        """Device registers have come to ``gfns``, which were holes, or have gone from there."""
        flush_tlbs(self._cpu_at)

    def forget_accesses(self, gfns: Array, accessed: Array, young: bool) -> None:
        """Clear the accessed bits of ``gfns``: the next access to each sets them again.

        Args:
            gfns: int64 array.
            accessed: uint8 array of the same length; gets 1 where the bit was set, else 0.
            young: look at the young marks, too, and clear both; else the pages that were accessed become young.
        """
        if _take_accessed(self._cpu_at, address_of(gfns), len(gfns), address_of(accessed), int(young)):
            flush_tlbs(self._cpu_at)

    def processor_started(self) -> None:
        """A second processor, or one more, has been started: stores are seen by code of others from now on."""
        flush_tlbs(self._cpu_at)

    def void_moved(self) -> None:
        """The void frame is another one: it counts as a table, so that stores into it trap."""
        before = self._native.void_mfn
        if before != NO_FRAME:
            self.flags[before] = 0
        self._native.void_mfn = self._memory.void_mfn
        self.flags[self._memory.void_mfn] = FRAME_TABLE
        self.forget_translations()

    def retire(self, mfn: int) -> bool:
        """Do without a machine frame that the architecture owns; False when it cannot."""
        return False

    def close(self) -> None:
        """The VM runs no more: nothing leads to any frame, and what the architecture owns goes back to the machine."""
        self.forget_translations()

    def _forget_code(self, mfn: int) -> None:
        if self.flags[mfn] & FRAME_CODE:
            _drop_frame_code(self._cpu_at, mfn)


class ShadowPaging(Paging):
    """``shadow``: the guest reaches memory through shadow tables alone (:mod:`emu.mmu.shadow`).

    Args:
        tables: shadow tables that may exist at a time; each takes a machine frame.
        owner: number of the VM.
    """

    name = "shadow"

    def __init__(self, native: Vm, memory: MachineMemory, tables: int, owner: int) -> None:
        native.shadow_slots = 0
        super().__init__(native, memory)
        native.nested = 0
        first = memory.take_run(tables, owner)
        self.retired: list[int] = []  # slots whose frame is out of service
        buckets = 1 << (tables - 1).bit_length()
        self.first, self.tables = first, tables
        self.key = np.full(tables, -1, np.int64)
        self.role = np.zeros(tables, np.int64)
        self.link = np.arange(1, tables + 1, dtype=np.int32)
        self.link[-1] = -1
        self.writes = np.zeros(tables, np.int32)
        self.bucket = np.full(buckets, -1, np.int32)
        self.rmap = Rmap(native, memory.frames, tables * shadowtables.ENTRIES)
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
        shadow.forget_gfn(self._cpu_at, gfn, mfn)
        super().forget(gfn, mfn)

    def restrict(self, gfn: int, mfn: int) -> None:
        shadow.forget_gfn(self._cpu_at, gfn, mfn)
        super().restrict(gfn, mfn)

    def rewritten(self, gfn: int, mfn: int) -> None:
        if self.flags[mfn] & FRAME_TABLE:
            shadow.forget_gfn(self._cpu_at, gfn, mfn)
            flush_tlbs(self._cpu_at)
        super().rewritten(gfn, mfn)

    def forget_translations(self) -> None:
        shadow.forget_everything(self._cpu_at)
        super().forget_translations()

    def forget_holes(self, gfns: Iterable[int]) -> None:
        for gfn in gfns:
            shadow.forget_gfn(self._cpu_at, gfn, self._memory.void_mfn)
        super().forget_holes(gfns)

    def retire(self, mfn: int) -> bool:
        if self.tables - len(self.retired) - 1 < shadowtables.MIN_TABLES:
            return False
        self.forget_translations()
        slot, native = mfn - self.first, self._native
        if native.shadow_free == slot:
            native.shadow_free = int(self.link[slot])
        else:
            self.link[np.flatnonzero(self.link == slot)[0]] = self.link[slot]
        self.link[slot] = NO_FRAME
        native.shadow_used += 1
        self.retired.append(slot)
        return True

    def close(self) -> None:
        super().close()
        frames = FrameStack(range(self.first, self.first + self.tables))
        for slot in self.retired:
            frames.remove(range(self.first + slot, self.first + slot + 1))
        self._memory.give_back(frames)
