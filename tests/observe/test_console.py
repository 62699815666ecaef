"""Watching a console, and typing at it."""

from __future__ import annotations

from pathlib import Path

import pytest

from emu.errors import BadInput
from emu.machine.vm import VirtualMachine
from emu.observe.console import ConsoleWatch
from emu.observe.outcome import Ending
from emu.observe.typist import Typing, Typist, parse_typing
from emu.session import boot_vm, run_vm

# Prints what comes in at the serial port, a dot for each time that HLT ends, and stops at a q.  No timer runs.
BY_INTERRUPT = """
.code16
    mov al, 0x11                    # 8259: vectors from 0x20, only IRQ 4
    out 0x20, al
    mov al, 0x20
    out 0x21, al
    mov al, 4
    out 0x21, al
    mov al, 1
    out 0x21, al
    mov al, 0xEF
    out 0x21, al
    mov word ptr [0x24 * 4], offset handler
    mov word ptr [0x24 * 4 + 2], 0
    mov dx, 0x3F9                   # 16550: interrupt for received data
    mov al, 1
    out dx, al
    mov al, '>'
    out 0xE9, al
    sti
again:
    hlt
    mov al, '.'
    out 0xE9, al
    jmp again
handler:                            # takes all that is there
    mov dx, 0x3FD
    in al, dx
    test al, 1
    jz back
    mov dx, 0x3F8
    in al, dx
    out 0xE9, al
    cmp al, 'q'
    jne handler
    xor al, al
    out 0xF4, al
back:
    mov al, 0x20
    out 0x20, al
    iret
"""


def boot(tmp_path: Path, text: str) -> VirtualMachine:
    path = tmp_path / "guest.s"
    path.write_text(text)
    return boot_vm(path, ram="1M")


def test_a_watch_calls_once_and_knows_where(tmp_path: Path) -> None:
    vm = boot_vm("hello")
    ends: list[int] = []
    watch = ConsoleWatch(vm, b"and", lambda: ends.append(len(vm.platform.console)))
    never = ConsoleWatch(vm, b"no such text", lambda: ends.append(-1))
    closed = ConsoleWatch(vm, b"Hello", lambda: ends.append(-2))
    closed.close()
    run_vm(vm)
    assert ends == [watch.end] and never.end is None and closed.end is None
    console = bytes(vm.platform.console)
    assert console[: ends[0]].endswith(b"and") and console.count(b"and") == 1


def test_a_watch_can_begin_earlier(tmp_path: Path) -> None:
    vm = boot_vm("hello")
    run_vm(vm, until="Hello! Th")
    later = ConsoleWatch(vm, b"This", lambda: None, begin=5)
    not_again = ConsoleWatch(vm, b"This", lambda: None)
    run_vm(vm)
    assert later.end == len("Hello! This") and not_again.end is None


def test_typing_wakes_a_guest_that_waits_for_the_interrupt(tmp_path: Path) -> None:
    vm = boot(tmp_path, BY_INTERRUPT)
    typist = Typist(vm, [Typing(b"ab", b">"), Typing(b"q", b"b.")])
    assert run_vm(vm).ending == Ending.EXIT
    assert bytes(vm.platform.console) == b">a.b.q" and typist.left == ()


# Prints what the interrupt handler has put into a buffer of one byte, looks for the next, and halts: an interrupt
# between looking and halting would be slept over.
LOOKS_THEN_HALTS = BY_INTERRUPT[: BY_INTERRUPT.index("again:")] + """
again:
    cmp byte ptr [buffer], 0
    jne taken
    hlt
    jmp again
taken:
    mov al, [buffer]
    mov byte ptr [buffer], 0
    out 0xE9, al
    cmp al, 'q'
    jne again
    xor al, al
    out 0xF4, al
handler:
    mov dx, 0x3F8
    in al, dx
    mov [buffer], al
    mov al, 0x20
    out 0x20, al
    iret
buffer: .byte 0
"""


@pytest.mark.parametrize("text", [b"q", b"quick", b"typed at line speed, q"])
def test_typing_comes_after_a_guest_has_halted(tmp_path: Path, text: bytes) -> None:
    vm = boot(tmp_path, LOOKS_THEN_HALTS)
    Typist(vm, [Typing(text, b">")])
    assert run_vm(vm).ending == Ending.EXIT
    assert bytes(vm.platform.console) == b">" + text[: text.index(b"q") + 1]


def test_typing_has_the_speed_of_the_line(tmp_path: Path) -> None:
    """7 bits a character (5 data bits, as LCR 0 says) at 9600 bits a second."""
    vm = boot(tmp_path, BY_INTERRUPT)
    Typist(vm, [Typing(b"1234q", b">")])
    run_vm(vm, until=">")
    begin = vm.now
    run_vm(vm)
    assert 5 * 7 / 9600 < (vm.now - begin) / 1e9 < 5 * 7 / 9600 + 1e-5


def test_prompts_are_waited_for_one_behind_the_other(tmp_path: Path) -> None:
    vm = boot(tmp_path, BY_INTERRUPT)
    typist = Typist(vm, [Typing(b"x>", b">"), Typing(b"y", b">"), Typing(b"z", b"no such prompt"), Typing(b"q", b">")])
    assert run_vm(vm).ending == Ending.HALTED
    assert bytes(vm.platform.console) == b">x.>.y." and [typing.text for typing in typist.left] == [b"z", b"q"]


def test_several_prompts_at_once_and_split_ones() -> None:
    vm = boot_vm("hello")
    offered: list[bytes] = []
    vm.platform.uart.receive = offered.append  # type: ignore[method-assign]
    Typist(vm, [Typing(b"1", b"login: "), Typing(b"2", b"word: "), Typing(b"3", b"# ")])
    for piece in (b"# lo", b"gin", b": pass", b"word: # ", b"# "):
        vm.platform.output(piece)
    assert offered == [b"1", b"2", b"3"]


def test_what_was_printed_before_does_not_count(tmp_path: Path) -> None:
    vm = boot(tmp_path, BY_INTERRUPT)
    run_vm(vm, until=">")
    typist = Typist(vm, [Typing(b"q", b">")])
    assert run_vm(vm).ending == Ending.HALTED and len(typist.left) == 1


def test_nothing_is_typed_any_more(tmp_path: Path) -> None:
    vm = boot(tmp_path, BY_INTERRUPT)
    Typist(vm, [Typing(b"q", b">")]).close()
    assert run_vm(vm).ending == Ending.HALTED


@pytest.mark.parametrize(
    ("argument", "typing"),
    [
        (r"root\n@login: ", Typing(b"root\n", b"login: ")),
        ("ls@root@host:~# ", Typing(b"ls", b"root@host:~# ")),
        (r"\r\t\e\0\\\x03\xFF@\x1b[6n", Typing(b"\r\t\x1b\0\\\x03\xff", b"\x1b[6n")),
        (r"a\x40b@c", Typing(b"a@b", b"c")),
        ("grüße@straße", Typing("grüße".encode(), "straße".encode())),
        ("\udcff@\udc80", Typing(b"\xff", b"\x80")),  # bytes of the command line that are no UTF-8
    ],
)
def test_typings_as_text(argument: str, typing: Typing) -> None:
    assert parse_typing(argument) == typing


@pytest.mark.parametrize("argument", ["", "root", "@login", "root@", r"a\q@b", "a\\@b", "a@b\\", r"\x4@b", r"\xgg@b"])
def test_what_is_no_typing(argument: str) -> None:
    with pytest.raises(BadInput) as caught:
        parse_typing(argument)
    assert str(caught.value).startswith("--type: ") and "\n" not in str(caught.value)
