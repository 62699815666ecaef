"""The page walker inside Unicorn (QEMU 5.0.1), asked about one access at a time: the second oracle for the MMU.

An engine in UC_TLB_CPU mode walks the guest's tables itself. Each access starts from an empty TLB and from a CPU state
written through a saved context, so any mode, privilege level and control bits can be had without loading segments.

The instruction that makes the access needs a page to run from, but the tables under test must not have to provide it.
So with CR0.PG = 0, and the privilege level and EFLAGS.AC of the test, one fetch translation of the code page is made;
then PG is switched on behind the TLB's back and the instruction runs from the entry that is still there. All that
the tables see is the access itself. A code page that the access would touch is avoided by having a choice of three.

Reads and writes are executed instructions. Implicit supervisor reads are the descriptor read of LAR. Fetches call the
walker through `uc_vmem_translate` instead, since the bytes at a random address are rarely an instruction to run.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import unicorn
from unicorn import x86_const
from unicorn.unicorn_py3.unicorn import uclib

from tests.oracles.paging_model import CR0_PG, CR4_SMAP, PAGE, Access, Control, Kind, Outcome

CPU_MODEL = x86_const.UC_CPU_X86_EPYC  # announces NX, PSE-36, 1 GiB pages, SMEP and SMAP

CODE_GPAS = (0x7B5D_3000, 0x3A7E_9000, 0x5C4F_6000)  # below 4 GiB, above any test memory
STUB_OFFSET = 0x800

# A context of Unicorn 2.1.4 begins with a header; then follows the CPU state, at these offsets.
HEADER = 40
RAX, RBX, RIP, EFLAGS, HFLAGS = 0, 24, 128, 136, 176
GDT_BASE, GDT_LIMIT = 376 + 8, 376 + 16
CR0, CR2, CR3, CR4, EFER = 424, 440, 448, 456, 592
PKRU = 5304
ERROR_CODE, OLD_EXCEPTION = 5384, 5496

# Bits of HFLAGS beside the CPL in 1:0
HF_CS32, HF_SS32, HF_PE, HF_LMA, HF_CS64 = 1 << 4, 1 << 5, 1 << 7, 1 << 14, 1 << 15
HF_OSFXSR, HF_SMAP = 1 << 22, 1 << 23
EFLAGS_FIXED, EFLAGS_AC = 1 << 1, 1 << 18

NO_CR2 = 0x5EED_5EED_5EED_5EED  # put into CR2 beforehand; not canonical, so no fault can leave it there

INT3 = b"\xcc"
STUBS = {  # the address is in RBX, the value in RAX or XMM0; the same bytes in 32- and 64-bit code
    (Kind.READ, 1): b"\x8a\x03",  # mov al, [rbx]
    (Kind.READ, 2): b"\x66\x8b\x03",  # mov ax, [rbx]
    (Kind.READ, 4): b"\x8b\x03",  # mov eax, [rbx]
    (Kind.READ, 8): b"\xf3\x0f\x7e\x03",  # movq xmm0, [rbx]
    (Kind.WRITE, 1): b"\x88\x03",  # mov [rbx], al
    (Kind.WRITE, 2): b"\x66\x89\x03",  # mov [rbx], ax
    (Kind.WRITE, 4): b"\x89\x03",  # mov [rbx], eax
    (Kind.WRITE, 8): b"\x66\x0f\xd6\x03",  # movq [rbx], xmm0
}
IMPLICIT_STUB = b"\x0f\x02\xc8"  # lar ecx, eax: reads the descriptor as two dwords and never faults on its contents
PROTECTION = {
    Kind.READ: unicorn.UC_PROT_READ,
    Kind.WRITE: unicorn.UC_PROT_WRITE,
    Kind.FETCH: unicorn.UC_PROT_EXEC,
}
UNMAPPED = (unicorn.UC_ERR_READ_UNMAPPED, unicorn.UC_ERR_WRITE_UNMAPPED)


class UnicornMmu:
    """A scratch engine with physical memory from 0 to `memory_size`, to be filled with `load` and asked by `perform`.

    Raises:
        RuntimeError: the engine's context is not laid out as this module expects.
    """

    def __init__(self, memory_size: int) -> None:
        if memory_size % PAGE or not 0 < memory_size <= min(CODE_GPAS):
            raise ValueError(f"memory_size {memory_size:#x} is no multiple of {PAGE:#x} below {min(CODE_GPAS):#x}")
        self.memory_size = memory_size
        self._ram = np.zeros(memory_size // 8, np.uint64)  # what the engine sees
        self._seen = self._ram.copy()  # the same as of the last outcome
        self._differs = np.zeros(self._ram.shape, np.bool_)
        self._vector: int | None = None

        engine: Any = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_64)  # its stubs lack half of ctl_*
        engine.ctl_set_cpu_model(CPU_MODEL)
        engine.ctl_set_tlb_mode(unicorn.UC_TLB_CPU)
        engine.ctl_exits_enabled(True)  # or emu_start would walk the tables for its `until`
        engine.mem_map_ptr(0, memory_size, unicorn.UC_PROT_ALL, self._ram.ctypes.data)
        self._stub_offset: dict[Any, int] = {}
        code = bytearray(STUB_OFFSET)
        for name, instruction in [*STUBS.items(), (None, IMPLICIT_STUB)]:
            self._stub_offset[name] = len(code)
            code += (instruction + INT3).ljust(16, INT3)
        for gpa in CODE_GPAS:
            engine.mem_map(gpa, PAGE)
            engine.mem_write(gpa, bytes(code))
        engine.hook_add(unicorn.UC_HOOK_INTR, self._on_exception)
        self._engine = engine
        self._handle = engine._uch
        self._context = ctypes.c_void_p()
        self._check(uclib.uc_context_alloc(self._handle, ctypes.byref(self._context)))
        self._verify_layout()

    def load(self, image: bytes, frames: Mapping[int, bytes] | None = None) -> None:
        """Replace the whole of physical memory: `image`, with `frames` (gfn -> 4096 bytes) over it."""
        self._ram[:] = np.frombuffer(image, np.uint64)
        for gfn, frame in (frames or {}).items():
            self._ram[gfn * PAGE // 8 : (gfn + 1) * PAGE // 8] = np.frombuffer(frame, np.uint64)
        np.copyto(self._seen, self._ram)

    def memory(self) -> bytes:
        """The whole of physical memory as it is now."""
        return self._ram.tobytes()

    def perform(self, control: Control, access: Access) -> Outcome:
        """Make one access on an empty TLB.

        Args:
            control: CR0.PE is taken to be set. In long mode the code is 64-bit, else 32-bit with flat segments.
            access: reads and writes of 1, 2, 4 and 8 bytes; fetches of any size; implicit reads of 8 bytes.
        """
        if access.kind is Kind.FETCH:
            return self._probe_fetch(control, access)
        if access.implicit and (access.kind, access.size) != (Kind.READ, 8):
            raise ValueError("an implicit access is a read of 8 bytes")
        return self._execute(control, access)

    # Executed accesses

    def _execute(self, control: Control, access: Access) -> Outcome:
        state = self._state(control, access)
        pages = {gva & -PAGE for gva, _ in access.parts()}
        code_page = next(page for page in CODE_GPAS if page not in pages)

        self._restore(state, paging=False)
        self._flush_tlb()
        if self._translate(code_page, Kind.FETCH) != code_page:
            raise RuntimeError("the code page has no identity translation")
        self._restore(state)
        if access.size == 8 and access.kind is Kind.WRITE:
            self._engine.reg_write(x86_const.UC_X86_REG_XMM0, access.value)

        stub = None if access.implicit else (access.kind, access.size)
        self._vector = None
        error = uclib.uc_emu_start(self._handle, code_page + self._stub_offset[stub], 0, 0, 0)
        if error not in (unicorn.UC_ERR_OK, *UNMAPPED):
            raise unicorn.UcError(error)
        changed = self._changed()
        unmapped = error in UNMAPPED
        if not unmapped and self._vector != 3:
            return self._faulted(changed)

        value = None
        if access.kind is Kind.READ and not access.implicit and not unmapped:
            value = self._value_read(access.size)
        if access.implicit:  # look at the TLB with the index that the descriptor read used
            self._restore(self._state(_supervisor_twin(control), access))
        gpas: list[int] = []
        for gva, _ in access.parts():
            gpa = self._translate(gva, access.kind)
            if gpa is None:
                raise RuntimeError(f"no translation of {gva:#x} is left in the TLB after a successful access")
            gpas.append(gpa)
            if gpa >= self.memory_size:
                break
        outside = gpas[-1] >= self.memory_size
        return Outcome(None, tuple(gpas), None if outside else value, outside, changed)

    def _value_read(self, size: int) -> int:
        if size == 8:
            return self._engine.reg_read(x86_const.UC_X86_REG_XMM0) & (1 << 64) - 1
        return self._engine.reg_read(x86_const.UC_X86_REG_RAX) & (1 << 8 * size) - 1

    def _on_exception(self, engine: unicorn.Uc, vector: int, _data: object) -> None:
        self._vector = vector
        engine.emu_stop()

    # Fetches

    def _probe_fetch(self, control: Control, access: Access) -> Outcome:
        self._flush_tlb()
        self._restore(self._state(control, access))
        gpas: list[int] = []
        for gva, _ in access.parts():
            gpa = self._translate(gva, Kind.FETCH)
            if gpa is None:
                self._vector = None
                return self._faulted(self._changed())
            gpas.append(gpa)
            if gpa >= self.memory_size:
                break
        return Outcome(None, tuple(gpas), None, gpas[-1] >= self.memory_size, self._changed())

    def run_at(self, control: Control, gva: int) -> Outcome:
        """Execute what stands at gva, which must be INT3: the real thing behind the fetch probe, for its test."""
        self._flush_tlb()
        self._restore(self._state(control, Access(Kind.FETCH, gva)))
        self._engine.ctl_flush_tb()
        self._vector = None
        error = uclib.uc_emu_start(self._handle, gva, 0, 0, 0)
        if error != unicorn.UC_ERR_OK:
            raise unicorn.UcError(error)
        changed = self._changed()
        if self._vector != 3:
            return self._faulted(changed)
        gpa = self._translate(gva, Kind.FETCH)
        assert gpa is not None
        return Outcome(None, (gpa,), None, False, changed)

    # The engine's state

    def _state(self, control: Control, access: Access) -> dict[int, tuple[str, int]]:
        """The fields of the CPU state to set, by offset: (struct format, value)."""
        hflags = control.cpl | HF_PE | HF_SS32 | HF_CS32 | HF_OSFXSR
        if control.long_mode:
            hflags |= HF_LMA | HF_CS64
        if control.cr4 & CR4_SMAP:
            hflags |= HF_SMAP
        return {
            RAX: ("Q", 8 if access.implicit else access.value),  # for LAR: the selector of descriptor 1
            RBX: ("Q", access.gva),
            EFLAGS: ("Q", EFLAGS_FIXED | (EFLAGS_AC if control.ac else 0)),
            HFLAGS: ("I", hflags),
            GDT_BASE: ("Q", (access.gva - 8) % 2**64),
            GDT_LIMIT: ("I", 0xFFFF),
            CR0: ("Q", control.cr0),
            CR2: ("Q", NO_CR2),
            CR3: ("Q", control.cr3),
            CR4: ("Q", control.cr4),
            EFER: ("Q", control.efer),
            PKRU: ("I", control.pkru),
            OLD_EXCEPTION: ("i", -1),
        }

    def _restore(self, state: dict[int, tuple[str, int]], paging: bool = True) -> None:
        """Write the state into the engine. The TLB keeps what it holds."""
        address = self._data_address()
        for offset, (code, value) in state.items():
            if offset == CR0 and not paging:
                value &= ~CR0_PG
            data = struct.pack("<" + code, value)
            ctypes.memmove(address + offset, data, len(data))
        self._check(uclib.uc_context_restore(self._handle, self._context))

    def _saved(self, offset: int, code: str) -> int:
        """A field of the CPU state as of now."""
        self._check(uclib.uc_context_save(self._handle, self._context))
        data = ctypes.string_at(self._data_address() + offset, struct.calcsize(code))
        return struct.unpack("<" + code, data)[0]

    def _data_address(self) -> int:
        assert self._context.value is not None
        return self._context.value + HEADER

    def _faulted(self, changed: tuple[tuple[int, int], ...]) -> Outcome:
        """The outcome of an access that raised an exception; a probe has no vector, but only #PF writes CR2."""
        error_code, cr2 = self._saved(ERROR_CODE, "i"), self._saved(CR2, "Q")
        vector = self._vector
        if vector is None:
            vector = 13 if cr2 == NO_CR2 else 14
        return Outcome(fault=(vector, error_code, None if cr2 == NO_CR2 else cr2), changed=changed)

    def _translate(self, gva: int, kind: Kind) -> int | None:
        """The gpa of gva from the TLB or by a walk, None when the walk faults."""
        gpa = ctypes.c_uint64()
        error = uclib.uc_vmem_translate(
            self._handle, ctypes.c_uint64(gva), ctypes.c_uint32(PROTECTION[kind]), ctypes.byref(gpa)
        )
        return None if error else gpa.value

    def _flush_tlb(self) -> None:
        self._check(uclib.uc_ctl(self._handle, unicorn.UC_CTL_TLB_FLUSH | 1 << 30))

    def _changed(self) -> tuple[tuple[int, int], ...]:
        """Words that differ from the last outcome."""
        np.not_equal(self._ram, self._seen, out=self._differs)
        words = np.flatnonzero(self._differs)
        self._seen[words] = self._ram[words]
        return tuple((int(word) * 8, int(self._ram[word])) for word in words)

    @staticmethod
    def _check(error: int) -> None:
        if error != unicorn.UC_ERR_OK:
            raise unicorn.UcError(error)

    def _verify_layout(self) -> None:
        """Write values through the API and find them in a saved context at the expected offsets."""
        known = {
            x86_const.UC_X86_REG_RAX: (RAX, 0x1111_2222_3333_4444),
            x86_const.UC_X86_REG_RBX: (RBX, 0x5555_6666_7777_8888),
            x86_const.UC_X86_REG_RIP: (RIP, 0x1234_5678),
            x86_const.UC_X86_REG_CR2: (CR2, 0x9999_AAAA_BBBB_CCCC),
            x86_const.UC_X86_REG_CR3: (CR3, 0x4567_8000),
            x86_const.UC_X86_REG_CR4: (CR4, 0x20),
        }
        for register, (offset, value) in known.items():
            self._engine.reg_write(register, value)
            if self._saved(offset, "Q") != value:
                raise RuntimeError(f"unknown engine: a register is not at offset {offset} of its context")


def _supervisor_twin(control: Control) -> Control:
    """A state whose explicit accesses use the TLB index of the given state's implicit ones."""
    return replace(control, cpl=0, ac=control.ac and control.cpl < 3)
