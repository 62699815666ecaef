"""What becomes of a guest whose evicted pages cannot be stored or are damaged: it stops, and never sees wrong data."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from emu.addr import PAGE_SIZE
from emu.cli import main
from emu.dmm.errors import CompressionFailed, NotEnoughSpare, StoreCorrupt, StoreFailed, StoreFull
from emu.dmm.p2m import PageType
from emu.dmm.policies import store
from emu.dmm.policies.store import SLOT_SIZE, SLOTS_AT
from emu.dmm.policies.swap import Swap
from emu.observe.outcome import Ending
from emu.testing import GuestUnderTest, boot
from tests.dmm.model import GFNS, Side, make_sides
from tests.dmm.stub import DATA

GUEST, APPEND, POOL = "memory", "mode=1 pages=96 steps=8", "160K"
PAGES = range(DATA, GFNS)
MMUS = ("shadow", "nested")


def refuse_compression(page: bytes) -> bytes:
    raise MemoryError("no memory to compress in")


def no_room(fd: int, data: bytes, offset: int) -> int:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def refuse_reading(fd: int, size: int, offset: int) -> bytes:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


# --- a guest of the model, page by page -------------------------------------------------------------------------


def side_with_store(mmu: str, **options: object) -> Side:
    """Each page of the guest holds what no codec makes smaller; as many as possible are evicted."""
    side = make_sides((mmu, "4level"))[0]
    side.attach("swap", **options)
    random = Random(1)
    for gfn in PAGES:
        data = random.randbytes(PAGE_SIZE)
        side.vm.memory.write(gfn * PAGE_SIZE, data)
        side.write(gfn, 0, data)
    return side


def evicted(side: Side) -> list[int]:
    return [gfn for gfn in PAGES if side.p2m.type(gfn) is PageType.EVICTED]


def touch(side: Side, gfn: int) -> None:
    assert side.stub.load(gfn * PAGE_SIZE + 7) == side.contents[gfn][7]


def check_what_is_resident(side: Side) -> None:
    side.vm.audit()
    for gfn in PAGES:
        if side.dmm.is_resident(gfn):
            assert side.holds(gfn) == side.contents[gfn]


def flip(data: bytearray) -> None:
    for at in range(SLOTS_AT + SLOT_SIZE // 2, len(data), SLOT_SIZE):
        data[at] ^= 0x10


def truncate(data: bytearray) -> None:
    del data[SLOTS_AT + 100 :]


def swap_slots(data: bytearray) -> None:
    """Every slot in the place of its neighbour."""
    slots = [bytes(data[at : at + SLOT_SIZE]) for at in range(SLOTS_AT, len(data), SLOT_SIZE)]
    data[SLOTS_AT:] = b"".join([*slots[1:], slots[0]])


def zero(data: bytearray) -> None:
    data[SLOTS_AT:] = bytes(len(data) - SLOTS_AT)


@pytest.mark.parametrize("mmu", MMUS)
@pytest.mark.parametrize("damage", [flip, truncate, swap_slots, zero])
def test_a_damaged_file(mmu: str, damage: Callable[[bytearray], None], tmp_path: Path) -> None:
    """Every page in it is refused, all others are there; once the file is as it was, so is the guest."""
    path = tmp_path / "swap"
    side = side_with_store(mmu, memory=0, file=str(path))
    swap = side.swap
    assert swap is not None
    touch(side, PAGES[0])
    side.dmm.evict(PAGES[0], swap)  # there is a spare frame, so that nothing else is evicted below
    good = path.read_bytes()
    bad = bytearray(good)
    damage(bad)
    path.write_bytes(bad)
    lost = evicted(side)
    assert len(lost) > 5
    for gfn in lost:
        with pytest.raises(StoreCorrupt) as caught:
            touch(side, gfn)
        assert (caught.value.vm, caught.value.gfn) == (side.vm.name, gfn)
        assert side.vm.name in str(caught.value) and f"gfn {gfn:#x}" in str(caught.value)
        check_what_is_resident(side)
        assert evicted(side) == lost
    with pytest.raises(StoreCorrupt):
        side.dmm.detach(swap)
    assert swap in side.dmm.policies
    check_what_is_resident(side)
    path.write_bytes(good)
    for gfn in PAGES:
        touch(side, gfn)
    side.check()


@pytest.mark.parametrize("mmu", MMUS)
def test_a_file_that_cannot_be_read_for_a_while(mmu: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    side = side_with_store(mmu, memory=0, file=str(tmp_path / "swap"))
    gfn = evicted(side)[0]
    with monkeypatch.context() as patch:
        patch.setattr(os, "pread", refuse_reading)
        with pytest.raises(StoreFailed, match="Input/output error") as caught:
            touch(side, gfn)
        assert (caught.value.vm, caught.value.gfn) == (side.vm.name, gfn)
        check_what_is_resident(side)
    for gfn in PAGES:
        touch(side, gfn)
    side.check()


@pytest.mark.parametrize("mmu", MMUS)
def test_a_disk_that_is_full_for_a_while(mmu: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    side = side_with_store(mmu, memory=0, file=str(tmp_path / "swap"))
    resident = set(side.p2m.resident().tolist())
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", no_room)
        with pytest.raises(StoreFailed, match="No space left on device") as caught:
            for gfn in PAGES:
                touch(side, gfn)
        assert caught.value.vm == side.vm.name and caught.value.gfn in resident | set(PAGES)
        assert side.dmm.is_resident(caught.value.gfn)  # it could not be evicted
        side.check()
        with pytest.raises(StoreFailed):
            side.dmm.shrink(side.pool.size)
        side.check()
    for gfn in PAGES:
        touch(side, gfn)
    side.check()


@pytest.mark.parametrize("mmu", MMUS)
def test_compression_that_fails_for_a_while(mmu: str) -> None:
    side = side_with_store(mmu)
    swap = side.swap
    assert swap is not None
    compress = swap.store._compress  # type: ignore[attr-defined]
    swap.store._compress = refuse_compression  # type: ignore[attr-defined]
    with pytest.raises(CompressionFailed, match="no memory to compress in") as caught:
        for gfn in PAGES:
            touch(side, gfn)
    assert caught.value.vm == side.vm.name and side.dmm.is_resident(caught.value.gfn)
    side.check()
    swap.store._compress = compress  # type: ignore[attr-defined]
    for gfn in PAGES:
        touch(side, gfn)
    side.check()


@pytest.mark.parametrize("mmu", MMUS)
def test_flipped_bits_in_a_compressed_page(mmu: str) -> None:
    side = make_sides((mmu, "4level"))[0]
    side.attach("swap")
    swap = side.swap
    assert swap is not None
    side.vm.memory.write(DATA * PAGE_SIZE, b"compressible " * 100)
    side.write(DATA, 0, b"compressible " * 100)
    side.dmm.evict(DATA, swap)
    packed = swap.store._packed  # type: ignore[attr-defined]
    good, checksum = packed[DATA]
    for at in range(len(good)):
        packed[DATA] = good[:at] + bytes([good[at] ^ 0x40]) + good[at + 1 :], checksum
        with pytest.raises(StoreCorrupt) as caught:
            touch(side, DATA)
        assert (caught.value.vm, caught.value.gfn) == (side.vm.name, DATA)
        assert side.p2m.type(DATA) is PageType.EVICTED
        side.vm.audit()
    packed[DATA] = good, checksum
    touch(side, DATA)
    side.check()


@pytest.mark.parametrize("mmu", MMUS)
def test_a_store_that_is_full_until_another_takes_over(mmu: str) -> None:
    side = make_sides((mmu, "4level"))[0]
    side.attach("swap", memory=2 * PAGE_SIZE)
    small = side.swap
    assert small is not None
    random = Random(1)
    with pytest.raises(StoreFull) as caught:
        for gfn in PAGES:
            data = random.randbytes(PAGE_SIZE)
            side.vm.memory.write(gfn * PAGE_SIZE, data)
            side.write(gfn, 0, data)
    assert caught.value.vm == side.vm.name and side.dmm.is_resident(caught.value.gfn)
    assert f"{2 * PAGE_SIZE} bytes of compressed pages" in str(caught.value)
    side.check()
    side.attach("swap")
    side.dmm.detach(small)
    for gfn in PAGES:
        touch(side, gfn)
    side.check()


def test_a_pool_that_would_shrink_below_what_is_pinned_changes_nothing() -> None:
    side = side_with_store("shadow")
    for gfn in PAGES[:3]:
        side.dmm.pin(gfn)
        side.pins[gfn] = 1
    size = side.pool.size
    with pytest.raises(NotEnoughSpare) as caught:
        side.dmm.shrink(size - 2)
    assert caught.value.vm == side.vm.name and caught.value.pinned == list(PAGES[:3])
    assert f"gfn {PAGES[0]:#x}" in str(caught.value)
    assert side.pool.size == size
    for gfn in PAGES:
        touch(side, gfn)
    side.check()


# --- a whole guest ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def console() -> str:
    guest = boot(GUEST, append=APPEND)
    guest.expect_status(1)
    return guest.console


def stopped(guest: GuestUnderTest, ending: Ending, status: int) -> None:
    """The guest has run into an error, and waits before the same instruction as often as it is tried."""
    times = set()
    for _ in range(2):
        assert guest.run() == status
        assert guest.outcome is not None and guest.outcome.ending is ending
        assert guest.outcome.sentence.startswith("vm0: ") and "gfn 0x" in guest.outcome.sentence
        guest.vm.audit()
        times.add(guest.now)
    assert len(times) == 1


@pytest.mark.parametrize("mmu", MMUS)
def test_a_guest_goes_on_with_a_larger_store(mmu: str, console: str) -> None:
    guest = boot(GUEST, append=APPEND, mmu=mmu, pool=POOL, policies=["swap:memory=8K"])
    stopped(guest, Ending.STORE_FULL, 124)
    vm = guest.vm
    (small,) = [policy for policy in vm.dmm.policies if isinstance(policy, Swap)]
    assert vm.guest is not None
    vm.attach(Swap(vm.guest.image))
    vm.dmm.detach(small)
    guest.expect_status(1)
    assert guest.console == console


@pytest.mark.parametrize("mmu", MMUS)
@pytest.mark.parametrize("call", ["pread", "pwrite"])
def test_a_guest_goes_on_when_the_disk_does(
    mmu: str, call: str, console: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policies = [f"swap:memory=0,file={tmp_path / 'swap'}"]
    guest = boot(GUEST, append=APPEND, mmu=mmu, pool=POOL, policies=policies)
    guest.run("200us")
    with monkeypatch.context() as patch:
        patch.setattr(os, call, refuse_reading if call == "pread" else no_room)
        stopped(guest, Ending.STORE_FAILED, 125)
    guest.expect_status(1)
    assert guest.console == console


@pytest.mark.parametrize("mmu", MMUS)
def test_a_guest_never_reads_from_a_damaged_file(mmu: str, console: str, tmp_path: Path) -> None:
    path = tmp_path / "swap"
    guest = boot(GUEST, append=APPEND, mmu=mmu, pool=POOL, policies=[f"swap:memory=0,file={path}"])
    guest.run("200us")
    good = path.read_bytes()
    bad = bytearray(good)
    flip(bad)
    path.write_bytes(bad)
    guest.run()
    assert guest.outcome is not None and guest.outcome.ending is Ending.STORE_FAILED
    assert "does not match its checksum" in guest.outcome.sentence
    assert console.startswith(guest.console)
    stopped(guest, Ending.STORE_FAILED, 125)


# --- the command line -------------------------------------------------------------------------------------------


def run_command(options: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Exit status, and the one line that is printed."""
    command = ["run", GUEST, "--append", APPEND, "--pool", POOL, "--policy", f"swap:{options}"]
    status = main(command)
    lines = [line for line in capsys.readouterr().err.splitlines() if "first time" not in line]
    (line,) = lines
    assert line.startswith("emu: ") and "vm0" in line and "gfn 0x" in line and f"status {status}" in line
    return status, line


def test_a_full_store_is_a_limit(capsys: pytest.CaptureFixture[str]) -> None:
    status, line = run_command("memory=8K", capsys)
    assert status == 124 and "8192 bytes of compressed pages are its limit" in line


def test_a_full_disk_is_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "swap"
    write = os.pwrite

    def write_ten_slots(fd: int, data: bytes, offset: int) -> int:
        return write(fd, data, offset) if offset < SLOTS_AT + 10 * SLOT_SIZE else no_room(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", write_ten_slots)
    status, line = run_command(f"memory=0,file={path}", capsys)
    assert status == 125 and "cannot be written: No space left on device" in line
    assert not path.exists()


def test_damage_is_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, size, offset: read(fd, size, offset)[:-1] + b"\xa5")
    status, line = run_command(f"memory=0,file={tmp_path / 'swap'}", capsys)
    assert status == 125 and "does not match its checksum" in line


def test_compression_that_fails_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    codec = store.ALGORITHMS["lz4"]
    monkeypatch.setitem(store.ALGORITHMS, "lz4", lambda: (refuse_compression, codec()[1]))
    status, line = run_command("algorithm=lz4", capsys)
    assert status == 125 and "compression failed: no memory to compress in" in line
