"""Models of processors: what ``--cpu MODEL,+feature,-feature`` may say, and what CPUID answers then.

Names and versions are those of the field (SDM vol. 2A, CPUID; AMD's revision guides).  A model has those of its
features that can be executed (:mod:`emu.cpu.features`); it is what CPUID shows, and the engine refuses what it lacks
where it knows how to.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

from emu.cpu.features import ALIASES, FEATURES, NEEDS, without, words_of
from emu.engine.identity import Identity
from emu.errors import BadInput

DEFAULT = "EPYC"

_INTEL, _AMD = "GenuineIntel", "AuthenticAMD"


@dataclass(frozen=True)
class Model:
    """One processor.

    Attributes:
        about: a few words for the list.
        vendor: 12 characters.
        family, model, stepping: as a person counts them.
        name: the brand.
        features: names of :data:`emu.cpu.features.FEATURES`.
        level, extended_level: the highest leaves of CPUID, at least; more where a feature is shown there.
        caches: descriptors of caches and TLBs, as EAX and EDX of leaf 2 have them (SDM vol. 2A, table 3-12); (0, 0)
            leaves it to the engine, which then refers to leaf 4.
    """

    about: str
    vendor: str
    family: int
    model: int
    stepping: int
    name: str
    features: frozenset[str]
    level: int = 1
    extended_level: int = 0
    caches: tuple[int, int] = (0, 0)

    @cached_property
    def identity(self) -> Identity:
        """What CPUID says."""
        words = words_of(self.features, self.vendor)
        leaves = [int(word.partition(".")[0], 16) for word, value in words.items() if value]
        level = max(leaf for leaf in (self.level, *leaves) if leaf < 1 << 31)
        extended_level = max(leaf for leaf in (self.extended_level, 0, *leaves) if leaf == 0 or leaf >= 1 << 31)
        if "lm" in self.features:
            extended_level = max(extended_level, 0x8000_0008)  # where the sizes of addresses stand
        return Identity(self.vendor, self._version, level, extended_level, self.name, words)

    @property
    def _version(self) -> int:
        family, beyond = min(self.family, 15), max(self.family - 15, 0)
        return beyond << 20 | self.model >> 4 << 16 | family << 8 | (self.model & 15) << 4 | self.stepping


def _all(text: str) -> frozenset[str]:
    return frozenset(text.split())


_P6_CACHES = 0x0302_0101, 0x0C04_0843  # 16K each of L1, 512K of L2

_486 = _all("fpu")
_PENTIUM = _486 | _all("de pse tsc msr mce cx8 apic mmx")
_PENTIUM2 = _PENTIUM | _all("pae sep mtrr pge mca cmov pat pse36 fxsr")
_PENTIUM3 = _PENTIUM2 | _all("sse")
_HERE = _all("x2apic tsc-deadline hypervisor tsc_adjust invtsc arat")  # what the machine adds
_BASE64 = _PENTIUM3 | _all("sse2 pni clflush cx16 syscall nx lm")
_QEMU64 = _BASE64 | _all("lahf_lm hypervisor x2apic tsc-deadline")
_CORE2 = _BASE64 | _all("ssse3 lahf_lm sse4.1") | _HERE
_NEHALEM = _CORE2 | _all("sse4.2 popcnt rdtscp")
_WESTMERE = _NEHALEM | _all("aes pclmulqdq")
_HASWELL = _WESTMERE | _all("xsave xsaveopt rdrand movbe fsgsbase smep bmi1 bmi2 erms abm pcid invpcid")
_SKYLAKE = _HASWELL | _all("adx smap clflushopt xgetbv1 pdpe1gb")
_ICELAKE = _SKYLAKE | _all("umip pku la57")
_EPYC = _SKYLAKE - _all("erms pcid invpcid") | _all("mmxext cr8legacy sse4a")
_MAX = frozenset(FEATURES)

MODELS = {
    "486": Model("Intel i486DX4", _INTEL, 4, 8, 0, "", _486),
    "pentium": Model("Intel Pentium", _INTEL, 5, 4, 3, "", _PENTIUM),
    "pentium2": Model("Intel Pentium II", _INTEL, 6, 5, 2, "", _PENTIUM2, level=2, caches=_P6_CACHES),
    "pentium3": Model("Intel Pentium III", _INTEL, 6, 7, 3, "", _PENTIUM3, level=2, caches=_P6_CACHES),
    "qemu32": Model(
        "QEMU's 32-bit processor", _INTEL, 6, 6, 3, "emu Virtual CPU",
        _PENTIUM3 | _all("sse2 pni clflush hypervisor x2apic"), level=4, extended_level=0x8000_0004,
    ),
    "qemu64": Model(
        "QEMU's 64-bit processor", _AMD, 15, 107, 1, "emu Virtual CPU", _QEMU64, level=0xD, extended_level=0x8000_000A,
    ),
    "core2duo": Model("Intel Core 2", _INTEL, 6, 15, 11, "Intel(R) Core(TM)2 Duo CPU", _CORE2 - {"sse4.1"}, level=10),
    "Penryn": Model("Intel Core 2, 45 nm", _INTEL, 6, 23, 3, "Intel Core 2 Duo P9xxx (Penryn)", _CORE2, level=10),
    "Nehalem": Model("Intel Core i7, 2008", _INTEL, 6, 26, 3, "Intel Core i7 9xx (Nehalem)", _NEHALEM, level=11),
    "Westmere": Model("Intel, 2010: AES", _INTEL, 6, 44, 1, "Westmere E56xx/L56xx/X56xx", _WESTMERE, level=11),
    "Haswell": Model("Intel, 2013, without AVX", _INTEL, 6, 60, 4, "Intel Core Processor (Haswell)", _HASWELL),
    "Skylake-Client": Model(
        "Intel, 2015, without AVX", _INTEL, 6, 94, 3, "Intel Core Processor (Skylake)", _SKYLAKE
    ),
    "Icelake-Server": Model(
        "Intel, 2021, without AVX", _INTEL, 6, 106, 0, "Intel Xeon Processor (Icelake)", _ICELAKE
    ),
    "EPYC": Model("AMD, 2017, without AVX", _AMD, 23, 1, 2, "AMD EPYC Processor", _EPYC, extended_level=0x8000_001E),
    "max": Model(
        "everything that can be executed", _AMD, 23, 1, 2, "emu Virtual CPU", _MAX, extended_level=0x8000_001E
    ),
}  # fmt: skip


def parse_cpu(text: str | None) -> Model:
    """The processor that ``MODEL``, ``MODEL,+feature,-feature`` or ``+feature`` (of the default model) means.

    Taking a feature away takes what needs it as well.

    Raises:
        BadInput: there is no such model or feature, or a feature is to be added without one that it needs.
    """
    first, *changes = (DEFAULT if text is None else text).split(",")
    if first[:1] in ("+", "-"):
        first, changes = DEFAULT, [first, *changes]
    if first not in MODELS:
        raise BadInput("--cpu", f"no model {first!r}; there are {', '.join(MODELS)}")
    model = MODELS[first]
    features = model.features
    for change in changes:
        sign, name = change[:1], ALIASES.get(change[1:], change[1:])
        if sign not in ("+", "-"):
            raise BadInput("--cpu", f"{change!r}: expected +feature or -feature")
        if name not in FEATURES:
            raise BadInput("--cpu", f"no feature {change[1:]!r} that can be executed; --cpu help lists them")
        features = features | {name} if sign == "+" else without(features, name)
    for name in sorted(features):
        for needed in NEEDS.get(name, ()):
            if needed not in features:
                raise BadInput("--cpu", f"{name} needs {needed}: +{needed}")
    return replace(model, features=features)


def describe() -> str:
    """The list that ``--cpu help`` prints."""
    lines = ["models:"]
    lines += [f"  {name:16}{model.about}{' (default)' * (name == DEFAULT)}" for name, model in MODELS.items()]
    lines.append("features, each as +feature or -feature behind the model and a comma:")
    line = " "
    for name in sorted(FEATURES):
        if len(line) + 1 + len(name) > 100:
            lines.append(line)
            line = " "
        line += f" {name}"
    return "\n".join([*lines, line]) + "\n"
