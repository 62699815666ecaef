"""The guest `apic`: all its cases on emu; on QEMU those that QEMU gets right; and its cases do notice mistakes."""

from __future__ import annotations

import re
from functools import cache

import pytest

from emu.boot import firmware
from emu.devices import apic_destination, ioapic
from emu.devices import lapic_registers as reg
from emu.devices.ioapic import IoApic
from emu.devices.lapic import LocalApic
from emu.devices.lapic_timer import ApicTimer
from emu.testing import boot
from tests.oracles.qemu_guest import QEMU, have_qemu, run_on_qemu

CPUS = (1, 2, 4)
MMUS = ("shadow", "nested")
CASES = re.findall(r'^    case "(.+)", \w+$', firmware.guests()["apic"].source.read_text(), re.M)
OF_TWO = {  # cases that need a second processor
    "start", "lowest priority: TPR", "NMI to others", "INIT and SIPI", "INIT de-assertion, SIPI while running",
    "I/O APIC: edge to another processor", "I/O APIC: level to another processor",
}  # fmt: skip
OF_THE_SERIAL_PORT = {
    "I/O APIC: edge", "I/O APIC: edge to another processor", "I/O APIC: logical destination",
    "I/O APIC: lowest priority", "I/O APIC: NMI", "I/O APIC: masked edge", "I/O APIC: level",
    "I/O APIC: level again after EOI", "I/O APIC: masked level", "I/O APIC: level to another processor",
    "I/O APIC: vector change while pending", "I/O APIC: EOI register", "I/O APIC: level to edge and back",
}  # fmt: skip
NOT_ON_QEMU = {
    "timer: TSC-deadline": "no TSC-deadline timer", "x2APIC: registers": "no x2APIC", "x2APIC: IPIs": "no x2APIC",
    "x2APIC: changes of mode": "no x2APIC",
}  # fmt: skip


def expected(cpus: int, wrong: dict[str, str], skipped: dict[str, str]) -> str:
    """The console of a run in which some cases are wrong, with these texts, and some skipped, for these reasons."""
    skipped = {**skipped, **(dict.fromkeys(OF_TWO, "one processor") if cpus == 1 else {})}
    wrong = {name: text for name, text in wrong.items() if name not in skipped}
    lines = [
        f"{name}: {wrong[name]}" if name in wrong else f"{name}: skipped: {skipped[name]}" if name in skipped
        else f"{name}: ok"
        for name in CASES
    ]  # fmt: skip
    return "\n".join([*lines, f"apic: {cpus} processors, {len(wrong)} cases wrong", ""])


def wrong_on_qemu(cpus: int) -> dict[str, str]:
    """The cases that QEMU 7.2 gets wrong, and what it does; the guest's head says why."""
    everybody, last = (1 << cpus) - 1, 1 << cpus - 1
    return {
        "illegal vector": "the interrupt: 0x00000001 instead of 0x00000000",
        "illegal register": "ESR after another write: 0x00000080 instead of 0x00000000",
        "software disable": "LVT: 0x00000057 instead of 0x00010057",
        "IPI: logical, clusters": f"destination FF: 0x00000000 instead of {everybody:#010x}",
        "lowest priority: TPR": f"who got it: 0x00000001 instead of {last:#010x}",
    }


def run_emu(cpus: int, mmu: str, append: str = "") -> tuple[str, int, int]:
    several = {"cpus": cpus} if cpus > 1 else {}
    guest = boot("apic", mmu=mmu, append=append, **several)
    status = guest.run(max_time="20s")
    return guest.console, status, guest.now


@cache
def emu_run(cpus: int, mmu: str) -> tuple[str, int, int]:
    """Console, status and virtual time of a run that tests share."""
    return run_emu(cpus, mmu)


def test_the_sets_name_cases() -> None:
    assert len(set(CASES)) == len(CASES) == 50
    assert {*OF_TWO, *OF_THE_SERIAL_PORT, *NOT_ON_QEMU, *wrong_on_qemu(4)} <= set(CASES)


@pytest.mark.parametrize("mmu", MMUS)
@pytest.mark.parametrize("cpus", CPUS)
def test_all_cases(cpus: int, mmu: str) -> None:
    console, status, _ = emu_run(cpus, mmu)
    assert console == expected(cpus, {}, {})
    assert status == 1


@pytest.mark.parametrize("cpus", CPUS)
def test_the_paging_architecture_cannot_be_seen(cpus: int) -> None:
    assert emu_run(cpus, "shadow") == emu_run(cpus, "nested")


@pytest.mark.parametrize("seed", range(3))
def test_all_cases_under_a_drawn_schedule(seed: int) -> None:
    guest = boot("apic", cpus=4, schedule=f"seed={seed}")
    guest.expect_status(1, max_time="20s")
    assert guest.console == expected(4, {}, {})


@pytest.mark.skipif(not have_qemu(), reason=f"{QEMU} is not installed")
@pytest.mark.parametrize("serial", [True, False])
@pytest.mark.parametrize("cpus", CPUS)
def test_the_cases_on_qemu(cpus: int, serial: bool) -> None:
    options = ["-serial", "null"] if serial else []
    image = firmware.load("apic").data
    result = run_on_qemu(image, 4, "patience=8192", cpus=cpus, thread="single", options=options)
    skipped = NOT_ON_QEMU if serial else {**NOT_ON_QEMU, **dict.fromkeys(OF_THE_SERIAL_PORT, "no serial port")}
    wrong = wrong_on_qemu(cpus)
    assert result.console == expected(cpus, wrong, skipped)
    assert result.status == 2 * len(set(wrong) - (OF_TWO if cpus == 1 else set())) + 1


# ---- a mistake in a device is noticed, by the cases that are meant for it


ENDS = IoApic.eoi


def sends_masked_edges(self: IoApic, number: int, writable: int, value: int) -> None:
    """A write to an entry that sends the edge that came while it was masked."""
    was = self.entries[number]
    self.entries[number] = was & ~writable | value & writable
    if was & ioapic.MASKED and not self.entries[number] & ioapic.MASKED and self.lines >> number & 1:
        self._message(self.entries[number])


def ends_all(self: IoApic, vector: int) -> None:
    """An EOI that does not look at its vector."""
    for entry in self.entries:
        ENDS(self, entry & 0xFF)


MISTAKES: dict[str, tuple[object, str, object, set[str]]] = {  # what is replaced by what; the cases that notice it
    "masked edges come later": (
        IoApic, "_write_entry", sends_masked_edges,  # which leaves remote IRR set, too
        {"I/O APIC: masked edge", "I/O APIC: EOI register", "I/O APIC: level to edge and back"},
    ),
    "no EOI message": (
        IoApic, "eoi", lambda self, vector: None,
        {"I/O APIC: level", "I/O APIC: level again after EOI", "I/O APIC: level to another processor",
         "I/O APIC: EOI register", "HPET"},
    ),
    "an EOI means all vectors": (IoApic, "eoi", ends_all, {"I/O APIC: vector change while pending"}),
    "software disable masks nothing": (
        LocalApic, "_write_svr", lambda self, register, value: self.registers.__setitem__(register, value),
        {"software disable"},
    ),
    "the timer divides by nothing": (
        ApicTimer, "set_divide", lambda self, divide, now_ns: setattr(self, "shift", 0), {"timer: divide"},
    ),
    "lowest priority is an unknown mode": (
        reg, "LOWEST", 99,
        {"lowest priority: one takes it", "lowest priority: TPR", "I/O APIC: lowest priority"},
    ),
    "FF is an ID": (
        reg, "BROADCAST", 0x1FF,
        {"IPI: nobody's ID", "IPI: shorthands and broadcast", "IPI: logical, clusters",
         "I/O APIC: logical destination"},
    ),
    "the cluster model is the flat one": (
        apic_destination, "FLAT", 0x0FFF_FFFF, {"IPI: logical, clusters"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_a_device_is_noticed(mistake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, name, wrong, cases = MISTAKES[mistake]
    monkeypatch.setattr(owner, name, wrong)
    console, status, _ = run_emu(4, "shadow", "patience=8")
    right = expected(4, {}, {}).splitlines()[:-1]
    lines = console.splitlines()
    assert {case for case, line, ok in zip(CASES, lines, right, strict=False) if line != ok} == cases, console
    assert lines[-1] == f"apic: 4 processors, {len(cases)} cases wrong"
    assert status == 2 * len(cases) + 1
