"""Typing at the keyboard, and prompts on the text screen."""

from __future__ import annotations

from pathlib import Path

import pytest

from emu.cli import main
from emu.errors import BadInput
from emu.machine.vm import VirtualMachine
from emu.observe.outcome import Ending
from emu.observe.typist import Typing, Typist, parse_keys_typing, parse_typing
from emu.session import boot_vm, run_vm
from emu.testing import boot

# Shows what is typed at the keyboard on the screen alone, a prompt before each line, and prints how a line ends: with
# Enter, or with F1, which ends the run.  It polls, or halts between two keys.
SHELL = """
.code16
    mov ax, 0xB800
    mov es, ax
    xor di, di
    mov ax, 0x0720
    mov cx, 2000
    rep stosw
    xor di, di
prompt:
    mov si, offset text
    call show
key:
    call cursor
wait:
    in al, 0x64
    test al, 1
    jz wait
    in al, 0x60
    cmp al, 0x3B                    # F1
    je end
    cmp al, 0x1C                    # Enter
    je enter
    test al, 0x80                   # a release
    jnz key
    mov si, offset letters
search:
    mov dx, [si]
    add si, 2
    cmp dl, 0
    je key
    cmp dl, al
    jne search
    mov al, dh
    mov ah, 7
    stosw
    jmp key
enter:
    mov ax, di
    mov bl, 160
    div bl
    inc al
    mul bl
    mov di, ax
    jmp prompt
end:
    mov al, '!'
    out 0xE9, al
    xor al, al
    out 0xF4, al
show:
    lodsb
    test al, al
    jz shown
    mov ah, 7
    stosw
    jmp show
shown:
    ret
cursor:
    mov bx, di
    shr bx, 1
    mov dx, 0x3D4
    mov al, 0x0E
    mov ah, bh
    out dx, ax
    mov al, 0x0F
    mov ah, bl
    out dx, ax
    ret
text: .asciz "C:\\\\> "
letters: .byte 0x20, 'd', 0x17, 'i', 0x13, 'r', 0x34, '.', 0, 0
"""


def start(tmp_path: Path, text: str = SHELL, **options: object) -> VirtualMachine:
    path = tmp_path / "guest.s"
    path.write_text(text)
    return boot_vm(path, ram="1M", **options)


def keys(*arguments: str) -> list[Typing]:
    return [parse_keys_typing(argument) for argument in arguments]


@pytest.mark.parametrize("mmu", ["shadow", "nested"])
def test_prompts_on_the_screen_alone(tmp_path: Path, mmu: str) -> None:
    vm = start(tmp_path, mmu=mmu)
    prompt = r"C:\\> "
    typist = Typist(vm, keys(f"dir<enter>@{prompt}", f"d.<enter>@{prompt}", f"<enter>@{prompt}", f"<f1>@{prompt}"))
    assert run_vm(vm, max_time=5_000_000_000).ending == Ending.EXIT
    rows = [row.rstrip() for row in vm.platform.vga.text().rows if row.strip()]
    assert rows == ["C:\\> dir", "C:\\> d.", "C:\\>", "C:\\>"] and typist.left == ()
    assert bytes(vm.platform.console) == b"!"


def test_a_prompt_that_is_there_counts_once(tmp_path: Path) -> None:
    vm = start(tmp_path)
    typist = Typist(vm, keys(r"dir@C:\\>", r"<f1>@C:\\>"))
    assert run_vm(vm, max_time=1_000_000_000).ending == Ending.MAX_TIME
    assert len(typist.left) == 1 and "C:\\> dir" in vm.platform.vga.text().rows[0]


def test_a_prompt_from_before_does_not_count(tmp_path: Path) -> None:
    vm = start(tmp_path)
    run_vm(vm, max_time=10_000_000)
    typist = Typist(vm, keys(r"<f1>@C:\\> "))
    assert run_vm(vm, max_time=1_000_000_000).ending == Ending.MAX_TIME and len(typist.left) == 1


def test_one_order_for_both(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "guest.s").write_text(SHELL)
    guest = str(tmp_path / "guest.s")
    options = ["--type", r"x@C:\\", "--keys", r"<f1>@C:\\> ", "--max-time", "1"]
    assert main(["run", guest, *options]) == 124  # the second waits for another prompt
    assert "--keys: the console never printed" in capsys.readouterr().err
    assert main(["run", guest, "--keys", r"<enter>@C:\\>", "--keys", r"<f1>@C:\\> ", "--max-time", "1"]) == 1


def test_a_guest_that_halts_for_ever_ends_though_somebody_watches(tmp_path: Path) -> None:
    vm = start(tmp_path, SHELL.replace("wait:", "wait:\n    sti\n    hlt"))
    typist = Typist(vm, keys("<f1>@no such prompt"))
    assert run_vm(vm).ending == Ending.HALTED and len(typist.left) == 1


def test_a_guest_that_halts_is_looked_at(tmp_path: Path) -> None:
    """It halts 100 us after it has shown the prompt, long before the next look."""
    interrupts = """
    mov al, 0x11
    out 0x20, al
    mov al, 0x20
    out 0x21, al
    mov al, 4
    out 0x21, al
    mov al, 1
    out 0x21, al
    mov al, 0xFD
    out 0x21, al
    mov word ptr [0x21 * 4], offset handler
    mov word ptr [0x21 * 4 + 2], 0
    """
    handler = "handler:\n    push ax\n    mov al, 0x20\n    out 0x20, al\n    pop ax\n    iret\n"
    text = SHELL.replace(".code16\n", f".code16\n    jmp begin\n{handler}begin:\n{interrupts}", 1)
    halting = "    jnz take\n    sti\n    hlt\n    jmp wait\ntake:\n    in al"
    vm = start(tmp_path, text.replace("    jz wait\n    in al", halting))
    Typist(vm, keys(r"<f1>@C:\\> "))
    assert run_vm(vm, max_time=60_000_000_000).ending == Ending.EXIT
    assert vm.now < 20_000_000


def test_watching_touches_no_page(tmp_path: Path) -> None:
    vm = start(tmp_path, ".code16\nagain: inc ax\n jmp again\n")
    Typist(vm, keys("a@b"))
    used = vm.pool.used
    run_vm(vm, max_time=50_000_000)
    assert vm.pool.used == used + 1  # the page of the code


def test_in_a_test(tmp_path: Path) -> None:
    guest = boot(SHELL, ram="1M")
    guest.run("20ms")
    assert guest.screen.startswith("C:\\>\n\n")
    guest.press("dir")
    guest.run("100ms")
    assert guest.screen.startswith("C:\\> dir\n")
    with pytest.raises(BadInput, match="<nokey>"):
        guest.press("a<nokey>")


@pytest.mark.parametrize("argument", ["dir", "@x", "<f13>@x", r"\q@x", "ä@x"])
def test_what_is_no_typing(argument: str) -> None:
    with pytest.raises(BadInput) as caught:
        parse_keys_typing(argument)
    assert str(caught.value).startswith("--keys: ") and "\n" not in str(caught.value)


def test_options_know_their_names() -> None:
    assert parse_typing("a@b").option == "--type" and parse_keys_typing("a@b").option == "--keys"
