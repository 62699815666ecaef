"""What can be done to the memory of a running VM from outside: the actions of schedules and of the stepper.

Each is carried out completely or refused with a reason, and the guest goes on either way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from emu.addr import PAGE_SIZE
from emu.dmm import catalog
from emu.dmm.errors import CannotRetire, DmmError
from emu.dmm.policies.pool_control import resize
from emu.engine.ram import OutOfMachineFrames
from emu.errors import BadInput
from emu.machine.vm import VirtualMachine
from emu.units import parse_whole_pages

_REFUSALS = (BadInput, DmmError, OutOfMachineFrames)


def perform(vm: VirtualMachine, action: str, value: str | int) -> str | None:
    """Carry out an action on a VM that is not running at this moment.

    Args:
        action: a key of ACTIONS.
        value: what it needs to know: a size, a policy, a number of frames.

    Returns:
        None, or why it cannot be done.
    """
    try:
        ACTIONS[action](vm, value)
    except _REFUSALS as error:
        return str(error)
    return None


def _pages(action: str, size: str) -> int:
    try:
        return parse_whole_pages(size) // PAGE_SIZE
    except ValueError as error:
        raise BadInput(action, str(error)) from None


def _resize_pool(vm: VirtualMachine, size: str) -> None:
    resize(vm.dmm, _pages("pool", size))


def _set_balloon(vm: VirtualMachine, size: str) -> None:
    balloon = vm.dmm.balloon.policy
    if balloon is None:
        raise BadInput("balloon", f"{vm.name} has no policy of this name at the moment")
    balloon.set_target(_pages("balloon", size))


def _attach(vm: VirtualMachine, policy: str) -> None:
    choice = catalog.parse(policy)
    if any(other.name == choice.name for other in vm.dmm.policies):
        raise BadInput(choice.name, f"{vm.name} has a policy of this name already")
    assert vm.guest is not None
    vm.attach(choice.make(vm.guest.image))


def _detach(vm: VirtualMachine, name: str) -> None:
    found = [policy for policy in vm.dmm.policies if policy.name == name]
    if not found:
        raise BadInput(name, f"{vm.name} has no policy of this name at the moment")
    if not any(catalog.POLICIES[policy.name].populates for policy in vm.dmm.policies if policy.name != name):
        raise BadInput(name, f"{vm.name} has no other policy that gives frames to pages")
    vm.dmm.detach(found[0])


def _retire(vm: VirtualMachine, frames: int) -> None:
    """The frames in use with the lowest numbers."""
    chosen = sorted(vm.pool.used_frames())[:frames]
    if len(chosen) < frames:
        raise BadInput("retire", f"{vm.name} has {len(chosen)} frames in use")
    for done, mfn in enumerate(chosen):
        try:
            vm.dmm.retire(mfn)
        except CannotRetire as error:
            raise BadInput("retire", f"after {done} of {frames} frames: {error}") from error


def _pin(vm: VirtualMachine, gfn: int) -> None:
    if not vm.dmm.is_memory(gfn):
        raise BadInput("pin", f"gfn {gfn:#x} is no memory of {vm.name}")
    vm.dmm.pin(gfn)


def _unpin(vm: VirtualMachine, gfn: int) -> None:
    if gfn not in vm.dmm.pinned():
        raise BadInput("unpin", f"gfn {gfn:#x} is not pinned")
    vm.dmm.unpin(gfn)


ACTIONS: dict[str, Callable[[VirtualMachine, Any], None]] = {
    "pool": _resize_pool,
    "balloon": _set_balloon,
    "attach": _attach,
    "detach": _detach,
    "retire": _retire,
    "pin": _pin,
    "unpin": _unpin,
}
"""By name: the function that carries it out, raising one of the refusals when it cannot."""
