"""ELF kernels without a multiboot header: PVH entry points, and Linux's vmlinux of both classes."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from emu.boot.detect import detect
from emu.boot.elf import read_elf
from emu.boot.elf_kernel import elf_guest
from emu.boot.kinds import Kind
from emu.errors import BadInput
from emu.testing import boot
from tests.boot.kernels import EM_386, EM_X86_64, Load, elf, header1

BASE = 0x10_0000
RAM = 8 << 20
BANNER = b"Linux version 0.0 (nobody)\0"


def out(*values: bytes) -> bytes:
    """Code that sends bytes from AL, loaded by each of ``values``, to the console."""
    return b"".join(value + b"\xe6\xe9" for value in values)


def with_note(data: bytes, note: bytes, bits: int) -> bytes:
    """An ELF file with one segment, to which a PT_NOTE is added: its header takes the room behind the other one."""
    patched = bytearray(data)
    header, entry, count = (64, 56, 56) if bits == 64 else (52, 32, 44)
    at = header + entry
    if bits == 64:
        patched[at : at + entry] = struct.pack("<IIQQQQQQ", 4, 4, len(data), 0, 0, len(note), len(note), 4)
    else:
        patched[at : at + entry] = struct.pack("<8I", 4, len(data), 0, 0, len(note), len(note), 4, 4)
    struct.pack_into("<H", patched, count, 2)
    return bytes(patched) + note


def xen_note(entry: int, bits: int) -> bytes:
    other = struct.pack("<III4s8s", 4, 6, 6, b"Xen\0", b"linux\0")
    return other + struct.pack("<III4s", 4, bits // 8, 18, b"Xen\0") + entry.to_bytes(bits // 8, "little")


PVH = (
    b"\x8b\xf3"  # mov esi, ebx
    b"\xb9\x38\x00\x00\x00"  # mov ecx, 56: the start info
    b"\xac\xe6\xe9\xe2\xfb"  # lodsb; out 0xE9, al; loop
    b"\x8b\x73\x18"  # mov esi, [ebx + 24]: the command line
    b"\xac\xe6\xe9\x84\xc0\x75\xf9"  # lodsb; out 0xE9, al; test al, al; jnz
    b"\x8b\x73\x10\xb9\x20\x00\x00\x00\xac\xe6\xe9\xe2\xfb"  # 32 bytes of the modules
    b"\x8b\x73\x20\xb9\x08\x00\x00\x00\xac\xe6\xe9\xe2\xfb"  # 8 bytes of the RSDP
    b"\x0f\x20\xc0\xe6\xe9"  # mov eax, cr0; out 0xE9, al
    b"\x30\xc0\xe6\xf4\xf4"
)


@pytest.mark.parametrize("mmu", ["shadow", "nested"])
@pytest.mark.parametrize(("bits", "machine"), [(32, EM_386), (64, EM_X86_64)])
def test_a_kernel_with_a_pvh_entry(tmp_path: Path, bits: int, machine: int, mmu: str) -> None:
    path, module = tmp_path / "vmlinux", tmp_path / "module"
    loads = [Load(BASE, b"\x0f\x0b".ljust(64, b"\xf4") + PVH, vaddr=0xC010_0000)]
    path.write_bytes(with_note(elf(loads, 0xC010_0000, bits, machine), xen_note(BASE + 64, bits), bits))
    module.write_bytes(b"module")
    assert detect(path).kind is Kind.ELF
    guest = boot(path, ram=RAM, append="some words", initrd=f"{module} its own", mmu=mmu)
    guest.run(max_time="10ms")
    assert guest.exit_status == 1, guest.describe()
    console = bytes(guest.vm.platform.console)
    fields = struct.unpack_from("<IIIIQQQQII", console)
    magic, version, _, modules, _, _, rsdp, ranges_at, ranges, _ = fields
    assert (magic, version, modules, rsdp) == (0x336EC578, 1, 1, 0xFC000)
    words, rest = console[56:].split(b"\0", 1)
    assert words == b"some words"
    gpa, size, text, _ = struct.unpack_from("<QQQQ", rest)
    image = guest.vm.guest.image  # type: ignore[union-attr]
    assert (image.page(gpa >> 12)[:size], size, gpa & 0xFFF) == (b"module", 6, 0)
    assert image.page(text >> 12)[text & 0xFFF :][:15] == b"module its own\0"
    assert rest[32:40] == b"RSD PTR "
    assert rest[40] & 1 and len(rest) == 41
    table = image.page(ranges_at >> 12)[ranges_at & 0xFFF :][: 24 * ranges]
    assert (BASE, RAM - BASE, 1, 0) in list(struct.iter_unpack("<QQII", table))


def test_a_vmlinux_of_64_bits_is_entered_in_long_mode(tmp_path: Path) -> None:
    code = (
        b"\x48\x31\xc0\x48\xff\xc8\x48\xc1\xe8\x3c\xe6\xe9"  # rax = 0xF: only 64-bit code gets there
        b"\x8b\x86\x28\x02\x00\x00\x8a\x00\xe6\xe9"  # the command line's first byte
        b"\x8b\x86\x02\x02\x00\x00\xe6\xe9"  # "H" of HdrS
        b"\x8a\x86\xe8\x01\x00\x00\xe6\xe9"  # e820_entries
        b"\x8b\x86\x1c\x02\x00\x00\xe6\xe9"  # ramdisk_size
        b"\x30\xc0\xe6\xf4\xf4"
    )
    path, initrd = tmp_path / "vmlinux", tmp_path / "initrd"
    entry = 0xFFFF_FFFF_8100_0000
    load = Load(BASE, code + BANNER, vaddr=entry)
    path.write_bytes(elf([load], entry, 64, EM_X86_64))
    initrd.write_bytes(b"12345")
    guest = boot(path, ram=RAM, append="x", initrd=str(initrd))
    guest.run(max_time="10ms")
    assert guest.exit_status == 1, guest.describe()
    assert bytes(guest.vm.platform.console)[:3] == b"\x0fxH"
    assert bytes(guest.vm.platform.console)[3] >= 4 and bytes(guest.vm.platform.console)[4] == 5


def test_a_vmlinux_of_32_bits_is_entered_in_protected_mode(tmp_path: Path) -> None:
    code = b"\x8b\x86\x28\x02\x00\x00\x8a\x00\xe6\xe9\x0f\x20\xc0\xe6\xe9\x30\xc0\xe6\xf4\xf4"
    path = tmp_path / "vmlinux"
    path.write_bytes(elf([Load(BASE, code + BANNER, vaddr=0xC010_0000)], BASE))
    guest = boot(path, ram=RAM, append="x")
    guest.run(max_time="10ms")
    console = bytes(guest.vm.platform.console)
    assert console[:1] == b"x" and console[1] & 1, guest.describe()


@pytest.mark.parametrize(("bits", "machine"), [(32, EM_386), (64, EM_X86_64)])
def test_an_elf_file_that_nobody_can_enter(tmp_path: Path, bits: int, machine: int) -> None:
    path = tmp_path / "program"
    path.write_bytes(elf([Load(BASE, bytes(64))], BASE, bits, machine))
    with pytest.raises(BadInput, match="no multiboot header and no PVH note, and is no Linux kernel"):
        boot(path)


@pytest.mark.parametrize("size", [0, 3, 0xFFFF_FFFF])
def test_broken_notes_are_none(tmp_path: Path, size: int) -> None:
    note = struct.pack("<III4s", 4, size, 18, b"Xen\0")
    path = tmp_path / "kernel"
    path.write_bytes(with_note(elf([Load(BASE, bytes(64))], BASE), note, 32))
    assert read_elf(path).pvh_entry is None


def test_what_does_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "vmlinux"
    path.write_bytes(elf([Load(BASE, BANNER)], BASE))
    with pytest.raises(BadInput, match="--append: 65536 characters"):
        elf_guest(path, RAM, "x" * 65536)
    with pytest.raises(BadInput, match="not in usable RAM"):
        elf_guest(path, 1 << 20)


def test_a_kernel_that_is_linked_for_anywhere_runs_where_it_is_linked(tmp_path: Path) -> None:
    """As on QEMU: position-independent programs are linked to 0."""
    path = tmp_path / "kernel"
    path.write_bytes(elf([Load(0, header1() + b"\xb0\x07\xe6\xf4\xf4")], 12, kind=3))
    guest = boot(path, ram=RAM)
    assert guest.run(max_time="1ms") == 7 << 1 | 1


def test_a_header_that_comes_too_late_is_named(tmp_path: Path) -> None:
    path = tmp_path / "kernel"
    path.write_bytes(elf([Load(BASE, bytes(0x2000) + header1())], BASE))
    with pytest.raises(BadInput, match="its multiboot header, at 0x2100, is not in its first 8192 bytes"):
        boot(path)
