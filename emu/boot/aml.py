"""ACPI machine language, as far as a PC's DSDT needs it. Source: ACPI specification 6.5, chapter 20 and section 6.4.

Every function returns the bytes of one term; terms are put together by passing them to the one around them:

    scope("\\\\_SB", device("RTC", name("_HID", eisa_id("PNP0B00")), name("_CRS", resources(io(0x70, 2), irq(8)))))
"""

from __future__ import annotations

import re
import struct

from emu.errors import BadInput

NAME, SCOPE, BUFFER, PACKAGE, METHOD = b"\x08", b"\x10", b"\x11", b"\x12", b"\x14"  # opcodes (table 20.1)
DEVICE, STORE = b"\x5b\x82", b"\x70"
STRING_PREFIX, DUAL_NAME_PREFIX, MULTI_NAME_PREFIX = b"\x0d", b"\x2e", b"\x2f"
ARG0 = b"\x68"
INTEGERS = ((0x0A, "<B"), (0x0B, "<H"), (0x0C, "<I"), (0x0E, "<Q"))  # prefix and format, smallest first
MAX_LENGTH = (1 << 28) - 1  # bytes of a term with a length
END_TAG = b"\x79\x00"  # of a resource template; checksum 0 counts as right

MEMORY, IO, BUS_NUMBER = 0, 1, 2  # kinds of address ranges
ENTIRE, WRITABLE = 3, 1  # flags of a range of I/O ports and of one of memory
FIXED = 0x0C  # both ends of an address range are fixed
LEVEL_HIGH = 0x01  # extended interrupt: this device uses it, level-triggered, active high, exclusive


def path(text: str) -> bytes:
    """A name: optional ``\\\\`` or ``^``s, then segments of 1 to 4 of A-Z, 0-9, _ with dots between them."""
    prefix, rest = re.fullmatch(r"(\\|\^*)(.*)", text, re.DOTALL).groups()  # type: ignore[union-attr]
    segments = rest.split(".") if rest else []
    if not all(re.fullmatch(r"[A-Z_][A-Z0-9_]{0,3}", segment) for segment in segments) or len(segments) > 255:
        raise BadInput(f"AML name {text!r}", "not segments of 1 to 4 characters of A-Z, 0-9 and _")
    packed = b"".join(segment.ljust(4, "_").encode() for segment in segments)
    count = {0: b"", 1: b"", 2: DUAL_NAME_PREFIX}.get(len(segments), MULTI_NAME_PREFIX + bytes((len(segments) & 0xFF,)))
    return prefix.encode() + count + (packed or b"\0")


def integer(value: int) -> bytes:
    """A constant of 0 to 64 bits in its shortest form."""
    if value in (0, 1):
        return bytes((value,))
    for prefix, form in INTEGERS:
        if 0 <= value < 1 << 8 * struct.calcsize(form):
            return bytes((prefix,)) + struct.pack(form, value)
    raise BadInput(f"AML integer {value}", "not 0 to 2**64 - 1")


def string(text: str) -> bytes:
    """A constant of ASCII characters."""
    return STRING_PREFIX + text.encode("ascii") + b"\0"


def eisa_id(text: str) -> bytes:
    """A Plug and Play ID, as PNP0A03, packed into 32 bits: three letters of 5 bits, four hexadecimal digits."""
    if not re.fullmatch(r"[A-Z]{3}[0-9A-F]{4}", text):
        raise BadInput(f"EISA ID {text!r}", "not three letters and four hexadecimal digits")
    first, second, third = (ord(letter) - 0x40 for letter in text[:3])
    number = first << 26 | second << 21 | third << 16 | int(text[3:], 16)
    return bytes((INTEGERS[2][0],)) + number.to_bytes(4, "big")


def name(text: str, value: bytes) -> bytes:
    """Define an object with a constant value."""
    return NAME + path(text) + value


def scope(text: str, *terms: bytes) -> bytes:
    """Define objects within one that exists."""
    return SCOPE + _with_length(path(text) + b"".join(terms))


def device(text: str, *terms: bytes) -> bytes:
    """Define a device and the objects within it."""
    return DEVICE + _with_length(path(text) + b"".join(terms))


def method(text: str, arguments: int, *terms: bytes) -> bytes:
    """Define a method with 0 to 7 arguments, not serialized."""
    return METHOD + _with_length(path(text) + bytes((arguments,)) + b"".join(terms))


def store(value: bytes, target: bytes) -> bytes:
    """The statement that stores a value."""
    return STORE + value + target


def package(*elements: bytes) -> bytes:
    """A list of at most 255 values."""
    return PACKAGE + _with_length(bytes((len(elements),)) + b"".join(elements))


def buffer(data: bytes) -> bytes:
    """Constant bytes."""
    return BUFFER + _with_length(integer(len(data)) + data)


# ---- resource descriptors, the parts of a _CRS


def resources(*descriptors: bytes) -> bytes:
    """A resource template."""
    return buffer(b"".join(descriptors) + END_TAG)


def irq(number: int) -> bytes:
    """An ISA interrupt, 0 to 15: edge-triggered, active high (6.4.2.1)."""
    return struct.pack("<BH", 0x22, 1 << number)


def io(port: int, count: int) -> bytes:
    """Fixed I/O ports, 16 bits decoded (6.4.2.5)."""
    return struct.pack("<BBHHBB", 0x47, 1, port, port, 1, count)


def memory32(gpa: int, size: int, writable: bool = True) -> bytes:
    """A fixed range of memory below 4 GiB (6.4.3.4)."""
    return struct.pack("<BHBII", 0x86, 9, writable, gpa, size)


def interrupt(number: int) -> bytes:
    """A global system interrupt: level-triggered, active high (6.4.3.6)."""
    return struct.pack("<BHBBI", 0x89, 6, LEVEL_HIGH, 1, number)


def word_range(kind: int, flags: int, first: int, last: int) -> bytes:
    """A range of bus numbers or I/O ports that a bridge passes on; ``flags`` are of the kind (6.4.3.5.3)."""
    return struct.pack("<BHBBBHHHHH", 0x88, 13, kind, FIXED, flags, 0, first, last, 0, last - first + 1)


def dword_range(kind: int, flags: int, first: int, last: int) -> bytes:
    """A range of memory below 4 GiB that a bridge passes on; ``flags`` are of the kind (6.4.3.5.2)."""
    return struct.pack("<BHBBBIIIII", 0x87, 23, kind, FIXED, flags, 0, first, last, 0, last - first + 1)


def _with_length(body: bytes) -> bytes:
    """A package length and what it counts, itself included: 6 bits in one byte, or 4 in the first and 8 in each of up
    to three others, whose number the top bits tell (20.2.4)."""
    length = len(body) + 1
    if length < 1 << 6:
        return bytes((length,)) + body
    for extra in (1, 2, 3):
        length = len(body) + 1 + extra
        if length < 1 << 4 + 8 * extra:
            return bytes((extra << 6 | length & 0xF,)) + (length >> 4).to_bytes(extra, "little") + body
    raise BadInput(f"AML term of {len(body)} bytes", f"longer than {MAX_LENGTH}")
