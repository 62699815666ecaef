"""What a kernel finds below 1 MiB that was entered without a BIOS, against what our BIOS leaves there itself."""

from __future__ import annotations

import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from emu.boot.image import GuestImage
from emu.boot.low_memory import BDA, EBDA_SIZE, data_area, ebda_gpa, place_low_memory
from emu.debug.look import read
from emu.devices import layout
from emu.errors import BadInput
from emu.observe.typist import Typist, parse_typing
from emu.testing import boot
from tests.boot.bios_disks import RAM
from tests.boot.kernels import Load, code, elf, header1
from tests.oracles.qemu_guest import QEMU, have_qemu

TICKS, MIDNIGHT = range(0x6C, 0x70), 0x70  # offsets in the BDA
DISKS = 0x75


def image(ram: int, cpus: int = 1) -> GuestImage:
    made = GuestImage()
    place_low_memory(made, ram, cpus)
    return made


def differing(one: bytes, other: bytes) -> set[int]:
    return {at for at, (a, b) in enumerate(zip(one, other, strict=True)) if a != b}


@pytest.mark.parametrize("ram", [640 << 10, RAM])
def test_it_is_what_our_bios_leaves(tmp_path: Path, ram: int) -> None:
    path = tmp_path / "disk"
    path.write_bytes(b"\xe6\xf4\xf4".ljust(510, b"\0") + b"\x55\xaa")  # out 0xF4, al; hlt
    after_bios = boot(path, ram=ram)
    after_bios.run(max_time="1s")
    assert after_bios.outcome is not None and after_bios.outcome.ending.value == "exit"
    ours = image(ram)
    low = ours.page(0)
    assert differing(low[:BDA], read(after_bios.vm, 0, BDA)) == set()
    area = read(after_bios.vm, BDA, 0x100)
    found_by_the_bios = {*TICKS, MIDNIGHT, DISKS, 0x8E}  # the time of day; the drives, at the first INT 13h
    assert differing(low[BDA : BDA + 0x100], area) <= found_by_the_bios
    ebda = ebda_gpa(ram)
    assert struct.unpack_from("<HH", area, 0x0E) == (ebda >> 4, struct.unpack_from("<H", area, 0x10)[0])
    assert ours.page(ebda >> 12)[ebda & 0xFFF] == read(after_bios.vm, ebda, 1)[0] == EBDA_SIZE >> 10
    assert ours.page(layout.BIOS_AREA >> 12) == read(after_bios.vm, layout.BIOS_AREA, 4096)


def test_the_area_where_people_look() -> None:
    area = data_area(layout.EBDA)
    assert struct.unpack_from("<H", area, 0)[0] == 0x3F8
    assert struct.unpack_from("<H", area, 0x0E)[0] == 0x9FC0
    assert struct.unpack_from("<H", area, 0x13)[0] == 639
    assert area[0x49] == 3


def test_what_a_guest_places_there_is_its_own() -> None:
    made = GuestImage()
    made.add(0x410, b"guest")
    place_low_memory(made, RAM, 1)
    page = made.page(0)
    assert page[0x410:0x415] == b"guest"
    assert page[0x40E:0x410] == data_area(layout.EBDA)[0x0E:0x10]


def services(text: str) -> str:
    """A flat guest that calls BIOS services and writes what they say to the console."""
    return f".code16\n{text}\n xor al, al\n out 0xF4, al\n hlt\n"


@pytest.mark.parametrize("mmu", ["shadow", "nested"])
def test_a_flat_guest_calls_the_bios(mmu: str, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(b"sector 0".ljust(512, b".") + b"sector 1".ljust(1 << 20, b"."))
    source = services("""
        int 0x12
        cmp ax, 639
        jne failed
        mov ax, 0x0E00 + 'p'
        int 0x10
        mov ax, 0x0201              # one sector
        mov cx, 0x0002              # the second one
        mov dx, 0x0080
        mov bx, 0x9000
        int 0x13
        jc failed
        mov si, 0x9000
        mov cx, 8
    next:
        lodsb
        out 0xE9, al
        loop next
        mov ax, 0x0800
        mov dl, 0x80
        int 0x13
        jc failed
        cmp dl, 1
        jne failed
        jmp done
    failed:
        mov al, '!'
        out 0xE9, al
    done:
    """)
    guest = boot(source, ram="2M", mmu=mmu, disks=[disk])
    guest.run(max_time="1s")
    assert guest.console == "psector 1"
    assert guest.exit_status == 1


def test_a_flat_guest_waits_for_the_bios() -> None:
    """Interrupt controllers and timer are as at reset until a service has to wait."""
    source = services("""
        mov ah, 0x86                # a millisecond
        xor cx, cx
        mov dx, 1000
        int 0x15
        jc failed
        mov ax, 0x0E00 + '>'
        int 0x10
        xor ah, ah                  # a key
        int 0x16
        out 0xE9, al
    tick:
        xor ah, ah                  # a tick of the timer
        int 0x1A
        mov bx, dx
    next:
        hlt
        xor ah, ah
        int 0x1A
        cmp bx, dx
        je next
    failed:
    """)
    guest = boot(source.replace("hlt", "sti\n hlt", 1), ram="2M")
    Typist(guest.vm, [parse_typing("k@>")])
    assert guest.run(max_time="2s") == 1, guest.describe()
    assert guest.console == ">k"


def words(memory: bytes, anchor: bytes, size: int) -> Iterator[int]:
    for at in range(0, len(memory), 16):
        if memory[at : at + len(anchor)] == anchor and not sum(memory[at : at + size]) & 0xFF:
            yield at


@pytest.mark.parametrize("cpus", [1, 2, 16])
def test_every_boot_path_has_every_table(cpus: int, tmp_path: Path) -> None:
    kernel, disk, source = tmp_path / "kernel", tmp_path / "disk", tmp_path / "kernel.s"
    kernel.write_bytes(elf([Load(0x10_0000, header1() + b"\xf4")], 0x10_000C))
    disk.write_bytes(bytes(510) + b"\x55\xaa")
    source.write_text(".code16\n hlt\n")
    for path in (kernel, disk, source):
        guest = boot(path, ram="2M", cpus=cpus)
        memory = b"".join(guest.vm.guest.image.page(gfn) for gfn in range(0xF0, 0x100))  # type: ignore[union-attr]
        for anchor, size in ((b"_MP_", 16), (b"RSD PTR ", 20), (b"_SM_", 31), (b"_SM3_", 24)):
            assert len(list(words(memory, anchor, size))) == 1, (path, anchor)


def test_a_machine_of_a_few_pages(tmp_path: Path) -> None:
    path = tmp_path / "kernel.s"
    path.write_text(".code16\n mov al, [0x413]\n out 0xE9, al\n out 0xF4, al\n hlt\n")
    guest = boot(path, ram="64K")
    guest.run(max_time="1ms")
    assert guest.vm.platform.console == bytes((63,))
    with pytest.raises(BadInput):
        boot(path, ram="4K")


SAME_ON_QEMU = {  # offset in the BIOS data area: bytes that are compared
    0x00: 2, 0x0E: 2, 0x13: 2, 0x1A: 4, 0x49: 1, 0x4A: 2, 0x60: 2, 0x63: 2, 0x80: 4, 0x84: 1, 0x85: 2, 0x87: 1,
    0x8A: 1, 0x96: 1,
}  # fmt: skip
LOOK = """
start:
    mov esi, 0x400
    mov ecx, 0x100
next:
    lodsb
    out PORT_CONSOLE, al
    dec ecx
    jnz next
    mov esi, 0x40                   # INT 10h and 13h
    mov ecx, 16
vectors:
    lodsb
    out PORT_CONSOLE, al
    dec ecx
    jnz vectors
    mov al, 0
    out PORT_EXIT, al
    hlt
"""


@pytest.mark.skipif(not have_qemu(), reason=f"{QEMU} is not installed")
def test_a_multiboot_kernel_finds_what_it_finds_on_qemu(tmp_path: Path) -> None:
    header = header1()
    data = header + code(tmp_path, LOOK, 0x10_0000 + len(header))
    kernel, console = tmp_path / "kernel", tmp_path / "console"
    kernel.write_bytes(elf([Load(0x10_0000, data)], 0x10_0000 + len(header)))
    command = [
        QEMU, "-accel", "tcg", "-m", "16M", "-display", "none", "-serial", "null", "-kernel", str(kernel),
        "-debugcon", f"file:{console}", "-device", "isa-debug-exit,iobase=0xf4,iosize=4",
    ]  # fmt: skip
    assert subprocess.run(command, timeout=60, stdin=subprocess.DEVNULL, check=False).returncode == 1
    theirs = console.read_bytes()[-0x110:]
    guest = boot(kernel, ram="16M")
    assert guest.run(max_time="10ms") == 1
    ours = bytes(guest.vm.platform.console)
    for at, size in SAME_ON_QEMU.items():
        assert ours[at : at + size] == theirs[at : at + size], hex(at)
    for vector in range(0x100, 0x110, 4):
        assert any(ours[vector : vector + 4]) and any(theirs[vector : vector + 4])
