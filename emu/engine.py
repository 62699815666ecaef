"""The only module that imports Unicorn's binding: one engine per virtual CPU.

What Unicorn's interface does not offer, and a deterministic emulator needs, is found in the engine's memory at
start-up, by planting known values and looking for them; an engine where one of them is not found is refused:

* ``env``: the CPU state, so that both planes read and write registers in place (:mod:`emu.cpustate`),
* ``fault_address_at``: where the engine leaves the exact address of a refused TLB fill, which is the guest's CR2,
* ``tlb_at``: the descriptors of the engine's TLBs.  Their large-page range is widened for every large guest page, so
  that INVLPG drops all of it; their size adapts to the time of day, which is replaced by virtual time, so that the
  same run has the same TLB misses everywhere (QEMU 5.0: accel/tcg/cputlb.c, tlb_mmu_resize_locked).
"""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from unicorn import (
    UC_ARCH_X86,
    UC_HOOK_INSN,
    UC_MODE_64,
    UC_PROT_ALL,
    UC_PROT_EXEC,
    UC_PROT_NONE,
    UC_PROT_READ,
    Uc,
    UcError,
)
from unicorn.unicorn_const import (
    UC_CTL_TB_REMOVE_CACHE,
    UC_CTL_TLB_FLUSH,
    UC_HOOK_BLOCK,
    UC_HOOK_EDGE_GENERATED,
    UC_HOOK_INSN_INVALID,
    UC_HOOK_INTR,
    UC_HOOK_MEM_READ_PROT,
    UC_HOOK_MEM_WRITE_PROT,
    UC_HOOK_TLB_FILL,
    UC_TLB_CPU,
    UC_TLB_VIRTUAL,
)
from unicorn.unicorn_py3.unicorn import uclib
from unicorn.x86_const import (
    UC_CPU_X86_EPYC,
    UC_X86_INS_IN,
    UC_X86_INS_OUT,
    UC_X86_INS_RDTSC,
    UC_X86_INS_RDTSCP,
    UC_X86_INS_SYSCALL,
    UC_X86_INS_SYSENTER,
    UC_X86_REG_CR0,
    UC_X86_REG_CR2,
    UC_X86_REG_CR3,
    UC_X86_REG_CR4,
    UC_X86_REG_EFLAGS,
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

from emu import cpustate
from emu.addr import TRAP_BASE, WATCH_BASE
from emu.cpustate import load_u64
from emu.errors import EngineMismatch
from emu.native import address_of, callback, compiled, external, global_cell, inlined, load32, load64, store64

ACCESS_READ, ACCESS_WRITE, ACCESS_FETCH = 16, 17, 18  # UC_MEM_READ, _WRITE, _FETCH as a TLB fill gets them
PROT_READ, PROT_WRITE, PROT_EXEC = 1, 2, 4  # permissions of a TLB entry

ERR_OK = 0
ERR_EXCEPTION = 21  # UC_ERR_EXCEPTION: a TLB fill was refused

# kinds of callbacks for Engine.hook, and instructions for Engine.hook_instruction
HOOK_TLB_FILL, HOOK_BLOCK, HOOK_TRANSLATED = UC_HOOK_TLB_FILL, UC_HOOK_BLOCK, UC_HOOK_EDGE_GENERATED
HOOK_EXCEPTION, HOOK_INVALID_INSTRUCTION = UC_HOOK_INTR, UC_HOOK_INSN_INVALID
IN, OUT, RDTSC, RDTSCP = UC_X86_INS_IN, UC_X86_INS_OUT, UC_X86_INS_RDTSC, UC_X86_INS_RDTSCP
SYSCALL, SYSENTER = UC_X86_INS_SYSCALL, UC_X86_INS_SYSENTER

TLB_MODES = 3  # QEMU 5.0 x86: kernel with SMAP, user, kernel without SMAP

_LIBRARY = str(uclib._name)
_uc_emu_start = external(_LIBRARY, "uc_emu_start", "iqqqqq")
_uc_emu_stop = external(_LIBRARY, "uc_emu_stop", "iq")
_cpu_loop_exit = external(_LIBRARY, "cpu_loop_exit_x86_64", "vq")  # not declared in a header, but exported
_uc_ctl = external(_LIBRARY, "uc_ctl", "iqqqq")
_uc_reg_read = external(_LIBRARY, "uc_reg_read", "iqiq")

_WRITE = 1 << 30  # UC_CTL_IO_WRITE
_CTL_FLUSH_TLB = UC_CTL_TLB_FLUSH | _WRITE
_CTL_REMOVE_CACHE = UC_CTL_TB_REMOVE_CACHE | 2 << 26 | _WRITE
_EFLAGS = UC_X86_REG_EFLAGS

# CPUTLBDesc: large_page_addr at 0, large_page_mask at 8, window_begin_ns at 16; one for each TLB mode
_DESC_SIZE = 696
_ALL_ONES = -1


_clock, _clock_cell_at = global_cell("emu_engine_clock")  # host address of the int64 that holds virtual time in ns

# --- native plane -----------------------------------------------------------------------------------------------


@inlined
def use_clock(vm):
    """Let the engine's clock tell this VM's virtual time from now on."""
    store64(_clock_cell_at(), vm.vtime_at)


@compiled
def start(vm: Any, count: int) -> int:
    """Execute from the current RIP until something stops the engine; returns Unicorn's error code.

    Args:
        count: instructions to execute at most, 0 for no limit.  Any other value is slow: code is translated anew.
    """
    return _uc_emu_start(vm.uc, load64(vm.env + cpustate.RIP), 0, 0, count)


@inlined
def stop(vm: Any) -> None:
    """Make :func:`start` return before the next block."""
    _uc_emu_stop(vm.uc)


@compiled
def flush_tlb(vm: Any) -> None:
    """Drop every TLB entry of the engine."""
    use_clock(vm)
    _uc_ctl(vm.uc, _CTL_FLUSH_TLB, 0, 0)


@compiled
def drop_code(vm: Any, gva: int, size: int) -> None:
    """Drop the translated code of the machine frame that ``gva`` leads to at this moment."""
    _uc_ctl(vm.uc, _CTL_REMOVE_CACHE, gva, gva + size)


@compiled
def read_eflags(vm: Any) -> int:
    """EFLAGS with the arithmetic flags computed."""
    _uc_reg_read(vm.uc, _EFLAGS, vm.scratch_at)
    return load32(vm.scratch_at)


@inlined
def abandon_instruction(vm: Any) -> None:
    """From a callback that the engine made in the middle of an instruction: leave the engine as if it had not begun.

    Does not return: the engine jumps out of the callback, so no Python frame may lie between.
    """
    _uc_emu_stop(vm.uc)
    _cpu_loop_exit(vm.cpu_at)


@inlined
def fault_address(vm: Any) -> int:
    """The exact gva of the access whose TLB fill was refused."""
    return load64(vm.fault_address_at)


@inlined
def note_large_page(vm: Any, gva: int, shift: int) -> None:
    """Make INVLPG of any address of the large page at ``gva`` drop all of it.

    The engine's TLB holds 4 KiB entries only; a range in its descriptor tells which of them belong to large pages.
    The range is widened as QEMU's tlb_add_large_page does.
    """
    for index in range(TLB_MODES):
        at = vm.tlb_at + index * _DESC_SIZE
        mask = -(1 << shift)
        start_gva = load64(at)
        if start_gva == _ALL_ONES:
            start_gva = gva
        else:
            mask &= load64(at + 8)
            while (start_gva ^ gva) & mask:
                mask <<= 1
        store64(at, start_gva & mask)
        store64(at + 8, mask)


# --- the engine's clock -----------------------------------------------------------------------------------------

_TIME_ZERO = np.zeros(1, np.int64)  # told while no VM's time is
_PROBE_NS = 0x1234_5678_9000 // 1000 * 1000  # an unlikely time of whole microseconds, to know the descriptors by


@callback("iqq")
def _gettimeofday(timeval_at, timezone_at):
    """The engine's only clock: virtual time instead of the time of day."""
    microseconds = load64(load64(_clock_cell_at())) // 1000
    store64(timeval_at, microseconds // 1_000_000)
    store64(timeval_at + 8, microseconds % 1_000_000)
    return 0


def forget_clock(vtime_at: int) -> None:
    """A VM is gone, and its record with it: engines that are closed after it must not read its time."""
    if _clock[0] == vtime_at:
        _clock[0] = address_of(_TIME_ZERO)


class _LinkMap(ctypes.Structure):
    _fields_ = [("address", ctypes.c_uint64), ("name", ctypes.c_char_p), ("dynamic", ctypes.c_uint64)]


def _import_slot(handle: int, name: bytes) -> int:
    """The address of the slot through which a loaded shared library calls the imported function ``name``.

    ELF gABI: the dynamic section leads to the PLT relocations, their symbols to the names.

    Raises:
        EngineMismatch: the library imports no such function.
    """
    table: dict[int, int] = {}
    at = _LinkMap.from_address(handle).dynamic
    while tag := ctypes.c_uint64.from_address(at).value:
        table[tag] = ctypes.c_uint64.from_address(at + 8).value
        at += 16
    strings, symbols, size, relocations = table[5], table[6], table[2], table[23]  # STRTAB SYMTAB PLTRELSZ JMPREL
    entries = np.ctypeslib.as_array((ctypes.c_uint64 * (size // 8)).from_address(relocations)).reshape(-1, 3)
    for offset, info, _ in entries.tolist():
        name_offset = ctypes.c_uint32.from_address(symbols + 24 * (info >> 32)).value
        if ctypes.string_at(strings + name_offset, len(name) + 1) == name + b"\0":
            return _LinkMap.from_address(handle).address + offset
    raise EngineMismatch(f"Unicorn does not import {name.decode()}: emu needs Unicorn 2.1.4 for Linux")


def _replace_clock() -> None:
    """Make the engine library's calls of gettimeofday reach :func:`_gettimeofday`."""
    slot = _import_slot(uclib._handle, b"gettimeofday")
    page = slot & -mmap.PAGESIZE
    protect = ctypes.CDLL(None, use_errno=True).mprotect
    if protect(ctypes.c_void_p(page), ctypes.c_size_t(mmap.PAGESIZE), mmap.PROT_READ | mmap.PROT_WRITE):
        raise EngineMismatch(f"cannot give Unicorn a virtual clock: {os.strerror(ctypes.get_errno())}")
    ctypes.c_uint64.from_address(slot).value = _gettimeofday.address_of


# --- finding the engine's parts ---------------------------------------------------------------------------------

_REGISTERS = (UC_X86_REG_RAX, UC_X86_REG_RCX, UC_X86_REG_RDX, UC_X86_REG_RBX,
              UC_X86_REG_RSP, UC_X86_REG_RBP, UC_X86_REG_RSI, UC_X86_REG_RDI,
              *range(UC_X86_REG_R8, UC_X86_REG_R8 + 8))  # fmt: skip
_SCRATCH_ENGINES = 8  # tried at most, to know the CPU state from what lies near it
_SEARCH_UC, _SEARCH_CPU, _SEARCH_TLB = 8192, 65536, 4096  # bytes looked through


@dataclass(frozen=True)
class _Layout:
    """Where the parts lie in this process's Unicorn: offsets in bytes, found once, checked for every engine."""

    cpu: int  # of the CPU pointer in the engine
    env: int  # of the CPU state from the CPU
    tlb: int  # of the first TLB descriptor from the CPU state
    fault_address: int  # of the faulting address in the engine


def _find_layout() -> _Layout:
    """Plant known values in a scratch engine and find them in its memory.

    Memory is read through /proc/self/mem, where a wrong guess is an error and not a crash.

    Raises:
        EngineMismatch: a value was not found where this version of emu can use it.
    """
    uc = _new_uc()
    memory = os.open("/proc/self/mem", os.O_RDONLY)

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
                places &= _cpu_places(_new_uc(), peek)
        if not places:
            raise missing("the CPU state")
        # an object outside the CPU that lies below it is always farther away than the CPU's own beginning
        env, cpu = min((env, cpu) for cpu, env in places)
        handle = uc._uch.value
        pointer = load_u64(handle + cpu)
        below = peek(pointer + env - _SEARCH_TLB, _SEARCH_TLB)
        descriptor = struct.pack("<qqq", -1, -1, _PROBE_NS)
        tlb = below.find(descriptor) - _SEARCH_TLB
        for index in range(TLB_MODES):
            if below[_SEARCH_TLB + tlb + index * _DESC_SIZE :][: len(descriptor)] != descriptor:
                raise missing("a TLB descriptor")
        _check_cpu_state(uc, pointer + env)
        return _Layout(cpu, env, tlb, _find_fault_address(uc, lambda: peek(handle, _SEARCH_UC)))
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
    if load_u64(env + cpustate.CR0) != uc.reg_read(UC_X86_REG_CR0) or load_u64(env + cpustate.EFER) & 0x500 != 0x500:
        raise EngineMismatch("CR0 or EFER is not where it was: emu needs Unicorn 2.1.4 for Linux")


def _new_uc() -> Uc:
    uc = Uc(UC_ARCH_X86, UC_MODE_64)
    uc.ctl_set_cpu_model(UC_CPU_X86_EPYC)  # has NX, SMEP, SMAP and 1 GiB pages; 40 physical address bits
    uc.ctl_set_tlb_mode(UC_TLB_VIRTUAL)
    return uc


_layout: _Layout | None = None


class Engine:
    """One Unicorn engine whose "physical" memory is machine memory.

    Args:
        ram_at: host address of machine memory.
        size: its size in bytes, a multiple of the page size.

    Raises:
        EngineMismatch: the installed Unicorn is not laid out as this version of emu knows it.
    """

    def __init__(self, ram_at: int, size: int) -> None:
        global _layout
        if _layout is None:
            if sys.platform != "linux" or struct.calcsize("P") != 8:
                raise EngineMismatch("emu runs on 64-bit Linux only")
            _probe_clock = np.array([_PROBE_NS])
            _clock[0] = address_of(_probe_clock)
            _replace_clock()
            _layout = _find_layout()
        _clock[0] = address_of(_TIME_ZERO)
        self._uc = _new_uc()
        self._uc.ctl_exits_enabled(True)
        self._uc.mem_map_ptr(0, size, UC_PROT_ALL, ram_at)
        for base, permissions in ((TRAP_BASE, UC_PROT_READ | UC_PROT_EXEC), (WATCH_BASE, UC_PROT_NONE)):
            self._uc.mem_map_ptr(base, size, UC_PROT_ALL, ram_at)
            self._uc.mem_protect(base, size, permissions)  # only this makes the engine discard a trapped store
        self._keep: list[Any] = []
        self.uc = self._uc._uch.value
        self.cpu_at = load_u64(self.uc + _layout.cpu)
        self.env = self.cpu_at + _layout.env
        self.tlb_at = self.env + _layout.tlb
        self.fault_address_at = self.uc + _layout.fault_address
        self._uc.reg_write(UC_X86_REG_RAX, _PROBE_NS)
        if load_u64(self.env + cpustate.RAX) != _PROBE_NS:
            raise EngineMismatch("the CPU state is not where it was: emu needs Unicorn 2.1.4 for Linux")
        self._uc.reg_write(UC_X86_REG_RAX, 0)
        self._size = size

    def hook(self, kind: int, function: Any, data: int, begin: int = 1, end: int = 0, instruction: int = 0) -> None:
        """Add a callback made by :func:`emu.native.callback`; ``data`` is passed to it last."""
        handle = ctypes.c_size_t()
        address = ctypes.c_void_p(function.address_of)
        arguments: list[Any] = [ctypes.c_void_p(self.uc), ctypes.byref(handle), ctypes.c_int(kind), address]
        arguments += [ctypes.c_void_p(data), ctypes.c_uint64(begin), ctypes.c_uint64(end)]
        if instruction:
            arguments.append(ctypes.c_int(instruction))
        error = uclib.uc_hook_add(*arguments)
        if error:
            raise EngineMismatch(f"Unicorn refused a hook: {UcError(error)}")
        self._keep.append(function)

    def hook_trap(self, function: Any, data: int) -> None:
        """Call ``function`` for every store into the write-trapped alias of machine memory."""
        self.hook(UC_HOOK_MEM_WRITE_PROT, function, data, TRAP_BASE, TRAP_BASE + self._size - 1)

    def hook_watch(self, load: Any, store: Any, data: int) -> None:
        """Call ``load`` and ``store`` for every access through the watched alias of machine memory."""
        last = WATCH_BASE + self._size - 1
        self.hook(UC_HOOK_MEM_READ_PROT, load, data, WATCH_BASE, last)
        self.hook(UC_HOOK_MEM_WRITE_PROT, store, data, WATCH_BASE, last)

    def hook_instruction(self, instruction: int, function: Any, data: int) -> None:
        self.hook(UC_HOOK_INSN, function, data, instruction=instruction)



def error_text(code: int) -> str:
    """Unicorn's words for one of its error codes."""
    return str(UcError(code))


def plain_unicorn(
    size: int, contents: dict[int, bytes], control: dict[str, int] | None = None
) -> Callable[..., None]:
    """An engine as anyone would use it, for comparison: flat memory from 0, no hooks, its own MMU.

    Args:
        size: bytes of memory.
        contents: what lies where.
        control: values for cr0, cr3, cr4 and efer; paging stays off without them.

    Returns:
        ``run(start, **registers)``, which executes from ``start`` to the next HLT.
    """
    uc = Uc(UC_ARCH_X86, UC_MODE_64)
    uc.ctl_set_cpu_model(UC_CPU_X86_EPYC)
    uc.ctl_exits_enabled(True)
    uc.mem_map(0, size)
    for address, data in contents.items():
        uc.mem_write(address, data)
    if control:
        uc.ctl_set_tlb_mode(UC_TLB_CPU)
        uc.reg_write(UC_X86_REG_MSR, (0xC000_0080, control["efer"]))
        for register, name in ((UC_X86_REG_CR4, "cr4"), (UC_X86_REG_CR3, "cr3"), (UC_X86_REG_CR0, "cr0")):
            uc.reg_write(register, control[name])
    numbers = {"rcx": UC_X86_REG_RCX, "rdi": UC_X86_REG_RDI, "rsp": UC_X86_REG_RSP}

    def run(start: int, **registers: int) -> None:
        for name, value in registers.items():
            uc.reg_write(numbers[name], value)
        uc.emu_start(start, 0)

    return run
