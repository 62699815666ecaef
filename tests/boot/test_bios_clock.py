"""The built-in BIOS: ticks, waits and the real-time clock."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.boot.bios_disks import Result, call, probe, run, sector_disk, start

MS = 1_000_000  # ns
TICK_NS = 65536 * 1_000_000_000 // 1193182


def test_ticks_are_counted_and_passed_on(tmp_path: Path) -> None:
    guest = run(
        tmp_path,
        """
.code16
    cli
    mov word ptr [0x1C * 4], offset tick
    mov word ptr [0x1C * 4 + 2], 0
    sti
    mov ah, 0
    int 0x1A
    mov bx, dx
    add bx, 18
wait_here:
    mov ah, 0
    int 0x1A
    cmp dx, bx
    jb wait_here
    mov al, [0x6000]
    out 0xE9, al
    mov al, 0
    out 0xF4, al
tick:
    inc byte ptr cs:[0x6000]
    iret
""",
    )
    assert guest.console == chr(18)
    assert 17.5 * TICK_NS < guest.now < 19.5 * TICK_NS
    assert sum(guest.vm.exits.counts.values()) < 1000  # a program that asks over and over does not keep the CPU busy


def test_ticks_tell_the_time_of_day_and_midnight(tmp_path: Path) -> None:
    guest = run(
        tmp_path,
        """
.code16
    mov ah, 1
    mov cx, 0x0018
    mov dx, 0x00AF                  # the last tick of the day
    int 0x1A
    mov cx, 0x000A                  # 700 ms
    mov dx, 0xAE60
    mov ah, 0x86
    int 0x15
    jc failed
    mov ah, 0
    int 0x1A
    cmp al, 1
    jne failed
    mov al, dl
    out 0xE9, al
    mov ah, 0
    int 0x1A
    add al, '0'
    out 0xE9, al
    mov al, 0
    out 0xF4, al
failed:
    mov al, 1
    out 0xF4, al
""",
    )
    assert guest.console[0] in "\x0b\x0c" and guest.console[1] == "0"


@pytest.mark.parametrize("us", [1, 1000, 10_000, 2_500_000])
def test_waiting(tmp_path: Path, us: int) -> None:
    guest = start(
        tmp_path,
        sector_disk(f"""
.code16
    mov al, '<'
    out 0xE9, al
    mov cx, {us >> 16}
    mov dx, {us & 0xFFFF}
    mov ah, 0x86
    int 0x15
    setc al
    out 0xF4, al
"""),
    )
    guest.wait_for("<")
    begin = guest.now
    guest.expect_status(1, max_time="5s")
    assert us * 1000 - 2 * MS < guest.now - begin < us * 1000 + 4 * MS


def test_an_event_is_told_by_a_byte(tmp_path: Path) -> None:
    guest = run(
        tmp_path,
        """
.code16
    mov bx, 0x6000
    mov byte ptr [bx], 0
    xor cx, cx
    mov dx, 20000
    mov ax, 0x8300
    int 0x15
    jc failed
    mov ax, 0x8300                  # one at a time
    int 0x15
    jnc failed
sleep:
    hlt
    test byte ptr [bx], 0x80
    jz sleep
    mov al, 0
    out 0xF4, al
failed:
    mov al, 1
    out 0xF4, al
""",
    )
    assert 18 * MS < guest.now < 25 * MS


def test_the_clock_can_be_set(tmp_path: Path) -> None:
    found = probe(
        tmp_path,
        call(0x1A, eax=0x0300, ecx=0x2359, edx=0x5800),
        call(0x1A, eax=0x0500, ecx=0x1999, edx=0x1231),
        call(0x1A, eax=0x0200),
        call(0x1A, eax=0x0400),
        call(0x15, eax=0x8600, ecx=0x2E, edx=0),  # three seconds
        call(0x1A, eax=0x0200),
        call(0x1A, eax=0x0400),
    )
    assert all(isinstance(r, Result) and not r.carry for r in found)
    _, _, time, date, _, later, next_day = (r for r in found if isinstance(r, Result))
    assert (time.cx, time.dx) == (0x2359, 0x5800)
    assert (date.cx, date.dx) == (0x1999, 0x1231)
    assert later.cx == 0x0000 and later.dx in (0x0000, 0x0100)
    assert (next_day.cx, next_day.dx) == (0x2000, 0x0101)
