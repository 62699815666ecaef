"""Group ``mmu``: TLB misses against the engine's own page walk; delivery of system calls and page faults."""

from __future__ import annotations

from collections.abc import Iterator

from emu.bench.harness import Case, Round, timed
from emu.bench.longmode import (
    CODE,
    CR0,
    CR4,
    DATA,
    DATA_PAGES,
    EFER,
    PML4,
    RAM,
    STACK,
    UNMAPPED,
    assemble,
    long_mode_vm,
    pieces,
    restart,
)
from emu.engine.engine import plain_unicorn

TOUCHED = 512  # pages a pass
PASSES = 400
CALLS = 100_000
FAULTS = 20_000

# passes over 512 pages, each with an empty TLB; and the same over one page, so that the difference is the misses'
TOUCH = f"""
p: mov rax, cr3; mov cr3, rax; mov rsi, rdi; mov ebx, {TOUCHED}
t: mov dl, [rsi]; lea rsi, [rsi + {{stride}}]; dec ebx; jnz t; dec ecx; jnz p; hlt
"""
TOUCH_COLD = TOUCH.format(stride=4096)
TOUCH_WARM = TOUCH.format(stride=0)

# user loops; the way out is the exit port, IOPL is 3
_EXIT = "mov dx, 0xF4; xor eax, eax; out dx, al; w: jmp w;"
SYSCALL = "l: syscall; dec r15d; jnz l; " + _EXIT + " .balign 64; h: sysretq"
INT80 = "l: int 0x80; dec r15d; jnz l; " + _EXIT + " .balign 64; h: iretq"
FAULT = (
    f"mov rdi, {UNMAPPED}; l: mov al, [rdi]; dec r15d; jnz l; "
    + _EXIT
    + " .balign 64; h: add rsp, 8; add qword ptr [rsp], 2; iretq"
)
HANDLER = CODE + 64


def _miss(seconds_cold: Round, seconds_warm: Round) -> Round:
    return lambda: seconds_cold() - seconds_warm()


def _touch_ours(source: str, mmu: str) -> Round:
    vm = long_mode_vm(assemble(source), mmu)
    return lambda: timed(lambda: restart(vm, PASSES), PASSES * TOUCHED)


def _touch_plain(source: str) -> Round:
    assert TOUCHED <= DATA_PAGES
    control = {"cr0": CR0, "cr3": PML4, "cr4": CR4, "efer": EFER}
    run = plain_unicorn(RAM, pieces(assemble(source)), control)
    return lambda: timed(lambda: run(CODE, rcx=PASSES, rdi=DATA, rsp=STACK), PASSES * TOUCHED)


def _delivery(source: str, mmu: str, count: int, handlers: dict[int, int]) -> Round:
    vm = long_mode_vm(assemble(source.replace("sysretq", "sysret")), mmu, handlers, user=True)
    vm.cpu.lstar = HANDLER
    vm.cpu.eflags |= 3 << 12  # IOPL: the program may use the exit port
    return lambda: timed(lambda: restart(vm, count, user=True), count)


def cases() -> Iterator[Case]:
    """TLB misses, system calls and page faults in both paging architectures."""
    for mmu in ("nested", "shadow"):
        yield Case(
            "mmu",
            f"TLB miss, {mmu}",
            _miss(_touch_ours(TOUCH_COLD, mmu), _touch_ours(TOUCH_WARM, mmu)),
            _miss(_touch_plain(TOUCH_COLD), _touch_plain(TOUCH_WARM)),
            "Unicorn's own walk",
            1e6,
            "us",
        )
    for mmu in ("nested", "shadow"):
        for name, source, count, handlers in (
            ("SYSCALL and SYSRET", SYSCALL, CALLS, {}),
            ("INT 80h and IRET", INT80, CALLS, {0x80: HANDLER}),
            ("#PF and IRET", FAULT, FAULTS, {14: HANDLER}),
        ):
            yield Case("mmu", f"{name}, {mmu}", _delivery(source, mmu, count, handlers), scale=1e6, unit="us")
