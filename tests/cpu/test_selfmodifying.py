"""Code that changes itself: each executed byte takes its time once, and a step is one instruction."""

from __future__ import annotations

import pytest
from capstone import CS_ARCH_X86, CS_MODE_16, Cs

from emu.machine.vm import Stop
from emu.observe.trace import format_event
from emu.testing import GuestUnderTest, boot

MMUS = ("shadow", "nested")
POLICIES = {"demand": ("demand",), "static": ("static",), "retire": ("retire:every=1us,count=1000",)}

# Stores into its own block, before and behind itself, and at last over itself.
CHANGES_ITSELF = """
.code16
    mov cx, 20
again:
    mov byte ptr [before], 0x90
before:
.rept 16
    nop
.endr
    mov byte ptr [behind + 40], 0x90
behind:
.rept 200
    nop
.endr
    mov word ptr [itself], 0x06C7
itself:
    mov word ptr [itself], 0x06C7
    dec cx
    jnz again
    mov al, 0
    out 0xF4, al
    hlt
"""

def bytes_of_the_loop() -> int:
    """From behind MOV CX to the conditional jump, that included."""
    code = boot(CHANGES_ITSELF, ram="2M").vm.memory.read(0x8003, 0x200)
    size = 0
    for instruction in Cs(CS_ARCH_X86, CS_MODE_16).disasm(bytes(code), 0):
        size += instruction.size
        if instruction.mnemonic == "jne":
            break
    return size


OVER_ITSELF = """
.code16
    mov bx, 0x3000
    mov ds, bx
    push bx
    xor ax, ax
    xor bx, bx
    xor si, si
    push ax
    retf                # 3000:0, all zeros: add [bx + si], al, which stores to its own two bytes
"""


def run(text: str, mmu: str, policies: tuple[str, ...]) -> GuestUnderTest:
    guest = boot(text, mmu=mmu, ram="2M", policies=policies, pool="2M" if "static" in policies else "1900K")
    assert guest.run(max_time="10ms") == 1
    return guest


@pytest.mark.parametrize("mmu", MMUS)
def test_each_byte_counts_once(mmu: str) -> None:
    times = {name: run(CHANGES_ITSELF, mmu, policies).now for name, policies in POLICIES.items()}
    longer = CHANGES_ITSELF.replace("mov cx, 20", "mov cx, 21")
    assert len(set(times.values())) == 1
    size = run(longer, mmu, ()).now - times["demand"]
    assert size == bytes_of_the_loop()
    assert times["demand"] - 20 * size == 3 + 2 + 2 + 1 + 500  # what surrounds the loop, and the time of a port


@pytest.mark.parametrize("mmu", MMUS)
@pytest.mark.parametrize("steps", [1, 3, 100])
def test_a_stepped_run_is_the_free_run(mmu: str, steps: int) -> None:
    free = boot(CHANGES_ITSELF, mmu=mmu, ram="2M", events=True)
    assert free.vm.run() is Stop.EXIT
    guest = boot(CHANGES_ITSELF, mmu=mmu, ram="2M", events=True)
    while (stop := guest.vm.step(steps)) is Stop.STEP:
        pass
    assert stop is Stop.EXIT and guest.now == free.now
    assert [format_event(event) for event in guest.events] == [format_event(event) for event in free.events]


@pytest.mark.parametrize("mmu", MMUS)
def test_a_step_over_an_instruction_that_stores_over_itself(mmu: str) -> None:
    guest = boot(OVER_ITSELF, mmu=mmu, ram="2M")
    places = []
    for _ in range(12):
        assert guest.vm.step() is Stop.STEP
        places.append(guest.vm.cpu.rip)
    assert places[7:] == [0, 2, 4, 6, 8]


@pytest.mark.parametrize("mmu", MMUS)
@pytest.mark.parametrize("policy", ["demand", "static"])
@pytest.mark.parametrize("vector", ["int3", "int 3", "ud2"])
def test_a_step_ends_at_the_handler(mmu: str, policy: str, vector: str) -> None:
    """Whether or not its page is there yet."""
    text = f"""
.code16
    mov word ptr [12], 0
    mov word ptr [14], 0x3000
    mov word ptr [24], 0
    mov word ptr [26], 0x3000
    mov ax, 0x4000
    mov ss, ax
    mov sp, 0x100
    {vector}
"""
    guest = boot(text, mmu=mmu, ram="2M", policies=(policy,))
    for _ in range(7):
        assert guest.vm.step() is Stop.STEP
    at = guest.vm.cpu.rip
    assert guest.vm.step() is Stop.STEP
    assert (guest.vm.cpu.cs.selector, guest.vm.cpu.rip) == (0x3000, 0), at
