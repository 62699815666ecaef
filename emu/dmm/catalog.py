"""The memory policies by name: what ``--policy NAME[:key=value,…]`` may say.

A new policy is one more row in POLICIES.  The modules are imported when a policy is made, so listing them is cheap.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any

from emu.errors import BadInput

if TYPE_CHECKING:
    from emu.boot.image import GuestImage
    from emu.dmm.policy import Policy


@dataclass(frozen=True)
class Entry:
    """One policy.

    Attributes:
        module, factory: where its class is; it is called with the guest's image and the options as keywords.
        about: one line for people.
        options: by name, what turns an option's text into its value (raising ValueError).
        populates: it answers every ``populate``, so that demand paging need not stand behind it.
    """

    module: str
    factory: str
    about: str
    options: Mapping[str, Callable[[str], Any]] = field(default_factory=dict)
    populates: bool = False


POLICIES: dict[str, Entry] = {
    "demand": Entry("emu.dmm.demand", "DemandPaging", "a page gets its frame when it is first touched", {}, True),
    "static": Entry("emu.dmm.demand", "StaticMapping", "every page gets its frame before the guest starts", {}, True),
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
        policy: Policy = getattr(import_module(entry.module), entry.factory)(image, **self.options)
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
