"""A VM whose keeper of pages can be made to fail, for the tests of what the DMM does."""

from __future__ import annotations

from emu.addr import PAGE_SIZE
from emu.dmm.interface import DmmInterface
from emu.dmm.p2m import Intent, PageType
from emu.dmm.policies.demand import DemandPaging
from emu.dmm.policy import Policy
from emu.engine import events
from emu.machine.machine import Machine
from emu.machine.vm import VirtualMachine
from tests.dmm.stub import DATA, Stub

GFNS, POOL, FREE = 24, 12, 4


class Keeper(Policy):
    """Keeps pages; each of its answers can be made to fail."""

    name = "keeper"

    def __init__(self) -> None:
        self.kept: dict[int, bytes] = {}
        self.fails: set[str] = set()
        self.victims = range(0)

    def _answer(self, question: str) -> None:
        if question in self.fails:
            raise RuntimeError(question)

    def attach(self, dmm: DmmInterface) -> None:
        super().attach(dmm)
        self._answer("attach")

    def detach(self) -> None:
        self._answer("detach")

    def populate(self, gfn: int, kind: PageType) -> None:
        self._answer("populate")

    def denied(self, gfn: int, intent: Intent) -> bool:
        self._answer("denied")
        return False

    def make_room(self, frames: int) -> None:
        self._answer("make_room")
        resident = [gfn for gfn in self.victims if self.dmm.p2m.type(gfn) == PageType.RAM]
        for gfn in resident[:frames]:
            self.dmm.evict(gfn, self)

    def keep(self, gfn: int, contents: bytes) -> None:
        self._answer("keep")
        self.kept[gfn] = contents

    def restore(self, gfn: int) -> bytes:
        self._answer("restore")
        return self.kept[gfn]

    def release(self, gfn: int) -> None:
        del self.kept[gfn]


class Bench:
    """A VM with a stub guest, a keeper and demand paging, audited after each change."""

    def __init__(self, mmu: str = "shadow", mode: str = "4level") -> None:
        self.machine = Machine((1 + (200 if mmu == "shadow" else 0) + POOL + FREE) * PAGE_SIZE)
        tables = 200 if mmu == "shadow" else 0
        self.vm = VirtualMachine(self.machine.shared, "vm", 0, GFNS * PAGE_SIZE, POOL, mmu, tables)
        self.stub = Stub(self.vm, mode)
        self.dmm, self.p2m, self.pool = self.vm.dmm, self.vm.p2m, self.vm.pool
        self.keeper = Keeper()
        self.dmm.attach(self.keeper)
        self.dmm.attach(DemandPaging(self.stub.image))
        self.vm.audit_every_change()
        self.seen: list[events.Event] = []
        self.vm.events.listen(self.seen.append)

    def fill_pool(self) -> None:
        for gfn in range(DATA, GFNS):
            if self.pool.spare:
                self.vm.memory.write(gfn * PAGE_SIZE + 8, bytes([gfn]))

    def state(self) -> tuple[object, ...]:
        """All that a failed operation must leave as it was; tables aside, where a walk may set bits."""
        frames = self.pool.used_frames() - {self.p2m.mfn(table) for table in self.stub.tables}
        contents = tuple(self.vm.machine.memory.pages[mfn].tobytes() for mfn in sorted(frames))
        entries = self.p2m.entries[:GFNS].tobytes()
        return (entries, self.pool.used_frames(), self.pool.spare, contents, dict(self.keeper.kept))
