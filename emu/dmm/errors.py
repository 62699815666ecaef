"""What the DMM cannot do, and why: each error names the VM, and the page where there is one."""

from __future__ import annotations

from emu.errors import EmuError


class OutOfFrames(EmuError):
    """A page needs a frame, the pool has none, and no policy can make room.

    Attributes:
        vm: name of the VM.
        gfn: the page.
        pool: frames in its pool.
    """

    def __init__(self, vm: str, gfn: int, pool: int) -> None:
        super().__init__(
            f"{vm}: all {pool} frames of the pool are in use and no policy makes room for gfn {gfn:#x}; "
            "a larger --pool or a policy that evicts would help"
        )
        self.vm = vm
        self.gfn = gfn
        self.pool = pool


class NoProgress(OutOfFrames):
    """Policies take pages away faster than one instruction can have them all: it never completes."""

    def __init__(self, vm: str, gfn: int, pool: int) -> None:
        super().__init__(vm, gfn, pool)
        self.args = (
            f"{vm}: the guest makes no progress: one instruction needs more pages at a time than it gets of the {pool} "
            f"frames of the pool, last gfn {gfn:#x}; a larger --pool would help",
        )


class NotEnoughSpare(EmuError):
    """A pool cannot shrink as far as was asked; it has not changed.

    Attributes:
        vm: name of the VM.
        wanted, spare: frames to give up, frames that could be.
        pinned: the pages that no policy may evict.
    """

    def __init__(self, vm: str, wanted: int, spare: int, pinned: list[int]) -> None:
        why = f"{len(pinned)} pages are pinned, the first is gfn {pinned[0]:#x}" if pinned else "no policy makes room"
        super().__init__(f"{vm}: cannot give up {wanted} frames: {spare} are spare and {why}")
        self.vm = vm
        self.wanted = wanted
        self.spare = spare
        self.pinned = pinned


class PagePinned(EmuError):
    """A page that somebody pinned cannot lose its frame or its contents.

    Attributes:
        vm: name of the VM.
        gfn: the page.
    """

    def __init__(self, vm: str, gfn: int) -> None:
        super().__init__(f"{vm}: gfn {gfn:#x} is pinned")
        self.vm = vm
        self.gfn = gfn


class CannotRetire(EmuError):
    """A machine frame cannot be taken out of service now; nothing has changed.

    Attributes:
        mfn: the frame.
    """

    def __init__(self, mfn: int, why: str) -> None:
        super().__init__(f"mfn {mfn:#x} cannot be taken out of service: {why}")
        self.mfn = mfn
