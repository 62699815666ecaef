"""The 8259A, as far as it needs no Python: its registers, the mask, and EOIs, as long as its INT stays as it is.

:mod:`emu.devices.pic` has the rules and their sources. What is done here is the same there, on the same record.
"""

from __future__ import annotations

import numpy as np

from emu.devices.pic import OCW2_EOI, OCW2_LEVEL, OCW2_SL, PicState
from emu.devices.shared import ASK, field_names
from emu.engine.native import inlined, outlined, record_at

_PIC = record_at(np.dtype([(name, np.int64) for name in field_names(PicState)]), "Pic")

_NOT_OCW2_EOI = 0xFF & ~(OCW2_EOI | OCW2_SL | OCW2_LEVEL)  # bits that other commands have
_NONE = 8  # rank of no input


@inlined
def _requests(pic: PicState) -> int:
    """The IRR."""
    by_level = pic.elcr | pic.cascade
    return pic.lines & by_level | pic.latch & ~by_level


@inlined
def _rank(pic: PicState, inputs: int) -> int:
    """The highest priority among inputs in a bit mask: 0 the highest of all, 7 the lowest; _NONE when it is empty."""
    for rank in range(8):
        if inputs >> (pic.lowest + 1 + rank & 7) & 1:
            return rank
    return _NONE


@inlined
def _blocking(pic: PicState, imr: int, isr: int) -> int:
    return isr & ~imr if pic.special_mask else isr


@inlined
def _asks(pic: PicState, imr: int, isr: int) -> int:
    """The level of INT with this mask and these inputs in service."""
    if not pic.ready:
        return 0
    wanted = _rank(pic, _requests(pic) & ~imr)
    served = _rank(pic, _blocking(pic, imr, isr))
    if wanted == _NONE or wanted > served:
        return 0
    if wanted == served:
        return 1 if pic.fully_nested and pic.cascade >> (pic.lowest + 1 + wanted & 7) & 1 else 0
    return 1


@inlined
def load_pic(at: int, offset: int) -> int:
    """Read a port of the chip whose record is at ``at``, or ASK."""
    pic = _PIC(at)
    if not pic.settled:
        return ASK
    if offset == 1:
        return pic.imr
    return pic.isr if pic.read_isr else _requests(pic)


@outlined("qqqq")
def store_pic(at: int, offset: int, value: int) -> int:
    """Write to a port of the chip: 0 when it is done, or ASK with nothing done."""
    pic = _PIC(at)
    imr, isr = pic.imr, pic.isr
    if not pic.settled:
        return ASK
    if offset == 1:
        imr = value
    elif value & OCW2_EOI and not value & _NOT_OCW2_EOI:
        level = value & OCW2_LEVEL
        if not value & OCW2_SL:
            rank = _rank(pic, _blocking(pic, imr, isr))
            level = pic.lowest + 1 + rank & 7
            isr = isr if rank == _NONE else isr & ~(1 << level)
        else:
            isr &= ~(1 << level)
    else:
        return ASK
    if _asks(pic, imr, isr) != pic.output:
        return ASK
    pic.imr, pic.isr = imr, isr
    return 0
