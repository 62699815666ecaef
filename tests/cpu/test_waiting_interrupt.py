"""An interrupt that came while IF was 0 is taken at the boundary at which the manual lets it in, and not before."""

from __future__ import annotations

from pathlib import Path

import pytest

from emu.machine.vm import Stop
from emu.session import boot_vm

# Real mode: IRQ 0 waits in the interrupt controller; SET lets it in.  The handler exits with the number of INCs.
REAL = """
.code16
    cli
    xor ax, ax
    mov ds, ax
    mov ss, ax
    mov sp, 0x7000
    mov word ptr [0x80], handler
    mov word ptr [0x82], ax
    mov al, 0x11
    out 0x20, al
    mov al, 0x20
    out 0x21, al
    mov al, 4
    out 0x21, al
    mov al, 1
    out 0x21, al
    mov al, 0xFE
    out 0x21, al
    mov al, 0x30
    out 0x43, al
    mov al, 50
    out 0x40, al
    mov al, 0
    out 0x40, al
    mov al, 0x0A
    out 0x20, al
waits:
    in al, 0x20
    test al, 1
    jz waits
    xor bx, bx
    SET
    inc bx
    inc bx
    inc bx
    cli
    mov al, 0x7F
    out 0xF4, al
handler:
    mov al, bl
    out 0xF4, al
"""
FLAGS = "pushf; pop ax; or ax, 0x200; push ax"
REAL_CASES = {  # SET, and the instructions that are executed before the handler
    "popf": (FLAGS + "; popf", 0),
    "iret": (FLAGS + "; push cs; mov ax, behind; push ax; iret; behind:", 0),
    "sti": ("sti", 1),
    "sti twice": ("sti; sti", 0),  # the first one's shadow holds the second, whose own has no effect
    "sti, cli": ("sti; cli; inc bx; inc bx; inc bx; sti", 4),
    "popf, in the shadow of mov ss": (FLAGS + "; xor ax, ax; mov ss, ax; popf", 0),
    "never": ("nop", 0x7F),
}


@pytest.mark.parametrize("stepped", [False, True])
@pytest.mark.parametrize("name", REAL_CASES)
def test_in_real_mode(tmp_path: Path, name: str, stepped: bool) -> None:
    instructions, executed = REAL_CASES[name]
    source = tmp_path / "guest.s"
    source.write_text(REAL.replace("SET", instructions.replace("; ", "\n    ")))
    vm = boot_vm(source, ram=1 << 20)
    if stepped:
        while (stop := vm.step()) is Stop.STEP:
            pass
    else:
        stop = vm.run(100_000_000)
    assert stop is Stop.EXIT and vm.exit_value == executed
