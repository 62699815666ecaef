"""What a debugger shows of a VM that stands still: registers, code, memory.  Nothing changes by looking.

Everything comes as data; :mod:`emu.debug.text` makes text of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from emu.addr import PAGE_MASK, PAGE_SHIFT, PAGE_SIZE
from emu.dmm.p2m import PageType
from emu.engine.cpustate import REGISTER_NAMES, SEGMENT_NAMES
from emu.engine.events import DmmFault, Event, ExceptionDelivery, InterruptDelivery, PageFault, ShadowFill
from emu.observe import pagewalk
from emu.observe.crash import decode

if TYPE_CHECKING:
    from emu.machine.processor import Processor
    from emu.machine.vm import VirtualMachine

CONTROL_NAMES = ("cr0", "cr2", "cr3", "cr4", "efer")
_LONGEST_INSTRUCTION = 15  # bytes
_LONGEST_BLOCK = 4096  # bytes


@dataclass(frozen=True)
class Instruction:
    """One disassembled instruction.

    Attributes:
        gva: its linear address.
        code: its bytes.
        text: mnemonic and operands, Intel syntax; "(no instruction)" for bytes that are none.
    """

    gva: int
    code: bytes
    text: str


def registers(processor: Processor) -> dict[str, int]:
    """General registers, ``rip``, ``eflags``, segment selectors and control registers by name.

    Outside 64-bit mode there are eight general registers of 32 bits; they keep their 64-bit names.
    """
    cpu = processor.registers
    wide = cpu.bits == 64
    mask = (1 << 64) - 1 if wide else (1 << 32) - 1
    found = {name: getattr(cpu, name) & mask for name in (REGISTER_NAMES if wide else REGISTER_NAMES[:8])}
    found["rip"] = cpu.rip & mask
    found["eflags"] = processor.eflags
    found |= {name: getattr(cpu, name).selector for name in SEGMENT_NAMES}
    return found | {name: getattr(cpu, name) for name in CONTROL_NAMES}


def address_named(vm: VirtualMachine, name: str) -> int | None:
    """The gva that a register holds; ``rip`` and ``rsp`` with their segment's base.  None: no such register."""
    cpu = vm.cpu
    name = name.lower()
    name = {"pc": "rip", "eip": "rip", "ip": "rip", "esp": "rsp", "sp": "rsp"}.get(name, name)
    if name == "rip":
        return cpu.pc
    if name == "rsp":
        wide = cpu.bits == 64 or cpu.ss.flags >> 22 & 1  # B: the stack pointer is ESP, not SP
        return cpu.rsp if cpu.bits == 64 else cpu.ss.base + (cpu.rsp & (0xFFFF_FFFF if wide else 0xFFFF)) & 0xFFFF_FFFF
    if name.startswith("e") and "r" + name[1:] in REGISTER_NAMES[:8]:
        name = "r" + name[1:]
    return registers(vm.processor).get(name)


def read(vm: VirtualMachine, gva: int, size: int) -> bytes:
    """What the guest would find at ``gva``: up to ``size`` bytes, fewer where nothing is mapped or a policy keeps it.

    Pages that the guest has not touched yet are shown as it will find them.
    """
    data = b""
    while len(data) < size:
        at = gva + len(data)
        gpa = pagewalk.translate(vm, at)
        length = min(size - len(data), PAGE_SIZE - (at & PAGE_MASK))
        piece = None if gpa is None else _read_physical(vm, gpa, length)
        if piece is None:
            break
        data += piece
    return data


def _read_physical(vm: VirtualMachine, gpa: int, size: int) -> bytes | None:
    piece = pagewalk.peek(vm, gpa, size)
    if piece is not None:
        return piece
    kind = vm.p2m.type(gpa >> PAGE_SHIFT)
    if kind == PageType.EMPTY:
        return bytes(size)
    if kind == PageType.IMAGE and vm.guest is not None:
        return vm.guest.image.page(gpa >> PAGE_SHIFT)[gpa & PAGE_MASK :][:size]
    return None


def code(vm: VirtualMachine, gva: int | None = None, before: int = 3, after: int = 5) -> list[Instruction]:
    """Instructions from ``gva`` on; without it around the one that comes next.

    Args:
        before: instructions before the next one at most.  Only those of its own block of code are known.
        after: instructions behind the first one, or behind the next one.
    """
    if gva is not None:
        return _decode(vm, gva, (after + 1) * _LONGEST_INSTRUCTION)[: after + 1]
    pc, block = vm.cpu.pc, int(vm.processor.native.block_gva)
    if 0 < pc - block <= min(int(vm.processor.native.block_size), _LONGEST_BLOCK):
        found = _decode(vm, block, pc - block + (after + 1) * _LONGEST_INSTRUCTION)
        here = next((i for i, instruction in enumerate(found) if instruction.gva == pc), None)
        if here is not None:
            return found[max(0, here - before) : here + after + 1]
    return _decode(vm, pc, (after + 1) * _LONGEST_INSTRUCTION)[: after + 1]


def _decode(vm: VirtualMachine, gva: int, size: int) -> list[Instruction]:
    data = read(vm, gva, size)
    found = [Instruction(at, raw, text) for at, raw, text in decode(data, gva, vm.cpu.bits)]
    if not found and data:
        return [Instruction(gva, data[:_LONGEST_INSTRUCTION], "(no instruction)")]
    return found


def event_gva(vm: VirtualMachine, event: Event) -> int | None:
    """The gva that an event is about, on its processor; None when it is about none, or it is not known."""
    with vm.looking_at(event.cpu):
        match event:
            case PageFault() | ShadowFill():
                return event.gva
            case ExceptionDelivery() | InterruptDelivery():
                return vm.cpu.pc  # of the handler
            case DmmFault():
                return _missed_gva(vm, event.gfn)
    return None


def event_gfn(event: Event) -> int | None:
    """The gfn that an event is about; None when it is about none."""
    gpa: int | None = getattr(event, "gpa", None)
    gfn: int | None = getattr(event, "gfn", None)
    return gpa >> PAGE_SHIFT if gpa is not None else gfn


def _missed_gva(vm: VirtualMachine, gfn: int) -> int | None:
    """The gva whose access needed ``gfn``: the last one that the engine could not make, if it leads there."""
    from emu.engine.cpustate import load_u64

    gva = load_u64(int(vm.processor.native.fault_address_at)) & (1 << 64) - 1
    gpa = pagewalk.translate(vm, gva)
    return gva if gpa is not None and gpa >> PAGE_SHIFT == gfn else None
