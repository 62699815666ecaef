"""Stores against a dict, and against all that can happen to a file."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from emu.addr import PAGE_SIZE
from emu.cli import main
from emu.dmm.errors import CompressionFailed, StoreCorrupt, StoreError, StoreFailed, StoreFull
from emu.dmm.policies import store
from emu.dmm.policies.store import (
    ALGORITHMS,
    FILE_HEADER,
    SLOT_SIZE,
    SLOTS_AT,
    CompressedStore,
    FileStore,
    PageStore,
)
from emu.errors import BadInput

FILE_PAGES = 6
HEAP_BYTES = 6000

gfns = st.integers(0, 11)


def page(seed: int, noise: int) -> bytes:
    """A page with ``noise`` bytes that do not compress."""
    return Random(seed).randbytes(noise).ljust(PAGE_SIZE, bytes([seed & 0xFF]))


pages = st.builds(page, st.integers(0, 1 << 20), st.sampled_from([0, 100, 1500, 2900, 3000, 3200, PAGE_SIZE]))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "swap"


@pytest.fixture
def file_store(path: Path) -> Iterator[FileStore]:
    stored = FileStore("vm7", path, FILE_PAGES * PAGE_SIZE)
    yield stored
    stored.close()


# --- against a dict ---------------------------------------------------------------------------------------------


def file_only(path: Path) -> PageStore:
    return FileStore("vm0", path, FILE_PAGES * PAGE_SIZE)


def memory_only(path: Path) -> PageStore:
    return CompressedStore("vm0", HEAP_BYTES)


def both(path: Path) -> PageStore:
    return CompressedStore("vm0", HEAP_BYTES, FileStore("vm0", path, FILE_PAGES * PAGE_SIZE))


def both_zstd(path: Path) -> PageStore:
    return CompressedStore("vm0", 3000, FileStore("vm0", path, FILE_PAGES * PAGE_SIZE), "zstd")


class StoreMachine(RuleBasedStateMachine):
    """A store next to a dict; writes to the host's file fail now and then, at once or half done."""

    make: Callable[[Path], PageStore]

    @initialize()
    def begin(self) -> None:
        self.directory = TemporaryDirectory()
        self.path = Path(self.directory.name) / "swap"
        self.store = type(self).make(self.path)
        self.model: dict[int, bytes] = {}
        self.host_pwrite = os.pwrite

    @rule(gfn=gfns, contents=pages)
    def put(self, gfn: int, contents: bytes) -> None:
        try:
            self.store.put(gfn, contents)
        except StoreFull as error:
            assert error.vm == "vm0"  # the page is this one or one that had to make room
        else:
            self.model[gfn] = contents

    @rule(gfn=gfns, contents=pages, accepted=st.integers(0, SLOT_SIZE))
    def put_on_a_full_host(self, gfn: int, contents: bytes, accepted: int) -> None:
        room = accepted

        def pwrite(fd: int, data: bytes, offset: int) -> int:
            nonlocal room
            done, room = min(room, len(data)), room - min(room, len(data))
            if not done:
                raise OSError(errno.ENOSPC, "No space left on device")
            return self.host_pwrite(fd, bytes(data[:done]), offset)

        os.pwrite = pwrite  # type: ignore[assignment]
        try:
            self.store.put(gfn, contents)
        except StoreError as error:
            assert isinstance(error, StoreFull | StoreFailed)
        else:
            self.model[gfn] = contents
        finally:
            os.pwrite = self.host_pwrite

    @rule(gfn=gfns)
    def drop(self, gfn: int) -> None:
        self.store.drop(gfn)
        self.model.pop(gfn, None)

    @rule(gfn=gfns)
    def get(self, gfn: int) -> None:
        if gfn in self.model:
            assert self.store.get(gfn) == self.model[gfn]
        else:
            with pytest.raises(KeyError):
                self.store.get(gfn)

    @invariant()
    def holds_what_the_model_holds(self) -> None:
        assert self.store.gfns() == sorted(self.model)
        assert len(self.store) == len(self.model)
        assert [gfn for gfn in range(12) if gfn in self.store] == sorted(self.model)

    @invariant()
    def keeps_its_limits(self) -> None:
        if isinstance(self.store, CompressedStore):
            assert self.store.statistics.bytes_stored <= HEAP_BYTES
        if self.path.exists():
            assert self.path.stat().st_size <= SLOTS_AT + (FILE_PAGES + 1) * SLOT_SIZE

    def teardown(self) -> None:
        for gfn, contents in self.model.items():
            assert self.store.get(gfn) == contents
        self.store.close()
        assert not self.path.exists()
        self.directory.cleanup()


@pytest.mark.parametrize("make", [file_only, memory_only, both, both_zstd])
def test_a_store_is_a_dict(make: Callable[[Path], PageStore]) -> None:
    machine = type("Machine", (StoreMachine,), {"make": staticmethod(make)})
    run_state_machine_as_test(machine, settings=settings(max_examples=60, stateful_step_count=40, deadline=None))


def test_contents_must_be_a_page(file_store: FileStore) -> None:
    for stored in (file_store, CompressedStore("vm0", 10000)):
        with pytest.raises(ValueError, match="4095 bytes are no page"):
            stored.put(1, bytes(4095))


# --- a file -----------------------------------------------------------------------------------------------------


def test_slots_are_used_again_lowest_first(file_store: FileStore, path: Path) -> None:
    for gfn in range(FILE_PAGES):
        file_store.put(gfn, page(gfn, 0))
    size = path.stat().st_size
    for gfn in (4, 1, 3):
        file_store.drop(gfn)
    file_store.put(9, page(9, 0))
    with path.open("rb") as file:
        file.seek(SLOTS_AT + 1 * SLOT_SIZE)
        assert file.read(SLOT_SIZE).endswith(page(9, 0))
    assert path.stat().st_size == size


def test_a_full_file_takes_new_contents_of_what_it_holds(file_store: FileStore) -> None:
    for gfn in range(FILE_PAGES):
        file_store.put(gfn, page(gfn, 0))
    with pytest.raises(StoreFull, match="vm7: .*gfn 0x63.* 6 pages"):
        file_store.put(99, page(99, 0))
    file_store.put(3, page(33, 0))
    assert file_store.get(3) == page(33, 0)
    assert file_store.statistics.bytes_stored == FILE_PAGES * PAGE_SIZE


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 3 * SLOT_SIZE * 8 - 1))
def test_a_flipped_bit_is_noticed(bit: int) -> None:
    with TemporaryDirectory() as directory:
        path = Path(directory) / "swap"
        stored = FileStore("vm7", path, 3 * PAGE_SIZE)
        contents = [page(gfn, PAGE_SIZE) for gfn in range(3)]
        for gfn in range(3):
            stored.put(gfn, contents[gfn])
        data = bytearray(path.read_bytes())
        data[SLOTS_AT + bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        for gfn in range(3):
            if gfn == bit // 8 // SLOT_SIZE:
                with pytest.raises(StoreCorrupt) as caught:
                    stored.get(gfn)
                assert (caught.value.vm, caught.value.gfn) == ("vm7", gfn)
            else:
                assert stored.get(gfn) == contents[gfn]
        stored.close()


@pytest.mark.parametrize("lost", [1, PAGE_SIZE, SLOT_SIZE, 2 * SLOT_SIZE + 5])
def test_a_truncated_file_is_noticed(file_store: FileStore, path: Path, lost: int) -> None:
    for gfn in range(3):
        file_store.put(gfn, page(gfn, 0))
    os.truncate(path, path.stat().st_size - lost)
    for gfn in range(3):
        if (3 - gfn) * SLOT_SIZE - lost >= SLOT_SIZE:
            assert file_store.get(gfn) == page(gfn, 0)
        else:
            with pytest.raises(StoreCorrupt, match="ends within slot"):
                file_store.get(gfn)


def slot(path: Path, number: int) -> bytes:
    return path.read_bytes()[SLOTS_AT + number * SLOT_SIZE :][:SLOT_SIZE]


def write_slot(path: Path, number: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(SLOTS_AT + number * SLOT_SIZE)
        file.write(data)


def test_exchanged_slots_are_noticed(file_store: FileStore, path: Path) -> None:
    for gfn in range(2):
        file_store.put(gfn, page(gfn, 0))
    first, second = slot(path, 0), slot(path, 1)
    write_slot(path, 0, second)
    write_slot(path, 1, first)
    for gfn in range(2):
        with pytest.raises(StoreCorrupt, match=f"for gfn {1 - gfn:#x} instead"):
            file_store.get(gfn)


def test_a_lost_write_is_noticed(file_store: FileStore, path: Path) -> None:
    file_store.put(5, page(1, 0))
    older = slot(path, 0)
    file_store.drop(5)
    file_store.put(5, page(2, 0))
    write_slot(path, 0, older)
    with pytest.raises(StoreCorrupt, match="holds write 1 for gfn 0x5 instead of write 2"):
        file_store.get(5)


def test_a_slot_of_another_file_is_noticed(file_store: FileStore, path: Path) -> None:
    file_store.put(5, page(1, 0))
    write_slot(path, 0, bytes(SLOT_SIZE))
    with pytest.raises(StoreCorrupt, match="checksum"):
        file_store.get(5)


def test_a_limit_on_file_size(path: Path) -> None:
    """The real thing, in a process of its own: the host refuses to let the file grow within a slot."""
    code = f"""
import resource
from pathlib import Path
from emu.dmm.policies.store import FileStore, StoreFailed
stored = FileStore("vm0", {str(path)!r}, 1 << 20)
resource.setrlimit(resource.RLIMIT_FSIZE, ({SLOTS_AT + SLOT_SIZE + 2000}, resource.RLIM_INFINITY))
stored.put(1, bytes(4096))
for gfn in (2, 1):
    try:
        stored.put(gfn, bytes([7]) * 4096)
    except StoreFailed as error:
        print(error.vm, error.gfn, "File too large" in str(error))
print(stored.gfns(), stored.get(1) == bytes(4096))
stored.close()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "vm0 2 True\nvm0 1 True\n[1] True\n"
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


def test_a_read_error_is_told(file_store: FileStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def pread(*arguments: int) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    file_store.put(1, bytes(PAGE_SIZE))
    monkeypatch.setattr(os, "pread", pread)
    with pytest.raises(StoreFailed, match="vm7: .*gfn 0x1.*Input/output error"):
        file_store.get(1)


# --- whose file -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("contents", [b"", b"a disk image", FILE_HEADER[:-1], b"\x7fELF" + bytes(8000)])
def test_a_file_of_the_user_is_left_alone(path: Path, contents: bytes) -> None:
    path.write_bytes(contents)
    with pytest.raises(BadInput, match="--policy: .* is no swap file of emu"):
        FileStore("vm0", path, 1 << 20)
    assert path.read_bytes() == contents


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_bytes(FILE_HEADER)
    (tmp_path / "link").symlink_to(target)
    os.mkfifo(tmp_path / "pipe")
    for name in ("/dev/null", tmp_path, tmp_path / "link", tmp_path / "pipe", tmp_path / "no" / "where", "a\0b"):
        with pytest.raises(BadInput, match="--policy"):
            FileStore("vm0", name, 1 << 20)
    assert target.read_bytes() == FILE_HEADER


def test_a_file_that_cannot_be_made_leaves_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: len(data) // 2)
    with pytest.raises(BadInput, match="no room for its header"):
        FileStore("vm0", path, 1 << 20)
    assert not path.exists()


def test_two_vms_cannot_share_a_file(file_store: FileStore, path: Path) -> None:
    file_store.put(1, page(1, 0))
    with pytest.raises(BadInput, match="another VM that is running"):
        FileStore("vm8", path, 1 << 20)
    assert file_store.get(1) == page(1, 0)


def test_the_file_of_another_is_not_removed(file_store: FileStore, path: Path) -> None:
    path.unlink()
    path.write_bytes(b"mine")
    file_store.close()
    file_store.close()
    assert path.read_bytes() == b"mine"


def test_a_crash_leaves_a_file_that_the_next_run_uses(path: Path) -> None:
    code = f"""
import os, signal
from emu.dmm.policies.store import FileStore
stored = FileStore("vm0", {str(path)!r}, 1 << 20)
stored.put(1, bytes([9]) * 4096)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code], check=False)
    assert done.returncode == -signal.SIGKILL
    assert path.stat().st_size == SLOTS_AT + SLOT_SIZE
    assert os.listdir(path.parent) == [path.name]
    stored = FileStore("vm1", path, 1 << 20)
    assert path.read_bytes() == FILE_HEADER and not stored.gfns()
    stored.close()
    assert not path.exists()


# --- compressed -------------------------------------------------------------------------------------------------


def test_the_pages_that_were_put_first_go_below_first(path: Path) -> None:
    below = FileStore("vm0", path, 1 << 20)
    stored = CompressedStore("vm0", 6200, below)
    for gfn in range(4):
        stored.put(gfn, page(gfn, 1500))
    stored.put(0, page(100, 1500))
    assert not below.gfns()
    stored.put(4, page(4, 1500))
    assert below.gfns() == [1] and stored.statistics.spilled == 1
    stored.put(5, page(5, 2900))
    assert below.gfns() == [1, 2, 3]
    assert stored.get(1) == page(1, 1500) and below.gfns() == [1, 2, 3]
    stored.put(1, page(7, 0))
    assert below.gfns() == [2, 3] and stored.gfns() == [0, 1, 2, 3, 4, 5]
    stored.close()
    assert not path.exists()


def test_what_does_not_compress_goes_below_at_once(path: Path) -> None:
    below = FileStore("vm0", path, 1 << 20)
    stored = CompressedStore("vm0", 1 << 20, below)
    stored.put(1, page(1, 0))
    stored.put(1, page(2, PAGE_SIZE))
    assert below.gfns() == stored.gfns() == [1] and stored.statistics.bytes_stored == 0
    assert stored.get(1) == page(2, PAGE_SIZE)
    stored.close()
    alone = CompressedStore("vm0", 2 * PAGE_SIZE)
    for gfn in range(2):
        alone.put(gfn, page(gfn, PAGE_SIZE))
    with pytest.raises(StoreFull, match="vm0: .*gfn 0x2.*8192 bytes"):
        alone.put(2, page(2, PAGE_SIZE))
    assert [alone.get(gfn) for gfn in range(2)] == [page(gfn, PAGE_SIZE) for gfn in range(2)]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("noise", [0, 1500, PAGE_SIZE])
def test_damage_in_memory_is_noticed(algorithm: str, noise: int) -> None:
    random = Random(f"{algorithm} {noise}")
    contents = page(1, noise)
    for _ in range(300):
        stored = CompressedStore("vm7", 1 << 20, None, algorithm)
        stored.put(1, contents)
        packed, checksum = stored._packed[1]
        damaged = bytearray(packed)
        damaged[random.randrange(len(damaged))] ^= 1 << random.randrange(8)
        stored._packed[1] = bytes(damaged), checksum
        with suppress(StoreCorrupt):  # a bit of the format that means nothing
            assert stored.get(1) == contents
        stored._packed[1] = packed[: random.randrange(len(packed))], checksum
        with pytest.raises(StoreCorrupt, match="vm7: .*gfn 0x1"):
            stored.get(1)


def test_a_failing_compressor_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(contents: bytes) -> bytes:
        raise MemoryError("no memory")

    monkeypatch.setitem(store.ALGORITHMS, "failing", lambda: (fail, bytes))
    stored = CompressedStore("vm7", 1 << 20, None, "failing")
    with pytest.raises(CompressionFailed, match="vm7: .*gfn 0x1.*no memory"):
        stored.put(1, page(1, 0))
    assert not stored.gfns()
    stored = CompressedStore("vm7", 1 << 20)
    stored.put(1, page(1, 0))
    monkeypatch.setattr(stored, "_compress", fail)
    with pytest.raises(CompressionFailed):
        stored.put(1, page(2, 0))
    assert stored.get(1) == page(1, 0)


def test_a_new_file_never_has_a_name_without_its_header(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    flock = fcntl.flock

    def killed_here(fd: int, operation: int) -> None:
        seen.append(path.read_bytes())
        flock(fd, operation)

    monkeypatch.setattr(fcntl, "flock", killed_here)
    FileStore("vm7", path, PAGE_SIZE).close()
    assert seen == [FILE_HEADER]


def test_one_that_is_taken_over_has_its_header_all_the_time(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_bytes(FILE_HEADER + bytes(9000))
    seen = []
    pwrite = os.pwrite

    def killed_here(fd: int, data: bytes, offset: int) -> int:
        seen.append(path.read_bytes())
        return pwrite(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", killed_here)
    FileStore("vm7", path, PAGE_SIZE).close()
    assert all(contents.startswith(FILE_HEADER) for contents in seen) and seen[-1] == FILE_HEADER


def test_a_file_that_cannot_be_removed_is_one_line(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(Path, "unlink", refuse)
    assert main(["run", "hello", "--policy", f"swap:file={path}"]) == 2
    file_store = FileStore("vm7", path, PAGE_SIZE)
    with pytest.raises(BadInput, match="--policy: .* cannot be removed: Input/output error"):
        file_store.close()
    file_store.close()  # closed all the same
