"""VMs of a fleet on one hub: what they say to each other is the same in every run, whoever has its turn first."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from emu.errors import BadInput
from emu.fleet.file import input_files, load_fleet
from emu.fleet.fleet import Fleet
from emu.observe.trace import EventWriter

# The VM whose card has the address of the fleet's first one says "a"; each says the next letter to what it hears, and
# ends when the letter was "h" or beyond.
GUEST = """\
.code16
    jmp start
.include "platform.inc"
.include "protected.inc"

.equ CARD, 0xFEA00000
.equ SENT, 0x20000                  # rings of eight descriptors
.equ HEARD, 0x21000
.equ FRAME, 0x22000
.equ BUFFERS, 0x30000

start:
    cli
    xor ax, ax
    mov ds, ax
    enter_protected_mode gdt_register

    mov dx, 0xCF8                   # I/O, memory, bus master
    mov eax, 0x80001804
    out dx, eax
    mov dx, 0xCFC
    mov eax, 7
    out dx, eax

    mov edi, SENT                   # nothing to send, buffers for what comes
    xor eax, eax
    mov ecx, 0x2000 / 4
    rep stosd
    mov ecx, 0
next_buffer:
    mov eax, ecx
    shl eax, 11
    add eax, BUFFERS
    mov ebx, ecx
    shl ebx, 4
    mov [ebx + HEARD], eax
    inc ecx
    cmp ecx, 8
    jne next_buffer

    mov edi, CARD
    mov dword ptr [edi + 0x2800], HEARD
    mov dword ptr [edi + 0x2808], 128
    mov dword ptr [edi + 0x2818], 7
    mov dword ptr [edi + 0x3800], SENT
    mov dword ptr [edi + 0x3808], 128
    mov dword ptr [edi + 0x0100], 0x8002
    mov dword ptr [edi + 0x0400], 2

    xor esi, esi                    # frames sent, and heard
    xor ebp, ebp
    mov eax, 0x61
    cmp byte ptr [edi + 0x5405], 0x56
    je say
listen:
    mov ebx, ebp
    and ebx, 7
    shl ebx, 4
wait:
    pause
    test byte ptr [ebx + HEARD + 12], 1
    jz wait
    mov byte ptr [ebx + HEARD + 12], 0
    mov ebx, [ebx + HEARD]
    movzx eax, byte ptr [ebx + 14]
    inc ebp
    mov ebx, ebp
    add ebx, 7
    and ebx, 7
    mov [edi + 0x2818], ebx
    inc eax
say:
    out 0xE9, al
    mov ebx, FRAME
    mov dword ptr [ebx], 0xFFFFFFFF # to all
    mov dword ptr [ebx + 4], 0xFFFF
    mov [ebx + 14], al
    mov ecx, esi
    and ecx, 7
    shl ecx, 4
    mov [ecx + SENT], ebx
    mov dword ptr [ecx + SENT + 8], 0x0B00003C
    mov byte ptr [ecx + SENT + 12], 0
    inc esi
    mov ebx, esi
    and ebx, 7
    mov [edi + 0x3818], ebx
sending:
    pause
    test byte ptr [ecx + SENT + 12], 1
    jz sending
    cmp al, 0x68
    jb listen
    xor al, al
    out 0xF4, al
    hlt
gdt:
    gdt_flat
gdt_end:
gdt_register:
    gdt_pointer_to gdt, gdt_end
"""
SLEEPER = """\
.code16
    sti
    hlt
"""
PLAN = """\
[machine]
memory = "8M"
max-time = "1s"
[[vm]]
name = "a"
guest = "talker.s"
ram = "1M"
net = "hub=lan,card=e1000,log=a.pcap"
[[vm]]
name = "b"
guest = "talker.s"
ram = "1M"
net = "hub=lan,card=e1000"
start = "2ms"
"""


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], Path]:
    (tmp_path / "talker.s").write_text(GUEST)
    (tmp_path / "sleeper.s").write_text(SLEEPER)

    def plan(text: str) -> Path:
        (tmp_path / "fleet.toml").write_text(text)
        return tmp_path / "fleet.toml"

    return plan


def run(path: Path) -> tuple[list[tuple[str, str]], list[int], bytes]:
    """How each ended and what it printed, when, and the log."""
    log = bytearray()
    fleet = Fleet(load_fleet(path), on_start=lambda vm: vm.events.listen(EventWriter(log.extend)))
    fleet.run(fleet.plan.max_time)
    fleet.close()
    ends = [(member.end.how if member.end else "", member.console.decode()) for member in fleet.members]
    return ends, [member.end.time if member.end else 0 for member in fleet.members], bytes(log)


def test_two_vms_talk(write: Callable[[str], Path]) -> None:
    path = write(PLAN.replace('start = "2ms"', ""))
    first, second = run(path), run(path)
    assert first[0] == [("exit", "acegi"), ("exit", "bdfh")]
    assert first == second
    assert (path.parent / "a.pcap").stat().st_size > 7 * 60
    assert str(path.parent / "a.pcap") in input_files(load_fleet(path))


def test_cards_have_addresses_of_their_own_and_logs_files_of_their_own(write: Callable[[str], Path]) -> None:
    macs = [vm.options.net_plan.mac[-1] for vm in load_fleet(write(PLAN)).vms if vm.options.net_plan]
    assert macs == [0x56, 0x57]
    with pytest.raises(BadInput, match="net: log=.*a.pcap is that of a already"):
        load_fleet(write(PLAN.replace('card=e1000"', 'card=e1000,log=a.pcap"')))
    with pytest.raises(BadInput, match="net: 'lan' is none of"):
        load_fleet(write(PLAN.replace("hub=lan,card=e1000,log=a.pcap", "lan")))


def test_those_who_can_only_wait_for_each_other_end(write: Callable[[str], Path]) -> None:
    plan = PLAN.replace("talker.s", "sleeper.s").replace(",log=a.pcap", "")
    ends, times, _ = run(write(plan))
    assert [how for how, _ in ends] == ["halted", "halted"]
    assert min(times) >= 2_000_000  # the second one might have said something
