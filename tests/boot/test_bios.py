"""The built-in BIOS: the ROM itself, booting, and what it tells about the machine."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import pytest
from capstone import CS_ARCH_X86, CS_MODE_16, Cs

from emu.boot.e820 import memory_map
from emu.boot.firmware import firmware_directory
from emu.boot.low_memory import ROM_SIZE, bios_rom
from emu.boot.low_memory import _assembled as assembled_bios
from tests.boot.bios_disks import (
    BUFFER,
    DISK_SIZE,
    RAM,
    SECTOR,
    Dump,
    Result,
    call,
    probe,
    probe_one,
    screen,
    sector_disk,
    start,
)

SMAP = 0x534D4150


# ---- the ROM ---------------------------------------------------------------------------------------------------------


def test_what_programs_expect_at_fixed_places() -> None:
    rom = bios_rom(RAM)
    assert len(rom) == ROM_SIZE
    reset = assembled_bios().symbols["reset"]
    assert rom[0xFFF0:0xFFF5] == b"\xea" + struct.pack("<HH", reset, 0xF000)
    assert re.fullmatch(rb"\d\d/\d\d/\d\d", rom[0xFFF5:0xFFFD])
    assert rom[0xFFFE] == 0xFC  # a PC/AT
    assert rom[0xFF53] == 0xCF  # IRET


def test_every_branch_lands_on_a_label() -> None:
    """Keystone cuts the distance of a LOOP or JCXZ off without a word when it is too far."""
    image = assembled_bios()
    names = {value: name for name, value in image.symbols.items()}
    text = "".join(path.read_text() for path in (firmware_directory() / "bios").iterdir())
    entries = re.findall(r"^\s+(?:service|vector) \w+, (\w+)|^\s+\.word ([a-z_]+)$", text, re.M)
    tables = {"diskette_parameters"}  # is behind a vector, too
    starts = {a or b for a, b in entries if not b.endswith("_end")} - tables | {"reset"}
    waiting = [image.symbols[name] for name in starts]
    decoder = Cs(CS_ARCH_X86, CS_MODE_16)
    seen: set[int] = set()
    branches = 0
    while waiting:
        at = waiting.pop()
        for instruction in decoder.disasm(image.data[at:], at):
            if instruction.address in seen:
                break
            seen.add(instruction.address)
            word, operand = instruction.mnemonic, instruction.op_str
            if re.fullmatch(r"j\w+|call|loop", word) and operand.startswith("0x"):
                target = int(operand, 16) & 0xFFFF
                assert target in names, f"{word} at {instruction.address:#x}"
                waiting.append(target)
                branches += 1
            if word in ("jmp", "ljmp", "ret", "iret", "retf"):
                break
    assert branches > 400


def test_a_table_in_the_rom_is_the_memory_map() -> None:
    rom, symbols = bios_rom(RAM), assembled_bios().symbols
    entries = memory_map(RAM)
    assert struct.unpack_from("<H", rom, symbols["memory_map_count"]) == (len(entries),)
    assert rom[symbols["memory_map"] :].startswith(b"".join(entry.pack() for entry in entries))


# ---- booting ---------------------------------------------------------------------------------------------------------

HELLO = """
.code16
    mov si, offset text
next:
    lodsb
    test al, al
    jz end
    mov ah, 0x0E
    int 0x10
    jmp next
end:
    mov al, dl                      # the drive's number
    out 0xF4, al
text: .asciz "Hello\\r\\n"
"""


@pytest.mark.parametrize("mmu", ["shadow", "nested"])
def test_the_boot_sector_of_the_first_disk_runs(tmp_path: Path, mmu: str) -> None:
    guest = start(tmp_path, sector_disk(HELLO), mmu=mmu, audit=True)
    guest.expect_status((0x80 << 1 | 1) & 0xFF, max_time="1s")
    assert guest.console == "Hello\r\n"
    assert guest.vm.exit_value == 0x80
    assert screen(guest, 0).rstrip() == "Hello"
    assert guest.vm.cpu.cs.base == 0


@pytest.mark.parametrize(
    ("disks", "reason"),
    [
        ((), "there is no disk"),
        ((bytes(DISK_SIZE),), "no boot sector"),
        ((bytes(SECTOR),), "no boot sector"),
    ],
)
def test_nothing_to_boot(tmp_path: Path, disks: tuple[bytes, ...], reason: str) -> None:
    guest = start(tmp_path, *disks)
    guest.expect_status(124)  # halted, and nothing wakes it
    assert reason in guest.console
    assert guest.console.endswith("nothing to boot, halted\r\n")
    assert guest.console.count("\n") == 1 + len(disks)  # a line for each attempt


def test_two_runs_are_the_same(tmp_path: Path) -> None:
    runs = []
    for _ in range(2):
        guest = start(tmp_path, sector_disk(HELLO), events=True)
        guest.run(max_time="1s")
        runs.append((guest.console, guest.now, [str(event) for event in guest.events]))
    assert runs[0] == runs[1]


def test_int_19h_boots_again(tmp_path: Path) -> None:
    program = """
.code16
    inc byte ptr [0x6000]
    cmp byte ptr [0x6000], 3
    je end
    int 0x19
end:
    mov al, [0x6000]
    out 0xF4, al
"""
    guest = start(tmp_path, sector_disk(program))
    guest.run(max_time="1s")
    assert guest.vm.exit_value == 3


def test_a_reset_to_leave_protected_mode(tmp_path: Path) -> None:
    """What 286 programs did: an address at 40:67, a code in CMOS cell 0Fh, and a reset, here a jump to the vector."""
    program = """
.code16
    mov word ptr [0x467], offset resumed
    mov word ptr [0x469], 0
    mov al, 0x0F
    out 0x70, al
    mov al, 0x0A
    out 0x71, al
    ljmp 0xF000:0xFFF0
resumed:
    mov al, 0x33
    out 0xF4, al
"""
    guest = start(tmp_path, sector_disk(program))
    guest.run(max_time="1s")
    assert guest.vm.exit_value == 0x33


RESETS_OF_THE_PROCESSOR = {
    "keyboard controller": "mov al, 0xFE\n out 0x64, al\nforever: jmp forever",
    "port 0x92": "mov al, 1\n out 0x92, al\nforever: jmp forever",
    "triple fault": "lidt [none]\n int3\nnone: .long 0, 0",
}


@pytest.mark.parametrize("how", RESETS_OF_THE_PROCESSOR)
def test_a_program_goes_on_behind_a_reset_of_the_processor(tmp_path: Path, how: str) -> None:
    """Devices are as they were: the mask of the interrupt controller, here, and the run goes on with --no-reboot."""
    program = """
.code16
    mov word ptr [0x467], offset resumed
    mov word ptr [0x469], 0
    mov al, 0x0F
    out 0x70, al
    mov al, 0x0A
    out 0x71, al
    mov al, 0xB5
    out 0x21, al
    mov eax, cr0
    or al, 1
    mov cr0, eax
    RESET
resumed:
    mov eax, cr0
    and al, 1
    mov ah, al
    in al, 0x21
    or al, ah
    out 0xF4, al
""".replace("RESET", RESETS_OF_THE_PROCESSOR[how])
    guest = start(tmp_path, sector_disk(program), no_reboot=True)
    guest.run(max_time="1s")
    assert (guest.vm.exit_value, guest.vm.resets) == (0xB5, 0)


def test_without_a_reason_in_cmos_the_machine_is_reset(tmp_path: Path) -> None:
    reset = RESETS_OF_THE_PROCESSOR["keyboard controller"]
    guest = start(tmp_path, sector_disk(f".code16\n {reset}\n"), no_reboot=True)
    assert guest.run(max_time="1s") == 122
    crash = start(tmp_path, sector_disk(".code16\n lidt [none]\n int3\nnone: .long 0, 0\n"))
    assert crash.run(max_time="1s") == 134


@pytest.mark.parametrize(("code", "vector"), [("ud2", "06"), ("xor cx, cx\n div cl", "00")])
def test_an_exception_that_nobody_handles_is_reported(tmp_path: Path, code: str, vector: str) -> None:
    guest = start(tmp_path, sector_disk(f".code16\nnop\nnop\n{code}\n"))
    guest.expect_status(124)
    at = "7C04" if "div" in code else "7C02"
    assert f"BIOS: exception {vector}h at 0000:{at} in real mode, halted" in guest.console


# ---- the data area, and what there is --------------------------------------------------------------------------------


def test_the_data_area(tmp_path: Path) -> None:
    (found,) = probe(tmp_path, Dump(0x400, 0x100))
    assert isinstance(found, bytes)

    def word(offset: int) -> int:
        return int.from_bytes(found[offset : offset + 2], "little")

    assert word(0x00) == 0x3F8 and word(0x02) == 0
    assert word(0x0E) == 0x9FC0
    assert word(0x10) == 0x0226  # coprocessor, mouse, 80 columns, one serial port
    assert word(0x13) == 639
    assert word(0x1A) == word(0x1C) == word(0x80) == 0x1E and word(0x82) == 0x3E
    assert found[0x49] == 3 and word(0x4A) == 80 and word(0x4C) == 0x1000
    assert word(0x60) == 0x0607 and word(0x63) == 0x3D4
    assert found[0x75] == 1
    assert found[0x84] == 24 and word(0x85) == 16
    assert found[0x96] == 0x10


def test_vectors(tmp_path: Path) -> None:
    """Interrupts that nobody handles return; 60h to 66h are free for programs; all else is in the ROM."""
    (found,) = probe(tmp_path, Dump(0, 0x400))
    assert isinstance(found, bytes)
    vectors = list(struct.iter_unpack("<HH", found))
    assert all(vector == (0, 0) for vector in vectors[0x60:0x67])
    assert vectors[0x1C] == vectors[0x4A] == vectors[0xFF] == (0xFF53, 0xF000)
    assert vectors[0x41] == (0x3D, 0x9FC0) and vectors[0x46] == (0x4D, 0x9FC0)
    for number in (*range(0x00, 0x1F), *range(0x70, 0x78)):
        assert vectors[number][1] == 0xF000


def test_equipment_and_memory_size(tmp_path: Path) -> None:
    equipment, memory, extended = probe(tmp_path, call(0x11), call(0x12), call(0x15, eax=0x8800))
    assert isinstance(equipment, Result) and isinstance(memory, Result) and isinstance(extended, Result)
    assert equipment.ax == 0x0226
    assert memory.ax == 639
    assert extended.ax == 15 * 1024 and not extended.carry


@pytest.mark.parametrize(("ram", "kib", "units"), [(4 << 20, 3072, 0), (64 << 20, 15360, 768), (16 << 20, 15360, 0)])
def test_e801(tmp_path: Path, ram: int, kib: int, units: int) -> None:
    (found,) = probe(tmp_path, call(0x15, eax=0xE801), ram=ram)
    assert isinstance(found, Result)
    assert (found.ax, found.bx, found.cx, found.dx, found.carry) == (kib, units, kib, units, False)


@pytest.mark.parametrize("ram", [2 << 20, 64 << 20, 5 << 30])
def test_e820_tells_the_whole_map(tmp_path: Path, ram: int) -> None:
    entries = memory_map(ram)
    program = f"""
.code16
    xor ebx, ebx
next:
    mov eax, 0xE820
    mov edx, {SMAP:#x}
    mov ecx, 24
    mov di, {BUFFER:#x}
    int 0x15
    jc end
    cmp eax, {SMAP:#x}
    jne end
    mov si, {BUFFER:#x}
show:
    lodsb
    out 0xE9, al
    dec cl
    jnz show
    test ebx, ebx
    jnz next
end:
    mov al, 0
    out 0xF4, al
"""
    guest = start(tmp_path, sector_disk(program), ram=ram, pool=2 << 20)
    guest.expect_status(1, max_time="1s")
    assert bytes(guest.vm.platform.console) == b"".join(entry.pack() for entry in entries)


def test_e820_refuses_what_it_cannot_serve(tmp_path: Path) -> None:
    good = {"eax": 0xE820, "ecx": 20, "edx": SMAP, "edi": BUFFER}
    bad = ({"edx": 0}, {"ecx": 19}, {"ebx": len(memory_map(RAM))})
    for found in probe(tmp_path, *(call(0x15, **(good | change)) for change in bad)):
        assert isinstance(found, Result)
        assert found.carry and found.ah == 0x86


def test_services_that_are_not_there(tmp_path: Path) -> None:
    for found in probe(tmp_path, call(0x15, eax=0x8400), call(0x15, eax=0)):
        assert isinstance(found, Result)
        assert found.carry and found.ah == 0x86


def test_the_configuration_table(tmp_path: Path) -> None:
    found = probe_one(tmp_path, 0x15, eax=0xC000)
    assert not found.carry and found.ah == 0
    table = bios_rom(RAM)[found.bx :]
    assert found.es == 0xF000
    assert table[:3] == b"\x08\x00\xfc"
