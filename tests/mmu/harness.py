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
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from unicorn import UC_CTL_TLB_FLUSH, x86_const
from unicorn.unicorn_py3.unicorn import uclib

from emu.addr import PAGE_SHIFT, TRAP_BASE
from emu.cpu import probes
from emu.dmm.p2m import Intent, PageType
from emu.dmm.policies.demand import StaticMapping
from emu.dmm.policy import Policy
from emu.engine import cpustate
from emu.engine.cpustate import HFLAGS, set_hflags_mode
from emu.machine.machine import Machine
from emu.mmu import shadow, walk
from emu.mmu.paging import flush_tlbs
from tests.mmu.processors import only, start_all
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

Fault = tuple[int, int, int | None]  # vector, error code, CR2 (None for #GP)
HOLE = -1  # in place of a gpa: physical memory that does not exist, nobody can say which

EVERYTHING = Intent.READ | Intent.WRITE | Intent.EXECUTE


def _stubs() -> tuple[bytes, dict[Any, tuple[int, int]]]:
    """The code, and by kind and size of access (None: implicit) the offsets of its stub in the page and of the HLT."""
    code, offsets = bytearray(), {}
    for name, instruction in [*STUBS.items(), (None, IMPLICIT_STUB)]:
        start = STUB_OFFSET + len(code)
        offsets[name] = start, start + len(instruction)
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

    def keep(self, gfn: int, contents: bytes) -> None:
        self._kept[gfn] = contents

    def restore(self, gfn: int) -> bytes:
        return self._kept[gfn]


class NoImage:
    """The image of a VM that boots nothing."""

    def page(self, gfn: int) -> bytes:
        return bytes(PAGE)


def new_vm(memory_size: int, mmu: str, cpus: int = 1) -> tuple[Any, Keeper]:
    """A VM with every page populated, some spare frames in its pool, and a policy that keeps evicted pages.

    All its processors are started, see :mod:`tests.mmu.processors`.
    """
    spare = 16 * PAGE
    machine = Machine(Machine.size_for(memory_size, memory_size, mmu) + spare)
    vm = machine.create_vm("test", memory_size, mmu=mmu, cpus=cpus, cpu="max")
    start_all(vm)
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
        rows[entries >> 4 & 15 == PageType.EMPTY] = 0  # evicted as a page of zeros
        for row in np.flatnonzero(entries >> 4 & 15 == PageType.EVICTED):
            rows[row] = np.frombuffer(self._keeper._kept[int(gfns[row])], np.uint64)
        return rows


class EmuMmu:
    """A VM with guest memory from 0 to `memory_size`, to be filled with `load` and asked by `perform`.

    Args:
        cpus: processors; the first makes all accesses until `on` says else.
    """

    def __init__(self, memory_size: int, mmu: str, cpus: int = 1) -> None:
        self.memory_size = memory_size
        self.vm, self.keeper = new_vm(memory_size, mmu, cpus)
        self.guest = GuestMemory(self.vm, self.keeper)
        self.resolved = 0  # how often an access had to ask the DMM
        self._shadow = mmu == "shadow"
        self._all_gfns = np.arange(memory_size // PAGE)
        self._watched = self._all_gfns
        self._seen = self.guest.words(self._watched)
        for processor in self.vm.processors:
            processor.native.single = 1  # no block of code is running that a store could be part of
            processor.registers.idtr.set(0, 0, 0, 0)
            processor.registers.ldtr.set(0, 0, 0, 0x8200)

    @property
    def _handle(self) -> Any:
        return self.vm.processor.engine._uc._uch

    def on(self, cpu: int) -> EmuMmu:
        """The same with processor `cpu` making the accesses from now on."""
        only(self.vm, cpu)
        self.vm.native.current = cpu  # the run loop, which would say so, is not used here
        return self

    def load(self, image: bytes, frames: Mapping[int, bytes]) -> None:
        """Replace guest memory: `image`, with `frames` over it, and forget every translation."""
        dmm = self.vm.dmm
        wanted = np.frombuffer(image, np.uint64).reshape(-1, PAGE // 8).copy()
        for gfn, frame in frames.items():
            wanted[gfn] = np.frombuffer(frame, np.uint64)
        for gfn in np.flatnonzero((self.guest.words(self._all_gfns) != wanted).any(axis=1)).tolist():
            self.vm.memory.write(gfn * PAGE, wanted[gfn].tobytes())
        for gfn in np.flatnonzero(self.vm.p2m.entries[self._all_gfns] & 7 != EVERYTHING).tolist():
            dmm.resolve(gfn, EVERYTHING)
        if self._shadow:
            shadow.forget_everything(self.vm.processor.native_at)
        flush_tlbs(self.vm.processor.native_at)
        self.watch(frames)

    def watch(self, gfns: Iterable[int]) -> None:
        """Let `perform` look for changed words in these pages; elsewhere `memory` finds them."""
        self._watched = np.array(sorted(gfns))
        self._seen = self.guest.words(self._watched)

    def memory(self) -> bytes:
        """The whole of guest memory as it is now."""
        return self.guest.words(self._all_gfns).tobytes()

    def load_pdptes(self, control: Control) -> bool:
        """Load the PDPTE registers as MOV CR3 does, if PAE paging is in use; False when that is a #GP."""
        native = self.vm.processor.native
        if not control.pae:
            return True
        while (status := probes.load_pdptes(self.vm.processor.native_at, control.cr3)) == walk.NEED:
            native.miss_kind = walk.NEED
            self._resolved()
        return status == walk.OK

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
        """Make one access on an empty TLB; the arguments are those of `UnicornMmu.perform`.

        `Outcome.gpas` is given for fetches only: a store into a table may have dropped the TLB entry that it used, and
        to ask for it again would be one more access.
        """
        self._flush_tlb()
        self._set_state(control, access)
        if access.kind is Kind.FETCH:
            result = self._touch_parts(access)
            if isinstance(result, tuple):
                return Outcome(fault=result, changed=self._changed())
            return Outcome(gpas=tuple(result), changed=self._changed())
        fault, value = self._execute(control, access), None
        if fault is None and access.kind is Kind.READ and not access.implicit:
            value = self._value_read(access.size)
        return Outcome(fault=fault, value=value, changed=self._changed())

    # Executed accesses

    def _execute(self, control: Control, access: Access) -> Fault | None:
        pages = {gva & -PAGE for gva, _ in access.parts()}
        code_page = next(gfn * PAGE for gfn in CODE_GFNS if gfn * PAGE not in pages)
        if not access.implicit:
            self.vm.cpu.gdtr.set(0, code_page, 0, 0)  # no access of the program's may look like the processor's own
        for table in (self.vm.cpu.ldtr, self.vm.cpu.tr):
            table.set(0, code_page, 0, 0x8B00)
        start, end = _STUB_AT[None if access.implicit else (access.kind, access.size)]
        while True:
            self._enter_code_page(control, code_page)
            if not self._run(code_page + start, code_page + end):
                return self._refusal() if self.vm.processor.native.miss_kind else None

    def _enter_code_page(self, control: Control, code_page: int) -> None:
        """Get the code page into the TLB, which is all that paging being off is good for."""
        self.vm.cpu.cr0 = control.cr0 & ~CR0_PG
        if self._touch(code_page, Kind.FETCH) != code_page:
            raise RuntimeError("the code page has no identity translation")
        self.vm.cpu.cr0 = control.cr0

    def _run(self, begin: int, end: int) -> bool:
        """Execute one stub; true when the DMM had to resolve something first, and it must be executed again."""
        vm, native = self.vm, self.vm.processor.native
        vm.cpu.rip = begin
        native.miss_kind, native.stopped, native.limit = walk.OK, 0, 1 << 62
        error = probes.start(self.vm.processor.native_at)
        native.shutdown = native.pending = native.block_size = 0
        if error == ERR_OK and native.miss_kind == walk.OK:
            if vm.cpu.rip != (end if vm.cpu.cpl else end + 1):
                raise RuntimeError(f"stopped at {vm.cpu.rip:#x}, not at the HLT at {end:#x}")
            return False
        if error not in (ERR_OK, ERR_EXCEPTION):
            raise RuntimeError(f"engine error {error}")
        return self._resolved()

    def _refusal(self, gva: int | None = None) -> Fault:
        """The fault in place of a refused TLB fill, at `gva` or where the engine says."""
        native = self.vm.processor.native
        if native.miss_kind == walk.NON_CANONICAL:
            return 13, 0, None
        if native.miss_kind != walk.FAULT:
            raise RuntimeError(f"a TLB fill was refused with miss_kind {native.miss_kind}")
        if gva is None:
            gva = ctypes.c_uint64.from_address(int(native.fault_address_at)).value
        return 14, int(native.miss_error), gva if native.mode >= walk.MODE_4LEVEL else gva % 2**32

    def _resolved(self) -> bool:
        """Whether the DMM had to be asked, and has answered."""
        native = self.vm.processor.native
        if native.miss_kind != walk.NEED:
            return False
        self.resolved += 1
        self.vm.dmm.resolve(int(native.need_gfn), Intent(int(native.need_intent)))
        return True

    def _value_read(self, size: int) -> int:
        if size == 8:
            return self.vm.processor.engine._uc.reg_read(x86_const.UC_X86_REG_XMM0) & (1 << 64) - 1
        return self.vm.cpu.rax & (1 << 8 * size) - 1

    # Translations

    def _touch_parts(self, access: Access) -> list[int] | Fault:
        """The gpa of each part of an access (HOLE in a hole), or the fault that one of them raises."""
        gpas = []
        for gva, _ in access.parts():
            gpa = self._touch(gva, access.kind)
            if isinstance(gpa, tuple):
                return gpa
            gpas.append(gpa)
        return gpas

    def _touch(self, gva: int, kind: Kind) -> int | Fault:
        """The gpa behind gva, by the TLB or a TLB miss; HOLE outside memory; or the fault."""
        native = self.vm.processor.native
        address = ctypes.c_uint64()
        while True:
            native.miss_kind = walk.OK
            if not uclib.uc_vmem_translate(
                self._handle, ctypes.c_uint64(gva), ctypes.c_uint32(PROTECTION[kind]), ctypes.byref(address)
            ):
                break
            if not self._resolved():
                return self._refusal(gva)
        mfn, offset = divmod(address.value & ~TRAP_BASE, PAGE)
        if mfn == self.vm.machine.memory.void_mfn:
            return HOLE
        return int(self.vm.machine.m2p.gfn[mfn]) * PAGE + offset

    def _flush_tlb(self) -> None:
        uclib.uc_ctl(self._handle, UC_CTL_TLB_FLUSH | 1 << 30)

    # State

    def _set_state(self, control: Control, access: Access) -> None:
        vm, cpu = self.vm, self.vm.cpu
        cpu.cr0, cpu.cr3, cpu.cr4, cpu.efer = control.cr0, control.cr3, control.cr4, control.efer
        self.set_keys(control)
        cpu.rax = 8 if access.implicit else access.value  # for LAR: the selector of descriptor 1
        cpu.rbx = access.gva
        if access.size == 8 and access.kind is Kind.WRITE:
            vm.processor.engine._uc.reg_write(x86_const.UC_X86_REG_XMM0, access.value)
        set_privilege(vm, control)
        cpu.gdtr.set(0, (access.gva - 8) % 2**64, 0xFFFF, 0)

    def set_keys(self, control: Control) -> None:
        """The rights by protection key."""
        ctypes.c_uint32.from_address(self.vm.processor.engine.env + cpustate.PKRU).value = control.pkru
        self.vm.processor.native.pkrs = control.pkrs

    def _changed(self) -> tuple[tuple[int, int], ...]:
        """Words of watched frames that differ from the last outcome."""
        now = self.guest.words(self._watched)
        rows, columns = np.nonzero(now != self._seen)
        self._seen = now
        gpas = self._watched[rows] * PAGE + columns * 8
        return tuple(zip(gpas.tolist(), now[rows, columns].tolist(), strict=True))


def set_privilege(vm: Any, control: Control, bits: int | None = None) -> None:
    """Flat segments at the privilege level of `control`, EFLAGS.AC, and all that the engine derives from them.

    Args:
        bits: of the code segment, 64 or 32; as long mode has it by default.
    """
    code = CODE_64 if bits == 64 or bits is None and control.long_mode else CODE_32
    cpu = vm.cpu
    dpl = control.cpl << 13
    cpu.cs.set(8 | control.cpl, 0, 0xFFFF_FFFF, code | dpl)
    for segment in (cpu.ds, cpu.es, cpu.ss, cpu.fs, cpu.gs):
        segment.set(16 | control.cpl, 0, 0xFFFF_FFFF, DATA | dpl)
    env = vm.processor.engine.env
    eflags = EFLAGS_FIXED | (EFLAGS_AC if control.ac else 0)
    ctypes.c_uint64.from_address(env + cpustate.EFLAGS).value = eflags
    set_hflags_mode(env)
    hflags = ctypes.c_uint32.from_address(env + HFLAGS)
    hflags.value = hflags.value & ~cpustate.HF_SMAP | HF_OSFXSR | (cpustate.HF_SMAP if control.cr4 & CR4_SMAP else 0)
