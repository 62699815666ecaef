"""Contents: where those of a VM's pages come from and go to when there is no frame behind them.

The guest image and zeros come from the policies that populate; an evicted page's contents are with the policy that
keeps them.  A policy goes on keeping its copy while the page is resident again, because a page that is not stored to
can be evicted once more without being written.
"""

from __future__ import annotations

from emu.addr import NO_FRAME, PAGE_SIZE
from emu.dmm.interface import Keeper
from emu.dmm.p2m import DIRTY, P2M, RESIDENT, PageType
from emu.dmm.policy import Policy, PolicyFault
from emu.errors import EmuError


class Contents:
    """The contents of one VM's pages that are not in frames.

    Args:
        vm: the VM's name.
        policies: in force, in the order in which they are asked.
        p2m: of the VM.

    Attributes:
        in_flight: the gfns that a policy is asked about at this moment, and the frames taken for them (NO_FRAME
            while a policy stores a page).
    """

    def __init__(self, vm: str, policies: list[Policy], p2m: P2M) -> None:
        self._vm = vm
        self._policies = policies
        self._p2m = p2m
        self._keepers: dict[int, Keeper] = {}
        self.in_flight: dict[int, int] = {}

    def fetch(self, gfn: int, mfn: int) -> bytes:
        """What belongs into ``mfn``, the frame taken for ``gfn``: PAGE_SIZE bytes.

        Raises:
            PolicyFault: a policy hands out something else.
            EmuError: no policy has contents for it.
        """
        kind = self._p2m.type(gfn)
        contents = None
        self.in_flight[gfn] = mfn
        try:
            if kind is PageType.EVICTED:
                keeper = self._keepers[gfn]
                contents, giver = keeper.restore(gfn), keeper.name
            else:
                for policy in self._policies:
                    contents = policy.populate(gfn, kind)
                    if contents is not None:
                        giver = policy.name
                        break
        finally:
            del self.in_flight[gfn]
        if contents is None:
            raise EmuError(f"{self._vm}: no policy populates gfn {gfn:#x}, which is {kind.name}")
        if len(contents) != PAGE_SIZE:
            raise PolicyFault(giver, gfn, f"hands out {len(contents)} bytes instead of {PAGE_SIZE}")
        return contents

    def keep(self, gfn: int, contents: bytes, keeper: Keeper) -> None:
        """Have ``keeper`` keep the contents of ``gfn``, and nobody else."""
        self.in_flight[gfn] = NO_FRAME
        try:
            keeper.keep(gfn, contents)
        finally:
            del self.in_flight[gfn]
        if self._keepers.get(gfn) is not keeper:
            self.forget(gfn)
            self._keepers[gfn] = keeper

    def forget(self, gfn: int) -> None:
        """The copy of ``gfn`` that some policy keeps, if one does, is of no use any more."""
        keeper = self._keepers.pop(gfn, None)
        if keeper is not None:
            if self._p2m.type(gfn) in RESIDENT:
                self._p2m.mark(gfn, DIRTY)
            keeper.release(gfn)

    def kept(self, keeper: Keeper | None = None) -> list[int]:
        """The gfns of which ``keeper``, or any policy, keeps a copy."""
        return [gfn for gfn, policy in self._keepers.items() if keeper is None or policy is keeper]

    def frames_in_flight(self) -> list[int]:
        """Frames taken from the pool for pages whose contents a policy is fetching at this moment."""
        return [mfn for mfn in self.in_flight.values() if mfn != NO_FRAME]
