"""The guest `smp`: right on QEMU with 1 to 8 processors, then on emu; and it does notice what it must notice.

On QEMU the processors take turns in one thread, as in emu; with a thread each, two are as many as a test machine has.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest

from emu.asm.assembler import assemble_image
from emu.boot import firmware
from emu.observe.trace import format_event
from emu.testing import GuestUnderTest, boot
from tests.oracles.qemu_guest import QEMU, QemuRun, have_qemu, run_on_qemu

on_qemu = pytest.mark.skipif(not have_qemu(), reason=f"{QEMU} is not installed")

CPUS = (1, 2, 4, 8)
MMUS = ("shadow", "nested")
MASK = 0xFFFFFFFF
ITEMS = 64  # of its queue
PATIENT = "patience=65536"  # for QEMU, whose TSC counts on while other processes run
OK, WRONG = 1, 3  # exit statuses
PARTS = {2: "locks", 3: "queue", 4: "ipi", 5: "tlb", 6: "code"}


def queue_checksum() -> int:
    """The sum of the results of all items: a hundred steps of the guests' random numbers each."""
    total = 0
    for item in range(ITEMS):
        for _ in range(100):
            item = (item * 1664525 + 1013904223) & MASK
        total += item
    return total & MASK


def expected(cpus: int, rounds: int = 50) -> list[str]:
    """The lines of a run in which all is well, as regular expressions: who takes the items is not determined."""
    ids = "".join(f" {number}" for number in range(cpus))
    return [
        f"smp: start: APIC IDs{ids}: ok",
        f"smp: locks: spinlock, ticket lock, LOCK INC and CMPXCHG counted to {cpus * rounds}: ok",
        f"smp: queue: checksum {queue_checksum():#010x}, [1-{cpus}] processors worked: ok",
        "smp: ipi: fixed, broadcast, logical, lowest priority, NMI, and out of HLT: ok",
        "smp: tlb: page remapped 4 times, all told, all saw it: ok",
        f"smp: tlb: page remapped, nobody told: stale on {max(cpus - 1, 1)}",
        "smp: code: self-modifying, cross-modifying, and data beside it: ok",
        f"smp: {cpus} processors, all ok",
    ]


def assert_all_is_well(console: str, lines: list[str]) -> None:
    assert re.fullmatch("".join(f"{line}\n" for line in lines), console), console


def run_qemu(cpus: int, append: str = "", thread: str = "single", image: bytes | None = None) -> QemuRun:
    image = image or firmware.load("smp").data
    return run_on_qemu(image, 4, f"{append} {PATIENT}".strip(), cpus=cpus, thread=thread)


def boot_emu(cpus: int, mmu: str, append: str = "", **options: object) -> GuestUnderTest:
    several = {"cpus": cpus} if cpus > 1 else {}
    return boot("smp", mmu=mmu, append=append, **several, **options)


@cache
def emu_run(cpus: int, mmu: str, append: str = "") -> tuple[str, int, int]:
    """Console, status and virtual time of a run that tests share."""
    guest = boot_emu(cpus, mmu, append)
    status = guest.run(max_time="20s")
    return guest.console, status, guest.now


# ---- all parts


@on_qemu
@pytest.mark.parametrize("cpus", CPUS)
def test_all_parts_on_qemu(cpus: int) -> None:
    result = run_qemu(cpus, "forget=1")
    assert_all_is_well(result.console, expected(cpus))
    assert result.status == OK


@on_qemu
def test_processors_that_run_at_the_same_time_on_qemu() -> None:
    result = run_qemu(2, "rounds=1000 forget=1", "multi")
    assert_all_is_well(result.console, expected(2, 1000))
    assert result.status == OK


@pytest.mark.parametrize("mmu", MMUS)
@pytest.mark.parametrize("cpus", CPUS)
def test_all_parts(cpus: int, mmu: str) -> None:
    console, status, _ = emu_run(cpus, mmu, "forget=1")
    assert_all_is_well(console, expected(cpus))
    assert status == OK


@pytest.mark.parametrize("cpus", CPUS)
def test_the_paging_architecture_cannot_be_seen(cpus: int) -> None:
    assert emu_run(cpus, "shadow", "forget=1") == emu_run(cpus, "nested", "forget=1")


@pytest.mark.parametrize("mmu", MMUS)
@pytest.mark.parametrize("cpus", CPUS)
def test_two_runs_are_the_same(cpus: int, mmu: str) -> None:
    logs = []
    for _ in range(2):
        guest = boot_emu(cpus, mmu, events=True)
        guest.expect_status(OK, max_time="20s")
        logs.append([format_event(event) for event in guest.events])
    assert logs[0] == logs[1]


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("mmu", MMUS)
@pytest.mark.parametrize("cpus", CPUS)
def test_a_part_alone(cpus: int, mmu: str, part: int) -> None:
    console, status, _ = emu_run(cpus, mmu, f"part={part} rounds=7 forget=1")
    start = f"smp: start:|smp: {cpus} processors|smp: {PARTS[part]}:"
    assert_all_is_well(console, [line for line in expected(cpus, 7) if re.match(start, line)])
    assert status == OK


@pytest.mark.parametrize("mmu", MMUS)
@pytest.mark.parametrize("cpus", CPUS)
def test_with_less_memory_than_it_uses(cpus: int, mmu: str) -> None:
    """A page that moves away takes its translations along, so that there may be no stale ones: forget=2."""
    alone = boot_emu(cpus, mmu, "forget=2")
    alone.expect_status(OK, max_time="20s")
    pool = alone.vm.pool.used * 2 // 3
    guest = boot_emu(cpus, mmu, "forget=2", pool=pool << 12, policies=["swap", "share"], audit=True)
    guest.expect_status(OK, max_time="20s")
    assert_all_is_well(guest.console, [line for line in expected(cpus) if "nobody told" not in line])
    assert guest.vm.events.counts()["evict"] > 0


# ---- what must be noticed


@pytest.mark.parametrize(
    ("append", "message", "status"),
    [
        ("cpus=17", "FAILED: cpus= takes 1 to 16, part= takes 0 to 6", 5),
        ("part=7", "FAILED: cpus= takes 1 to 16, part= takes 0 to 6", 5),
        ("cpus=2 patience=2", "FAILED: processor 1 did not answer processor 0: it has started", WRONG),
    ],
)
def test_what_the_command_line_asks_for(append: str, message: str, status: int) -> None:
    console, ended, _ = emu_run(1, "shadow", append)
    assert (console, ended) == (message + "\n", status)


@on_qemu
def test_more_processors_than_there_should_be() -> None:
    result = run_qemu(4, "cpus=2")
    assert re.fullmatch(r"FAILED: processors that came up: [34] instead of 2\n", result.console)
    assert result.status == WRONG


@on_qemu
@pytest.mark.parametrize(
    ("right", "wrong", "message"),
    [
        ("    invlpg [WINDOW]\n    count_interrupt shootdowns", "    count_interrupt shootdowns",
         "processors that see what is there now: 1 instead of 3"),
        ("    count_interrupt shootdowns", "    iretd", "processor 1 did not answer processor 0: TLB shootdown"),
        ("    mov dword ptr [spin_lock], 0", "", "processor . did not answer processor .: the spinlock is free"),
        ("    inc dword ptr [ticket_served]", "", "processor . did not answer processor .: the ticket lock is free"),
        ("    count_interrupt groups", "    iretd",
         "processor 1 did not answer processor 0: IPI to a logical destination"),
        ("    lock xadd [queue_next], ebx", "    mov ebx, [queue_next]\n    pause\n    inc dword ptr [queue_next]",
         r"checksum of the queue: \d+ instead of \d+"),
        ("    inc dword ptr [edi + 0x800 + ebp * 4]", "    inc dword ptr [edi + 0x800]",
         "counter next to code: 150 instead of 50"),
    ],
)  # fmt: skip
def test_a_mistake_is_noticed(right: str, wrong: str, message: str, tmp_path: Path) -> None:
    source = firmware.guests()["smp"].source
    text = source.read_text()
    assert text.count(right) == 1
    (tmp_path / "wrong.s").write_text(text.replace(right, wrong))
    image = assemble_image(tmp_path / "wrong.s", include_directories=[source.parent / "include"])
    result = run_on_qemu(image.data, 4, "patience=512", cpus=3, thread="single")
    assert re.fullmatch(f"FAILED: {message}", result.console.splitlines()[-1]), result.console
    assert result.status == WRONG
