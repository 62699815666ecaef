"""The kinds of memory events: one class a kind, and nothing else to write for a new one.

What each says, and when it fires, is its docstring.  :mod:`emu.engine.eventkind` says what a class must be like,
:mod:`emu.engine.eventlog` how events get from where they happen to a listener.
"""

from __future__ import annotations

from emu.engine.eventkind import Event as Event  # for those who import kinds
from emu.engine.eventkind import defined, event


def _rights(bits: int) -> str:
    return "".join(letter if bits >> i & 1 else "-" for i, letter in enumerate("rwx"))


@event("page-fault")
class PageFault(Event):
    """The guest is about to get a page fault (#PF), before its handler runs.

    Attributes:
        gva: the faulting address, which is CR2.
        error: the error code (SDM vol. 3A, 4.7).
        rip: of the faulting instruction.
        cpl: privilege level it ran at.
    """

    gva: int
    error: int
    rip: int
    cpl: int

    def sentence(self) -> str:
        what = "fetch from" if self.error & 16 else "write to" if self.error & 2 else "read of"
        why = "reserved bit set" if self.error & 8 else "not permitted" if self.error & 1 else "not present"
        return f"guest page fault: {what} {self.gva:#x} at rip {self.rip:#x}, CPL {self.cpl}: {why}"


@event("exception")
class ExceptionDelivery(Event):
    """An exception or software interrupt is delivered to the guest.

    Attributes:
        vector: 0 to 255.
        error: error code, -1 when the vector has none.
        rip: the return address that the handler gets.
        cpl: privilege level before.
        software: 1 for INT n, INT3, INTO.
    """

    vector: int
    error: int
    rip: int
    cpl: int
    software: int

    def sentence(self) -> str:
        error = "" if self.error < 0 else f" with error code {self.error:#x}"
        kind = "software interrupt" if self.software else "exception"
        return f"{kind} {self.vector}{error} delivered at rip {self.rip:#x}, CPL {self.cpl}"


@event("interrupt")
class InterruptDelivery(Event):
    """A hardware interrupt is delivered to the guest.

    Attributes:
        vector: 0 to 255.
        rip: of the interrupted instruction.
        cpl: privilege level before.
    """

    vector: int
    rip: int
    cpl: int

    def sentence(self) -> str:
        return f"hardware interrupt {self.vector} delivered at rip {self.rip:#x}, CPL {self.cpl}"


@event("cr3-switch")
class Cr3Switch(Event):
    """The guest runs on other page tables than before, seen at its first access under them.

    Attributes:
        before, after: CR3.
        mode: paging mode now: 0 none, 1 32-bit, 2 PAE, 3 4-level.
    """

    before: int
    after: int
    mode: int

    def sentence(self) -> str:
        mode = ("no paging", "32-bit paging", "PAE paging", "4-level paging")[self.mode]
        return f"CR3 switched from {self.before:#x} to {self.after:#x} ({mode})"


@event("table-write")
class TableWrite(Event):
    """The guest wrote into one of its page tables and the write was trapped (shadow mode only).

    Attributes:
        gpa: where it wrote.
        size: bytes, 1 to 8.
        before, after: contents, ``size`` bytes.
        zapped: shadow entries that were dropped by it.
    """

    gpa: int
    size: int
    before: int
    after: int
    zapped: int

    def sentence(self) -> str:
        return (
            f"page-table write at gpa {self.gpa:#x}, {self.size} bytes: {self.before:#x} became {self.after:#x}, "
            f"{self.zapped} shadow entries dropped"
        )


@event("shadow-fill")
class ShadowFill(Event):
    """A shadow entry was made for a guest page (shadow mode only).

    Attributes:
        gva: page that the guest touched.
        gfn, mfn: what it leads to.
        entry: the shadow entry, a real x86 page-table entry.
    """

    gva: int
    gfn: int
    mfn: int
    entry: int

    def sentence(self) -> str:
        rights = "writable" if self.entry & 2 else "write-trapped" if self.entry & 512 else "read-only"
        return f"shadow entry for gva {self.gva:#x} filled: gfn {self.gfn:#x} is mfn {self.mfn:#x}, {rights}"


@event("shadow-zap")
class ShadowZap(Event):
    """A shadow entry was dropped (shadow mode only).

    Attributes:
        mfn: the frame that it mapped.
        entry: what it was.
        table: the mfn of the shadow table that held it.
        index: its index there.
    """

    mfn: int
    entry: int
    table: int
    index: int

    def sentence(self) -> str:
        return f"shadow entry {self.index} of table mfn {self.table:#x} dropped: it mapped mfn {self.mfn:#x}"


@event("dmm-fault")
class DmmFault(Event):
    """The guest touched a gfn whose mapping did not allow it, and the DMM settled that.  No guest ever sees this.

    Attributes:
        gfn: what was touched.
        intent: 1 read, 2 write, 4 execute.
        cause: page type before (:class:`emu.dmm.p2m.PageType`).
        mfn: the frame behind it now.
    """

    gfn: int
    intent: int
    cause: int
    mfn: int

    def sentence(self) -> str:
        how = {1: "demand-zero", 2: "rights", 3: "swap-in", 4: "demand-load", 6: "shared"}[self.cause]
        return f"DMM fault ({how}): gfn {self.gfn:#x} wanted {_rights(self.intent)}, now in mfn {self.mfn:#x}"


@event("remap")
class Remap(Event):
    """A gfn moved to another frame while the guest runs.

    Attributes:
        gfn: what moved.
        before, after: its mfn.
    """

    gfn: int
    before: int
    after: int

    def sentence(self) -> str:
        return f"gfn {self.gfn:#x} moved from mfn {self.before:#x} to mfn {self.after:#x}"


@event("protect")
class Protect(Event):
    """The DMM changed its rights on a gfn.

    Attributes:
        gfn: which.
        before, after: rights: 1 read, 2 write, 4 execute.
    """

    gfn: int
    before: int
    after: int

    def sentence(self) -> str:
        return f"rights on gfn {self.gfn:#x} changed from {_rights(self.before)} to {_rights(self.after)}"


@event("evict")
class Evict(Event):
    """A gfn lost its frame to make room; its contents can be had again.

    Attributes:
        gfn: which.
        mfn: the frame that it had.
        became: its page type now (:class:`emu.dmm.p2m.PageType`): EVICTED when a policy keeps the contents, EMPTY when
            they were zeros, IMAGE when they were still those of the guest image.
        stored: 1 when the contents had to be stored, 0 when a copy of them was there already or none is needed.
    """

    gfn: int
    mfn: int
    became: int
    stored: int

    def sentence(self) -> str:
        what = {1: "all zeros", 3: "stored" if self.stored else "unchanged since it was stored", 4: "still the image's"}
        return f"gfn {self.gfn:#x} evicted from mfn {self.mfn:#x}: {what[self.became]}"


@event("pool-resize")
class PoolResize(Event):
    """The VM's pool of machine frames grew or shrank.

    Attributes:
        before, after: frames.
    """

    before: int
    after: int

    def sentence(self) -> str:
        return f"pool resized from {self.before} to {self.after} frames"


@event("discard")
class Discard(Event):
    """The guest gave up a page (its balloon inflated, or it reported the page free): the contents are gone.

    Attributes:
        gfn: which; it reads as zeros from now on.
        mfn: the frame that is free now.
    """

    gfn: int
    mfn: int

    def sentence(self) -> str:
        return f"gfn {self.gfn:#x} discarded, mfn {self.mfn:#x} is free"


@event("share")
class Share(Event):
    """A gfn gave up its frame for another one with the same contents, which it shares from now on.

    Attributes:
        gfn: which.
        before: the frame that it had.
        after: the frame that it shares.
        users: how many gfns, of all VMs, share that now.
    """

    gfn: int
    before: int
    after: int
    users: int

    def sentence(self) -> str:
        others = self.users - 1
        return f"gfn {self.gfn:#x} leaves mfn {self.before:#x} and shares mfn {self.after:#x} with {others} others"


@event("unshare")
class Unshare(Event):
    """A shared gfn has a frame of its own again, because it is about to be written to (copy-on-write break).

    Attributes:
        gfn: which.
        before: the frame that it shared.
        after: its own; the same frame where nobody else used that any more.
    """

    gfn: int
    before: int
    after: int

    def sentence(self) -> str:
        if self.before == self.after:
            return f"gfn {self.gfn:#x} is the last user of shared mfn {self.before:#x} and has it for its own now"
        return f"gfn {self.gfn:#x} leaves shared mfn {self.before:#x} for mfn {self.after:#x} of its own"


@event("balloon-inflate")
class BalloonInflate(Event):
    """The guest put a page into its balloon.

    Attributes:
        gfn: which; its contents are gone.
    """

    gfn: int

    def sentence(self) -> str:
        return f"gfn {self.gfn:#x} went into the balloon"


@event("balloon-deflate")
class BalloonDeflate(Event):
    """The guest took a page out of its balloon.

    Attributes:
        gfn: which.
    """

    gfn: int

    def sentence(self) -> str:
        return f"gfn {self.gfn:#x} came out of the balloon"


@event("retire")
class Retire(Event):
    """A machine frame was taken out of service for ever.

    Attributes:
        mfn: which.
        replacement: the frame that does its work now, the same one when it had none.
    """

    mfn: int
    replacement: int

    def sentence(self) -> str:
        moved = "" if self.mfn == self.replacement else f", mfn {self.replacement:#x} stands in for it"
        return f"mfn {self.mfn:#x} taken out of service{moved}"


@event("pool-refused")
class PoolRefused(Event):
    """A policy wanted the pool to have another size, and it cannot: nothing has changed.

    Attributes:
        size, wanted: frames that it has, and was to have.
    """

    size: int
    wanted: int

    def sentence(self) -> str:
        return f"pool cannot be resized from {self.size} to {self.wanted} frames"


EVENT_TYPES = defined()
BY_NAME = {kind.NAME: kind for kind in EVENT_TYPES}
