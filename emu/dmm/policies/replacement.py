"""Page replacement: what decides which page to evict, and what it may ask.

An algorithm is told which pages come and go, and may ask :class:`Pages` about them.  It sees no references as such:
as on a real machine there is an accessed bit for each page, which somebody has to clear, at the price of a TLB flush.
The algorithms are in :mod:`emu.dmm.policies.victims`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

Skip = Callable[[int], bool]


class Pages(Protocol):
    """What an algorithm may ask about the resident pages."""

    @property
    def now(self) -> int:
        """Virtual time in ns."""

    def accessed(self, gfn: int) -> bool:
        """Whether ``gfn`` was accessed since that was last cleared."""

    def dirty(self, gfn: int) -> bool:
        """Whether ``gfn`` differs from the copy that a store or the guest image has, if there is one."""

    def take_accessed(self, gfns: Sequence[int]) -> Sequence[bool]:
        """What :meth:`accessed` is for each of ``gfns``, and forget it: one call, because each costs a TLB flush."""


class Victims:
    """Base of all algorithms.

    Args:
        pages: the resident pages.

    Attributes:
        name: what VICTIMS calls it.
        period: virtual time in ns between two calls of :meth:`tick`; None when it needs none.
    """

    name: str
    period: int | None = None

    def __init__(self, pages: Pages) -> None:
        self._pages = pages

    def entered(self, gfn: int) -> None:
        """``gfn`` has become resident."""
        raise NotImplementedError

    def left(self, gfn: int) -> None:
        """``gfn``, which had entered, is not resident any more, for whatever reason."""
        raise NotImplementedError

    def victim(self, skip: Skip) -> int | None:
        """The page to evict next.  It counts as resident until :meth:`left` is called.

        Args:
            skip: tells for a gfn whether it cannot be evicted now.

        Returns:
            Its gfn; None when every page is to be skipped.
        """
        raise NotImplementedError

    def tick(self) -> None:
        """Another ``period`` has passed."""
