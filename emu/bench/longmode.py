"""A bare 64-bit guest for benchmarks: tables, GDT, TSS and registers are placed from outside, no boot code runs.

Memory map (gpa = gva for the first 8 MiB)::

    0x01000  PML4, PDPT, PD, and the page tables of 4 MiB from DATA
    0x0A000  GDT   0x0B000 TSS   0x0C000 IDT   0x0D000 kernel stack top
    0x100000 code  (2 MiB page, user accessible)
    0x400000 data  (4 KiB pages, user accessible); the 2 MiB from DATA + 4 MiB on are not mapped
    0xA00000 device registers: the 2 MiB from 0xFEC00000 on, those from 0xFEA00000 on, those from 0xFEE00000 on
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from keystone import KS_ARCH_X86, KS_MODE_64, Ks

from emu.boot.guest import Guest
from emu.boot.image import GuestImage
from emu.devices import layout
from emu.engine.cpustate import CpuState
from emu.machine.vm import VirtualMachine
from emu.session import boot_vm

RAM = 32 << 20
CODE, DATA, DATA_PAGES, UNMAPPED = 0x100000, 0x400000, 1024, 0x800000
DEVICE_WINDOW = 0xA00000  # gva of the 2 MiB from the I/O APIC's registers on
APIC_WINDOW = 0xE00000  # gva of the local APIC's registers
VIRTIO_WINDOW, VIRTIO_GPA = 0xC00000, layout.VIRTIO & ~0x1FFFFF  # gva and gpa of the 2 MiB around the virtio devices'
PML4, GDT, TSS, IDT, STACK = 0x1000, 0xA000, 0xB000, 0xC000, 0xE000
USER_STACK = DATA + DATA_PAGES * 4096 - 64
KERNEL_CODE, KERNEL_DATA, USER_DATA, USER_CODE = 0x08, 0x10, 0x23, 0x2B
CR0, CR4, EFER = 0x8001_0011, 0x620, 0xD01  # PG WP ET PE; PAE OSFXSR OSXMMEXCPT; NXE LMA LME SCE
PRESENT_WRITE_USER = 7
_DESCRIPTORS = (0, 0x00AF9B000000FFFF, 0x00CF93000000FFFF, 0x00CFFB000000FFFF, 0x00CFF3000000FFFF, 0x00AFFB000000FFFF)


def assemble(source: str) -> bytes:
    """64-bit code for CODE."""
    code, _ = Ks(KS_ARCH_X86, KS_MODE_64).asm(source, CODE, as_bytes=True)
    return bytes(code)


def pieces(code: bytes, handlers: dict[int, int] | None = None) -> dict[int, bytes]:
    """The guest's memory as contents at gpas.

    Args:
        handlers: vector to the gva of its handler, reachable from user mode.
    """
    tables = {
        PML4: struct.pack("<Q", PML4 + 0x1000 | PRESENT_WRITE_USER),
        PML4 + 0x1000: struct.pack("<Q", PML4 + 0x2000 | PRESENT_WRITE_USER),
        PML4 + 0x2000: struct.pack(
            "<8Q",
            0x87,
            0x200087,
            PML4 + 0x3000 | PRESENT_WRITE_USER,
            PML4 + 0x4000 | PRESENT_WRITE_USER,
            0,
            layout.IO_APIC | 0x87,
            VIRTIO_GPA | 0x87,
            layout.LOCAL_APIC | 0x87,
        ),
        PML4 + 0x3000: struct.pack(
            f"<{DATA_PAGES}Q", *(DATA + (i << 12) | PRESENT_WRITE_USER for i in range(DATA_PAGES))
        ),
        GDT: struct.pack("<6Q", *_DESCRIPTORS),
        TSS: struct.pack("<IQ", 0, STACK) + bytes(0x68 - 12),
        CODE: code,
    }
    for vector, handler in (handlers or {}).items():
        gate = struct.pack("<HHHHII", handler & 0xFFFF, KERNEL_CODE, 0xEE00, handler >> 16, 0, 0)
        tables[IDT + 16 * vector] = gate
    return tables


def start_registers(rip: int, user: bool) -> dict[str, int]:
    """General registers at the start."""
    return {"rip": rip, "rdi": DATA, "rsp": USER_STACK if user else STACK}


def long_mode_vm(
    code: bytes,
    mmu: str,
    handlers: dict[int, int] | None = None,
    user: bool = False,
    disks: Sequence[str | Path] = (),
    cpu: str | None = None,
) -> VirtualMachine:
    """A VM that is about to execute ``code`` in 64-bit mode, at CPL 3 with IOPL 3 or at CPL 0."""
    image = GuestImage()
    for gpa, data in pieces(code, handlers).items():
        image.add(gpa, data)

    def start(cpu: CpuState) -> None:
        cpu.cr0, cpu.cr3, cpu.cr4, cpu.efer = CR0, PML4, CR4, EFER
        dpl = 0x6000 if user else 0
        cpu.cs.set(USER_CODE if user else KERNEL_CODE, 0, 0xFFFFFFFF, 0xAF9B00 | dpl)
        for segment in (cpu.ss, cpu.ds, cpu.es):
            segment.set(USER_DATA if user else KERNEL_DATA, 0, 0xFFFFFFFF, 0xCF9300 | dpl)
        cpu.gdtr.set(0, GDT, 6 * 8 - 1, 0)
        cpu.idtr.set(0, IDT, 0xFFF, 0)
        cpu.tr.set(0x30, TSS, 0x67, 0x8B00)
        cpu.star = KERNEL_CODE << 32 | (0x18 | 3) << 48
        for name, value in start_registers(CODE, user).items():
            setattr(cpu, name, value)

    return boot_vm(Guest("bench", "benchmark", image, start), ram=RAM, mmu=mmu, disks=disks, cpu=cpu)


def restart(vm: VirtualMachine, count: int, rip: int = CODE, user: bool = False) -> None:
    """Run the program again from ``rip`` with ``count`` in RCX and R15, to its HLT or exit."""
    cpu: Any = vm.cpu
    for name, value in start_registers(rip, user).items():
        setattr(cpu, name, value)
    cpu.rcx = cpu.r15 = count
    vm.forget_end()
    vm.run()
