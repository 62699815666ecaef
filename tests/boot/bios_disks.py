"""Disks and machines for tests of a BIOS: boot sectors made from assembler source, and probes.

A probe is a program that calls BIOS services one after the other and prints to port 0xE9 what it finds in the registers
then, so that the same image says on any machine and under any BIOS what its services do.
"""

from __future__ import annotations

import struct
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from emu.asm.assembler import assemble
from emu.boot.bios import bios_guest
from emu.debug.look import read
from emu.testing import GuestUnderTest, boot
from tests.oracles.qemu_guest import QEMU

SECTOR = 512  # bytes
DISK_SIZE = 8 << 20  # bytes
RAM = 16 << 20  # bytes
SCREEN = 0xB8000  # gpa of the text buffer
BUFFER = 0x9000  # free memory for what services return
REGISTERS = ("eax", "ebx", "ecx", "edx", "esi", "edi")
_FRAME = "<8IHH"  # PUSHAD, ES, FLAGS

_LOADER = """
.code16
    cli
    xor ax, ax
    mov ds, ax
    mov es, ax
    mov ss, ax
    mov sp, 0x7C00
    cld
    sti
    mov ax, 0x0200 | SECTORS
    mov bx, 0x7E00
    mov cx, 2
    mov dh, 0
    int 0x13                        # DL: as the BIOS left it
    jc failed
    ljmp 0:0x7E00
failed:
    mov al, 0x7F
    out 0xF4, al
"""

_PROBE = """
.code16
    mov si, offset steps
next_step:
    mov al, [si]
    test al, al
    jz end
    cmp al, 2
    je dump
    mov al, [si + 1]
    mov [instruction + 1], al
    push si
    mov eax, [si + 2]
    mov ebx, [si + 6]
    mov ecx, [si + 10]
    mov edx, [si + 14]
    mov edi, [si + 22]
    mov esi, [si + 18]
    mov ebp, 0x12345678
    clc
    jmp instruction
instruction:
    int 0
    pushf
    push es
    pushad
    xor ax, ax
    mov ds, ax
    mov es, ax
    cld
    mov al, '@'
    out 0xE9, al
    mov si, sp
    mov cx, 36
    call print_bytes
    add sp, 36
    pop si
    add si, 26
    jmp next_step
dump:
    push si
    mov ax, [si + 2]
    mov cx, [si + 6]
    mov si, [si + 4]
    mov ds, ax
    mov al, '='
    out 0xE9, al
    call print_bytes
    xor ax, ax
    mov ds, ax
    pop si
    add si, 8
    jmp next_step
end:
    mov al, 0
    out 0xF4, al
    hlt

print_bytes:                        # CX bytes at DS:SI
    lodsb
    mov ah, al
    shr al, 4
    call print_digit
    mov al, ah
    and al, 15
    call print_digit
    loop print_bytes
    mov al, 10
    out 0xE9, al
    ret
print_digit:
    cmp al, 10
    jb print_low_digit
    add al, 'a' - '0' - 10
print_low_digit:
    add al, '0'
    out 0xE9, al
    ret
steps:
"""


@dataclass(frozen=True)
class Call:
    """INT ``number`` with these registers; those that are not named are 0, as are the segment registers."""

    number: int
    registers: dict[str, int]


@dataclass(frozen=True)
class Dump:
    """Show ``size`` bytes at ``segment``:``offset``."""

    offset: int
    size: int
    segment: int = 0


@dataclass(frozen=True)
class Result:
    """The registers after a call."""

    eax: int
    ebx: int
    ecx: int
    edx: int
    esi: int
    edi: int
    ebp: int
    es: int
    flags: int

    @property
    def carry(self) -> bool:
        return bool(self.flags & 0x01)

    @property
    def zero(self) -> bool:
        return bool(self.flags & 0x40)

    @property
    def interrupts(self) -> bool:
        return bool(self.flags & 0x200)

    @property
    def ah(self) -> int:
        return self.eax >> 8 & 0xFF

    @property
    def al(self) -> int:
        return self.eax & 0xFF

    @property
    def ax(self) -> int:
        return self.eax & 0xFFFF

    @property
    def bx(self) -> int:
        return self.ebx & 0xFFFF

    @property
    def cx(self) -> int:
        return self.ecx & 0xFFFF

    @property
    def dx(self) -> int:
        return self.edx & 0xFFFF


def call(number: int, **registers: int) -> Call:
    return Call(number, registers)


def source(text: str, load: int, defines: dict[str, int] | None = None) -> bytes:
    """Assemble a text."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "source.s")
        path.write_text(text)
        return assemble(path, defines, load)


def boot_sector(code: bytes) -> bytes:
    assert len(code) <= SECTOR - 2
    return code.ljust(SECTOR - 2, b"\0") + b"\x55\xaa"


def sector_disk(text: str, size: int = DISK_SIZE) -> bytes:
    """A disk whose boot sector is the program ``text``."""
    return boot_sector(source(text, 0x7C00)).ljust(size, b"\0")


def program_disk(code: bytes, size: int = DISK_SIZE) -> bytes:
    """A disk whose boot sector loads ``code`` to 0x7E00 and jumps there, with DS = ES = SS = 0 and interrupts on."""
    sectors = -(-len(code) // SECTOR)
    assert sectors < 63
    return (boot_sector(source(_LOADER, 0x7C00, {"SECTORS": sectors})) + code).ljust(size, b"\0")


def probe_code(steps: Iterable[Call | Dump]) -> bytes:
    """A probe, to be entered at 0x7E00 with DS = ES = SS = 0."""
    table = b""
    for step in steps:
        if isinstance(step, Dump):
            table += struct.pack("<BxHHH", 2, step.segment, step.offset, step.size)
        else:
            values = (step.registers.get(name, 0) for name in REGISTERS)
            assert set(step.registers) <= set(REGISTERS)
            table += struct.pack("<BB6I", 1, step.number, *values)
    return source(_PROBE, 0x7E00) + table + b"\0"


def probe_disk(steps: Iterable[Call | Dump], size: int = DISK_SIZE) -> bytes:
    """A disk that boots a probe."""
    return program_disk(probe_code(steps), size)


def results(console: str) -> list[Result | bytes]:
    """What a probe printed: a result for each call, bytes for each dump. Services may print, too."""
    found: list[Result | bytes] = []
    for line in console.splitlines():
        if "@" in line:
            data = bytes.fromhex(line.partition("@")[2][: 2 * struct.calcsize(_FRAME)])
            edi, esi, ebp, _, ebx, edx, ecx, eax, es, flags = struct.unpack(_FRAME, data)
            found.append(Result(eax, ebx, ecx, edx, esi, edi, ebp, es, flags))
        elif "=" in line:
            found.append(bytes.fromhex(line.partition("=")[2]))
    return found


def sparse(path: Path, size: int, pieces: dict[int, bytes]) -> Path:
    """An image file with these contents at sectors, and nothing elsewhere, which takes no room on the host."""
    with path.open("wb") as file:
        file.truncate(size)
        for lba, data in pieces.items():
            file.seek(lba * SECTOR)
            file.write(data)
    return path


def start(tmp_path: Path, *disks: bytes, ram: int = RAM, **options: object) -> GuestUnderTest:
    """A machine with these disks at its reset vector."""
    paths = []
    for number, disk in enumerate(disks):
        paths.append(tmp_path / f"disk{number}")
        paths[-1].write_bytes(disk)
    return boot(bios_guest("disk", ram), ram=ram, disks=paths, **options)


def run(tmp_path: Path, program: str, **options: object) -> GuestUnderTest:
    """Boot a program of more than a sector, and expect it to end well."""
    guest = start(tmp_path, program_disk(source(program, 0x7E00)), **options)
    guest.expect_status(1, max_time="60s")
    return guest


def probe(tmp_path: Path, *steps: Call | Dump, ram: int = RAM, more: tuple[bytes, ...] = ()) -> list[Result | bytes]:
    guest = start(tmp_path, probe_disk(steps), *more, ram=ram)
    guest.expect_status(1, max_time="60s")
    found = results(guest.console)
    assert len(found) == len(steps)
    return found


def probe_one(tmp_path: Path, number: int, **registers: int) -> Result:
    (found,) = probe(tmp_path, call(number, **registers))
    assert isinstance(found, Result)
    return found


def screen(guest: GuestUnderTest, row: int, columns: int = 80) -> str:
    return read(guest.vm, SCREEN + row * 160, columns * 2)[::2].decode("cp437")


def probe_on_qemu(
    disk: bytes, ram_mib: int, options: Sequence[str] = (), timeout: float = 120.0, interface: str = "ide"
) -> str:
    """Boot a disk on QEMU: what it writes to port 0xE9."""
    with tempfile.TemporaryDirectory() as directory:
        image, console = Path(directory, "disk"), Path(directory, "console")
        image.write_bytes(disk)
        console.touch()
        command = [
            QEMU, "-accel", "tcg", "-m", f"{ram_mib}M", "-nodefaults", "-display", "none", "-no-reboot", "-vga", "std",
            "-drive", f"file={image},format=raw,if={interface}", "-debugcon", f"file:{console}", "-serial", "null",
            "-device", "isa-debug-exit,iobase=0xf4,iosize=4", *options,
        ]  # fmt: skip
        subprocess.run(command, timeout=timeout, stdin=subprocess.DEVNULL, check=False)
        text = console.read_text("latin-1")
        return text.rpartition("Booting from 0000:7c00\n")[2]
