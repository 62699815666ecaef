"""The emulator's MMU asked about one access at a time, in the words of the oracles.

An `EmuMmu` is a VM without a guest. Each access is a real instruction: engine, TLB miss, walk, shadow tables or both
levels, TLB entry or refusal. `perform` gives the same `Outcome` as the oracles do, so all three can be compared.

The instruction needs a page to run from, but the tables under test must not have to provide it. As in
`tests.oracles.unicorn_mmu` the code page's TLB entry is filled with CR0.PG = 0, then PG is switched on behind the
TLB's back. The code stands in three frames of the memory under test (`with_code` puts it there for the oracles too),
so that an access which happens to touch one code page can be made from another.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from unicorn import UC_CTL_TLB_FLUSH, x86_const
from unicorn.unicorn_py3.unicorn import uclib

from emu import cpustate
from emu.addr import PAGE_SHIFT, TRAP_BASE
from emu.cpustate import HFLAGS, set_hflags_mode
from emu.dmm.demand import StaticMapping
from emu.dmm.dmm import DMM
from emu.dmm.p2m import Intent, PageType
from emu.dmm.policy import Policy
from emu.machine import Machine
from emu.mmu import shadow, walk
from emu.native import address_of
from tests.oracles.paging_model import CR0_PG, CR4_SMAP, PAGE, Access, Control, Kind, Memory, Outcome
from tests.oracles.unicorn_mmu import IMPLICIT_STUB, PROTECTION, STUBS

ARCHITECTURES = ("shadow", "nested")

HLT = b"\xf4"  # ends every stub: at CPL 0 it halts, else it raises #GP, and neither touches memory
CODE_GFNS = (0xB, 0xC, 0xD)  # of the stubs
STUB_OFFSET = 0x800

CODE_32, CODE_64, DATA = 0xC09B00, 0xA09B00, 0xC09300  # attributes of flat segments, DPL 0
EFLAGS_FIXED, EFLAGS_AC = 1 << 1, 1 << 18
HF_OSFXSR = 1 << 22
ERR_OK, ERR_EXCEPTION = 0, 21

EVERYTHING = Intent.READ | Intent.WRITE | Intent.EXECUTE


def _stubs() -> tuple[bytes, dict[Any, int]]:
    code, offsets = bytearray(), {}
    for name, instruction in [*STUBS.items(), (None, IMPLICIT_STUB)]:
        offsets[name] = STUB_OFFSET + len(code)
        code += (instruction + HLT).ljust(16, HLT)
    return bytes(code), offsets


_CODE, _STUB_AT = _stubs()


def with_code(image: bytes, frames: Mapping[int, bytes]) -> dict[int, bytes]:
    """`frames` over `image`, and the stubs over both."""
    result = dict(frames)
    for gfn in CODE_GFNS:
        frame = bytearray(result.get(gfn, image[gfn * PAGE : (gfn + 1) * PAGE]))
        frame[STUB_OFFSET : STUB_OFFSET + len(_CODE)] = _CODE
        result[gfn] = bytes(frame)
    return result


class MemoryWithHoles(Memory):
    """The model's memory with the emulator's answer to physical addresses beyond it: all ones, for tables as well."""

    def contains(self, gpa: int) -> bool:
        return True

    def read(self, gpa: int, size: int) -> bytes:
        return super().read(gpa, size) if gpa < len(self.image) else b"\xff" * size

    def write(self, gpa: int, data: bytes) -> None:
        if gpa < len(self.image):
            super().write(gpa, data)


class Keeper(Policy):
    """Keeps what it is told to evict, and answers nothing else."""

    name = "keeper"

    def __init__(self) -> None:
        self._kept: dict[int, bytes] = {}

    def attach(self, dmm: DMM) -> None:
        super().attach(dmm)

    def keep(self, gfn: int, contents: bytes) -> None:
        self._kept[gfn] = contents

    def restore(self, gfn: int) -> bytes:
        return self._kept.pop(gfn)


class NoImage:
    """The image of a VM that boots nothing."""

    def page(self, gfn: int) -> bytes:
        return bytes(PAGE)


def new_vm(memory_size: int, mmu: str) -> tuple[Any, Keeper]:
    """A VM with every page populated, some spare frames in its pool, and a policy that keeps evicted pages."""
    spare = 16 * PAGE
    machine = Machine(Machine.size_for(memory_size, memory_size, mmu) + spare)
    vm = machine.create_vm("test", memory_size, mmu=mmu)
    vm.dmm.grow(spare // PAGE)
    keeper = Keeper()
    vm.attach(StaticMapping(NoImage()))  # type: ignore[arg-type]
    vm.attach(keeper)
    return vm, keeper


class GuestMemory:
    """The whole of a VM's memory, wherever its pages are now."""

    def __init__(self, vm: Any, keeper: Keeper) -> None:
        self._vm = vm
        self._keeper = keeper

    def words(self, gfns: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """The contents of `gfns` as 8-byte words, one row a page; nothing becomes resident by looking."""
        entries = self._vm.p2m.entries[gfns]
        rows = self._vm.machine.memory.pages[entries >> PAGE_SHIFT].view(np.uint64)
        for row in np.flatnonzero(entries >> 4 & 15 == PageType.EVICTED):
            rows[row] = np.frombuffer(self._keeper._kept[int(gfns[row])], np.uint64)
        return rows


class EmuMmu:
    """A VM with guest memory from 0 to `memory_size`, to be filled with `load` and asked by `perform`."""

    def __init__(self, memory_size: int, mmu: str) -> None:
        self.memory_size = memory_size
        self.vm, self.keeper = new_vm(memory_size, mmu)
        self.guest = GuestMemory(self.vm, self.keeper)
        self.resolved = 0  # how often an access had to ask the DMM
        self._shadow = mmu == "shadow"
        self._all_gfns = np.arange(memory_size // PAGE)
        self._image = bytes(memory_size)
        self._loaded: set[int] = set()
        self._watched = self._all_gfns
        self._seen = self.guest.words(self._watched)
        self._handle = self.vm.engine._uc._uch
        cpu = self.vm.cpu
        cpu.idtr.set(0, 0, 0, 0)
        cpu.ldtr.set(0, 0, 0, 0x8200)

    def load(self, image: bytes, frames: Mapping[int, bytes], watched: Iterable[int] = ()) -> None:
        """Replace guest memory: `image`, with `frames` over it, and forget every translation.

        Args:
            watched: the gfns where `perform` looks for changed words, beside those of `frames`.
        """
        vm = self.vm
        if image is not self._image:
            self._image, self._loaded = image, set(range(self.memory_size // PAGE))
        else:
            now = self.guest.words(self._all_gfns).reshape(-1)
            expected = np.frombuffer(image, np.uint64)
            self._loaded |= {int(word) * 8 // PAGE for word in np.flatnonzero(now != expected)}
        for gfn in sorted(self._loaded | set(frames)):
            vm.dmm.write(gfn * PAGE, frames.get(gfn) or image[gfn * PAGE : (gfn + 1) * PAGE])
        for gfn in np.flatnonzero(vm.p2m.entries & 7 != EVERYTHING).tolist():
            vm.dmm.resolve(gfn, EVERYTHING)
        self._loaded = set(frames)
        if self._shadow:
            shadow.forget_everything(vm.native_at)
        self._flush_tlb()
        self._watched = np.array(sorted(set(frames) | set(watched)))
        self._seen = self.guest.words(self._watched)

    def memory(self) -> bytes:
        """The whole of guest memory as it is now."""
        return self.guest.words(self._all_gfns).tobytes()

    def disturb(self, action: str, gfn: int) -> None:
        """Change what lies below the guest: "evict", "remap", or exactly these rights, as "r", "rw", "rx" or ""."""
        dmm = self.vm.dmm
        if self.vm.p2m.type(gfn) != PageType.RAM:
            return
        if action == "evict":
            dmm.evict(gfn, self.keeper)
        elif action == "remap":
            dmm.remap(gfn)
        else:
            letters = {"r": Intent.READ, "w": Intent.WRITE, "x": Intent.EXECUTE}
            dmm.protect(gfn, sum((letters[letter] for letter in action), Intent(0)))

    def perform(self, control: Control, access: Access) -> Outcome:
        """Make one access on an empty TLB; the arguments are those of `UnicornMmu.perform`."""
        self._flush_tlb()
        if access.kind is Kind.FETCH:
            self._set_state(control, access)
            return self._outcome(control, access, self._touch_parts(access))
        return self._execute(control, access)

    # Executed accesses

    def _execute(self, control: Control, access: Access) -> Outcome:
        pages = {gva & -PAGE for gva, _ in access.parts()}
        code_page = next(gfn * PAGE for gfn in CODE_GFNS if gfn * PAGE not in pages)
        stub = code_page + _STUB_AT[None if access.implicit else (access.kind, access.size)]
        self._set_state(control, access)
        while True:
            self._enter_code_page(control, code_page)
            fault = self._run(stub)
            if fault != "again":
                break
        if fault is not None:
            return self._outcome(control, access, fault)
        value = None
        if access.kind is Kind.READ and not access.implicit:
            value = self._value_read(access.size)
        if access.implicit:  # look at the TLB with the index that the descriptor read used
            self._set_state(_supervisor_twin(control), access)
        return self._outcome(control, access, self._touch_parts(access), value)

    def _enter_code_page(self, control: Control, code_page: int) -> None:
        """Get the code page into the TLB, which is all that paging being off is good for."""
        self.vm.cpu.cr0 = control.cr0 & ~CR0_PG
        if self._touch(code_page, Kind.FETCH) != code_page:
            raise RuntimeError("the code page has no identity translation")
        self.vm.cpu.cr0 = control.cr0

    def _run(self, stub: int) -> Any:
        """Execute one stub: None, or (vector, error code, CR2), or "again" once the DMM has resolved something."""
        vm, native = self.vm, self.vm.native
        vm.cpu.rip = stub
        native.miss_kind, native.stopped, native.limit = walk.OK, 0, 1 << 62
        error = uclib.uc_emu_start(self._handle, ctypes.c_uint64(stub), 0, 0, 0)
        native.shutdown = native.pending = native.block_size = 0
        if error == ERR_OK:
            if vm.cpu.rip & -16 != stub & -16:
                raise RuntimeError(f"stopped at {vm.cpu.rip:#x}, not at the end of the stub at {stub:#x}")
            return None
        if error != ERR_EXCEPTION:
            raise RuntimeError(f"engine error {error}")
        if native.miss_kind == walk.NEED:
            self._resolve()
            return "again"
        return self._refusal(ctypes.c_uint64.from_address(int(native.fault_address_at)).value)

    def _refusal(self, gva: int) -> tuple[int, int, int | None]:
        native = self.vm.native
        if native.miss_kind == walk.NON_CANONICAL:
            return 13, 0, None
        if native.miss_kind != walk.FAULT:
            raise RuntimeError(f"a TLB fill was refused with miss_kind {native.miss_kind}")
        return 14, int(native.miss_error), gva if native.mode == walk.MODE_4LEVEL else gva % 2**32

    def _resolve(self) -> None:
        self.resolved += 1
        self.vm.dmm.resolve(int(self.vm.native.need_gfn), Intent(int(self.vm.native.need_intent)))

    def _value_read(self, size: int) -> int:
        if size == 8:
            return self.vm.engine._uc.reg_read(x86_const.UC_X86_REG_XMM0) & (1 << 64) - 1
        return self.vm.cpu.rax & (1 << 8 * size) - 1

    # Translations

    def _touch_parts(self, access: Access) -> Any:
        """The gpa of each part of an access (None in a hole), or the fault that one of them raises."""
        gpas = []
        for gva, _ in access.parts():
            gpa = self._touch(gva, access.kind)
            if isinstance(gpa, tuple):
                return gpa
            gpas.append(gpa)
        return gpas

    def _touch(self, gva: int, kind: Kind) -> Any:
        """The gpa behind gva, from the TLB or by a TLB miss; None in a hole; a fault as (vector, error code, CR2)."""
        native = self.vm.native
        address = ctypes.c_uint64()
        while True:
            native.miss_kind = walk.OK
            if not uclib.uc_vmem_translate(
                self._handle, ctypes.c_uint64(gva), ctypes.c_uint32(PROTECTION[kind]), ctypes.byref(address)
            ):
                break
            if native.miss_kind != walk.NEED:
                return self._refusal(gva)
            self._resolve()
        mfn, offset = divmod(address.value & ~TRAP_BASE, PAGE)
        if mfn == self.vm.machine.memory.void_mfn:
            return None
        return int(self.vm.machine.m2p.gfn[mfn]) * PAGE + offset

    def _flush_tlb(self) -> None:
        uclib.uc_ctl(self._handle, UC_CTL_TLB_FLUSH | 1 << 30)

    # State

    def _set_state(self, control: Control, access: Access) -> None:
        vm, cpu = self.vm, self.vm.cpu
        cpu.cr0, cpu.cr3, cpu.cr4, cpu.efer = control.cr0, control.cr3, control.cr4, control.efer
        cpu.rax = 8 if access.implicit else access.value  # for LAR: the selector of descriptor 1
        cpu.rbx = access.gva
        if access.size == 8 and access.kind is Kind.WRITE:
            vm.engine._uc.reg_write(x86_const.UC_X86_REG_XMM0, access.value)
        set_privilege(vm, control)
        cpu.gdtr.set(0, (access.gva - 8) % 2**64, 0xFFFF, 0)

    def _outcome(self, control: Control, access: Access, result: Any, value: int | None = None) -> Outcome:
        if isinstance(result, tuple):
            return Outcome(fault=result, changed=self._changed())
        return Outcome(None, tuple(result), value, False, self._changed())

    def _changed(self) -> tuple[tuple[int, int], ...]:
        """Words of watched frames that differ from the last outcome."""
        now = self.guest.words(self._watched)
        rows, columns = np.nonzero(now != self._seen)
        self._seen = now
        gpas = self._watched[rows] * PAGE + columns * 8
        return tuple(zip(gpas.tolist(), now[rows, columns].tolist(), strict=True))


def set_privilege(vm: Any, control: Control) -> None:
    """Flat segments at the privilege level of `control`, EFLAGS.AC, and all that the engine derives from them."""
    cpu = vm.cpu
    dpl = control.cpl << 13
    cpu.cs.set(8 | control.cpl, 0, 0xFFFF_FFFF, (CODE_64 if control.long_mode else CODE_32) | dpl)
    for segment in (cpu.ds, cpu.es, cpu.ss, cpu.fs, cpu.gs):
        segment.set(16 | control.cpl, 0, 0xFFFF_FFFF, DATA | dpl)
    env = vm.engine.env
    eflags = EFLAGS_FIXED | (EFLAGS_AC if control.ac else 0)
    ctypes.c_uint64.from_address(env + cpustate.EFLAGS).value = eflags
    set_hflags_mode(env)
    hflags = ctypes.c_uint32.from_address(env + HFLAGS)
    hflags.value = hflags.value & ~cpustate.HF_SMAP | HF_OSFXSR | (cpustate.HF_SMAP if control.cr4 & CR4_SMAP else 0)


def _supervisor_twin(control: Control) -> Control:
    """A state whose explicit accesses use the TLB index of the given state's implicit ones."""
    return Control(control.cr0, control.cr3, control.cr4, control.efer, 0, control.ac and control.cpl < 3)


__all__ = ["ARCHITECTURES", "CODE_GFNS", "EmuMmu", "MemoryWithHoles", "address_of", "struct", "with_code"]
