"""The built-in BIOS against SeaBIOS, both on QEMU and here."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from emu.boot.low_memory import bios_rom
from tests.boot.bios_disks import BUFFER, RAM, Call, Dump, Result, call, probe, probe_disk, probe_on_qemu, results
from tests.oracles.qemu_guest import QEMU, have_qemu

SMAP = 0x534D4150
TICKS, MINUTE = 2, 18 * 60  # what the tick counter is set to, and about how far it goes in a minute
READ_TICKS = call(0x1A, eax=0x0000)


COMPARED: list[Call | Dump] = [
    call(0x11),
    call(0x12),
    call(0x13, eax=0x0000, edx=0x80),
    call(0x13, eax=0x0201, ebx=BUFFER, ecx=0x0001, edx=0x85),
    call(0x13, eax=0x0100, edx=0x80),
    call(0x13, eax=0x0201, ebx=BUFFER, ecx=0x0001, edx=0x00),
    call(0x13, eax=0x0200, ebx=BUFFER, ecx=0x0001, edx=0x80),
    call(0x13, eax=0x0281, ebx=BUFFER, ecx=0x0001, edx=0x80),
    call(0x13, eax=0x0201, ebx=BUFFER, ecx=0x0000, edx=0x80),
    call(0x13, eax=0x0201, ebx=BUFFER, ecx=0xFFFF, edx=0xFF80),
    call(0x13, eax=0x0202, ebx=BUFFER, ecx=0x0001, edx=0x80),
    Dump(BUFFER, 1024),
    call(0x13, eax=0x0404, ebx=BUFFER, ecx=0x0001, edx=0x80),
    call(0x13, eax=0x0301, ebx=BUFFER, ecx=0x0020, edx=0x80),
    call(0x13, eax=0x0201, ebx=BUFFER, ecx=0x0020, edx=0x80),
    Dump(BUFFER, 512),
    *(call(0x13, eax=ax, edx=dx) for ax in (0x0800, 0x1500) for dx in (0x80, 0x81)),
    *(call(0x13, eax=ax, ecx=1, edx=0x80) for ax in (0x0501, 0x0900, 0x0C00, 0x0D00, 0x1000, 0x1100, 0x1400, 0xFF00)),
    call(0x13, eax=0x4100, ebx=0x55AA, edx=0x80),
    call(0x13, eax=0x4100, ebx=0x55AA, edx=0x81),
    call(0x13, eax=0x4500, edx=0x80),
    call(0x13, eax=0x4E03, edx=0x80),
    *(call(0x15, eax=0xE820, ebx=n, ecx=20, edx=SMAP, edi=BUFFER) for n in range(3)),
    Dump(BUFFER, 20),
    call(0x15, eax=0xE820, ebx=0, ecx=24, edx=SMAP, edi=BUFFER),
    call(0x15, eax=0xE820, ebx=0, ecx=20, edx=0, edi=BUFFER),
    *(call(0x15, eax=ax) for ax in (0x2402, 0x2403, 0x2400, 0x2402, 0x2401, 0x2402, 0x2404, 0x4F1E, 0xC100, 0x0000)),
    *(call(0x16, eax=ax) for ax in (0x0100, 0x1100, 0x0200, 0x1200)),
    *(
        call(0x16, eax=ax, ecx=key)
        for key in (0x1E61, 0x48E0, 0xE00D, 0xE02F, 0x8500)
        for ax in (0x0500, 0x0100, 0x1100, 0x0000)
    ),
    call(0x1A, eax=0x0100, ecx=1, edx=TICKS),
    READ_TICKS,
    call(0x10, eax=0x0003),
    call(0x10, eax=0x0F00),
    call(0x10, eax=0x0200, edx=0x0507),
    call(0x10, eax=0x0300),
    call(0x10, eax=0x0E41, ebx=7),
    call(0x10, eax=0x0300),
    call(0x10, eax=0x0942, ebx=0x1E, ecx=3),
    call(0x10, eax=0x0300),
    call(0x10, eax=0x0100, ecx=0x0E0F),
    call(0x10, eax=0x0300),
    call(0x10, eax=0x0501),
    call(0x10, eax=0x0F00),
    call(0x10, eax=0x0500),
    call(0x10, eax=0x1A00),
    call(0x10, eax=0x1200, ebx=0x10),
    call(0x10, eax=0x1301, ebx=0x4E, ecx=5, edx=0x0A0A),
    call(0x10, eax=0x0300),
    call(0x10, eax=0x1300, ebx=0x4E, ecx=5, edx=0x0B4D),
    call(0x10, eax=0x0300),
    call(0x10, eax=0x0200, edx=0x184F),
    call(0x10, eax=0x0E5A, ebx=7),
    call(0x10, eax=0x0300),
]
ON_SCREEN: list[Call | Dump] = [
    call(0x10, eax=0x0003),
    call(0x10, eax=0x0200, edx=0x0507),
    call(0x10, eax=0x0942, ebx=0x1E, ecx=3),
    call(0x10, eax=0x0A43, ebx=0x1F, ecx=1),
    call(0x10, eax=0x0800),
    Dump(5 * 160, 32, 0xB800),
    call(0x10, eax=0x0602, ebx=0x3000, ecx=0x0207, edx=0x0608),
    call(0x10, eax=0x0701, ebx=0x2000, ecx=0x0307, edx=0x0407),
    Dump(0, 7 * 160, 0xB800),
    call(0x10, eax=0x0200, edx=0x184E),
    *(call(0x10, eax=0x0E41 + n, ebx=7) for n in range(4)),
    Dump(0, 4000, 0xB800),
]


def compare(steps: list[Call | Dump], ours: list[Result | bytes], theirs: list[Result | bytes]) -> None:
    assert len(ours) == len(theirs) == len(steps)
    for step, here, there in zip(steps, ours, theirs, strict=True):
        if isinstance(here, Result) and isinstance(there, Result):
            if step == READ_TICKS:  # QEMU's count goes on with the host's time
                assert here.edx == TICKS <= there.edx < TICKS + MINUTE
                there = replace(there, edx=here.edx)
            values = [
                (r.eax, r.ebx, r.ecx, r.edx, r.esi, r.edi, r.ebp, r.es, r.carry, r.zero and "16h", r.interrupts)
                for r in (here, there)
            ]
            if not (isinstance(step, Call) and step.number == 0x16):  # only there ZF says something
                values = [(*v[:9], *v[10:]) for v in values]
            assert values[0] == values[1], step
        else:
            assert here == there, step


@pytest.mark.skipif(not have_qemu(), reason=f"{QEMU} is not installed")
def test_services_answer_as_those_of_seabios_on_qemu(tmp_path: Path) -> None:
    steps = COMPARED + ON_SCREEN
    compare(steps, probe(tmp_path, *steps), results(probe_on_qemu(probe_disk(steps), RAM >> 20)))


@pytest.mark.skipif(not have_qemu(), reason=f"{QEMU} is not installed")
def test_our_bios_runs_on_qemu(tmp_path: Path) -> None:
    """Its devices are others' work: what the BIOS does not set up, we would not notice here."""
    rom = tmp_path / "bios"
    rom.write_bytes(bios_rom(RAM))
    steps = [*COMPARED, call(0x15, eax=0x8600, edx=20000), call(0x1A, eax=0xFF00)]
    there = results(probe_on_qemu(probe_disk(steps), RAM >> 20, ["-bios", str(rom)]))
    compare(steps, probe(tmp_path, *steps), there)
