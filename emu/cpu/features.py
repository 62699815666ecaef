"""Features of a processor, by the names that QEMU and Linux give them: where CPUID shows each, and what it needs.

What is not in the list cannot be executed, and is offered by no model.  Leaves and bits are those of the SDM (vol. 2A,
CPUID) and of the AMD APM (vol. 3, appendix E).
"""

from __future__ import annotations

from collections.abc import Iterable

_BITS = {
    "1.edx": {
        "fpu": 0, "de": 2, "pse": 3, "tsc": 4, "msr": 5, "pae": 6, "mce": 7, "cx8": 8, "apic": 9, "sep": 11,
        "mtrr": 12, "pge": 13, "mca": 14, "cmov": 15, "pat": 16, "pse36": 17, "clflush": 19, "mmx": 23, "fxsr": 24,
        "sse": 25, "sse2": 26,
    },
    "1.ecx": {
        "pni": 0, "pclmulqdq": 1, "ssse3": 9, "cx16": 13, "pcid": 17, "sse4.1": 19, "sse4.2": 20, "x2apic": 21,
        "movbe": 22, "popcnt": 23, "tsc-deadline": 24, "aes": 25, "xsave": 26, "rdrand": 30, "hypervisor": 31,
    },
    "7.ebx": {
        "fsgsbase": 0, "tsc_adjust": 1, "bmi1": 3, "smep": 7, "bmi2": 8, "erms": 9, "invpcid": 10, "adx": 19,
        "smap": 20, "clflushopt": 23, "clwb": 24,
    },
    "7.ecx": {"umip": 2, "pku": 3, "la57": 16, "pks": 31},
    "80000001.edx": {
        "syscall": 11, "nx": 20, "mmxext": 22, "pdpe1gb": 26, "rdtscp": 27, "lm": 29, "3dnowext": 30, "3dnow": 31,
    },
    "80000001.ecx": {"lahf_lm": 0, "cr8legacy": 4, "abm": 5, "sse4a": 6},
    "80000007.edx": {"invtsc": 8},
    "d.1.eax": {"xsaveopt": 0, "xgetbv1": 2},
    "6.eax": {"arat": 2},
}  # fmt: skip

FEATURES = {name: (word, 1 << bit) for word, bits in _BITS.items() for name, bit in bits.items()}
"""Every feature: its word (:mod:`emu.engine.identity`) and its bit there."""

ALIASES = {
    "sse3": "pni", "sse4_1": "sse4.1", "sse4_2": "sse4.2", "sse4-1": "sse4.1", "sse4-2": "sse4.2",
    "tsc_deadline_timer": "tsc-deadline", "tsc-adjust": "tsc_adjust", "lahf-lm": "lahf_lm", "lzcnt": "abm",
    "constant_tsc": "invtsc", "nonstop_tsc": "invtsc",
}  # fmt: skip
"""Other spellings."""

NEEDS = {
    "pae": ("cx8",), "apic": ("msr",), "mtrr": ("msr",), "mca": ("mce",), "pse36": ("pse",), "mmx": ("fpu",),
    "fxsr": ("fpu",), "sse": ("fxsr", "mmx"), "sse2": ("sse",), "pni": ("sse2",), "ssse3": ("pni",),
    "sse4.1": ("ssse3",), "sse4.2": ("sse4.1",), "pclmulqdq": ("sse2",), "aes": ("sse2",), "sse4a": ("pni",),
    "mmxext": ("mmx",), "3dnow": ("mmx",), "3dnowext": ("3dnow",),
    "x2apic": ("apic",), "tsc-deadline": ("apic", "tsc"), "tsc_adjust": ("tsc", "msr"), "invtsc": ("tsc",),
    "rdtscp": ("tsc", "msr"), "nx": ("pae", "msr"), "syscall": ("msr",), "sep": ("msr",),
    "lm": ("pae", "nx", "syscall", "sse2"), "pdpe1gb": ("lm",), "lahf_lm": ("lm",), "cx16": ("lm",),
    "fsgsbase": ("lm",), "pcid": ("lm",), "la57": ("lm",), "pks": ("lm",), "pku": ("lm", "xsave"), "xsave": ("fxsr",),
    "xsaveopt": ("xsave",), "xgetbv1": ("xsave",), "bmi1": ("lm",), "bmi2": ("lm",),
}  # fmt: skip
"""What a feature cannot be without."""

OPCODES = {
    "tsc": (0x131,), "msr": (0x130, 0x132), "sep": (0x134, 0x135), "syscall": (0x105, 0x107),
    "mmx": (0x133, *range(0x160, 0x178), 0x17E, 0x17F, *range(0x1D1, 0x1FF)),  # RDPMC came with it
}  # fmt: skip
"""The instructions (:mod:`emu.cpu.decode`) of a feature, where the engine does not refuse them by itself."""

_XSAVE_ALWAYS = 0b11  # x87 and SSE state
_XSAVE_STATES = {"pku": 1 << 9}
_AMD_COPIES = 0x0183_F3FF  # bits of leaf 1 that AMD's 8000_0001H repeats


def words_of(features: Iterable[str], vendor: str) -> dict[str, int]:
    """The feature words of CPUID for these features."""
    present = set(features)
    words: dict[str, int] = {}
    for name in present:
        word, bit = FEATURES[name]
        words[word] = words.get(word, 0) | bit
    if vendor == "AuthenticAMD" and "syscall" in present:
        words["80000001.edx"] |= words["1.edx"] & _AMD_COPIES
    if "xsave" in present:
        words["d.0.eax"] = _XSAVE_ALWAYS | sum(bit for name, bit in _XSAVE_STATES.items() if name in present)
    return words


def without(features: Iterable[str], gone: str) -> frozenset[str]:
    """The features that are left without ``gone`` and everything that needs it."""
    left = set(features) - {gone}
    while lacking := {name for name in left if not left.issuperset(NEEDS.get(name, ()))}:
        left -= lacking
    return frozenset(left)
