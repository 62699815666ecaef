"""What the engine takes a processor for: the vendor, version, name and feature words that CPUID answers from.

The engine's translator refuses by them what was not promised (#UD), and keeps CR4 and EFER bits out by them.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass

# --- in the CPU state of the engine (QEMU 5.0: CPUX86State, target/i386/cpu.h) ----------------------------------------
_LEVEL, _EXTENDED_LEVEL = 5604, 5608  # highest leaves
VENDOR = 5616  # EBX, EDX, ECX of leaf 0
INTEL = int.from_bytes(b"Genu", "little")  # the first u32 of Intel's
VERSION = 5628
_WORDS = 5632  # u64 each
_NAME, _NAME_SIZE = 6176, 48

WORDS = {
    "1.edx": 0, "1.ecx": 1, "7.ebx": 2, "7.ecx": 3, "80000001.edx": 6, "80000001.ecx": 7, "80000007.edx": 8,
    "d.1.eax": 19, "6.eax": 20, "d.0.eax": 21,
}  # fmt: skip
"""The feature words that say something here, as "leaf.register" or "leaf.subleaf.register": their numbers."""


@dataclass(frozen=True)
class Identity:
    """What CPUID says.

    Attributes:
        vendor: 12 characters.
        version: family, model and stepping as EAX of leaf 1 has them.
        level, extended_level: the highest leaves.
        name: the brand, up to 47 characters.
        words: values of WORDS; those left out are 0.
    """

    vendor: str
    version: int
    level: int
    extended_level: int
    name: str
    words: Mapping[str, int]


def word_at(word: str) -> int:
    """Bytes from the CPU state to a feature word, a u32."""
    return _WORDS + 8 * WORDS[word]


def assume(env: int, identity: Identity) -> None:
    """Make the engine with its CPU state at ``env`` be this processor, before it translates any code."""

    def store32(offset: int, value: int) -> None:
        ctypes.c_uint32.from_address(env + offset).value = value

    vendor = identity.vendor.encode()
    assert len(vendor) == 12
    ctypes.memmove(env + VENDOR, vendor, len(vendor))
    store32(VERSION, identity.version)
    store32(_LEVEL, identity.level)
    store32(_EXTENDED_LEVEL, identity.extended_level)
    for word in WORDS:
        store32(word_at(word), identity.words.get(word, 0))
    ctypes.memmove(env + _NAME, identity.name.encode().ljust(_NAME_SIZE, b"\0"), _NAME_SIZE)
