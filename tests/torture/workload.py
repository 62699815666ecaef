"""One small guest that makes emu use all of the host that a guest can reach: store, disk, serial ports, event log."""

from __future__ import annotations

from pathlib import Path

SECTORS = 64  # of its disk
_LINE = "round\n"
_SOURCE = """\
# Each round writes its number into 112 pages, a sector and both serial ports, and reads the pages and the sector back.
.equ ROUNDS, {rounds}
# port 0xF4 gets 0 at the end, 1 when a page is wrong, 2 when a sector is, 3 when the disk reports an error
.code16
    xor ax, ax
    mov ds, ax
    mov ss, ax
    mov sp, 0x7000
    mov si, 1
round:
    mov ax, 0x1000
store:
    mov es, ax
    mov word ptr es:[0], si
    add ax, 0x100
    cmp ax, 0x8000
    jb store
    mov ax, 0x1000
load:
    mov es, ax
    cmp word ptr es:[0], si
    mov al, 1
    jne failed
    mov ax, es
    add ax, 0x100
    cmp ax, 0x8000
    jb load

    mov bl, 0x30            # WRITE SECTORS
    call command
    mov cx, 256
    mov ax, si
    mov dx, 0x1f0
put:
    out dx, ax
    loop put
    call ready
    mov al, 0xe7            # FLUSH CACHE
    mov dx, 0x1f7
    out dx, al
    call ready
    mov bl, 0x20            # READ SECTORS
    call command
    mov cx, 256
    mov dx, 0x1f0
get:
    in ax, dx
    cmp ax, si
    mov al, 2
    jne failed
    loop get

    mov di, line
print:
    mov al, byte ptr [di]
    test al, al
    jz printed
    mov dx, 0x3f8
    out dx, al
    mov dx, 0x2f8
    out dx, al
    inc di
    jmp print
printed:
    inc si
    cmp si, ROUNDS + 1
    jne round
    xor al, al
failed:
    out 0xf4, al
    hlt

command:                    # of one sector, whose number is the round's
    mov dx, 0x1f6
    mov al, 0xe0
    out dx, al
    mov dx, 0x1f2
    mov al, 1
    out dx, al
    inc dx
    mov ax, si
    and al, {last_sector}
    out dx, al
    inc dx
    xor al, al
    out dx, al
    inc dx
    out dx, al
    mov dx, 0x1f7
    mov al, bl
    out dx, al
ready:
    mov dx, 0x1f7
    in al, dx
    test al, 0x80           # BSY
    jnz ready
    test al, 0x21           # ERR, DF
    mov al, 3
    jnz failed
    ret
line:
    .asciz "round\\n"
"""


def write_guest(path: Path, rounds: int) -> Path:
    """The guest's source, in a new file; it ends after ``rounds`` rounds, from 1 to 65534."""
    path.write_text(_SOURCE.format(rounds=rounds, last_sector=SECTORS - 1))
    return path


def console(rounds: int) -> bytes:
    """What it prints at each serial port."""
    return (_LINE * rounds).encode()


def sector(number: int) -> bytes:
    """What it writes into the sector of a round."""
    return number.to_bytes(2, "little") * 256


def disk_image(path: Path) -> Path:
    """An empty disk for it, in a new file."""
    path.write_bytes(bytes(SECTORS * 512))
    return path
