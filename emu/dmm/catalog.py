"""The memory policies by name: what ``--policy NAME[:key=value,…]`` may say.

A new policy is one more row in POLICIES.  The modules are imported when a policy is made, so listing them is cheap.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any

from emu.addr import PAGE_SIZE
from emu.errors import BadInput
from emu.units import parse_duration, parse_size, parse_time, parse_whole_pages

if TYPE_CHECKING:
    from emu.boot.image import GuestImage
    from emu.dmm.policies.reference_trace import ReferenceTrace
    from emu.dmm.policy import Policy


@dataclass(frozen=True)
class Entry:
    """One policy.

    Attributes:
        module, factory: where its class is, below :mod:`emu.dmm.policies`; it is called with the guest's image and the
            options as keywords.
        about: one line for people.
        options: by name, what turns an option's text into its value (raising ValueError).
        populates: it answers every ``populate``, so that demand paging need not stand behind it.
    """

    module: str
    factory: str
    about: str
    options: Mapping[str, Callable[[str], Any]] = field(default_factory=dict)
    populates: bool = False


def _pages(text: str) -> int:
    """Pages in ``text``: their number, or a size with a suffix."""
    return int(text) if text.isdigit() else parse_whole_pages(text) // PAGE_SIZE


def _positive(text: str) -> int:
    if not text.isdigit() or not int(text):
        raise ValueError("expected a number above 0")
    return int(text)


def _percent(text: str) -> int:
    if not text.isdigit() or int(text) > 99:
        raise ValueError("expected a number from 0 to 99")
    return int(text)


def _schedule(text: str) -> list[tuple[int, int]]:
    """TIME:SIZE, as often as needed, with slashes between."""
    steps = []
    for step in text.split("/"):
        time, colon, size = step.partition(":")
        if not colon:
            raise ValueError("expected TIME:SIZE/TIME:SIZE/…, such as 5ms:1M/10ms:4M")
        steps.append((parse_time(time), _pages(size) * PAGE_SIZE))
    return steps


def _one_of(*names: str) -> Callable[[str], str]:
    def check(text: str) -> str:
        if text not in names:
            raise ValueError(f"expected one of {', '.join(names)}")
        return text

    return check


def _victims(name: str) -> str:
    from emu.dmm.policies.victims import VICTIMS

    return _one_of(*VICTIMS)(name)


def _trace(path: str) -> ReferenceTrace:
    from emu.dmm.policies.reference_trace import ReferenceTrace

    return ReferenceTrace.load(path)


_SWAP: dict[str, Callable[[str], Any]] = {
    "victims": _victims,
    "memory": parse_size,
    "algorithm": _one_of("lz4", "zstd"),
    "file": str,
    "size": parse_size,
    "period": parse_duration,
    "tau": parse_duration,
    "seed": int,
    "trace": _trace,
}
_BALANCE: dict[str, Callable[[str], Any]] = {
    "period": parse_duration, "sample": _positive, "tax": _percent, "shares": _positive, "step": _positive, "seed": int,
}  # fmt: skip
_RETIRE: dict[str, Callable[[str], Any]] = {"every": parse_duration, "count": _positive, "seed": int}

POLICIES: dict[str, Entry] = {
    "demand": Entry(
        "demand", "DemandPaging", "a page gets its frame when it is first touched",
        {"readahead": _positive}, True,
    ),
    "static": Entry("demand", "StaticMapping", "every page gets its frame before the guest starts", {}, True),
    "swap": Entry("swap", "Swap", "when the pool is full, pages go to a store and come back later", _SWAP),
    "share": Entry("share", "Share", "identical pages use one frame until they differ", {"rate": _positive}),
    "balloon": Entry("balloon", "Balloon", "the guest gives up pages when it is asked to", {"target": _pages}),
    "pool": Entry(
        "pool_control", "PoolControl", "the pool gets other sizes at set times", {"schedule": _schedule}
    ),
    "balance": Entry("balance", "Balance", "frames move from VMs that do not use theirs to others", _BALANCE),
    "record": Entry(
        "reference_trace", "ReferenceRecorder", "writes down which pages the guest uses when",
        {"file": str, "window": _positive},
    ),
    "retire": Entry("retire", "Retire", "frames in use go out of service", _RETIRE),
}
DEFAULT = "demand"


@dataclass(frozen=True)
class Choice:
    """A policy that somebody asked for, checked against POLICIES."""

    name: str
    options: Mapping[str, Any]

    def make(self, image: GuestImage) -> Policy:
        """The policy itself, not yet attached."""
        entry = POLICIES[self.name]
        module = import_module(f"emu.dmm.policies.{entry.module}")
        policy: Policy = getattr(module, entry.factory)(image, **self.options)
        return policy


def parse(text: str) -> Choice:
    """Read ``NAME[:key=value,…]``.

    Raises:
        BadInput: there is no such policy, or it has no such option, or the option cannot have that value.
    """
    name, colon, rest = text.partition(":")
    if name not in POLICIES:
        raise BadInput("--policy", f"{name!r} is none of the policies: {', '.join(POLICIES)}")
    known = POLICIES[name].options
    options: dict[str, Any] = {}
    for pair in rest.split(",") if colon else []:
        key, equals, value = pair.partition("=")
        if not equals or key not in known:
            wanted = f"options are key=value, with the keys: {', '.join(known)}" if known else "it takes no options"
            raise BadInput("--policy", f"{name} does not understand {pair!r}: {wanted}")
        try:
            options[key] = known[key](value)
        except ValueError as error:
            raise BadInput("--policy", f"{name}: {key}={value}: {error}") from None
    return Choice(name, options)


def choose(texts: Iterable[str]) -> list[Choice]:
    """The policies to attach, in order; demand paging stands behind those that populate nothing.

    Raises:
        BadInput: as :func:`parse`, or a policy is named twice.
    """
    choices = [parse(text) for text in texts]
    names = [choice.name for choice in choices]
    for name in names:
        if names.count(name) > 1:
            raise BadInput("--policy", f"{name} is named twice")
    if not any(POLICIES[name].populates for name in names):
        choices.append(Choice(DEFAULT, {}))
    return choices
