"""One Unicorn engine per virtual CPU.  The modules named engine* are the only ones that import Unicorn's binding.

What Unicorn's interface does not offer, and a deterministic emulator needs, is found in the engine's memory at
start-up (:mod:`emu.engine.layout`), and its functions are replaced (:mod:`emu.engine.library`):

* ``env``: the CPU state, so that both planes read and write registers in place (:mod:`emu.engine.cpustate`),
* ``fault_address_at``: where the engine leaves the exact address of a refused TLB fill, which is the guest's CR2,
* ``tlb_at``: the descriptors of the engine's TLBs.  Their large-page range is widened for every large guest page, so
  that INVLPG drops all of it; their size adapts to the time of day, which is replaced by virtual time, so that the
  same run has the same TLB misses everywhere (QEMU 5.0: accel/tcg/cputlb.c, tlb_mmu_resize_locked).
"""

from __future__ import annotations

import ctypes
import struct
import sys
from collections.abc import Callable
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
)
from unicorn.unicorn_py3.unicorn import uclib
from unicorn.x86_const import (
    UC_CPU_X86_EPYC,
    UC_X86_INS_CPUID,
    UC_X86_INS_IN,
    UC_X86_INS_OUT,
    UC_X86_INS_RDTSC,
    UC_X86_INS_RDTSCP,
    UC_X86_INS_SYSCALL,
    UC_X86_INS_SYSENTER,
    UC_X86_REG_CR0,
    UC_X86_REG_CR3,
    UC_X86_REG_CR4,
    UC_X86_REG_EFLAGS,
    UC_X86_REG_MSR,
    UC_X86_REG_RAX,
    UC_X86_REG_RCX,
    UC_X86_REG_RDI,
    UC_X86_REG_RSP,
)

from emu.addr import MMIO_BASE, MMIO_SIZE, TRAP_BASE, WATCH_BASE
from emu.engine import cpustate
from emu.engine.cpustate import load_u64
from emu.engine.layout import DESCRIPTOR_SIZE, PROBE_NS, TLB_MODES, Layout, find_layout, new_uc
from emu.engine.library import LIBRARY, helper_address, replace_functions, replace_import
from emu.engine.native import address_of, callback, compiled, external, global_cell, inlined, load32, load64, store64
from emu.engine.state import WAITING, Cpu, Vm, cpu_number
from emu.errors import EngineMismatch

ACCESS_READ, ACCESS_WRITE, ACCESS_FETCH = 16, 17, 18  # UC_MEM_READ, _WRITE, _FETCH as a TLB fill gets them
PROT_READ, PROT_WRITE, PROT_EXEC = 1, 2, 4  # permissions of a TLB entry

ERR_OK = 0
ERR_EXCEPTION = 21  # UC_ERR_EXCEPTION: a TLB fill was refused

# kinds of callbacks for Engine.hook, and instructions for Engine.hook_instruction
HOOK_TLB_FILL, HOOK_BLOCK, HOOK_TRANSLATED = UC_HOOK_TLB_FILL, UC_HOOK_BLOCK, UC_HOOK_EDGE_GENERATED
HOOK_EXCEPTION, HOOK_INVALID_INSTRUCTION = UC_HOOK_INTR, UC_HOOK_INSN_INVALID
CPUID = UC_X86_INS_CPUID
IN, OUT, RDTSC, RDTSCP = UC_X86_INS_IN, UC_X86_INS_OUT, UC_X86_INS_RDTSC, UC_X86_INS_RDTSCP
SYSCALL, SYSENTER = UC_X86_INS_SYSCALL, UC_X86_INS_SYSENTER

_uc_emu_start = external(LIBRARY, "uc_emu_start", "iqqqqq")
_uc_emu_stop = external(LIBRARY, "uc_emu_stop", "iq")
_cpu_loop_exit = external(LIBRARY, "cpu_loop_exit_x86_64", "vq")  # not declared in a header, but exported
_rdmsr = external(LIBRARY, "helper_rdmsr_x86_64", "vq")
_wrmsr = external(LIBRARY, "helper_wrmsr_x86_64", "vq")
_cpuid = external(LIBRARY, "cpu_x86_cpuid_x86_64", "vqiiqqqq")
_rdrand = external(LIBRARY, "helper_rdrand_x86_64", "qq")
_invalidate_code = external(LIBRARY, "tb_invalidate_phys_range_x86_64", "vqqq")
_pause = external(LIBRARY, "helper_pause_x86_64", "vqi")
_uc_ctl = external(LIBRARY, "uc_ctl", "iqqqq")
_uc_reg_read = external(LIBRARY, "uc_reg_read", "iqiq")

_WRITE = 1 << 30  # UC_CTL_IO_WRITE
_CTL_FLUSH_TLB = UC_CTL_TLB_FLUSH | _WRITE
_CTL_REMOVE_CACHE = UC_CTL_TB_REMOVE_CACHE | 2 << 26 | _WRITE
_EFLAGS = UC_X86_REG_EFLAGS

_UNALIGNED_ACCESS = 24  # offset in CPUClass
_ALL_ONES = -1


_clock, _clock_cell_at = global_cell("emu_engine_clock")  # host address of the int64 that holds virtual time in ns
_running, _running_cell_at = global_cell("emu_engine_running")  # host address of the record of the processor that runs

# --- native plane -----------------------------------------------------------------------------------------------


@inlined
def use_clock(cpu: Cpu) -> None:
    """Let the engine's clock tell this processor's virtual time from now on."""
    store64(_clock_cell_at(), cpu.vtime_at)


@inlined
def running_cpu() -> int:
    """Host address of the record of the processor whose engine runs, 0 for none: for callbacks that get no other."""
    return load64(_running_cell_at())


@compiled
def start(cpu: Cpu, count: int) -> int:
    """Execute from the current RIP until something stops the engine; returns Unicorn's error code.

    Args:
        count: instructions to execute at most, 0 for no limit.  Any other value is slow: code is translated anew.
    """
    store64(_running_cell_at(), cpu.at)
    error = _uc_emu_start(cpu.uc, load64(cpu.env + cpustate.RIP), 0, 0, count)
    store64(_running_cell_at(), 0)
    return error


@inlined
def stop(cpu: Cpu) -> None:
    """Make :func:`start` return; from a block hook that ends with :func:`leave_engine`, before the block."""
    _uc_emu_stop(cpu.uc)


@inlined
def leave_engine(cpu: Cpu) -> None:
    """Jump out of the callback and of the block that it is called from.  Does not return."""
    _cpu_loop_exit(cpu.engine_cpu_at)


@compiled
def flush_tlb(cpu: Cpu) -> None:
    """Drop every TLB entry of the processor's engine."""
    before = load64(_clock_cell_at())
    use_clock(cpu)
    _uc_ctl(cpu.uc, _CTL_FLUSH_TLB, 0, 0)
    store64(_clock_cell_at(), before)


@compiled
def flush_all_tlbs(vm: Vm) -> None:
    """Drop every TLB entry of all processors of the VM."""
    vm.flush_epoch += 1
    for index in range(vm.cpu_count):
        cpu = cpu_number(vm, index)
        if cpu.activity != WAITING:
            flush_tlb(cpu)


@compiled
def drop_code(cpu: Cpu, gva: int, size: int) -> None:
    """Drop the translated code of the machine frame that ``gva`` leads to at this moment."""
    _uc_ctl(cpu.uc, _CTL_REMOVE_CACHE, gva, gva + size)


@compiled
def drop_code_at(cpu: Cpu, machine: int, size: int) -> None:
    """Drop the translated code that overlaps ``size`` bytes from a machine address below TRAP_BASE."""
    _invalidate_code(cpu.uc, machine, machine + size)


@compiled
def read_eflags(cpu: Cpu) -> int:
    """EFLAGS with the arithmetic flags computed."""
    _uc_reg_read(cpu.uc, _EFLAGS, cpu.scratch_at)
    return load32(cpu.scratch_at)


@inlined
def abandon_instruction(cpu: Cpu) -> None:
    """From a callback that the engine made in the middle of an instruction: leave the engine as if it had not begun.

    Does not return: the engine jumps out of the callback, so no Python frame may lie between.
    """
    _uc_emu_stop(cpu.uc)
    _cpu_loop_exit(cpu.engine_cpu_at)


@compiled
def original_rdmsr(env: int) -> None:
    """RDMSR as the engine does it."""
    _rdmsr(env)


@compiled
def original_wrmsr(env: int) -> None:
    """WRMSR as the engine does it."""
    _wrmsr(env)


@compiled
def original_rdrand(env: int) -> int:
    """RDRAND as the engine does it."""
    return _rdrand(env)


@compiled
def original_pause(env: int, length: int) -> None:
    """PAUSE as the engine does it: the end of the block.  Does not return."""
    _pause(env, length)


@compiled
def original_cpuid(env: int, results_at: int) -> None:
    """CPUID as the engine does it: EAX, EBX, ECX, EDX as four u32 at ``results_at``."""
    leaf, subleaf = load32(env + cpustate.RAX), load32(env + cpustate.RCX)
    _cpuid(env, leaf, subleaf, results_at, results_at + 4, results_at + 8, results_at + 12)


@inlined
def fault_address(cpu: Cpu) -> int:
    """The exact gva of the access whose TLB fill was refused."""
    return load64(cpu.fault_address_at)


@inlined
def note_large_page(cpu: Cpu, gva: int, shift: int) -> None:
    """Make INVLPG of any address of the large page at ``gva`` drop all of it.

    The engine's TLB holds 4 KiB entries only; a range in its descriptor tells which of them belong to large pages.
    The range is widened as QEMU's tlb_add_large_page does.
    """
    for index in range(TLB_MODES):
        at = cpu.tlb_at + index * DESCRIPTOR_SIZE
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


@callback("iqq")
def _gettimeofday(timeval_at: int, timezone_at: int) -> int:
    """The engine's only clock: virtual time instead of the time of day."""
    microseconds = load64(load64(_clock_cell_at())) // 1000
    store64(timeval_at, microseconds // 1_000_000)
    store64(timeval_at + 8, microseconds % 1_000_000)
    return 0


def forget_clock(vtime_at: int) -> None:
    """A VM is gone, and its record with it: engines that are closed after it must not read its time."""
    if _clock[0] == vtime_at:
        _clock[0] = address_of(_TIME_ZERO)


replace_import("gettimeofday", _gettimeofday)

_layout: Layout | None = None


class Engine:
    """One Unicorn engine whose "physical" memory is machine memory.

    Args:
        ram_at: host address of machine memory.
        size: its size in bytes, a multiple of the page size.

    Raises:
        EngineMismatch: the installed Unicorn is not laid out as this version of emu knows it.
        BadInput: the host has no address space for it.
    """

    def __init__(self, ram_at: int, size: int) -> None:
        global _layout
        if _layout is None:
            if sys.platform != "linux" or struct.calcsize("P") != 8:
                raise EngineMismatch("emu runs on 64-bit Linux only")
            _probe_clock = np.array([PROBE_NS])
            _clock[0] = address_of(_probe_clock)
            replace_functions()
            _layout = find_layout()
        _clock[0] = address_of(_TIME_ZERO)
        self._uc = new_uc()
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
        self._methods_at = load_u64(self.cpu_at + _layout.methods)
        self.check_exit_at = helper_address("check_exit_request")
        self._uc.reg_write(UC_X86_REG_RAX, PROBE_NS)
        if load_u64(self.env + cpustate.RAX) != PROBE_NS:
            raise EngineMismatch("the CPU state is not where it was: emu needs Unicorn 2.1.4 for Linux")
        self._uc.reg_write(UC_X86_REG_RAX, 0)
        self._size = size

    def close(self) -> None:
        """Give back what the engine has of the host, a gigabyte of address space among it.  It cannot be used again."""
        self._uc._Uc__finalizer()
        self.uc = self.cpu_at = self.env = 0

    def hook(self, kind: int, function: Any, data: int, begin: int = 1, end: int = 0, instruction: int = 0) -> None:
        """Add a callback made by :func:`emu.engine.native.callback`; ``data`` is passed to it last."""
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

    def hook_mmio(self, load: Any, store: Any, data: int) -> None:
        """Call ``load`` and ``store`` for every access through the machine addresses of device registers."""
        callbacks = [ctypes.c_void_p(at) for at in (load.address_of, data, store.address_of, data)]
        error = uclib.uc_mmio_map(ctypes.c_void_p(self.uc), ctypes.c_uint64(MMIO_BASE), MMIO_SIZE, *callbacks)
        if error:
            raise EngineMismatch(f"Unicorn refused the device registers: {UcError(error)}")
        self._keep += (load, store)

    def on_misaligned(self, function: Any) -> None:
        """Call ``function`` (CPU, gva, access, TLB, host address of the code) for an operand that is not aligned."""
        ctypes.c_uint64.from_address(self._methods_at + _UNALIGNED_ACCESS).value = function.address_of
        self._keep.append(function)

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
