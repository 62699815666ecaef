"""Short guests for tests: source text around a few instructions, in any processor mode, with no IDT to speak of."""

from __future__ import annotations

_HEAD = """
.code16
    jmp start
.include "platform.inc"
.include "protected.inc"
"""

_TABLES = """
.balign 8
no_idt:
    .word 0
    .long 0
gdt:
    gdt_flat
    .quad 0x00AF9B000000FFFF        # 0x28 64-bit code
gdt_end:
gdt_pointer:
    gdt_pointer_to gdt, gdt_end
"""

_REAL = """
.code16
start:
    lidt [no_idt]
{code}
"""

_PROTECTED = """
.code16
start:
    lidt [no_idt]
    enter_protected_mode gdt_pointer
{code}
"""

_PAGING = """
.code16
start:
    lidt [no_idt]
    enter_protected_mode gdt_pointer
    mov eax, cr4
    or eax, CR4_PSE
    mov cr4, eax
    mov dword ptr [0x10000], 0x87   # the first 4 MiB, writable, open to ring 3
    mov eax, 0x10000
    mov cr3, eax
    mov eax, cr0
    or eax, CR0_PG | CR0_WP
    mov cr0, eax
{code}
"""

_PAE = """
.code16
start:
    lidt [no_idt]
    enter_protected_mode gdt_pointer
    mov eax, cr4
    or eax, CR4_PAE
    mov cr4, eax
    mov dword ptr [0x10000], 0x11001
    mov dword ptr [0x11000], 0x87   # the first 2 MiB, writable, open to ring 3
    mov eax, 0x10000
    mov cr3, eax
    mov eax, cr0
    or eax, CR0_PG | CR0_WP
    mov cr0, eax
{code}
"""

_LONG = """
.code16
start:
    lidt [no_idt]
    enter_protected_mode gdt_pointer
    mov eax, cr4
    or eax, CR4_PAE
    mov cr4, eax
    mov dword ptr [0x10000], 0x11007
    mov dword ptr [0x11000], 0x12007
    mov dword ptr [0x12000], 0x87   # the first 2 MiB, writable, open to ring 3
    mov eax, 0x10000
    mov cr3, eax
    mov ecx, MSR_EFER
    rdmsr
    or eax, EFER_LME | EFER_NXE | EFER_SCE
    wrmsr
    mov eax, cr0
    or eax, CR0_PG | CR0_WP
    mov cr0, eax
    ljmp 0x28:start64
.code64
start64:
{code}
"""

MODES = {"real": _REAL, "protected": _PROTECTED, "paging32": _PAGING, "pae": _PAE, "long": _LONG}


def program(mode: str, code: str) -> str:
    """The source of a guest that executes ``code`` in a mode of MODES.

    Segments are flat, the stack begins at 0x7C00, and the IDT is empty, so that every exception is a triple fault.
    Labels go on lines of their own.
    """
    return _HEAD + MODES[mode].replace("{code}", code) + _TABLES
