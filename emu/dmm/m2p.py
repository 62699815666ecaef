"""M2P: from mfn to its users, on the whole machine."""

from __future__ import annotations

import numpy as np

from emu.addr import NO_FRAME
from emu.engine.ram import NOBODY


class M2P:
    """The table of the whole machine.

    Args:
        frames: number of machine frames; none has a user at first.

    Attributes:
        gfn: int64 array; the gfn that uses each frame, the first of them where it is shared, NO_FRAME without a user.
            The native plane reads it.
        vm: int32 array; number of the VM that this gfn belongs to.
    """

    def __init__(self, frames: int) -> None:
        self.gfn = np.full(frames, NO_FRAME, np.int64)
        self.vm = np.full(frames, NOBODY, np.int32)
        self._shared: dict[int, dict[int, dict[int, None]]] = {}  # frames that have several users: mfn, VM, gfns

    def add(self, mfn: int, vm: int, gfn: int) -> None:
        """``gfn`` of VM ``vm`` uses ``mfn`` from now on."""
        if self.gfn[mfn] == NO_FRAME:
            self.gfn[mfn], self.vm[mfn] = gfn, vm
            return
        users = self._shared.get(mfn)
        if users is None:
            first_vm, first_gfn = self.first(mfn)
            users = self._shared[mfn] = {first_vm: {first_gfn: None}}
        users.setdefault(vm, {})[gfn] = None

    def remove(self, mfn: int, vm: int, gfn: int) -> int:
        """``gfn`` of VM ``vm`` does not use ``mfn`` any more; returns how many users are left."""
        users = self._shared.get(mfn)
        if users is None:
            self.gfn[mfn], self.vm[mfn] = NO_FRAME, NOBODY
            return 0
        del users[vm][gfn]
        if not users[vm]:
            del users[vm]
        if (vm, gfn) == self.first(mfn):
            vm = next(iter(users))
            self.vm[mfn], self.gfn[mfn] = vm, next(iter(users[vm]))
        left = self.count(mfn)
        if left == 1:
            del self._shared[mfn]
        return left

    def users(self, mfn: int) -> list[tuple[int, int]]:
        """The (VM number, gfn) pairs that use ``mfn``, in the order in which the VMs came and in each its gfns."""
        if mfn in self._shared:
            return [(vm, gfn) for vm, gfns in self._shared[mfn].items() for gfn in gfns]
        return [] if self.gfn[mfn] == NO_FRAME else [self.first(mfn)]

    def vms(self, mfn: int) -> list[int]:
        """The numbers of the VMs that use ``mfn``, in the order in which they came."""
        if mfn in self._shared:
            return list(self._shared[mfn])
        return [] if self.gfn[mfn] == NO_FRAME else [self.vm.item(mfn)]

    def first(self, mfn: int) -> tuple[int, int]:
        """The first of :meth:`users`; there must be one."""
        return self.vm.item(mfn), self.gfn.item(mfn)

    def count(self, mfn: int) -> int:
        """How many users ``mfn`` has."""
        users = self._shared.get(mfn)
        return sum(map(len, users.values())) if users is not None else int(self.gfn[mfn] != NO_FRAME)

    def shared_frames(self) -> list[int]:
        """The frames with more than one user, in ascending order."""
        return sorted(self._shared)
