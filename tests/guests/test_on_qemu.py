"""Every guest on QEMU: they must be right before our emulator is blamed.

QEMU 7.2's software MMU leaves P out of the error code of reserved-bit faults, against the manual; RSVD_WITHOUT_P tells
the guests. Everything else is the same image as ours. Cases of `apic` that QEMU fails are listed in test_apic.py.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from emu.boot import firmware
from tests.oracles.qemu_guest import QEMU, QemuRun, have_qemu, run_on_qemu

pytestmark = pytest.mark.skipif(not have_qemu(), reason=f"{QEMU} is not installed")

GUESTS = firmware.guests()
LAST_LINES = {
    "hello": "and now runs 32-bit protected mode.",
    "paging32": "paging32: demand-zero 52 by writes 16 by reads, copy-on-write 2, yields 10, announced faults 20, "
    "checksum 0x08a4cce1",
    "pae": "pae: faults taken on purpose 20, checksum 0x83e07c1f",
    "long64": "long64: calls 35, interrupts 10, demand-zero pages 33, announced faults 30, checksum 0x1089a7d0e9649966",
    "smc": "smc: generated functions called 1024, sum 0xf3fffbff",
    "balloon": "balloon: pages given 0, taken back 0 of which zeros 0, kept 64, checksum 0x33e60000",
    "v86": "v86: the task halted; instructions emulated 67, interrupts reflected 3",
    "gates": "gates: double fault in a task of its own",
    "smp": "smp: 1 processors, all ok",
    "apic": "apic: 1 processors, 4 cases wrong",
    "crash": "crash: the stack overflows now, and no handler is installed",
}
EXIT_VALUES = {"apic": 4}  # where it is not that of a run on emu
MASK = 0xFFFFFFFF


def random_numbers(seed: int) -> Iterator[int]:
    """The linear congruential generator of the guests."""
    while True:
        seed = (seed * 1664525 + 1013904223) & MASK
        yield seed


def tasks_last_line() -> str:
    """What `tasks` must print at its end."""
    sums = []
    for seed in (0x0A0A0A0A, 0x0B0B0B0B):
        checksum = 0
        for _, number in zip(range(16 * 1024), random_numbers(seed), strict=False):
            checksum = ((checksum << 1 | checksum >> 31) + number) & MASK
        sums.append(checksum)
    return f"tasks: both made progress; checksums {sums[0]:#010x} and {sums[1]:#010x} in every round"


def memory_last_line(pages: int = 256, rounds: int = 2, steps: int = 64, seed: int = 1, mode: int = 2) -> str:
    """What `memory` must print at its end, with an arena that is a dictionary."""
    arena: dict[int, int] = {}
    words = pages * 1024
    numbers = random_numbers(seed)
    read = 0
    for _ in range(rounds):
        for access in range(pages if mode == 0 else pages * steps):
            place = next(numbers)
            if mode == 0:
                index = access * 1024 + (place >> 22)
            elif mode == 1:
                index = place * words >> 32
            else:
                index = next(numbers) * (words >> 3 if place >> 29 else words) >> 32
            number = next(numbers)
            if mode == 2 and number >> 30:
                read += arena.get(index, 0)
            else:
                arena[index] = arena.get(index, 0) + number & MASK
    total = sum(arena.values()) & MASK
    weighted = sum((index | 1) * value for index, value in arena.items()) & MASK
    return f"memory: checksum {total:#010x} weighted {weighted:#010x} read {read & MASK:#010x}"


def run(name: str, command_line: str = "", ram_mib: int | None = None, cpu: str = "max") -> QemuRun:
    guest = firmware.guests()[name]
    image = firmware.load(name, {"RSVD_WITHOUT_P": 1})
    return run_on_qemu(image.data, ram_mib or max(guest.ram_bytes >> 20, 2), command_line, cpu)


@pytest.mark.parametrize("name", GUESTS)
def test_a_guest_passes(name: str) -> None:
    result = run(name)
    computed = {"tasks": tasks_last_line, "memory": memory_last_line}
    assert result.console.splitlines()[-1] == (computed[name]() if name in computed else LAST_LINES[name])
    expected = EXIT_VALUES.get(name, GUESTS[name].exit_value)
    # QEMU itself ends with 0 when a triple fault resets the machine and -no-reboot is given.
    assert result.status == (0 if expected is None else expected << 1 | 1)


@pytest.mark.parametrize("name", ["paging32", "pae", "long64", "smc", "v86", "gates"])
def test_a_plainer_cpu_gives_the_same(name: str) -> None:
    assert run(name, cpu="qemu64") == run(name)


@pytest.mark.parametrize(
    ("given", "ram_mib", "pages"),
    [
        ({"mode": 0}, 16, 256),
        ({"mode": 1, "pages": 1}, 16, 1),
        ({"pages": 0, "mode": 1, "steps": 8, "seed": 77}, 16, 3836),
        ({"pages": 0, "rounds": 1, "steps": 8}, 2, 255),
        ({"seed": 123456789, "rounds": 5, "steps": 1, "mode": 2, "pages": 100}, 4, 100),
    ],
)
def test_memory_with_parameters(given: dict[str, int], ram_mib: int, pages: int) -> None:
    result = run("memory", " ".join(f"{name}={value}" for name, value in given.items()), ram_mib)
    assert result.console.splitlines()[-1] == memory_last_line(**{**given, "pages": pages})
    assert result.status == 1


def test_memory_refuses_more_pages_than_ram() -> None:
    message = "memory: pages=4000: RAM and address space have room for 3836 (more with a larger --ram)\n"
    assert run("memory", "pages=4000") == QemuRun(message, 5)


def test_tasks_with_many_switches() -> None:
    result = run("tasks", "switches=200")
    assert (result.console.splitlines()[-1], result.status) == (tasks_last_line(), 1)
