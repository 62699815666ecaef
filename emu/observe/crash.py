"""The crash report: what a triple fault left behind, for people.

Everything is read without changing it.  The engine keeps no history of single instructions; what it does keep is the
block of code that it entered last, so the instructions from there to the one that crashed are shown.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from emu.engine.cpustate import REGISTER_NAMES, SEGMENT_NAMES
from emu.observe import pagewalk

if TYPE_CHECKING:
    from emu.machine.vm import VirtualMachine

EXCEPTION_NAMES = {
    0: "#DE divide error", 1: "#DB debug", 3: "#BP breakpoint", 4: "#OF overflow", 5: "#BR bound range",
    6: "#UD invalid opcode", 7: "#NM no coprocessor", 8: "#DF double fault", 10: "#TS invalid TSS",
    11: "#NP segment not present", 12: "#SS stack fault", 13: "#GP general protection", 14: "#PF page fault",
    16: "#MF x87 error", 17: "#AC alignment", 18: "#MC machine check", 19: "#XM SIMD error",
}  # fmt: skip
_FLAG_NAMES = ((0, "CF"), (2, "PF"), (4, "AF"), (6, "ZF"), (7, "SF"), (8, "TF"), (9, "IF"), (10, "DF"), (11, "OF"),
               (14, "NT"), (17, "VM"), (18, "AC"))  # fmt: skip
_CR0_NAMES = ((0, "PE"), (1, "MP"), (2, "EM"), (3, "TS"), (16, "WP"), (31, "PG"))
_CR4_NAMES = ((0, "VME"), (4, "PSE"), (5, "PAE"), (7, "PGE"), (9, "OSFXSR"), (20, "SMEP"), (21, "SMAP"))
_EFER_NAMES = ((0, "SCE"), (8, "LME"), (10, "LMA"), (11, "NXE"))
_BEFORE, _AFTER = 12, 3  # most instructions shown before and after the one at RIP
_LONGEST_INSTRUCTION = 15  # bytes
_LONGEST_BLOCK = 4096  # bytes
_STACK_WORDS = 16


def report(vm: VirtualMachine) -> str:
    """The report on a VM whose run ended with a triple fault; several lines, no line end behind the last one."""
    with vm.looking_at(None):  # the processor that shut down ran last
        sections = [_what_happened(vm), registers(vm), disassembly(vm), stack(vm)]
        walked = {vm.cpu.cr2: "CR2", vm.cpu.pc: "RIP"} if pagewalk.paging_mode(vm) else {vm.cpu.pc: "RIP"}
        sections += [f"{name}: {pagewalk.render(pagewalk.explain(vm, gva))}" for gva, name in walked.items()]
        return "\n\n".join(sections)


def _what_happened(vm: VirtualMachine) -> str:
    native, cpu = vm.processor.native, vm.cpu
    which = f"processor {vm.processor.index}, " if len(vm.processors) > 1 else ""
    state = f"{which}CPL {cpu.cpl}, {cpu.bits}-bit code"
    lines = [f"--- guest crash: triple fault, {vm.now} ns of virtual time, {state} ---"]
    vector, met, prior = int(native.pending_vector), int(native.fault_vector), int(native.pending_prior)
    first = f" (after {exception_name(prior - 1)})" if prior else ""
    lines.append(
        f"The CPU could not enter the handler of {exception_name(vector)}{first}: on the way it met "
        f"{exception_name(met)}, and shut down."
    )
    lines.append(f"The instruction at fault is at {cpu.cs.selector:#x}:{cpu.rip:#x}, linear {cpu.pc:#x}.")
    here = f"processor {vm.processor.index} "
    lines += [f"Meanwhile {line}." for line in processors(vm) if not line.startswith(here)]
    return "\n".join(lines)


def processors(vm: VirtualMachine) -> list[str]:
    """What each processor of a VM with several does; no lines for a VM with one."""
    if len(vm.processors) == 1:
        return []
    lines = []
    for processor in vm.processors:
        registers = processor.registers
        what = {"running": "runs", "halted": "is halted", "waiting": "waits for a start-up message"}[processor.activity]
        where = "" if processor.activity == "waiting" else f" at linear {registers.pc:#x}, CPL {registers.cpl}"
        lines.append(f"processor {processor.index} {what}{where}")
    return lines


def exception_name(vector: int) -> str:
    """An exception in words."""
    return EXCEPTION_NAMES.get(vector, f"vector {vector:#x}")


def registers(vm: VirtualMachine) -> str:
    """General, control and segment registers."""
    cpu = vm.cpu
    digits = 16 if cpu.bits == 64 else 8
    names = REGISTER_NAMES if cpu.bits == 64 else REGISTER_NAMES[:8]
    mask = (1 << 4 * digits) - 1

    def cell(name: str, value: int) -> str:
        return f"{name.upper():<4} {value & mask:0{digits}x}"

    prefix = "r" if cpu.bits == 64 else "e"
    cells = [cell(name if name[1].isdigit() else prefix + name[1:], getattr(cpu, name)) for name in names]
    cells += [cell(f"{prefix}ip", cpu.rip)]
    lines = ["  ".join(cells[i : i + 4]) for i in range(0, len(cells), 4)]
    lines.append(f"EFLAGS {_bits(vm.eflags, _FLAG_NAMES)}, IOPL {vm.eflags >> 12 & 3}")
    efer = _bits(cpu.efer, _EFER_NAMES)
    lines.append(f"CR0 {_bits(cpu.cr0, _CR0_NAMES)}  CR4 {_bits(cpu.cr4, _CR4_NAMES)}  EFER {efer}")
    lines.append(f"CR2 {cpu.cr2:#x}  CR3 {cpu.cr3:#x}")
    for name in (*SEGMENT_NAMES, "ldtr", "tr"):
        segment = getattr(cpu, name)
        lines.append(
            f"{name.upper():<4} {segment.selector:04x}  base {segment.base:08x}  limit {segment.limit:08x}  "
            f"flags {segment.flags >> 8 & 0xFFFF:04x}"
        )
    for name in ("gdtr", "idtr"):
        table = getattr(cpu, name)
        lines.append(f"{name.upper():<10} base {table.base:08x}  limit {table.limit:04x}")
    return "\n".join(lines)


def disassembly(vm: VirtualMachine) -> str:
    """The instructions from the beginning of the last block to RIP, and some behind it."""
    pc, block = vm.cpu.pc, int(vm.processor.native.block_gva)
    if not pagewalk.peek_virtual(vm, pc, 1):
        return "\n".join([f"no code can be read at {pc:#x}; the block of code before that:", *_block(vm, block)])
    if not 0 <= pc - block < _LONGEST_BLOCK:
        block = pc
    lines = _instructions(vm, block, pc - block + (_AFTER + 1) * _LONGEST_INSTRUCTION)
    here = next((i for i, line in enumerate(lines) if line.startswith("=>")), None)
    if here is None:
        lines, here = _instructions(vm, pc, (_AFTER + 1) * _LONGEST_INSTRUCTION), 0
    if not lines:
        data = pagewalk.peek_virtual(vm, pc, _LONGEST_INSTRUCTION)
        lines = [f"=> {pc:8x}  {data.hex()}  (no instruction)"]
    return "\n".join(["the last block of code:", *lines[max(0, here - _BEFORE) : here + _AFTER + 1]])


def _instructions(vm: VirtualMachine, gva: int, size: int) -> list[str]:
    pc = vm.cpu.pc
    decoded = decode(pagewalk.peek_virtual(vm, gva, size), gva, vm.cpu.bits)
    return [f"{'=>' if at == pc else '  '} {at:8x}  {raw.hex():<20}  {text}" for at, raw, text in decoded]


def _block(vm: VirtualMachine, gva: int) -> list[str]:
    """The instructions from ``gva`` to the first that goes elsewhere."""
    lines = []
    for line in _instructions(vm, gva, _BEFORE * _LONGEST_INSTRUCTION)[:_BEFORE]:
        lines.append(line)
        if re.search(r"  (j\w+|l?jmp|l?call|ret\w*|iret\w*|int\w*|loop\w*|sys\w+|hlt)( |$)", line):
            break
    return lines


def decode(data: bytes, gva: int, bits: int) -> list[tuple[int, bytes, str]]:
    """Disassemble: (gva, bytes, text) of each instruction, up to the first that is none."""
    import capstone

    mode = {16: capstone.CS_MODE_16, 32: capstone.CS_MODE_32, 64: capstone.CS_MODE_64}[bits]
    engine = capstone.Cs(capstone.CS_ARCH_X86, mode)
    return [(i.address, bytes(i.bytes), f"{i.mnemonic} {i.op_str}".rstrip()) for i in engine.disasm(data, gva)]


def stack(vm: VirtualMachine) -> str:
    """The words at the top of the stack."""
    cpu = vm.cpu
    size = 8 if cpu.bits == 64 else 4 if cpu.ss.flags >> 22 & 1 else 2
    rsp = cpu.rsp & ((1 << 8 * size) - 1)
    top = rsp if size == 8 else cpu.ss.base + rsp & 0xFFFF_FFFF
    data = pagewalk.peek_virtual(vm, top, _STACK_WORDS * size)
    values = [int.from_bytes(data[i : i + size], "little") for i in range(0, len(data) - size + 1, size)]
    words = [f"{value:0{2 * size}x}" for value in values]
    if not words:
        return f"stack at {top:#x}: not mapped"
    per_line = 4 if size == 8 else 8
    lines = [f"{top + i * size:8x}  {' '.join(words[i : i + per_line])}" for i in range(0, len(words), per_line)]
    return "\n".join([f"stack at {top:#x}:", *lines])


def _bits(value: int, names: tuple[tuple[int, str], ...]) -> str:
    return f"{value:08x} ({' '.join(name for bit, name in names if value >> bit & 1)})"
