"""A table of instruction encodings, written from the opcode maps of the SDM (vol. 2D, appendix A).

An opcode's form says what follows it: M a ModRM byte (with SIB and displacement), then immediates: b, w, z (16 or 32
bits by operand size), v (as z, 64 bits with REX.W), J and K branch distances of 8 bits and of z, A a far pointer, O an
offset of the address size. A number before M restricts the ModRM's reg field: "M024" has only the groups' members 0, 2
and 4. Then come marks: "!" may not run at CPL 0, because it would take the batch guest's machine away, "-" does not
exist in 64-bit mode (or is a prefix there), "r" and "m" only with a register or a memory operand.

Before most opcodes of SSE and MMX the prefixes 66, F3 and F2 choose the instruction. ``selectors`` tells which of them
exist: "n" for none of the three, "6", "3", "2".

Left out on purpose: reserved combinations of these, what gives another answer on each machine (CPUID, RDTSC, RDPMC,
RDRAND, MONITOR), what waits (HLT and MWAIT at CPL 0), virtualisation, VEX, EVEX and XOP.
"""

from __future__ import annotations


def _one_byte() -> dict[int, str]:
    table = {}
    for base in range(0, 0x40, 8):
        table |= {base + low: "M" for low in range(4)} | {base + 4: "b", base + 5: "z"}
    table |= dict.fromkeys((0x06, 0x07, 0x0E, 0x16, 0x17, 0x1E, 0x1F, 0x27, 0x2F, 0x37, 0x3F), "-")
    table |= dict.fromkeys(range(0x40, 0x50), "-") | dict.fromkeys(range(0x50, 0x60), "")
    table |= {0x60: "-", 0x61: "-", 0x62: "Mm-", 0x63: "M", 0x68: "z", 0x69: "Mz", 0x6A: "b", 0x6B: "Mb"}
    table |= dict.fromkeys(range(0x6C, 0x70), "!") | dict.fromkeys(range(0x70, 0x80), "J")
    table |= {0x80: "Mb", 0x81: "Mz", 0x82: "Mb-", 0x83: "Mb"} | dict.fromkeys(range(0x84, 0x8F), "M") | {0x8F: "M0"}
    table |= dict.fromkeys(range(0x90, 0x9A), "") | {0x9A: "A-"} | dict.fromkeys(range(0x9B, 0xA0), "")
    table |= dict.fromkeys(range(0xA0, 0xA4), "O") | dict.fromkeys(range(0xA4, 0xA8), "")
    table |= {0xA8: "b", 0xA9: "z"} | dict.fromkeys(range(0xAA, 0xB0), "")
    table |= dict.fromkeys(range(0xB0, 0xB8), "b") | dict.fromkeys(range(0xB8, 0xC0), "v")
    table |= {0xC0: "Mb", 0xC1: "Mb", 0xC2: "w", 0xC3: "", 0xC4: "Mm-", 0xC5: "Mm-", 0xC6: "M0b", 0xC7: "M0z"}
    table |= {0xC8: "wb", 0xC9: "", 0xCA: "w", 0xCB: "", 0xCC: "", 0xCD: "b", 0xCE: "-", 0xCF: ""}
    table |= dict.fromkeys(range(0xD0, 0xD4), "M") | {0xD4: "b-", 0xD5: "b-", 0xD7: ""}
    table |= dict.fromkeys(range(0xD8, 0xE0), "M") | dict.fromkeys(range(0xE0, 0xE4), "J")
    table |= dict.fromkeys(range(0xE4, 0xE8), "b!") | {0xE8: "K", 0xE9: "K", 0xEA: "A-", 0xEB: "J"}
    table |= dict.fromkeys(range(0xEC, 0xF0), "!") | {0xF1: "", 0xF4: "!", 0xF5: "", 0xF6: "M", 0xF7: "M"}
    return table | dict.fromkeys(range(0xF8, 0xFE), "") | {0xFE: "M01", 0xFF: "M0123456"}


def _two_byte() -> dict[int, str]:
    table = {0x00: "M0145", 0x01: "M014m", 0x02: "M", 0x03: "M", 0x05: "", 0x06: "", 0x08: "!", 0x09: "", 0x0B: ""}
    table |= (
        {0x07: "!", 0x0D: "M1m"}
        | dict.fromkeys(range(0x10, 0x18), "M")
        | {0x13: "Mm", 0x17: "Mm"}
        | {0x18: "M0123m", 0x1F: "M"}
    )
    table |= dict.fromkeys(range(0x20, 0x24), "Mr!") | dict.fromkeys(range(0x28, 0x30), "M") | {0x2B: "Mm"}
    table |= {0x30: "!", 0x32: "!", 0x34: "!", 0x35: "!"} | dict.fromkeys(range(0x40, 0x50), "M")
    table |= (
        dict.fromkeys(range(0x50, 0x70), "M")
        | {0x50: "Mr"}
        | {0x70: "Mb", 0x71: "M246rb", 0x72: "M246rb", 0x73: "M26rb"}
    )
    table |= dict.fromkeys((0x74, 0x75, 0x76, 0x7C, 0x7D, 0x7E, 0x7F), "M") | {0x77: ""}
    table |= dict.fromkeys(range(0x80, 0x90), "K") | dict.fromkeys(range(0x90, 0xA0), "M")
    table |= {0xA0: "", 0xA1: "", 0xA3: "M", 0xA4: "Mb", 0xA5: "M", 0xA8: "", 0xA9: "", 0xAA: "", 0xAB: "M"}
    table |= {0xAC: "Mb", 0xAD: "M", 0xAE: "M12356", 0xAF: "M"} | dict.fromkeys(range(0xB0, 0xB8), "M")
    table |= {0xB8: "M", 0xBA: "M4567b"} | dict.fromkeys((0xB3, 0xBB, 0xBC, 0xBD, 0xBE, 0xBF, 0xC0, 0xC1, 0xC3), "M")
    table |= {0xC2: "Mb", 0xC4: "Mb", 0xC5: "Mrb", 0xC6: "Mb", 0xC7: "M1m"} | dict.fromkeys(range(0xC8, 0xD0), "")
    table |= dict.fromkeys(range(0xD0, 0xFF), "M")
    return table | {0xD7: "Mr", 0xE7: "Mm", 0xF0: "Mm", 0xF7: "Mr"}


ONE_BYTE = _one_byte()
TWO_BYTE = _two_byte()
MAP_38 = dict.fromkeys((*range(0x0C), 0x1C, 0x1D, 0x1E, *range(0x20, 0x26), 0x28, 0x29, 0x2B, 0xF0, 0xF1), "M")
MAP_38 |= dict.fromkeys((*range(0x30, 0x36), *range(0x37, 0x42)), "M") | {0x2A: "Mm"}
MAP_3A = dict.fromkeys([*range(0x08, 0x10), 0x14, 0x15, 0x16, 0x17, 0x20, 0x21, 0x22, 0x40, 0x41, 0x42], "Mb")
MAPS = ((b"", ONE_BYTE), (b"\x0f", TWO_BYTE), (b"\x0f\x38", MAP_38), (b"\x0f\x3a", MAP_3A))


def _sse() -> dict[int, str]:
    table = dict.fromkeys((0x10, 0x11, 0x2A, 0x2C, 0x2D, 0x51, 0x58, 0x59, 0x5A, 0x5C, 0x5D, 0x5E, 0x5F, 0xC2), "n632")
    table |= dict.fromkeys((*range(0x13, 0x16), 0x17, 0x28, 0x29, 0x2B, 0x2E, 0x2F, 0x50, *range(0x54, 0x58)), "n6")
    table |= dict.fromkeys((*range(0x60, 0x6C), 0x6E, *range(0x71, 0x77), 0xC4, 0xC5, 0xC6), "n6")
    table |= dict.fromkeys((*range(0xD1, 0xD6), *range(0xD7, 0xE6), *range(0xE7, 0xF0), *range(0xF1, 0xFF)), "n6")
    table |= {0x12: "n32", 0x16: "n3", 0x52: "n3", 0x53: "n3", 0x5B: "n63", 0x6C: "6", 0x6D: "6", 0x6F: "n63"}
    table |= {0x70: "n632", 0x77: "n", 0x7C: "62", 0x7D: "62", 0x7E: "n63", 0x7F: "n63", 0xD0: "62", 0xD6: "6"}
    return table | {0xE6: "632", 0xF0: "2", 0xB8: "3", 0xAE: "n"}


_SSE = _sse()


def selectors(escape: bytes, opcode: int) -> str:
    """Which of the prefixes 66, F3 and F2 may stand before it to choose an instruction; empty when they choose none."""
    if escape == b"\x0f":
        return _SSE.get(opcode, "")
    if escape == b"\x0f\x38":
        return "n6" if opcode < 0x20 else "n62" if opcode >= 0xF0 else "6"
    if escape == b"\x0f\x3a":
        return "n6" if opcode == 0x0F else "6"
    return ""
