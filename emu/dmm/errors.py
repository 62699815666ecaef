"""What the DMM cannot do, and why: each error names the VM, and the page where there is one."""

from __future__ import annotations

from emu.errors import EmuError


class DmmError(EmuError):
    """Base of them all."""


class OutOfFrames(DmmError):
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


class NotEnoughSpare(DmmError):
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


class PagePinned(DmmError):
    """A page that somebody pinned cannot lose its frame or its contents.

    Attributes:
        vm: name of the VM.
        gfn: the page.
    """

    def __init__(self, vm: str, gfn: int) -> None:
        super().__init__(f"{vm}: gfn {gfn:#x} is pinned")
        self.vm = vm
        self.gfn = gfn


class CannotRetire(DmmError):
    """A machine frame cannot be taken out of service now; nothing has changed.

    Attributes:
        mfn: the frame.
    """

    def __init__(self, mfn: int, why: str) -> None:
        super().__init__(f"mfn {mfn:#x} cannot be taken out of service: {why}")
        self.mfn = mfn


class StoreError(DmmError):
    """A store cannot do what it was asked for.

    Attributes:
        vm: name of the VM.
        gfn: the page.
    """

    def __init__(self, vm: str, gfn: int, what: str) -> None:
        super().__init__(f"{vm}: the store of evicted pages, asked about gfn {gfn:#x}: {what}")
        self.vm = vm
        self.gfn = gfn


class StoreFull(StoreError):
    """Its limit is reached; a larger one would help."""


class StoreCorrupt(StoreError):
    """What is stored is not what was put there."""


class StoreFailed(StoreError):
    """The host refuses to read or write the file; the message has its reason."""


class CompressionFailed(StoreError):
    """The compression library refuses a page."""
