"""Proof that every structure of a VM agrees with every other.

The DMM's own structures (machine memory, pools, P2M, M2P, kept pages, frame flags) are checked here, the shadow tables
in :mod:`emu.mmu.audit`.  Nothing is repaired and nothing is cached: each audit reads everything again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from emu.addr import NO_FRAME, PAGE_SHIFT
from emu.dmm.p2m import RESIDENT, PageType
from emu.mmu.audit import AuditFailure, audit_shadow, shadowed_gfns
from emu.mmu.paging import ShadowPaging
from emu.ram import FRAME_CODE, FRAME_TABLE

if TYPE_CHECKING:
    from emu.vm import VirtualMachine

__all__ = ["AuditFailure", "audit"]

Array = np.ndarray[Any, Any]

_FREE, _VOID, _SPARE, _USED, _SHADOW = range(5)
_STATES = ("free", "the void frame", "spare in a pool", "used in a pool", "for shadow tables")
_RESIDENT = sorted(RESIDENT)


def audit(vm: VirtualMachine) -> None:
    """Prove every structure of ``vm`` consistent with every other, and the machine's frames with all its VMs.

    Raises:
        AuditFailure: they are not; the message names the first contradiction.
    """
    state, owner = _frame_states(vm)
    gfns, mfns = _check_p2m(vm)
    _check_m2p(vm, state, owner, gfns, mfns)
    _check_keepers(vm)
    audit_shadow(vm)
    _check_flags(vm, state, owner)


def _frame_states(vm: VirtualMachine) -> tuple[Array, Array]:
    """What each machine frame is for, and which VM owns it (-1: none); every frame is for one thing."""
    memory = vm.machine.memory
    state = np.full(memory.frames, NO_FRAME, np.int8)
    owner = np.full(memory.frames, -1, np.int32)

    def claim(frames: Array, purpose: int, vm_index: int, count: int) -> None:
        if len(frames) != count:
            raise AuditFailure(vm.name, "machine frames", f"a frame is twice among those that are {_STATES[purpose]}")
        if len(frames) and not (0 <= frames.min() and frames.max() < memory.frames):
            raise AuditFailure(vm.name, "machine frames", f"no such frame as {frames.max()} or {frames.min()}")
        taken = state[frames] != NO_FRAME
        if taken.any():
            mfn = int(frames[taken].min())
            other = f"{_STATES[state[mfn]]} (VM {owner[mfn]})"
            what = f"mfn {mfn:#x} is {_STATES[purpose]} (VM {vm_index}) and {other}"
            raise AuditFailure(vm.name, "machine frames", what)
        state[frames] = purpose
        owner[frames] = vm_index

    claim(np.array([memory.void_mfn]), _VOID, -1, 1)
    claim(_numbers(memory.free_frames()), _FREE, -1, memory.free)
    for index, other in enumerate(vm.machine.vms):
        claim(_numbers(other.pool.spare_frames()), _SPARE, index, other.pool.spare)
        claim(_numbers(other.pool.used_frames()), _USED, index, other.pool.used)
        if isinstance(other.paging, ShadowPaging):
            first, tables = other.paging.first, other.paging.tables
            claim(np.arange(first, first + tables), _SHADOW, index, tables)
    lost = np.flatnonzero(state == NO_FRAME)
    if len(lost):
        raise AuditFailure(vm.name, "machine frames", f"mfn {lost[0]:#x} is neither free nor in a pool nor in use")
    return state, owner


def _numbers(frames: frozenset[int]) -> Array:
    return np.fromiter(frames, np.int64, len(frames))


def _check_p2m(vm: VirtualMachine) -> tuple[Array, Array]:
    """Every entry has a frame and rights if it is resident, and nothing but its type if it is not.

    Returns:
        The resident gfns and their mfns.
    """

    def refuse(wrong: Array, what: str) -> None:
        if wrong.any():
            gfn = int(described[np.argmax(wrong)])
            raise AuditFailure(vm.name, "P2M", f"gfn {gfn:#x}, entry {int(vm.p2m.entries[gfn]):#x}: {what}")

    described = vm.p2m.known()
    entries = vm.p2m.entries[described]
    kind = entries >> 4 & 15
    refuse(kind > max(PageType), "no such page type")
    refuse(entries & 0xF08 != 0, "unknown bits")
    resident = np.isin(kind, _RESIDENT)
    refuse(~resident & (entries & 7 != 0), "rights on a page that is not resident")
    refuse(~resident & (entries >> PAGE_SHIFT != 0), "a frame behind a page that is not resident")
    refuse(resident & ((entries < 0) | (entries >> PAGE_SHIFT >= vm.machine.memory.frames)), "no such frame")
    return described[resident], entries[resident] >> PAGE_SHIFT


def _check_m2p(vm: VirtualMachine, state: Array, owner: Array, gfns: Array, mfns: Array) -> None:
    """P2M and M2P are each other's inverse, and the used frames of the pool are those that they connect."""
    m2p, vms = vm.machine.m2p, vm.machine.vms
    index = vm.dmm.index
    if not 0 <= index < len(vms) or vms[index] is not vm:
        raise AuditFailure(vm.name, "machine", f"VM {index} of the machine is another")
    wrong = (m2p.gfn[mfns] != gfns) | (m2p.vm[mfns] != index)
    if wrong.any():
        gfn, mfn = int(gfns[np.argmax(wrong)]), int(mfns[np.argmax(wrong)])
        what = f"gfn {gfn:#x} is behind mfn {mfn:#x} in the P2M, M2P says VM {m2p.vm[mfn]} gfn {m2p.gfn[mfn]:#x}"
        raise AuditFailure(vm.name, "M2P", what)
    half = (m2p.vm == -1) != (m2p.gfn == NO_FRAME)
    if half.any():
        mfn = int(np.argmax(half))
        raise AuditFailure(vm.name, "M2P", f"mfn {mfn:#x} has a VM without a gfn or a gfn without a VM")
    mine = np.flatnonzero(m2p.vm == index)
    if len(mine) != len(mfns):
        stray = np.setdiff1d(mine, mfns)[0]
        raise AuditFailure(vm.name, "M2P", f"mfn {stray:#x} has user gfn {m2p.gfn[stray]:#x}, the P2M does not agree")
    used = state == _USED
    wrong = used & (m2p.vm != owner) | ~used & (m2p.vm != -1)
    wrong[list(vm.dmm.frames_in_flight())] = False  # taken for a page whose contents are being fetched
    if wrong.any():
        mfn = int(np.argmax(wrong))
        what = f"mfn {mfn:#x} is {_STATES[state[mfn]]} (VM {owner[mfn]}), its user in M2P is VM {m2p.vm[mfn]}"
        raise AuditFailure(vm.name, "pool", what)


def _check_keepers(vm: VirtualMachine) -> None:
    """Some policy keeps the contents of every evicted page, and of no other."""
    described = vm.p2m.known()
    evicted = set(described[vm.p2m.entries[described] >> 4 & 15 == PageType.EVICTED].tolist())
    kept = vm.dmm.kept_gfns()
    if evicted != kept:
        gfn = min(evicted ^ kept)
        what = "evicted and nobody keeps its contents" if gfn in evicted else "kept by a policy and not evicted"
        raise AuditFailure(vm.name, "keepers", f"gfn {gfn:#x} is {what}")


def _check_flags(vm: VirtualMachine, state: Array, owner: Array) -> None:
    """FRAME_TABLE on the frames of guest tables that have a shadow and on the void frame; FRAME_CODE on used frames."""

    def refuse(wrong: Array, what: str) -> None:
        if wrong.any():
            mfn = int(np.argmax(wrong))
            what = f"mfn {mfn:#x}, {_STATES[state[mfn]]} (VM {owner[mfn]}): {what}"
            raise AuditFailure(vm.name, "frame flags", what)

    flags = vm.machine.memory.flags
    refuse(flags & ~np.uint8(FRAME_CODE | FRAME_TABLE) != 0, "unknown flags")
    idle = (state != _USED) & (state != _VOID)
    refuse(idle & (flags & FRAME_CODE != 0), "FRAME_CODE on a frame that nobody uses")
    trapped = np.zeros(len(state), bool)
    trapped[vm.machine.memory.void_mfn] = True
    if isinstance(vm.paging, ShadowPaging):
        gfns = shadowed_gfns(vm.paging)
        behind = vm.p2m.entries[gfns[gfns < len(vm.p2m)]]
        trapped[behind[np.isin(behind >> 4 & 15, _RESIDENT)] >> PAGE_SHIFT] = True
    foreign = (state == _USED) & (owner != vm.dmm.index)  # these are checked with their own VM
    table = flags & FRAME_TABLE != 0
    refuse(trapped & ~table, "FRAME_TABLE is missing on a guest table that has a shadow, or on the void frame")
    refuse(table & ~trapped & ~foreign, "FRAME_TABLE on a frame that holds no table with a shadow")
