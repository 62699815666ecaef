"""A VM in 64-bit mode with a few tables, for tests that write a few instructions and look what they do.

One page table maps the lowest 2 MiB. A page stands at its own address, writable, executable and for the supervisor
only, until a test maps it otherwise. Code ends with HLT, which halts at CPL 0 and raises #GP at CPL 3; without an IDT
any exception is a triple fault, and CR2 and RIP tell which one it was.
"""

from __future__ import annotations

from typing import Any

from capstone import CS_ARCH_X86, CS_MODE_64, Cs
from capstone.x86 import X86_OP_MEM, X86_REG_RIP
from keystone import KS_ARCH_X86, KS_MODE_32, KS_MODE_64, Ks

from emu.engine.cpustate import CR4_PAE, EFER_LMA, EFER_LME, EFER_NXE
from emu.machine.vm import Stop
from tests.mmu.harness import new_vm, set_privilege
from tests.mmu.processors import only
from tests.oracles.paging_model import CR0_PE, CR0_PG, CR0_WP, PAGE, Control

RAM = 1 << 20  # bytes
PML4, PDPT, PD, PT = 0x1000, 0x2000, 0x3000, 0x4000  # gpas
P, W, U, NX = 1, 2, 4, 1 << 63
RWX, RW, RX, RO = P | W, P | W | NX, P, P | NX  # supervisor pages
STACK = 0x6000  # first RSP; the page below it is the stack

_disassembler = Cs(CS_ARCH_X86, CS_MODE_64)
_disassembler.detail = True
_ASSEMBLERS = {64: Ks(KS_ARCH_X86, KS_MODE_64), 32: Ks(KS_ARCH_X86, KS_MODE_32)}


def assemble(text: str, gva: int, bits: int = 64) -> bytes:
    code, _ = _ASSEMBLERS[bits].asm(text, gva, as_bytes=True)
    assert code is not None
    if bits == 64 and "rip" not in text:  # Keystone gets some plain addresses wrong
        for instruction in _disassembler.disasm(bytes(code), gva):
            for operand in instruction.operands:
                if operand.type == X86_OP_MEM and operand.mem.base == X86_REG_RIP:
                    address = instruction.address + instruction.size + operand.mem.disp
                    assert str(address) in text, f"{instruction.mnemonic} {instruction.op_str} in {text}"
    return bytes(code)


class Bench:
    """See the module. `vm` is the VM, `keeper` its policy that keeps evicted pages.

    Args:
        cpus: processors, all of them started; the first one runs until `on` says else.
    """

    def __init__(self, mmu: str, cpus: int = 1) -> None:
        self.vm, self.keeper = new_vm(RAM, mmu, cpus)
        self.cr4 = CR4_PAE
        for processor in self.vm.processors:
            processor.registers.idtr.set(0, 0, 0, 0)
        for table, below in ((PML4, PDPT), (PDPT, PD), (PD, PT)):
            self.write(table, (below | P | W | U).to_bytes(8, "little"))
        for gva in range(0, RAM, PAGE):
            self.map(gva, gva, RWX)

    def on(self, cpu: int) -> Bench:
        """The same with processor `cpu` running, and the others standing still."""
        only(self.vm, cpu)
        return self

    def map(self, gva: int, gpa: int, flags: int) -> None:
        """Make the page table map a page, from outside the guest."""
        self.write(pte_of(gva), (gpa | flags).to_bytes(8, "little"))

    def write(self, gpa: int, data: bytes) -> None:
        self.vm.memory.write(gpa, data)

    def read(self, gpa: int, size: int) -> int:
        return int.from_bytes(self.vm.memory.read(gpa, size), "little")

    def put(self, gpa: int, text: str, gva: int | None = None, bits: int = 64) -> int:
        """Assemble to gpa what will run at gva (the same by default); returns its size."""
        code = assemble(text, gpa if gva is None else gva, bits)
        self.write(gpa, code)
        return len(code)

    def enter(self, gva: int, cpl: int = 0, bits: int = 64, stack: int = STACK) -> None:
        """Set the registers that :meth:`start` begins with."""
        control = Control(CR0_PE | CR0_PG | CR0_WP, PML4, self.cr4, EFER_LME | EFER_LMA | EFER_NXE, cpl)
        cpu: Any = self.vm.cpu
        cpu.cr0, cpu.cr3, cpu.cr4, cpu.efer, cpu.cr2 = control.cr0, control.cr3, control.cr4, control.efer, 0
        set_privilege(self.vm, control, bits)
        cpu.rip, cpu.rsp = gva, stack

    def start(self, gva: int, cpl: int = 0, bits: int = 64, **registers: int) -> Stop:
        """Run from gva, in 64-bit or 32-bit code, on a fresh stack, until the guest halts or faults."""
        self.enter(gva, cpl, bits)
        cpu: Any = self.vm.cpu
        for name, value in registers.items():
            setattr(cpu, name, value)
        self.vm.processor.native.shutdown = 0
        return self.vm.run(until=self.vm.now + 1_000_000)

    def call(self, gva: int, **registers: int) -> int:
        """Run a function that halts; returns RAX."""
        assert self.start(gva, **registers) is Stop.HALTED, f"stopped at {self.vm.cpu.rip:#x}, CR2 {self.vm.cpu.cr2:#x}"
        return int(self.vm.cpu.rax)


def pte_of(gva: int) -> int:
    """The gpa of the entry that maps gva."""
    return PT + gva // PAGE * 8
