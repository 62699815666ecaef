"""Compares two ends of a case, and shows a case."""

from __future__ import annotations

import capstone

from tests.fuzz import layout
from tests.fuzz.cases import Case
from tests.fuzz.difference import Difference
from tests.fuzz.machines import End, start_of

_FX = layout.REGISTER_QWORDS
_IGNORED = {_FX + 1, _FX + 2}  # where the x87's last instruction and operand lay, which QEMU does not know
_FULL = (layout.OUTPUT_END - layout.OUTPUT) // 10
_BITS = {16: capstone.CS_MODE_16, 32: capstone.CS_MODE_32, 64: capstone.CS_MODE_64}


def difference(case: Case, emu: End, other: End) -> Difference | None:
    """What is not the same, if anything."""
    fields = set()
    whole = min(max(end.changed) for end in (emu, other)) if _FULL in (len(emu.changed), len(other.changed)) else None
    for index in emu.changed.keys() | other.changed.keys():
        if whole is not None and index > whole:
            continue  # the guest writes down only so many
        start = start_of(case, index)
        if index not in _IGNORED and emu.changed.get(index, start) != other.changed.get(index, start):
            fields.add(layout.FIELDS[index])
    return Difference(case, emu, other, frozenset(fields)) if fields else None


def show(case: Case) -> str:
    """The case in one line, disassembled."""
    disassembler = capstone.Cs(capstone.CS_ARCH_X86, _BITS[case.bits])
    lines = [f"{line.mnemonic} {line.op_str}".strip() for line in disassembler.disasm(case.code, case["rip"])]
    return f"{case.bits} bit, CPL {case.cpl}, at {case['rip']:x}: {case.code.hex()}  {'; '.join(lines)}"


def show_values(difference: Difference, fields: set[str]) -> list[str]:
    """Both values of each field, a line each: emu's first."""
    lines = []
    for index in sorted(difference.emu.changed.keys() | difference.qemu.changed.keys()):
        if layout.FIELDS[index] in fields:
            start = start_of(difference.case, index)
            emu, qemu = (end.changed.get(index, start) for end in (difference.emu, difference.qemu))
            lines.append(f"{layout.FIELDS[index]}: {emu:x} {qemu:x}")
    return lines
