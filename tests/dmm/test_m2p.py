from __future__ import annotations

from emu.addr import NO_FRAME
from emu.dmm.m2p import M2P


def test_a_frame_has_no_user_at_first() -> None:
    m2p = M2P(4)
    assert [m2p.users(mfn) for mfn in range(4)] == [[]] * 4
    assert (m2p.gfn == NO_FRAME).all() and (m2p.vm == -1).all()


def test_set_names_the_user() -> None:
    m2p = M2P(4)
    m2p.set(2, 1, 0x1234_5678_9ABC)
    assert m2p.users(2) == [(1, 0x1234_5678_9ABC)]
    assert m2p.users(1) == []


def test_gfn_0_of_vm_0_is_a_user() -> None:
    m2p = M2P(1)
    m2p.set(0, 0, 0)
    assert m2p.users(0) == [(0, 0)]


def test_clear_forgets_the_user() -> None:
    m2p = M2P(4)
    m2p.set(3, 0, 7)
    m2p.clear(3)
    assert m2p.users(3) == []
