"""Hostile guests: random pieces of code in every mode, at CPL 0 and 3, that mean harm to tables and devices.

``python -m tests.torture guests --seed N --count K`` (0: without end) runs each under both paging architectures and
under policies in a tiny pool, audited.  A guest is a list of pieces.  Whatever happens in one, its exception handler
goes on with the next, until there were too many exceptions.

* Tame pieces obey the manual's rules on flushing (SDM vol. 3A, 4.10.4.2): shadow and nested must not differ in anything
  that the guest can see, and a second run is the same.
* Wild pieces are random bytes, which may hit the page tables: they must end, pass the audit, and be the same twice.

A guest that fails is made as short as it can be, and printed as a test.
"""

from __future__ import annotations

import argparse
import random
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

from keystone import KsError

from emu.audit.audit import AuditFailure
from emu.boot.guest import Guest
from emu.boot.image import GuestImage
from emu.debug import look
from emu.dmm.errors import OutOfFrames, StoreError
from emu.engine.events import Event
from emu.machine.vm import Stop
from emu.session import boot_vm
from tests.cpu.delivery_bench import CODE, CODE3, DATA0, DATA3, HANDLER, STACK3, TABLES, Bench, assemble

SLOT = 96  # bytes of a piece and what goes before it
MOST = 40  # pieces
COMMON = 0xB000  # the exception handler
FAULTS, PLACE = 0x7000, 0x7004  # in memory: how many exceptions there were, and the piece that runs
WINDOW, REMAPPED = 0x3_0000, 0x7_0000  # 64 KiB of data each; the second has entries that are edited
LIMIT_NS = 3_000_000
MODES = ("real", "protected0", "protected3", "paged0", "paged3", "long0", "long3")
VISIBLE = ("page-fault", "exception", "interrupt", "cr3-switch")
POLICIES: tuple[dict[str, object], ...] = (
    {"policies": ["swap"], "pool": "80K"},
    {"policies": ["swap:victims=2q", "share"], "pool": "96K"},
    {"policies": ["retire:every=50us,count=20", "swap"], "pool": "160K"},
)

MMIO = (0xFEC0_0000, 0xFEC0_0010, 0xFED0_0000, 0xFED0_00F0, 0xFEE0_0020, 0xFEE0_0300, 0xFEE0_0380, 0xFEB0_0000)
PORTS = (0x20, 0x21, 0x40, 0x43, 0x60, 0x61, 0x64, 0x70, 0x71, 0x92, 0xA0, 0xA1, 0xCF8, 0xCFC, 0x1F0, 0x1F6, 0x1F7,
         0x3C0, 0x3D4, 0x3D5, 0x3F5, 0x3F8, 0x3F9, 0x3FD, 0x402, 0x4D0, 0x510, 0x511, 0x514, 0x518, 0x600, 0x604,
         0xC000, 0xC002, 0xC004)  # fmt: skip
MSRS = (0x10, 0x1B, 0x3A, 0x174, 0x175, 0x176, 0x1A0, 0x200, 0x277, 0x2FF, 0x6E0, 0x800, 0x830, 0x83F, 0xC000_0080,
        0xC000_0081, 0xC000_0082, 0xC000_0084, 0xC000_0100, 0xC000_0102, 0x1234)  # fmt: skip

# {a}: the accumulator, {m}: memory in the window, {r}: memory that is remapped, {d}: device memory, {i}: a number
TAME = (
    "mov {m}, eax", "mov eax, {m}", "add {m}, cl", "xchg {m}, ebx", "lock xadd {m}, eax", "lock cmpxchg {m}, ecx",
    "rep movsb", "rep stosd", "repne scasb", "std; rep movsd; cld", "push {a}; pop {a}", "pushf; popf", "in al, dx",
    "in ax, dx", "in eax, dx", "out dx, al", "out dx, ax", "out dx, eax", "insb", "outsw", "rep insw", "mov al, {d}",
    "mov eax, {d}", "mov {d}, al", "mov {d}, eax", "mov ax, {d}", "mov cr0, {a}", "mov {a}, cr0", "mov cr2, {a}",
    "mov {a}, cr3; mov cr3, {a}", "mov cr4, {a}", "mov {a}, cr4; mov cr4, {a}", "rdmsr", "wrmsr", "mov dr7, {a}",
    "mov dr0, {a}", "mov {a}, dr6", "int 0x20", "int3", "int 0x45", "hlt", "sti", "cli", "sti; hlt", "cpuid", "rdtsc",
    "lgdt {m}", "lidt {m}", "sgdt {m}", "ltr ax", "lldt ax", "mov ds, ax", "mov es, ax", "mov ss, ax", "mov fs, ax",
    "lar ecx, ax", "verw ax", "str ax", "smsw ax", "lmsw ax", "clts", "wbinvd", "sysenter", "syscall", "ud2", "fninit",
    "fld qword ptr [{w}]", "fstp qword ptr [{w}]", "fsqrt", "fxsave [{w}]", "fxrstor [{w}]", "fwait", "enter 8, 3",
    "leave", "div ecx", "idiv bl", "imul ebx, eax", "bsf ecx, eax", "shld ebx, eax, cl", "cmpxchg8b [{w}]", "pause",
    "movaps xmm0, [{w}]", "movups [{w}], xmm0", "addpd xmm1, xmm2", "ret", "retf", "iret", "mov eax, {r}",
    "mov {r}, eax", "add {r}, ebx", "call {code}", "mov byte ptr [{code}], {i}",
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One hostile guest.

    Attributes:
        mode: one of MODES: the mode, and the CPL.
        pieces: machine code, each at most 48 bytes.
        registers: for each piece, what the general registers hold before it.
        wild: whether it may break the rules on flushing.
        seed: what it was drawn from.
    """

    mode: str
    pieces: tuple[bytes, ...]
    registers: tuple[tuple[int, ...], ...]
    wild: bool
    seed: int

    @property
    def bits(self) -> int:
        return {"r": 16, "p": 32, "l": 64}[self.mode[0]]


def draw(seed: int) -> Case:
    """The guest of a seed."""
    chance = random.Random(seed)
    mode = chance.choice(MODES)
    wild = chance.random() < 0.3
    count = chance.randrange(4, MOST)
    pieces, registers = [], []
    for _ in range(count):
        pieces.append(_wild(chance) if wild and chance.random() < 0.6 else _tame(chance, mode))
        registers.append(_registers(chance, mode))
    return Case(mode, tuple(pieces), tuple(registers), wild, seed)


def _wild(chance: random.Random) -> bytes:
    return chance.randbytes(chance.randrange(1, 20))


def _tame(chance: random.Random, mode: str) -> bytes:
    if mode[:5] == "paged" or mode[:4] == "long":
        if chance.random() < 0.2:
            return _edit(chance, mode)
    bits = {"r": 16, "p": 32, "l": 64}[mode[0]]
    base = 0 if bits == 16 else WINDOW
    place = base + chance.choice((0, 8, 0x10, 0xFFC, 0xFFE, 0xFFF, 0x1FF9, chance.randrange(0xF000)))
    again = REMAPPED + chance.choice((0, 0xFFD, 0x1FFE, chance.randrange(0xF000)))
    device = chance.choice(MMIO) + chance.choice((0, 0, 0, 4, 1)) if bits != 16 else 0xF000
    code = CODE + chance.randrange(MOST * SLOT)
    text = chance.choice(TAME).format(
        a={16: "eax", 32: "eax", 64: "rax"}[bits], m=f"[{place:#x}]", w=f"{place:#x}", i=chance.randrange(256),
        r=f"[{again if bits != 16 else place:#x}]", d=f"[{device:#x}]", code=f"{code:#x}",
    )  # fmt: skip
    return _assembled(text, bits)


@cache
def _assembled(text: str, bits: int) -> bytes:
    try:
        return assemble(text, bits)[:48]
    except KsError:  # not in this mode
        return b"\x90"


def _edit(chance: random.Random, mode: str) -> bytes:
    """Another entry for a remapped page, and the flush that the manual demands."""
    page = chance.randrange(16)
    gva = REMAPPED + page * 0x1000
    frame = WINDOW + chance.randrange(16) * 0x1000
    value = chance.choice((0, frame | 7, frame | 5, frame | 3, frame | 0x67, frame | 1, 0xF_0007, 0x8000_0007))
    if mode[0] == "p":
        entry = TABLES + 0x1000 + (gva >> 12) * 4
        return _assembled(f"mov dword ptr [{entry:#x}], {value:#x}; invlpg [{gva:#x}]", 32)
    entry = TABLES + 0x3000 + (gva >> 12) * 8
    return _assembled(f"mov eax, {value:#x}; mov [{entry:#x}], rax; invlpg [{gva:#x}]", 64)


def _registers(chance: random.Random, mode: str) -> tuple[int, ...]:
    """EAX, EBX, ECX, EDX, ESI, EDI."""
    base = 0 if mode == "real" else WINDOW
    number = chance.choice((0, 1, 0x10, 0x23, 0x8000_0011, 0x8001_0033, 0xFFFF_FFFF, chance.getrandbits(32)))
    count = chance.choice((0, 1, 5, 64, chance.choice(MSRS)))
    port = chance.choice((*PORTS, chance.getrandbits(16)))
    mask = 0xFFFF if mode == "real" else 0xFFFF_FFFF
    return tuple(
        value & mask
        for value in (number, chance.getrandbits(32), count, port, base + 0x2000, base + chance.randrange(0x8000))
    )


class _HostileBench(Bench):
    """A VM with a hostile guest in it."""

    def __init__(self, case: Case, **options: object) -> None:
        image = GuestImage()
        image.add(0, bytes(1))
        guest = Guest("hostile", "hostile", image, lambda cpu: None)
        self.vm = boot_vm(guest, ram="1M", no_reboot=True, **options)
        self.cpu = self.vm.cpu
        self.log: list[tuple[object, ...]] = []
        self._set_up(case)
        self.vm.events.listen(self._note)

    def _note(self, event: Event) -> None:
        if event.NAME in VISIBLE:
            told = [getattr(event, name) for name in event.__slots__ if name not in ("sequence", "mfn")]
            self.log.append((event.NAME, *told, event.time))

    def _set_up(self, case: Case) -> None:
        mode, ring = case.mode.rstrip("03"), int(case.mode[-1] == "3")
        if mode == "real":
            self.real()
            self.cpu.cs.set(0, 0, 0xFFFF, 0x9B00)
            self.cpu.ss.set(0, 0, 0xFFFF, 0x9300)
        elif mode == "protected":
            self.protected(ring)
        elif mode == "paged":
            self.paged(ring)
            self.cpu.cr4 |= 1 << 4
            for index in (0x3FA, 0x3FB):
                self.write(TABLES + 4 * index, struct.pack("<I", index << 22 | 0x87))
        else:
            self.long(ring)
            self.write(TABLES + 0x1000 + 3 * 8, struct.pack("<Q", TABLES + 0x4000 | 7))
            for index in (0x1F5, 0x1F6, 0x1F7):
                self.write(TABLES + 0x4000 + 8 * index, struct.pack("<Q", 0xC000_0000 + (index << 21) | 0x87))
        far = b"\xea\x00\xb0\x00\x00"
        for vector in range(256):
            at = HANDLER + 16 * vector
            self.write(at, far if case.bits == 16 else b"\xe9" + struct.pack("<i", COMMON - at - 5))
        self.write(COMMON, _handler(case.bits, ring, len(case.pieces)))
        for number, piece in enumerate(case.pieces):
            self.write(CODE + SLOT * number, _slot(case, number, piece))
        end = CODE + SLOT * len(case.pieces)
        self.write(end, b"\xb0\x00\xe6\xf4\xf4" + b"\xcc" * 16)
        self.write(WINDOW, random.Random(case.seed).randbytes(0x2000))
        self.cpu.rip, self.cpu.rsp = CODE, 0xF000 if case.bits == 16 else self.cpu.rsp
        self._settle()


@cache
def _handler(bits: int, ring: int, count: int) -> bytes:
    """Count the exception, and go on with the next piece; with exit value 1 when there were too many."""
    if bits == 16:
        return assemble(
            f"xor ax, ax; mov ds, ax; mov es, ax; mov ss, ax; mov sp, 0xf000; inc word ptr [{FAULTS:#x}]; "
            f"cmp word ptr [{FAULTS:#x}], 60; ja out; inc word ptr [{PLACE:#x}]; mov ax, [{PLACE:#x}]; "
            f"cmp ax, {count}; ja out; mov cx, {SLOT}; mul cx; add ax, {CODE:#x}; push ax; ret; "
            "out: mov al, 1; out 0xf4, al; hlt; jmp out", 16, COMMON,
        )  # fmt: skip
    sp, ax = ("rsp", "rax") if bits == 64 else ("esp", "eax")
    selector = DATA3 if ring and bits == 32 else DATA0
    back = f"jmp {ax}"
    if ring:
        wide = "iretq" if bits == 64 else "iretd"
        back = f"push {DATA3}; push {STACK3:#x}; push 0x3002; push {CODE3}; push {ax}; {wide}"
    return assemble(
        f"mov ax, {selector}; mov ds, ax; mov es, ax; mov {sp}, 0x5f000; inc dword ptr [{FAULTS:#x}]; "
        f"cmp dword ptr [{FAULTS:#x}], 60; ja out; inc dword ptr [{PLACE:#x}]; mov eax, [{PLACE:#x}]; "
        f"cmp eax, {count}; ja out; imul eax, eax, {SLOT}; add eax, {CODE:#x}; {back}; "
        "out: mov al, 1; out 0xf4, al; hlt; jmp out", bits, COMMON,
    )  # fmt: skip


def _slot(case: Case, number: int, piece: bytes) -> bytes:
    """A piece with what goes before it: its number is noted, and the registers are set."""
    values = case.registers[number]
    if case.bits == 16:
        before = b"\x2e\xc7\x06" + struct.pack("<HH", PLACE, number) + b"\xb8\x00\x30\x8e\xd8\x8e\xc0"
        before += b"".join(bytes([opcode]) + struct.pack("<H", v) for opcode, v in zip(_LOADS, values, strict=True))
    else:
        address = b"\x05" if case.bits == 32 else b"\x04\x25"
        before = b"\xc7" + address + struct.pack("<II", PLACE, number)
        before += b"".join(bytes([opcode]) + struct.pack("<I", v) for opcode, v in zip(_LOADS, values, strict=True))
    return (before + piece).ljust(SLOT, b"\x90")


_LOADS = (0xB8, 0xBB, 0xB9, 0xBA, 0xBE, 0xBF)  # MOV of a number to (E)AX, BX, CX, DX, SI, DI


def outcome(case: Case, **options: object) -> tuple[object, ...]:
    """All that the guest can see, and how it ended: alike for runs that must be alike.

    Raises:
        AuditFailure: what ought never to be.
    """
    bench = _HostileBench(case, **options)
    vm = bench.vm
    try:
        stop: Stop | str
        try:
            stop = vm.run(LIMIT_NS)
        except (OutOfFrames, StoreError) as error:
            stop = type(error).__name__
        vm.events.drain()
        vm.audit()
        memory = [vm.memory.peek(at, size) for at, size in ((FAULTS, 8), (WINDOW, 0x1_0000))]
        registers = look.registers(vm.processor)
        return (stop, vm.exit_value, vm.now, tuple(registers.items()), vm.platform.console, *memory, tuple(bench.log))
    finally:
        vm.close()


def wrong(case: Case) -> str | None:
    """What is wrong with how a guest runs; None if nothing is."""
    try:
        shadow = outcome(case, mmu="shadow", audit=True)
        if outcome(case, mmu="shadow") != shadow:
            return "a second run differs, or one without the audit"
        nested = outcome(case, mmu="nested", audit=True)
        if not case.wild and nested != shadow:
            return f"nested differs in {_difference(nested, shadow)}"
        options = POLICIES[case.seed % len(POLICIES)]
        for mmu in ("shadow", "nested"):
            outcome(case, mmu=mmu, audit=True, **options)
    except AuditFailure as failure:
        return f"audit: {failure}"
    except Exception as error:  # whatever a guest can cause is a finding
        return f"{type(error).__name__}: {error}"
    return None


def _difference(some: tuple[object, ...], other: tuple[object, ...]) -> str:
    names = ("ending", "exit value", "time", "registers", "console", "counters", "memory", "events")
    return ", ".join(name for name, a, b in zip(names, some, other, strict=True) if a != b)


def shortened(case: Case, is_wrong: Callable[[Case], object] = wrong) -> Case:
    """The case with as few pieces as are needed to go wrong: the others do nothing, or are gone."""
    size = max(1, len(case.pieces) // 2)
    while size:
        at = 0
        while at < len(case.pieces):
            less = replace(
                case, pieces=case.pieces[:at] + case.pieces[at + size :],
                registers=case.registers[:at] + case.registers[at + size :],
            )  # fmt: skip
            if less.pieces and is_wrong(less):
                case = less
            else:
                at += size
        size //= 2
    return case


def as_test(case: Case) -> str:
    """A finding as source that can be put into test_guests.py."""
    pieces = ", ".join(f'bytes.fromhex("{piece.hex()}")' for piece in case.pieces)
    return f"Case({case.mode!r}, ({pieces},), {case.registers!r}, {case.wild}, {case.seed})"


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.torture guests", description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--count", type=int, default=100, help="how many guests; 0: without end")
    options = parser.parse_args(arguments)
    found = tried = 0
    try:
        while options.count == 0 or tried < options.count:
            case = draw(options.seed + tried)
            tried += 1
            what = wrong(case)
            if what is not None:
                found += 1
                short = shortened(case)
                print(
                    f"seed {case.seed}, {case.mode}: {what}; shortened: {wrong(short)}\n  {as_test(short)}", flush=True
                )
    except KeyboardInterrupt:
        pass
    print(f"{tried} guests, 5 runs each; {found} went wrong")
    return int(found > 0)
