"""Retiring: a machine frame goes out of service, as for a failing DIMM, and another does its work."""

from __future__ import annotations

from emu.dmm.errors import CannotRetire, StoreError
from emu.dmm.frames import make_room, move_frame
from emu.dmm.space import SharedMachine, Space
from emu.engine import events
from emu.engine.ram import OutOfMachineFrames, Purpose


def retire_frame(machine: SharedMachine, mfn: int) -> None:
    """Take any frame of the machine out of service, whatever it is for.

    Raises:
        CannotRetire: nothing can do its work; nothing has changed.
        ValueError: there is no such frame.
    """
    memory, spaces = machine.memory, machine.spaces
    if not 0 <= mfn < memory.frames:
        raise ValueError(f"mfn {mfn:#x} is no frame of the machine")
    purpose = memory.purpose[mfn]
    owner = spaces.get(memory.owner.item(mfn))
    if purpose == Purpose.POOL:
        assert owner is not None
        _retire_from_pool(owner, mfn)
    elif purpose == Purpose.TABLES:
        assert owner is not None
        if not owner.paging.retire(mfn):
            raise CannotRetire(mfn, f"{owner.name} has no shadow tables to spare")
        memory.retire(mfn)
    elif purpose == Purpose.VOID:
        try:
            memory.move_void()
        except OutOfMachineFrames:
            raise CannotRetire(mfn, "it stands behind all gfns without memory, and no frame is free") from None
        for index in sorted(spaces):
            spaces[index].paging.void_moved()
        memory.retire(mfn)
    elif purpose == Purpose.FREE:
        memory.retire(mfn)


def _retire_from_pool(space: Space, mfn: int) -> None:
    """A free frame of the machine, or a spare one of the pool, does the work of ``mfn``."""
    pool, log = space.pool, space.log
    if mfn in space.contents.in_flight.values():
        raise CannotRetire(mfn, "a page is being fetched into it")
    before = pool.size
    try:
        pool.grow(1)
    except OutOfMachineFrames:
        if space.m2p.count(mfn):
            try:
                make_room(space, 1)
            except StoreError as error:
                raise CannotRetire(mfn, str(error)) from error
        owner = space.memory.owner.item(mfn)
        if owner != space.index:  # who shares the frame has paid for it
            return _retire_from_pool(space.spaces[owner], mfn)
    users = space.m2p.users(mfn)
    after = mfn
    if pool.is_spare(mfn):  # making room may have emptied it
        pool.lose_spare(mfn)
    else:
        taken = pool.take()
        if taken is None:
            raise CannotRetire(mfn, f"it is in use in {space.name}, no frame is free and no policy makes room")
        after = taken
        move_frame(space, mfn, after)
        pool.lose(mfn)
    log.record(events.Retire, mfn, after)
    if pool.size != before:
        log.record(events.PoolResize, before, pool.size)
    space.all_changed(users)
