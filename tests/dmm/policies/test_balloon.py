"""The balloon from both ends: a guest that follows, one that does not, and one that says what makes no sense."""

from __future__ import annotations

import pytest

from emu.dmm.balloon_channel import BalloonChannel
from emu.dmm.p2m import PageType
from emu.dmm.policies.balloon import Balloon
from emu.errors import BadInput
from emu.testing import GuestUnderTest, boot
from tests.guests.programs import program

MMUS = ("shadow", "nested")
ARENA = 0x100  # first gfn of the pages that the guest "balloon" fills
PAGES = 64  # how many that are
RAM = 1024  # its pages
PORT = 0xF8


def with_balloon(guest: str, target: int = 0, **options: object) -> tuple[GuestUnderTest, Balloon]:
    """A guest whose balloon events are collected, each change audited."""
    running = boot(guest, events=["balloon-inflate", "balloon-deflate"], audit=True, **options)
    assert running.vm.guest is not None
    balloon = Balloon(running.vm.guest.image, target)
    running.vm.attach(balloon)
    return running, balloon


def moves(guest: GuestUnderTest) -> list[tuple[str, int]]:
    """The balloon events so far, as kind and gfn."""
    return [(event.NAME, event.gfn) for event in guest.events]  # type: ignore[attr-defined]


def inflated(*gfns: int) -> list[tuple[str, int]]:
    return [("balloon-inflate", gfn) for gfn in gfns]


def deflated(*gfns: int) -> list[tuple[str, int]]:
    return [("balloon-deflate", gfn) for gfn in gfns]


def last_line(guest: GuestUnderTest) -> str:
    return guest.console.splitlines()[-1]


# --- a guest that follows ---


@pytest.mark.parametrize("mmu", MMUS)
def test_frames_go_down_by_the_target_and_up_again(mmu: str) -> None:
    guest, balloon = with_balloon("balloon", mmu=mmu)
    pool = guest.vm.pool
    assert guest.run("5ms") == 124
    full = pool.used
    assert full > PAGES

    balloon.set_target(40)
    guest.wait_for("asked for 40, kept 24\n")
    assert (pool.used, len(balloon.held), balloon.target) == (full - 40, 40, 40)
    assert moves(guest) == inflated(*range(ARENA + 63, ARENA + 23, -1))

    balloon.set_target(10)
    guest.wait_for("asked for 10, kept 54\n")
    assert (pool.used, len(balloon.held)) == (full - 10, 10)
    assert moves(guest)[40:] == deflated(*range(ARENA + 24, ARENA + 54))

    balloon.set_target(RAM)
    guest.wait_for("asked for 1024, kept 0\n")
    assert (pool.used, len(balloon.held)) == (full - PAGES, PAGES)

    balloon.set_target(0)
    guest.expect_status(1)
    assert (pool.used, len(balloon.held), balloon.refused) == (full, 0, 0)
    assert last_line(guest).startswith("balloon: pages given 94, taken back 94 of which zeros 94, kept 64,")


def test_a_target_from_the_start() -> None:
    guest, balloon = with_balloon("balloon", 40)
    guest.expect_status(1)
    assert len(balloon.held) == 40
    assert last_line(guest).startswith("balloon: pages given 40, taken back 0 of which zeros 0, kept 24,")


def test_nobody_asks_for_anything() -> None:
    alone = boot("balloon")
    alone.expect_status(1)
    guest, _ = with_balloon("balloon")
    guest.expect_status(1)
    assert (guest.console, guest.now, moves(guest)) == (alone.console, alone.now, [])


def test_detaching_lets_the_guest_deflate() -> None:
    guest, balloon = with_balloon("balloon", 40)
    guest.wait_for("asked for 40, kept 24\n")
    pool = guest.vm.pool
    low = pool.used
    guest.vm.dmm.detach(balloon)
    assert (balloon.held, pool.used) == (set(), low)
    guest.expect_status(1)
    assert last_line(guest).startswith("balloon: pages given 40, taken back 40 of which zeros 40, kept 64,")
    assert (pool.used, moves(guest)[40:]) == (low + 40, []), "nobody listens any more"


def test_attaching_again() -> None:
    guest, balloon = with_balloon("balloon", 40)
    guest.wait_for("asked for 40, kept 24\n")
    guest.vm.dmm.detach(balloon)
    guest.vm.attach(balloon)
    assert balloon.target == 40
    guest.expect_status(1)
    assert last_line(guest).startswith("balloon: pages given 40, taken back 0 of which zeros 0, kept 24,")


# --- guests that do not ---


@pytest.mark.parametrize("mmu", MMUS)
def test_a_guest_without_a_driver_is_unaffected(mmu: str) -> None:
    alone = boot("memory", mmu=mmu)
    alone.expect_status(1)
    guest = boot("memory", mmu=mmu)
    assert guest.vm.guest is not None
    guest.vm.attach(Balloon(guest.vm.guest.image, 1000))
    guest.expect_status(1)
    assert (guest.console, guest.now, guest.vm.pool.used) == (alone.console, alone.now, alone.vm.pool.used)
    assert guest.vm.events.counts() == alone.vm.events.counts()


@pytest.mark.parametrize("mmu", MMUS)
@pytest.mark.parametrize("mode", ["protected", "paging32"])
def test_a_page_in_the_balloon_that_is_touched_reads_as_zeros(mmu: str, mode: str) -> None:
    code = """
    mov dword ptr [0x50000], 0x12345678
    mov dword ptr [0x51000], 0x12345678
    mov eax, 0x50
    out 0xF8, eax
    mov eax, 0x51
    out 0xF8, eax
    out 0xF8, eax                   # twice
    mov eax, [0x50000]
    mov dword ptr [0x50000], 7
    mov ebx, 0x50                   # it is not in the balloon any more
    xchg eax, ebx
    out 0xFC, eax
    mov eax, ebx
    add eax, [0x50000]
    out 0xF4, eax
    hlt
"""
    guest, balloon = with_balloon(program(mode, code), ram="1M", mmu=mmu)
    guest.expect_status(7 << 1 | 1)
    assert balloon.held == {0x51}
    assert moves(guest) == inflated(0x50, 0x51)
    assert guest.vm.p2m.type(0x51) is PageType.EMPTY


def test_pages_that_were_never_touched_and_pages_of_the_image() -> None:
    """The guest gives up its own code as well, and stays where it is until it runs into the zeros."""
    code = "mov eax, 0x90\n out 0xF8, eax\n mov eax, 9\n out 0xF8, eax\n mov eax, 0xB\n out 0xF8, eax\n hlt\n"
    image = ".fill 0x3000, 1, 0x90\n"
    guest, balloon = with_balloon(program("protected", code) + image, ram="1M")
    assert guest.vm.p2m.type(0xB) is PageType.IMAGE
    guest.run("1ms")
    assert balloon.held == {0x90, 9, 0xB}
    assert guest.vm.memory.read(0xB000, 16) == bytes(16)
    assert balloon.held == {0x90, 9}


@pytest.mark.parametrize("gfn", [0x100, 0xA_0000, 0xF_EB00, 0xF_FFFF, 0x10_0000, 0xFFFF_FFFF])
def test_what_is_no_memory_is_refused(gfn: int) -> None:
    code = f"mov eax, {gfn:#x}\n out 0xF8, eax\n out 0xFC, eax\n xor eax, eax\n out 0xF4, eax\n hlt\n"
    guest, balloon = with_balloon(program("protected", code), ram="1M")
    guest.expect_status(1)
    assert (balloon.refused, balloon.held, moves(guest)) == (2, set(), [])


def test_pinned_pages_stay() -> None:
    code = "mov eax, 0x50\n out 0xF8, eax\n xor eax, eax\n out 0xF4, eax\n hlt\n"
    guest, balloon = with_balloon(program("protected", code), ram="1M")
    guest.vm.memory.write(0x5_0000, b"here")
    guest.vm.dmm.pin(0x50)
    guest.expect_status(1)
    assert (balloon.refused, balloon.held) == (1, set())
    assert guest.vm.memory.read(0x5_0000, 4) == b"here"


def test_without_a_policy_nothing_is_lost() -> None:
    code = "mov dword ptr [0x50000], 7\n mov eax, 0x50\n out 0xF8, eax\n mov eax, [0x50000]\n out 0xF4, eax\n hlt\n"
    boot(program("protected", code), ram="1M").expect_status(7 << 1 | 1)


# --- the policy itself ---


def test_a_reported_page_is_free_and_not_in_the_balloon() -> None:
    guest, balloon = with_balloon("balloon")
    vm = guest.vm
    vm.memory.write(0x15_0000, b"x")
    used = vm.pool.used
    vm.dmm.balloon.report([0x150, 0x151, RAM])
    assert (vm.pool.used, balloon.held, balloon.refused) == (used - 1, set(), 1)
    vm.events.drain()
    assert moves(guest) == []
    assert vm.memory.read(0x15_0000, 1) == b"\0"


def test_targets_that_cannot_be() -> None:
    guest, balloon = with_balloon("balloon", 5)
    for pages in (-1, RAM + 1):
        with pytest.raises(BadInput, match=f"a target of {pages} pages, vm0 has {RAM}"):
            balloon.set_target(pages)
    assert balloon.target == 5
    balloon.set_target(RAM)


def test_one_balloon_for_each_vm() -> None:
    guest, balloon = with_balloon("balloon", 5)
    vm = guest.vm
    assert vm.guest is not None
    with pytest.raises(BadInput, match="vm0 has one already"):
        vm.attach(Balloon(vm.guest.image, 6))
    assert (vm.dmm.balloon.policy, vm.dmm.balloon.target) == (balloon, 5)
    vm.dmm.detach(balloon)
    with pytest.raises(BadInput, match="a target of 2000 pages"):
        vm.attach(Balloon(vm.guest.image, 2000))
    assert (vm.dmm.balloon.policy, vm.dmm.balloon.target) == (None, 0)
    vm.attach(Balloon(vm.guest.image, 6))


def test_front_ends_are_told_in_order() -> None:
    channel = BalloonChannel()
    told: list[tuple[int, int]] = []
    channel.front_ends += [lambda pages: told.append((1, pages)), lambda pages: told.append((2, pages))]
    channel.set_target(3)
    channel.set_target(0)
    assert told == [(1, 3), (2, 3), (1, 0), (2, 0)]
    channel.inflate([1])
    channel.deflate([1])
    channel.report([1])


def test_both_devices_show_the_target() -> None:
    guest, balloon = with_balloon("balloon", 5)
    assert guest.vm.platform.bus.read(PORT, 4) == 5
    assert guest.vm.platform.virtio_balloon.target == 5
    balloon.set_target(6)
    assert guest.vm.platform.bus.read(PORT, 4) == 6
    assert guest.vm.platform.virtio_balloon.target == 6
