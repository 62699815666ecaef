"""DmmInterface: what a memory policy may ask the DMM to do, and what it may look at.

Demand paging, swapping, sharing with copy-on-write, ballooning and every policy of another package stand on this alone.
A policy (:class:`emu.dmm.policy.Policy`) gets it in ``attach``.  It decides; the DMM acts, tells paging before anything
changes, records the events, and leaves everything as it was when it raises.

A policy reads ``p2m``, ``m2p``, ``pool`` and ``memory`` and changes none of them.
"""

from __future__ import annotations

from typing import Protocol, TypeVar

from emu.dmm.balloon_channel import BalloonChannel
from emu.dmm.m2p import M2P
from emu.dmm.p2m import P2M, Array, Intent
from emu.dmm.pool import Pool
from emu.engine.eventlog import EventLog
from emu.engine.ram import MachineMemory

_P = TypeVar("_P")


class Keeper(Protocol):
    """Who keeps the contents of pages that it evicts: any policy that overrides these methods."""

    name: str

    def keep(self, gfn: int, contents: bytes) -> None: ...

    def restore(self, gfn: int) -> bytes: ...

    def release(self, gfn: int) -> None: ...


class DmmInterface(Protocol):
    """The DMM of one VM, as its policies see it.

    Attributes:
        name: the VM's name.
        index: its number in the machine.
        memory: machine memory; ``memory.pages[mfn]`` are the 4096 bytes of a frame.
        m2p: who uses each machine frame, on the whole machine.
        pool: the frames that the VM may use now: how many, how many of them spare.
        p2m: page type, frame, rights and marks of each gfn.
        log: of the VM's events.
        balloon: what the VM's balloon devices and its balloon policy know of each other.
    """

    name: str
    index: int
    memory: MachineMemory
    m2p: M2P
    pool: Pool
    p2m: P2M
    log: EventLog
    balloon: BalloonChannel

    @property
    def now(self) -> int:
        """The VM's virtual time in ns."""

    def peers(self, kind: type[_P]) -> list[_P]:
        """The policies of a kind that are in force for other VMs of the machine, by the VMs' numbers."""

    # --- looking at a page ---

    def is_memory(self, gfn: int) -> bool:
        """Whether ``gfn`` has contents, resident or not."""

    def is_resident(self, gfn: int) -> bool:
        """Whether there is a frame behind ``gfn``."""

    def is_evictable(self, gfn: int) -> bool:
        """Whether :meth:`evict` can take the frame of ``gfn`` now, and the pool may gain one by it."""

    def take_accessed(self, gfns: Array) -> Array:
        """Look which ``gfns`` were accessed, and clear their accessed bits: one flush for all of them.

        Args:
            gfns: int64 array; those that are not resident count as not accessed.

        Returns:
            bool array of the same length.

        Raises:
            ValueError: there is no such gfn; nothing has changed.
        """

    def take_young(self, gfns: Array) -> Array:
        """As :meth:`take_accessed`, but for accesses since the last call of this method, whoever has cleared bits."""

    # --- changing a page ---

    def populate(self, gfn: int) -> int:
        """Give ``gfn`` a frame with its contents, if it has none.

        Returns:
            Its mfn.

        Raises:
            OutOfFrames: the pool is full and no policy makes room.
            PolicyFault: a policy hands out contents that are no page.
            ValueError: there is no such gfn.
        """

    def remap(self, gfn: int) -> int:
        """Move a resident ``gfn``, and all others that share its frame, to another frame of the pool.

        Returns:
            The new mfn.

        Raises:
            OutOfFrames: the pool has no spare frame and no policy makes room.
            ValueError: the gfn is not resident.
        """

    def protect(self, gfn: int, rights: Intent) -> None:
        """Grant exactly ``rights`` on a resident ``gfn``; the guest's next access beyond them asks the DMM.

        Raises:
            ValueError: the gfn is not resident, or is shared and ``rights`` has WRITE.
        """

    def evict(self, gfn: int, keeper: Keeper) -> None:
        """Take the frame from behind a resident ``gfn``.

        A page of zeros becomes EMPTY, and a page of the guest image that was never stored to becomes IMAGE.  Otherwise
        ``keeper`` gets the contents and is asked for them later; not even that where a copy is kept that is still good.

        Args:
            keeper: a policy in force; mostly the one that calls.

        Raises:
            PagePinned: somebody pinned it.
            ValueError: the gfn is not resident, or the keeper is not in force.
        """

    def forget_copy(self, gfn: int) -> None:
        """The copy of a resident ``gfn`` that some policy keeps is of no use any more.

        Raises:
            ValueError: the gfn is not resident: the copy is all that there is.
        """

    def discard(self, gfn: int) -> None:
        """The guest does not need the contents of ``gfn`` any more: it is EMPTY, and reads as zeros.

        Raises:
            PagePinned: somebody pinned it.
            ValueError: it is no memory.
        """

    # --- sharing frames ---

    def is_shared(self, mfn: int) -> bool:
        """Whether ``mfn`` is a frame whose users have it read-only, so that its contents cannot change."""

    def shareable_frame(self, vm: int, gfn: int) -> int | None:
        """The frame of ``gfn`` of the VM with number ``vm``, if :meth:`share` can give it other users, else None.

        None also when the VM is gone.
        """

    def share(self, gfn: int, mfn: int) -> bool:
        """Let ``gfn`` use ``mfn``, the frame of a gfn of any VM, in place of its own, if the contents are the same.

        Returns:
            Whether it does now; False leaves everything as it was.

        Raises:
            ValueError: the gfn is not resident, or ``mfn`` has no user.
        """

    def unshare(self, gfn: int) -> int:
        """Give a shared ``gfn`` a frame of its own (copy-on-write break), and the right to write, unless a policy is in
        force that may withhold it: that is asked when the guest writes.

        The DMM does it by itself when the guest writes to a shared page.

        Returns:
            Its mfn.

        Raises:
            OutOfFrames: the pool has no spare frame and no policy makes room.
            ValueError: the gfn is not resident.
        """

    # --- machine frames ---

    def grow(self, frames: int) -> None:
        """Add ``frames`` machine frames to the pool.

        Raises:
            OutOfMachineFrames: the machine has fewer; nothing has changed.
        """

    def shrink(self, frames: int) -> None:
        """Give ``frames`` of the pool back to the machine; policies make room where too few are spare.

        Raises:
            NotEnoughSpare: they cannot; the pool's size has not changed.
            StoreError: a page cannot be stored; the same.
        """

    def retire(self, mfn: int) -> None:
        """Take any frame of the machine out of service, whatever it is for.

        Raises:
            CannotRetire: nothing can do its work; nothing has changed.
            ValueError: there is no such frame.
        """
