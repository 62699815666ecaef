"""What is known of the differences, judged by the manuals. docs/conformance.md lists these by name.

A rule looks at one difference and tells which of its fields it explains. What no rule explains is a finding.
"""

from __future__ import annotations

from tests.fuzz.difference import Difference, Rule, all_if, has_opcode, when
from tests.fuzz.instructions import Instruction

_RF = 1 << 16
_BRANCHES = {
    bytes((opcode,)) for opcode in (*range(0x70, 0x80), *range(0xE0, 0xE4), 0xE8, 0xE9, 0xEB, 0xC2, 0xC3, 0xFF)
}
_BRANCHES |= {bytes((0x0F, opcode)) for opcode in range(0x80, 0x90)}


def _swapped_halves(difference: Difference) -> bool:
    def swaps_16_bits(instruction: Instruction) -> bool:
        swap = instruction.opcode[:1] == b"\x0f" and 0xC8 <= instruction.opcode[-1] <= 0xCF
        wide = any(prefix & 0xF8 == 0x48 for prefix in instruction.prefixes)
        return swap and not wide and (0x66 in instruction.prefixes) != (difference.case.bits == 16)

    return difference.holds(swaps_16_bits)


def _short_branch(difference: Difference) -> bool:
    return difference.case.bits == 64 and difference.holds(
        lambda instruction: 0x66 in instruction.prefixes and instruction.opcode in _BRANCHES
    )


def _no_present_bit(difference: Difference) -> bool:
    emu, qemu = difference.values("error")
    return difference.vectors(14, 14) and emu & 8 != 0 and emu ^ qemu in (1, 3) and not qemu & 1


def _is_mmx(instruction: Instruction) -> bool:
    """An instruction on MMX registers, of SSSE3 or between MMX and SSE."""
    if 0x66 in instruction.prefixes and instruction.opcode not in _MMX_WITH_66:
        return False
    if len(instruction.opcode) == 3:
        return instruction.opcode[1] == 0x38 and instruction.opcode[2] < 0x20 or instruction.opcode == b"\x0f\x3a\x0f"
    last = instruction.opcode[-1]
    of_mmx = 0x60 <= last < 0x80 or last in (0xC4, 0xC5) or last > 0xD0
    return instruction.opcode in _MMX_WITH_66 or instruction.opcode[:1] == b"\x0f" and of_mmx


_MMX_WITH_66 = {b"\x0f\x2a", b"\x0f\x2c", b"\x0f\x2d"}


def _mmx_state(difference: Difference) -> set[str]:
    if not difference.holds(_is_mmx):
        return set()
    return {field for field in difference.fields if field == "x87" or field.startswith("st")}


def _mmx_fields(difference: Difference, *beginnings: str) -> set[str]:
    if difference.case.bits != 64 or not difference.holds(_is_mmx):
        return set()
    return {field for field in difference.fields if field.startswith(beginnings)}


def _ports_refused(difference: Difference) -> set[str] | frozenset[str]:
    if not difference.holds(lambda i: i.opcode in (b"\x6c", b"\x6d", b"\x6e", b"\x6f")):
        return set()
    if difference.vectors(14, 13) or difference.vectors(3, 13) or difference.vectors(1, 13):  # with a count of 0, too
        return difference.fields
    if not difference.vectors(13, 13):
        return set()
    return {field for field in difference.fields if field.startswith(("pte", "code", "data", "stack"))}


def _popcnt_of_16_bits(difference: Difference) -> set[str]:
    if difference.case.bits != 16 or not has_opcode("0fb8")(difference):
        return set()
    return {field for field in difference.fields if field.startswith("r")}


def _in_memory_of(difference: Difference, *opcodes: str) -> set[str] | frozenset[str]:
    """Everything after a fault of these, else the accessed bits."""
    if not has_opcode(*opcodes)(difference):
        return set()
    faulted = 14 in difference.values("vector")
    return difference.fields if faulted else {field for field in difference.fields if field.startswith("pte")}


def _x87_flags(difference: Difference) -> set[str]:
    fields = {"x87"} if difference.only_bits("x87", 0x82FF << 16) else set()
    if difference.holds(lambda i: i.opcode in (b"\xdd", b"\xdf", b"\xd9") and i.reg in (4, 6, 7)):  # stored by FSTSW
        fields |= {field for field in difference.fields if field.startswith(("data", "stack", "rax"))}
    return fields & difference.fields


def _refused_at_a_page_end(difference: Difference) -> set[str] | frozenset[str]:
    emu, qemu = difference.values("vector")
    if emu not in (6, 7) or difference.emu.value(difference.case, "rip") & 0xFFF < 0xFF0:
        return set()
    return difference.fields if qemu == 14 else difference.fields & {"pte.code1"}


def _is_sse_in_memory(instruction: Instruction) -> bool:
    return instruction.in_memory and instruction.opcode[:1] == b"\x0f"


def _is_x87(instruction: Instruction) -> bool:
    return len(instruction.opcode) == 1 and instruction.opcode[0] & 0xF8 == 0xD8


def _is_fyl2x(instruction: Instruction) -> bool:
    return instruction.opcode == b"\xd9" and instruction.rest[:1] == b"\xf1"


def _virtual_interrupt_flags(difference: Difference) -> set[str]:
    """In EFLAGS, and where PUSHF stores them."""
    pushed = has_opcode("9c")(difference)
    stored = {field for field in difference.fields if pushed and field.startswith("stack")}
    return stored | ({"rflags"} & difference.fields if difference.only_bits("rflags", 0x180000 | _RF) else set())


def _fault_with_rf(difference: Difference) -> bool:
    """A fault, behind which emu has RF in the image of EFLAGS."""
    return bool(difference.values("rflags")[0] & _RF) and difference.values("vector")[0] not in (1, 3, 4)


RULES = (
    Rule(
        "RF stays on in a block",
        "QEMU",
        "an instruction clears RF when it is done (SDM vol. 3B 17.3.1.1); QEMU does so at a block's end only",
        when("rflags", lambda d: d.only_bits("rflags", _RF) and bool(d.case["rflags"] & _RF)),
    ),
    Rule(
        "a fault pushes RF",
        "QEMU",
        "RF is set in the image of EFLAGS that a fault pushes (SDM vol. 3B 17.3.1.1)",
        when("rflags", lambda d: d.only_bits("rflags", _RF) and _fault_with_rf(d)),
    ),
    Rule(
        "stack addresses that are not canonical",
        "QEMU",
        "#SS, by the segment that the address has by default (SDM vol. 3A 6.15, interrupt 12)",
        all_if(lambda d: d.case.bits == 64 and d.vectors(12, 13)),
    ),
    Rule(
        "TEST as /1",
        "QEMU",
        "F6 /1 and F7 /1 do what /0 does (APM vol. 3, appendix A, group 3)",
        all_if(
            lambda d: d.values("vector")[1] == 6 and d.holds(lambda i: i.opcode in (b"\xf6", b"\xf7") and i.reg == 1)
        ),
    ),
    Rule(
        "an operand that is misaligned and not there",
        "nobody",
        "which of #AC and #PF comes first stands nowhere",
        all_if(lambda d: d.vectors(17, 14)),
    ),
    Rule(
        "no #AC",
        "QEMU",
        "programs must align their operands while CR0.AM and EFLAGS.AC are 1 (SDM vol. 3A 6.15, interrupt 17)",
        all_if(lambda d: d.values("vector")[0] == 17),
    ),
    Rule(
        "IRETD into virtual-8086 mode in long mode",
        "QEMU",
        "#GP (SDM vol. 2, IRET)",
        all_if(lambda d: d.values("vector")[0] == 13 and has_opcode("cf")(d)),
    ),
    Rule(
        "VIF and VIP",
        "QEMU",
        "IRET at CPL 0 loads them (SDM vol. 2, IRET); QEMU has them left from a case before",
        _virtual_interrupt_flags,
    ),
    Rule(
        "SYSENTER, SYSEXIT and SYSRET by maker",
        "nobody",
        "where they are #UD depends on who made the processor (APM vol. 3; SDM vol. 2)",
        all_if(lambda d: {*d.values("vector")} == {6, 13} and has_opcode("0f34", "0f35", "0f07")(d)),
    ),
    Rule(
        "a return to nowhere, and of more than 32 KiB",
        "QEMU",
        "#GP at the return with nothing popped; its operand is not extended by its sign (SDM vol. 2, RET, IRET)",
        all_if(lambda d: has_opcode("c2", "c3", "cf")(d) and (d.values("vector")[0] == 13 or "rsp" in d.fields)),
    ),
    Rule(
        "a fault of a read-modify-write is a read",
        "QEMU",
        "the access was a write (SDM vol. 3A 4.7, W/R); QEMU reads first",
        when("error", lambda d: d.vectors(14, 14) and d.values("error")[0] ^ d.values("error")[1] == 2),
    ),
    Rule(
        "a reserved bit's fault lacks P",
        "QEMU",
        "P is set in the error code of a fault by a reserved bit (SDM vol. 3A 4.7)",
        when("error", _no_present_bit),
    ),
    Rule(
        "INT n through a gate of 16 bytes",
        "QEMU",
        "the error code's index counts vectors: 8n + 2 (SDM vol. 3A 6.13); QEMU says 16n + 2",
        when("error", lambda d: has_opcode("cd")(d) and d.vectors(13, 13) and d.values("error")[0] & 7 == 2),
    ),
    Rule("INT1", "QEMU", "F1 raises #DB (SDM vol. 2, INT n); QEMU has no such instruction", all_if(has_opcode("f1"))),
    Rule(
        "a trap behind STI",
        "QEMU",
        "STI delays interrupts, not the #DB of TF (SDM vol. 2, STI); Bochs agrees",
        all_if(lambda d: has_opcode("fb")(d) and d.values("vector")[0] == 1),
    ),
    Rule(
        "MMX registers with REX.B or REX.X",
        "QEMU",
        "REX does not matter for MMX registers (SDM vol. 2A 2.2.1.2); QEMU takes one that is none",
        lambda d: _mmx_fields(d, "st", "r", "mxcsr"),
    ),
    Rule(
        "EMMS, CVTPS2PI and relatives without OSFXSR, with EM or TS",
        "QEMU",
        "#UD, #NM (SDM vol. 2, CVTPS2PI)",
        all_if(
            lambda d: (
                (not d.case.cr4 & 0x200 or d.case.cr0 & 0xC != 0)
                and d.values("vector")[0] in (6, 7)
                and d.holds(lambda i: i.opcode in _MMX_WITH_66 or i.opcode == b"\x0f\x77")
            )
        ),
    ),
    Rule(
        "a far return reads its stack as the supervisor",
        "QEMU",
        "at CPL 3 it is a user's access (SDM vol. 3A 4.6)",
        all_if(lambda d: has_opcode("ca", "cb", "cf")(d) and d.values("vector")[0] == 14 and d.values("error")[0] > 3),
    ),
    Rule(
        "FBLD",
        "nobody",
        "digits above 9 are undefined (SDM vol. 2, FBLD)",
        lambda d: {field for field in d.fields if field.startswith("st")} if has_opcode("df")(d) else set(),
    ),
    Rule(
        "ROUNDSS, ROUNDSD, CVTPS2PD and CVTDQ2PD read 16 bytes",
        "QEMU",
        "4 and 8 (SDM vol. 2, ROUNDSS, CVTPS2PD)",
        lambda d: _in_memory_of(d, "0f3a0a", "0f3a0b", "0f5a", "0fe6"),
    ),
    Rule(
        "CMPXCHG of 32 bits that fails",
        "nobody",
        "whether the upper half of its register is cleared stands nowhere",
        lambda d: (
            {field for field in d.fields if field.startswith("r") and d.only_bits(field, -1 << 32)}
            if has_opcode("0fb1")(d)
            else set()
        ),
    ),
    Rule(
        "a load that faults half way",
        "emu",
        "the register keeps its value (SDM vol. 3A 6.6); the engine has loaded its first half",
        lambda d: {field for field in d.fields if field.startswith("xmm")} if d.vectors(14, 14) else set(),
    ),
    Rule(
        "MOVBE with 66 and REX.W",
        "QEMU",
        "REX.W is stronger: 64 bits (SDM vol. 2A 2.2.1.2)",
        lambda d: d.fields if d.holds(lambda i: i.opcode == b"\x0f\x38\xf1" and 0x66 in i.prefixes) else set(),
    ),
    Rule(
        "a linear address beyond 32 bits",
        "emu",
        "outside 64-bit mode it is cut to 32 bits (SDM vol. 3A 3.3.2)",
        lambda d: {f for f in ("cr2", "rip") if d.case.bits < 64 and d.only_bits(f, -1 << 32)} & d.fields,
    ),
    Rule(
        "MASKMOVQ",
        "nobody",
        "the order of its bytes, and with it CR2, is not given; with REX.B QEMU takes a mask that is none",
        lambda d: {f for f in d.fields if f.startswith(("cr2", "pte", "data"))} if has_opcode("0ff7")(d) else set(),
    ),
    Rule(
        "x87 exceptions that are not masked",
        "QEMU",
        "they stay pending, and the destination keeps its value (SDM vol. 1 8.5); QEMU writes a result",
        all_if(lambda d: d.case.fx == 3 and d.holds(_is_x87)),
    ),
    Rule(
        "LOCK before what cannot be locked",
        "QEMU",
        "#UD (SDM vol. 2, LOCK): emu and QEMU each miss other ones",
        all_if(lambda d: d.values("vector")[0] == 6 and d.holds(lambda i: 0xF0 in i.prefixes)),
    ),
    Rule("BSWAP of 16 bits", "nobody", "undefined (SDM vol. 2, BSWAP)", all_if(_swapped_halves)),
    Rule(
        "a near branch with 66 in 64-bit mode",
        "nobody",
        "AMD cuts RIP to 16 bits, Intel ignores the prefix (APM vol. 3, Jcc; SDM vol. 2, Jcc)",
        all_if(_short_branch),
    ),
    Rule(
        "MMX state",
        "emu",
        "one whose operand faults changes nothing (SDM vol. 3A 12.2); the engine and QEMU have different ones wrong",
        _mmx_state,
    ),
    Rule(
        "the sign of FPREM's zero",
        "emu",
        "it is the dividend's (SDM vol. 2, FPREM)",
        lambda d: {f for f in d.fields if f.startswith("st")} if has_opcode("d9")(d) else set(),
    ),
    Rule(
        "FYL2X of zero and less",
        "emu",
        "an infinity, or invalid, and ST(0) is popped (SDM vol. 2, FYL2X); the engine does neither",
        lambda d: {f for f in d.fields if f.startswith(("st", "x87"))} if d.holds(_is_fyl2x) else set(),
    ),
    Rule(
        "the underflow of what is flushed to zero",
        "emu",
        "MXCSR.UE is set, too (SDM vol. 1 10.2.3.3)",
        when("mxcsr", lambda d: d.case.fx == 2 and d.only_bits("mxcsr", 0x30)),
    ),
    Rule(
        "ENTER of 32 bits on a 16-bit stack",
        "emu",
        "EBP is written whole (SDM vol. 2, ENTER)",
        when("rbp", has_opcode("c8")),
    ),
    Rule(
        "a refused opcode at a page's end",
        "emu",
        "its last bytes are fetched first, and may fault (SDM vol. 3A 6.9); emu refuses it by its first ones",
        _refused_at_a_page_end,
    ),
    Rule(
        "an operand of SSE that is not aligned",
        "QEMU",
        "#GP (SDM vol. 3A, table 6-7, and each instruction's class of exceptions)",
        all_if(lambda d: d.values("vector")[0] == 13 and d.holds(_is_sse_in_memory)),
    ),
    Rule(
        "the x87's exception flags and C1",
        "emu",
        "arithmetic, conversions and stores set them (SDM vol. 1 8.1.3)",
        _x87_flags,
    ),
    Rule(
        "POPCNT of 16 bits in 16-bit code", "emu", "counts and writes 16 bits (SDM vol. 2, POPCNT)", _popcnt_of_16_bits
    ),
    Rule(
        "INS and OUTS that may not",
        "emu",
        "the permission is looked at before memory (SDM vol. 2, INS)",
        _ports_refused,
    ),
)


def explain(difference: Difference) -> tuple[set[str], set[str]]:
    """The names of the rules that apply, and the fields that none of them explains."""
    names, left = set(), set(difference.fields)
    for rule in RULES:
        explained = rule.explains(difference)
        if explained:
            names.add(rule.name)
            left -= explained
    return names, left
