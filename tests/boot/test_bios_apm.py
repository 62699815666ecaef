"""The built-in BIOS: Advanced Power Management."""

from __future__ import annotations

from pathlib import Path

from emu.observe.outcome import Ending
from emu.session import run_vm
from tests.boot.bios_disks import Result, call, probe, program_disk, source, start


def test_it_is_there_and_can_be_connected(tmp_path: Path) -> None:
    steps = [0x5300, 0x5301, 0x530E, 0x5302, 0x530A, 0x530B, 0x53FF]
    calls = [call(0x15, eax=ax, ebx=0, ecx=0x102) for ax in steps]
    found = [r for r in probe(tmp_path, *calls) if isinstance(r, Result)]
    assert [r.carry for r in found] == [False, False, False, True, False, True, True]
    assert (found[0].eax & 0xFFFF, found[0].bx, found[0].ecx & 0xFFFF) == (0x0102, 0x504D, 0)
    assert found[2].eax & 0xFFFF == 0x0102
    assert [found[n].ah for n in (3, 5, 6)] == [0x06, 0x80, 0x0C]
    assert found[4].bx >> 8 == 1  # on mains


def test_it_switches_the_machine_off(tmp_path: Path) -> None:
    program = """
.code16
    mov ax, 0x5301
    xor bx, bx
    int 0x15
    mov ax, 0x5307
    mov bx, 1
    mov cx, 3
    int 0x15
    mov al, 1
    out 0xF4, al
"""
    guest = start(tmp_path, program_disk(source(program, 0x7E00)))
    assert run_vm(guest.vm, max_time=1_000_000_000).ending is Ending.POWER_OFF
