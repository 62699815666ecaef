"""Sizes and virtual times, and how people write them."""

from __future__ import annotations

import re

from emu.addr import PAGE_SIZE

NS_PER_SECOND = 1_000_000_000
NEVER = (1 << 63) - 1  # ns: a deadline that does not come

_DIGITS = 18  # that a size or a time may have
_UNITS_NS = {"ns": 1, "us": 1_000, "ms": 1_000_000, "s": NS_PER_SECOND}


def parse_size(text: str) -> int:
    """Bytes in ``text``: a number with an optional suffix K, M or G (powers of 1024).

    Raises:
        ValueError: the text is no size.
    """
    factor = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}.get(text[-1:].upper())
    digits = text[:-1] if factor else text
    if not (digits.isascii() and digits.isdigit()):
        raise ValueError(f"not a size: {text!r} (expected a number, optionally with K, M or G)")
    if len(digits) > _DIGITS:
        raise ValueError(f"not a size: a number of {len(digits)} digits (expected {_DIGITS} at most)")
    return int(digits) * (factor or 1)


def format_size(size: int) -> str:
    """The shortest exact spelling that :func:`parse_size` reads back."""
    for suffix, shift in (("G", 30), ("M", 20), ("K", 10)):
        if size and size % (1 << shift) == 0:
            return f"{size >> shift}{suffix}"
    return str(size)


def parse_whole_pages(text: str) -> int:
    """Bytes in ``text``, a size that is a multiple of the page size.

    Raises:
        ValueError: the text is no such size.
    """
    size = parse_size(text)
    if size % PAGE_SIZE:
        raise ValueError(f"{text} is not a multiple of {format_size(PAGE_SIZE)}")
    return size


def parse_time(text: str) -> int:
    """Nanoseconds in ``text``: a number with a unit, such as 1.5s, 20 ms, 3us, 100ns.

    Raises:
        ValueError: the text is no time.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(ns|us|ms|s)\s*", text)
    if match is None:
        raise ValueError(f"not a virtual time: {text!r} (expected something like 1.5s, 20ms, 3us or 100ns)")
    time = float(match[1]) * _UNITS_NS[match[2]]
    if time >= NEVER:
        raise ValueError(f"not a virtual time: {time / NS_PER_SECOND:.3g} s (expected less than 292 years)")
    return round(time)


def parse_duration(text: str) -> int:
    """As :func:`parse_time`, for a time that must not be 0."""
    time = parse_time(text)
    if not time:
        raise ValueError("expected a time above 0")
    return time


def format_time(ns: int) -> str:
    """A virtual time for people: 640 ns, 12.5 us, 3.25 ms, 1.5 s."""
    for unit, size in (("s", 1_000_000_000), ("ms", 1_000_000), ("us", 1_000)):
        if ns >= size:
            return f"{ns / size:.4g} {unit}"
    return f"{ns} ns"
