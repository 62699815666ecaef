"""A difference between emu and a witness, and the parts that rules are made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tests.fuzz.cases import Case
from tests.fuzz.instructions import Instruction
from tests.fuzz.machines import End


@dataclass(frozen=True)
class Difference:
    """A case that did not end the same on emu and on QEMU; ``fields`` are the names that differ."""

    case: Case
    emu: End
    qemu: End
    fields: frozenset[str]

    def values(self, name: str) -> tuple[int, int]:
        """emu's and QEMU's, of a field in layout.FIELDS."""
        return self.emu.value(self.case, name), self.qemu.value(self.case, name)

    def vectors(self, emu: int, qemu: int) -> bool:
        return self.values("vector") == (emu, qemu)

    def holds(self, test: Callable[[Instruction], bool]) -> bool:
        """True when the test is true of one of the instructions."""
        return any(test(instruction) for instruction in self.case.program)

    def only_bits(self, name: str, mask: int) -> bool:
        """True when the field's two values differ in nothing but these bits."""
        emu, qemu = self.values(name)
        return not (emu ^ qemu) & ~mask


@dataclass(frozen=True)
class Rule:
    """A known difference.

    Attributes:
        wrong: "QEMU", "emu", or "nobody" where the manual leaves it open.
        why: what is right, and where that stands.
    """

    name: str
    wrong: str
    why: str
    explains: Callable[[Difference], set[str] | frozenset[str]]


def when(field: str, true: Callable[[Difference], bool]) -> Callable[[Difference], set[str]]:
    """Explains one field."""
    return lambda difference: {field} if field in difference.fields and true(difference) else set()


def all_if(true: Callable[[Difference], bool]) -> Callable[[Difference], frozenset[str]]:
    """Explains every field."""
    return lambda difference: difference.fields if true(difference) else frozenset()


def has_opcode(*opcodes: str) -> Callable[[Difference], bool]:
    """True of a difference with one of these opcodes, in hexadecimal digits, in its program."""
    codes = {bytes.fromhex(digits) for digits in opcodes}
    return lambda difference: difference.holds(lambda instruction: instruction.opcode in codes)
