"""A processor as gdb sees it: the target descriptions, and the registers in their order.

GDB manual, appendix G "Target Descriptions", G.5.9 "i386 Features".  The control registers are a feature of their own,
``emu.control``.

RIP is the linear address of the next instruction, so that breakpoints and disassembly are right where CS has a base,
as in real mode.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from unicorn import x86_const
from unicorn.unicorn_py3.unicorn import uclib

from emu.cpu.stepping import is_within_block
from emu.engine.alone import NOWHERE

if TYPE_CHECKING:
    from emu.machine.processor import Processor
    from emu.machine.vm import VirtualMachine

ARCHITECTURES = {"i8086": 16, "i386": 32, "i386:x86-64": 64}

_GENERAL_64 = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", *(f"r{i}" for i in range(8, 16)))
_GENERAL_32 = ("eax", "ecx", "edx", "ebx", "esp", "ebp", "esi", "edi")
_FLOAT = {
    "fctrl": x86_const.UC_X86_REG_FPCW, "fstat": x86_const.UC_X86_REG_FPSW, "ftag": x86_const.UC_X86_REG_FPTAG,
    "fiseg": x86_const.UC_X86_REG_FCS, "fioff": x86_const.UC_X86_REG_FIP, "foseg": x86_const.UC_X86_REG_FDS,
    "fooff": x86_const.UC_X86_REG_FDP, "fop": x86_const.UC_X86_REG_FOP,
}  # fmt: skip
_CONTROL = (
    "cr0", "cr2", "cr3", "cr4", "cr8", "efer", "star", "lstar", "fmask", "dr6", "dr7", "gdt", "idt", "ldtr", "tr",
)  # fmt: skip
_FLAGS = (
    "CF 0", "PF 2", "AF 4", "ZF 6", "SF 7", "TF 8", "IF 9", "DF 10", "OF 11", "NT 14", "RF 16", "VM 17", "AC 18",
    "VIF 19", "VIP 20", "ID 21",
)  # fmt: skip


@dataclass(frozen=True)
class Register:
    """One register of a description.

    Attributes:
        name: gdb's.
        size: bytes.
        kind: gdb's type.
        get, set: its value as bytes, little-endian; None for one that cannot be written.
    """

    name: str
    size: int
    kind: str
    get: Callable[[Processor], bytes]
    set: Callable[[Processor, bytes], None] | None = None
    group: str = ""


def registers(vm: VirtualMachine, bits: int) -> dict[str, list[Register]]:
    """The registers by the feature that they belong to, in gdb's order.

    Args:
        bits: 16, 32 or 64: the width of the general registers is 64 bits for 64 only.
    """
    wide = bits == 64
    size = 8 if wide else 4
    core = [_general(name, size) for name in (_GENERAL_64 if wide else _GENERAL_32)]
    core.append(Register("rip" if wide else "eip", size, "code_ptr", _get_pc(size), _set_pc))
    core.append(Register("eflags", 4, "flags", lambda p: p.eflags.to_bytes(4, "little"), _set_eflags))
    core += [_selector(name) for name in ("cs", "ss", "ds", "es", "fs", "gs")]
    core += [_engine(f"st{i}", x86_const.UC_X86_REG_ST0 + i, 10, "i387_ext") for i in range(8)]
    core += [_engine(name, number, 4, "int", "float") for name, number in _FLOAT.items()]
    sse = [_engine(f"xmm{i}", x86_const.UC_X86_REG_XMM0 + i, 16, "vec128") for i in range(16 if wide else 8)]
    sse.append(_engine("mxcsr", x86_const.UC_X86_REG_MXCSR, 4, "int", "vector"))
    found = {"org.gnu.gdb.i386.core": core, "org.gnu.gdb.i386.sse": sse}
    if wide:
        found["org.gnu.gdb.i386.segments"] = [_base("fs"), _base("gs")]
    found["emu.control"] = [_control(vm, name) for name in _CONTROL]
    return found


def description(features: dict[str, list[Register]], architecture: str) -> str:
    """The target description in XML."""
    parts = ['<?xml version="1.0"?><!DOCTYPE target SYSTEM "gdb-target.dtd"><target>']
    parts.append(f"<architecture>{architecture}</architecture>")
    for feature, members in features.items():
        parts.append(f'<feature name="{feature}">')
        if feature.endswith("core"):
            fields = "".join(f'<field name="{n}" start="{b}" end="{b}"/>' for n, b in map(str.split, _FLAGS))
            parts.append(f'<flags id="flags" size="4">{fields}</flags>')
        if feature.endswith("sse"):
            parts.append('<vector id="v4f" type="ieee_single" count="4"/><vector id="v16i8" type="int8" count="16"/>')
            parts.append('<vector id="v2d" type="ieee_double" count="2"/><vector id="v4i32" type="int32" count="4"/>')
            fields = "".join(f'<field name="{n}" type="{n}"/>' for n in ("v4f", "v2d", "v16i8", "v4i32"))
            parts.append(f'<union id="vec128">{fields}<field name="uint128" type="uint128"/></union>')
        for one in members:
            group = f' group="{one.group}"' if one.group else ""
            parts.append(f'<reg name="{one.name}" bitsize="{8 * one.size}" type="{one.kind}"{group}/>')
        parts.append("</feature>")
    return "".join([*parts, "</target>"])


def _general(name: str, size: int) -> Register:
    ours = name if size == 8 else "r" + name[1:]
    kind = "data_ptr" if name[1:] in ("bp", "sp") else "int64" if size == 8 else "int32"
    mask = (1 << 8 * size) - 1

    def put(processor: Processor, data: bytes) -> None:
        setattr(processor.registers, ours, int.from_bytes(data, "little"))

    return Register(name, size, kind, lambda p: (getattr(p.registers, ours) & mask).to_bytes(size, "little"), put)


def _get_pc(size: int) -> Callable[[Processor], bytes]:
    mask = (1 << 8 * size) - 1
    return lambda processor: (processor.registers.pc & mask).to_bytes(size, "little")


def _set_pc(processor: Processor, data: bytes) -> None:
    """The processor goes on at another instruction: what is left of its block is not executed."""
    native, cpu = processor.native, processor.registers
    if is_within_block(native):
        native.vtime -= native.block_gva + native.block_size - cpu.pc
    native.block_size, native.step_gva = 0, NOWHERE
    cpu.rip = int.from_bytes(data, "little") - (0 if cpu.bits == 64 else cpu.cs.base)


def _set_eflags(processor: Processor, data: bytes) -> None:
    processor.registers.eflags = int.from_bytes(data, "little") | 2


def _selector(name: str) -> Register:
    return Register(name, 4, "int32", lambda p: getattr(p.registers, name).selector.to_bytes(4, "little"))


def _base(name: str) -> Register:
    return Register(f"{name}_base", 8, "int", lambda p: getattr(p.registers, name).base.to_bytes(8, "little"))


def _engine(name: str, number: int, size: int, kind: str, group: str = "") -> Register:
    """One that the engine keeps in a form of its own."""
    reads, writes = uclib.uc_reg_read, uclib.uc_reg_write

    def get(processor: Processor) -> bytes:
        buffer = ctypes.create_string_buffer(16)
        reads(ctypes.c_void_p(processor.engine.uc), number, buffer)
        return buffer.raw[:size]

    def put(processor: Processor, data: bytes) -> None:
        writes(ctypes.c_void_p(processor.engine.uc), number, ctypes.create_string_buffer(data, 16))

    return Register(name, size, kind, get, put, group)


def _control(vm: VirtualMachine, name: str) -> Register:
    def value(processor: Processor) -> int:
        cpu = processor.registers
        if name == "cr8":
            return vm.platform.lapics[processor.index].cr8
        if name in ("gdt", "idt"):
            return int(getattr(cpu, name + "r").base)
        if name in ("ldtr", "tr"):
            return int(getattr(cpu, name).selector)
        return int(getattr(cpu, name))

    return Register(name, 8, "uint64", lambda p: value(p).to_bytes(8, "little"))
