"""Images that are entered at their setup in real mode: what a setup finds, and loaders that others made."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from emu.boot.linux import linux_guest
from emu.errors import BadInput
from emu.testing import boot
from tests.boot.bios_disks import source
from tests.boot.test_linux import Header, bzimage

RAM = 32 << 20
PAYLOAD = b"the kernel".ljust(1000, b".")
ENTRY = 0x200  # of the setup, in the file

# Prints segments, SP, IF, the KiB of base memory, the bytes from 0x20 and from 0x210 of the header, the command line.
SETUP = """
.code16
    jmp begin
.space 0x6E
begin:
    pushf
    pop bx
    mov ax, cs
    call word_out
    mov ax, ds
    call word_out
    mov ax, es
    call word_out
    mov ax, ss
    call word_out
    mov ax, sp
    call word_out
    mov ax, bx
    and ax, 0x200                   # IF
    call word_out
    int 0x12                        # there is a BIOS
    call word_out
    mov si, 0x20
    mov cx, 4
    call bytes_out
    mov si, 0x210
    mov cx, 0x1C
    call bytes_out
    lea si, [0x0]
    cmp word ptr [0x20], 0xA33F     # the oldest way
    jne pointer
    mov si, [0x22]
    jmp text
pointer:
    mov eax, [0x228]
    mov dx, ds
    movzx edx, dx
    shl edx, 4
    sub eax, edx
    mov si, ax
text:
    lodsb
    test al, al
    jz end
    out 0xE9, al
    jmp text
end:
    xor al, al
    out 0xF4, al
    hlt
word_out:
    out 0xE9, al
    mov al, ah
    out 0xE9, al
    ret
bytes_out:
    lodsb
    out 0xE9, al
    loop bytes_out
    ret
"""


def image(version: int, loadflags: int = 1) -> bytes:
    data = bytearray(bzimage(PAYLOAD, Header(version, 3, loadflags)))
    code = source(SETUP, ENTRY)
    at = 0x270 - ENTRY
    data[0x270 : 0x200 + len(code)] = code[at:]
    return bytes(data)


@pytest.mark.parametrize("mmu", ["shadow", "nested"])
@pytest.mark.parametrize(
    ("version", "loadflags"), [(0x200, 0), (0x201, 1), (0x202, 1), (0x203, 1), (0x207, 1), (0x20F, 0)]
)
def test_what_a_setup_finds(tmp_path: Path, version: int, loadflags: int, mmu: str) -> None:
    path, initrd = tmp_path / "kernel", tmp_path / "initrd"
    path.write_bytes(image(version, loadflags))
    initrd.write_bytes(b"x" * 5000)
    guest = boot(path, ram=RAM, append="some words", initrd=str(initrd), mmu=mmu)
    guest.run(max_time="10ms")
    console = bytes(guest.vm.platform.console)
    modern = version >= 0x202
    low = not loadflags or not modern
    base, heap = (0x9000, 0x9800) if low else (0x1000, 0xE000)
    assert struct.unpack_from("<7H", console) == (base + 0x20, base, base, base, heap, 0, 639)
    old, header = console[14:18], console[18:46]
    loader, flags, move, start, gpa, size, _, heap_end = struct.unpack_from("<BBHIIIIH", header)
    assert (loader, start, size) == (0xFF, 0x1000, 5000)
    assert gpa == RAM - 8192
    if version > 0x200:
        assert (flags, heap_end) == (0x80 | loadflags, heap - 0x200)
    if not modern:
        assert struct.unpack("<HH", old) == (0xA33F, heap)
        assert move == heap + len("some words") + 1
    assert console[46:] == b"some words"
    kernel = 0x10_0000 if loadflags else 0x1_0000
    assert guest.vm.guest is not None and guest.vm.guest.image.page(kernel >> 12)[:10] == b"the kernel"


def test_where_they_do_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "kernel"
    path.write_bytes(bzimage(bytes(0x80_0001), Header(0x20F, 3, 0)))
    with pytest.raises(BadInput, match="does not fit below 0x90000"):
        linux_guest(path, RAM)
    path.write_bytes(image(0x203))
    with pytest.raises(BadInput, match="is too little"):
        linux_guest(path, 512 << 10)
    with pytest.raises(BadInput, match="256 characters, kernel takes 255"):
        linux_guest(path, RAM, "c" * 256)


def test_the_oldest_ones_have_a_limit_for_the_initrd(tmp_path: Path) -> None:
    """2.02 has no initrd_addr_max: 0x37FFFFFF counts."""
    path, initrd = tmp_path / "kernel", tmp_path / "initrd"
    path.write_bytes(image(0x202))
    initrd.write_bytes(b"x")
    page = linux_guest(path, 1 << 30, "", initrd).image.page(0x10)
    assert struct.unpack_from("<I", page, 0x218) == (0x3800_0000 - 4096,)
