"""Programs that change their own page tables, on the emulator in both architectures and on Unicorn's own MMU.

Translations stay in the TLBs from one operation to the next, as on a processor; see `tests.mmu.programs` for the
programs. After each operation its result, its fault and all memory must be what the model says, accessed and dirty
flags included. Below the emulator's guest pages move, vanish and change their rights between operations.
"""

from __future__ import annotations

import ctypes
import struct
from dataclasses import replace

import pytest
from hypothesis import given
from unicorn import UC_ERR_OK, UcError, x86_const
from unicorn.unicorn_py3.unicorn import uclib

from tests.mmu.harness import ARCHITECTURES, EFLAGS_AC, EFLAGS_FIXED, EmuMmu, Fault, set_privilege
from tests.mmu.instructions import PLACES
from tests.mmu.programs import programs
from tests.mmu.world import PAGE_FAULT, SUPERVISOR_CODE, USER_CODE, Program, Step
from tests.oracles import unicorn_mmu
from tests.oracles.paging_cases import LONG_RUN, MEMORY_SIZE, case_settings, data_image
from tests.oracles.paging_model import ERROR_WR, PAGE, Access, Control, Kind, Outcome
from tests.oracles.unicorn_mmu import UnicornMmu

EFER_MSR, PKRS_MSR = 0xC000_0080, 0x6E1
CR0_ET = 1 << 4  # always set by MOV CR0
AUDIT_EVERY = 1 if LONG_RUN else 8  # steps


def place(step: Step) -> tuple[int, int]:
    """The addresses of the instruction for a step and of the HLT behind it."""
    name = (step.access.kind, step.access.size) if step.access and step.name in ("read", "write") else step.name
    page = USER_CODE if step.control.cpl == 3 else SUPERVISOR_CODE
    start, end = PLACES[name]
    return page + start, page + end


def registers(step: Step) -> dict[str, int]:
    """What the instruction of a step finds in its registers."""
    after, access = step.after, step.access
    if access is not None:
        return {"rax": access.value, "rbx": access.gva, "rcx": 0, "rdx": 0}
    if step.name == "efer":
        return {"rax": after.efer, "rbx": 0, "rcx": EFER_MSR, "rdx": 0}
    if step.name in ("pkru", "pkrs"):
        rights = {"pkru": after.pkru, "pkrs": after.pkrs}[step.name]
        return {"rax": rights, "rbx": 0, "rcx": PKRS_MSR if step.name == "pkrs" else 0, "rdx": 0}
    value = {"cr0": after.cr0, "cr3": after.cr3, "cr4": after.cr4, "mode": after.cr4}[step.name]
    return {"rax": value, "rbx": 0, "rcx": after.cr3, "rdx": after.cr0}


def has_value(step: Step) -> bool:
    return step.name in ("read", "xadd")


class EmuGuest:
    """The emulator running a program."""

    def __init__(self, mmu: str, cpus: int = 1) -> None:
        self.mmu = EmuMmu(MEMORY_SIZE, mmu, cpus)

    def begin(self, program: Program) -> None:
        self.mmu.load(data_image(MEMORY_SIZE), program.frames)
        self.mmu.watch(program.memory.frames)
        for processor, control in zip(self.mmu.vm.processors, program.controls, strict=True):
            cpu = processor.registers
            cpu.cr0, cpu.cr3, cpu.cr4, cpu.efer = control.cr0, control.cr3, control.cr4, control.efer
            for table in (cpu.gdtr, cpu.ldtr, cpu.tr):
                table.set(0, SUPERVISOR_CODE, 0, 0x8B00)
            self.mmu.on(processor.index).set_keys(control)
            assert self.mmu.load_pdptes(control)

    def step(self, step: Step) -> Outcome:
        mmu, access = self.mmu.on(step.cpu), step.access
        cpu = mmu.vm.cpu
        for name, value in registers(step).items():
            setattr(cpu, name, value)
        set_privilege(mmu.vm, step.control)
        if access is not None and access.size == 8 and access.kind is Kind.WRITE:
            mmu.vm.processor.engine._uc.reg_write(x86_const.UC_X86_REG_XMM0, access.value)
        if access is not None and step.name == "fetch":
            result = mmu._touch_parts(access)
            if isinstance(result, tuple):
                return Outcome(fault=result, changed=mmu._changed())
            return Outcome(gpas=tuple(result), changed=mmu._changed())
        rip, end = place(step)
        while mmu._run(rip, end):
            rip = cpu.rip
        fault: Fault | None = mmu._refusal() if mmu.vm.processor.native.miss_kind else None
        value = None
        if access is not None and has_value(step) and fault is None:
            value = mmu._value_read(access.size)
        return Outcome(fault=fault, value=value, changed=mmu._changed())

    def control(self) -> tuple[int, ...]:
        cpu = self.mmu.vm.cpu
        return cpu.cr0, cpu.cr3, cpu.cr4, cpu.efer


class UnicornGuest(UnicornMmu):
    """Unicorn's own MMU running a program; its TLB keeps what it holds."""

    def begin(self, program: Program) -> None:
        self.load(data_image(MEMORY_SIZE), program.frames)
        self._restore(self._state(program.controls[0], Access(Kind.READ, 0)))
        self._flush_tlb()

    def step(self, step: Step) -> Outcome:
        access = step.access
        hflags = self._saved(unicorn_mmu.HFLAGS, "I") & ~3 | step.control.cpl | unicorn_mmu.HF_OSFXSR
        eflags = EFLAGS_FIXED | (EFLAGS_AC if step.control.ac else 0)
        offsets = {"rax": 0, "rcx": 8, "rdx": 16, "rbx": 24}
        self._restore(
            {
                **{offsets[name]: ("Q", value) for name, value in registers(step).items()},
                unicorn_mmu.HFLAGS: ("I", hflags),
                unicorn_mmu.EFLAGS: ("Q", eflags),
                unicorn_mmu.CR2: ("Q", unicorn_mmu.NO_CR2),
                unicorn_mmu.OLD_EXCEPTION: ("i", -1),
            }
        )
        if access is not None and access.size == 8 and access.kind is Kind.WRITE:
            self._engine.reg_write(x86_const.UC_X86_REG_XMM0, access.value)
        self._vector = None
        if access is not None and step.name == "fetch":
            gpas = []
            for gva, _ in access.parts():
                gpa = self._translate(gva, Kind.FETCH)
                if gpa is None:
                    return self._faulted(self._changed())
                gpas.append(gpa)
            return Outcome(gpas=tuple(gpas), changed=self._changed())
        start, end = place(step)
        error = uclib.uc_emu_start(self._handle, ctypes.c_uint64(start), 0, 0, 0)
        if error != UC_ERR_OK:
            raise RuntimeError(f"{UcError(error)} at {self._saved(unicorn_mmu.RIP, 'Q'):#x} in {step}")
        rip = self._saved(unicorn_mmu.RIP, "Q")
        if rip != (end if step.control.cpl else end + 1):
            return self._faulted(self._changed())
        value = None
        if access is not None and has_value(step):
            value = self._value_read(access.size)
        return Outcome(value=value, changed=self._changed())

    def control(self) -> tuple[int, ...]:
        data = ctypes.string_at(self._data_address() + unicorn_mmu.CR0, 40)
        cr0, _, _, cr3, cr4 = struct.unpack("<5Q", data)
        return cr0, cr3, cr4, self._saved(unicorn_mmu.EFER, "Q")


def visible(step: Step) -> Outcome:
    """The outcome as far as both can tell: addresses of fetches only."""
    gpas = step.outcome.gpas if step.name == "fetch" else ()
    return Outcome(step.outcome.fault, gpas, step.outcome.value, False, step.outcome.changed)


def without_write(outcome: Outcome) -> Outcome:
    """A page fault's error code without W/R: Unicorn reads before it asks for the right to write."""
    if outcome.fault is None or outcome.fault[0] != PAGE_FAULT:
        return outcome
    vector, error, cr2 = outcome.fault
    return replace(outcome, fault=(vector, error & ~ERROR_WR, cr2))


def registers_of(control: Control) -> tuple[int, ...]:
    return control.cr0, control.cr3, control.cr4, control.efer


def check(program: Program, guests: dict[str, EmuGuest | UnicornGuest]) -> None:
    for guest in guests.values():
        guest.begin(program)
    for number, step in enumerate(program.steps):
        for name, guest in guests.items():
            if step.name == "disturb":
                if isinstance(guest, EmuGuest):
                    guest.mmu.disturb(*step.disturbance)
            else:
                ours, expected = guest.step(step), visible(step)
                if isinstance(guest, UnicornGuest) and step.name in ("add", "xadd"):
                    ours, expected = without_write(ours), without_write(expected)
                assert ours == expected, f"{name}: {ours}\nmodel: {expected}\nstep {number} of\n{program}"
                if step.access is None:
                    cr0, *others = guest.control()
                    assert (cr0 & ~CR0_ET, *others) == registers_of(step.after), f"{name}: step {number} of\n{program}"
            if isinstance(guest, EmuGuest) and number % AUDIT_EVERY == 0:
                guest.mmu.vm.audit()
    image = bytearray(data_image(MEMORY_SIZE))
    for gfn, frame in program.memory.frames.items():
        image[gfn * PAGE : (gfn + 1) * PAGE] = frame
    for name, guest in guests.items():
        memory = guest.memory() if isinstance(guest, UnicornGuest) else guest.mmu.memory()
        assert memory == image, f"{name}: memory differs after\n{program}"
        if isinstance(guest, EmuGuest):
            guest.mmu.vm.audit()


@pytest.fixture(scope="module")
def pairs() -> dict[str, EmuGuest | UnicornGuest]:
    return {mmu: EmuGuest(mmu, cpus=2) for mmu in ARCHITECTURES}


@case_settings(short=75, long=20_000)
@given(program=programs(length=60, cpus=2))
def test_random_programs_on_two_processors(program: Program, pairs: dict[str, EmuGuest | UnicornGuest]) -> None:
    """Each has a TLB and control registers of its own; the model, which has no TLB, is the oracle."""
    check(program, pairs)


@pytest.fixture(scope="module")
def guests() -> dict[str, EmuGuest | UnicornGuest]:
    return {"unicorn": UnicornGuest(MEMORY_SIZE), **{mmu: EmuGuest(mmu) for mmu in ARCHITECTURES}}


@case_settings(short=150, long=20_000)
@given(program=programs())
def test_random_programs(program: Program, guests: dict[str, EmuGuest | UnicornGuest]) -> None:
    check(program, guests)
