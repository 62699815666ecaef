"""A guest of a few instructions, driven access by access, for tests that need no guest of their own.

Its tables are part of its image and lie in guest memory like everything else, so that a test can move, protect and
evict them too.  Each access runs through the real engine, its TLB and the paging architecture.
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
)
from emu.machine.vm import Stop, VirtualMachine

CODE = 1  # gfn of the instructions
TABLES = range(2, 6)  # gfns of the tables: one for each level, the highest first
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


class Stub:
    """The guest in a VM.

    Args:
        vm: without a guest; its RAM is mapped twice, at gva 0 and at gva page ALIASES.
        mode: a name in MODES.
    """

    def __init__(self, vm: VirtualMachine, mode: str) -> None:
        self.vm = vm
        self.mode = MODES[mode]
        self.tables = list(TABLES)[-self.mode.levels :] if self.mode.levels else []
        self.image = self._image()
        vm.boot(Guest("stub", "test", self.image, self._start))

    # --- set-up ---

    def _image(self) -> GuestImage:
        image = GuestImage()
        code = bytearray()
        self._entry = {}
        for name, text in _ROUTINES.items():
            self._entry[name] = CODE * PAGE_SIZE + len(code)
            code += bytes.fromhex(text)
        image.add(CODE * PAGE_SIZE, bytes(code))
        for above, below in zip(self.tables, self.tables[1:], strict=False):
            rights = _P if self.mode.name == "pae" and above == self.tables[0] else _BRANCH
            image.add(above * PAGE_SIZE, (below * PAGE_SIZE | rights).to_bytes(self.mode.entry, "little"))
        if self.tables:
            for gfn in range(self.vm.ram // PAGE_SIZE):
                for page in (gfn, ALIASES + gfn):
                    image.add(self.entry_gpa(page), self.leaf(gfn).to_bytes(self.mode.entry, "little"))
        return image

    def _start(self, cpu: CpuState) -> None:
        long_mode = bool(self.mode.efer & EFER_LMA)
        for segment in (cpu.ds, cpu.es, cpu.ss, cpu.fs, cpu.gs):
            segment.set(16, 0, 0xFFFF_FFFF, 1 << 22 | _SEGMENT)
        cpu.cs.set(8, 0, 0xFFFF_FFFF, _CODE_64 if long_mode else _CODE_32)
        cpu.cr4, cpu.efer = self.mode.cr4, self.mode.efer
        cpu.cr3 = self.tables[0] * PAGE_SIZE if self.tables else 0
        cpu.cr0 = CR0_ET | CR0_PE | (CR0_PG | CR0_WP if self.tables else 0)

    # --- what is where ---

    def leaf(self, gfn: int, rights: int = _BRANCH) -> int:
        """An entry that maps ``gfn``, neither accessed nor dirty."""
        return gfn * PAGE_SIZE | rights

    def entry_gpa(self, page: int) -> int:
        """Where the entry of gva page ``page`` lies."""
        return self.tables[-1] * PAGE_SIZE + page * self.mode.entry

    # --- what it does ---

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

    def reload(self) -> None:
        """Load CR3 with its own value."""
        self._run(self._entry["reload"])
