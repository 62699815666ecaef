"""Two processors in different paging modes at the same time, on one memory and in turns."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import pytest

from emu.machine.vm import Stop
from tests.mmu.bench import PML4, PT, Bench, P, U, W
from tests.mmu.harness import ARCHITECTURES, set_privilege
from tests.mmu.test_two_processors import (
    DATA,
    INVLPG,
    LOAD,
    NEW,
    OTHER,
    STORE,
    evict,
    fill_spare_frames,
    move,
    protect,
    with_routines,
)
from tests.oracles import paging_model as x86
from tests.oracles.paging_model import PAGE, Control


@pytest.fixture(params=ARCHITECTURES)
def bench(request: pytest.FixtureRequest) -> Bench:
    return with_routines(Bench(request.param, cpus=2))


@dataclass(frozen=True)
class Form:
    """A paging mode with tables of its own: its root, last table, size of an entry, and control registers."""

    control: Control
    table: int
    size: int


_PROTECTED = x86.CR0_PE | x86.CR0_PG | x86.CR0_WP
_LONG = x86.EFER_LME | x86.EFER_LMA
FORMS = {
    "none": Form(Control(x86.CR0_PE, 0, 0, 0, 0), 0, 0),
    "32": Form(Control(_PROTECTED, 0x8000, 0, 0, 0), 0x9000, 4),
    "pse": Form(Control(_PROTECTED, 0x8000, x86.CR4_PSE, 0, 0), 0x9000, 4),
    "pae": Form(Control(_PROTECTED, 0xA000, x86.CR4_PAE, x86.EFER_NXE, 0), 0xC000, 8),
    "pae without nx": Form(Control(_PROTECTED, 0xA000, x86.CR4_PAE, 0, 0), 0xC000, 8),
    "4level": Form(Control(_PROTECTED, PML4, x86.CR4_PAE, _LONG | x86.EFER_NXE, 0), PT, 8),
    "4level without nx": Form(Control(_PROTECTED, PML4, x86.CR4_PAE, _LONG, 0), PT, 8),
}
WINDOW = 0xE0000  # gva that each form maps elsewhere


def write_forms(bench: Bench) -> None:
    flags = P | W | U
    bench.write(0x8000, (0x9000 | flags).to_bytes(4, "little"))
    bench.write(0x9000, b"".join((gpa | flags).to_bytes(4, "little") for gpa in range(0, 1 << 20, PAGE)))
    bench.write(0xA000, (0xB000 | P).to_bytes(8, "little"))
    bench.write(0xB000, (0xC000 | flags).to_bytes(8, "little"))
    bench.write(0xC000, b"".join((gpa | flags).to_bytes(8, "little") for gpa in range(0, 1 << 20, PAGE)))


def in_form(bench: Bench, cpu: int, form: Form, routine: int, gva: int, value: int = 0) -> int | None:
    """Run a routine; EAX, or None for a page fault."""
    vm, control = bench.on(cpu).vm, form.control
    registers = vm.cpu
    registers.cr0, registers.cr3, registers.cr4, registers.efer = control.cr0, control.cr3, control.cr4, control.efer
    set_privilege(vm, control)
    registers.rip, registers.rbx, registers.rax, registers.cr2 = routine, gva, value, 0
    vm.processor.native.shutdown = 0
    if vm.run(until=vm.now + 1_000_000) is Stop.CRASH:
        assert registers.cr2 == gva
        return None
    return int(registers.rax) & 0xFFFF_FFFF


@pytest.mark.parametrize("names", [*itertools.combinations_with_replacement(FORMS, 2)], ids=" and ".join)
def test_paging_modes_at_the_same_time(bench: Bench, names: tuple[str, str]) -> None:
    """Each processor in its own, in turns; each changes its entry for the same gva, and frames move below both."""
    write_forms(bench)
    forms = [FORMS[name] for name in names]
    pages = {WINDOW: 10, DATA: 11, NEW: 12, OTHER: 13}
    for gpa, value in pages.items():
        bench.write(gpa, value.to_bytes(4, "little"))
    behind = [WINDOW, WINDOW]
    for round_, target in enumerate((DATA, NEW, OTHER, WINDOW)):
        for cpu, form in enumerate(forms):
            assert in_form(bench, cpu, form, LOAD, WINDOW) == pages[behind[cpu]]
            if form.size:
                entry = form.table + (WINDOW >> 12) * form.size
                in_form(bench, cpu, form, STORE, entry, target | P | W)
                for each, used in enumerate(forms):
                    if used.table == form.table:
                        in_form(bench, each, used, INVLPG, WINDOW)
                        behind[each] = target
            assert in_form(bench, cpu, form, LOAD, WINDOW) == pages[behind[cpu]]
            pages[behind[cpu]] += 100
            in_form(bench, cpu, form, STORE, WINDOW, pages[behind[cpu]])
            bench.vm.audit()
        gfn = (form.table or DATA) >> 12
        (move, protect, move, evict)[round_](bench, gfn)
        fill_spare_frames(bench)
        for cpu in (1, 0):
            assert in_form(bench, cpu, forms[cpu], LOAD, WINDOW) == pages[behind[cpu]]
        bench.vm.audit()


@pytest.mark.parametrize("mode", ["pae", "4level"])
def test_no_execute_means_something_to_one_only(bench: Bench, mode: str) -> None:
    """An entry with bit 63 set, in a table that both use: forbidden to run for one, reserved for the other."""
    write_forms(bench)
    strict, plain = FORMS[mode], FORMS[f"{mode} without nx"]
    bench.write(WINDOW, b"\xf4" + bytes(3))
    entry = strict.table + (WINDOW >> 12) * 8
    for _ in range(3):
        bench.write(entry, (WINDOW | P | W | 1 << 63).to_bytes(8, "little"))
        for cpu, form in enumerate((strict, plain)):
            in_form(bench, cpu, form, INVLPG, WINDOW)
        assert in_form(bench, 0, strict, LOAD, WINDOW) == 0xF4
        assert in_form(bench, 1, plain, LOAD, WINDOW) is None
        assert in_form(bench, 0, strict, WINDOW, WINDOW) is None
        bench.write(entry, (WINDOW | P | W).to_bytes(8, "little"))
        for cpu, form in enumerate((strict, plain)):
            in_form(bench, cpu, form, INVLPG, WINDOW)
            assert in_form(bench, cpu, form, WINDOW, WINDOW, 3) == 3
            assert in_form(bench, cpu, form, LOAD, WINDOW) == 0xF4
        bench.vm.audit()
