"""Small guests for several processors, in 16-bit code: every processor begins at the same place and takes its own way.

The local APIC is in x2APIC mode, so that it is reached by WRMSR from real mode (Intel SDM vol. 3A, 11.12).
"""

from __future__ import annotations

from pathlib import Path

from tests.test_readme import block

WAKE = 0x40  # a vector

RACE = block("# race.s")
"""Two processors add to a counter without a lock; ends with 1 where an addition was lost, else with 0."""

STARTS_OTHERS = """
    mov ecx, 0x830
    xor edx, edx
    mov eax, 0xC4500
    wrmsr
    mov eax, 0xC4608
    wrmsr
"""
"""Code of the first processor: INIT, and a start-up message for page 8, to all others."""

SENDS_WAKE = f"""
    mov ecx, 0x830
    xor edx, edx
    mov eax, {0xC4000 | WAKE:#x}
    wrmsr
"""
"""Code of a processor: an interrupt with the vector WAKE to all others."""


def exit_with(value: int) -> str:
    """Code that ends the guest."""
    return f"\n    mov al, {value}\n    out 0xF4, al\n"


def several(first: str, others: str, data: str = "", before: str = "") -> str:
    """The source of a guest.

    Args:
        first: code of the first processor, when it has started the others.
        others: code of the others.  Both may end with HLT, IF = 0.
        data: what stands behind the code.
        before: code of the first processor, before it starts the others.
    """
    return f"""
.code16
    mov sp, 0x7000
    mov word ptr [4 * {WAKE}], offset wake_comes
    mov word ptr [4 * {WAKE} + 2], 0
    mov ecx, 0x1B
    rdmsr
    or ah, 4
    wrmsr
    mov bx, ax
    mov ecx, 0x80F
    mov eax, 0x1FF
    xor edx, edx
    wrmsr
    test bh, 1
    jz others
{before}
{STARTS_OTHERS}
{first}
first_stops:
    cli
    hlt
    jmp first_stops
others:
    mov sp, 0x6000
{others}
others_stop:
    cli
    hlt
    jmp others_stop
wake_comes:
    push ax
    push cx
    push dx
    mov ecx, 0x80B
    xor eax, eax
    xor edx, edx
    wrmsr
    pop dx
    pop cx
    pop ax
    iret
.balign 8
{data}
"""


def source_file(directory: Path, text: str) -> Path:
    """A guest's source as a file, for the command line."""
    path = directory / "guest.s"
    path.write_text(text)
    return path
