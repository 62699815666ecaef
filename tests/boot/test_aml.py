"""AML terms against the encodings that the specification's grammar gives, and a reader that takes them apart again."""

from __future__ import annotations

import pytest

from emu.boot import aml
from emu.errors import BadInput


@pytest.mark.parametrize(
    ("text", "encoded"),
    [
        ("_SB", b"_SB_"),
        ("\\_SB", b"\\_SB_"),
        ("\\", b"\\\0"),
        ("^^PCI0", b"^^PCI0"),
        ("_SB.PCI0", b".\x5f\x53\x42\x5fPCI0"),
        ("\\_SB.PCI0.ISA", b"\\\x2f\x03_SB_PCI0ISA_"),
    ],
)
def test_names(text: str, encoded: bytes) -> None:
    assert aml.path(text) == encoded


@pytest.mark.parametrize("text", ["PCI00", "pci0", "0PCI", "A..B", "A.", "\\^A", "A B", "Ü", "A\n"])
def test_bad_names(text: str) -> None:
    with pytest.raises(BadInput, match="AML name"):
        aml.path(text)


@pytest.mark.parametrize(
    ("value", "encoded"),
    [
        (0, "00"), (1, "01"), (2, "0a02"), (0xFF, "0aff"), (0x100, "0b0001"), (0xFFFF, "0bffff"),
        (0x10000, "0c00000100"), (0xFFFFFFFF, "0cffffffff"), (1 << 32, "0e0000000001000000"),
    ],
)  # fmt: skip
def test_integers(value: int, encoded: str) -> None:
    assert aml.integer(value).hex() == encoded


@pytest.mark.parametrize("value", [-1, 1 << 64])
def test_integers_of_more_than_64_bits(value: int) -> None:
    with pytest.raises(BadInput):
        aml.integer(value)


def test_eisa_ids() -> None:
    """PNP0A03 is the well-known 0x030AD041."""
    assert aml.eisa_id("PNP0A03") == b"\x0c" + (0x030AD041).to_bytes(4, "little")
    for bad in ("PNP0A0", "pnp0A03", "PNP0a03", "PNP0A033"):
        with pytest.raises(BadInput):
            aml.eisa_id(bad)


def length_and_body(term: bytes) -> tuple[int, bytes]:
    """Read a package length as 20.2.4 says; what it covers, without itself."""
    extra = term[0] >> 6
    length = term[0] & (0x3F if not extra else 0x0F)
    for n in range(extra):
        length |= term[1 + n] << 4 + 8 * n
    assert length == len(term)
    return extra, term[1 + extra :]


@pytest.mark.parametrize("size", [*range(55, 65), *range(4085, 4097), *range((1 << 20) - 10, (1 << 20) + 3)])
def test_lengths_count_themselves_and_are_as_short_as_can_be(size: int) -> None:
    body = bytes(size)
    scope = aml.scope("AAAA", body)
    extra, inner = length_and_body(scope[1:])
    assert scope[:1] == b"\x10"
    assert inner == b"AAAA" + body
    length = len(scope) - 1
    limits = (0x3F, 0xFFF, 0xF_FFFF)
    assert length <= limits[extra] if extra < 3 else length < 1 << 28
    assert extra == 0 or length - 1 > limits[extra - 1]


def test_terms() -> None:
    assert aml.name("A", aml.string("hi")) == b"\x08A___\x0dhi\0"
    assert aml.device("A", b"x") == b"\x5b\x82\x06A___x"
    assert aml.method("_PIC", 1, aml.store(aml.ARG0, aml.path("B"))) == b"\x14\x0c_PIC\x01\x70\x68B___"
    assert aml.package(aml.integer(0), aml.integer(5)) == b"\x12\x05\x02\x00\x0a\x05"
    assert aml.buffer(b"abc") == b"\x11\x06\x0a\x03abc"


def test_resource_template() -> None:
    template = aml.resources(aml.io(0x3F8, 8), aml.irq(4))
    assert template == aml.buffer(bytes.fromhex("4701f803f8030108 221000 7900"))


def test_large_resource_descriptors_have_the_length_that_they_say() -> None:
    descriptors = (
        (aml.memory32(0xFED00000, 0x400), 0x86),
        (aml.interrupt(17), 0x89),
        (aml.word_range(aml.BUS_NUMBER, 0, 0, 255), 0x88),
        (aml.dword_range(aml.MEMORY, aml.WRITABLE, 0xE0000000, 0xFEBFFFFF), 0x87),
    )
    for descriptor, tag in descriptors:
        assert descriptor[0] == tag
        assert int.from_bytes(descriptor[1:3], "little") == len(descriptor) - 3
    assert aml.word_range(aml.BUS_NUMBER, 0, 0, 255)[-2:] == b"\x00\x01", "256 buses"
    assert aml.interrupt(17)[3:] == b"\x01\x01\x11\0\0\0"
