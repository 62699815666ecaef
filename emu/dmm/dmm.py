"""DMM: the owner of a VM's mapping from gfn to mfn, which can change at any moment while the guest runs.

It alone writes P2M, M2P and pool.  Policies call it; paging is told by it (``forget``, ``restrict``) before any change
takes effect, so that no stale translation survives.

Whatever a policy raises passes through, and leaves the mapping as it was before the step that asked the policy.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TypeVar

import numpy as np

from emu.dmm.balloon_channel import BalloonChannel
from emu.dmm.faults import Faults
from emu.dmm.frames import give_back_pool, give_up_frame
from emu.dmm.p2m import Array, PageType
from emu.dmm.pages import Pages
from emu.dmm.policy import Policy
from emu.dmm.poolsize import PoolSize
from emu.dmm.retire import retire_frame
from emu.dmm.sharing import Sharing
from emu.dmm.space import Space

_P = TypeVar("_P")


class DMM:
    """The DMM of one VM: :class:`emu.dmm.interface.DmmInterface`, and what the machine needs beside that.

    Each verb is a method of the part that does it: a page's of :class:`emu.dmm.pages.Pages`, sharing's of
    :class:`emu.dmm.sharing.Sharing`, ``resolve`` of :class:`emu.dmm.faults.Faults`, the pool's of
    :class:`emu.dmm.poolsize.PoolSize`.

    Args:
        space: the VM's memory.

    Attributes:
        space: all that the parts work on; the attributes up to ``policies`` are its.
        policies: in force, in the order in which they are asked.
        balloon: what the VM's balloon devices and its balloon policy know of each other.
    """

    def __init__(self, space: Space) -> None:
        self.space = space
        self.name, self.index = space.name, space.index
        self.memory, self.m2p = space.memory, space.m2p
        self.pool, self.p2m, self.log = space.pool, space.p2m, space.log
        self.policies = space.policies
        self.balloon = BalloonChannel()

        pages = Pages(space)
        sharing = Sharing(space, pages)
        size = PoolSize(space)
        self.resolve = Faults(space, pages, sharing).resolve
        self.is_memory, self.is_resident, self.is_evictable = space.is_memory, space.is_resident, pages.is_evictable
        self.populate, self.remap, self.protect = pages.populate, pages.remap, pages.protect
        self.evict, self.forget_copy, self.discard = pages.evict, pages.forget_copy, pages.discard
        self.pin, self.unpin = pages.pin, pages.unpin
        self.is_shared, self.shareable_frame = sharing.is_shared, sharing.shareable_frame
        self.share, self.unshare = sharing.share, sharing.unshare
        self.grow, self.shrink = size.grow, size.shrink

    @property
    def now(self) -> int:
        """The VM's virtual time in ns."""
        return self.log.now

    # --- policies ---

    def attach(self, policy: Policy) -> None:
        """Put ``policy`` in force, behind those that already are."""
        self.policies.append(policy)
        self.policies.watch()
        try:
            policy.attach(self)
        except BaseException:
            self.policies.remove(policy)
            raise
        finally:
            self.policies.refresh()

    def detach(self, policy: Policy) -> None:
        """Take ``policy`` out of force; pages that it keeps come back first.

        Raises:
            OutOfFrames: they do not all fit into the pool; the policy stays in force.
        """
        contents = self.space.contents
        self.policies.detaching = policy
        try:
            for gfn in contents.kept(policy):
                self.populate(gfn)
                contents.forget(gfn)
            policy.detach()
        finally:
            self.policies.detaching = None
        self.policies.remove(policy)
        self.policies.refresh()

    def peers(self, kind: type[_P]) -> list[_P]:
        """The policies of a kind that are in force for other VMs of the machine, by the VMs' numbers."""
        spaces = self.space.spaces
        others = (spaces[index] for index in sorted(spaces) if index != self.index)
        return [policy for other in others for policy in other.policies if isinstance(policy, kind)]

    # --- beside single pages ---

    def pinned(self) -> list[int]:
        """The gfns that are pinned, in ascending order."""
        return sorted(self.space.pins)

    def take_accessed(self, gfns: Array) -> Array:
        """Look which ``gfns`` were accessed, and clear their accessed bits."""
        return self._look_at_accesses(gfns, young=False)

    def take_young(self, gfns: Array) -> Array:
        """As :meth:`take_accessed`, but for accesses since the last call of this method, whoever has cleared bits."""
        return self._look_at_accesses(gfns, young=True)

    def _look_at_accesses(self, gfns: Array, young: bool) -> Array:
        gfns = np.ascontiguousarray(gfns, np.int64)
        if len(gfns) and not 0 <= gfns.min() <= gfns.max() < len(self.p2m):
            raise ValueError(f"gfns from {gfns.min():#x} to {gfns.max():#x}: {self.name} has {len(self.p2m):#x}")
        accessed = np.zeros(len(gfns), np.uint8)
        self.space.paging.forget_accesses(gfns, accessed, young)
        return accessed.view(bool)

    def retire(self, mfn: int) -> None:
        """Take any frame of the machine out of service, whatever it is for."""
        retire_frame(self.space.machine, mfn)

    def close(self) -> None:
        """The VM is gone: everything that it has goes back to the machine; shared frames go to who else uses them.

        Raises:
            BadInput: a policy cannot settle what it has in files; all else is done.
        """
        with ExitStack() as steps:
            steps.callback(self._give_back_all)
            for policy in self.policies:
                steps.callback(policy.detach)

    def _give_back_all(self) -> None:
        space = self.space
        self.policies.clear()
        self.policies.refresh()
        space.paging.close()
        for gfn in self.p2m.resident().tolist():
            mfn = self.p2m.mfn(gfn)
            self.p2m.set(gfn, PageType.EMPTY)
            give_up_frame(space, gfn, mfn)
        give_back_pool(space)
        del space.spaces[self.index]
