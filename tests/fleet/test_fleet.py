"""Many VMs on one machine memory: each guest runs as if it were alone, and the failure of one is nobody else's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from emu.fleet.file import load_fleet
from emu.fleet.fleet import Fleet, FleetPlan, FleetStop, Member, VmPlan
from emu.fleet.steps import Step
from emu.fleet.summary import status_of, summarise_fleet
from emu.machine.vm import VirtualMachine
from emu.observe.trace import EventWriter
from emu.options import BootOptions
from emu.session import boot_vm, run_vm

MMUS = ("shadow", "nested")
MS = 1_000_000
MB = 1 << 20
WORK = "pages=48 rounds=2 steps=16 mode=1"
LOOP = ".code16\nhere:\n jmp here\n"
SLEEP = ".code16\n sti\nhere:\n hlt\n jmp here\n"
# fills 16 pages with the same word, waits about 50 virtual ms, changes a page, checks all others, ends with 0
TWIN = f"""
.code16
    cld
    mov ax, 0x1000
    mov es, ax
    xor di, di
    mov cx, 0x8000
    mov ax, 0x5A5A
    rep stosw
    mov esi, 200000
wait:
    {"mov ebx, 0x12345678; " * 40}
    dec esi
    jnz wait
    mov word ptr es:[0xF000], 1
    xor di, di
    mov cx, 0x7800
    repe scasw
    mov al, 1
    jne end
    cmp word ptr es:[0xF000], 1
    jne end
    mov al, 0
end:
    out 0xE9, al
    out 0xF4, al
    hlt
""".replace("; ", "\n")
TABLES = 640 << 10  # bytes of shadow tables of a VM with 4M of RAM, and some to spare


def vm_plan(
    name: str, guest: str | Path, ram: int, pool: int, mmu: str = "shadow", policies: Sequence[str] = (),
    *, start: int = 0, schedule: tuple[Step, ...] = (), **options: Any,
) -> VmPlan:  # fmt: skip
    boot = BootOptions(ram=ram, pool=pool, mmu=mmu, policies=policies, **options)
    return VmPlan(name, guest, boot, start=start, schedule=schedule)


def memory_guest(name: str, append: str = WORK, **options: Any) -> VmPlan:
    return vm_plan(name, "memory", append=append, **({"ram": 4 * MB, "pool": MB} | options))


def fleet_of(*vms: VmPlan, memory: int = 16 * MB, **options: Any) -> Fleet:
    return Fleet(FleetPlan(memory, vms), **options)


def run(*vms: VmPlan, memory: int = 16 * MB, audit: bool = True) -> Fleet:
    fleet = fleet_of(*vms, memory=memory, audit=audit)
    assert fleet.run(until=2_000 * MS) is FleetStop.ENDED
    assert fleet.machine.memory.free == fleet.machine.memory.frames - 1 - retired(fleet)
    return fleet


def retired(fleet: Fleet) -> int:
    return int((fleet.machine.memory.purpose == 4).sum())


def ends(fleet: Fleet) -> list[str]:
    return [member.state for member in fleet.members]


def only(fleet: Fleet) -> Member:
    (member,) = fleet.members
    return member


def logged(plan: FleetPlan, drive: Callable[[Fleet], object]) -> tuple[bytes, dict[str, Any]]:
    """The event log and the summary of a fleet."""
    log: list[bytes] = []
    fleet = Fleet(plan, on_start=lambda vm: vm.events.listen(EventWriter(log.append)))
    drive(fleet)
    assert fleet.is_over
    return b"".join(log), summarise_fleet(fleet, FleetStop.ENDED, status_of(fleet, FleetStop.ENDED), 0)


@pytest.fixture
def guest(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        path = tmp_path / "guest.s"
        path.write_text(text)
        return path

    return write


def mixed(mmu: str, twin: Path) -> FleetPlan:
    """Sharing across VMs, swapping, a balloon, a late start, and every kind of step."""
    vms = (
        vm_plan("a", twin, MB, 80 << 10, mmu, ("share:rate=100", "swap")),
        vm_plan("b", twin, MB, 80 << 10, mmu, ("share:rate=100", "swap")),
        vm_plan(
            "giver", "balloon", 4 * MB, MB, mmu, ("balloon",), append="pages=64 rounds=24",
            schedule=(Step(MS, "balloon", "128K"), Step(4 * MS, "balloon", "0")),
        ),
        memory_guest(
            "changing", policies=("swap",), mmu=mmu, start=2 * MS, append="pages=48 rounds=12 steps=64 mode=1",
            schedule=(
                Step(3 * MS, "pool", "128K"), Step(3 * MS, "attach", "share"), Step(4 * MS, "pool", "256M"),
                Step(4 * MS, "retire", 3), Step(5 * MS, "pool", "512K"), Step(5 * MS, "detach", "swap"),
            ),
        ),
    )  # fmt: skip
    return FleetPlan(10 * MB, vms)


# --- determinism, and guests that notice nothing ---


@pytest.mark.parametrize("mmu", MMUS)
def test_the_same_plan_gives_the_same_events_and_summary(mmu: str, guest: Callable[[str], Path]) -> None:
    plan = mixed(mmu, guest(TWIN))
    first = logged(plan, lambda fleet: fleet.run())
    assert first == logged(plan, lambda fleet: fleet.run())
    for kind in ("share", "unshare", "evict", "balloon-inflate", "retire", "pool-resize"):
        assert f'"{kind}"'.encode() in first[0], kind
    assert first[1]["status"] == 0
    steps = first[1]["vms"][3]["schedule"]
    assert [step["refused"] is None for step in steps] == [True, True, False, True, True, True]


def test_a_fleet_that_was_stopped_runs_on_as_if_it_had_not_been(guest: Callable[[str], Path]) -> None:
    plan = mixed("shadow", guest(TWIN))

    def with_stops(fleet: Fleet) -> None:
        stops = 0
        while fleet.run(after_turn=fleet.request_stop) is FleetStop.STOPPED:
            stops += 1
            if stops % 5 == 0:
                for vm in fleet.running:
                    vm.request_stop()  # cuts its next turn short
        assert stops > 5

    assert logged(plan, with_stops) == logged(plan, lambda fleet: fleet.run())


@pytest.mark.parametrize("mmu", MMUS)
def test_each_guest_prints_what_it_prints_alone(mmu: str, guest: Callable[[str], Path]) -> None:
    plan = mixed(mmu, guest(TWIN))
    retiring = "retire:every=100us,count=20"
    vms = [replace(vm, options=replace(vm.options, policies=(*vm.options.policies, retiring))) for vm in plan.vms]
    fleet = run(*vms, memory=plan.memory, audit=False)
    for vm, member in zip(plan.vms, fleet.members, strict=True):
        if vm.name == "giver":
            continue  # tells how often it was asked
        alone = boot_vm(vm.guest, ram=vm.options.ram, mmu=mmu, append=vm.options.append)
        assert run_vm(alone).status == 1
        assert member.console == bytes(alone.platform.console) != b""
        assert member.numbers is not None and member.numbers.time == alone.now


def test_turns_are_in_the_order_of_the_plan_and_clocks_keep_to_the_rounds(guest: Callable[[str], Path]) -> None:
    loop = guest(LOOP)
    turns: list[list[int]] = []
    fleet = fleet_of(
        vm_plan("first", loop, MB, 64 << 10), vm_plan("late", loop, MB, 64 << 10, start=2 * MS + 1), memory=4 * MB
    )
    assert fleet.run(5 * MS, lambda: turns.append([vm.now // MS for vm in fleet.running])) is FleetStop.MAX_TIME
    assert turns == [[1], [2], [3], [4, 0], [4, 1], [5, 1], [5, 2]]
    assert [member.started for member in fleet.members] == [0, 3 * MS]
    assert all(vm.now % MS < 1000 for vm in fleet.running)
    assert status_of(fleet, FleetStop.MAX_TIME) == 124
    summary = summarise_fleet(fleet, FleetStop.MAX_TIME, 124, 0)
    assert [vm["outcome"] for vm in summary["vms"]] == ["unfinished", "unfinished"]
    fleet.close()


# --- more memory than there is ---


@pytest.mark.parametrize("mmu", MMUS)
def test_guests_with_more_memory_than_the_machine_finish_with_the_right_sums(mmu: str) -> None:
    guests = [
        memory_guest(
            f"g{seed}", f"pages=300 rounds=1 steps=8 mode=1 seed={seed}", pool=256 << 10, policies=("swap",), mmu=mmu
        )
        for seed in range(4)
    ]
    fleet = run(*guests, memory=4 * MB, audit=False)
    assert ends(fleet) == ["exit"] * 4 and fleet.well == 4
    assert fleet.peaks.committed << 12 == 4 * 4 * MB
    for member in fleet.members:
        assert member.numbers is not None
        assert member.numbers.evictions > 500 and member.numbers.swapped > 100


def test_identical_guests_share_their_frames(guest: Callable[[str], Path]) -> None:
    twin = guest(TWIN)
    apart, together = (
        run(*(vm_plan(f"g{index}", twin, MB, MB, policies=policies) for index in range(3)))
        for policies in ((), ("share:rate=100",))
    )
    assert apart.peaks.saved == 0
    assert together.peaks.saved >= 3 * 16 - 1
    assert apart.well == together.well == 3
    assert all(member.numbers is not None and member.numbers.unshared for member in together.members)


# --- failures ---


@pytest.mark.parametrize("mmu", MMUS)
def test_a_vm_that_fails_leaves_the_others_alone(mmu: str) -> None:
    fleet = run(
        vm_plan("crash", "crash", MB, MB, mmu),
        memory_guest("before", mmu=mmu, policies=("share",)),
        memory_guest("small", mmu=mmu, pool=64 << 10),
        memory_guest("stuffed", mmu=mmu, pool=128 << 10, policies=("share", "swap:memory=4K")),
        memory_guest("behind", mmu=mmu, policies=("share",)),
        vm_plan("wrong", "memory", 2 * MB, MB, mmu, append="pages=5000"),
    )
    assert ends(fleet) == ["crash", "exit", "out-of-frames", "store-full", "exit", "exit"]
    assert [member.end.well for member in fleet.members if member.end] == [False, True, False, False, True, False]
    assert "16 frames of the pool" in fleet.members[2].end.sentence  # type: ignore[union-attr]
    assert "4096 bytes of compressed pages" in fleet.members[3].end.sentence  # type: ignore[union-attr]
    assert status_of(fleet, FleetStop.ENDED) == 1


def test_a_guest_that_sleeps_for_ever_ends_unless_its_schedule_goes_on(guest: Callable[[str], Path]) -> None:
    sleep = guest(SLEEP)
    step = Step(7 * MS, "balloon", "64K")
    asked = vm_plan("asked", sleep, MB, MB, policies=("balloon",), schedule=(step,))
    fleet = run(vm_plan("idle", sleep, MB, MB), asked)
    assert ends(fleet) == ["halted", "halted"]
    assert [member.end.time // MS for member in fleet.members if member.end] == [1, 8]
    assert fleet.members[1].steps[0].refused is None


def test_a_fault_of_emu_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: VirtualMachine, until: int) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(VirtualMachine, "run", broken)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        run(memory_guest("a"))


# --- starts ---


def test_a_late_vm_gets_the_frames_of_one_that_has_ended() -> None:
    memory = TABLES + MB
    fleet = run(memory_guest("first"), memory_guest("second", start=40 * MS), memory=memory)
    assert ends(fleet) == ["exit", "exit"]
    assert fleet.members[1].started == 40 * MS
    assert fleet.now < 60 * MS  # and nobody waited for it round by round


def test_a_late_vm_without_frames_never_starts(guest: Callable[[str], Path]) -> None:
    loop = vm_plan("first", guest(LOOP), 4 * MB, MB, schedule=(Step(9 * MS, "shutdown", 1),))
    late = memory_guest("late", start=2 * MS, schedule=(Step(3 * MS, "pool", "2M"),))
    fleet = run(loop, late, memory=TABLES + MB)
    assert ends(fleet) == ["shut-down", "not-started"]
    assert fleet.members[0].end == fleet.members[0].end and fleet.members[0].end.well  # type: ignore[union-attr]
    assert "more than the machine has free" in fleet.members[1].end.sentence  # type: ignore[union-attr]
    assert fleet.members[1].steps[0].refused == "the VM never started"
    summary = summarise_fleet(fleet, FleetStop.ENDED, 1, 0)["vms"][1]
    assert (summary["outcome"], summary["started_ns"], "memory" in summary) == ("not-started", None, False)


# --- the schedule ---


def steps_of(*steps: tuple[int, str, str | int], guest: Path, **options: Any) -> tuple[Fleet, list[str | None]]:
    """A guest that does nothing, with these steps, the last of them a shutdown; and why they were refused."""
    schedule = (*(Step(at * MS, action, value) for at, action, value in steps), Step(50 * MS, "shutdown", 1))
    plan = vm_plan("vm", guest, **({"ram": 2 * MB, "pool": MB} | options), schedule=schedule)
    fleet = run(plan)
    return fleet, [result.refused for result in only(fleet).steps][:-1]


def test_pools_shrink_and_grow_or_stay_as_they_are(guest: Callable[[str], Path]) -> None:
    fleet, refused = steps_of(
        (1, "pool", "512K"), (2, "pool", "2M"), (3, "pool", "2G"), (4, "pool", "0"), guest=guest(LOOP)
    )
    assert refused[:2] == [None, None]
    assert refused[2] is not None and "can do with 4 to" in refused[2]
    assert refused[3] is not None and "can do with 4 to" in refused[3]
    assert only(fleet).numbers.pool == 512  # type: ignore[union-attr]


def test_policies_come_and_go(guest: Callable[[str], Path]) -> None:
    _, refused = steps_of(
        (1, "attach", "share:rate=7"), (2, "attach", "share"), (3, "detach", "share"), (4, "detach", "share"),
        (5, "detach", "demand"), (6, "balloon", "64K"), (7, "attach", "balloon"), (8, "balloon", "64K"),
        (9, "balloon", "1G"), guest=guest(LOOP),
    )  # fmt: skip
    assert refused == [
        None,
        "share: vm has a policy of this name already",
        None,
        "share: vm has no policy of this name at the moment",
        "demand: vm has no other policy that gives frames to pages",
        "balloon: vm has no policy of this name at the moment",
        None,
        None,
        "balloon: a target of 262144 pages, vm has 512",
    ]


def test_swapping_switched_off_brings_all_pages_back_or_stays() -> None:
    steps = (Step(MS, "detach", "swap"), Step(2 * MS, "pool", "1M"), Step(2 * MS, "detach", "swap"))
    guest = memory_guest("vm", "pages=64 rounds=32 mode=1", pool=128 << 10, policies=("swap",), schedule=steps)
    fleet = run(guest, audit=False)
    first, second, third = only(fleet).steps
    assert first.refused is not None and "in use" in first.refused
    assert second.refused is third.refused is None
    assert ends(fleet) == ["exit"] and fleet.well == 1
    assert only(fleet).numbers.swapped == 0  # type: ignore[union-attr]


def test_frames_go_out_of_service() -> None:
    step = Step(MS, "retire", 5)
    fleet = run(memory_guest("vm", schedule=(step, Step(MS, "retire", 4000), Step(900 * MS, "pool", "1M"))))
    refused = [result.refused for result in only(fleet).steps]
    assert refused[0] is None
    assert refused[1] is not None and "frames in use" in refused[1]
    assert refused[2] == "the VM had ended"
    assert retired(fleet) == 5 and fleet.well == 1


def test_vms_with_two_processors_each(tmp_path: Path) -> None:
    """They run in turns of the fleet as they run alone."""
    text = """
        [machine]
        memory = "32M"
        quantum = "300us"
        [[vm]]
        name = "two"
        count = 2
        guest = "smp"
        cpus = 2
        append = "rounds=5 forget=2"
    """
    (tmp_path / "fleet.toml").write_text(text)
    plan = load_fleet(tmp_path / "fleet.toml")
    fleet = Fleet(plan)
    assert fleet.run() == FleetStop.ENDED
    alone = boot_vm("smp", cpus=2, append="rounds=5 forget=2")
    assert run_vm(alone).status == 1
    assert [member.plan.name for member in fleet.members] == ["two-0", "two-1"]
    for member in fleet.members:
        assert member.report is not None and member.report["cpus"] == 2
        assert member.console == bytes(alone.platform.console)
        assert member.report["virtual_ns"] == alone.now
