"""A VM whose memory and CPU state a test sets by hand, and into which it delivers single events.

The first megabyte is mapped to itself.  Stack pages are never touched by the bench itself, so they are not resident
and the first delivery to each has to ask the DMM.
"""

from __future__ import annotations

import ctypes
import struct

from keystone import KS_ARCH_X86, KS_MODE_16, KS_MODE_32, KS_MODE_64, Ks

from emu.boot.guest import Guest
from emu.boot.image import GuestImage
from emu.cpu import probes
from emu.dmm.p2m import Intent
from emu.engine import cpustate
from emu.engine.events import Event
from emu.engine.vectors import EXCEPTION, HARDWARE, SOFTWARE
from emu.machine.vm import Stop
from emu.mmu.walk import NEED
from emu.session import boot_vm

GDT, IDT, TSS, LDT, TASK = 0x1000, 0x2000, 0x3000, 0x3400, 0x3800
CODE = 0x8000  # where code is put
HANDLER = 0x9000  # where gates lead, plus 16 times the vector
STACK0, STACK3, STACK_TSS = 0x40000, 0x50000, 0x60000  # stack tops: ring 0, ring 3, from the TSS
TABLES = 0x10000  # page tables

CODE0, DATA0, CODE3, DATA3, TSS_SELECTOR, SPARE = 0x08, 0x10, 0x1B, 0x23, 0x28, 0x40
PRESENT = 1 << 15
CODE_32 = 0xC09B00  # G, D, code, readable, accessed
CODE_16 = 0x009B00
CODE_64 = 0xA09B00
DATA_32 = 0xC09300
DATA_16 = 0x009300
RING3 = 3 << 13
CONFORMING = 1 << 10
TSS_32, TSS_16 = 9, 1
BUSY = 1 << 9
INTERRUPT_32, TRAP_32, INTERRUPT_16, TRAP_16, TASK_GATE = 14, 15, 6, 7, 5

IF, TF, DF, NT, RF, VM, AC, IOPL3 = 1 << 9, 1 << 8, 1 << 10, 1 << 14, 1 << 16, 1 << 17, 1 << 18, 3 << 12

__all__ = ["EXCEPTION", "HARDWARE", "SOFTWARE", "Bench"]


def assemble(source: str, bits: int, address: int = CODE) -> bytes:
    mode = {16: KS_MODE_16, 32: KS_MODE_32, 64: KS_MODE_64}[bits]
    return bytes(Ks(KS_ARCH_X86, mode).asm(source, address)[0])


def descriptor(base: int, limit: int, attributes: int) -> bytes:
    """A segment descriptor; ``attributes`` is its upper half without base and limit, DPL 0 if not said otherwise."""
    low = (limit & 0xFFFF) | (base & 0xFFFF) << 16
    high = (base >> 16 & 0xFF) | (base & 0xFF00_0000) | (limit & 0xF0000) | attributes
    return struct.pack("<II", low, high)


class Bench:
    """See the module's docstring.

    Attributes:
        needs: gfns that deliveries asked the DMM for, in order.
        events: everything that was recorded.
    """

    def __init__(self, mmu: str = "nested", cpu: str | None = None) -> None:
        image = GuestImage()
        image.add(0, bytes(1))
        self.vm = boot_vm(Guest("bench", "bench", image, lambda cpu: None), ram="1M", mmu=mmu, cpu=cpu)
        self.cpu = self.vm.cpu
        self.needs: list[int] = []
        self.events: list[Event] = []
        self.vm.events.listen(self.events.append)

    # --- memory ---

    def write(self, gpa: int, data: bytes) -> None:
        self.vm.memory.write(gpa, data)

    def read(self, gpa: int, size: int) -> int:
        return int.from_bytes(self.vm.memory.read(gpa, size), "little")

    def words(self, gpa: int, count: int, size: int) -> list[int]:
        """``count`` values of ``size`` bytes, upwards from ``gpa``."""
        return [self.read(gpa + size * i, size) for i in range(count)]

    def stack(self, count: int, size: int) -> list[int]:
        """What lies on the current stack, from the top."""
        base = 0 if self.cpu.bits == 64 else self.cpu.ss.base
        return self.words(base + self.cpu.rsp, count, size)

    def segment(self, selector: int, base: int, limit: int, attributes: int) -> None:
        self.write(GDT + (selector & ~7), descriptor(base, limit, attributes))

    def gate(self, vector: int, kind: int, selector: int = CODE0, dpl: int = 0, present: bool = True) -> None:
        offset = HANDLER + 16 * vector
        attributes = kind << 8 | dpl << 13 | (PRESENT if present else 0)
        self.write(IDT + 8 * vector, struct.pack("<HHI", offset & 0xFFFF, selector, (offset & 0xFFFF0000) | attributes))

    def gate64(
        self, vector: int, kind: int = INTERRUPT_32, selector: int = CODE0, dpl: int = 0, present: bool = True,
        ist: int = 0, offset: int | None = None,
    ) -> None:  # fmt: skip
        offset = HANDLER + 16 * vector if offset is None else offset
        attributes = kind << 8 | dpl << 13 | (PRESENT if present else 0) | ist
        low = struct.pack("<HHI", offset & 0xFFFF, selector, (offset & 0xFFFF0000) | attributes)
        self.write(IDT + 16 * vector, low + struct.pack("<Q", offset >> 32))

    # --- CPU states ---

    def real(self) -> None:
        for vector in range(256):
            self.write(4 * vector, struct.pack("<HH", 16 * vector, HANDLER >> 4))
        self.cpu.cs.set(CODE >> 4, CODE, 0xFFFF, CODE_16)
        self.cpu.ss.set(STACK0 - 0x8000 >> 4, STACK0 - 0x8000, 0xFFFF, DATA_16)
        self.cpu.idtr.set(0, 0, 0x3FF, 0)
        self.cpu.rsp = 0x8000
        self.cpu.rip = 0x10
        self._settle()

    def protected(self, ring: int = 0, bits: int = 32) -> None:
        """Protected mode without paging, a 32-bit TSS, and a 32-bit interrupt gate for each of 64 vectors."""
        code, data = (CODE_32, DATA_32) if bits == 32 else (CODE_16, DATA_16)
        limit = 0xFFFFF if bits == 32 else 0xFFFF
        self.write(GDT, bytes(8))
        self.segment(CODE0, 0, limit, code)
        self.segment(DATA0, 0, limit, data)
        self.segment(CODE3, 0, limit, code | RING3)
        self.segment(DATA3, 0, limit, data | RING3)
        self.segment(TSS_SELECTOR, TSS, 103, PRESENT | BUSY | TSS_32 << 8)
        for vector in range(64):
            self.gate(vector, INTERRUPT_32)
        self.write(TSS, bytes(104))
        self.write(TSS + 4, struct.pack("<II", STACK_TSS, DATA0))
        cpu = self.cpu
        cpu.cr0 = 0x11
        cpu.gdtr.set(0, GDT, 0xFF, 0)
        cpu.idtr.set(0, IDT, 64 * 8 - 1, 0)
        cpu.tr.set(TSS_SELECTOR, TSS, 103, PRESENT | TSS_32 << 8)
        self.ring(ring, code, data)

    def ring(self, ring: int, code: int = CODE_32, data: int = DATA_32) -> None:
        cpu = self.cpu
        code_selector, data_selector = (CODE3, DATA3) if ring else (CODE0, DATA0)
        limit = 0xFFFF_FFFF if data & 1 << 23 else 0xFFFF
        cpu.cs.set(code_selector, 0, limit, code | (RING3 if ring else 0))
        for segment in (cpu.ds, cpu.es, cpu.fs, cpu.gs, cpu.ss):
            segment.set(data_selector, 0, limit, data | (RING3 if ring else 0))
        cpu.rip = CODE
        cpu.rsp = STACK3 if ring else STACK0
        self._settle()

    def v86(self) -> None:
        self.protected()
        cpu = self.cpu
        self.set_eflags(VM | IF | 2)
        for value, segment in enumerate((cpu.es, cpu.cs, cpu.ss, cpu.ds, cpu.fs, cpu.gs)):
            selector = 0x4000 + 0x10 * value
            segment.set(selector, selector << 4, 0xFFFF, DATA_16 | RING3)
        cpu.rip, cpu.rsp = 0x10, 0x8000
        self._settle()

    def paged(self, ring: int = 0) -> None:
        """32-bit paging: the first 4 MiB by 4 KiB pages, user and writable."""
        self.protected(ring)
        self.write(TABLES, struct.pack("<I", TABLES + 0x1000 | 7))
        for page in range(256):
            self.map_page(page << 12, 7)
        self.cpu.cr3 = TABLES
        self.cpu.cr0 |= 0x8001_0000
        self._settle()

    def map_page(self, gva: int, rights: int) -> None:
        """Set the entry of a page in :meth:`paged`; with rights 0 it is not present."""
        self.write(TABLES + 0x1000 + (gva >> 12) * 4, struct.pack("<I", gva & ~0xFFF | rights))

    def long(self, ring: int = 0) -> None:
        """64-bit mode: 4 KiB pages for the first 2 MiB, user and writable."""
        self.write(GDT, bytes(8))
        self.segment(CODE0, 0, 0xFFFFF, CODE_64)
        self.segment(DATA0, 0, 0xFFFFF, DATA_32)
        self.segment(CODE3, 0, 0xFFFFF, CODE_64 | RING3)
        self.segment(DATA3, 0, 0xFFFFF, DATA_32 | RING3)
        self.write(TSS, bytes(104))
        self.write(TSS + 4, struct.pack("<QQQ", STACK_TSS, 0, 0))
        for vector in range(64):
            self.gate64(vector)
        self.write(TABLES, struct.pack("<Q", TABLES + 0x1000 | 7))
        self.write(TABLES + 0x1000, struct.pack("<Q", TABLES + 0x2000 | 7))
        self.write(TABLES + 0x2000, struct.pack("<Q", TABLES + 0x3000 | 7))
        for page in range(256):
            self.map_page64(page << 12, 7)
        cpu = self.cpu
        cpu.cr3, cpu.cr4, cpu.efer, cpu.cr0 = TABLES, 1 << 5, 0x501, 0x8001_0011
        cpu.gdtr.set(0, GDT, 0xFF, 0)
        cpu.idtr.set(0, IDT, 64 * 16 - 1, 0)
        cpu.tr.set(TSS_SELECTOR, TSS, 103, PRESENT | TSS_32 << 8)
        self.ring(ring, CODE_64, DATA_32)

    def map_page64(self, gva: int, rights: int) -> None:
        self.write(TABLES + 0x3000 + (gva >> 12) * 8, struct.pack("<Q", gva & ~0xFFF | rights))

    def set_eflags(self, value: int) -> None:
        probes.write_eflags(self.vm.processor.engine.env, value)
        self._settle()

    @property
    def eflags(self) -> int:
        return self.vm.eflags

    def follow_control_registers(self) -> None:
        """Have the engine act on CR0 and CR4 as they are now, as MOV to them would."""
        self._settle()
        hflags_at = self.vm.processor.engine.env + cpustate.HFLAGS
        hflags = ctypes.c_uint32.from_address(hflags_at)
        hflags.value &= ~cpustate.HF_OSFXSR
        if self.cpu.cr4 & 1 << 9:
            hflags.value |= cpustate.HF_OSFXSR

    def _settle(self) -> None:
        cpustate.set_hflags_mode(self.vm.processor.engine.env)

    # --- events ---

    def start(self, vector: int, error: int = -1, kind: int = EXCEPTION, rip: int | None = None) -> int:
        """Deliver an event as far as it goes without the DMM."""
        rip = self.cpu.rip if rip is None else rip
        return int(probes.deliver(self.vm.processor.native_at, vector, error, kind, rip))

    def run(self, source: str, bits: int, count: int = 0) -> None:
        """Execute code at CODE up to its HLT; with ``count``, stop the engine that many times on the way."""
        self.write(CODE, assemble(source + "; hlt", bits))
        for _ in range(count):
            self.vm.run(until=self.vm.now + 1)
        assert self.vm.run() == Stop.HALTED
        self.vm.events.drain()

    def go_on(self) -> int:
        """Resolve what the delivery asked for, and go on with it."""
        native = self.vm.processor.native
        self.needs.append(int(native.need_gfn))
        self.vm.dmm.resolve(int(native.need_gfn), Intent(int(native.need_intent)))
        return int(probes.deliver_pending(self.vm.processor.native_at))

    def deliver(self, vector: int, error: int = -1, kind: int = EXCEPTION, rip: int | None = None) -> int:
        """Deliver an event, with the DMM's help; returns DELIVERED or SHUTDOWN."""
        status = self.start(vector, error, kind, rip)
        while status == NEED:
            status = self.go_on()
        self.vm.events.drain()
        return status

    @property
    def vector(self) -> int:
        """Which handler the CPU is about to execute."""
        return self.cpu.rip - HANDLER >> 4

    def delivered(self) -> list[int]:
        """The vectors of the exceptions and interrupts recorded."""
        return [event.vector for event in self.events if event.NAME in ("exception", "interrupt")]  # type: ignore[attr-defined]
