"""Guests that ask devices for gigabytes with one store: the store ends soon, and so does everything that waits."""

from __future__ import annotations

from pathlib import Path

import pytest

from emu.devices.bandwidth import BURST
from emu.session import boot_vm, run_vm

# NDESC descriptors of 128 MiB each, all made available with one notification
STORM = """
.code16
    jmp start
.include "platform.inc"
.include "protected.inc"
.equ CODE, 8
.equ DATA, 0x10
start:
    cli
    enter_protected_mode gdtp
    mov edi, 0x20000
    mov ecx, 128
fill:
    mov dword ptr [edi], 0
    mov dword ptr [edi+4], 0
    mov dword ptr [edi+8], 0x8000000
    mov dword ptr [edi+12], 0
    add edi, 16
    dec ecx
    jnz fill
    mov dword ptr [0x21000], 0x00800001
    mov edi, 0x21004
    xor eax, eax
next:
    mov [edi], ax
    add edi, 2
    inc eax
    cmp eax, 128
    jb next
    mov ebx, BASE
    mov dword ptr [ebx+0x70], 0
    mov dword ptr [ebx+0x70], 3
    mov dword ptr [ebx+0x24], 1
    mov dword ptr [ebx+0x20], 1
    mov dword ptr [ebx+0x70], 0xB
    mov dword ptr [ebx+0x30], QUEUE
    mov dword ptr [ebx+0x38], 128
    mov dword ptr [ebx+0x80], 0x20000
    mov dword ptr [ebx+0x90], 0x21000
    mov dword ptr [ebx+0xa0], 0x22000
    mov dword ptr [ebx+0x44], 1
    mov dword ptr [ebx+0x70], 0xF
    mov dword ptr [ebx+0x50], QUEUE
    mov ecx, 1000000
wait:
    dec ecx
    jnz wait
    mov al, 0
    out 0xF4, al
    hlt
gdt: gdt_flat
gdtend:
gdtp: gdt_pointer_to gdt, gdtend
"""


@pytest.mark.parametrize("mmu", ["shadow", "nested"])
def test_one_notification_prints_no_more_than_the_bus_carries(tmp_path: Path, mmu: str) -> None:
    source = tmp_path / "storm.s"
    source.write_text(STORM.replace(".code16", ".code16\n.equ BASE, 0xFEB01000\n.equ QUEUE, 1", 1))
    vm = boot_vm(source, ram="2M", mmu=mmu)
    heard: list[int] = []
    vm.platform.listen(lambda data: heard.append(len(data)))
    outcome = run_vm(vm)
    assert outcome.status == 1
    assert max(heard) <= BURST and BURST < sum(heard) <= BURST + vm.now


def test_one_notification_gives_up_no_more_pages_than_the_bus_carries(tmp_path: Path) -> None:
    source = tmp_path / "storm.s"
    source.write_text(STORM.replace(".code16", ".code16\n.equ BASE, 0xFEB02000\n.equ QUEUE, 0", 1))
    vm = boot_vm(source, ram="2M", policies=["balloon:target=16K"])
    balloon = vm.dmm.balloon.policy
    assert balloon is not None
    told: list[int] = []
    inflate = balloon.inflate
    vm.platform.virtio_balloon._inflate = lambda gfns: (told.append(len(gfns)), inflate(gfns))[1]
    outcome = run_vm(vm)
    assert outcome.status in (1, 134)  # gfn 0 is given up, too
    assert told and max(told) <= 1024
