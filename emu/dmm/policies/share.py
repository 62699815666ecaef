"""Sharing: finds identical pages, within a VM and across VMs, and lets them use one frame until one is written to.

As Linux's KSM does, each VM's scanner goes over its resident pages at a set rate.  Two tables serve all VMs of the
machine: the stable one has the frames that are shared, whose contents cannot change; the other has hints, pages
that did not change between two looks at them, and is emptied once every scanner has been all round.  What is found
by its hash is compared byte for byte before it is merged (:meth:`emu.dmm.interface.DmmInterface.share`).  Breaking the
sharing is the DMM's own business, so switching this policy off leaves shared what is shared.

Sources: Arcangeli, Eidus, Wright: "Increasing memory density by using KSM", Linux Symposium 2009; Waldspurger: "Memory
resource management in VMware ESX Server", OSDI 2002, section 4.
"""

from __future__ import annotations

from array import array
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
from xxhash import xxh3_64_intdigest

from emu.addr import PAGE_SHIFT
from emu.dmm.interface import DmmInterface
from emu.dmm.p2m import PageType
from emu.dmm.policy import Policy
from emu.engine.ram import sparse_zeros

if TYPE_CHECKING:
    from emu.boot.image import GuestImage

INTERVAL_MS = 10  # virtual ms between two epochs
_VM_SHIFT = 48


class _Tables:
    """What the scanners of a machine know together.

    Attributes:
        stable: hash to the mfn of a shared frame; ``hashes`` is its inverse.
        hints: hash to a page: VM number << 48 | gfn.
        round: numbers of the VMs that have been all round since the hints were emptied.
    """

    def __init__(self) -> None:
        self.stable: dict[int, int] = {}
        self.hashes: dict[int, int] = {}
        self.hints: dict[int, int] = {}
        self.round: set[int] = set()

    def add(self, digest: int, mfn: int) -> None:
        """``mfn`` is a shared frame; what was known of the hash, or of the frame before it was freed, is not so now."""
        if digest in self.stable:
            self.remove(digest)
        if mfn in self.hashes:
            self.remove(self.hashes[mfn])
        self.stable[digest] = mfn
        self.hashes[mfn] = digest

    def remove(self, digest: int) -> None:
        """The frame with this hash is shared no more, or has other contents."""
        del self.hashes[self.stable.pop(digest)]


@dataclass(frozen=True)
class Counters:
    """What became of a VM's pages, in the words of Linux's /sys/kernel/mm/ksm.

    Attributes:
        shared: shared frames that its pages use.
        sharing: its pages that use them beyond one each: what sharing saves, if no other VM is there.
        unshared: pages looked at in the last full scan that are like no other.
        volatile: pages looked at in the last full scan that had changed since the look before.
        full_scans: times that it has been all round.
    """

    shared: int
    sharing: int
    unshared: int
    volatile: int
    full_scans: int


class Share(Policy):
    """Sharing of identical pages.

    Args:
        rate: pages to look at in a virtual millisecond.
    """

    name = "share"

    def __init__(self, image: GuestImage, rate: int = 2) -> None:
        self._rate = rate
        self._scan = array("q")  # gfns still to be looked at, the next one last
        self._unshared = self._volatile = 0
        self._last = (0, 0)
        self.full_scans = 0
        self._next = 0

    def attach(self, dmm: DmmInterface) -> None:
        super().attach(dmm)
        peers = self.dmm.peers(Share)
        self._tables: _Tables = peers[0]._tables if peers else _Tables()
        self._bytes = memoryview(dmm.memory.pages.reshape(-1).data)
        self._seen = sparse_zeros(len(dmm.p2m), np.uint64)  # each page's hash at the last look
        self._next = dmm.now + INTERVAL_MS * 1_000_000

    def deadline(self) -> int | None:
        return self._next

    def epoch(self, now: int) -> None:
        self._next = now + INTERVAL_MS * 1_000_000
        self.scan(self._rate * INTERVAL_MS)

    def counters(self) -> Counters:
        """What the scanner has found."""
        p2m = self.dmm.p2m
        gfns = p2m.resident()
        entries = p2m.entries[gfns]
        mfns = entries[entries >> 4 & 15 == PageType.SHARED] >> PAGE_SHIFT
        frames = len(np.unique(mfns))
        return Counters(frames, len(mfns) - frames, *self._last, self.full_scans)

    def statistics(self) -> dict[str, int]:
        return asdict(self.counters())

    def scan(self, pages: int) -> None:
        """Look at the next ``pages`` resident pages, but at none twice."""
        looked: set[int] = set()
        while len(looked) < pages:
            left = self._scan or array("q", self.dmm.p2m.resident()[::-1].tobytes())
            if not left or left[-1] in looked:
                return
            self._scan = left
            gfn = left.pop()
            looked.add(gfn)
            self._look(gfn)
            if not self._scan:
                self._end_scan()

    def _end_scan(self) -> None:
        self._last = self._unshared, self._volatile
        self._unshared = self._volatile = 0
        self.full_scans += 1
        tables = self._tables
        tables.round.add(self.dmm.index)
        if tables.round.issuperset([self.dmm.index, *(peer.dmm.index for peer in self.dmm.peers(Share))]):
            tables.hints.clear()
            tables.round.clear()
            for digest in [digest for digest, mfn in tables.stable.items() if not self.dmm.is_shared(mfn)]:
                tables.remove(digest)

    def _look(self, gfn: int) -> None:
        entry = self.dmm.p2m.entries.item(gfn)
        kind, mfn = entry >> 4 & 15, entry >> PAGE_SHIFT
        if kind == PageType.RAM:
            digest = self._hash(mfn)
            if not self._merge_with_stable(gfn, digest):
                self._merge_with_hint(gfn, digest)
        elif kind == PageType.SHARED and mfn not in self._tables.hashes:  # merged before, or moved to another frame
            digest = self._hash(mfn)
            if not self._merge_with_stable(gfn, digest):
                self._tables.add(digest, mfn)

    def _hash(self, mfn: int) -> int:
        return xxh3_64_intdigest(self._bytes[mfn << PAGE_SHIFT : mfn + 1 << PAGE_SHIFT])

    def _merge_with_stable(self, gfn: int, digest: int) -> bool:
        tables = self._tables
        mfn = tables.stable.get(digest)
        if mfn is None:
            return False
        if self.dmm.is_shared(mfn) and self.dmm.share(gfn, mfn):
            return True
        tables.remove(digest)  # if it is a shared frame yet, the next look at a page in it finds that
        return False

    def _merge_with_hint(self, gfn: int, digest: int) -> None:
        if self._seen.item(gfn) != digest:
            self._seen[gfn] = digest
            self._volatile += 1
            return
        dmm, tables = self.dmm, self._tables
        me = dmm.index << _VM_SHIFT | gfn
        hint = tables.hints.get(digest, me)
        if hint != me:
            mfn = dmm.shareable_frame(hint >> _VM_SHIFT, hint & (1 << _VM_SHIFT) - 1)
            if mfn is not None and dmm.share(gfn, mfn):
                tables.add(digest, mfn)
                del tables.hints[digest]
                return
        tables.hints[digest] = me
        self._unshared += 1
