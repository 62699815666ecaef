"""The page walk to look at: right in every mode, and without any effect on what it looks at."""

from __future__ import annotations

import pytest
from hypothesis import given

from emu.boot.flat import flat_guest
from emu.dmm.p2m import Intent, PageType
from emu.engine import cpustate
from emu.machine.vm import VirtualMachine
from emu.mmu import pte
from emu.observe.pagewalk import Walk, backing, explain, peek, peek_virtual, render
from emu.session import boot_vm, run_vm
from tests.oracles import paging_model as model
from tests.oracles.paging_cases import MEMORY_SIZE, Case, case_settings, cases

RAM = 4 << 20
LARGE = pte.P | pte.W | pte.PS
PRESENT = pte.P | pte.W | pte.U
LONG_MODE = (cpustate.CR4_PAE, cpustate.EFER_LME | cpustate.EFER_LMA | cpustate.EFER_NXE)


def machine(ram: int = RAM, policy: str = "demand") -> VirtualMachine:
    return boot_vm(flat_guest("idle", b"\xf4", ram), ram=ram, mmu="nested", policies=[policy])


def with_tables(entries: dict[int, int], size: int, cr3: int, cr4: int = 0, efer: int = 0) -> VirtualMachine:
    vm = machine()
    for gpa, entry in entries.items():
        vm.memory.write(gpa, (entry & (1 << 8 * size) - 1).to_bytes(size, "little"))
    vm.cpu.cr0 = cpustate.CR0_PE | cpustate.CR0_PG
    vm.cpu.cr3, vm.cpu.cr4, vm.cpu.efer = cr3, cr4, efer
    return vm


def path(walk: Walk) -> list[tuple[str, int, int]]:
    return [(step.name, step.table, step.index) for step in walk.guest]


def test_without_paging() -> None:
    walk = explain(machine(), 0x12_3456_7890)
    assert (walk.mode, walk.gva, walk.gpa, walk.guest) == ("no paging", 0x3456_7890, 0x3456_7890, ())
    assert walk.backing is not None and walk.backing.type == PageType.HOLE


def test_32_bit_paging() -> None:
    vm = with_tables({0x1000 + 4: 0x2000 | PRESENT, 0x2000 + 8: 0x5000 | pte.P | pte.A}, 4, 0x1000)
    walk = explain(vm, 0x0040_2ABC)
    assert path(walk) == [("PDE", 0x1000, 1), ("PTE", 0x2000, 2)]
    assert walk.gpa == 0x5ABC
    assert walk.guest[1].bits == "present, accessed"
    assert walk.verdict == "gpa 0x5abc, read-only, supervisor only"
    assert walk.backing == backing(vm, 5)
    assert vm.p2m.type(5) == PageType.EMPTY


def test_a_4_mib_page_above_4_gib() -> None:
    vm = with_tables({0x1000: 0x0080_0000 | 3 << 13 | LARGE}, 4, 0x1000, cpustate.CR4_PSE)
    assert explain(vm, 0x0012_3456).gpa == 3 << 32 | 0x0080_0000 | 0x0012_3456


def test_pae_and_its_rootless_rights() -> None:
    entries = {0x1020: 0x2000 | pte.P, 0x2008: 0x20_0000 | LARGE | pte.U}
    vm = with_tables(entries, 8, 0x1020, cpustate.CR4_PAE)
    walk = explain(vm, 0x0023_4567)
    assert path(walk) == [("PDPTE", 0x1020, 0), ("PDE", 0x2000, 1)]
    assert walk.gpa == 0x0023_4567
    assert walk.verdict.endswith("writable, user")


def test_4_level_paging_and_no_execute() -> None:
    entries = {
        0x1FF8: 0x2000 | PRESENT,
        0x2FF0: 0x3000 | PRESENT | pte.NX,
        0x3000: 0x4000 | PRESENT,
        0x4008: 0x9000 | PRESENT,
    }
    vm = with_tables(entries, 8, 0x1000, *LONG_MODE)
    walk = explain(vm, 0xFFFF_FFFF_8000_1234)
    assert path(walk) == [("PML4E", 0x1000, 511), ("PDPTE", 0x2000, 510), ("PDE", 0x3000, 0), ("PTE", 0x4000, 1)]
    assert walk.verdict == "gpa 0x9234, writable, user, no-execute"
    assert explain(vm, 1 << 47).verdict.startswith("not canonical")


@pytest.mark.parametrize(
    ("entry", "verdict"),
    [
        (0, "not present"),
        (0x9000, "not present"),
        (0x9000 | PRESENT | 1 << 45, "reserved bits set: 0x200000000000"),
    ],
)
def test_where_a_walk_ends(entry: int, verdict: str) -> None:
    entries = {0x1000: 0x2000 | PRESENT, 0x2000: 0x3000 | PRESENT, 0x3000: 0x4000 | PRESENT, 0x4000: entry}
    walk = explain(with_tables(entries, 8, 0x1000, *LONG_MODE), 0)
    assert walk.gpa is None and walk.backing is None
    assert walk.guest[-1].verdict == verdict
    assert walk.verdict == f"the walk ends at the PTE: {verdict}"


def test_a_table_that_is_not_resident_is_not_populated() -> None:
    vm = with_tables({0x1000: 0x2000 | PRESENT}, 4, 0x1000)
    before = vm.pool.used
    walk = explain(vm, 0)
    assert walk.guest[-1].entry is None
    assert "gfn 0x2, is not resident" in walk.verdict
    assert peek_virtual(vm, 0, 4) == b"" and peek(vm, 0x2000, 4) is None
    assert vm.pool.used == before


def test_a_table_beyond_ram_reads_as_ones() -> None:
    walk = explain(with_tables({}, 8, RAM, *LONG_MODE), 0)
    assert walk.guest[0].entry == (1 << 64) - 1
    assert peek(machine(), RAM, 2) == b"\xff\xff"


def test_reading_stops_at_the_first_page_that_is_not_mapped() -> None:
    vm = with_tables({0x1000: 0x2000 | PRESENT, 0x2000: 0x3000 | PRESENT}, 4, 0x1000)
    vm.memory.write(0x3FFE, b"ab")
    assert peek_virtual(vm, 0xFFE, 8) == b"ab"


def test_shadow_tables_and_p2m_as_text() -> None:
    vm = boot_vm("crash")
    run_vm(vm)
    counts = vm.events.counts()
    text = render(explain(vm, vm.cpu.pc))
    assert "PDE    0x20000[0]" in text
    assert "shadow tables" in text and "page in mfn" in text
    mfn = vm.p2m.mfn(8)
    assert f"gfn 0x8: RAM, mfn {mfn:#x}, the DMM grants rwx" in text
    walk = explain(vm, vm.cpu.cr2)
    assert walk.shadow is not None and walk.shadow[-1].verdict == "not filled yet"
    assert walk.guest[-1].verdict == "not present"
    assert vm.events.counts() == counts
    table = explain(vm, 0x20000)
    assert table.shadow is not None
    assert all(line == line.rstrip() for line in text.splitlines())


def test_rights_and_types_in_words() -> None:
    vm = machine()
    assert "EMPTY, never touched" in render(explain(vm, 0x10_0000))
    assert "IMAGE, never touched" in render(explain(vm, 0x8000))
    assert "no memory, reads as all ones" in render(explain(vm, RAM))
    vm.dmm.populate(0x100)
    vm.dmm.protect(0x100, Intent.READ)
    assert "the DMM grants r--" in render(explain(vm, 0x10_0000))


def test_nested_paging_has_no_shadow_tables() -> None:
    vm = boot_vm("crash", mmu="nested")
    run_vm(vm)
    assert explain(vm, 0).shadow is None


@pytest.fixture(scope="module")
def full_vm() -> VirtualMachine:
    return machine(MEMORY_SIZE, "static")


@case_settings(short=300, long=20_000)
@given(case=cases())
def test_like_the_model_of_the_manual(case: Case, full_vm: VirtualMachine) -> None:
    vm = full_vm
    pages = vm.machine.memory.pages
    image = bytes(case.image())
    for gfn in range(MEMORY_SIZE >> 12):
        pages[vm.p2m.mfn(gfn)] = bytearray(image[gfn << 12 : (gfn + 1) << 12])
    control = case.control
    vm.cpu.cr0, vm.cpu.cr3, vm.cpu.cr4, vm.cpu.efer = control.cr0, control.cr3, control.cr4, control.efer
    memory = case.memory()
    for access in case.accesses:
        walk = explain(vm, access.gva)
        if any(step.table >= MEMORY_SIZE for step in walk.guest):
            continue  # what a missing table reads as differs
        expected = model.translate(memory, control, access.kind, access.gva, implicit=access.implicit)
        if isinstance(expected, model.Translation):
            assert walk.gpa == expected.gpa, walk
        elif isinstance(expected, model.NonCanonical):
            assert walk.gpa is None
        else:
            refused_by_rights = expected.error_code & (model.ERROR_P | model.ERROR_RSVD) == model.ERROR_P
            assert (walk.gpa is not None) == refused_by_rights, walk
    after = b"".join(pages[vm.p2m.mfn(gfn)].tobytes() for gfn in range(MEMORY_SIZE >> 12))
    assert after == image
