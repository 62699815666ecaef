"""Reset: the machine starts again, or the run ends."""

from __future__ import annotations

from pathlib import Path

import pytest

import emu
from emu.cli import main
from emu.machine.vm import Stop
from emu.observe.outcome import STATUS_LIMIT, STATUS_RESET, Ending
from emu.testing import boot
from tests.devices.test_platform import RESETS
from tests.guests.programs import program

# Counts its starts in memory that no image lies in, and in a byte of the image; ends when it has started three times.
COUNT = """
    inc byte ptr [0x3000]
    inc byte ptr [started]
    mov al, [0x3000]
    cmp al, 3
    jb again
    shl al, 4
    or al, [started]
    out 0xF4, al                    # 0x31: three starts, of which the image has seen one
again:
    {reset}
    jmp again
started: .byte 0
"""


@pytest.mark.parametrize("mmu", ["shadow", "nested"])
@pytest.mark.parametrize("how", RESETS)
def test_memory_stays_and_the_image_is_loaded_again(how: str, mmu: str) -> None:
    guest = boot(program("real", COUNT.format(reset=RESETS[how])), ram="1M", mmu=mmu)
    guest.run("10ms")
    assert (guest.vm.exit_value, guest.vm.resets) == (0x31, 2)


def test_an_init_to_the_first_processor_is_a_reset() -> None:
    reset = "mov ecx, 0x1B\n rdmsr\n or ah, 4\n wrmsr\n mov ecx, 0x830\n xor edx, edx\n mov eax, 0x500\n wrmsr"
    guest = boot(program("real", COUNT.format(reset=reset)), ram="1M")
    guest.run("10ms")
    assert (guest.vm.exit_value, guest.vm.resets) == (0x31, 2)


@pytest.mark.parametrize("mode", ["protected", "paging32", "pae", "long"])
@pytest.mark.parametrize("mmu", ["shadow", "nested"])
def test_the_processor_is_in_real_mode_again(mode: str, mmu: str) -> None:
    """The program's way to its mode begins in real mode, with the interrupt table of real mode and caches on."""
    guest = boot(program(mode, COUNT.format(reset=RESETS["keyboard controller"])), ram="4M", mmu=mmu)
    before = guest.vm.cpu.save()
    while not guest.vm.resets:
        guest.vm.step()
    assert guest.vm.cpu.save() == before
    guest.run("100ms")
    assert (guest.vm.exit_value, guest.vm.resets) == (0x31, 2)


def test_pages_that_a_policy_keeps_are_loaded_again() -> None:
    code = """
    mov ax, 0x2000                  # touch more than the pool has room for
touch:
    mov es, ax
    inc byte ptr es:[0]
    add ax, 0x100
    cmp ax, 0x9000
    jb touch
    """ + COUNT.format(reset=RESETS["PCI"])
    guest = boot(program("real", code), ram="1M", pool="64K", policies=["swap"])
    guest.run("10ms")
    assert (guest.vm.exit_value, guest.vm.resets) == (0x31, 2)
    assert guest.vm.memory.read(0x2_1000, 1) == b"\3"


def test_devices_are_as_after_power_up() -> None:
    vm = boot(program("real", "hlt"), ram="1M").vm
    bus, mmio = vm.platform.bus, vm.platform.mmio

    def registers() -> list[int]:
        ports = (0x21, 0xA1, 0x4D0, 0x61, 0x64, 0x92, 0x3F9, 0x3FB, 0x3C1, 0x1F6, 0x604)
        gpas = (0xFEC0_0010, 0xFED0_0010, 0xFEE0_0080, 0xFEE0_00F0, 0xFEB0_0070)
        return [bus.read(port, 1) & ~0x10 for port in ports] + [mmio.read(gpa, 4) for gpa in gpas]

    before = registers()
    for port, value in (
        (0x20, 0x11), (0x21, 0x50), (0x21, 4), (0x21, 1), (0x21, 0xFB), (0xA1, 0x55), (0x4D0, 0x20), (0x61, 3),
        (0x92, 4), (0x3FB, 0x1B), (0x3F9, 0x0F), (0x3C0, 0x11), (0x1F6, 0xB0), (0x43, 0x34), (0x40, 1), (0x40, 0),
        (0x70, 0x0B), (0x71, 0x42), (0x70, 0x40), (0x71, 0x77), (0x64, 0xD1), (0x60, 0xFD),
    ):  # fmt: skip
        bus.write(port, 1, value)
    mmio.write(0xFED0_0010, 4, 3)
    mmio.write(0xFEE0_0080, 4, 0x20)
    mmio.write(0xFEC0_0000, 4, 0x12)
    mmio.write(0xFEC0_0010, 4, 0x42)
    mmio.write(0xFEB0_0070, 4, 3)
    assert not vm.native.a20_mask & 1 << 20
    assert registers() != before
    bus.write(0xCF9, 1, 6)
    assert vm.run(1_000_000) == Stop.HALTED
    mmio.write(0xFEC0_0000, 4, 0)
    assert registers() == before and vm.native.a20_mask == -1
    bus.write(0x70, 1, 0x40)
    assert bus.read(0x71, 1) == 0x77  # what the battery keeps
    bus.write(0x70, 1, 0x0B)
    assert bus.read(0x71, 1) == 0x02


def test_input_that_nobody_has_looked_at_still_comes() -> None:
    code = f"""
    inc byte ptr [0x3000]
    cmp byte ptr [0x3000], 2
    je look
    {RESETS["port 0x92"]}
    hlt
look:
    mov dx, 0x3FD
    in al, dx
    test al, 1
    jz look
    mov dx, 0x3F8
    in al, dx
    out 0xF4, al
    """
    guest = boot(program("real", code), ram="1M", serial_input=b"!")
    guest.run("1ms")
    assert guest.vm.exit_value == ord("!")


TWO = """
    inc byte ptr [0x3000]
    mov ecx, 0x1B                   # IA32_APIC_BASE
    rdmsr
    test ah, 1
    jz other
    cmp byte ptr [0x3000], 3        # the first start counts for both processors
    je done
    or ah, 4
    wrmsr
    mov ecx, 0x830
    xor edx, edx
    mov eax, 0xC4500
    wrmsr
    mov eax, 0xC4608
    wrmsr
    cli
    hlt
done:
    mov al, [0x3000]
    out 0xF4, al
other:
    mov dx, 0xCF9
    mov al, 6
    out dx, al
    hlt
"""


@pytest.mark.parametrize("schedule", [None, "seed=5"])
def test_another_processor_resets_the_machine(schedule: str | None) -> None:
    guest = boot(program("real", TWO), ram="1M", cpus=2, schedule=schedule)
    guest.run("10ms")
    assert (guest.vm.exit_value, guest.vm.resets) == (3, 1)
    assert guest.vm.processors[1].activity == "waiting"


def test_a_stepped_run_is_the_same() -> None:
    text = program("real", COUNT.format(reset=RESETS["PCI"]))
    free, stepped = boot(text, ram="1M").vm, boot(text, ram="1M").vm
    assert free.run() == Stop.EXIT
    while stepped.step() == Stop.STEP:
        pass
    assert (stepped.resets, stepped.now, stepped.exit_value) == (2, free.now, free.exit_value)


def test_a_reset_can_end_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = program("real", COUNT.format(reset=RESETS["PCI"]))
    outcome = emu.run_vm(boot(text, ram="1M", no_reboot=True).vm)
    assert (outcome.ending, outcome.status) == (Ending.RESET, STATUS_RESET)
    path = tmp_path / "kernel.s"
    path.write_text(text)
    assert main(["run", str(path), "--no-reboot"]) == STATUS_RESET == 122
    assert "the guest reset the machine; status 122" in capsys.readouterr().err
    path.write_text(program("real", f"{RESETS['PCI']}\n hlt"))
    assert main(["run", str(path), "--max-time", "0.001"]) == STATUS_LIMIT
    assert " resets); status 124" in capsys.readouterr().err


def test_a_fleet_tells_a_reset_from_success(tmp_path: Path) -> None:
    (tmp_path / "kernel.s").write_text(program("real", f"{RESETS['PCI']}\n hlt"))
    plan = tmp_path / "plan.toml"
    plan.write_text(
        '[machine]\nmemory = "8M"\n[[vm]]\nname = "a"\nguest = "kernel.s"\nram = "1M"\nno-reboot = true\n', "utf-8"
    )
    assert main(["fleet", str(plan)]) == 1


RESUMED = """
    cmp byte ptr [0x3000], 0        # how far it is, where no image lies
    jne loaded_again
    inc byte ptr [0x3000]
    mov word ptr [0x467], offset resumed
    mov word ptr [0x469], 0
    mov al, 0x0F
    out 0x70, al
    mov al, 0x0A
    out 0x71, al
    mov al, 0xB5
    out 0x21, al
    inc byte ptr [started]
    {reset}
again:
    jmp again
resumed:
    xor ax, ax
    mov ds, ax
    in al, 0x21
    cmp al, 0xB5
    jne failed
    cmp byte ptr [started], 1
    jne failed
    inc byte ptr [0x3000]
    {restart}
loaded_again:
    mov al, [0x3000]
    shl al, 4
    or al, [started]
    out 0xF4, al                    # 0x20: the image was loaded again
failed:
    mov al, 0xFF
    out 0xF4, al
started: .byte 0
"""
OF_THE_PROCESSOR = {
    **{how: RESETS[how] for how in ("port 0x92", "keyboard controller")},
    "output port": "mov al, 0xD1\n out 0x64, al\n mov al, 0xDE\n out 0x60, al",
    "0xCF9": "mov dx, 0xCF9\n mov al, 0\n out dx, al\n mov al, 4\n out dx, al",
    "INIT": "mov ecx, 0x1B\n rdmsr\n or ah, 4\n wrmsr\n mov ecx, 0x830\n xor edx, edx\n mov eax, 0x500\n wrmsr",
    "triple fault": "lidt [0x3100]\n int3",
}


def kernel(tmp_path: Path, text: str) -> str:
    path = tmp_path / "kernel.s"
    path.write_text(program("real", text))
    return str(path)


@pytest.mark.parametrize("mmu", ["shadow", "nested"])
@pytest.mark.parametrize("how", OF_THE_PROCESSOR)
def test_a_kernel_goes_on_behind_a_reset_of_its_processor(tmp_path: Path, how: str, mmu: str) -> None:
    """As kvm-unit-tests' init does: by the BIOS to 40:67, then by the BIOS to its first instruction again."""
    text = RESUMED.format(reset=OF_THE_PROCESSOR[how], restart="ljmp 0xFFFF:0")
    vm = emu.boot_vm(kernel(tmp_path, text), ram="1M", mmu=mmu)
    emu.run_vm(vm, max_time=5_000_000_000)
    assert (vm.exit_value, vm.resets) == (0x20, 1)


def test_int_19h_boots_the_kernel_again(tmp_path: Path) -> None:
    path = tmp_path / "kernel.s"
    path.write_text(".code16\n" + COUNT.format(reset="int 0x19"))
    vm = emu.boot_vm(path, ram="1M")
    emu.run_vm(vm, max_time=5_000_000_000)
    assert (vm.exit_value, vm.resets) == (0x31, 2)


def test_a_jump_into_the_bios_is_a_reset(tmp_path: Path) -> None:
    vm = emu.boot_vm(kernel(tmp_path, COUNT.format(reset="ljmp 0xF000:0xFFF0")), ram="1M", no_reboot=True)
    assert emu.run_vm(vm, max_time=5_000_000_000).status == STATUS_RESET
