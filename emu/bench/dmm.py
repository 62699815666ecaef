"""Group ``dmm``: what the DMM's operations and policies cost.

Each operation includes the TLB flush that it makes, a row of its own.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from random import Random

from emu.bench.harness import Case, Round, timed
from emu.bench.longmode import DATA, DATA_PAGES, PML4, PRESENT_WRITE_USER, assemble, long_mode_vm, restart
from emu.boot.image import GuestImage
from emu.dmm import catalog
from emu.dmm.p2m import ALL_RIGHTS, Intent
from emu.dmm.policy import Policy
from emu.machine.vm import VirtualMachine
from emu.mmu.paging import flush_tlbs
from emu.session import boot_vm, run_vm

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


def _flush(mmu: str) -> Round:
    vm = _touched(mmu)
    return lambda: timed(lambda: [flush_tlbs(vm.processor.native_at) for _ in range(_PAGES)], _PAGES)


# --- policies ---------------------------------------------------------------------------------------------------

ALL_POLICIES = (
    "demand:readahead=8", "swap", "share", "balloon", "balance", "retire:every=1000s", "pool:schedule=1000s:4M",
)  # fmt: skip
ALIASES = 100  # gvas of one page
_GFNS = range(_FIRST_GFN, _FIRST_GFN + _PAGES)


def _attach(vm: VirtualMachine, text: str) -> Policy:
    policy = catalog.parse(text).make(GuestImage())
    vm.attach(policy)
    return policy


def _fill(vm: VirtualMachine) -> None:
    """Every page has contents of its own, of which half can be compressed away."""
    random = Random(0)
    for gfn in _GFNS:
        vm.memory.write(gfn << 12, random.randbytes(2048) + bytes([gfn & 0xFF or 1]) * 2048)


def _swapping(mmu: str) -> tuple[VirtualMachine, Policy]:
    vm = _touched(mmu)
    swap = _attach(vm, "swap")
    _fill(vm)
    return vm, swap


def _evict_all(vm: VirtualMachine, keeper: Policy) -> None:
    for gfn in _GFNS:
        vm.dmm.evict(gfn, keeper)


def _swap_out(mmu: str) -> Round:
    vm, swap = _swapping(mmu)

    def one_round() -> float:
        restart(vm, _PAGES)
        return timed(lambda: _evict_all(vm, swap), _PAGES)

    return one_round


def _swap_in(mmu: str) -> Round:
    vm, swap = _swapping(mmu)

    def one_round() -> float:
        restart(vm, _PAGES)
        _evict_all(vm, swap)
        return timed(lambda: [vm.dmm.resolve(gfn, Intent.READ) for gfn in _GFNS], _PAGES)

    return one_round


def _copy_on_write(mmu: str) -> Round:
    vm = _touched(mmu)

    def one_round() -> float:
        restart(vm, _PAGES)
        for gfn in _GFNS:
            vm.dmm.share(gfn, vm.p2m.mfn(_FIRST_GFN))
        return timed(lambda: [vm.dmm.resolve(gfn, Intent.WRITE) for gfn in _GFNS], _PAGES)

    return one_round


def _remap_aliased(mmu: str) -> Round:
    """The guest maps each of some pages at ALIASES gvas, all of which have a shadow entry."""
    pages = DATA_PAGES // ALIASES
    vm = _touched(mmu)
    entries = (_FIRST_GFN + i // ALIASES << 12 | PRESENT_WRITE_USER for i in range(pages * ALIASES))
    vm.memory.write(PML4 + 0x3000, struct.pack(f"<{pages * ALIASES}Q", *entries))

    def one_round() -> float:
        restart(vm, pages * ALIASES)
        return timed(lambda: [vm.dmm.remap(gfn) for gfn in range(_FIRST_GFN, _FIRST_GFN + pages)], pages)

    return one_round


def _scan() -> Round:
    """Seconds for 4 KiB, times 1e9: see the case."""
    vm = _touched("shadow")
    share = _attach(vm, "share")
    _fill(vm)
    pages = len(vm.p2m.resident())
    for _ in range(3):
        share.scan(pages)  # type: ignore[attr-defined]
    return lambda: timed(lambda: share.scan(pages), pages)  # type: ignore[attr-defined]


def _memory_guest(policies: tuple[str, ...]) -> Round:
    """The guest's run alone, from its first instruction."""

    def one_round() -> float:
        vm = boot_vm("memory", append="pages=2000 rounds=40", ram="16M", policies=policies)
        return timed(lambda: run_vm(vm), 1)

    return one_round


def cases() -> Iterator[Case]:
    """The DMM's operations in both paging architectures, and the policies."""
    for mmu in ("nested", "shadow"):
        for name, make in (
            ("demand-zero fault", _demand_zero), ("remap", _remap), ("protect", _protect), ("TLB flush", _flush),
            ("swap-out, compressed", _swap_out), ("swap-in, compressed", _swap_in),
            ("copy-on-write break", _copy_on_write), (f"remap of {ALIASES} gvas", _remap_aliased),
        ):  # fmt: skip
            yield Case("dmm", f"{name}, {mmu}", make(mmu), scale=1e6, unit="us")
    yield Case("dmm", "sharing scan of a page that has not changed", _scan(), scale=1e6, unit="us")
    all_of_them, static = _memory_guest(ALL_POLICIES), _memory_guest(("static",))
    yield Case("dmm", "guest memory with all policies", all_of_them, static, "static mapping", 1, "s")
