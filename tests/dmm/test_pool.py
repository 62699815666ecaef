from __future__ import annotations

import pytest

from emu.dmm.pool import Pool
from emu.engine.ram import NOBODY, MachineMemory, OutOfMachineFrames, Purpose


@pytest.fixture
def memory() -> MachineMemory:
    return MachineMemory(17)  # 16 and the void frame


def test_a_new_pool_owns_spare_frames_of_the_machine(memory: MachineMemory) -> None:
    pool = Pool(memory, 5, 0)
    assert (pool.size, pool.used, pool.spare, memory.free) == (5, 0, 5, 11)
    assert not pool.spare_frames() & memory.free_frames()
    assert memory.void_mfn not in pool.spare_frames() | memory.free_frames()


def test_take_until_none_is_spare(memory: MachineMemory) -> None:
    pool = Pool(memory, 3, 0)
    taken = [pool.take() for _ in range(3)]
    assert pool.take() is None
    assert set(taken) == pool.used_frames() and pool.spare == 0 and pool.size == 3


def test_a_frame_that_is_given_back_is_taken_next(memory: MachineMemory) -> None:
    pool = Pool(memory, 3, 0)
    first, second = pool.take(), pool.take()
    assert first is not None and second is not None
    pool.give_back(first)
    assert pool.take() == first


def test_grow_takes_from_the_machine_and_shrink_gives_back(memory: MachineMemory) -> None:
    pool = Pool(memory, 2, 0)
    used = pool.take()
    pool.grow(4)
    assert (pool.size, pool.spare, memory.free) == (6, 5, 10)
    pool.shrink(5)
    assert (pool.size, pool.spare, memory.free) == (1, 0, 15)
    assert pool.used_frames() == {used}


def test_growing_beyond_the_machine_changes_nothing(memory: MachineMemory) -> None:
    pool = Pool(memory, 4, 0)
    before = pool.spare_frames(), memory.free_frames(), [pool.take() for _ in range(2)]
    with pytest.raises(OutOfMachineFrames) as caught:
        pool.grow(13)
    assert (caught.value.wanted, caught.value.free) == (13, 12)
    assert pool.size == 4 and memory.free_frames() == before[1]
    assert pool.take() not in before[2]


def test_a_pool_that_the_machine_cannot_fill_is_refused(memory: MachineMemory) -> None:
    with pytest.raises(OutOfMachineFrames):
        Pool(memory, 17, 0)
    assert memory.free == 16


@pytest.mark.parametrize("frames", [3, -1])
def test_shrinking_by_what_is_not_spare_changes_nothing(memory: MachineMemory, frames: int) -> None:
    pool = Pool(memory, 4, 0)
    pool.take(), pool.take()
    with pytest.raises(ValueError, match="spare"):
        pool.shrink(frames)
    assert (pool.size, pool.spare, memory.free) == (4, 2, 12)


def test_growing_by_less_than_nothing_is_refused(memory: MachineMemory) -> None:
    pool = Pool(memory, 4, 0)
    with pytest.raises(ValueError, match="grow"):
        pool.grow(-1)


def test_two_pools_share_no_frame(memory: MachineMemory) -> None:
    first, second = Pool(memory, 8, 0), Pool(memory, 8, 1)
    assert not first.spare_frames() & second.spare_frames()
    first.shrink(3)
    second.grow(3)
    assert not first.spare_frames() & second.spare_frames()
    assert memory.free == 0


def test_the_same_steps_give_the_same_frames() -> None:
    def steps() -> list[int | None]:
        pool = Pool(MachineMemory(20), 6, 0)
        taken = [pool.take() for _ in range(4)]
        pool.grow(3)
        pool.give_back(taken[1] or 0)
        return [*taken, *(pool.take() for _ in range(6))]

    assert steps() == steps()


# --- frames that change hands ---


def owners(memory: MachineMemory, frames: frozenset[int]) -> set[tuple[int, int]]:
    """What the machine notes about ``frames``: (owner, purpose)."""
    return {(int(memory.owner[mfn]), int(memory.purpose[mfn])) for mfn in frames}


def test_the_machine_knows_whose_each_frame_is(memory: MachineMemory) -> None:
    pools = [Pool(memory, 4, owner) for owner in (3, 5)]
    for pool in pools:
        pool.take()
    assert owners(memory, pools[0].spare_frames() | pools[0].used_frames()) == {(3, Purpose.POOL)}
    assert owners(memory, pools[1].spare_frames() | pools[1].used_frames()) == {(5, Purpose.POOL)}
    assert owners(memory, memory.free_frames()) == {(NOBODY, Purpose.FREE)}
    pools[0].shrink(3)
    assert owners(memory, memory.free_frames()) == {(NOBODY, Purpose.FREE)}


def test_exchange_changes_no_size(memory: MachineMemory) -> None:
    giver, taker = Pool(memory, 4, 0), Pool(memory, 5, 1)
    mfn = giver.take()
    assert mfn is not None
    every = giver.spare_frames() | taker.spare_frames() | {mfn}
    giver.exchange(mfn, taker)
    assert (giver.size, giver.used, taker.size, taker.used) == (4, 0, 5, 1)
    assert taker.used_frames() == {mfn} and giver.used_frames() == frozenset()
    assert giver.spare_frames() | taker.spare_frames() | {mfn} == every
    assert owners(memory, giver.spare_frames()) == {(0, Purpose.POOL)}


def test_hand_over_makes_one_pool_smaller_and_the_other_larger(memory: MachineMemory) -> None:
    giver, taker = Pool(memory, 4, 0), Pool(memory, 5, 1)
    mfn = giver.take()
    assert mfn is not None
    giver.hand_over(mfn, taker)
    assert (giver.size, giver.used, taker.size, taker.used) == (3, 0, 6, 1)
    assert taker.used_frames() == {mfn}


def test_frames_out_of_service_are_in_no_pool_and_not_free(memory: MachineMemory) -> None:
    pool = Pool(memory, 4, 0)
    used, spare, free = pool.take(), min(pool.spare_frames()), min(memory.free_frames())
    assert used is not None
    pool.lose(used)
    pool.lose_spare(spare)
    memory.retire(free)
    gone = frozenset({used, spare, free})
    assert (pool.size, pool.used, pool.spare, memory.free) == (2, 0, 2, 11)
    assert not gone & (pool.spare_frames() | pool.used_frames() | memory.free_frames())
    assert owners(memory, gone) == {(NOBODY, Purpose.RETIRED)}
    with pytest.raises(OutOfMachineFrames):
        pool.grow(12)
