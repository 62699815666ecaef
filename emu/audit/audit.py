"""Proof that every structure of a VM agrees with every other.

The DMM's own structures (machine memory, pools, P2M, M2P, kept pages, frame flags) are checked here, the shadow tables
in :mod:`emu.audit.shadow`.  Nothing is repaired and nothing is cached: each audit reads everything again.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from emu.addr import NO_FRAME, PAGE_SHIFT
from emu.audit.shadow import AuditFailure, audit_shadow, shadowed_gfns
from emu.dmm.p2m import DIRTY, RESIDENT, Intent, PageType, marks_of
from emu.dmm.space import Space
from emu.engine.ram import FRAME_CODE, FRAME_TABLE, NOBODY, Purpose
from emu.mmu.paging import ShadowPaging

__all__ = ["AuditFailure", "audit"]

Array = np.ndarray[Any, Any]

_FREE, _VOID, _SPARE, _USED, _SHADOW, _RETIRED = range(6)
_STATES = ("free", "the void frame", "spare in a pool", "used in a pool", "for shadow tables", "out of service")
_PURPOSES = (Purpose.FREE, Purpose.VOID, Purpose.POOL, Purpose.POOL, Purpose.TABLES, Purpose.RETIRED)
_RESIDENT = sorted(RESIDENT)
_ORIGIN_EVICTED = marks_of(PageType.EVICTED) >> 10


def audit(space: Space, native: Any) -> None:
    """Prove every structure of a VM consistent with every other, and the machine's frames with all its VMs.

    Args:
        space: the VM's memory.
        native: its shared record (:mod:`emu.engine.state`).

    Raises:
        AuditFailure: they are not; the message names the first contradiction.
    """
    state, owner = _frame_states(space)
    gfns, mfns = _check_p2m(space)
    _check_m2p(space, state, owner, gfns, mfns)
    _check_keepers(space)
    audit_shadow(space, native)
    _check_flags(space, state, owner, mfns)


def _frame_states(space: Space) -> tuple[Array, Array]:
    """What each machine frame is for, and which VM owns it (-1: none); every frame is for one thing."""
    memory = space.memory
    state = np.full(memory.frames, NO_FRAME, np.int8)
    owner = np.full(memory.frames, -1, np.int32)

    def claim(frames: Array, purpose: int, vm_index: int, count: int) -> None:
        if len(frames) != count:
            what = f"{count} frames count as {_STATES[purpose]} (VM {vm_index}), {len(frames)} are: twice or lost"
            raise AuditFailure(space.name, "machine frames", what)
        if len(frames) and not (0 <= frames.min() and frames.max() < memory.frames):
            raise AuditFailure(space.name, "machine frames", f"no such frame as {frames.max()} or {frames.min()}")
        taken = state[frames] != NO_FRAME
        if taken.any():
            mfn = int(frames[taken].min())
            other = f"{_STATES[state[mfn]]} (VM {owner[mfn]})"
            what = f"mfn {mfn:#x} is {_STATES[purpose]} (VM {vm_index}) and {other}"
            raise AuditFailure(space.name, "machine frames", what)
        state[frames] = purpose
        owner[frames] = vm_index

    claim(np.array([memory.void_mfn]), _VOID, NOBODY, 1)
    claim(_numbers(memory.free_frames()), _FREE, NOBODY, memory.free)
    for index, other in space.spaces.items():
        claim(_numbers(other.pool.spare_frames()), _SPARE, index, other.pool.spare)
        claim(_numbers(other.pool.used_frames()), _USED, index, other.pool.used)
        if isinstance(other.paging, ShadowPaging):
            first, retired = other.paging.first, set(other.paging.retired)
            slots = [slot for slot in range(other.paging.tables) if slot not in retired]
            claim(first + np.array(slots), _SHADOW, index, len(slots))
    lost = np.flatnonzero((state == NO_FRAME) & (memory.purpose != Purpose.RETIRED))
    if len(lost):
        raise AuditFailure(space.name, "machine frames", f"mfn {lost[0]:#x} is neither free nor in a pool nor in use")
    state[state == NO_FRAME] = _RETIRED
    wrong = (np.array(_PURPOSES)[state] != memory.purpose) | (owner != memory.owner)
    if wrong.any():
        mfn = int(np.argmax(wrong))
        what = f"mfn {mfn:#x} is {_STATES[state[mfn]]} (VM {owner[mfn]}), noted as {Purpose(memory.purpose[mfn]).name}"
        raise AuditFailure(space.name, "machine frames", f"{what} of VM {memory.owner[mfn]}")
    return state, owner


def _numbers(frames: frozenset[int]) -> Array:
    return np.fromiter(frames, np.int64, len(frames))


def _check_p2m(space: Space) -> tuple[Array, Array]:
    """Every entry has a frame and rights if it is resident, and nothing but its type if it is not.

    Returns:
        The resident gfns and their mfns.
    """

    def refuse(wrong: Array, what: str) -> None:
        if wrong.any():
            gfn = int(described[np.argmax(wrong)])
            raise AuditFailure(space.name, "P2M", f"gfn {gfn:#x}, entry {int(space.p2m.entries[gfn]):#x}: {what}")

    described = space.p2m.known()
    entries = space.p2m.entries[described]
    kind = entries >> 4 & 15
    refuse(kind > max(PageType), "no such page type")
    refuse(entries >> 10 & 3 == 3, "no such origin")
    resident = np.isin(kind, _RESIDENT)
    refuse(~resident & (entries & 0xF0F != 0), "rights or marks on a page that is not resident")
    refuse((kind == PageType.SHARED) & (entries & Intent.WRITE != 0), "a shared page that is writable")
    refuse(~resident & (entries >> PAGE_SHIFT != 0), "a frame behind a page that is not resident")
    refuse(resident & ((entries < 0) | (entries >> PAGE_SHIFT >= space.memory.frames)), "no such frame")
    return described[resident], entries[resident] >> PAGE_SHIFT


def _check_m2p(space: Space, state: Array, owner: Array, gfns: Array, mfns: Array) -> None:
    """P2M and M2P are each other's inverse, and the used frames of the pool are those that they connect."""
    m2p = space.m2p
    index = space.index
    if space.is_closed:
        raise AuditFailure(space.name, "machine", f"VM {index} of the machine is another")
    shared = np.zeros(len(m2p.vm), bool)
    shared[m2p.shared_frames()] = True
    alone = ~shared[mfns]
    wrong = alone & ((m2p.gfn[mfns] != gfns) | (m2p.vm[mfns] != index))
    if wrong.any():
        gfn, mfn = int(gfns[np.argmax(wrong)]), int(mfns[np.argmax(wrong)])
        what = f"gfn {gfn:#x} is behind mfn {mfn:#x} in the P2M, M2P says VM {m2p.vm[mfn]} gfn {m2p.gfn[mfn]:#x}"
        raise AuditFailure(space.name, "M2P", what)
    half = (m2p.vm == NOBODY) != (m2p.gfn == NO_FRAME)
    if half.any():
        mfn = int(np.argmax(half))
        raise AuditFailure(space.name, "M2P", f"mfn {mfn:#x} has a VM without a gfn or a gfn without a VM")
    mine = np.flatnonzero((m2p.vm == index) & ~shared)
    if len(mine) != alone.sum():
        stray = np.setdiff1d(mine, mfns[alone])[0]
        what = f"mfn {stray:#x} has user gfn {m2p.gfn[stray]:#x}, the P2M does not agree"
        raise AuditFailure(space.name, "M2P", what)
    _check_shared(space, set(zip(gfns[~alone].tolist(), mfns[~alone].tolist(), strict=True)))
    exclusive = np.ones(len(state), bool)  # an exclusive page has its frame from its own VM's pool
    exclusive[mfns[space.p2m.entries[gfns] >> 4 & 15 == PageType.SHARED]] = False
    exclusive &= m2p.vm == index
    used = state == _USED
    wrong = used & (m2p.vm == NOBODY) | ~used & (m2p.vm != NOBODY) | exclusive & (owner != index)
    wrong[space.contents.frames_in_flight()] = False  # taken for a page whose contents are being fetched
    if wrong.any():
        mfn = int(np.argmax(wrong))
        what = f"mfn {mfn:#x} is {_STATES[state[mfn]]} (VM {owner[mfn]}), its user in M2P is VM {m2p.vm[mfn]}"
        raise AuditFailure(space.name, "pool", what)


def _check_shared(space: Space, pages: set[tuple[int, int]]) -> None:
    """``pages``, the (gfn, mfn) pairs of this VM with frames that have several users, are in M2P, and read-only."""
    m2p, index = space.m2p, space.index
    listed = {(gfn, mfn) for mfn in m2p.shared_frames() for user, gfn in m2p.users(mfn) if user == index}
    if listed != pages:
        gfn, mfn = min(listed ^ pages)
        what = "in the P2M only" if (gfn, mfn) in pages else "in M2P only"
        raise AuditFailure(space.name, "M2P", f"gfn {gfn:#x} uses shared mfn {mfn:#x} {what}")
    for mfn in m2p.shared_frames():
        users = m2p.users(mfn)
        if len(users) < 2 or m2p.first(mfn) != users[0]:
            what = f"users {users} of mfn {mfn:#x}: there are no others, or {m2p.first(mfn)} is not the first"
            raise AuditFailure(space.name, "M2P", what)
    for gfn, mfn in sorted(pages):
        if space.p2m.type(gfn) is not PageType.SHARED:
            what = f"gfn {gfn:#x} is {space.p2m.type(gfn).name}, mfn {mfn:#x} has other users"
            raise AuditFailure(space.name, "P2M", what)


def _check_keepers(space: Space) -> None:
    """Some policy keeps the contents of every evicted page, and else only copies of pages that were evicted before."""
    described = space.p2m.known()
    entries = space.p2m.entries[described]
    kind = entries >> 4 & 15
    evicted = set(described[kind == PageType.EVICTED].tolist())
    once = set(described[np.isin(kind, _RESIDENT) & (entries >> 10 & 3 == _ORIGIN_EVICTED)].tolist())
    kept = set(space.contents.kept())
    if not evicted <= kept <= evicted | once:
        gfn = min((evicted - kept) | (kept - evicted - once))
        what = "evicted and nobody keeps its contents" if gfn in evicted else "kept by a policy and was never evicted"
        raise AuditFailure(space.name, "keepers", f"gfn {gfn:#x} is {what}")
    clean = set(described[np.isin(kind, _RESIDENT) & (entries & DIRTY == 0)].tolist())
    if not once & clean <= kept:
        gfn = min(once & clean - kept)
        raise AuditFailure(space.name, "keepers", f"gfn {gfn:#x} is clean and nobody keeps the copy that it came from")


def _check_flags(space: Space, state: Array, owner: Array, mfns: Array) -> None:
    """FRAME_TABLE on the frames of guest tables that have a shadow and on the void frame; FRAME_CODE on used frames."""

    def refuse(wrong: Array, what: str) -> None:
        if wrong.any():
            mfn = int(np.argmax(wrong))
            what = f"mfn {mfn:#x}, {_STATES[state[mfn]]} (VM {owner[mfn]}): {what}"
            raise AuditFailure(space.name, "frame flags", what)

    flags = space.paging.flags
    mine = np.zeros(len(state), bool)
    mine[mfns] = True
    refuse(flags & ~np.uint8(FRAME_CODE | FRAME_TABLE) != 0, "unknown flags")
    refuse(~mine & (state != _VOID) & (flags & FRAME_CODE != 0), "FRAME_CODE on a frame that the VM does not use")
    trapped, must = np.zeros((2, len(state)), bool)
    trapped[space.memory.void_mfn] = must[space.memory.void_mfn] = True
    if isinstance(space.paging, ShadowPaging):
        gfns = shadowed_gfns(space.paging)
        behind = space.p2m.entries[gfns[gfns < len(space.p2m)]]
        kind = behind >> 4 & 15
        trapped[behind[np.isin(kind, _RESIDENT)] >> PAGE_SHIFT] = True
        must[behind[kind == PageType.RAM] >> PAGE_SHIFT] = True  # nobody can store into a shared frame
    table = flags & FRAME_TABLE != 0
    refuse(must & ~table, "FRAME_TABLE is missing on a guest table that has a shadow, or on the void frame")
    refuse(table & ~trapped, "FRAME_TABLE on a frame that holds no table with a shadow")
