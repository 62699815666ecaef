"""Virtual time is the sum of the executed code's bytes, however the run is cut into pieces."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from emu.bench.longmode import CODE, DATA, assemble, long_mode_vm
from emu.boot.guest import Guest
from emu.engine import engine
from emu.engine.cpustate import CpuState
from emu.machine.machine import Machine
from emu.machine.vm import Stop, VirtualMachine
from emu.session import boot_vm

MMUS = ("shadow", "nested")


def size(source: str) -> int:
    return len(assemble(source))


class Program:
    """64-bit code that ends with HLT, and the bytes that its execution is.

    Args:
        parts: source, and how often it is executed.
    """

    def __init__(self, *parts: tuple[str, int]) -> None:
        self.source = ";".join(text for text, _ in parts) + "; hlt"
        self.bytes = sum(length * times for length, times in zip(self._lengths(parts), self._times(parts), strict=True))
        self.bytes += 1  # the HLT

    @staticmethod
    def _times(parts: tuple[tuple[str, int], ...]) -> list[int]:
        return [times for _, times in parts]

    @staticmethod
    def _lengths(parts: tuple[tuple[str, int], ...]) -> list[int]:
        """Of each part: what the program gets longer by it."""
        ends = [len(assemble(";".join(text for text, _ in parts[: n + 1]))) for n in range(len(parts))]
        return [end - begin for begin, end in zip([0, *ends], ends, strict=False)]


LOOP = Program(
    ("mov ecx, 1000; mov rax, 0", 1), ("l: add rax, rcx; xor rax, 5; dec ecx; jnz l", 1000), ("mov rbx, rax", 1)
)
STRAIGHT = Program(("mov eax, 1" + "; inc rax; nop" * 2000, 1))
NESTED_LOOPS = Program(
    ("mov ebx, 7", 1), ("o: mov ecx, 11", 7), ("i: nop; dec ecx; jnz i", 77), ("dec ebx; jnz o", 7)
)  # fmt: skip
STRINGS = Program(("mov ecx, 64; mov rsi, rdi; add rdi, 4096; rep movsb; cld; mov ecx, 9", 1), ("l: lodsb; loop l", 9))


def calls(depth: int, times: int) -> tuple[str, int]:
    """A chain of calls, and the bytes of its execution."""
    functions = "".join(f"f{n}: inc rax; call f{n + 1}; ret;" for n in range(depth)) + f"f{depth}: add rax, 2; ret"
    source = f"mov ecx, {times}; jmp m; {functions}; m: call f0; dec ecx; jnz m; hlt"
    one = size("nop; a: inc rax; call a; ret") - 1
    last = size("add rax, 2; ret")
    head = size(f"mov ecx, {times}; jmp m; .space {one * depth + last}; m: nop") - 1 - one * depth - last
    tail = size("m: call m; dec ecx; jnz m")
    return source, head + times * (tail + depth * one + last) + 1


def self_modifying() -> tuple[str, int]:
    """A loop that writes the immediate of an instruction in its own block."""
    before = size("mov ecx, 50; lea rbx, [rip + 0]")
    body = "mov [rbx + 5], cl; nop; mov eax, 0x11; add rdx, rax; dec ecx; "
    assert assemble(body)[4] == 0xB8  # MOV EAX: its immediate is the next byte
    loop = size("l: " + body + "jnz l")
    return f"mov ecx, 50; lea rbx, [rip]; l: {body} jnz l; hlt", before + 50 * loop + 1


PROGRAMS = {
    "a loop": (LOOP.source, LOOP.bytes),
    "straight code": (STRAIGHT.source, STRAIGHT.bytes),
    "nested loops": (NESTED_LOOPS.source, NESTED_LOOPS.bytes),
    "a call chain": calls(6, 40),
}

Result = tuple[int, int, int, int]


def result(vm: VirtualMachine) -> Result:
    return vm.now, vm.cpu.rax, vm.cpu.rdx, vm.cpu.rip - CODE


def freely(vm: VirtualMachine) -> None:
    assert vm.run() is Stop.HALTED


MOST_PIECES = 3_000  # more than any of the programs has blocks


def in_pieces(vm: VirtualMachine) -> None:
    for _ in range(MOST_PIECES):
        if (stop := vm.run(vm.now + 7)) is not Stop.DEADLINE:
            break
    assert stop is Stop.HALTED


def in_random_pieces(vm: VirtualMachine) -> None:
    numbers = random.Random(5)
    while (stop := vm.run(vm.now + numbers.randrange(1, 900))) is Stop.DEADLINE:
        pass
    assert stop is Stop.HALTED


def by_instructions(vm: VirtualMachine) -> None:
    while (stop := vm.step()) is Stop.STEP:
        pass
    assert stop is Stop.HALTED


def mixed(vm: VirtualMachine) -> None:
    numbers = random.Random(6)
    stop = Stop.STEP
    while stop in (Stop.STEP, Stop.DEADLINE):
        stop = vm.step(numbers.randrange(1, 40)) if numbers.randrange(2) else vm.run(vm.now + numbers.randrange(1, 300))
    assert stop is Stop.HALTED


def with_requests(vm: VirtualMachine) -> None:
    """Stopped before its next block again and again."""
    for n in range(50):
        if vm.run(vm.now + 10 * n) is Stop.HALTED:
            return
        vm.request_stop()
        assert vm.run() is Stop.REQUESTED
    freely(vm)


WAYS: dict[str, Callable[[VirtualMachine], None]] = {
    "freely": freely, "in pieces": in_pieces, "in random pieces": in_random_pieces,
    "by instructions": by_instructions, "mixed": mixed, "with requests": with_requests,
}  # fmt: skip


@pytest.mark.parametrize("mmu", MMUS)
@pytest.mark.parametrize("name", PROGRAMS)
def test_time_is_the_code_that_was_executed(name: str, mmu: str) -> None:
    source, expected = PROGRAMS[name]
    vm = long_mode_vm(assemble(source), mmu)
    freely(vm)
    assert vm.now == expected


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("name", PROGRAMS)
def test_however_it_runs(name: str, how: str) -> None:
    source, expected = PROGRAMS[name]
    free = long_mode_vm(assemble(source), "shadow")
    freely(free)
    vm = long_mode_vm(assemble(source), "shadow")
    WAYS[how](vm)
    assert result(vm) == result(free) and vm.now == expected


@pytest.mark.parametrize("mmu", MMUS)
def test_a_piece_ends_with_the_block_that_reaches_its_end(mmu: str) -> None:
    """A block is entered while the time is before the end, so the run goes on for less than one block."""
    body = "l: inc rax; inc rbx; jmp l"
    vm = long_mode_vm(assemble(body), mmu)
    block = size(body)
    for until in (1, block, block + 1, 10 * block, 10 * block + 3, 12_345):
        assert vm.run(until) is Stop.DEADLINE
        assert vm.now == -(-until // block) * block
        assert (vm.cpu.rax, vm.cpu.rip) == (vm.now // block, CODE)
    assert vm.run(5) is Stop.DEADLINE and vm.now == -(-12_345 // block) * block  # the past


def test_a_block_that_is_left_early() -> None:
    """A fault in the middle of a block takes back the time of what was not executed."""
    front, behind = "mov rax, 1; mov ecx, 2", "inc rax; inc rax; inc rax; hlt"
    blob = assemble(f"{front}; ud2; {behind}").ljust(0x100, b"\xcc") + assemble("mov rbx, 7; hlt")
    vm = long_mode_vm(blob, "nested", {6: CODE + 0x100})
    freely(vm)
    assert vm.cpu.rbx == 7
    assert vm.cpu.rax == 1
    executed = size(front) + size("mov rbx, 7; hlt")
    assert executed <= vm.now <= executed + 2 + 50  # the UD2 and what a fault takes


# --- more than one engine ---------------------------------------------------------------------------------------


def vm_on(machine: Machine, name: str, source: str, mmu: str) -> VirtualMachine:
    model = long_mode_vm(assemble(source), mmu).guest  # its image and first registers
    assert model is not None

    def start(cpu: CpuState) -> None:
        model.start(cpu)

    return boot_vm(Guest(name, "test", model.image, start), ram="32M", pool="2M", mmu=mmu, name=name, machine=machine)


@pytest.mark.parametrize("mmu", MMUS)
def test_two_vms_on_one_machine_take_turns(mmu: str) -> None:
    sources = PROGRAMS["a loop"], PROGRAMS["a call chain"]
    machine = Machine(16 << 20)
    vms = [vm_on(machine, f"vm{n}", source, mmu) for n, (source, _) in enumerate(sources)]
    running = list(vms)
    numbers = random.Random(8)
    while running:
        vm = numbers.choice(running)
        if vm.run(vm.now + numbers.randrange(1, 500)) is Stop.HALTED:
            running.remove(vm)
    assert [vm.now for vm in vms] == [expected for _, expected in sources]
    alone = [long_mode_vm(assemble(source), mmu) for source, _ in sources]
    for vm in alone:
        freely(vm)
    assert [result(vm) for vm in vms] == [result(vm) for vm in alone]


def test_code_that_both_have_at_the_same_address() -> None:
    """Blocks belong to an engine: neither VM runs, or is timed by, the other's."""
    machine = Machine(16 << 20)
    bodies = "l: inc rax; jmp l", "l: add rax, 2; nop; jmp l"
    vms = [vm_on(machine, f"vm{n}", body, "shadow") for n, body in enumerate(bodies)]
    for _ in range(20):
        for vm in vms:
            vm.run(vm.now + 1000)
    for vm, body, step in zip(vms, bodies, (1, 2), strict=True):
        assert vm.cpu.rax == vm.now // size(body) * step
        assert vm.now == 20 * -(-1000 // size(body)) * size(body)


@pytest.mark.parametrize("mmu", MMUS)
def test_a_plain_engine_between_runs(mmu: str) -> None:
    """An engine that is no VM's has neither clock nor limit, and leaves those of the VM alone."""
    source, expected = PROGRAMS["a loop"]
    done = 0x3000
    plain_code = assemble(f"l: add qword ptr [{done}], 3; dec rcx; jnz l; hlt")
    plain = engine.plain_unicorn(4 << 20, {CODE: plain_code})
    vm = long_mode_vm(assemble(source), mmu)
    while (stop := vm.run(vm.now + 500)) is Stop.DEADLINE:
        before = result(vm)
        plain(CODE, rcx=1000, rdi=DATA)
        late = engine.plain_unicorn(4 << 20, {CODE: plain_code})
        late(CODE, rcx=100)
        assert result(vm) == before
    assert stop is Stop.HALTED
    assert vm.now == expected


def test_a_plain_engine_after_a_vm_is_gone() -> None:
    vm = long_mode_vm(assemble("l: jmp l"), "shadow")
    vm.run(1000)
    plain = engine.plain_unicorn(4 << 20, {CODE: assemble("l: dec rcx; jnz l; hlt")})
    plain(CODE, rcx=10_000)
    del vm
    plain(CODE, rcx=10_000)
    other = long_mode_vm(assemble(PROGRAMS["a loop"][0]), "shadow")
    freely(other)
    assert other.now == PROGRAMS["a loop"][1]


@pytest.mark.parametrize("mmu", ["nested", "shadow"])
def test_a_block_that_changes_itself(mmu: str) -> None:
    """The engine begins it anew at the storing instruction; each executed byte counts once."""
    source, executed = self_modifying()
    results = []
    for _ in range(2):
        vm = long_mode_vm(assemble(source), mmu)
        freely(vm)
        results.append(result(vm))
    assert results[0] == results[1]
    assert results[0][2] == sum(range(51))
    assert results[0][0] == executed
