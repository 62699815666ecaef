"""The built-in BIOS: A20 and block moves."""

from __future__ import annotations

from pathlib import Path

from emu.debug.look import read
from tests.boot.bios_disks import Result, call, probe, run


def test_a20(tmp_path: Path) -> None:
    steps = [0x2402, 0x2400, 0x2402, 0x2401, 0x2402, 0x2403, 0x2404]
    found = [r for r in probe(tmp_path, *(call(0x15, eax=ax) for ax in steps)) if isinstance(r, Result)]
    assert [r.carry for r in found] == [False] * 6 + [True]
    assert [found[n].al for n in (0, 2, 4)] == [1, 0, 1]
    assert found[5].bx & 3 == 3


def test_the_gate_really_moves(tmp_path: Path) -> None:
    guest = run(
        tmp_path,
        """
.code16
    mov ax, 0xFFFF
    mov es, ax
    mov word ptr [0x6000], 0x1111
    mov word ptr es:[0x6010], 0x2222
    call show                       # open: two places
    mov ax, 0x2400
    int 0x15
    mov word ptr es:[0x6010], 0x3333
    call show                       # closed: one
    mov ax, 0x2401
    int 0x15
    call show                       # open again: two
    mov al, 0
    out 0xF4, al
show:
    mov al, [0x6000]
    out 0xE9, al
    ret
""",
    )
    assert guest.console == "\x11\x33\x33"
    assert read(guest.vm, 0x106000, 2) == b"\x22\x22"


def test_block_moves_reach_above_1_mib(tmp_path: Path) -> None:
    guest = run(
        tmp_path,
        """
.macro move from, to
    mov dword ptr [table + 0x12], \\from
    mov byte ptr [table + 0x15], 0x93
    mov dword ptr [table + 0x1A], \\to
    mov byte ptr [table + 0x1D], 0x93
    mov si, offset table
    mov cx, 8
    mov ah, 0x87
    int 0x15
    jc failed
    test ah, ah
    jnz failed
.endm
.code16
    mov ax, 0x2400                  # the service opens the gate by itself
    int 0x15
    move text, 0x300000
    move 0x300000, 0x6000
    mov ax, 0x2402
    int 0x15
    add al, '0'
    out 0xE9, al
    mov si, 0x6000
    mov cx, 16
show:
    lodsb
    out 0xE9, al
    loop show
    mov ax, ds                      # segments are as before
    mov bx, es
    or ax, bx
    jnz failed
    mov al, 0
    out 0xF4, al
failed:
    mov al, 1
    out 0xF4, al
text: .ascii "sixteen letters."
.balign 8
table:
    .quad 0, 0
    .quad 0xFFFF, 0xFFFF            # limits of source and destination
    .quad 0, 0
""",
    )
    assert guest.console == "0sixteen letters."
    assert read(guest.vm, 0x300000, 16) == b"sixteen letters."
