"""What every device is made of: registers at offsets, virtual time, saved state.

A device is handed what it needs in its constructor and nothing more: an ``IrqLine`` to raise interrupts, a ``Sink`` for
the bytes that leave the machine, a ``Clock`` to tell the virtual time, ``GuestMemory`` to transfer by itself. The
machine calls it in five ways: the guest accesses a register (``read``, ``write``), virtual time reaches the device's
``deadline`` (``tick``), the machine is reset (``machine_reset``), a snapshot is taken (``state``, ``load_state``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, ClassVar, Protocol

from emu.errors import BadInput

Clock = Callable[[], int]  # returns the virtual time in ns; never goes backwards
Sink = Callable[[bytes], None]  # takes bytes that leave the machine
State = dict[str, Any]  # JSON-able: str, int, bool, None, lists and dicts of them


class IrqLine(Protocol):
    """One wire to an interrupt controller. Setting the level it already has is allowed and does nothing."""

    def set(self, level: bool) -> None: ...


class GuestMemory(Protocol):
    """Pseudo-physical memory, for devices that read and write it by themselves."""

    def read(self, gpa: int, size: int) -> bytes: ...

    def write(self, gpa: int, data: bytes) -> None: ...

    def peek(self, gpa: int, size: int) -> bytes:
        """As ``read``, for those who only look: nothing changes that a guest or a memory policy could notice."""


class BoardMemory(GuestMemory, Protocol):
    """Pseudo-physical memory for those who say where in it devices are."""

    def is_hole(self, gfns: range) -> bool:
        """Whether there is nothing at ``gfns``."""

    def set_mmio(self, gfns: range, mapped: bool = True) -> None:
        """Let accesses to ``gfns`` reach the devices, or make them holes again."""

    def add_memory(self, gfns: range) -> None:
        """Have memory, of zeros, where there are holes."""

    def take_memory(self, gfns: range) -> dict[int, bytes]:
        """Make holes of what ``add_memory`` has added; the contents of its pages, by number, but for pages of zeros."""


class BalloonDriver(Protocol):
    """Who asks a guest's balloon devices for pages, and is told what the guest gives up.

    Attributes:
        front_ends: the devices: called with each new number of pages that the guest is asked to have in the balloon.
    """

    front_ends: list[Callable[[int], None]]

    def inflate(self, gfns: Iterable[int]) -> None: ...

    def deflate(self, gfns: Iterable[int]) -> None: ...

    def report(self, gfns: Iterable[int]) -> None: ...


class Device:
    """Base of all devices. A subclass gives ``read`` and ``write``, and what else of this it needs.

    ``max_access`` is the widest access in bytes that the device takes in one piece; the bus cuts up wider ones.
    ``STATE`` names the attributes that make up its state: int, bool, None or list of int.
    """

    max_access: ClassVar[int] = 1
    STATE: ClassVar[tuple[str, ...]] = ()

    def read(self, offset: int, size: int) -> int:
        """Value of ``size`` bytes (1, 2, 4; at most ``max_access``) at ``offset`` from the device's first address."""
        raise NotImplementedError

    def write(self, offset: int, size: int, value: int) -> None:
        """Write ``value``, already cut to ``size`` bytes, at ``offset`` from the device's first address."""
        raise NotImplementedError

    def deadline(self) -> int | None:
        """Virtual time in ns, absolute, at which ``tick`` has something to do; None when only an access can change it.

        Ask again after every access and every tick: both may move it.
        """
        return None

    def tick(self, now_ns: int) -> None:
        """Bring the device to virtual time ``now_ns``. Harmless when early, late or repeated."""

    def machine_reset(self, power_up: State) -> None:
        """The machine is reset: be as after power-up, when ``state`` returned ``power_up``.

        A device that keeps something over a reset, such as what a battery keeps, says so here.
        """
        self.load_state(power_up)

    def state(self) -> State:
        """All that ``load_state`` needs to make another device of this class behave the same from here on."""
        values = {name: getattr(self, name) for name in self.STATE}
        return {name: list(value) if isinstance(value, list) else value for name, value in values.items()}

    def load_state(self, state: State) -> None:
        """Take over what ``state`` returned. Moves no interrupt line: the controller at its end has its own state.

        Raises BadInput when the fields are not those of this device.
        """
        check_fields(type(self).__name__, state, self.STATE)
        for name, value in state.items():
            setattr(self, name, list(value) if isinstance(value, list) else value)


def check_fields(what: str, state: State, names: tuple[str, ...]) -> None:
    """Raise BadInput unless ``state`` has exactly the fields ``names``."""
    if set(state) != set(names):
        odd = ", ".join(sorted(set(state) ^ set(names)))
        raise BadInput(f"saved state of {what}", f"missing or unknown fields: {odd}")
