"""Instructions that are tried in 64-bit code, each with what came of it: nothing, or an exception."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from emu.bench.longmode import CODE, CR0, CR4, DATA, PML4, PRESENT_WRITE_USER, assemble, long_mode_vm
from emu.machine.vm import Stop, VirtualMachine

RESULTS = DATA + 0x8000  # three words for each attempt: vector or 0, error code, CR2
HANDLERS, HANDLER_SIZE = CODE + 0x4000, 64
UD, SS, GP, PF = 6, 12, 13, 14
PML5 = 0x9000
USER_CODE_32 = 0x18 | 3


def _handler(vector: int) -> str:
    """It notes the exception in R13, R14 and R15, and goes on at R12."""
    error = "pop r14;" if vector in (SS, GP, PF) else ""
    return f"mov r13d, {vector}; {error} mov [rsp], r12; iretq"


@dataclass
class Attempts:
    """A program in the making.

    Attributes:
        source: what it does.
        count: attempts so far.
    """

    source: str = f"mov rbp, {RESULTS};"
    count: int = field(default=0)

    def do(self, source: str) -> Attempts:
        """Something that is not to fail."""
        self.source += source + ";"
        return self

    def attempt(self, instruction: str) -> Attempts:
        """Something that may fail.  CR2 is only looked at by code at CPL 0."""
        after = f"after{self.count}"
        self.source += (
            f"xor r13d, r13d; xor r14d, r14d; xor r15d, r15d; lea r12, [rip + {after}]; {instruction}; {after}:;"
            "mov [rbp], r13; mov [rbp + 8], r14; add rbp, 24;"
        )
        self.count += 1
        return self

    def build(
        self, cpu: str | None = "max", mmu: str = "nested", user: bool = False, cr4: int = 0, five_levels: bool = False
    ) -> VirtualMachine:
        """The VM that is about to run it."""
        blob = assemble(self.source + "end: out 0xF4, al; jmp end").ljust(HANDLERS - CODE, b"\xcc")
        assert len(blob) == HANDLERS - CODE
        gates = {}
        for vector in (UD, SS, GP, PF):
            gates[vector] = CODE + len(blob)
            blob += assemble(_handler(vector)).ljust(HANDLER_SIZE, b"\xcc")
        vm = long_mode_vm(blob, mmu, gates, user=user, cpu=cpu)
        if user:
            vm.cpu.eflags |= 3 << 12
        vm.cpu.cr4 |= cr4
        if five_levels:
            vm.memory.write(PML5, struct.pack("<Q", PML4 | PRESENT_WRITE_USER))
            vm.cpu.cr3 = PML5
            vm.cpu.cr4 |= 1 << 12
        return vm

    def run(
        self, cpu: str | None = "max", mmu: str = "nested", user: bool = False, cr4: int = 0, five_levels: bool = False
    ) -> list[tuple[int, int]]:
        """What came of each attempt: vector (0: nothing) and error code."""
        return results(self.build(cpu, mmu, user, cr4, five_levels), self.count)


def results(vm: VirtualMachine, count: int) -> list[tuple[int, int]]:
    """Run to the end: vector and error code of each attempt."""
    assert vm.run(vm.now + 10_000_000) is Stop.EXIT, hex(vm.cpu.rip)
    data = vm.memory.read(RESULTS, 24 * count)
    return [(vector, error) for vector, error, _ in struct.iter_unpack("<3Q", data)]


def move_to(register: str, value: int) -> str:
    """MOV to a control register."""
    return f"mov rax, {value:#x}; mov {register}, rax"


__all__ = ["CR0", "CR4", "GP", "PF", "PML5", "SS", "UD", "Attempts", "move_to", "results"]
