"""The scanner that finds identical pages: what it merges and when, against a count of the contents themselves."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest
from xxhash import xxh3_64_intdigest

from emu.addr import PAGE_SIZE
from emu.dmm.p2m import PageType
from emu.dmm.policies import share
from emu.dmm.policies.share import Counters, Share
from emu.session import boot_vm, run_vm
from tests.dmm.model import GFNS, Side, make_sides
from tests.dmm.stub import DATA

PAGES = range(DATA, GFNS)
PAIRS = [("shadow", "shadow"), ("shadow", "nested"), ("nested", "nested")]
INTERVAL = share.INTERVAL_MS * 1_000_000  # ns
SAME = b"the same in all of them "


def gpa(gfn: int) -> int:
    return gfn * PAGE_SIZE


def write(side: Side, gfn: int, data: bytes) -> None:
    side.vm.memory.write(gpa(gfn), data)
    side.write(gfn, 0, data)


def scanner(side: Side) -> Share:
    policy = side.policies["share"]
    assert isinstance(policy, Share)
    return policy


def sides_with_share(*mmus: str, pool: int = GFNS, **options: object) -> list[Side]:
    sides = make_sides(*((mmu, "4level") for mmu in mmus), pools=(pool,) * len(mmus))
    for side in sides:
        side.attach("share", **options)
    return sides


def look_at_all(*sides: Side) -> None:
    """Each scanner goes all round once."""
    for side in sides:
        scanner(side).scan(GFNS)


def classes(*sides: Side) -> Counter[bytes]:
    """How many resident pages there are of each contents."""
    return Counter(side.holds(gfn) for side in sides for gfn in side.p2m.resident().tolist())


def frames(*sides: Side) -> int:
    """Frames behind the resident pages."""
    return len({side.p2m.mfn(gfn) for side in sides for gfn in side.p2m.resident().tolist()})


# --- what is merged, and when -----------------------------------------------------------------------------------


@pytest.mark.parametrize("mmu", ["shadow", "nested"])
def test_two_looks_and_not_before(mmu: str) -> None:
    (side,) = sides_with_share(mmu)
    for gfn in PAGES[:3]:
        write(side, gfn, SAME)
    look_at_all(side)
    assert frames(side) == 3 and scanner(side).counters() == Counters(0, 0, 0, 3, 1)
    look_at_all(side)
    assert frames(side) == 1 and scanner(side).counters() == Counters(1, 2, 1, 0, 2)
    side.check()


def test_a_page_that_changes_between_looks_is_left_alone() -> None:
    (side,) = sides_with_share("nested")
    write(side, DATA, SAME)
    for n in range(5):
        write(side, DATA + 1, SAME + bytes([n]))
        write(side, DATA + 2, SAME + bytes([n]))  # equal to the other at each look
        look_at_all(side)
        assert frames(side) == 3
        assert scanner(side).counters().volatile == 2 + (n == 0)
    look_at_all(side)
    assert frames(side) == 2
    side.check()


def test_what_is_shared_already_takes_a_new_page_at_once() -> None:
    (side,) = sides_with_share("shadow")
    for gfn in PAGES[:2]:
        write(side, gfn, SAME)
    look_at_all(side)
    look_at_all(side)
    write(side, DATA + 5, SAME)
    look_at_all(side)
    assert frames(side) == 1
    side.check()


@pytest.mark.parametrize("mmus", PAIRS, ids="-".join)
def test_identical_pages_of_two_vms(mmus: tuple[str, str]) -> None:
    first, second = sides = sides_with_share(*mmus)
    for side in sides:
        write(side, DATA, SAME)
    write(second, DATA + 1, b"different")
    look_at_all(*sides)
    assert frames(*sides) == 3
    look_at_all(*sides)
    assert frames(*sides) == 2
    assert first.p2m.mfn(DATA) == second.p2m.mfn(DATA)
    assert [scanner(side).counters().shared for side in sides] == [1, 1]
    assert [scanner(side).counters().sharing for side in sides] == [0, 0]
    assert first.pool.spare + second.pool.spare == 2 * GFNS - 2
    for side in sides:
        side.check()


@pytest.mark.parametrize("mmus", [("shadow",), *PAIRS], ids="-".join)
def test_the_counters_equal_a_count_of_the_contents(mmus: tuple[str, ...]) -> None:
    sides = sides_with_share(*mmus)
    random = Random(len(mmus))
    for side in sides:
        for gfn in PAGES:
            write(side, gfn, random.choice([SAME, b"x", b"y", b"", random.randbytes(9)]) + bytes(8))
        side.stub.load(gpa(DATA))
    for _ in range(4):
        look_at_all(*sides)
    kinds = classes(*sides)
    assert frames(*sides) == len(kinds)  # every two that are equal use one frame
    for side in sides:
        own = classes(side)
        shared = {contents for contents, count in kinds.items() if count > 1} & set(own)
        counters = scanner(side).counters()
        assert counters.shared == len(shared)
        assert counters.sharing == sum(own[contents] for contents in shared) - len(shared)
        assert counters.unshared == len(own) - len(shared)
        assert (counters.volatile, counters.full_scans) == (0, 4)
        side.check()


@pytest.mark.parametrize("mmus", PAIRS, ids="-".join)
def test_who_writes_gets_a_frame_of_its_own(mmus: tuple[str, str]) -> None:
    first, second = sides = sides_with_share(*mmus)
    for side in sides:
        write(side, DATA, SAME)
        write(side, DATA + 1, SAME)
    look_at_all(*sides)
    look_at_all(*sides)
    assert frames(*sides) == 1
    second.stub.store(gpa(DATA), 0xEE)
    second.write(DATA, 0, b"\xee")
    assert second.p2m.type(DATA) is PageType.RAM
    assert (scanner(first).counters().sharing, scanner(second).counters().sharing) == (1, 0)
    second.stub.store(gpa(DATA), SAME[0])
    second.write(DATA, 0, SAME[:1])
    look_at_all(second)
    assert scanner(second).counters().sharing >= 1  # it is in the stable table still
    for side in sides:
        assert side.stub.load(gpa(DATA)) == side.stub.load(gpa(DATA + 1)) == SAME[0]
        side.check()


# --- hashes that lie --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mmus", [("shadow",), ("nested", "nested")], ids="-".join)
@pytest.mark.parametrize("digest", [0, 1])
def test_pages_with_the_same_hash_are_compared(
    mmus: tuple[str, ...], digest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(share, "xxh3_64_intdigest", lambda page: digest)
    sides = sides_with_share(*mmus)
    random = Random(3)
    for side in sides:
        for gfn in PAGES:
            write(side, gfn, random.choice([SAME, b"x", b"y", random.randbytes(9)]))
    for _ in range(6):
        before = classes(*sides)
        look_at_all(*sides)
        assert classes(*sides) == before
        assert frames(*sides) >= len(before)
        for side in sides:
            side.check()
    assert frames(*sides) < sum(before.values())


# --- the rate ---------------------------------------------------------------------------------------------------


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The first eight bytes of each page that is looked at, in order."""
    looks: list[bytes] = []
    def count(page: memoryview) -> int:
        looks.append(bytes(page[:8]))
        return xxh3_64_intdigest(page)

    monkeypatch.setattr(share, "xxh3_64_intdigest", count)
    return looks


@pytest.mark.parametrize("rate", [1, 3, 100])
def test_the_rate_is_kept(rate: int, hashed: list[bytes]) -> None:
    (side,) = sides_with_share("nested", rate=rate)
    pages, least = len(PAGES), min(rate * share.INTERVAL_MS, len(PAGES))
    for gfn in PAGES:
        write(side, gfn, gfn.to_bytes(8, "little"))
    expected = [gfn.to_bytes(8, "little") for gfn in PAGES] * 10
    policy = scanner(side)
    for epoch in range(1, 11):
        policy.epoch(epoch * INTERVAL)
        assert policy.deadline() == (epoch + 1) * INTERVAL
        assert hashed == expected[: least * epoch]
        assert policy.counters().full_scans == least * epoch // pages


def test_no_page_is_looked_at_twice_in_an_epoch(hashed: list[bytes]) -> None:
    """It was volatile, or it was not: two looks at one moment cannot tell."""
    (side,) = sides_with_share("nested")
    for gfn in PAGES[:10]:
        write(side, gfn, gfn.to_bytes(8, "little"))
    scanner(side).scan(8)
    for gfn in PAGES[:8]:
        side.discard(gfn)
    hashed.clear()
    scanner(side).scan(5)
    assert hashed == [gfn.to_bytes(8, "little") for gfn in PAGES[8:10]]
    for gfn in PAGES[:10]:
        side.discard(gfn)
    hashed.clear()
    scanner(side).scan(5)
    assert hashed == []


def test_epochs_come_in_virtual_time(hashed: list[bytes]) -> None:
    vm = boot_vm("tasks", append="switches=40", policies=["share:rate=1"])
    assert run_vm(vm).status == 1
    epochs = vm.now // INTERVAL
    assert epochs > 3
    shared = vm.events.counts()["share"] + 1  # pages that have been merged are passed over
    assert (epochs - shared) * share.INTERVAL_MS <= len(hashed) <= epochs * share.INTERVAL_MS


# --- coming and going -------------------------------------------------------------------------------------------


def test_attached_and_detached_while_the_guest_runs() -> None:
    side = make_sides(("shadow", "4level"), pools=(GFNS,))[0]
    for gfn in PAGES[:6]:
        write(side, gfn, SAME)
    side.stub.load(gpa(DATA))
    side.attach("share")
    look_at_all(side)
    look_at_all(side)
    merged = frames(side)
    policy = scanner(side)
    assert policy.counters().sharing >= 5
    side.dmm.detach(policy)
    assert frames(side) == merged
    side.stub.store(gpa(DATA + 1), 0xEE)
    side.write(DATA + 1, 0, b"\xee")
    assert frames(side) == merged + 1
    side.check()
    side.attach("share")
    look_at_all(side)
    look_at_all(side)
    assert side.stub.load(gpa(DATA + 1)) == 0xEE
    side.check()


@pytest.mark.parametrize("leaver", [0, 1])
@pytest.mark.parametrize("when", ["with hints", "with shared frames"])
def test_a_vm_that_is_gone_is_not_looked_for(leaver: int, when: str) -> None:
    sides = sides_with_share("shadow", "nested", "nested")
    for side in sides:
        write(side, DATA, SAME)
        write(side, DATA + 1, b"another")
    look_at_all(*sides)
    if when == "with shared frames":
        look_at_all(*sides)
        assert frames(*sides) == 2
    else:
        look_at_all(sides[leaver])  # only its own hints are there
    sides[leaver].vm.close()
    others = [side for side in sides if side is not sides[leaver]]
    for _ in range(3):
        look_at_all(*others)
        for side in others:
            side.check()
    assert frames(*others) == 2


def test_one_scanner_is_detached_and_the_others_go_on() -> None:
    first, second, third = sides = sides_with_share("nested", "nested", "shadow")
    for side in sides:
        write(side, DATA, SAME)
    first.dmm.detach(scanner(first))
    look_at_all(second, third)
    look_at_all(second, third)
    assert frames(second, third) == 1 and frames(*sides) == 2
    first.attach("share")
    look_at_all(first)
    assert frames(*sides) == 1
    for side in sides:
        side.check()


def test_hints_do_not_outlive_a_round_of_all_scanners() -> None:
    """A hint is good until every scanner has been all round."""
    first, second = sides_with_share("nested", "nested")
    write(first, DATA, SAME)
    look_at_all(first, second)
    look_at_all(first)
    write(first, DATA, b"different")  # the hint is out of date
    write(second, DATA, SAME)
    look_at_all(second)
    look_at_all(second)
    assert frames(first, second) == 2
    write(second, DATA + 1, SAME)
    look_at_all(second)
    look_at_all(second)
    assert frames(first, second) == 2  # of three pages
    first.check()
    second.check()


def test_the_tables_are_inverse_to_each_other_when_a_frame_is_shared_again() -> None:
    """A frame that was freed and got other contents, and contents that are in another frame now."""
    tables = share._Tables()
    tables.add(1, 100)
    tables.add(2, 100)  # the frame, with other contents
    assert (tables.stable, tables.hashes) == ({2: 100}, {100: 2})
    tables.add(2, 101)  # the contents, in another frame
    assert (tables.stable, tables.hashes) == ({2: 101}, {101: 2})
    tables.add(3, 100)
    tables.add(2, 100)  # both
    tables.remove(2)
    assert not tables.stable and not tables.hashes
