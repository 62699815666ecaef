from __future__ import annotations

import random

from emu.addr import NO_FRAME
from emu.dmm.m2p import M2P


def test_a_frame_has_no_user_at_first() -> None:
    m2p = M2P(4)
    assert [m2p.users(mfn) for mfn in range(4)] == [[]] * 4
    assert [m2p.count(mfn) for mfn in range(4)] == [0] * 4
    assert (m2p.gfn == NO_FRAME).all() and (m2p.vm == -1).all()


def test_add_names_the_user() -> None:
    m2p = M2P(4)
    m2p.add(2, 1, 0x1234_5678_9ABC)
    assert m2p.users(2) == [(1, 0x1234_5678_9ABC)]
    assert m2p.users(1) == [] and m2p.count(2) == 1


def test_gfn_0_of_vm_0_is_a_user() -> None:
    m2p = M2P(1)
    m2p.add(0, 0, 0)
    assert m2p.users(0) == [(0, 0)]


def test_remove_forgets_the_user() -> None:
    m2p = M2P(4)
    m2p.add(3, 0, 7)
    assert m2p.remove(3, 0, 7) == 0
    assert m2p.users(3) == [] and m2p.gfn[3] == NO_FRAME and m2p.vm[3] == -1


def test_the_native_plane_sees_the_first_user() -> None:
    m2p = M2P(2)
    for vm, gfn in ((1, 5), (0, 6), (1, 7)):
        m2p.add(1, vm, gfn)
    assert m2p.shared_frames() == [1]
    for users in ([(1, 7), (0, 6)], [(0, 6)]):
        vm, gfn = m2p.users(1)[0]
        assert m2p.remove(1, vm, gfn) == len(users)
        assert m2p.users(1) == users and (m2p.vm[1], m2p.gfn[1]) == users[0]
    assert m2p.shared_frames() == []


def test_users_against_a_model() -> None:
    chance = random.Random(1)
    m2p = M2P(3)
    model: dict[int, list[tuple[int, int]]] = {mfn: [] for mfn in range(3)}

    def in_order(users: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """By VM, in the order in which these came, and each VM's gfns in the order in which they came."""
        return [user for vm in came[id(users)] for user in users if user[0] == vm]

    came: dict[int, list[int]] = {id(users): [] for users in model.values()}
    for _ in range(2000):
        mfn, user = chance.randrange(3), (chance.randrange(2), chance.randrange(4))
        if user in model[mfn]:
            model[mfn].remove(user)
            if user[0] not in [vm for vm, _ in model[mfn]]:
                came[id(model[mfn])].remove(user[0])
            assert m2p.remove(mfn, *user) == len(model[mfn])
        else:
            model[mfn].append(user)
            if user[0] not in came[id(model[mfn])]:
                came[id(model[mfn])].append(user[0])
            m2p.add(mfn, *user)
        assert [m2p.users(frame) for frame in model] == [in_order(users) for users in model.values()]
        assert [m2p.vms(frame) for frame in model] == [came[id(users)] for users in model.values()]
        assert [m2p.count(frame) for frame in model] == [len(users) for users in model.values()]
        assert m2p.shared_frames() == [frame for frame, users in model.items() if len(users) > 1]
        firsts = [in_order(users)[0][1] if users else -1 for users in model.values()]
        assert [int(m2p.gfn[frame]) for frame in model] == firsts
