"""First CPU states that boot protocols ask for: real mode, flat protected mode and long mode."""

from __future__ import annotations

import struct
from collections.abc import Callable

from emu.engine.cpustate import CR0_ET, CR0_PE, CR0_PG, CR4_PAE, EFER_LMA, EFER_LME, CpuState

CODE_16 = 0x9B00  # present, DPL 0, code, readable, accessed; 16-bit, byte granularity
DATA_16 = 0x9300  # present, DPL 0, data, writable, accessed
CODE_32 = 0xCF9B00  # present, DPL 0, code, readable, accessed; 32-bit, page granularity
DATA_32 = 0xCF9300  # present, DPL 0, data, writable, accessed; 32-bit, page granularity
CODE_64 = 0xAF9B00  # the same for 64-bit code
_LIMIT = 0xFFFF_FFFF

RESET_SELECTOR = 0xF000  # CS after reset; its base need not be 16 times that
RESET_IP = 0xFFF0
LONG_MODE_TABLES = 6  # pages: what :func:`identity_tables` needs
_LARGE_PAGE = 2 << 20


def descriptor(flags: int) -> bytes:
    """The GDT entry of a flat segment with the given attributes, as in :class:`emu.engine.cpustate.Segment`."""
    return struct.pack("<II", 0xFFFF, flags | 0xF0000)


def identity_tables(gpa: int) -> bytes:
    """4-level page tables, to be placed at ``gpa``, that map the first 4 GiB to themselves by 2 MiB pages."""
    present_writable = 3
    pml4 = struct.pack("<Q", gpa + 0x1000 | present_writable).ljust(4096, b"\0")
    pdpt = struct.pack("<4Q", *(gpa + 0x2000 + (i << 12) | present_writable for i in range(4))).ljust(4096, b"\0")
    large = present_writable | 0x80
    directories = struct.pack("<2048Q", *(i * _LARGE_PAGE | large for i in range(2048)))
    return pml4 + pdpt + directories


def _set_segments(cpu: CpuState, code: int, data: int, code_flags: int) -> None:
    cpu.cs.set(code, 0, _LIMIT, code_flags)
    for segment in (cpu.ds, cpu.es, cpu.fs, cpu.gs, cpu.ss):
        segment.set(data, 0, _LIMIT, DATA_32)


def enter_real_mode(cpu: CpuState) -> None:
    """The state after reset, but for the entry point: everything at zero."""
    cpu.cr0, cpu.cr3, cpu.cr4, cpu.efer = CR0_ET, 0, 0, 0
    for segment in (cpu.ds, cpu.es, cpu.ss, cpu.fs, cpu.gs):
        segment.set(0, 0, 0xFFFF, DATA_16)
    cpu.cs.set(0, 0, 0xFFFF, CODE_16)
    cpu.ldtr.set(0, 0, 0xFFFF, 0x8200)
    cpu.tr.set(0, 0, 0xFFFF, 0x8B00)
    cpu.gdtr.set(0, 0, 0xFFFF, 0)
    cpu.idtr.set(0, 0, 0x3FF, 0)


def at_reset_vector(base: int) -> Callable[[CpuState], None]:
    """Sets the first state of a CPU whose reset vector is at F000:FFF0, with this base of CS."""

    def start(cpu: CpuState) -> None:
        cpu.cs.set(RESET_SELECTOR, base, 0xFFFF, CODE_16)
        cpu.rip = RESET_IP

    return start


def at_waking_vector(gpa: int) -> Callable[[CpuState], None]:
    """Sets the first state of a CPU behind a sleep (ACPI specification 6.5, 5.2.10): real mode, at ``gpa``."""

    def start(cpu: CpuState) -> None:
        enter_real_mode(cpu)
        cpu.cs.set(gpa >> 4 & 0xFFFF, gpa & ~0xF, 0xFFFF, CODE_16)
        cpu.rip = gpa & 0xF

    return start


def enter_protected_mode(cpu: CpuState, code: int, data: int) -> None:
    """32-bit protected mode without paging; flat segments with the given selectors, interrupts off."""
    cpu.cr0 = CR0_PE | CR0_ET
    cpu.idtr.set(0, 0, 0, 0)
    _set_segments(cpu, code, data, CODE_32)


def enter_long_mode(cpu: CpuState, code: int, data: int, cr3: int) -> None:
    """64-bit mode; flat segments with the given selectors, interrupts off."""
    cpu.cr3 = cr3
    cpu.cr4 = CR4_PAE
    cpu.efer = EFER_LME | EFER_LMA
    cpu.cr0 = CR0_PE | CR0_ET | CR0_PG
    cpu.idtr.set(0, 0, 0, 0)
    _set_segments(cpu, code, data, CODE_64)
