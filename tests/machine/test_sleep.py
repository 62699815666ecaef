"""S3: only memory and the clock keep what they have, and the kernel goes on where it has told the firmware."""

from __future__ import annotations

import pytest

from emu.boot import tables
from emu.machine.vm import Stop
from emu.testing import boot
from tests.guests.programs import program

# What goes on at 0x3000 writes the counter to the exit port: mov al, [0x3100]; out 0xF4, al; hlt
SLEEP = f"""
    mov dword ptr [0x3000], 0xE63100A0
    mov word ptr [0x3004], 0xF4F4
    mov byte ptr [0x3100], 0x21
    mov ax, {tables.WAKING_VECTOR >> 4}
    mov es, ax
    mov dword ptr es:[{tables.WAKING_VECTOR & 15}], {{vector}}
    mov dx, 0x602
    mov ax, {{enabled}}
    out dx, ax
    mov al, 1
    call write_any
    mov al, 3
    call write_any
    mov al, 5
    call write_any
    mov al, 0xB
    out 0x70, al
    mov al, 0x22                    # alarm, 24 hours
    out 0x71, al
    mov dx, 0x604
    mov ax, 0x2401
    out dx, ax
    inc byte ptr [0x3100]           # nothing behind the write is executed
    inc byte ptr [0x3100]
again:
    jmp again
write_any:
    out 0x70, al
    mov al, 0xC0
    out 0x71, al
    ret
"""
RTC, POWER_BUTTON = 0x400, 0x100


@pytest.mark.parametrize("mmu", ["shadow", "nested"])
@pytest.mark.parametrize("cpus", [1, 2])
def test_the_alarm_wakes_the_machine(mmu: str, cpus: int) -> None:
    guest = boot(program("real", SLEEP.format(vector=0x3000, enabled=RTC)), ram="1M", mmu=mmu, cpus=cpus)
    guest.run("3s")
    vm = guest.vm
    assert (vm.exit_value, vm.resets) == (0x21, 0)
    assert 0 < vm.now < 1_100_000_000
    assert vm.cpu.cs.selector == 0x300 and not vm.cpu.cr0 & 1
    assert vm.platform.bus.read(0x600, 2) & 0x8400 == 0x8400  # why it was woken
    assert vm.platform.bus.read(0x602, 2) == 0  # devices are as after power-up


def test_without_a_waking_vector_the_machine_starts_again() -> None:
    guest = boot(program("real", SLEEP.format(vector=0, enabled=RTC)), ram="1M")
    guest.run("3500ms")
    assert guest.vm.exit_value is None and guest.vm.memory.read(0x3100, 1) == b"\x21"
    assert guest.vm.now >= 3_000_000_000  # it sleeps again and again


def test_an_event_that_is_not_enabled_wakes_nobody() -> None:
    guest = boot(program("real", SLEEP.format(vector=0x3000, enabled=POWER_BUTTON)), ram="1M")
    assert guest.vm.run(3_000_000_000) is not Stop.EXIT
    assert guest.vm.exit_value is None and guest.vm.platform.asleep
