"""Numbers about the memory of VMs, for tables and summaries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from emu.dmm.p2m import PageType
from emu.vm import VirtualMachine


@dataclass(frozen=True)
class Numbers:
    """The memory of one VM at one moment.

    Attributes:
        time: its virtual time in ns.
        ram: its pages.
        pool, used: frames that it may use, and those of them in use, by it or by another VM that shares them.
        resident, shared: its pages with a frame, and those of them whose frame may have other users.
        swapped: its pages whose contents a policy keeps, without a frame.
        balloon: its pages in the balloon.
        faults, evictions, unshared: events so far: DMM faults, evictions, copy-on-write breaks.
    """

    time: int
    ram: int
    pool: int
    used: int
    resident: int
    shared: int
    swapped: int
    balloon: int
    faults: int
    evictions: int
    unshared: int

    @classmethod
    def of(cls, vm: VirtualMachine) -> Numbers:
        """The numbers of a VM now."""
        pages = np.bincount(vm.p2m.entries[vm.p2m.known()] >> 4 & 15, minlength=16)
        events = vm.events.counts()
        balloon = vm.dmm.balloon.policy
        return cls(
            time=vm.now,
            ram=vm.ram >> 12,
            pool=vm.pool.size,
            used=vm.pool.used,
            resident=int(pages[PageType.RAM] + pages[PageType.SHARED]),
            shared=int(pages[PageType.SHARED]),
            swapped=int(pages[PageType.EVICTED]),
            balloon=len(balloon.held) if balloon is not None else 0,
            faults=events["dmm-fault"],
            evictions=events["evict"],
            unshared=events["unshare"],
        )


@dataclass
class Peaks:
    """The largest numbers of a machine, each by itself.

    Attributes:
        committed: pages of pseudo-physical memory of the VMs that were there together.
        pools, used: frames in their pools, and those of them in use.
        saved: frames that sharing saved: resident pages beyond the frames in use.
    """

    committed: int = 0
    pools: int = 0
    used: int = 0
    saved: int = 0

    def look(self, vms: Sequence[VirtualMachine]) -> None:
        """Take the machine's VMs as they are now into account."""
        used = sum(vm.pool.used for vm in vms)
        self.committed = max(self.committed, sum(vm.ram for vm in vms) >> 12)
        self.pools = max(self.pools, sum(vm.pool.size for vm in vms))
        self.used = max(self.used, used)
        self.saved = max(self.saved, sum(len(vm.p2m.resident()) for vm in vms) - used)
