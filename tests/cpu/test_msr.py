"""RDMSR, WRMSR, CPUID and RDRAND, as 64-bit code sees them."""

from __future__ import annotations

import struct

import pytest

from emu.bench.longmode import CODE, DATA, PML4, assemble, long_mode_vm
from emu.devices import layout
from emu.machine.vm import Stop, VirtualMachine

MMUS = ("shadow", "nested")
TSC, APIC_BASE, TSC_ADJUST, TSC_DEADLINE = 0x10, 0x1B, 0x3B, 0x6E0
EFER, STAR, LSTAR, FMASK = 0xC000_0080, 0xC000_0081, 0xC000_0082, 0xC000_0084
FS_BASE, GS_BASE, KERNEL_GS_BASE, TSC_AUX = 0xC000_0100, 0xC000_0101, 0xC000_0102, 0xC000_0103
BASE_AT_RESET = 0xFEE0_0900  # IA32_APIC_BASE: address, global enable, first CPU
BASE_X2APIC = BASE_AT_RESET | 0x400
X2APIC = 0x800
ID, VERSION, TPR, PPR, EOI, LDR, DFR, SVR, ICR, ICR_HIGH = 2, 3, 8, 0xA, 0xB, 0xD, 0xE, 0xF, 0x30, 0x31
LVT_TIMER, TIMER_INITIAL, TIMER_CURRENT, SELF_IPI = 0x32, 0x38, 0x39, 0x3F  # x2APIC registers
NMI_TO_SELF, LEVEL_ASSERT = 1 << 18 | 4 << 8, 1 << 14  # ICR
DEADLINE_MODE = 2 << 17  # LVT timer
APIC_GVA = 0xC0_0000  # where `machine` maps the APIC's page

# Results go to [RDI].  A #GP gives GP to RDX:EAX, counts in R13, and goes on behind the RDMSR or WRMSR.
GP = 0xBAD0_BAD0_BAD0_BAD0
GP_HANDLER = "mov eax, 0xBAD0BAD0; mov edx, eax; inc r13; add rsp, 8; add qword ptr [rsp], 2; iretq"
COUNTING_HANDLER = "inc r14; iretq"
HANDLERS, HANDLER_SIZE = CODE + 0x1000, 128
KEEP = "mov [rdi], rbx; add rdi, 8;"


def load(*msrs: int) -> str:
    """Keep the values of registers, GP for a #GP."""
    return "".join(f"mov ecx, {msr}; rdmsr; shl rdx, 32; mov ebx, eax; or rbx, rdx; {KEEP}" for msr in msrs)


def store(msr: int, value: int) -> str:
    return f"mov ecx, {msr}; mov eax, {value & 0xFFFF_FFFF}; mov edx, {value >> 32 & 0xFFFF_FFFF}; wrmsr;"


def attempt(msr: int, value: int) -> str:
    """Write a register, and keep 1 when that is a #GP, else 0."""
    return f"xor r13d, r13d; {store(msr, value)} mov rbx, r13; {KEEP}"


def cpuid(leaf: int, subleaf: int = 0) -> str:
    """Keep EAX, EBX, ECX, EDX, as 64-bit registers."""
    registers = "mov [rdi], rax; mov [rdi + 8], rbx; mov [rdi + 16], rcx; mov [rdi + 24], rdx; add rdi, 32;"
    return f"mov rax, {leaf}; mov rcx, {subleaf}; mov rbx, -1; mov rdx, -1; cpuid; {registers}"


def tsc() -> str:
    return f"rdtsc; shl rdx, 32; mov ebx, eax; or rbx, rdx; {KEEP}"


def machine(source: str, mmu: str = "shadow", handlers: dict[int, str] | None = None) -> VirtualMachine:
    """A VM with this code at CPL 0, and with handlers of interrupts."""
    blob = assemble(source + "hlt").ljust(HANDLERS - CODE, b"\xcc")
    assert len(blob) == HANDLERS - CODE
    gates = {}
    for vector, text in {13: GP_HANDLER, **(handlers or {})}.items():
        gates[vector] = CODE + len(blob)
        blob += assemble(text).ljust(HANDLER_SIZE, b"\xcc")
    vm = long_mode_vm(blob, mmu, gates)
    vm.memory.write(PML4 + 0x2000 + APIC_GVA // (2 << 20) * 8, struct.pack("<Q", layout.LOCAL_APIC | 0x87))
    return vm


def kept(vm: VirtualMachine) -> list[int]:
    """Run to the HLT that nothing wakes: what was kept."""
    assert vm.run(vm.now + 10_000_000) is Stop.HALTED, vm.cpu.rip
    count = (int(vm.cpu.rdi) - DATA) // 8
    return list(struct.unpack(f"<{count}Q", vm.memory.read(DATA, 8 * count)))


def run(source: str, mmu: str = "shadow", handlers: dict[int, str] | None = None) -> list[int]:
    return kept(machine(source, mmu, handlers))


# --- the engine's own registers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("mmu", MMUS)
def test_registers_that_the_engine_keeps(mmu: str) -> None:
    numbers = {
        STAR: 0x0023_0008_1234_5678, LSTAR: 0xFFFF_8000_0012_3456, FMASK: 0x4_7700, TSC_AUX: 7,
        FS_BASE: 0xFFFF_8000_0000_1000, GS_BASE: 0x7FFF_FFFF_F000, KERNEL_GS_BASE: 0xFFFF_FFFF_8000_0000,
    }  # fmt: skip
    source = load(EFER) + "".join(store(msr, value) for msr, value in numbers.items()) + load(*numbers)
    vm = machine(source, mmu)
    assert kept(vm) == [0xD01, *numbers.values()]
    assert (vm.cpu.star, vm.cpu.lstar, vm.cpu.fmask) == (numbers[STAR], numbers[LSTAR], numbers[FMASK])
    assert (vm.cpu.fs.base, vm.cpu.gs.base) == (numbers[FS_BASE], numbers[GS_BASE])


def test_fs_base_is_used() -> None:
    source = f"mov dword ptr [{DATA + 0x1010}], 77; {store(FS_BASE, DATA + 0x1000)} mov ebx, fs:[0x10]; {KEEP}"
    assert run(source) == [77]


def test_nx_goes_off_and_on_with_efer() -> None:
    assert run(load(EFER) + store(EFER, 0x501) + load(EFER) + store(EFER, 0xD01) + load(EFER)) == [0xD01, 0x501, 0xD01]


@pytest.mark.parametrize("instruction", ["rdmsr", "wrmsr"])
@pytest.mark.parametrize("msr", [TSC, APIC_BASE, TSC_ADJUST, TSC_DEADLINE, X2APIC + ID, EFER])
def test_only_the_kernel_may(instruction: str, msr: int) -> None:
    source = f"mov ecx, {msr}; xor eax, eax; xor edx, edx; {instruction}; mov al, 1; out 0xF4, al"
    blob = assemble(source).ljust(HANDLERS - CODE, b"\xcc") + assemble("mov al, 13; out 0xF4, al; l: jmp l")
    vm = long_mode_vm(blob, "shadow", {13: HANDLERS}, user=True)
    vm.cpu.eflags |= 3 << 12
    assert (vm.run(1_000_000), vm.exit_value) == (Stop.EXIT, 13)
    assert vm.platform.lapics[0].base == BASE_AT_RESET and vm.processor.native.tsc_offset == 0


# --- the local APIC ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mmu", MMUS)
def test_apic_base(mmu: str) -> None:
    source = load(APIC_BASE) + attempt(APIC_BASE, BASE_X2APIC) + load(APIC_BASE)
    source += attempt(APIC_BASE, BASE_AT_RESET) + load(APIC_BASE)  # not from x2APIC back: only by way of "disabled"
    source += attempt(APIC_BASE, 0xFEE0_0000) + load(APIC_BASE) + attempt(APIC_BASE, BASE_X2APIC)
    source += attempt(APIC_BASE, BASE_AT_RESET) + load(APIC_BASE)
    assert run(source, mmu) == [
        BASE_AT_RESET, 0, BASE_X2APIC, 1, BASE_X2APIC, 0, 0xFEE0_0100, 1, 0, BASE_AT_RESET
    ]  # fmt: skip


@pytest.mark.parametrize("value", [BASE_AT_RESET | 1, BASE_AT_RESET | 1 << 9, BASE_AT_RESET | 1 << 40, 0xFEE0_0500])
def test_apic_base_refuses(value: int) -> None:
    assert run(attempt(APIC_BASE, value) + load(APIC_BASE)) == [1, BASE_AT_RESET]


@pytest.mark.parametrize("mmu", MMUS)
def test_x2apic_registers_are_there_only_in_x2apic_mode(mmu: str) -> None:
    registers = load(X2APIC + ID, X2APIC + VERSION, X2APIC + SVR)
    source = registers + attempt(X2APIC + SVR, 0x1FF) + store(APIC_BASE, BASE_X2APIC)
    source += registers + attempt(X2APIC + SVR, 0x1FF) + load(X2APIC + SVR)
    assert run(source, mmu) == [GP, GP, GP, 1, 0, 0x5_0014, 0xFF, 0, 0x1FF]


@pytest.mark.parametrize("mmu", MMUS)
def test_the_page_of_registers_goes_away_and_comes_back(mmu: str) -> None:
    look = f"mov ebx, [{APIC_GVA + 0x30}]; {KEEP}"
    source = look + store(APIC_BASE, BASE_X2APIC) + look + store(APIC_BASE, 0xFEE0_0000) + look
    source += store(APIC_BASE, BASE_AT_RESET) + look
    vm = machine(source, mmu)
    vm.audit_every_change()
    assert kept(vm) == [0x5_0014, 0xFFFF_FFFF, 0xFFFF_FFFF, 0x5_0014]
    vm.audit()


def test_x2apic_registers_keep_their_values() -> None:
    numbers = {TPR: 0x30, LVT_TIMER: 0x1_0040, ICR: 0x1234_5678_000C_0041}  # ICR: to all but self, which is nobody
    source = store(APIC_BASE, BASE_X2APIC) + store(X2APIC + SVR, 0x1FF)
    source += "".join(store(X2APIC + register, value) for register, value in numbers.items())
    source += load(*(X2APIC + register for register in (*numbers, PPR, LDR)))
    assert run(source) == [*numbers.values(), 0x30, 1]


READ_REFUSED = [0, 1, EOI, DFR, ICR_HIGH, SELF_IPI, 0x40, 0x7F, 0xFF]
WRITE_REFUSED = {
    0: 0, ID: 0, VERSION: 0, PPR: 0, EOI: 1, LDR: 1, DFR: 0xFFFF_FFFF, SVR: 0x200, 0x10: 0, 0x28: 1, ICR_HIGH: 0,
    LVT_TIMER: 0x100, TPR: 0x100, TIMER_INITIAL: 1 << 32, TIMER_CURRENT: 0, SELF_IPI: 0x100, 0x40: 0, 0xFF: 0,
    ICR: 1 << 20,
}  # fmt: skip


@pytest.mark.parametrize("mmu", MMUS)
def test_reserved_x2apic_registers_and_bits(mmu: str) -> None:
    source = store(APIC_BASE, BASE_X2APIC) + load(*(X2APIC + register for register in READ_REFUSED))
    source += "".join(attempt(X2APIC + register, value) for register, value in WRITE_REFUSED.items())
    assert run(source, mmu) == [GP] * len(READ_REFUSED) + [1] * len(WRITE_REFUSED)


def test_a_refused_write_goes_nowhere() -> None:
    """RIP of the #GP is the instruction's own, and nothing but the handler's work has changed."""
    handler = (
        "pop rax; pop rbx; push rbx; mov [rdi], rax; mov [rdi + 8], rbx; add rdi, 16; add qword ptr [rsp], 2; iretq"
    )
    source = "here: lea rsi, [rip]; " + attempt(X2APIC + SVR, 0x1FF)
    vm = machine(source, handlers={13: handler})
    error, rip, _ = kept(vm)
    code = vm.memory.read(rip, 2)
    assert (error, code) == (0, b"\x0f\x30")
    assert vm.platform.lapics[0].read(0xF0, 4) == 0xFF


@pytest.mark.parametrize("mmu", MMUS)
def test_ipi_to_self(mmu: str) -> None:
    source = store(APIC_BASE, BASE_X2APIC) + store(X2APIC + SVR, 0x1FF) + "xor r14d, r14d; sti;"
    source += store(X2APIC + SELF_IPI, 0x41) + "jmp first; first:" + store(X2APIC + EOI, 0)
    source += store(X2APIC + ICR, 0x41) + f"jmp second; second: mov rbx, r14; {KEEP} {store(X2APIC + EOI, 0)} cli;"
    assert run(source, mmu, {0x41: COUNTING_HANDLER}) == [2]


# --- NMI --------------------------------------------------------------------------------------------------------

SEND_NMI = {
    "x2APIC": store(APIC_BASE, BASE_X2APIC) + store(X2APIC + ICR, NMI_TO_SELF | LEVEL_ASSERT),
    "xAPIC": f"mov dword ptr [{APIC_GVA + 0x300}], {NMI_TO_SELF | LEVEL_ASSERT};",
    "physical destination": f"mov dword ptr [{APIC_GVA + 0x310}], 0; mov dword ptr [{APIC_GVA + 0x300}], 0x400;",
}


@pytest.mark.parametrize("mmu", MMUS)
@pytest.mark.parametrize("how", SEND_NMI)
@pytest.mark.parametrize("interrupts", ["cli", "sti"])
def test_nmi_to_self(how: str, mmu: str, interrupts: str) -> None:
    """IF does not matter, nor does the software enable of the APIC."""
    source = f"xor r14d, r14d; {interrupts}; {SEND_NMI[how]} jmp next; next: mov rbx, r14; {KEEP} cli;"
    assert run(source, mmu, {2: COUNTING_HANDLER}) == [1]


@pytest.mark.parametrize("mmu", MMUS)
def test_an_nmi_within_the_handler_waits_for_iret(mmu: str) -> None:
    """SDM vol. 3A, 6.7.1: no NMI is delivered until the handler's IRET."""
    again = f"mov eax, {APIC_GVA + 0x300}; mov dword ptr [rax], {NMI_TO_SELF}; jmp first; first: jmp second; second:"
    handler = f"inc r14; cmp r14, 1; jne c; {again} mov rbx, r14; {KEEP} c: iretq"
    source = f"xor r14d, r14d; {SEND_NMI['xAPIC']} jmp next; next: jmp then; then: mov rbx, r14; {KEEP}"
    assert run(source, mmu, {2: handler}) == [1, 2]


# --- the time-stamp counter -------------------------------------------------------------------------------------


@pytest.mark.parametrize("mmu", MMUS)
def test_tsc_is_virtual_time(mmu: str) -> None:
    vm = machine(tsc() + load(TSC) + tsc() + "rdtscp; shl rdx, 32; mov ebx, eax; or rbx, rdx;" + KEEP, mmu)
    stamps = kept(vm)
    assert stamps == sorted(stamps)
    assert 0 < stamps[0] and stamps[-1] <= vm.now + 31


def test_tsc_can_be_set() -> None:
    source = load(TSC_ADJUST) + store(TSC, 1 << 40) + load(TSC) + tsc() + store(TSC, 5) + load(TSC)
    zero, *stamps = run(source)
    assert zero == 0
    assert 0 <= stamps[0] - (1 << 40) < 200 and 0 <= stamps[1] - (1 << 40) < 200 and 5 <= stamps[2] < 200


@pytest.mark.parametrize("distance", [1 << 33, -5_000, (1 << 63) - 1])
def test_tsc_adjust(distance: int) -> None:
    """It moves the counter by what is written; what is written to the counter moves it (SDM vol. 3B, 17.17.3)."""
    source = load(TSC) + store(TSC_ADJUST, distance) + load(TSC_ADJUST, TSC) + store(TSC_ADJUST, 0) + load(TSC)
    before, adjust, moved, after = run(source)
    assert adjust == distance % (1 << 64)
    assert 0 <= (moved - before - distance) % (1 << 64) < 300
    assert before <= after < before + 500


def test_writing_the_tsc_shows_in_tsc_adjust() -> None:
    first, *rest = run(load(TSC) + store(TSC, 1 << 40) + load(TSC_ADJUST, TSC))
    adjust, now = rest
    assert abs((1 << 40) - first - adjust) < 300
    assert now >= 1 << 40


# --- the TSC-deadline timer -------------------------------------------------------------------------------------

DELAY = 50_000  # ns
DEADLINE_SET_UP = (
    store(APIC_BASE, BASE_X2APIC) + store(X2APIC + SVR, 0x1FF) + store(X2APIC + LVT_TIMER, DEADLINE_MODE | 0x40)
)
ARM = f"rdtsc; shl rdx, 32; mov ebx, eax; or rbx, rdx; add rbx, {DELAY}; {KEEP} mov r15, rbx;"
ARM += f"mov eax, ebx; mov rdx, rbx; shr rdx, 32; mov ecx, {TSC_DEADLINE}; wrmsr;"
STAMPING_HANDLER = f"inc r14; {tsc()} {store(X2APIC + EOI, 0)} iretq"


@pytest.mark.parametrize("mmu", MMUS)
@pytest.mark.parametrize("offset", [0, 1 << 42])
@pytest.mark.parametrize("wait", ["hlt;", "w: pause; test r14, r14; jz w;"])
def test_tsc_deadline(mmu: str, offset: int, wait: str) -> None:
    source = store(TSC_ADJUST, offset) + DEADLINE_SET_UP + "xor r14d, r14d;" + load(TSC_DEADLINE) + ARM
    source += load(TSC_DEADLINE) + f"sti; {wait} cli;" + load(TSC_DEADLINE)
    idle, asked, armed, rang, after = run(source, mmu, {0x40: STAMPING_HANDLER})
    assert (idle, armed, after) == (0, asked, 0)
    assert asked >= offset + DELAY
    assert 0 <= rang - asked < 200


def test_a_deadline_that_is_past_rings_at_once_and_zero_disarms() -> None:
    past = store(TSC_DEADLINE, 1)
    source = DEADLINE_SET_UP + f"xor r14d, r14d; sti; {past} jmp first; first: nop; cli; mov rbx, r14; {KEEP}"
    source += ARM + store(TSC_DEADLINE, 0) + load(TSC_DEADLINE)
    vm = machine(source, handlers={0x40: "inc r14; iretq"})
    assert kept(vm)[::2] == [1, 0]
    assert vm.platform.lapics[0].deadline() is None


def test_the_deadline_is_ignored_in_other_modes() -> None:
    source = DEADLINE_SET_UP + store(X2APIC + LVT_TIMER, 0x40) + ARM + load(TSC_DEADLINE)
    assert run(source)[1] == 0


# --- CPUID ------------------------------------------------------------------------------------------------------


def leaf(number: int, subleaf: int = 0, before: str = "") -> list[int]:
    return run(before + cpuid(number, subleaf))


def bit(value: int, number: int) -> bool:
    return bool(value >> number & 1)


def test_hypervisor_leaves() -> None:
    eax, ebx, ecx, edx = leaf(0x4000_0000)
    assert eax == 0x4000_0010
    assert struct.pack("<3I", ebx, ecx, edx) == b"emu emu emu "
    assert leaf(0x4000_0010) == [1_000_000, 1_000_000, 0, 0]  # kHz of TSC and APIC timer
    for number in (0x4000_0001, 0x4000_000F, 0x4000_0011, 0x4000_FFFF):
        assert leaf(number) == [0, 0, 0, 0]


@pytest.mark.parametrize("mmu", MMUS)
def test_features(mmu: str) -> None:
    _, ebx, ecx, edx = run(cpuid(1), mmu)
    assert ebx >> 24 == 0  # initial APIC ID
    present = {
        "SSE3": 0,
        "SSSE3": 9,
        "CMPXCHG16B": 13,
        "x2APIC": 21,
        "TSC-deadline": 24,
        "RDRAND": 30,
        "hypervisor": 31,
    }
    assert [name for name, number in present.items() if not bit(ecx, number)] == []
    absent = {"MONITOR": 3, "VMX": 5, "SMX": 6}
    assert [name for name, number in absent.items() if bit(ecx, number)] == []
    present = {"FPU": 0, "PSE": 3, "TSC": 4, "MSR": 5, "PAE": 6, "APIC": 9, "PGE": 13, "SSE2": 26}
    assert [name for name, number in present.items() if not bit(edx, number)] == []


def test_extended_features() -> None:
    _, _, ecx, edx = leaf(0x8000_0001)
    assert not bit(ecx, 2)  # SVM
    assert bit(edx, 11) and bit(edx, 20) and bit(edx, 29)  # SYSCALL, NX, long mode
    assert bit(edx, 9)  # APIC
    assert bit(leaf(0x8000_0007)[3], 8)  # the TSC is invariant


def test_results_are_32_bits_wide_and_subleaves_count() -> None:
    for number in (0, 1, 4, 7, 0xD, 0x4000_0000, 0x8000_0000, 0x8000_0008):
        assert all(value < 1 << 32 for value in leaf(number))
    assert leaf(4, 0) != leaf(4, 1)
    assert leaf(0x1_0000_0001) == leaf(1)  # EAX alone counts


def test_a_globally_disabled_apic_is_not_announced() -> None:
    _, _, ecx, edx = leaf(1, before=store(APIC_BASE, 0xFEE0_0000))
    assert not bit(edx, 9) and not bit(ecx, 21) and bit(ecx, 31)
    assert not bit(leaf(0x8000_0001, before=store(APIC_BASE, 0xFEE0_0000))[3], 9)


def test_tsc_adjust_is_announced() -> None:
    """CPUID.7:EBX bit 1: the register is there, as the tests above show."""
    assert bit(leaf(7)[1], 1)


# --- RDRAND -----------------------------------------------------------------------------------------------------

RANDOM = f"rdrand rbx; setc al; movzx r14, al; {KEEP} mov rbx, r14; {KEEP}"


def test_rdrand_is_the_same_sequence_in_every_vm() -> None:
    source = RANDOM * 20
    first, second = run(source, "shadow"), run(source, "nested")
    assert first == second
    assert first[1::2] == [1] * 20  # always successful
    assert len(set(first[::2])) == 20
    ones = sum(value.bit_count() for value in first[::2])
    assert 500 < ones < 780  # of 1280 bits


def test_rdrand_of_other_widths() -> None:
    source = "mov rbx, -1; rdrand ebx;" + KEEP + "mov rbx, -1; rdrand bx;" + KEEP + "rdrand rbx;" + KEEP
    whole = run(RANDOM * 3)[::2]
    low, word, last = run(source)
    assert low == whole[0] & 0xFFFF_FFFF
    assert word == 0xFFFF_FFFF_FFFF_0000 | whole[1] & 0xFFFF
    assert last == whole[2]


def test_rdrand_clears_the_other_flags() -> None:
    assert run(f"xor eax, eax; rdrand rbx; pushfq; pop rbx; and rbx, 0x8D5; {KEEP}") == [1]
