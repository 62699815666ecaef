"""The built-in BIOS: screen, keys and serial ports."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from emu.debug.look import read
from emu.testing import GuestUnderTest, boot
from tests.boot.bios_disks import (
    SCREEN,
    Dump,
    Result,
    call,
    probe,
    probe_disk,
    results,
    run,
    screen,
    sector_disk,
    start,
)

# ---- the screen ------------------------------------------------------------------------------------------------------


def test_teletype_wraps_and_scrolls(tmp_path: Path) -> None:
    guest = run(
        tmp_path,
        """
.code16
    mov dl, 'a'                     # 26 lines with their letter
lines:
    mov cx, 10
letters:
    mov al, dl
    mov ah, 0x0E
    int 0x10
    loop letters
    mov ax, 0x0E0D
    int 0x10
    mov ax, 0x0E0A
    int 0x10
    inc dl
    cmp dl, 'z'
    jbe lines
    mov cx, 85                      # and one that is too long
long:
    mov ax, 0x0E2E
    int 0x10
    loop long
    mov ax, 0x0E08                  # back over the last one, and a bell
    int 0x10
    mov ax, 0x0E07
    int 0x10
    mov ax, 0x0E21
    int 0x10
    mov al, 0
    out 0xF4, al
""",
    )
    shown = [screen(guest, row).rstrip() for row in range(25)]
    assert shown == [chr(letter) * 10 for letter in range(ord("d"), ord("z") + 1)] + ["." * 80, "....!"]
    letters = "".join(chr(letter) * 10 + "\r\n" for letter in range(ord("a"), ord("z") + 1))
    assert guest.console == letters + "." * 85 + "\b\a!"


def test_cells_cursor_and_windows(tmp_path: Path) -> None:
    found = probe(
        tmp_path,
        call(0x10, eax=0x0200, edx=0x0507),
        call(0x10, eax=0x0941, ebx=0x1E, ecx=3),
        call(0x10, eax=0x0300),
        call(0x10, eax=0x0800),
        call(0x10, eax=0x0A42, ebx=0x4F, ecx=1),
        call(0x10, eax=0x0800),
        Dump(5 * 160 + 14, 8, 0xB800),
        call(0x10, eax=0x0602, ebx=0x3000, ecx=0x0207, edx=0x0608),  # up by two, columns 7 and 8
        Dump(3 * 160 + 14, 8, 0xB800),
        Dump(5 * 160 + 14, 8, 0xB800),
        call(0x10, eax=0x0701, ebx=0x2000, ecx=0x0307, edx=0x0407),  # down by one, column 7
        Dump(4 * 160 + 14, 4, 0xB800),
        Dump(3 * 160 + 14, 4, 0xB800),
        call(0x10, eax=0x0600, ebx=0x1700, ecx=0x0000, edx=0xFFFF),  # clear
        Dump(24 * 160 + 156, 4, 0xB800),
        call(0x10, eax=0x0F00),
        call(0x10, eax=0x1A00),
    )
    _, _, cursor, first, _, second, cells, _, up, gone, _, down, blank, _, clear, mode, display = found
    assert isinstance(cursor, Result) and isinstance(first, Result) and isinstance(second, Result)
    assert cursor.dx == 0x0507 and cursor.cx == 0x0607
    assert first.ax == 0x1E41 and second.ax == 0x1E42
    assert cells == b"B\x1eA\x1eA\x1e \x07"
    assert up == b"B\x1eA\x1e \x07 \x07"
    assert gone == b" \x30 \x30A\x1e \x07"
    assert down == b"B\x1e \x07" and blank == b" \x20A\x1e"
    assert clear == b" \x17 \x17"
    assert isinstance(mode, Result) and isinstance(display, Result)
    assert mode.ax == 80 << 8 | 3 and mode.ebx >> 8 & 0xFF == 0
    assert display.al == 0x1A and display.bx == 0x0008


def test_strings(tmp_path: Path) -> None:
    guest = run(
        tmp_path,
        """
.code16
    mov bp, offset plain
    mov cx, 5
    mov dx, 0x0302
    mov bx, 0x004E
    mov ax, 0x1301                  # the cursor stays behind it
    int 0x10
    mov bp, offset coloured
    mov cx, 2
    mov dx, 0x0600
    mov ax, 0x1302                  # attributes in it, the cursor does not move
    int 0x10
    mov ax, 0x0E21
    int 0x10
    mov al, 0
    out 0xF4, al
plain: .ascii "hello"
coloured: .byte 'x', 0x12, 'y', 0x34
""",
    )
    assert read(guest.vm, SCREEN + 3 * 160 + 4, 12) == b"h\x4ee\x4el\x4el\x4eo\x4e!\x07"
    assert read(guest.vm, SCREEN + 6 * 160, 4) == b"x\x12y\x34"


def test_what_a_program_draws_at_the_cursor_reaches_the_console_once(tmp_path: Path) -> None:
    """GRUB draws a character and then moves the cursor; others draw a coloured blank and write over it."""
    guest = run(
        tmp_path,
        """
.macro draw character
    mov ax, 0x0900 | \\character
    mov bx, 0x07
    mov cx, 1
    int 0x10
.endm
.macro cursor row, column
    mov ah, 2
    mov bh, 0
    mov dx, \\row << 8 | \\column
    int 0x10
.endm
.macro type character
    mov ax, 0x0E00 | \\character
    int 0x10
.endm
.code16
    draw 'G'
    cursor 0, 1
    draw 'o'
    cursor 0, 2
    cursor 1, 0                     # a new line
    draw ' '
    type 'A'
    draw ' '
    type 'B'
    cursor 9, 30                    # far away: a new line, too
    draw 'C'
    mov ah, 1                       # INT 16h, AH=00h would wait: AH=01h does not
    int 0x16
    cursor 9, 31
    mov al, 0
    out 0xF4, al
""",
    )
    assert guest.console == "Go\r\nAB\r\nC"


# ---- keys ------------------------------------------------------------------------------------------------------------

ECHO_KEYS = """
.code16
next:
    mov ah, 0x00
    int 0x16
    cmp al, '.'
    je end
    push ax
    mov al, '<'
    out 0xE9, al
    pop ax
    push ax
    mov al, ah
    call show
    pop ax
    call show
    mov al, '>'
    out 0xE9, al
    jmp next
end:
    mov al, 0
    out 0xF4, al
show:
    push ax
    shr al, 4
    call digit
    pop ax
    and al, 15
digit:
    cmp al, 10
    jb low
    add al, 'A' - '0' - 10
low:
    add al, '0'
    out 0xE9, al
    ret
"""


def keys(guest: GuestUnderTest) -> list[int]:
    return [int(text, 16) for text in re.findall(r"<(\w{4})>", guest.console)]


def test_characters_from_the_console_are_keys(tmp_path: Path) -> None:
    guest = start(tmp_path, sector_disk(ECHO_KEYS), serial_input=b"aA1!\n\x7f\t\x03\x1b[A\x1b[D\xe9~.")
    guest.expect_status(1, max_time="1s")
    expected = [0x1E61, 0x1E41, 0x0231, 0x0221, 0x1C0D, 0x0E08, 0x0F09, 0x2E03, 0x4800, 0x4B00, 0x00E9, 0x297E]
    assert keys(guest) == expected


def test_characters_that_arrive_while_a_program_waits(tmp_path: Path) -> None:
    guest = start(tmp_path, sector_disk(ECHO_KEYS))
    for character, key in (("x", 0x2D78), ("\x1b", 0x011B), ("y", 0x1579)):
        guest.run(max_time="2s")
        guest.send(character)
        guest.wait_for(f"<{key:04X}>", max_time="1s")


def test_keys_of_the_keyboard(tmp_path: Path) -> None:
    guest = start(tmp_path, sector_disk(ECHO_KEYS))
    guest.run(max_time="100ms")
    guest.vm.platform.keyboard.type("aZ!\n")
    guest.vm.platform.keyboard.press(0x1D, 0x2E)  # Ctrl-C
    guest.vm.platform.keyboard.press(0x38, 0x10)  # Alt-Q
    guest.vm.platform.keyboard.press(0x3B)  # F1
    guest.vm.platform.keyboard.press(0x57)  # F11
    guest.vm.platform.keyboard.press(0xE048)  # up
    guest.vm.platform.keyboard.press(0x1D, 0xE04B)  # Ctrl-left
    guest.vm.platform.keyboard.press(0x3A)  # Caps Lock
    guest.vm.platform.keyboard.type("b")
    guest.vm.platform.keyboard.press(0x2A, 0x30)  # Shift-B: small again
    guest.vm.platform.keyboard.press(0x45)  # Num Lock
    guest.vm.platform.keyboard.press(0x47)  # 7 on the pad
    guest.vm.platform.keyboard.press(0xE047)  # Home
    guest.vm.platform.keyboard.press(0xE01C)  # Enter on the pad
    guest.vm.platform.keyboard.type(".")
    guest.expect_status(1, max_time="5s")
    assert keys(guest) == [
        0x1E61, 0x2C5A, 0x0221, 0x1C0D, 0x2E03, 0x1000, 0x3B00, 0x8500, 0x4800, 0x7300, 0x3042, 0x3062, 0x4737, 0x4700,
        0x1C0D,
    ]  # fmt: skip


def test_ctrl_alt_del_resets(tmp_path: Path) -> None:
    guest = start(tmp_path, sector_disk(ECHO_KEYS))
    guest.run(max_time="100ms")
    guest.vm.platform.keyboard.press(0x1D, 0x38, 0xE053)
    guest.run(max_time="1s")
    assert guest.vm.resets == 1
    guest.vm.platform.keyboard.type("a")
    guest.run(max_time="1s")
    assert guest.console == "<1E61>"  # booted again


def test_peeking_leaves_the_key(tmp_path: Path) -> None:
    found = probe(
        tmp_path,
        call(0x16, eax=0x0100),
        call(0x16, eax=0x0500, ecx=0x48E0),  # put a key into the buffer: up
        call(0x16, eax=0x0100),
        call(0x16, eax=0x1100),
        call(0x16, eax=0x1000),
        call(0x16, eax=0x1100),
        call(0x16, eax=0x0200),
        *(call(0x16, eax=0x0500, ecx=0x1E61) for _ in range(16)),
    )
    none, pushed, old, new, taken, empty, shift, *filled = (r for r in found if isinstance(r, Result))
    assert none.zero and empty.zero and not old.zero and not new.zero
    assert pushed.al == 0 and old.ax == 0x4800 and new.ax == taken.ax == 0x48E0
    assert shift.al == 0
    assert [r.al for r in filled] == [0] * 15 + [1]  # 15 keys fit


# ---- serial ports ----------------------------------------------------------------------------------------------------


def test_serial_services(tmp_path: Path) -> None:
    guest = start(
        tmp_path,
        probe_disk(
            [
                call(0x14, eax=0x00E3),
                call(0x14, eax=0x0141),
                call(0x14, eax=0x0300),
                call(0x14, eax=0x0200),
                call(0x14, eax=0x0200),
                call(0x14, eax=0x0300, edx=1),
            ]
        ),
        serial_input=b"k",
    )
    guest.expect_status(1, max_time="5s")
    initialised, sent, status, received, nothing, no_port = (r for r in results(guest.console) if isinstance(r, Result))
    assert initialised.ah & 0x60 == 0x60
    assert guest.console.count("A") == 1 and not sent.ah & 0x80
    assert status.ah & 0x01
    assert received.al == ord("k") and not received.ah & 0x80
    assert nothing.ah & 0x80  # nobody sends: it gave up
    assert no_port.ax == 0x0300


# ---- programs that print on the serial port themselves ---------------------------------------------------------------


BOTH_WAYS = """
.code16
    xor ax, ax
    mov ds, ax
    mov ax, 0x0E00 + '!'            # nobody has taken the port yet
    int 0x10
{set_up}
    mov si, offset text
next:
    lodsb
    test al, al
    jz end
    mov ah, 0x0E
    int 0x10
{send}
    jmp next
end:
    xor al, al
    out 0xF4, al
    hlt
text: .asciz "both ways"
"""
BY_INT_14 = ("    mov ax, 0x00E3\n xor dx, dx\n int 0x14\n", "    mov ah, 0x01\n xor dx, dx\n int 0x14\n")
BY_PORTS = ("    mov dx, 0x3FC\n mov al, 0x0B\n out dx, al\n", "    mov dx, 0x3F8\n out dx, al\n")
BY_SCREEN = ("", "")
SET_UP_ONLY = (BY_INT_14[0], "")  # as DOS does with every port


@pytest.mark.parametrize(
    "ways", [BY_INT_14, BY_PORTS, BY_SCREEN, SET_UP_ONLY], ids=["int14h", "ports", "screen", "unused"]
)
def test_what_a_program_sends_itself_appears_once(tmp_path: Path, ways: tuple[str, str]) -> None:
    set_up, send = ways
    text = BOTH_WAYS.format(set_up=set_up, send=send)
    guest = run(tmp_path, text)
    assert guest.console == "!both ways"
    assert "!both ways" in screen(guest, 0)
    flat = boot(text, ram="2M", load=0x7C00)  # entered without the BIOS's start
    assert flat.run(max_time="1s") == 1
    assert flat.console == "!both ways"
