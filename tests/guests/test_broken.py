"""Guests that destroy themselves: they end with a crash report or at a limit, never with a fault or a hang of emu."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from emu.devices.device import Device
from emu.dmm.p2m import PageType
from emu.dmm.policy import Policy
from emu.testing import GuestUnderTest
from tests.guests.programs import MODES, program

Boot = Callable[..., GuestUnderTest]

CRASH, LIMIT = 134, 124
MMUS = pytest.mark.parametrize("mmu", ["shadow", "nested"])
PROTECTED_MODES = [mode for mode in MODES if mode != "real"]
PAGING_MODES = ["paging32", "pae", "long"]
HOLE = 0x3F00_0000  # a gpa and gva without anything behind it

# name: (modes, code, what may come of it)
BROKEN = {
    "jumps into nothing": (PROTECTED_MODES, f"mov eax, {HOLE}\n jmp rax_or_eax", {CRASH}),
    "jumps into nothing from real mode": (["real"], "ljmp 0xFFFF:0xFFF0", {CRASH, LIMIT}),
    "executes zeros": (list(MODES), "mov REG_A, 0x4000\n jmp REG_A", {CRASH, LIMIT}),
    "invalid instruction": (list(MODES), "ud2", {CRASH}),
    "divides by zero": (list(MODES), "xor eax, eax\n div eax", {CRASH}),
    "breakpoint": (list(MODES), "int3", {CRASH}),
    "software interrupt": (list(MODES), "int 0x80", {CRASH}),
    "single step": (list(MODES), "pushf\n or word ptr [REG_SP], 0x100\n popf\n nop\n nop", {CRASH}),
    "reads nothing": (PAGING_MODES, f"mov al, [{HOLE}]", {CRASH}),
    "writes nothing": (PAGING_MODES, f"mov [{HOLE}], al", {CRASH}),
    "loads a wild CR3": (PAGING_MODES, "mov eax, 0x7654F000\n mov cr3, REG_A\n nop", {CRASH}),
    "loads CR3 with its code as tables": (PAGING_MODES, "mov eax, 0x8000\n mov cr3, REG_A\n nop", {CRASH, LIMIT}),
    "clears its own tables": (PAGING_MODES, "mov edi, 0x10000\n mov ecx, 0x1000\n xor eax, eax\n rep stosd\n"
                              " mov REG_A, cr3\n mov cr3, REG_A\n nop", {CRASH}),
    "points its tables at themselves": (PAGING_MODES, "mov dword ptr [0x10000], 0x10007\n mov REG_A, cr3\n"
                                        " mov cr3, REG_A\n nop\n jmp $", {CRASH, LIMIT}),
    "turns paging off": (["paging32", "pae"], "mov eax, cr0\n and eax, 0x7FFFFFFF\n mov cr0, eax\n ud2", {CRASH}),
    "turns paging on without tables": (["protected"], "mov eax, cr0\n bts eax, 31\n mov cr0, eax\n nop", {CRASH}),
    "turns paging on with CR3 in a hole": (["protected"], f"mov eax, {HOLE}\n mov cr3, eax\n mov eax, cr0\n"
                                           " or eax, 0x80000000\n mov cr0, eax\n nop", {CRASH}),
    "fills its stack": (list(MODES), "again:\n push REG_A\n jmp again", {CRASH, LIMIT}),
    "calls without end": (list(MODES), "again:\n call again", {CRASH, LIMIT}),
    "has its stack nowhere": (PROTECTED_MODES, f"mov esp, {HOLE}\n push REG_A\n pop REG_A\n int3", {CRASH}),
    "wraps its stack": (PROTECTED_MODES, "xor esp, esp\n push REG_A\n int3", {CRASH}),
    "loads a GDT in a hole": (PROTECTED_MODES, f"mov dword ptr [gdt_pointer + 2], {HOLE}\n lgdt [gdt_pointer]\n"
                              " mov ax, 0x10\n mov ds, ax\n mov ss, ax", {CRASH}),
    "loads an empty GDT": (PROTECTED_MODES, "lgdt [no_idt]\n mov ax, 0x10\n mov ss, ax", {CRASH}),
    "loads a selector out of range": (PROTECTED_MODES, "mov ax, 0x7FF8\n mov ss, ax", {CRASH}),
    "loads an IDT in a hole": (PROTECTED_MODES, f"mov word ptr [no_idt], 0xFFF\n mov dword ptr [no_idt + 2], {HOLE}\n"
                               " lidt [no_idt]\n int 3", {CRASH}),
    "uses its code as IDT": (PROTECTED_MODES, "mov word ptr [no_idt], 0xFFF\n mov dword ptr [no_idt + 2], 0x8000\n"
                             " lidt [no_idt]\n ud2", {CRASH, LIMIT}),
    "loads a task register from nowhere": (PROTECTED_MODES, "mov ax, 0x7FF8\n ltr ax", {CRASH}),
    "has its TSS in a hole": (["protected", "paging32", "pae"],
                              f"mov dword ptr [gdt + 0x28], {HOLE & 0xFFFF} << 16 | 0x67\n"
                              f" mov dword ptr [gdt + 0x2C], 0x00008900 | {HOLE >> 16 & 0xFF} | {HOLE & 0xFF000000}\n"
                              " mov ax, 0x28\n ltr ax\n push USER_DATA\n push 0x7000\n push 2\n push USER_CODE\n"
                              " push offset in_ring_3\n iretd\nin_ring_3:\n int 3", {CRASH}),
    "returns to nowhere": (["protected", "paging32", "pae"], f"push 2\n push CODE\n push {HOLE}\n iretd", {CRASH}),
    "returns to a wild selector": (["protected", "paging32", "pae"], "push 2\n push 0x7777\n push 0\n iretd", {CRASH}),
    "jumps far to nowhere": (["protected", "paging32", "pae"], "ljmp 0x7777:0", {CRASH}),
    "halts for ever": (list(MODES), "cli\n hlt", {LIMIT}),
    "waits for an interrupt that never comes": (list(MODES), "sti\n hlt\n jmp $", {LIMIT, CRASH}),
    "loops for ever": (list(MODES), "jmp $", {LIMIT}),
    "enables interrupts and has no handlers": (["protected"], "mov al, 0x34\n out 0x43, al\n mov al, 0xFF\n"
                                               " out 0x40, al\n out 0x40, al\n sti\n jmp $", {CRASH, LIMIT}),
    "writes an MSR that is none": (PROTECTED_MODES, "mov ecx, 0x12345678\n wrmsr\n jmp $", {CRASH, LIMIT}),
    "sets reserved control bits": (PROTECTED_MODES, "mov eax, 0xFFFFFFFF\n mov cr4, REG_A\n jmp $", {CRASH, LIMIT}),
    "system call without set-up": (["long"], "syscall\n jmp $", {CRASH, LIMIT}),
    "non-canonical jump": (["long"], "mov rax, 0x123456789ABCDEF0\n jmp rax", {CRASH}),
    "non-canonical access": (["long"], "mov rax, 0x123456789ABCDEF0\n mov al, [rax]", {CRASH}),
    "non-canonical stack": (["long"], "mov rsp, 0x123456789ABCDEF0\n push rax", {CRASH}),
    "leaves long mode the wrong way": (["long"], "mov rax, cr0\n btr rax, 31\n mov cr0, rax\n jmp $", {CRASH, LIMIT}),
}  # fmt: skip


def source(mode: str, code: str) -> str:
    """``code`` with the registers of the mode's width."""
    wide = mode == "long"
    names = {"rax_or_eax": "rax" if wide else "eax", "REG_A": "rax" if wide else "eax" if mode != "real" else "ax"}
    names["REG_SP"] = "rsp" if wide else "esp"
    for name, register in names.items():
        code = code.replace(name, register)
    return program(mode, code.replace("$", "."))


@MMUS
@pytest.mark.parametrize(
    ("mode", "code", "endings"),
    [
        pytest.param(mode, code, endings, id=f"{name} ({mode})")
        for name, (modes, code, endings) in BROKEN.items()
        for mode in modes
    ],
)
def test_a_guest_that_breaks_itself(vm: Boot, mmu: str, mode: str, code: str, endings: set[int]) -> None:
    guest = vm(source(mode, code), ram="16M", mmu=mmu, audit=True)
    assert guest.run(max_time="300us") in endings
    if guest.exit_status == CRASH:
        report = guest.crash_report()
        assert "triple fault" in report and "page walk" in report
        assert guest.run() == CRASH  # it stays dead
    guest.vm.audit()


# Handlers that make things worse. The IDT has one gate for each vector, all leading to `handler`.
LOOPING = """
    mov edi, IDT
    mov ecx, 256
    mov eax, offset handler
next:
    mov [edi], ax
    mov word ptr [edi + 2], CODE
    mov dword ptr [edi + 4], 0x8E00
    add edi, 8
    dec ecx
    jnz next
    mov word ptr [no_idt], 0x7FF
    mov dword ptr [no_idt + 2], IDT
    lidt [no_idt]
    {code}
handler:
    {handler}
"""


@MMUS
@pytest.mark.parametrize("mode", ["protected", "paging32", "pae"])
@pytest.mark.parametrize(
    ("code", "handler", "endings"),
    [
        pytest.param("ud2", "iretd", {LIMIT}, id="returns to the faulting instruction"),
        pytest.param(f"mov al, [{HOLE}]", "add esp, 4\n iretd", {LIMIT, CRASH}, id="page fault for ever"),
        pytest.param("ud2", "ud2", {CRASH, LIMIT}, id="faults in the handler"),
        pytest.param("int 3", "int 3", {CRASH, LIMIT}, id="interrupts itself"),
        pytest.param("mov esp, 0x3F000000\n ud2", "iretd", {CRASH, LIMIT}, id="no stack for the handler"),
        pytest.param("ud2", "mov cr3, eax\n jmp .", {CRASH, LIMIT}, id="pulls its tables away"),
        pytest.param("pushfd\n or dword ptr [esp], 0x100\n popfd\n jmp .", "iretd", {LIMIT}, id="steps for ever"),
    ],
)
def test_a_guest_that_faults_without_end(
    vm: Boot, mmu: str, mode: str, code: str, handler: str, endings: set[int]
) -> None:
    guest = vm(program(mode, LOOPING.format(code=code, handler=handler)), ram="16M", mmu=mmu)
    assert guest.run(max_time="1ms") in endings
    guest.vm.audit()


# --- exceptions on the host's side -------------------------------------------------------------------------------


class Broken(Exception):
    """What the parts below raise."""


class BrokenDevice(Device):
    """A port that cannot be used."""

    def read(self, offset: int, size: int) -> int:
        raise Broken("read")

    def write(self, offset: int, size: int, value: int) -> None:
        raise Broken("write")


class BrokenPolicy(Policy):
    """Raises in one of its methods."""

    name = "broken"

    def __init__(self, where: str, gfn: int = -1) -> None:
        self._where = where
        self._gfn = gfn
        self._done = False

    def _break(self, where: str) -> None:
        if where == self._where:
            raise Broken(where)

    def populate(self, gfn: int, kind: PageType) -> bytes | None:
        if gfn == self._gfn:
            self._break("populate")
        return bytes(4096) if gfn == self._gfn else None

    def deadline(self) -> int | None:
        return 1_000_000 if self._where in ("epoch", "keep", "restore") and not self._done else None

    def epoch(self, now: int) -> None:
        self._done = True
        self._break("epoch")
        self.dmm.evict(0x30, self)  # the guest has stored to it

    def keep(self, gfn: int, contents: bytes) -> None:
        self._break("keep")

    def restore(self, gfn: int) -> bytes:
        self._break("restore")
        return bytes(4096)


TOUCHES = "mov al, 1\n out 0xE9, al\nagain:\n mov [0x30000], eax\n inc eax\n jmp again"


@MMUS
@pytest.mark.parametrize("access", ["in al, dx", "out dx, al"])
def test_an_exception_in_a_device_surfaces(vm: Boot, mmu: str, access: str) -> None:
    guest = vm(program("paging32", f"mov dx, 0x300\n {access}\n jmp ."), ram="16M", mmu=mmu)
    guest.vm.platform.bus.register(0x300, 1, BrokenDevice())
    with pytest.raises(Broken):
        guest.run(max_time="5ms")
    assert guest.run(max_time="1ms") == LIMIT  # the VM itself is whole
    guest.vm.audit()


@MMUS
@pytest.mark.parametrize("where", ["populate", "epoch", "keep", "restore"])
def test_an_exception_in_a_policy_surfaces(vm: Boot, mmu: str, where: str) -> None:
    guest = vm(program("paging32", TOUCHES), ram="16M", mmu=mmu)
    policy = BrokenPolicy(where, gfn=0x30)
    guest.vm.attach(policy)
    guest.vm.dmm.policies.reverse()  # asked before demand paging
    with pytest.raises(Broken, match=where):
        guest.run(max_time="5ms")
    guest.vm.audit()


@MMUS
def test_an_exception_in_a_listener_surfaces(vm: Boot, mmu: str) -> None:
    guest = vm("hello", mmu=mmu)

    seen = []

    def listener(event: object) -> None:
        seen.append(event)
        if len(seen) == 2:
            raise Broken("listener")

    guest.vm.events.listen(listener)
    with pytest.raises(Broken):
        guest.run()
    guest.expect_status(1)
    assert len(seen) == sum(guest.vm.events.counts().values())  # it was called again for what came afterwards


@MMUS
def test_an_exception_in_a_console_sink_surfaces(vm: Boot, mmu: str) -> None:
    guest = vm("hello", mmu=mmu)

    def sink(data: bytes) -> None:
        raise Broken("sink")

    guest.vm.platform.listen(sink)
    with pytest.raises(Broken):
        guest.run()
    guest.vm.platform.unlisten(sink)
    guest.expect_status(1)
    assert "protected mode" in guest.console


@MMUS
def test_an_interrupt_by_the_user_surfaces(vm: Boot, mmu: str) -> None:
    """KeyboardInterrupt is no Exception, and must not be lost in the engine either."""
    guest = vm("hello", mmu=mmu)

    def sink(data: bytes) -> None:
        raise KeyboardInterrupt

    guest.vm.platform.listen(sink)
    with pytest.raises(KeyboardInterrupt):
        guest.run()
