"""A guest of a few instructions, driven access by access, for tests that need no guest of their own.

Its tables are part of its image and lie in guest memory like everything else, so that a test can move, protect and
evict them too.  Each access runs through the real engine, its TLB and the paging architecture.

In a VM with two processors each has its own TLB and registers, and pages as it likes: with tables of its own, or with
the same ones.
"""

from __future__ import annotations

from dataclasses import dataclass

from emu.addr import PAGE_SIZE
from emu.boot.guest import Guest
from emu.boot.image import GuestImage
from emu.engine.cpustate import (
    CR0_ET,
    CR0_PE,
    CR0_PG,
    CR0_WP,
    CR4_PAE,
    CR4_PSE,
    EFER_LMA,
    EFER_LME,
    EFER_NXE,
    CpuState,
    set_hflags_mode,
)
from emu.machine.vm import Stop, VirtualMachine
from tests.mmu.processors import only, start_all

CODE = 1  # gfn of the instructions
TABLES = range(2, 6)  # gfns of the tables: one for each level, the highest first
SECOND_TABLES = range(20, 24)  # the same for a second processor with tables of its own
DATA = 6  # the first gfn that the guest does not need itself
ALIASES = 256  # gva page of a second mapping of all gfns, which the guest may change

_P, _W, _U, _PS = 1, 2, 4, 1 << 7
_BRANCH = _P | _W | _U
_SEGMENT = 1 << 23 | 0x9300  # flat, 4 GiB: data
_CODE_32 = 1 << 23 | 1 << 22 | 0x9B00
_CODE_64 = 1 << 23 | 1 << 21 | 0x9B00

_ROUTINES = {
    "load": "8a07 f4",  # mov al, [rdi]; hlt
    "store": "8807 f4",  # mov [rdi], al; hlt
    "load4": "8b07 f4",  # mov eax, [rdi]; hlt
    "store4": "8907 f4",  # mov [rdi], eax; hlt
    "map": "8907 0f013e f4",  # mov [rdi], eax; invlpg [rsi]; hlt
    "flush": "0f013e f4",  # invlpg [rsi]; hlt
    "reload": "0f20d8 0f22d8 f4",  # mov rax, cr3; mov cr3, rax; hlt
}
HLT = 0xF4


@dataclass(frozen=True)
class Mode:
    """How the stub pages: its name, bytes of an entry, levels, and the control registers."""

    name: str
    entry: int
    levels: int
    cr4: int = 0
    efer: int = 0


MODES = {
    mode.name: mode
    for mode in (
        Mode("none", 0, 0),
        Mode("32", 4, 2, CR4_PSE),
        Mode("pae", 8, 3, CR4_PAE, EFER_NXE),
        Mode("4level", 8, 4, CR4_PAE, EFER_LME | EFER_LMA | EFER_NXE),
    )
}

SAME = "same"  # in place of a mode: the tables of the first processor


@dataclass(frozen=True)
class View:
    """How a processor pages: its mode, and the gfns of its tables, the highest first."""

    mode: Mode
    tables: list[int]


def _view(mode: str, tables: range) -> View:
    levels = MODES[mode].levels
    return View(MODES[mode], list(tables)[-levels:] if levels else [])


class Stub:
    """The guest in a VM.

    Args:
        vm: without a guest; its RAM is mapped twice, at gva 0 and at gva page ALIASES.
        mode: a name in MODES.
        second: what the second processor of a VM with two does: a name in MODES, or SAME for the very same tables.

    Attributes:
        cpu: the processor that makes the accesses.
        views: how each of them pages.
    """

    def __init__(self, vm: VirtualMachine, mode: str, second: str | None = None) -> None:
        self.vm = vm
        self.cpu = 0
        self.views = [_view(mode, TABLES)]
        if second is not None:
            self.views.append(self.views[0] if second == SAME else _view(second, SECOND_TABLES))
        self.image = self._image()
        vm.boot(Guest("stub", "test", self.image, self._start))
        for cpu in range(1, len(self.views)):
            self.start_again(cpu)

    # --- set-up ---

    def _image(self) -> GuestImage:
        image = GuestImage()
        code = bytearray()
        self._entry = {}
        for name, text in _ROUTINES.items():
            self._entry[name] = CODE * PAGE_SIZE + len(code)
            code += bytes.fromhex(text)
        image.add(CODE * PAGE_SIZE, bytes(code))
        for view in self.views:
            self._add_tables(image, view)
        return image

    def _add_tables(self, image: GuestImage, view: View) -> None:
        mode, tables = view.mode, view.tables
        for above, below in zip(tables, tables[1:], strict=False):
            rights = _P if mode.name == "pae" and above == tables[0] else _BRANCH
            image.add(above * PAGE_SIZE, (below * PAGE_SIZE | rights).to_bytes(mode.entry, "little"))
        for gfn in range(self.vm.ram // PAGE_SIZE if tables else 0):
            for page in (gfn, ALIASES + gfn):
                at = tables[-1] * PAGE_SIZE + page * mode.entry
                image.add(at, self.leaf(gfn).to_bytes(mode.entry, "little"))

    def _start(self, cpu: CpuState) -> None:
        mode, tables = self.mode, self.tables
        long_mode = bool(mode.efer & EFER_LMA)
        for segment in (cpu.ds, cpu.es, cpu.ss, cpu.fs, cpu.gs):
            segment.set(16, 0, 0xFFFF_FFFF, 1 << 22 | _SEGMENT)
        cpu.cs.set(8, 0, 0xFFFF_FFFF, _CODE_64 if long_mode else _CODE_32)
        cpu.cr4, cpu.efer = mode.cr4, mode.efer
        cpu.cr3 = tables[0] * PAGE_SIZE if tables else 0
        cpu.cr0 = CR0_ET | CR0_PE | (CR0_PG | CR0_WP if tables else 0)

    def start_again(self, cpu: int) -> None:
        """INIT and start-up of a processor that is not the first, which then pages as before."""
        processor, before = self.vm.processors[cpu], self.cpu
        processor.init()
        start_all(self.vm)
        self.cpu = cpu
        self._start(processor.registers)
        set_hflags_mode(processor.engine.env)
        self.cpu = before

    # --- what is where ---

    @property
    def mode(self) -> Mode:
        return self.views[self.cpu].mode

    @property
    def tables(self) -> list[int]:
        """The gfns of the tables that the processor uses."""
        return self.views[self.cpu].tables

    def entry_size(self, gfn: int) -> int:
        """Bytes of an entry, where ``gfn`` is a table of any processor; else 0."""
        return next((view.mode.entry for view in self.views if gfn in view.tables), 0)

    def leaf(self, gfn: int, rights: int = _BRANCH) -> int:
        """An entry that maps ``gfn``, neither accessed nor dirty."""
        return gfn * PAGE_SIZE | rights

    def entry_gpa(self, page: int) -> int:
        """Where the entry of gva page ``page`` lies."""
        return self.tables[-1] * PAGE_SIZE + page * self.mode.entry

    # --- what it does ---

    def on(self, cpu: int) -> Stub:
        """The same with processor ``cpu`` making the accesses from now on."""
        self.cpu = cpu
        only(self.vm, cpu)
        return self

    def _run(self, routine: int) -> None:
        self.vm.cpu.rip = routine
        assert self.vm.run() == Stop.HALTED, f"{self.vm.cpu.pc:#x} {self.vm.cpu.cr2:#x}"

    def load(self, gva: int) -> int:
        """The byte at ``gva``."""
        self.vm.cpu.rdi = gva
        self._run(self._entry["load"])
        return self.vm.cpu.rax & 0xFF

    def store(self, gva: int, value: int) -> None:
        """Change the byte at ``gva``."""
        self.vm.cpu.rdi, self.vm.cpu.rax = gva, value
        self._run(self._entry["store"])

    def load4(self, gva: int) -> int:
        """The four bytes at ``gva``, which may lie on two pages."""
        self.vm.cpu.rdi = gva
        self._run(self._entry["load4"])
        return self.vm.cpu.rax & 0xFFFF_FFFF

    def store4(self, gva: int, value: int) -> None:
        """Change the four bytes at ``gva``, which may lie on two pages."""
        self.vm.cpu.rdi, self.vm.cpu.rax = gva, value
        self._run(self._entry["store4"])

    def execute(self, gva: int) -> None:
        """Execute the HLT that the caller has put at ``gva``."""
        self._run(gva)

    def map(self, page: int, gfn: int, rights: int = _BRANCH) -> None:
        """Change the low half of the entry of gva page ``page``, and tell the processor."""
        cpu = self.vm.cpu
        cpu.rdi, cpu.rax, cpu.rsi = self.entry_gpa(page), self.leaf(gfn, rights), page * PAGE_SIZE
        self._run(self._entry["map"])

    def flush(self, page: int) -> None:
        """INVLPG of gva page ``page``."""
        self.vm.cpu.rsi = page * PAGE_SIZE
        self._run(self._entry["flush"])

    def reload(self) -> None:
        """Load CR3 with its own value."""
        self._run(self._entry["reload"])
