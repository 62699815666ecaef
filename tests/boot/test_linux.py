"""Linux bzImages: kernels that look at their boot parameters, entered in 32- and in 64-bit mode, and broken files."""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emu.asm.assembler import assemble_image
from emu.boot import firmware
from emu.boot.linux import linux_guest
from emu.boot.linux_params import BOOT_PARAMS
from emu.cli import main
from emu.errors import BadInput
from emu.testing import boot
from tests.boot.kernels import EM_X86_64, Load, elf

RAM = 32 << 20
KERNEL = 0x10_0000
SETUP_SECTORS = 3
SETUP_SIZE = (SETUP_SECTORS + 1) * 512
MMUS = ("shadow", "nested")
EXITED = 0x10 << 1 | 1
Capture = pytest.CaptureFixture[str]

# {R} is E or R: the same source for 32 and 64 bits
SOURCE = """
.macro show text, register
    print \\text
    print_hex \\register
    print "\\n"
.endm
.macro show_dword text, offset
    mov eax, [{R}bp + \\offset]
    show \\text, {R}ax
.endm
.macro show_byte text, offset
    movzx eax, byte ptr [{R}bp + \\offset]
    show \\text, {R}ax
.endm
.macro show_selector text, register
    mov eax, \\register
    movzx eax, ax
    show \\text, {R}ax
.endm

put_bytes:                          # ECX bytes at [{R}si]
    lodsb
    out PORT_CONSOLE, al
    dec ecx
    jnz put_bytes
    print "\\n"
    ret

start:
    mov esp, 0x90000
    mov eax, ebx                    # the protocol for 32 bits wants them to be 0
    or eax, ebp
    or eax, edi
    show "ebx, ebp, edi ", {R}ax
    show "boot_params ", {R}si
    mov {R}bp, {R}si
    pushf{suffix}
    pop {R}ax
    and eax, 0x200
    show "IF ", {R}ax
    show_selector "CS ", cs
    show_selector "DS ", ds
    show_selector "ES ", es
    show_selector "SS ", ss
    mov eax, 0x18                   # the descriptors, too, are what the protocol asks for
    mov ds, eax
    mov es, eax
    mov ss, eax
{far_jump}
reloaded:
    print "reloaded\\n"

    show_dword "header ", 0x202
    show_dword "version and jump ", 0x206
    show_byte "type_of_loader ", 0x210
    show_byte "loadflags ", 0x211
    show_dword "code32_start ", 0x214
    show_dword "heap_end_ptr ", 0x224
    show_dword "alt_mem_k ", 0x1E0

    print "command line "
    mov esi, [{R}bp + 0x228]
character:
    lodsb
    test al, al
    jz line_ends
    out PORT_CONSOLE, al
    jmp character
line_ends:
    print "\\n"

    show_dword "initrd size ", 0x21C
    mov esi, [{R}bp + 0x218]
    test esi, esi
    jz no_initrd
    mov edx, esi
    and esi, 0xFFF
    show "initrd page offset ", {R}si
    mov esi, edx
    print "initrd begins "
    mov ecx, 8
    call put_bytes
    print "initrd ends "
    mov esi, edx
    add esi, [{R}bp + 0x21C]
    sub esi, 4
    mov ecx, 4
    call put_bytes
no_initrd:

    mov esi, [{R}bp + 0x70]
    print "acpi_rsdp "
    mov ecx, 8
    call put_bytes

    movzx ecx, byte ptr [{R}bp + 0x1E8]
    lea {R}bx, [{R}bp + 0x2D0]
one_range:
    print "e820"
    mov edx, 5
field:
    print " "
    mov eax, [{R}bx]
    print_hex {R}ax
    add {R}bx, 4
    dec edx
    jnz field
    print "\\n"
    dec ecx
    jnz one_range
    mov eax, 0x10
    jmp exit
"""
FAR_JUMP = {
    32: "    ljmp 0x10:reloaded",
    64: "    push 0x10\n    lea rax, [rip + reloaded]\n    push rax\n    retfq",
}
BITS = (32, 64)


def code(directory: Path, bits: int) -> bytes:
    """The protected-mode part: entered at its beginning, and where the other entry point is it stops."""
    console, skip = ("console.inc", 0) if bits == 32 else ("console64.inc", 0x200)
    source = SOURCE.format(R="e" if bits == 32 else "r", suffix="d" if bits == 32 else "q", far_jump=FAR_JUMP[bits])
    path = directory / "kernel.s"
    path.write_text(f'.code{bits}\n jmp start\n.include "platform.inc"\n.include "{console}"\n{source}')
    include = firmware.firmware_directory() / "include"
    return b"\xcc" * skip + assemble_image(path, load=KERNEL + skip, include_directories=[include]).data


@dataclass(frozen=True)
class Header:
    """Fields of the setup header (boot.rst, "The Real-Mode Kernel Header")."""

    version: int = 0x20F
    setup_sectors: int = SETUP_SECTORS
    loadflags: int = 1
    xloadflags: int = 0
    initrd_addr_max: int = 0x7FFF_FFFF
    cmdline_size: int = 255
    pref_address: int = KERNEL
    init_size: int = 0x10000
    syssize: int | None = None  # paragraphs


def bzimage(payload: bytes, header: Header = Header()) -> bytes:  # noqa: B008
    """A kernel file: boot sector, setup, payload."""
    setup = bytearray(((header.setup_sectors or 4) + 1) * 512)
    setup[0x1F1] = header.setup_sectors
    struct.pack_into("<I", setup, 0x1F4, -(-len(payload) // 16) if header.syssize is None else header.syssize)
    setup[0x1FE:0x202] = b"\x55\xaa\xeb\x6e"  # signature, jump behind the header, which ends at 0x270
    struct.pack_into("<4sH", setup, 0x202, b"HdrS", header.version)
    setup[0x211] = header.loadflags
    struct.pack_into("<I", setup, 0x214, 0x1000)  # code32_start: the loader says where it really is
    struct.pack_into(
        "<IIBBHI", setup, 0x22C, header.initrd_addr_max, 0x20_0000, 1, 21, header.xloadflags, header.cmdline_size
    )
    struct.pack_into("<QI", setup, 0x258, header.pref_address, header.init_size)
    return bytes(setup) + payload


def kernel_file(directory: Path, bits: int) -> Path:
    path = directory / "vmlinuz"
    path.write_bytes(bzimage(code(directory, bits), Header(xloadflags=bits == 64)))
    return path


def golden(bits: int, ram: int, command_line: str, initrd: bytes = b"") -> str:
    def show(value: int) -> str:
        return f"{value:#0{2 + bits // 4}x}"

    facts = [("ebx, ebp, edi", 0), ("boot_params", BOOT_PARAMS), ("IF", 0)]
    facts += [("CS", 0x10), ("DS", 0x18), ("ES", 0x18), ("SS", 0x18)]
    lines = [f"{name} {show(value)}" for name, value in facts] + ["reloaded"]
    facts = [
        ("header", int.from_bytes(b"HdrS", "little")), ("version and jump", 0x20F), ("type_of_loader", 0xFF),
        ("loadflags", 0x81), ("code32_start", KERNEL), ("heap_end_ptr", 0xFE00), ("alt_mem_k", (ram >> 10) - 1024),
    ]  # fmt: skip
    lines += [f"{name} {show(value)}" for name, value in facts]
    lines += [f"command line {command_line}", f"initrd size {show(len(initrd))}"]
    if initrd:
        lines += [f"initrd page offset {show(0)}", f"initrd begins {initrd[:8].decode()}"]
        lines += [f"initrd ends {initrd[-4:].decode()}"]
    lines.append("acpi_rsdp RSD PTR ")
    for gpa, size, kind in (
        (0, 0x9FC00, 1),
        (0x9FC00, 0x400, 2),
        (0xF0000, 0x10000, 2),
        (0x100000, ram - 0x100000, 1),
        (0xFFFC0000, 0x40000, 2),
    ):
        lines.append(" ".join(["e820", show(gpa), show(0), show(size), show(0), show(kind)]))
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("mmu", MMUS)
@pytest.mark.parametrize("bits", BITS)
def test_boot_parameters(tmp_path: Path, bits: int, mmu: str) -> None:
    initrd = tmp_path / "initrd"
    initrd.write_bytes(b"070701ABCD" + bytes(10_000) + b"tail")
    guest = boot(
        kernel_file(tmp_path, bits), append="console=ttyS0 quiet", initrd=str(initrd), ram=RAM, mmu=mmu, audit=True
    )
    assert guest.vm.guest is not None and guest.vm.guest.name == "vmlinuz"
    assert guest.run("10ms") == EXITED, guest.describe()
    assert guest.console == golden(bits, RAM, "console=ttyS0 quiet", initrd.read_bytes())


@pytest.mark.parametrize("bits", BITS)
def test_without_command_line_and_initrd(tmp_path: Path, bits: int) -> None:
    guest = boot(kernel_file(tmp_path, bits), ram=RAM)
    assert guest.run("10ms") == EXITED, guest.describe()
    assert guest.console == golden(bits, RAM, "")


def test_the_same_by_the_command_line(tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """Text that is no ASCII reaches the kernel in UTF-8."""
    initrd = tmp_path / "initrd"
    initrd.write_bytes(b"12345678")
    arguments = ["run", str(kernel_file(tmp_path, 64)), "--ram", "32M", "--append", "grüße", "--initrd", str(initrd)]
    assert main(arguments) == EXITED
    assert capfdbinary.readouterr().out.decode() == golden(64, RAM, "grüße", initrd.read_bytes())


def test_nothing_is_resident_before_the_first_touch(tmp_path: Path) -> None:
    assert boot(kernel_file(tmp_path, 64), ram=RAM).vm.pool.used == 0


# ---- where things go

PAYLOAD = b"\xf4" * 1000


def made(path: Path, header: Header = Header(), ram: int = RAM, **options: str | Path) -> BadInput | None:  # noqa: B008
    """What is wrong with a kernel, if anything."""
    path.write_bytes(bzimage(PAYLOAD, header))
    return complaint(path, ram, **options)


def complaint(path: Path, ram: int = RAM, append: str = "", initrd: Path | None = None) -> BadInput | None:
    try:
        linux_guest(path, ram, append, initrd)
    except BadInput as error:
        assert "\n" not in str(error)
        return error
    return None


@pytest.mark.parametrize(
    ("ram", "limit", "size", "gpa"),
    [
        (RAM, 0x7FFF_FFFF, 1, RAM - 4096),
        (RAM, 0x7FFF_FFFF, 4096, RAM - 4096),
        (RAM, 0x7FFF_FFFF, 4097, RAM - 8192),
        (RAM, 0xFF_FFFF, 5000, 0xFF_E000),  # the highest address that the initrd may occupy
        (RAM, 0xFF_FFFE, 4096, 0xFF_E000),
        (4 << 30, 0x7FFF_FFFF, 4096, 0x7FFF_F000),
        (5 << 30, 0xFFFF_FFFF, 4096, 0xBFFF_F000),  # below the hole for devices
    ],
)
def test_where_the_initrd_lies(tmp_path: Path, ram: int, limit: int, size: int, gpa: int) -> None:
    kernel, initrd = tmp_path / "kernel", tmp_path / "initrd"
    kernel.write_bytes(bzimage(PAYLOAD, Header(initrd_addr_max=limit)))
    initrd.write_bytes(b"\x77" * size)
    image = linux_guest(kernel, ram, initrd=initrd).image
    params = image.page(BOOT_PARAMS >> 12)
    assert struct.unpack_from("<II", params, 0x218) == (gpa, size)
    assert image.page(gpa >> 12)[:4096] == b"\x77" * min(size, 4096) + bytes(max(4096 - size, 0))
    assert image.end == max(gpa + size, KERNEL + len(PAYLOAD))


def test_an_initrd_that_just_fits(tmp_path: Path) -> None:
    initrd = tmp_path / "initrd"
    end = KERNEL + 0x10000  # init_size: what the kernel needs to start
    initrd.write_bytes(bytes(RAM - end))
    assert made(tmp_path / "kernel", initrd=initrd) is None
    initrd.write_bytes(bytes(RAM - end + 1))
    error = made(tmp_path / "kernel", initrd=initrd)
    assert error is not None and error.what == str(initrd)
    assert error.reason == f"the initrd of {RAM - end + 1} bytes does not fit: {RAM - end} bytes of RAM are left for it"


def test_high_memory_is_told(tmp_path: Path) -> None:
    kernel = tmp_path / "kernel"
    kernel.write_bytes(bzimage(PAYLOAD))
    params = linux_guest(kernel, 5 << 30).image.page(BOOT_PARAMS >> 12)
    entries = [struct.unpack_from("<QQI", params, 0x2D0 + 20 * index) for index in range(params[0x1E8])]
    assert (0x10_0000, 0xC000_0000 - 0x10_0000, 1) in entries
    assert (1 << 32, 2 << 30, 1) in entries


def test_the_screen_is_80_by_25_text(tmp_path: Path) -> None:
    """struct screen_info (include/uapi/linux/screen_info.h)."""
    kernel = tmp_path / "kernel"
    kernel.write_bytes(bzimage(PAYLOAD))
    params = linux_guest(kernel, RAM).image.page(BOOT_PARAMS >> 12)
    x, y, extended, page, mode, columns, flags, _, _, _, lines, is_vga, points = struct.unpack_from(
        "<BBHHBBBBHHBBH", params
    )
    assert (x, y, extended, page, flags) == (0, 0, 0, 0, 0)
    assert (mode, columns, lines, is_vga, points) == (3, 80, 25, 1, 16)


# ---- broken files


@pytest.mark.parametrize("size", [0x206, 512, 0x267])
def test_a_truncated_header(tmp_path: Path, size: int) -> None:
    kernel = tmp_path / "kernel"
    kernel.write_bytes(bzimage(PAYLOAD)[:size])
    error = complaint(kernel)
    assert error is not None and "kernel" in error.what
    assert error.reason == f"the kernel is truncated: {size} bytes do not hold its header"


@pytest.mark.parametrize("size", [0x268, SETUP_SIZE, SETUP_SIZE + 1, SETUP_SIZE + 900])
def test_a_truncated_kernel(tmp_path: Path, size: int) -> None:
    kernel = tmp_path / "kernel"
    whole = bzimage(PAYLOAD)
    kernel.write_bytes(whole[:size])
    error = complaint(kernel)
    assert error is not None
    assert error.reason == f"the kernel is truncated: {size} of {SETUP_SIZE + 63 * 16} bytes"
    kernel.write_bytes(whole)  # the last paragraph is not full, which is no error
    assert complaint(kernel) is None


def test_a_kernel_without_anything_behind_its_setup(tmp_path: Path) -> None:
    kernel = tmp_path / "kernel"
    kernel.write_bytes(bzimage(b""))
    error = complaint(kernel)
    assert error is not None and "truncated" in error.reason


@pytest.mark.parametrize(
    ("header", "version"),
    [
        (Header(0x1FF), "1.255"),
        (Header(0x105), "1.05"),
        (Header(0), "0.00"),
    ],
)
def test_a_protocol_that_is_too_old(tmp_path: Path, header: Header, version: str) -> None:
    error = made(tmp_path / "kernel", header)
    assert error is not None and "kernel" in error.what
    assert error.reason == f"boot protocol {version}: a kernel with protocol 2.00 or newer is needed"


@pytest.mark.parametrize(
    ("header", "ram", "needs"),
    [
        (Header(init_size=31 << 20), 16 << 20, "32M"),
        (Header(init_size=(31 << 20) + 1), RAM, "33M"),
        (Header(pref_address=16 << 20, init_size=40 << 20), RAM, "56M"),
        (Header(), 1 << 20, "2M"),
        (Header(pref_address=1 << 40), RAM, f"{(1 << 20) + 1}M"),
        (Header(init_size=0xFFFF_FFFF), 8 << 30, "4097M"),
    ],
)
def test_too_little_ram(tmp_path: Path, header: Header, ram: int, needs: str) -> None:
    error = made(tmp_path / "kernel", header, ram)
    assert error is not None and error.what == "--ram"
    assert error.reason == f"{ram >> 20}M is too little: kernel needs {needs} to start"


def test_ram_that_just_suffices(tmp_path: Path) -> None:
    assert made(tmp_path / "kernel", Header(init_size=31 << 20)) is None


def test_a_command_line_that_is_too_long(tmp_path: Path) -> None:
    """The kernel's limit counts bytes without the NUL."""
    kernel = tmp_path / "kernel"
    assert made(kernel, Header(cmdline_size=10), append="0123456789") is None
    assert made(kernel, Header(cmdline_size=10), append="01234567é") is None
    for text in ("0123456789a", "012345678é"):
        error = made(kernel, Header(cmdline_size=10), append=text)
        assert error is not None and error.what == "--append"
        assert error.reason == "11 characters, kernel takes 10"
    error = made(kernel, Header(cmdline_size=0xFFFF_FFFF), append="x" * 0x10000)
    assert error is not None and error.what == "--append"


def _initrd(directory: Path, kind: str) -> Path:
    path = directory / "initrd"
    if kind == "directory":
        path.mkdir()
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "large":
        with path.open("wb") as file:
            file.truncate(RAM)
    return path


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("missing", "No such file or directory"),
        ("empty", "empty"),
        ("directory", "directory"),
        ("large", f"the initrd of {RAM} bytes does not fit"),
    ],
)
def test_a_bad_initrd(tmp_path: Path, capsys: Capture, kind: str, reason: str) -> None:
    kernel, initrd = tmp_path / "kernel", _initrd(tmp_path, kind)
    error = made(kernel, initrd=initrd)
    assert error is not None and error.what == str(initrd) and reason.lower() in error.reason.lower()
    assert main(["run", str(kernel), "--ram", "32M", "--initrd", str(initrd)]) == 2
    out, err = capsys.readouterr()
    assert (out, err) == ("", f"emu: {error}\n")


@pytest.mark.parametrize("initrd", ["", "nul\0byte"])
def test_an_initrd_whose_name_cannot_be(tmp_path: Path, capsys: Capture, initrd: str) -> None:
    kernel = tmp_path / "kernel"
    kernel.write_bytes(bzimage(PAYLOAD))
    assert one_line(capsys, ["run", str(kernel), "--initrd", initrd])


@pytest.mark.parametrize("kind", ["device", "pipe"])
def test_an_initrd_that_is_no_file(tmp_path: Path, kind: str) -> None:
    initrd = tmp_path / "initrd"
    if kind == "device":
        assert "no regular file" in str(made(tmp_path / "kernel", initrd=Path("/dev/zero")))
        return
    os.mkfifo(initrd)
    writer = os.open(initrd, os.O_RDWR)  # without it, whoever opens the pipe for reading waits for ever
    try:
        assert "no regular file" in str(made(tmp_path / "kernel", initrd=initrd))
    finally:
        os.close(writer)


FIELDS = [0x1F1, *range(0x1F4, 0x1F8), 0x201, 0x206, 0x207, 0x211, *range(0x22C, 0x23C), *range(0x258, 0x268)]
MUTATION = st.tuples(
    st.sampled_from(FIELDS),
    st.sampled_from([0, 1, 0x7F, 0x80, 0xFF]) | st.integers(0, 255),
)


@settings(max_examples=200, deadline=None)
@given(mutations=st.lists(MUTATION, max_size=6), cut=st.integers(0, 4000))
def test_mutated_files(tmp_path_factory: pytest.TempPathFactory, mutations: list[tuple[int, int]], cut: int) -> None:
    """Any file is a kernel, all of which can be read, or one line of complaint."""
    kernel, initrd = (tmp_path_factory.getbasetemp() / name for name in ("mutated", "initrd"))
    data = bytearray(bzimage(PAYLOAD))
    for at, value in mutations:
        data[at] = value
    kernel.write_bytes(data[: max(len(data) - cut, 0)])
    initrd.write_bytes(bytes(9000))
    try:
        image = linux_guest(kernel, RAM, "x", initrd).image
    except BadInput as error:
        assert "\n" not in str(error)
        return
    for gfn in image.gfns():
        image.page(gfn)
    assert image.end <= RAM


# ---- by the command line


def one_line(capsys: Capture, arguments: list[str]) -> str:
    """The complaint that a command ends with."""
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("emu: ") and err.endswith("\n") and err.count("\n") == 1, err
    return err


def arm64_image() -> bytes:
    """Linux, Documentation/arch/arm64/booting.rst; with an EFI stub it begins with "MZ"."""
    header = struct.pack("<2sHIQQQQQQ4sI", b"MZ", 0xD503, 0x1400_0000, 0x8_0000, 1 << 20, 0xA, 0, 0, 0, b"ARM\x64", 64)
    return header.ljust(4096, b"\0")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (arm64_image(), ""),
        (elf([Load(0x10_0000, bytes(64))], 0x10_0000, 64, 183), ""),
        (elf([Load(0x10_0000, bytes(64))], 0x10_0000, 64, EM_X86_64), "no PVH note"),
        (bzimage(PAYLOAD)[:0x220], "truncated"),
        (bzimage(PAYLOAD)[: SETUP_SIZE + 50], "truncated"),
        (bzimage(PAYLOAD, Header(0x101)), "boot protocol 1.01"),
        (bzimage(PAYLOAD, Header(init_size=1 << 28)), "too little"),
        (b"", "empty"),
    ],
    ids=["arm64", "aarch64-elf", "elf", "header", "cut", "old", "ram", "empty"],
)
def test_kernels_that_cannot_start(tmp_path: Path, capsys: Capture, data: bytes, words: str) -> None:
    kernel = tmp_path / "kernel"
    kernel.write_bytes(data)
    assert words in one_line(capsys, ["run", str(kernel)])


@pytest.mark.parametrize("data", [arm64_image(), elf([Load(0x10_0000, bytes(64))], 0x10_0000, 64, 183)])
def test_another_architecture_is_named(tmp_path: Path, capsys: Capture, data: bytes) -> None:
    kernel = tmp_path / "kernel"
    kernel.write_bytes(data)
    assert "another architecture" in one_line(capsys, ["run", str(kernel)])


@pytest.mark.parametrize("suffix", ["", ",virtio"])
def test_a_disk_that_is_a_directory(tmp_path: Path, capsys: Capture, suffix: str) -> None:
    kernel = tmp_path / "kernel"
    kernel.write_bytes(bzimage(PAYLOAD))
    line = one_line(capsys, ["run", str(kernel), "--disk", f"{tmp_path}{suffix}"])
    assert line.startswith(f"emu: {tmp_path}: ") and "directory" in line
