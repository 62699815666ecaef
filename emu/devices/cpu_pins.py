"""What local APICs do to their processors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class CpuPins:
    """The inputs of all processors of a VM; each call names the processor by its index first.

    Attributes:
        set_intr: gets each new level of the interrupt request.
        raise_nmi: called for each non-maskable interrupt.
        on_init: INIT: the processor goes to its state after INIT. The first one starts at its reset vector then, the
            others wait for a start-up message.
        on_startup: gets the vector of a start-up message (SIPI): real mode, start at gpa vector << 12. A processor that
            does not wait for one ignores it.
    """

    set_intr: Callable[[int, bool], None]
    raise_nmi: Callable[[int], None]
    on_init: Callable[[int], None]
    on_startup: Callable[[int, int], None]
