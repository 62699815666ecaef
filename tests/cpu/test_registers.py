"""Registers that the native plane answers: what a guest sees is the same as when the devices are asked every time.

A guest makes random accesses to device registers, with interrupts coming in between, once with the native answers and
once without (``vm.native.ask_devices``).  Values, times, interrupts, events and the devices' states must be equal.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator, Sequence
from functools import cache

import pytest
from keystone import KS_ARCH_X86, KS_MODE_64, Ks

from emu.bench.longmode import APIC_WINDOW, CODE, DATA, DEVICE_WINDOW, assemble, long_mode_vm
from emu.devices import lapic_registers as reg
from emu.devices import layout
from emu.devices.bus import MmioBus, PortBus
from emu.machine.vm import Stop, VirtualMachine
from emu.observe.console import ConsoleWatch
from emu.testing import boot

Command = tuple[int, int, int]
# A command is four u64: what to do, the gva, port or MSR, the value, and 0.  Results are value and TSC, two u64 each.
LOAD, STORE, LOAD_64, IN_8, OUT_8, IN_32, RDMSR, WRMSR, FLAGS, SPIN, END = range(11)
COMMANDS, RESULTS, INTERRUPTS = DATA, DATA + 0x8_0000, DATA + 0x10_0000
LENGTH = 1000  # commands of a run
END_NS = 40_000_000  # virtual time after which a run is over anyway
HANDLERS = CODE + 0x1000
HANDLER_SIZE = 16

# Every vector is written down with the TSC; those with one of the bits 1 to 3 set are ended at once, those
# with bit 2 set at the 8259s, too.  After every 16 of them the inputs of timer and UART are masked, to end floods.
COMMON_HANDLER = f"""
common: push rax; push rdx; push rcx
    mov ecx, [rsp + 24]; mov [r9], rcx; rdtsc; shl rdx, 32; or rax, rdx; mov [r9 + 8], rax; add r9, 16
    test ecx, 14; jz keep; xor eax, eax; mov [{APIC_WINDOW + 0xB0}], eax
keep: test ecx, 4; jz done; mov al, 0x20; out 0x20, al; out 0xA0, al
done: test r9d, 0xFF; jnz out
    mov edx, 0x10000; mov eax, 0x14; mov [{DEVICE_WINDOW}], eax; mov [{DEVICE_WINDOW + 0x10}], edx
    mov eax, 0x18; mov [{DEVICE_WINDOW}], eax; mov [{DEVICE_WINDOW + 0x10}], edx
out: pop rcx; pop rdx; pop rax; add rsp, 8; iretq
"""

PROGRAM = f"""
    mov rsi, {COMMANDS}; mov r8, {RESULTS}; mov r9, {INTERRUPTS}
next: mov rbx, [rsi]; mov rdi, [rsi + 8]; mov rax, [rsi + 16]; mov edx, edi; mov ecx, edi; add rsi, 32
    cmp ebx, {LOAD}; je do_load
    cmp ebx, {STORE}; je do_store
    cmp ebx, {LOAD_64}; je do_load64
    cmp ebx, {IN_8}; je do_in8
    cmp ebx, {OUT_8}; je do_out8
    cmp ebx, {IN_32}; je do_in32
    cmp ebx, {RDMSR}; je do_readmsr
    cmp ebx, {WRMSR}; je do_writemsr
    cmp ebx, {FLAGS}; je do_flags
    cmp ebx, {SPIN}; je do_spin
    cli; hlt
do_load: mov eax, [rdi]; jmp took
do_load64: mov rax, [rdi]; jmp took
do_store: mov [rdi], eax; jmp took
do_in8: in al, dx; jmp took
do_in32: in eax, dx; jmp took
do_out8: out dx, al; jmp took
do_readmsr: rdmsr; shl rdx, 32; or rax, rdx; jmp took
do_writemsr: xor edx, edx; wrmsr; jmp took
do_flags: push rax; popfq; jmp took
do_spin: dec rax; jnz do_spin
took: mov [r8], rax; rdtsc; shl rdx, 32; or rax, rdx; mov [r8 + 8], rax; add r8, 16; jmp next
"""


class Run:
    """A guest that carries out commands, and all that can be seen of it."""

    def __init__(
        self, commands: Sequence[Command], ask_devices: bool, mmu: str, step: int = 0, typed: bool = True
    ) -> None:
        handlers = {vector: HANDLERS + HANDLER_SIZE * vector for vector in range(32, 256)}
        vm = long_mode_vm(assemble(PROGRAM), mmu, handlers)
        vm.native.ask_devices = int(ask_devices)
        vm.memory.write(HANDLERS, handler_code())
        vm.memory.write(COMMANDS, b"".join(struct.pack("<4Q", *command, 0) for command in (*commands, (END, 0, 0))))
        if typed:
            vm.platform.uart.receive(b"received")
            vm.platform.uart.offer(b"offered")
        self.events: list[str] = []
        vm.events.listen(lambda event: self.events.append(f"{event.time} {event.sentence()}"))
        while (stop := vm.step(step, until=END_NS) if step else vm.run(until=END_NS)) is Stop.STEP:
            pass
        assert stop in (Stop.HALTED, Stop.DEADLINE)
        self.stop = stop
        self.now = vm.now
        self.results = self._pairs(vm, RESULTS, LENGTH)
        self.interrupts = self._pairs(vm, INTERRUPTS, 8 * LENGTH)
        self.console = bytes(vm.platform.console)
        claims = vm.platform.bus._claims + vm.platform.mmio._claims
        self.states = [(type(device).__name__, device.state()) for device, *_ in claims]
        self.states += [("LocalApic", apic.state()) for apic in vm.platform.lapics]

    @staticmethod
    def _pairs(vm: VirtualMachine, gpa: int, count: int) -> list[tuple[int, int]]:
        return [pair for pair in struct.iter_unpack("<QQ", vm.memory.read(gpa, 16 * count)) if pair != (0, 0)]


def assemble_at(source: str, gva: int) -> bytes:
    """64-bit code for ``gva``."""
    code, _ = Ks(KS_ARCH_X86, KS_MODE_64).asm(source, gva, as_bytes=True)
    return bytes(code)


@cache
def handler_code() -> bytes:
    common = HANDLERS + HANDLER_SIZE * 256
    stubs = (assemble_at(f"push {v}; jmp {common}", HANDLERS + HANDLER_SIZE * v) for v in range(256))
    return b"".join(stub.ljust(HANDLER_SIZE, b"\xcc") for stub in stubs) + assemble_at(COMMON_HANDLER, common)


# --- random commands --------------------------------------------------------------------------------------------

VECTORS = range(0x20, 0x100)


def apic(rng: random.Random) -> Iterator[Command]:
    if rng.random() < 0.4:
        yield LOAD, APIC_WINDOW + rng.choice((rng.randrange(0x40) * 16, 0x390, 0x20, 0xA0, rng.randrange(0x400) * 4)), 0
        return
    register, value = rng.choice((
        (reg.TPR, rng.choice((0, 0x20, 0x5F, rng.randrange(0x100)))), (reg.TPR, 0),
        (reg.EOI, 0), (reg.EOI, 0), (reg.EOI, 0), (reg.SVR, rng.choice((0x1FF, 0x1FF, 0xFF))), (reg.SVR, 0x1FF),
        (reg.LVT_TIMER, rng.choice(VECTORS) | rng.randrange(4) << 16),
        (reg.TIMER_INITIAL, rng.randrange(2000, 30000)), (reg.TIMER_DIVIDE, rng.randrange(16)),
        (reg.ICR, 0x40000 | rng.choice(VECTORS)), (reg.ICR, 0x40000 | rng.choice(VECTORS)), (reg.ESR, 0),
        (reg.LVT_LINT0, rng.choice((0x700, 0x10700))), (reg.LDR, rng.randrange(256) << 24), (0x3F, 5),
        (reg.ICR_HIGH, rng.randrange(256) << 24),
    ))  # fmt: skip
    yield STORE, APIC_WINDOW + register * 16, value


def x2apic(rng: random.Random) -> Iterator[Command]:
    if rng.random() < 0.5:
        yield RDMSR, 0x800 + rng.choice(sorted(reg.X2APIC_READABLE)), 0
        return
    register, value = rng.choice((
        (reg.TPR, rng.choice((0, 0x20, rng.randrange(0x100)))), (reg.TPR, 0), (reg.EOI, 0), (reg.EOI, 0), (reg.EOI, 0),
        (reg.SVR, 0x1FF),
        (reg.LVT_TIMER, rng.choice(VECTORS) | rng.randrange(3) << 17), (reg.TIMER_INITIAL, rng.randrange(2000, 30000)),
        (reg.SELF_IPI, rng.choice(VECTORS)), (reg.SELF_IPI, rng.choice(VECTORS)), (reg.ESR, 0),
    ))  # fmt: skip
    yield WRMSR, 0x800 + register, value
    if rng.random() < 0.1:
        yield WRMSR, 0x6E0, rng.randrange(200_000)


def io_apic(rng: random.Random) -> Iterator[Command]:
    number = rng.choice((2, 4, 8, 9, 20))
    yield STORE, DEVICE_WINDOW, rng.choice((0, 1, 0x10 + 2 * number))
    yield LOAD, DEVICE_WINDOW + 0x10 * rng.randrange(2), 0
    yield STORE, DEVICE_WINDOW, 0x10 + 2 * number
    if rng.random() < 0.5:
        yield STORE, DEVICE_WINDOW + 0x10, rng.choice(VECTORS) | rng.choice((0, 0, 1 << 15, 1 << 16))


def pic(rng: random.Random) -> Iterator[Command]:
    chip = rng.choice((0x20, 0xA0))
    if rng.random() < 0.1:
        for offset, value in ((0, 0x11), (1, rng.randrange(4, 32) << 3), (1, 4), (1, rng.choice((1, 1, 3, 0x11)))):
            yield OUT_8, chip + offset, value
            if rng.random() < 0.1:
                yield IN_8, chip + 1, 0
    elif rng.random() < 0.5:
        yield IN_8, chip + rng.randrange(2), 0
    elif rng.random() < 0.4:
        yield OUT_8, chip + 1, rng.choice((0, 0xFF, rng.randrange(256)))
    else:
        commands = (0x20, 0x20, 0x20, 0x60, 0x64, 0x0A, 0x0B, 0x0C, 0x68, 0x48, 0xA0, 0xC3, 0x80, 0x00)
        yield OUT_8, chip, rng.choice(commands)


def pit(rng: random.Random) -> Iterator[Command]:
    counter = rng.randrange(3)
    if rng.random() < 0.5:
        yield IN_8, rng.choice((0x40 + counter, 0x61)), 0
    elif rng.random() < 0.5:
        yield OUT_8, 0x61, rng.randrange(4)
    elif rng.random() < 0.5:
        yield OUT_8, 0x43, counter << 6 | rng.choice((0, 0xC2 - (counter << 6)))
    else:
        access = rng.choice((1, 2, 3, 3, 3))
        yield OUT_8, 0x43, counter << 6 | access << 4 | rng.choice((0, 2, 2, 3, 4)) << 1 | rng.choice((0, 0, 0, 1))
        if access & 1:
            yield OUT_8, 0x40 + counter, rng.randrange(256)
        if access & 2:
            yield OUT_8, 0x40 + counter, rng.randrange(1, 100)


def hpet(rng: random.Random) -> Iterator[Command]:
    base = DEVICE_WINDOW + layout.HPET - layout.IO_APIC
    if rng.random() < 0.6:
        yield LOAD, base + rng.choice((0xF0, 0xF0, 0xF4, 0, 4, 0x10, 0x20, 0x100, 0x108, rng.randrange(0x100) * 4)), 0
        yield LOAD_64, base + rng.choice((0xF0, 0xF0, 0xF0, 0, 8 * rng.randrange(0x80))), 0
        return
    timer = base + 0x100 + 0x20 * rng.randrange(3)
    offset, value = rng.choice((
        (base + 0x10, rng.choice((0, 1, 1, 1, 3))), (base + 0x20, 7), (base + 0xF0, rng.randrange(1 << 32)),
        (base + 0xF4, rng.choice((0, 0x8000_0000, 0xFFFF_FFFF))),
        (timer, rng.choice((0, 4, 0x4C, 0x104)) | rng.choice((0, 2)) | rng.choice((0, 20)) << 9),
        (timer + 8, rng.randrange(100_000)), (timer + 8, rng.randrange(300, 3000)), (timer + 12, 0),
    ))  # fmt: skip
    yield STORE, offset, value


def power(rng: random.Random) -> Iterator[Command]:
    if rng.random() < 0.8:
        yield IN_32, layout.ACPI_PM_PORT + 8, 0
        yield IN_8, layout.ACPI_PM_PORT + rng.randrange(12), 0
    else:
        yield OUT_8, layout.ACPI_PM_PORT + rng.randrange(4), rng.randrange(256)


def uart(rng: random.Random) -> Iterator[Command]:
    register = rng.choice((0, 0, 1, 2, 2, 3, 4, 5, 5, 5, 6, 7))
    if rng.random() < 0.6:
        yield IN_8, layout.COM1_PORT + register, 0
    else:
        value = rng.choice((0, 1, 2, 3, 3, rng.randrange(256)))
        yield OUT_8, layout.COM1_PORT + register, value & 0x7F if register == 3 and rng.random() < 0.8 else value


def post(rng: random.Random) -> Iterator[Command]:
    yield OUT_8, layout.POST_PORT, rng.choice((1, 1, 2))
    yield rng.choice((IN_8, IN_32)), layout.POST_PORT, 0
    yield rng.choice((OUT_8, IN_8)), layout.DEBUG_CONSOLE_PORT, rng.randrange(256)


def processor(rng: random.Random) -> Iterator[Command]:
    yield rng.choice(((FLAGS, 0, 0x202), (FLAGS, 0, 0x202), (FLAGS, 0, 2), (SPIN, 0, rng.randrange(1, 3000))))


MEMORY_MAPPED = (apic, apic, apic, processor, processor, io_apic, pic, pit, hpet, power, uart, uart, post)
X2APIC = (x2apic, x2apic, x2apic, processor, processor, pic, pit, hpet)


def commands(seed: int) -> list[Command]:
    """Every third list works in x2APIC mode."""
    rng = random.Random(seed)
    makers = X2APIC if seed % 3 == 2 else MEMORY_MAPPED
    made: list[Command] = [(STORE, APIC_WINDOW + 0xF0, 0x1FF), (FLAGS, 0, 0x202)]
    for port, first in ((0x20, 0x26), (0xA0, 0x36)):  # the vectors are ended, or one of both
        made += [(OUT_8, port + offset, value) for offset, value in ((0, 0x11), (1, first), (1, 4), (1, 1), (1, 0))]
    if makers is X2APIC:
        made.append((WRMSR, reg.APIC_BASE_MSR, reg.RESET_ADDRESS | reg.BASE_ENABLED | reg.BASE_X2APIC | reg.BASE_BSP))
    while len(made) < LENGTH:
        made += rng.choice(makers)(rng)
    return made[:LENGTH]


# --- the tests --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(12))
def test_random_accesses(seed: int) -> None:
    mmu = ("nested", "shadow")[seed // 3 % 2]
    native, asked = (Run(commands(seed), ask, mmu) for ask in (False, True))
    assert len(asked.results) > 50
    assert vars(native) == vars(asked)


def test_random_accesses_stepped() -> None:
    free, stepped = Run(commands(3), False, "nested"), Run(commands(3), False, "nested", step=7)
    assert vars(free) == vars(stepped)


def test_interrupts_come() -> None:
    """The comparison above is about something."""
    runs = [Run(commands(seed), False, "nested") for seed in range(3)]
    assert all(len(run.interrupts) > 15 and len(run.results) > LENGTH / 2 for run in runs)


@pytest.mark.parametrize("ask_devices", [False, True])
def test_who_waits_for_a_text_gets_it_at_once(ask_devices: bool) -> None:
    """And whoever just looks on has everything when he looks, in the right order."""
    guest = boot("hello")
    guest.vm.native.ask_devices = int(ask_devices)
    pieces: list[bytes] = []
    found: list[tuple[int, bytes]] = []
    guest.vm.platform.listen(pieces.append, urgent=b"")
    ConsoleWatch(guest.vm, b"real mode", lambda: found.append((guest.vm.now, bytes(guest.vm.platform.console))))
    guest.run(max_time="1s")
    ((now, printed),) = found
    assert printed.endswith(b"real mode")
    assert b"".join(pieces) == guest.vm.platform.console
    assert len(pieces) == len(b"".join(pieces)) if ask_devices else 1 < len(pieces) < 30
    assert now == MOMENTS.setdefault("real mode", now), "at the same virtual time"


MOMENTS: dict[str, int] = {}


@pytest.mark.parametrize("schedule", [None, "seed=3"])
@pytest.mark.parametrize("guest", ["apic", "smp"])
def test_several_processors(guest: str, schedule: str | None) -> None:
    """Each has its own local APIC: the same console, events and time."""
    seen = []
    for ask_devices in (0, 1):
        run = boot(guest, cpus=3, schedule=schedule, events=True)
        run.vm.native.ask_devices = ask_devices
        status = run.run(max_time="2s")
        seen.append((status, run.console, run.now, [(e.time, e.sentence()) for e in run.events]))
    assert seen[0] == seen[1]


ANSWERED = {
    "APIC ID": (LOAD, APIC_WINDOW + 0x20, 0),
    "APIC version": (LOAD, APIC_WINDOW + 0x30, 0),
    "APIC timer": (LOAD, APIC_WINDOW + 0x390, 0),
    "APIC LVT": (LOAD, APIC_WINDOW + 0x320, 0),
    "APIC ICR": (LOAD, APIC_WINDOW + 0x300, 0),
    "APIC TPR": (STORE, APIC_WINDOW + 0x80, 0x20),
    "APIC EOI": (STORE, APIC_WINDOW + 0xB0, 0),
    "HPET counter": (LOAD, DEVICE_WINDOW + layout.HPET - layout.IO_APIC + 0xF0, 0),
    "HPET counter, 64 bits": (LOAD_64, DEVICE_WINDOW + layout.HPET - layout.IO_APIC + 0xF0, 0),
    "PM timer": (IN_32, layout.ACPI_PM_PORT + 8, 0),
    "8259 mask": (IN_8, layout.PIC_SLAVE_PORT + 1, 0),
    "8259 requests": (IN_8, layout.PIC_MASTER_PORT, 0),
    "8259 new mask": (OUT_8, layout.PIC_MASTER_PORT + 1, 0x55),
    "8259 EOI": (OUT_8, layout.PIC_SLAVE_PORT, 0x20),
    "8259 specific EOI": (OUT_8, layout.PIC_MASTER_PORT, 0x63),
    "UART line status": (IN_8, layout.COM1_PORT + 5, 0),
    "UART interrupt identification": (IN_8, layout.COM1_PORT + 2, 0),
    "UART modem status": (IN_8, layout.COM1_PORT + 6, 0),
    "UART output": (OUT_8, layout.COM1_PORT, 0x41),
    "debug console": (OUT_8, layout.DEBUG_CONSOLE_PORT, 0x41),
    "PIT counter 0": (IN_8, layout.PIT_PORT, 0),
    "PIT counter 2": (IN_8, layout.PIT_PORT + 2, 0),
    "PIT, latch": (OUT_8, layout.PIT_PORT + 3, 0x80),
    "port 0x61": (IN_8, layout.SYSTEM_CONTROL_PORT, 0),
    "POST code": (IN_8, layout.POST_PORT, 0),
}


@pytest.mark.parametrize("name", ANSWERED)
def test_python_is_not_entered(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    for bus in (PortBus, MmioBus):
        monkeypatch.setattr(bus, "read", lambda self, address, size: asked.append(address) or 0)
        monkeypatch.setattr(bus, "write", lambda self, address, size, value: asked.append(address))
    Run([ANSWERED[name]], False, "nested", typed=False)
    assert not asked
