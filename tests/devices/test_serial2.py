"""The second serial port: its ports, its interrupt, and where its output goes."""

from __future__ import annotations

from pathlib import Path

import pytest

import emu
from emu.cli import main

ECHO = """
.code16
    mov al, 0x11                    # 8259: vectors from 0x20, only IRQ 3
    out 0x20, al
    mov al, 0x20
    out 0x21, al
    mov al, 4
    out 0x21, al
    mov al, 1
    out 0x21, al
    mov al, 0xF7
    out 0x21, al
    mov word ptr [0x23 * 4], offset handler
    mov word ptr [0x23 * 4 + 2], 0
    mov dx, 0x2F9
    mov al, 1
    out dx, al
    mov al, '>'
    dec dx
    out dx, al
    mov dx, 0x3F8
    out dx, al
    sti
again:
    hlt
    jmp again
handler:
    mov dx, 0x2F8
    in al, dx
    out dx, al
    mov al, 0
    out 0xF4, al
"""


def kernel(tmp_path: Path) -> Path:
    path = tmp_path / "kernel.s"
    path.write_text(ECHO)
    return path


def test_it_prints_and_interrupts(tmp_path: Path) -> None:
    vm = emu.boot_vm(kernel(tmp_path), ram="1M", devices=["serial2"])
    assert vm.platform.uart2 is not None
    vm.platform.uart2.receive(b"!")
    assert emu.run_vm(vm, max_time=100_000_000).status == 1
    assert (bytes(vm.platform.serial2), bytes(vm.platform.console)) == (b">!", b">")


def test_without_it_there_is_nothing(tmp_path: Path) -> None:
    vm = emu.boot_vm(kernel(tmp_path), ram="1M")
    assert vm.platform.uart2 is None and vm.platform.bus.read(0x2FD, 1) == 0xFF


def test_its_output_goes_to_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "serial2"
    assert main(["run", str(kernel(tmp_path)), "--serial2", str(file), "--max-time", "0.1"]) == 124
    assert file.read_bytes() == b">" and capsys.readouterr().out == ">"
    assert main(["run", str(kernel(tmp_path)), "--serial2", str(tmp_path / "kernel.s")]) == 2
    assert "is used by this run already" in capsys.readouterr().err
