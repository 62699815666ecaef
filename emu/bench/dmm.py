"""Group ``dmm``: what the DMM's operations cost, the TLB flush included."""

from __future__ import annotations

from collections.abc import Iterator

from emu.bench.harness import Case, Round, timed
from emu.bench.longmode import DATA, DATA_PAGES, assemble, long_mode_vm, restart
from emu.dmm.p2m import ALL_RIGHTS, Intent
from emu.vm import VirtualMachine

TOUCH = "t: mov byte ptr [rdi], 1; add rdi, 4096; dec ecx; jnz t; hlt"
_FIRST_GFN = DATA >> 12
_PAGES = DATA_PAGES - 1  # the last one is the stack's


def _demand_zero(mmu: str) -> Round:
    code = assemble(TOUCH)

    def one_round() -> float:
        vm = long_mode_vm(code, mmu)
        restart(vm, 1)
        return timed(lambda: restart(vm, _PAGES), _PAGES - 1)

    return one_round


def _touched(mmu: str) -> VirtualMachine:
    vm = long_mode_vm(assemble(TOUCH), mmu)
    restart(vm, _PAGES)
    return vm


def _remap(mmu: str) -> Round:
    vm = _touched(mmu)

    def one_round() -> float:
        restart(vm, _PAGES)  # every page has its shadow entry again
        return timed(lambda: [vm.dmm.remap(gfn) for gfn in range(_FIRST_GFN, _FIRST_GFN + _PAGES)], _PAGES)

    return one_round


def _protect(mmu: str) -> Round:
    vm = _touched(mmu)

    def all_pages(rights: Intent) -> None:
        for gfn in range(_FIRST_GFN, _FIRST_GFN + _PAGES):
            vm.dmm.protect(gfn, rights)

    def one_round() -> float:
        all_pages(ALL_RIGHTS)
        restart(vm, _PAGES)
        return timed(lambda: all_pages(Intent.READ), _PAGES)

    return one_round


def cases() -> Iterator[Case]:
    """Demand-zero faults, remap and protect in both paging architectures."""
    for mmu in ("nested", "shadow"):
        yield Case("dmm", f"demand-zero fault, {mmu}", _demand_zero(mmu), scale=1e6, unit="us")
        yield Case("dmm", f"remap, {mmu}", _remap(mmu), scale=1e6, unit="us")
        yield Case("dmm", f"protect, {mmu}", _protect(mmu), scale=1e6, unit="us")
