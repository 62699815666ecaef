"""Where the parts of an engine lie that Unicorn's interface does not show.

Known values are planted in a scratch engine and looked for in its memory; an engine where one of them is not found is
refused.  See :mod:`emu.engine.engine` for what they are good for.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from unicorn import UC_ARCH_X86, UC_MODE_64, UC_PROT_ALL, Uc, UcError
from unicorn.unicorn_const import UC_HOOK_TLB_FILL, UC_TLB_VIRTUAL
from unicorn.x86_const import (
    UC_CPU_X86_EPYC,
    UC_X86_REG_CR0,
    UC_X86_REG_CR2,
    UC_X86_REG_CR3,
    UC_X86_REG_MSR,
    UC_X86_REG_R8,
    UC_X86_REG_RAX,
    UC_X86_REG_RBP,
    UC_X86_REG_RBX,
    UC_X86_REG_RCX,
    UC_X86_REG_RDI,
    UC_X86_REG_RDX,
    UC_X86_REG_RSI,
    UC_X86_REG_RSP,
)

from emu.engine import cpustate, identity
from emu.engine.cpustate import load_u64
from emu.engine.library import function_address
from emu.errors import BadInput, EngineMismatch

NO_PROC = "emu needs /proc of Linux, which is not mounted here"
PROBE_NS = 0x1234_5678_9000 // 1000 * 1000  # an unlikely time of whole microseconds, to know the descriptors by
TLB_MODES = 3  # QEMU 5.0 x86: kernel with SMAP, user, kernel without SMAP
DESCRIPTOR_SIZE = 696  # CPUTLBDesc: large_page_addr at 0, large_page_mask at 8, window_begin_ns at 16


_REGISTERS = (UC_X86_REG_RAX, UC_X86_REG_RCX, UC_X86_REG_RDX, UC_X86_REG_RBX,
              UC_X86_REG_RSP, UC_X86_REG_RBP, UC_X86_REG_RSI, UC_X86_REG_RDI,
              *range(UC_X86_REG_R8, UC_X86_REG_R8 + 8))  # fmt: skip
_CODE_SIZES = (1 << 30, 1 << 28, 1 << 26)  # bytes for translated code
_ENGINE_SIZE = 64 << 20  # bytes of everything else, and some to spare
_SCRATCH_ENGINES = 8  # tried at most, to know the CPU state from what lies near it
_SEARCH_UC, _SEARCH_CPU, _SEARCH_TLB = 8192, 65536, 4096  # bytes looked through


@dataclass(frozen=True)
class Layout:
    """Where the parts lie in this process's Unicorn: offsets in bytes, found once, checked for every engine."""

    cpu: int  # of the CPU pointer in the engine
    env: int  # of the CPU state from the CPU
    tlb: int  # of the first TLB descriptor from the CPU state
    fault_address: int  # of the faulting address in the engine
    methods: int  # of the pointer to the table of the CPU's methods (CPUClass) in the CPU


def find_layout() -> Layout:
    """Plant known values in a scratch engine and find them in its memory.

    Memory is read through /proc/self/mem, where a wrong guess is an error and not a crash.

    Raises:
        EngineMismatch: a value was not found where this version of emu can use it.
    """
    uc = new_uc()
    try:
        memory = os.open("/proc/self/mem", os.O_RDONLY)
    except OSError:
        raise EngineMismatch(NO_PROC) from None

    def peek(address: int, size: int) -> bytes:
        try:
            return os.pread(memory, size, address)
        except (OSError, OverflowError):
            return b""

    def missing(what: str) -> EngineMismatch:
        return EngineMismatch(f"{what} not found in Unicorn's engine: emu needs Unicorn 2.1.4 for Linux")

    try:
        places = _cpu_places(uc, peek)
        for _ in range(_SCRATCH_ENGINES):
            if len(places) > 1:  # some other part of this engine happens to lie near the CPU state
                places &= _cpu_places(new_uc(), peek)
        if not places:
            raise missing("the CPU state")
        # an object outside the CPU that lies below it is always farther away than the CPU's own beginning
        env, cpu = min((env, cpu) for cpu, env in places)
        handle = uc._uch.value
        pointer = load_u64(handle + cpu)
        below = peek(pointer + env - _SEARCH_TLB, _SEARCH_TLB)
        descriptor = struct.pack("<qqq", -1, -1, PROBE_NS)
        tlb = below.find(descriptor) - _SEARCH_TLB
        for index in range(TLB_MODES):
            if below[_SEARCH_TLB + tlb + index * DESCRIPTOR_SIZE :][: len(descriptor)] != descriptor:
                raise missing("a TLB descriptor")
        _check_cpu_state(uc, pointer + env)
        fault_address = _find_fault_address(uc, lambda: peek(handle, _SEARCH_UC))
        return Layout(cpu, env, tlb, fault_address, _find_methods(pointer, env, handle, peek))
    finally:
        os.close(memory)


def _cpu_places(uc: Uc, peek: Callable[[int, int], bytes]) -> set[tuple[int, int]]:
    """Where the CPU state may be: offset of a pointer in the engine, and of the CPU state from where that leads."""
    planted = [(0x9E37_79B9_7F4A_7C15 * (i + 1)) & ((1 << 64) - 1) for i in range(16)]
    for register, value in zip(_REGISTERS, planted, strict=True):
        uc.reg_write(register, value)
    pattern = struct.pack("<16Q", *planted)
    engine = peek(uc._uch.value, _SEARCH_UC)
    places = set()
    for index, (pointer,) in enumerate(struct.iter_unpack("<Q", engine[: len(engine) & ~7])):
        env = peek(pointer, _SEARCH_CPU).find(pattern) if pointer & 7 == 0 and pointer > mmap.PAGESIZE else -1
        if env >= 0:
            places.add((8 * index, env))
    return places


def _find_methods(cpu_at: int, size: int, engine: int, peek: Callable[[int, int], bytes]) -> int:
    """The CPU's pointer to its methods stands behind that to its engine; the third method is ``do_interrupt``."""
    do_interrupt = function_address("x86_cpu_do_interrupt_x86_64")
    words = [word for (word,) in struct.iter_unpack("<Q", peek(cpu_at, size & ~7))]
    for index, word in enumerate(words[:-1]):
        if word == engine and peek(words[index + 1] + 16, 8) == struct.pack("<Q", do_interrupt):
            return 8 * (index + 1)
    raise EngineMismatch("the CPU's methods not found in Unicorn's engine: emu needs Unicorn 2.1.4 for Linux")


def _find_fault_address(uc: Uc, engine: Callable[[], bytes]) -> int:
    uc.mem_map(0, mmap.PAGESIZE)
    uc.mem_write(0, b"\x8a\x00")  # mov al, [rax]

    def fill(uc: Uc, gva: int, access: int, entry: Any, data: Any) -> bool:
        entry.paddr, entry.perms = 0, UC_PROT_ALL
        return gva == 0

    uc.hook_add(UC_HOOK_TLB_FILL, fill)
    found: set[int] | None = None
    for gva in (0x1234_5678_90AB_C123, 0x2345_6789_01BC_D456):
        uc.reg_write(UC_X86_REG_RAX, gva)
        try:
            uc.emu_start(0, 2)
        except UcError:
            pass  # the refused fill is the point
        words = {8 * i for i, (word,) in enumerate(struct.iter_unpack("<Q", engine())) if word == gva}
        found = words if found is None else found & words
    if found is None or len(found) != 1:
        raise EngineMismatch("the fault address not found in Unicorn's engine: emu needs Unicorn 2.1.4 for Linux")
    return found.pop()


def _check_cpu_state(uc: Uc, env: int) -> None:
    """Write the model-specific registers through Unicorn's interface and find them at cpustate's offsets."""
    planted = {
        0x174: cpustate.SYSENTER_CS, 0x175: cpustate.SYSENTER_ESP, 0x176: cpustate.SYSENTER_EIP,
        0xC000_0081: cpustate.STAR, 0xC000_0082: cpustate.LSTAR, 0xC000_0084: cpustate.FMASK,
        0xC000_0102: cpustate.KERNEL_GS_BASE, 0xC000_0100: cpustate.FS + cpustate.BASE,
        0xC000_0101: cpustate.GS + cpustate.BASE,
    }  # fmt: skip
    for msr, offset in planted.items():
        value = msr & 0xFFF
        uc.reg_write(UC_X86_REG_MSR, (msr, value))
        if load_u64(env + offset) != value:
            raise EngineMismatch(f"MSR {msr:#x} is not where it was: emu needs Unicorn 2.1.4 for Linux")
        uc.reg_write(UC_X86_REG_MSR, (msr, 0))
    for register, offset in ((UC_X86_REG_CR3, cpustate.CR3), (UC_X86_REG_CR2, cpustate.CR2)):
        uc.reg_write(register, 0x5A000)
        if load_u64(env + offset) != 0x5A000:
            raise EngineMismatch("a control register is not where it was: emu needs Unicorn 2.1.4 for Linux")
        uc.reg_write(register, 0)
    if ctypes.string_at(env + identity.VENDOR, 12) != b"AuthenticAMD" or load_u64(env + identity.word_at("1.edx")) != (
        0x78B_FBFD  # of UC_CPU_X86_EPYC
    ):
        raise EngineMismatch("CPUID's words are not where they were: emu needs Unicorn 2.1.4 for Linux")
    if load_u64(env + cpustate.CR0) != uc.reg_read(UC_X86_REG_CR0) or load_u64(env + cpustate.EFER) & 0x500 != 0x500:
        raise EngineMismatch("CR0 or EFER is not where it was: emu needs Unicorn 2.1.4 for Linux")


def _code_size() -> int:
    """Bytes for translated code: as much as Unicorn takes by itself, or less where the host has not so much.

    Unicorn ends the process, with the status of a guest's success, when it cannot have what it wants.
    """
    for size in _CODE_SIZES:
        try:
            mmap.mmap(-1, size + _ENGINE_SIZE).close()
        except (OSError, MemoryError):
            continue
        return size
    least = _CODE_SIZES[-1] + _ENGINE_SIZE >> 20
    raise BadInput("address space", f"an engine needs {least}M of it, which this host does not give (ulimit -v)")


def new_uc() -> Uc:
    """An engine for x86.

    Raises:
        BadInput: the host has no address space for it.
    """
    size = _code_size()
    uc = Uc(UC_ARCH_X86, UC_MODE_64)
    uc.ctl_set_tcg_buffer_size(size)
    uc.ctl_set_cpu_model(UC_CPU_X86_EPYC)  # has NX, SMEP, SMAP and 1 GiB pages; 40 physical address bits
    uc.ctl_set_tlb_mode(UC_TLB_VIRTUAL)
    return uc
