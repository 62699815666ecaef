"""The largest numbers of a fleet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from emu.machine.vm import VirtualMachine


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
