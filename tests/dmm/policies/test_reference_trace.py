"""Recording a guest's references, and the file that they are kept in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emu.dmm.policies.demand import DemandPaging
from emu.dmm.policies.reference_trace import FILE_MAGIC, ReferenceRecorder, ReferenceTrace, Window
from emu.errors import BadInput
from emu.machine.machine import Machine
from emu.machine.vm import VirtualMachine
from emu.observe.outcome import Ending
from emu.session import boot_vm, run_vm
from tests.dmm.stub import CODE, DATA, Stub

GFNS = 32
WINDOW = 6

accesses = st.lists(st.tuples(st.integers(DATA, GFNS - 1), st.booleans()), min_size=1, max_size=40)


def stub_vm() -> VirtualMachine:
    machine = Machine(Machine.size_for(GFNS << 12, GFNS << 12, "nested"))
    return machine.create_vm("vm0", GFNS << 12, GFNS << 12, "nested")


def expected(touched: list[tuple[int, bool]]) -> list[tuple[int, bool]]:
    """What is recorded of instructions on page CODE that access one page each."""
    seen: list[tuple[int, bool]] = []
    window: list[int] = []
    writable: set[int] = set()
    for gfn, write in touched:
        waiting = [(CODE, False), (gfn, write)]
        while waiting:  # an instruction that waited for the second page begins again with the first
            page, is_write = waiting[0]
            if page in window and (not is_write or page in writable):
                waiting.pop(0)
                continue
            seen.append((page, is_write))
            window = ([other for other in window if other != page] + [page])[-WINDOW:]
            writable = (writable | {page} if is_write else writable - {page}) & set(window)
            waiting = [(CODE, False), (gfn, write)]
    return seen


@settings(max_examples=30, deadline=None)
@given(accesses)
def test_every_reference_outside_the_window_is_recorded(touched: list[tuple[int, bool]]) -> None:
    vm = stub_vm()
    guest = Stub(vm, "none")
    recorder = ReferenceRecorder(guest.image, window=WINDOW)
    vm.attach(DemandPaging(guest.image))
    vm.attach(recorder)
    for gfn, write in touched:
        if write:
            guest.store(gfn << 12, 1)
        else:
            guest.load(gfn << 12)
    trace = recorder.trace()
    assert list(zip(trace.gfn.tolist(), trace.write.tolist(), strict=True)) == expected(touched)
    assert (np.diff(trace.time) > 0).all() and trace.window == WINDOW
    vm.audit()


def test_pages_that_are_resident_already_are_recorded_too() -> None:
    vm = stub_vm()
    guest = Stub(vm, "none")
    vm.attach(DemandPaging(guest.image))
    guest.load(DATA << 12)
    recorder = ReferenceRecorder(guest.image, window=WINDOW)
    vm.attach(recorder)
    guest.load(DATA << 12)
    assert recorder.trace().gfn.tolist() == [CODE, DATA]


def test_stores_by_devices_are_references() -> None:
    vm = stub_vm()
    guest = Stub(vm, "none")
    recorder = ReferenceRecorder(guest.image, window=WINDOW)
    vm.attach(DemandPaging(guest.image))
    vm.attach(recorder)
    vm.memory.write(DATA << 12, b"x")
    vm.dmm.discard(DATA)
    vm.memory.write(DATA << 12, b"y")
    trace = recorder.trace()
    assert trace.gfn.tolist() == [DATA, DATA] and trace.write.all()
    assert np.diff(trace.time).tolist() == [1]


def recorded(guest: str, append: str, mmu: str) -> tuple[VirtualMachine, ReferenceTrace]:
    vm = boot_vm(guest, append=append, mmu=mmu)
    assert vm.guest is not None
    recorder = ReferenceRecorder(vm.guest.image)
    vm.attach(recorder)
    assert run_vm(vm).status == 1
    return vm, recorder.trace()


@pytest.mark.parametrize(("guest", "append"), [("memory", "pages=40 rounds=1 steps=4"), ("long64", "")])
def test_recording_changes_nothing_and_does_not_depend_on_paging(guest: str, append: str) -> None:
    plain = boot_vm(guest, append=append)
    run_vm(plain)
    shadow, trace = recorded(guest, append, "shadow")
    nested, same = recorded(guest, append, "nested")
    assert plain.now == shadow.now == nested.now
    for one, other in ((trace.time, same.time), (trace.gfn, same.gfn), (trace.write, same.write)):
        assert np.array_equal(one, other)
    assert set(trace.gfn.tolist()) == set(plain.p2m.resident().tolist())


def test_a_window_that_is_too_small_is_told() -> None:
    vm = boot_vm("long64")
    assert vm.guest is not None
    vm.attach(ReferenceRecorder(vm.guest.image, window=WINDOW))
    outcome = run_vm(vm)
    assert outcome.ending == Ending.OUT_OF_FRAMES and "no progress" in outcome.sentence
    with pytest.raises(BadInput, match="a window of 5 pages is too small, 6"):
        ReferenceRecorder(vm.guest.image, window=5)


def test_a_window_holds_what_was_added_last() -> None:
    window = Window(2)
    assert [window.add(gfn) for gfn in (1, 2, 1, 3)] == [None, None, None, 2]
    assert [gfn for gfn in range(4) if gfn in window] == [1, 3]
    assert Window(0).add(1) == 1


# --- the trace and its file -------------------------------------------------------------------------------------

TRACE = ReferenceTrace(np.array([5, 6, 900]), np.array([1, 0x12345678, 1]), np.array([False, True, True]), 7)


def test_next_use() -> None:
    assert [TRACE.next_use(1, now) for now in (0, 4, 5, 899, 900)] == [5, 5, 900, 900, None]
    assert TRACE.next_use(2, 0) is None
    assert (len(TRACE), TRACE.pages) == (3, 2)


def test_a_file_holds_the_trace(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    TRACE.save(path)
    TRACE.save(path)
    again = ReferenceTrace.load(path)
    assert again.window == 7
    for name in ("time", "gfn", "write"):
        before, after = getattr(TRACE, name), getattr(again, name)
        assert before.dtype == after.dtype and np.array_equal(before, after)
    again.save(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == path.read_bytes()


def test_the_recorder_saves_its_trace(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    vm = stub_vm()
    guest = Stub(vm, "none")
    recorder = ReferenceRecorder(guest.image, str(path), WINDOW)
    assert not len(ReferenceTrace.load(path))
    vm.attach(DemandPaging(guest.image))
    vm.attach(recorder)
    guest.store(DATA << 12, 1)
    vm.dmm.detach(recorder)
    assert ReferenceTrace.load(path).gfn.tolist() == [CODE, DATA]
    guest.store(DATA + 1 << 12, 2)
    assert guest.load(DATA << 12) == 1


def test_a_file_of_the_user_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(b"a disk")
    with pytest.raises(BadInput, match="is no reference trace; it is left alone"):
        TRACE.save(path)
    assert path.read_bytes() == b"a disk"
    for name in (tmp_path, tmp_path / "no" / "where", "a\0b"):
        with pytest.raises(BadInput, match="cannot be written"):
            TRACE.save(name)
        with pytest.raises(BadInput, match="cannot be read|is a directory; expected a file"):
            ReferenceTrace.load(name)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda data: b"", "does not begin with 'emu references 1'"),
        (lambda data: b"x" + data[1:], "does not begin with"),
        (lambda data: FILE_MAGIC, "header of 40 bytes"),
        (lambda data: data[:-1], "3 references take 91 bytes, it has 90"),
        (lambda data: data + b"\0", "it has 92"),
        (lambda data: data[:40] + data[48:56] + data[40:48] + data[56:], "reference 1 is not later"),
        (lambda data: data[:-1] + b"\2", "reference 2 is damaged"),
        (lambda data: data[:79] + b"\xff" + data[80:], "reference 1 is damaged"),
    ],
)
def test_a_damaged_file_is_told(tmp_path: Path, change, reason: str) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "trace"
    TRACE.save(path)
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(BadInput, match=reason):
        ReferenceTrace.load(path)
