"""Policy: the one interface that every memory policy is written against.

A policy decides and the DMM acts: a policy calls the methods of :class:`emu.dmm.interface.DmmInterface` and never
touches a translation.  Policies of one VM form a list; the DMM asks them in the order in which they were attached, and
takes the first answer.  Every method below has a default that says "not my business", so a policy overrides
what it is about.
"""

from __future__ import annotations

from emu.dmm.interface import DmmInterface
from emu.dmm.p2m import Intent, PageType
from emu.errors import EmuError

ZERO_PAGE = bytes(4096)


class PolicyFault(EmuError):
    """A policy does not do what its interface promises.

    Attributes:
        policy: its name.
        gfn: the page that it was asked about.
    """

    def __init__(self, policy: str, gfn: int, what: str) -> None:
        super().__init__(f"policy {policy}, asked about gfn {gfn:#x}, {what}")
        self.policy = policy
        self.gfn = gfn


class Policy:
    """Base of all memory policies.

    Attributes:
        name: what ``--policy`` calls it.
        dmm: of the VM that it is attached to.
        files: paths of files that it reads or writes; nothing else may write to them.
    """

    name: str
    dmm: DmmInterface
    files: tuple[str, ...] = ()

    def attach(self, dmm: DmmInterface) -> None:
        """The policy is in force from now on."""
        self.dmm = dmm

    def detach(self) -> None:
        """The policy is no longer asked; it must leave nothing behind that only it could settle."""

    def forget_names(self) -> None:
        """From now on this process can open, create and remove no file: what has a name only for now loses it."""

    def populate(self, gfn: int, kind: PageType) -> bytes | None:
        """The contents of a page without a frame (EMPTY, IMAGE) that was touched, PAGE_SIZE bytes; None to pass."""
        return None

    def denied(self, gfn: int, intent: Intent) -> bool:
        """The guest wants a right on a resident page that the DMM does not grant.

        Returns:
            True when the policy has settled it, by ``dmm.protect`` or otherwise: the right is granted now.
        """
        return False

    def entered(self, gfn: int) -> None:
        """``gfn`` has become resident."""

    def left(self, gfn: int) -> None:
        """``gfn`` is not resident any more."""

    def extend_pool(self, frames: int) -> None:
        """A page needs a frame and none is spare: let the pool grow by up to ``frames``, or do nothing."""

    def make_room(self, frames: int) -> None:
        """The pool has too few spare frames for a page, or to shrink: free up to ``frames`` more, or do nothing."""

    def keep(self, gfn: int, contents: bytes) -> None:
        """Keep the contents of a page that this policy evicts (:meth:`emu.dmm.interface.DmmInterface.evict`)."""
        raise NotImplementedError(f"policy {self.name} evicts but keeps nothing")

    def restore(self, gfn: int) -> bytes:
        """What :meth:`keep` got; it stays kept, for a page that nobody stores to is evicted again without a copy."""
        raise NotImplementedError(f"policy {self.name} evicts but restores nothing")

    def release(self, gfn: int) -> None:
        """What :meth:`keep` got is not needed any more."""

    def statistics(self) -> dict[str, int]:
        """Numbers about what it has done, for summaries."""
        return {}

    def remarks(self) -> list[str]:
        """What people should be told at the end of a run, a line each."""
        return []

    def deadline(self) -> int | None:
        """Virtual time in ns of the policy's next :meth:`epoch`; None for never.  Asked again after each epoch."""
        return None

    def epoch(self, now: int) -> None:
        """The deadline has come."""
