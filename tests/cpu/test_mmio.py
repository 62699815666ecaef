"""Device registers in memory, holes, and address line 20: what loads and stores of the guest do there."""

from __future__ import annotations

import struct
from typing import ClassVar

import pytest

from emu.addr import PAGE_SHIFT, PAGE_SIZE
from emu.bench.longmode import CODE, DATA, DEVICE_WINDOW, PML4, assemble, long_mode_vm
from emu.cpu.clock import DEVICE_ACCESS_NS
from emu.devices.device import Device
from emu.dmm.p2m import PageType
from emu.machine.vm import Stop, VirtualMachine
from emu.observe.pagewalk import backing, describe_backing, explain, render
from emu.testing import boot
from tests.guests.programs import program

MMUS = ("shadow", "nested")
WINDOW = 0xFEC0_0000  # gpa: of what long_mode_vm maps at DEVICE_WINDOW
PLACE = 0x1_0000  # of the recorder in the window
HOLE_PLACE = 0x2_0000
REGISTERS, HOLE = WINDOW + PLACE, WINDOW + HOLE_PLACE  # gpas
REGISTERS_GVA, HOLE_GVA = DEVICE_WINDOW + PLACE, DEVICE_WINDOW + HOLE_PLACE  # in long_mode_vm
EXIT = "mov al, 1; out 0xF4, al; w: jmp w"


class Recorder(Device):
    """Remembers what was accessed: ("r", offset, size) or ("w", offset, size, value)."""

    max_access: ClassVar[int] = 8

    def __init__(self) -> None:
        self.log: list[tuple[object, ...]] = []

    def read(self, offset: int, size: int) -> int:
        self.log.append(("r", offset, size))
        return value_at(offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        self.log.append(("w", offset, size, value))


def value_at(offset: int, size: int) -> int:
    """What the recorder's registers hold: every byte tells its offset, and the highest bit is often set."""
    return int.from_bytes((0x80 ^ (offset + i) * 7 & 0xFF for i in range(size)), "little")


def install(vm: VirtualMachine, device: Recorder) -> None:
    vm.platform.mmio.register(REGISTERS, PAGE_SIZE, device)
    vm.memory.set_mmio(range(REGISTERS >> PAGE_SHIFT, (REGISTERS >> PAGE_SHIFT) + 1))


# How each mode comes to map the 2 or 4 MiB from WINDOW on at the same gva, and 0x20000 for results
MAPPING = {
    "protected": "",
    "paging32": f"    mov dword ptr [0x10000 + {WINDOW >> 22} * 4], {WINDOW | 0x87}\n",
    "pae": f"""
    mov dword ptr [0x10018], 0x12001
    mov dword ptr [0x12000 + {WINDOW >> 21 & 511} * 8], {WINDOW | 0x87}
    mov eax, cr3
    mov cr3, eax
""",
    "long": f"""
    mov dword ptr [0x11018], 0x13007
    mov dword ptr [0x13000 + {WINDOW >> 21 & 511} * 8], {WINDOW | 0x87}
""",
}
ACCESSES = f"""
    mov ebx, {REGISTERS}
    mov byte ptr [ebx + 0x11], 0x92
    mov word ptr [ebx + 0x12], 0xB456
    mov dword ptr [ebx + 0x14], 0xF89ABCDE
    mov edi, 0x20100
    mov dword ptr [edi], 0x89ABCDEF
    mov dword ptr [edi + 4], 0xFEDCBA98
    movq mm0, qword ptr [edi]
    movq qword ptr [ebx + 0x18], mm0
    mov edi, 0x20000
    mov eax, -1
    mov al, [ebx + 0x21]
    mov [edi], eax
    mov ax, [ebx + 0x22]
    mov [edi + 4], eax
    mov eax, [ebx + 0x24]
    mov [edi + 8], eax
    movq mm0, qword ptr [ebx + 0x28]
    movq qword ptr [edi + 0x10], mm0
    add dword ptr [ebx + 0x30], 5
    mov eax, 0x11223344
    xchg [ebx + 0x34], eax
    mov [edi + 0x18], eax
    mov al, 1
    out 0xF4, al
    hlt
"""


@pytest.mark.parametrize("mmu", MMUS)
@pytest.mark.parametrize("mode", MAPPING)
def test_loads_and_stores_of_every_size(mode: str, mmu: str) -> None:
    """One of 8 bytes is two of 4, the lower first, as on a 32-bit bus."""
    guest = boot(program(mode, MAPPING[mode] + ACCESSES), ram="16M", mmu=mmu, audit=True)
    device = Recorder()
    install(guest.vm, device)
    guest.expect_status(3, "10ms")
    assert device.log == [
        ("w", 0x11, 1, 0x92), ("w", 0x12, 2, 0xB456), ("w", 0x14, 4, 0xF89A_BCDE),
        ("w", 0x18, 4, 0x89AB_CDEF), ("w", 0x1C, 4, 0xFEDC_BA98),
        ("r", 0x21, 1), ("r", 0x22, 2), ("r", 0x24, 4), ("r", 0x28, 4), ("r", 0x2C, 4),
        ("r", 0x30, 4), ("w", 0x30, 4, value_at(0x30, 4) + 5), ("r", 0x34, 4), ("w", 0x34, 4, 0x1122_3344),
    ]  # fmt: skip
    by_byte = 0xFFFF_FF00 | value_at(0x21, 1)
    words = struct.unpack("<IIIxxxxQI", guest.vm.memory.read(0x20000, 0x1C))
    expected = (by_byte, by_byte & 0xFFFF_0000 | value_at(0x22, 2), value_at(0x24, 4), value_at(0x28, 8))
    assert words == (*expected, value_at(0x34, 4))


@pytest.mark.parametrize("mmu", MMUS)
@pytest.mark.parametrize("mode", MAPPING)
def test_holes(mode: str, mmu: str) -> None:
    """They read as ones and lose stores, and so does a page of registers where no device has any."""
    code = MAPPING[mode] + "    mov edi, 0x20000\n"
    for gpa in (HOLE, REGISTERS + 0x800):
        code += f"""
    mov ebx, {gpa}
    mov eax, [ebx]
    mov dword ptr [ebx], 0x12345678
    and eax, [ebx]
    mov [edi], eax
    movzx eax, word ptr [ebx + 6]
    mov [edi + 4], eax
    movq mm0, qword ptr [ebx + 8]
    movq qword ptr [edi + 8], mm0
    add edi, 16
"""
    guest = boot(program(mode, code + "    mov al, 1\n    out 0xF4, al\n    hlt\n"), ram="16M", mmu=mmu, audit=True)
    gfn = REGISTERS >> PAGE_SHIFT
    guest.vm.platform.mmio.register(REGISTERS, 0x800, Recorder())
    guest.vm.memory.set_mmio(range(gfn, gfn + 1))
    guest.expect_status(3, "10ms")
    ones = struct.pack("<IIQ", 0xFFFF_FFFF, 0xFFFF, (1 << 64) - 1)
    assert guest.vm.memory.read(0x20000, 32) == ones * 2


def machine(source: str, mmu: str, handlers: dict[int, int] | None = None) -> tuple[VirtualMachine, Recorder]:
    """A VM in 64-bit mode with a recorder."""
    vm = long_mode_vm(assemble(source), mmu, handlers)
    device = Recorder()
    install(vm, device)
    vm.audit_every_change()
    return vm, device


def finish(vm: VirtualMachine) -> None:
    assert vm.run(vm.now + 10_000_000) is Stop.EXIT, hex(vm.cpu.rip)
    vm.audit()


@pytest.mark.parametrize("mmu", MMUS)
def test_string_instructions(mmu: str) -> None:
    source = f"""
        mov byte ptr [rdi], 0; mov esi, {REGISTERS_GVA}; mov ecx, 3; rep movs dword ptr [rdi], dword ptr [rsi]
        mov edi, {REGISTERS_GVA + 0x80}; mov eax, 0x99; mov ecx, 2; rep stosw; mov rax, [rdi + 12]; mov rbx, rax
    """
    vm, device = machine(source + EXIT, mmu)
    finish(vm)
    assert vm.memory.read(DATA, 12) == value_at(0, 12).to_bytes(12, "little")
    assert device.log == [
        ("r", 0, 4), ("r", 4, 4), ("r", 8, 4), ("w", 0x80, 2, 0x99), ("w", 0x82, 2, 0x99),
        ("r", 0x90, 4), ("r", 0x94, 4),
    ]  # fmt: skip
    assert vm.cpu.rbx == value_at(0x90, 8)


@pytest.mark.parametrize("mmu", MMUS)
def test_an_instruction_that_waits_for_its_destination_reads_the_register_again(mmu: str) -> None:
    """It is executed anew once the page is there; what it stores is what it read last."""
    pointers = f"mov esi, {REGISTERS_GVA}; mov edi, {DATA + 0x1800};"
    vm, device = machine(f"{pointers} movs dword ptr [rdi], dword ptr [rsi]; {EXIT}", mmu)
    finish(vm)
    assert len(device.log) > 1 and {entry[:3] for entry in device.log} == {("r", 0, 4)}
    assert vm.memory.read(DATA + 0x1800, 4) == value_at(0, 4).to_bytes(4, "little")


@pytest.mark.parametrize("mmu", MMUS)
def test_an_access_across_the_end_of_the_page(mmu: str) -> None:
    """Half of it is the hole's."""
    end = REGISTERS_GVA + PAGE_SIZE
    vm, device = machine(f"mov eax, [{end - 2}]; mov rsi, rax; mov dword ptr [{end - 2}], 0x44332211;" + EXIT, mmu)
    finish(vm)
    assert vm.cpu.rsi == 0xFFFF_0000 | value_at(PAGE_SIZE - 2, 2)
    stores = [entry for entry in device.log if entry[0] == "w"]
    assert stores == [("w", PAGE_SIZE - 2, 1, 0x11), ("w", PAGE_SIZE - 1, 1, 0x22)]


@pytest.mark.parametrize("mmu", MMUS)
def test_an_access_takes_time(mmu: str) -> None:
    with_ = f"mov eax, [{REGISTERS_GVA}]; mov [{REGISTERS_GVA}], eax;"
    without = f"mov eax, [{HOLE_GVA}]; mov [{HOLE_GVA}], eax;"
    times = []
    for source in (with_, without):
        vm, _ = machine(source + EXIT, mmu)
        finish(vm)
        times.append(vm.now)
    assert times[0] - times[1] == 2 * DEVICE_ACCESS_NS


# --- what the guest's tables say --------------------------------------------------------------------------------

FAULTS = CODE + 0x400
FAULT_HANDLER = f"pop rax; mov [{DATA}], rax; mov rax, cr2; mov [{DATA + 8}], rax; {EXIT}"
DIRECTORY_ENTRY = PML4 + 0x2000 + DEVICE_WINDOW // (2 << 20) * 8  # gpa


def fault(source: str, mmu: str, entry: int, user: bool = False) -> tuple[int, int, Recorder]:
    """Error code and CR2 of the #PF that some code ends with, while the devices' directory entry has these flags."""
    blob = assemble(source + EXIT).ljust(FAULTS - CODE, b"\xcc") + assemble(FAULT_HANDLER)
    vm = long_mode_vm(blob, mmu, {14: FAULTS}, user)
    device = Recorder()
    install(vm, device)
    vm.memory.write(DIRECTORY_ENTRY, struct.pack("<Q", WINDOW | entry))
    vm.cpu.eflags |= 3 << 12
    finish(vm)
    error, address = struct.unpack("<QQ", vm.memory.read(DATA, 16))
    return error, address, device


@pytest.mark.parametrize("mmu", MMUS)
@pytest.mark.parametrize("size", ["byte", "word", "dword", "qword"])
def test_a_read_only_page_of_registers(size: str, mmu: str) -> None:
    source = f"mov rbx, {REGISTERS_GVA + 8}; mov eax, [rbx]; mov {size} ptr [rbx], 1;"
    error, address, device = fault(source, mmu, 0x85)
    assert (error, address) == (3, REGISTERS_GVA + 8)
    assert device.log == [("r", 8, 4)]


@pytest.mark.parametrize("mmu", MMUS)
@pytest.mark.parametrize(("source", "error"), [("mov eax, [{}];", 5), ("mov dword ptr [{}], 1;", 7)])
def test_registers_for_the_supervisor_only(source: str, error: int, mmu: str) -> None:
    got, address, device = fault(source.format(REGISTERS_GVA), mmu, 0x83, user=True)
    assert (got, address, device.log) == (error, REGISTERS_GVA, [])


@pytest.mark.parametrize("mmu", MMUS)
def test_registers_that_are_not_mapped(mmu: str) -> None:
    error, address, device = fault(f"mov eax, [{REGISTERS_GVA}];", mmu, 0x86)
    assert (error, address, device.log) == (0, REGISTERS_GVA, [])


@pytest.mark.parametrize("mmu", MMUS)
def test_accessed_and_dirty_bits(mmu: str) -> None:
    source = f"mov rbx, {REGISTERS_GVA}; mov rcx, {DIRECTORY_ENTRY}; mov eax, [rbx]; mov r14, [rcx]; "
    source += "mov [rbx], eax; mov r15, [rcx];"
    vm, device = machine(source + EXIT, mmu)
    finish(vm)
    assert (vm.cpu.r14 & 0x60, vm.cpu.r15 & 0x60) == (0x20, 0x60)
    assert [entry[0] for entry in device.log] == ["r", "w"]


@pytest.mark.parametrize("mmu", MMUS)
def test_code_is_not_fetched_from_registers(mmu: str) -> None:
    """What is there instead is all ones, which is no instruction."""
    blob = assemble(f"mov eax, {REGISTERS_GVA}; jmp rax").ljust(FAULTS - CODE, b"\xcc") + assemble(f"pop rbx; {EXIT}")
    vm = long_mode_vm(blob, mmu, {6: FAULTS})
    device = Recorder()
    install(vm, device)
    finish(vm)
    assert (vm.cpu.rbx, device.log) == (REGISTERS_GVA, [])


# --- the DMM ----------------------------------------------------------------------------------------------------


def test_the_dmm_reads_and_writes_no_registers() -> None:
    """Holes and registers read as ones and lose what is written, within a page and over its end."""
    vm, device = machine(EXIT, "shadow")
    for gpa in (HOLE, REGISTERS, REGISTERS + PAGE_SIZE - 2):
        vm.memory.write(gpa, b"some bytes")
        assert vm.memory.read(gpa, 10) == b"\xff" * 10
    end = vm.ram - 4
    vm.memory.write(end, b"12345678")  # RAM ends in the middle
    assert vm.memory.read(end, 8) == b"1234\xff\xff\xff\xff"
    assert device.log == []
    vm.audit()


def test_page_types_in_words() -> None:
    vm, _ = machine(EXIT, "shadow")
    gfns = {REGISTERS >> 12: PageType.MMIO, HOLE >> 12: PageType.HOLE, 0xFEE00: PageType.MMIO, 1 << 20: PageType.HOLE}
    assert {gfn: backing(vm, gfn).type for gfn in gfns} == gfns
    assert describe_backing(backing(vm, REGISTERS >> 12)) == "gfn 0xfec10: MMIO, registers of devices"
    assert describe_backing(backing(vm, HOLE >> 12)) == "gfn 0xfec20: no memory, reads as all ones"


@pytest.mark.parametrize("mmu", MMUS)
def test_the_page_walk_of_registers(mmu: str) -> None:
    vm, _ = machine(f"mov eax, [{REGISTERS_GVA}]; mov eax, [{HOLE_GVA}];" + EXIT, mmu)
    finish(vm)
    walk = explain(vm, REGISTERS_GVA + 4)
    assert walk.gpa == REGISTERS + 4
    assert render(walk).splitlines()[-1].strip() == "gfn 0xfec10: MMIO, registers of devices"
    assert render(explain(vm, HOLE_GVA)).splitlines()[-1].strip() == "gfn 0xfec20: no memory, reads as all ones"
    assert vm.memory.read(REGISTERS, 1) == b"\xff"


def test_memory_cannot_become_registers() -> None:
    vm, _ = machine(EXIT, "shadow")
    vm.dmm.populate(2)
    for gfn in (2, 3, CODE >> 12):  # RAM, EMPTY, IMAGE
        kind = vm.p2m.type(gfn)
        with pytest.raises(ValueError):
            vm.memory.set_mmio(range(gfn, gfn + 1))
        assert vm.p2m.type(gfn) is kind
    vm.audit()


@pytest.mark.parametrize("mmu", MMUS)
def test_registers_come_and_go_while_the_guest_runs(mmu: str) -> None:
    source = f"mov rbx, {REGISTERS_GVA}; l: mov eax, [rbx]; mov esi, eax; inc r15; jmp l"
    vm, device = machine(source, mmu)
    gfns = range(REGISTERS >> 12, (REGISTERS >> 12) + 1)
    for mapped in (True, False, True):
        vm.memory.set_mmio(gfns, mapped) if mapped != (vm.p2m.type(gfns[0]) is PageType.MMIO) else None
        device.log.clear()
        assert vm.run(vm.now + 10_000) is Stop.DEADLINE
        vm.run(vm.now + 1000)  # the last load's value is in ESI by now
        assert vm.cpu.rsi == (value_at(0, 4) if mapped else 0xFFFF_FFFF)
        assert bool(device.log) == mapped
    assert vm.dmm.is_memory(gfns[0]) is False


@pytest.mark.parametrize("mmu", MMUS)
@pytest.mark.parametrize("access", ["mov eax, [rbx]", "mov [rbx], eax"])
def test_a_bug_in_a_device_comes_out_of_the_run(access: str, mmu: str) -> None:
    class Broken(Device):
        def read(self, offset: int, size: int) -> int:
            raise RuntimeError("broken")

        def write(self, offset: int, size: int, value: int) -> None:
            raise RuntimeError("broken")

    vm = long_mode_vm(assemble(f"mov rbx, {REGISTERS_GVA + 0x800}; {access}; l: inc r15; jmp l"), mmu)
    vm.platform.mmio.register(REGISTERS, PAGE_SIZE, Broken())
    vm.memory.set_mmio(range(REGISTERS >> 12, (REGISTERS >> 12) + 1))
    with pytest.raises(RuntimeError, match="broken"):
        vm.run(1_000_000)
    assert vm.cpu.r15 <= 1


# --- address line 20 --------------------------------------------------------------------------------------------

A20_BY = {
    "keyboard controller": ("mov al, 0xD1\n out 0x64, al\n mov al, {}\n out 0x60, al\n", "0xDD", "0xDF"),
    "port 0x92": ("mov al, {}\n out 0x92, al\n", "0", "2"),
}
A20_LOW_AT_8042 = "mov al, 0xD1\n out 0x64, al\n mov al, 0xDD\n out 0x60, al\n"
# 1 MiB + 0x600, and 0x600
HIGH = {"real": "es:[0x610]", "protected": "[0x100600]", "paging32": "[0x100600]", "pae": "[0x100600]"}
HIGH["long"] = "[0x100600]"


def a20_program(mode: str, by: str) -> str:
    text, off, on = A20_BY[by]
    high = HIGH[mode]
    code = f"""
    {"mov ax, 0xFFFF" if mode == "real" else ""}
    {"mov es, ax" if mode == "real" else ""}
    mov dword ptr [0x600], 0x11
    mov dword ptr {high}, 0x22
    mov ebx, [0x600]
    {A20_LOW_AT_8042 if by == "port 0x92" else ""}
    {text.format(off)}
    mov ecx, {high}
    mov dword ptr {high}, 0x33
    mov edx, [0x600]
    {text.format(on)}
    mov esi, {high}
    mov ebp, [0x600]
    mov al, 1
    out 0xF4, al
    hlt
"""
    return program(mode, code)


@pytest.mark.parametrize("mmu", MMUS)
@pytest.mark.parametrize("by", A20_BY)
@pytest.mark.parametrize("mode", HIGH)
def test_a20(mode: str, by: str, mmu: str) -> None:
    """With A20 low, 1 MiB + x is x."""
    guest = boot(a20_program(mode, by), ram="16M", mmu=mmu, audit=True)
    guest.expect_status(3, "10ms")
    cpu = guest.vm.cpu
    numbers = [int(register) & 0xFFFF_FFFF for register in (cpu.rbx, cpu.rcx, cpu.rdx, cpu.rsi, cpu.rbp)]
    assert numbers == [0x11, 0x11, 0x33, 0x22, 0x33]
    assert guest.vm.memory.read(0x600, 1) + guest.vm.memory.read(0x100600, 1) == b"\x33\x22"
    guest.vm.audit()


@pytest.mark.parametrize("mmu", MMUS)
def test_code_behind_address_line_20(mmu: str) -> None:
    """FFFF:0610 is executed from 1 MiB + 0x600, and with A20 low from 0x600; switching needs no jump in between."""
    code = f"""
    mov ax, 0xFFFF
    mov es, ax
    mov dword ptr [0x600], 0xCB41           # inc cx; retf
    mov dword ptr es:[0x610], 0xCB43        # inc bx; retf
    xor cx, cx
    xor bx, bx
    call far ptr [there]
    {A20_LOW_AT_8042}
    call far ptr [there]
    call far ptr [there]
    mov al, 2
    out 0x92, al
    call far ptr [there]
    mov al, 1
    out 0xF4, al
    hlt
there:
    .word 0x610, 0xFFFF
"""
    code = code.replace("call far ptr [there]", ".byte 0xFF, 0x1E\n    .word there")
    guest = boot(program("real", code), ram="16M", mmu=mmu, audit=True)
    guest.expect_status(3, "10ms")
    assert (guest.vm.cpu.rcx & 0xFFFF, guest.vm.cpu.rbx & 0xFFFF) == (2, 2)


FETCHES = """
.code16
    jmp start
.include "platform.inc"
.include "protected.inc"
.include "console.inc"
.include "interrupts.inc"
.code16
start:
    enter_protected_mode gdt_pointer
    call install_idt
    set_gate 6, back
    mov dword ptr [0x20000], 0x83
    mov dword ptr [0x20000 + 0x3FB * 4], 0xFEC00083
    mov eax, cr4
    or eax, 0x10
    mov cr4, eax
    mov eax, 0x20000
    mov cr3, eax
    mov eax, cr0
    or eax, 0x80000000
    mov cr0, eax
    mov eax, [0xFEE00030]
    print_hex eax
    mov eax, 0xFEE00380
    jmp eax                     # what is fetched there is no code: #UD
back:
    mov eax, [0xFEE00030]
    print_hex eax
    mov eax, cr3
    mov cr3, eax
    mov eax, [0xFEE00030]
    print_hex eax
    mov dword ptr [0xFEE00080], 0x20
    mov eax, [0xFEE00080]
    print_hex eax
    xor eax, eax
    jmp exit
.balign 8
gdt_start:
    gdt_flat
gdt_end:
gdt_pointer:
    gdt_pointer_to gdt_start, gdt_end
"""


@pytest.mark.parametrize("mmu", ["shadow", "nested"])
def test_a_fetch_from_a_device_s_page_leaves_the_device_there(mmu: str) -> None:
    guest = boot(FETCHES, mmu=mmu, ram="2M")
    assert guest.run(max_time="10ms") == 1
    version, *rest = guest.console.split("0x")[1:]
    assert rest == [version, version, "00000020"] and version.endswith("14")
