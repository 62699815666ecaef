"""Reverse map: from mfn to every shadow entry that leads to it.

Each present shadow entry has a number (its table's slot * 512 + its index) and is in the doubly linked list of the
frame that it leads to, whether this frame holds a guest page or a shadow table.  So a change below one gfn finds all
that was derived from it without a search.  The paging layer reports every entry that it makes or drops; only this
module writes the lists.
"""

from __future__ import annotations

import numpy as np

from emu.engine.native import address_of, inlined, load32, store32
from emu.engine.ram import sparse_zeros
from emu.engine.state import Cpu, Vm, vm_of

NONE = -1


class Rmap:
    """The lists of one VM.

    Args:
        frames: machine frames.
        entries: shadow entries that there can be.

    Attributes:
        head: int32 array of length ``frames``: number of the first entry plus 1, 0 for none, so that the host spends
            no memory on frames that the VM never uses.
        next, prev: int32 arrays of length ``entries``: the neighbours' numbers; valid for present entries only.
    """

    def __init__(self, native: Vm, frames: int, entries: int) -> None:
        self.head = sparse_zeros(frames, np.int32)
        self.next = sparse_zeros(entries, np.int32)
        self.prev = sparse_zeros(entries, np.int32)
        native.rmap_head_at = address_of(self.head)
        native.rmap_next_at = address_of(self.next)
        native.rmap_prev_at = address_of(self.prev)


# --- native plane -----------------------------------------------------------------------------------------------


@inlined
def load_link(at: int) -> int:
    """A link: the int32 at a host address."""
    value = load32(at)
    return NONE if value == 0xFFFF_FFFF else value


@inlined
def first(cpu: Cpu, mfn: int) -> int:
    """The number of the first entry that leads to ``mfn``, NONE for none."""
    return load32(vm_of(cpu).rmap_head_at + mfn * 4) - 1


@inlined
def following(cpu: Cpu, number: int) -> int:
    """The number of the entry after ``number`` in its list, NONE at the end."""
    return load_link(vm_of(cpu).rmap_next_at + number * 4)


@inlined
def add(cpu: Cpu, number: int, mfn: int) -> None:
    """Entry ``number`` leads to ``mfn`` from now on."""
    vm = vm_of(cpu)
    head = first(cpu, mfn)
    store32(vm.rmap_next_at + number * 4, head)
    store32(vm.rmap_prev_at + number * 4, NONE)
    if head != NONE:
        store32(vm.rmap_prev_at + head * 4, number)
    store32(vm.rmap_head_at + mfn * 4, number + 1)


@inlined
def remove(cpu: Cpu, number: int, mfn: int) -> None:
    """Entry ``number`` does not lead to ``mfn`` any more."""
    vm = vm_of(cpu)
    after = following(cpu, number)
    before = load_link(vm.rmap_prev_at + number * 4)
    if before == NONE:
        store32(vm.rmap_head_at + mfn * 4, after + 1)
    else:
        store32(vm.rmap_next_at + before * 4, after)
    if after != NONE:
        store32(vm.rmap_prev_at + after * 4, before)
