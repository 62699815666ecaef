"""The run loop: several processors have the same future however the native plane is left, and none sees another's past.

SDM vol. 3A: 9.4 (start of processors), 4.10 (translations), 11.4.7 (INIT).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache

import pytest

from emu.machine.vm import Stop
from emu.observe.trace import format_event
from emu.testing import GuestUnderTest, boot

MMUS = ("shadow", "nested")

ENTRY = """.code16
    jmp start
.include "platform.inc"
.include "protected.inc"
.include "apic.inc"
.equ APIC, 0xFEE00000
.code16
start:
    mov ebx, [0x5000]               # as real mode sees it
    enter_protected_mode gdt_pointer
    mov ecx, MSR_APIC_BASE
    rdmsr
"""
TABLES = """
.balign 8
gdt:
    gdt_flat
gdt_end:
gdt_pointer:
    gdt_pointer_to gdt, gdt_end
idt_pointer:
    .word 0x7FF
    .long 0x10000
"""

# All processors work on one number, and everything they do follows from it: set their timers anew, later or earlier,
# interrupt all others, halt, pause. So every change of order shows.
RACE = (
    ENTRY
    + """
    test ah, 1                      # bit 8: the first one
    jz another
    mov esp, 0x30000
    mov edi, 0x10000
    mov ecx, 256
.Lgate:
    mov eax, comes
    mov word ptr [edi], ax
    mov word ptr [edi + 2], 8
    mov word ptr [edi + 4], 0x8E00
    shr eax, 16
    mov word ptr [edi + 6], ax
    add edi, 8
    dec ecx
    jnz .Lgate
    mov al, 0xFF
    out 0x21, al
    out 0xA1, al
    call setup
    mov dword ptr [APIC_ICR], TO_OTHERS | ASSERT | INIT
    mov dword ptr [APIC_ICR], TO_OTHERS | ASSERT | STARTUP | 8
    jmp work
another:
    mov eax, [APIC_ID]
    shr eax, 12
    add eax, 0x30000
    mov esp, eax
    call setup
    jmp work
setup:
    lidt [idt_pointer]
    mov dword ptr [APIC_SVR], SVR_ENABLE | 0xFF
    mov dword ptr [APIC_TIMER_DIVIDE], DIVIDE_BY_1
    mov dword ptr [APIC_LVT_TIMER], 0x41
    mov dword ptr [APIC_TIMER_COUNT], 20000
    ret
comes:
    lock inc dword ptr [0x40004]
    push eax
    push edx
    imul edx, [0x40000], 1103515245
    add edx, 12345
    mov [0x40000], edx
    shr edx, 13
    and edx, 0x1FFFF
    add edx, 1000
    mov [APIC_TIMER_COUNT], edx
    mov dword ptr [APIC_EOI], 0
    pop edx
    pop eax
    iretd
work:
    sti
.Lagain:
    mov eax, 1
    lock xadd [0x40000], eax
    imul eax, 1664525
    add eax, 1013904223
    mov ecx, eax
    shr ecx, 20
    inc ecx
.Lspin:
    dec ecx
    jnz .Lspin
    test eax, 0x700
    jnz .Lno_timer
    mov edx, eax
    and edx, 0x3FFFF
    add edx, 30000
    mov [APIC_TIMER_COUNT], edx
.Lno_timer:
    test eax, 0xF000
    jnz .Lno_hlt
    hlt
.Lno_hlt:
    test eax, 0xF0000
    jnz .Lno_ipi
    mov dword ptr [APIC_ICR], TO_OTHERS | ASSERT | 0x42
.Lno_ipi:
    test eax, 0xF00000
    jnz .Lno_pause
    pause
    pause
.Lno_pause:
    cmp dword ptr [0x40004], 200
    jb .Lagain
    mov eax, [0x40000]
    mov dx, 0xF4
    out dx, eax
    jmp .Lagain
"""
    + TABLES
)

OPTIONS: dict[str, dict[str, object]] = {
    "2 processors": {"cpus": 2},
    "4 processors": {"cpus": 4, "mmu": "nested"},
    "a seed": {"cpus": 4, "schedule": "seed=5"},
    "short turns": {"cpus": 2, "quantum": "5us"},
}
PIECES: dict[str, Callable[[GuestUnderTest, random.Random], Stop]] = {
    "until a time": lambda guest, numbers: guest.vm.run(guest.vm.now + numbers.randrange(1, 60_000)),
    "by instructions": lambda guest, numbers: guest.vm.step(numbers.randrange(1, 400)),
    "of one processor": lambda guest, numbers: guest.vm.step(
        numbers.randrange(1, 100), cpu=numbers.randrange(2), until=guest.vm.now + 100_000
    ),
    "to every event": lambda guest, numbers: guest.vm.run_to_event(until=guest.vm.now + 50_000),
}

Result = tuple[Stop, int, int | None, list[str]]


def result(guest: GuestUnderTest, stop: Stop) -> Result:
    return stop, guest.now, guest.vm.exit_value, [format_event(event) for event in guest.events]


@cache
def whole(options: str) -> Result:
    guest = boot(RACE, events=True, **OPTIONS[options])
    return result(guest, guest.vm.run())


@pytest.mark.parametrize("how", [*PIECES, "mixed"])
@pytest.mark.parametrize("options", OPTIONS)
def test_a_run_in_pieces_is_the_whole_run(options: str, how: str) -> None:
    guest = boot(RACE, events=True, **OPTIONS[options])
    numbers = random.Random(7)
    stop = Stop.STEP
    while stop in (Stop.STEP, Stop.DEADLINE):
        piece = numbers.choice(list(PIECES)) if how == "mixed" else how
        stop = PIECES[piece](guest, numbers)
    assert stop == Stop.EXIT
    assert result(guest, stop) == whole(options)


@pytest.mark.parametrize("options", OPTIONS)
def test_listening_changes_nothing(options: str) -> None:
    guest = boot(RACE, **OPTIONS[options])
    assert (guest.vm.run(), guest.now, guest.vm.exit_value) == whole(options)[:3]


# The second processor reads 0x5000 through tables that lead to 0x6000; after INIT it has no paging, and reads it anew
# before anything else drops translations.
INIT_ENDS_PAGING = (
    ENTRY
    + """
    test ah, 1
    jz another
    mov dword ptr [0x5000], 5
    mov dword ptr [0x6000], 6
    mov dword ptr [0x20000], 0x21003
    mov edi, 0x21000
    mov eax, 3
    mov ecx, 1024
.Lidentity:
    stosd
    add eax, 4096
    loop .Lidentity
    mov dword ptr [0x21000 + 5 * 4], 0x6003
    call start_other
    mov dword ptr [0x40000], 0
    call start_other
    mov eax, [0x40000]
    out 0xF4, al
    hlt
start_other:
    mov dword ptr [APIC_ICR_HIGH], 1 << 24
    mov dword ptr [APIC_ICR], ASSERT | INIT
    mov dword ptr [APIC_ICR], ASSERT | STARTUP | 8
.Lwait:
    pause
    cmp dword ptr [0x40000], 0
    je .Lwait
    ret
another:
    cmp dword ptr [0x40004], 0
    jne .Ltell
    mov dword ptr [0x40004], 1
    mov eax, 0x20000
    mov cr3, eax
    mov eax, cr0
    or eax, CR0_PG
    mov cr0, eax
    mov ebx, [0x5000]
.Ltell:
    mov [0x40000], ebx
.Lstay:
    hlt
    jmp .Lstay
"""
    + TABLES
)


@pytest.mark.parametrize("mmu", MMUS)
def test_init_ends_the_translations_of_paging(mmu: str) -> None:
    boot(INIT_ENDS_PAGING, cpus=2, mmu=mmu).expect_status(5 << 1 | 1, max_time="10ms")


# A timer that nobody hears ends while the guest sleeps, and none is left that could wake it.
SLEEP = """.code16
    jmp start
start:
    mov al, 0xFF
    out 0x21, al
    out 0xA1, al
    mov al, 0x30
    out 0x43, al
    mov al, 0xFF
    out 0x40, al
    out 0x40, al
    sti
    hlt
    mov ecx, 1000000
.Lspin:
    dec ecx
    jnz .Lspin
    mov al, 2
    out 0xF4, al
"""


def test_a_guest_that_slept_for_good_can_be_run_on_behind_its_hlt() -> None:
    guest = boot(SLEEP)
    assert guest.vm.run() == Stop.HALTED
    slept = guest.now
    assert guest.vm.run(until=slept + 100_000_000) == Stop.EXIT
    assert guest.now > slept + 1_000_000


def test_time_goes_on_in_pieces_of_any_length() -> None:
    vm = boot("smp", cpus=3, append="rounds=5", mmu="nested").vm
    whole = boot("smp", cpus=3, append="rounds=5", mmu="nested").vm
    whole.run()
    stop, times = Stop.DEADLINE, [0]
    while stop == Stop.DEADLINE:
        stop = vm.run(until=times[-1] + 1000)
        assert vm.now >= times[-1] + 1000 or stop == Stop.EXIT
        times.append(vm.now)
    assert (stop, vm.now) == (Stop.EXIT, whole.now)
