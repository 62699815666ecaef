"""Multiboot 2: kernels that walk the tags of their boot information and print them, and broken headers."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emu.boot.guest import Guest
from emu.boot.multiboot2 import multiboot2_guest
from emu.errors import BadInput
from emu.testing import boot
from tests.boot import kernels
from tests.boot.kernels import ALLOC, PROGBITS, STRTAB, Load, Section, code, elf, header2, tag

RAM = 16 << 20
BASE = 0x10_0000
SIZE = 0x4000  # of the kernel in memory; its stack is at the end
ADDRESS, ENTRY, RELOCATABLE = 2, 3, 10  # header tags

# Everything is relative to EBX or ESP, so that it runs wherever it is loaded.
KERNEL = """
.macro show text, value
    print \\text
    print_hex \\value
.endm
start:
    call here
here:
    pop edx
    lea esp, [edx + STACK_DISTANCE]
    show "magic ", eax
    mov eax, ebx
    and eax, 7
    show " alignment ", eax
    show " reserved ", [ebx + 4]
    print "\\n"
    lea ebp, [ebx + 8]
    add ebx, [ebx]                  # the end
next:
    mov eax, ebp
    and eax, 7
    jnz misaligned
    cmp ebp, ebx
    jae missing
    mov eax, [ebp]
    print "tag "
    print_decimal eax
    print " size "
    print_decimal [ebp + 4]
    cmp eax, 0
    je end
    cmp eax, 2
    jbe text
    cmp eax, 3
    je module
    cmp eax, 6
    je map
    cmp eax, 9
    je sections
    cmp eax, 14
    je rsdp
    cmp eax, 15
    je rsdp
    show " ", [ebp + 8]             # 4, 21
    cmp eax, 21
    je tag_done
    show " ", [ebp + 12]
    jmp tag_done
text:
    print " "
    lea esi, [ebp + 8]
    call put_string
    jmp tag_done
rsdp:
    print " "
    lea esi, [ebp + 8]
    mov ecx, 7
rsdp_character:
    lodsb
    out PORT_CONSOLE, al
    dec ecx
    jnz rsdp_character
    jmp tag_done
module:
    mov eax, [ebp + 8]
    show " at ", eax
    mov eax, [ebp + 12]
    sub eax, [ebp + 8]
    show " bytes ", eax
    print " "
    lea esi, [ebp + 16]
    call put_string
    mov esi, [ebp + 8]
    print ": "
    lodsb
    out PORT_CONSOLE, al
    lodsb
    out PORT_CONSOLE, al
    jmp tag_done
map:
    show " entries of ", [ebp + 8]
    show " version ", [ebp + 12]
    lea edi, [ebp + 16]
    mov ecx, ebp
    add ecx, [ebp + 4]
map_entry:
    print "\\n"
    show " ", [edi + 4]
    show " ", [edi]
    show " size ", [edi + 12]
    show " ", [edi + 8]
    show " type ", [edi + 16]
    add edi, [ebp + 8]
    cmp edi, ecx
    jb map_entry
    jmp tag_done
sections:
    mov eax, [ebp + 16]
    mul dword ptr [ebp + 12]
    mov edi, [ebp + eax + 20 + ADDRESS_AT]  # the names
    mov ecx, [ebp + 8]
    lea edx, [ebp + 20]
section:
    print "\\n "
    mov esi, [edx]
    add esi, edi
    call put_string
    show " at ", [edx + ADDRESS_AT]
    add edx, [ebp + 12]
    dec ecx
    jnz section
tag_done:
    print "\\n"
    mov eax, [ebp + 4]
    add eax, 7
    and eax, 0xfffffff8
    add ebp, eax
    jmp next
end:
    print "\\n"
    add ebp, 8
    cmp ebp, ebx
    jne missing
    mov al, 0x10
    out PORT_EXIT, al
misaligned:
    print "misaligned"
    mov al, 1
    out PORT_EXIT, al
missing:
    print "no end tag"
    mov al, 2
    out PORT_EXIT, al
"""
MODULES = {"one": b"AB" + bytes(5000), "two": b"CD"}
GOLDEN = """magic 0x36d76289 alignment 0x00000000 reserved 0x00000000
tag 1 size 30 kernel verbose root=1
tag 2 size 12 emu
"""
MODULE_TAGS = """tag 3 size 33 at {one:#010x} bytes 0x0000138a one first module: AB
tag 3 size 20 at {two:#010x} bytes 0x00000002 two: CD
"""
MEMORY_MAP = """tag 4 size 16 0x0000027f 0x00003c00
tag 6 size 136 entries of 0x00000018 version 0x00000000
 0x00000000 0x00000000 size 0x00000000 0x0009fc00 type 0x00000001
 0x00000000 0x0009fc00 size 0x00000000 0x00000400 type 0x00000002
 0x00000000 0x000f0000 size 0x00000000 0x00010000 type 0x00000002
 0x00000000 0x00100000 size 0x00000000 0x00f00000 type 0x00000001
 0x00000000 0xfffc0000 size 0x00000000 0x00040000 type 0x00000002
"""
TEXT_SCREEN = "tag 8 size 32 0x000b8000 0x00000000\n"
MEMORY = MEMORY_MAP + TEXT_SCREEN
END = "tag 0 size 8\n"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory with the modules, where the tests are."""
    monkeypatch.chdir(tmp_path)
    for name, data in MODULES.items():
        Path(name).write_bytes(data)
    return tmp_path


def image(directory: Path, header: bytes, base: int = BASE, bits: int = 32) -> bytes:
    """Header and code; what goes up to SIZE must follow as bss."""
    constants = {"STACK_DISTANCE": SIZE - 0x2000, "ADDRESS_AT": 12 if bits == 32 else 16}
    source = "".join(f".equ {name}, {value}\n" for name, value in constants.items()) + KERNEL
    data = header + code(directory, source, base + len(header))
    assert len(data) <= 0x1800
    return data


def elf_kernel(
    directory: Path, header: bytes, base: int = BASE, bits: int = 32, sections: tuple[Section, ...] = ()
) -> Path:
    """The file "kernel"."""
    machine = kernels.EM_386 if bits == 32 else kernels.EM_X86_64
    load = Load(base, image(directory, header, base, bits), SIZE)
    Path("kernel").write_bytes(elf([load], base + len(header), bits, machine, sections=sections))
    return Path("kernel")


def run(path: Path, modules: tuple[str, ...] = (), rsdp: bytes | None = None, mmu: str = "shadow") -> str:
    guest = multiboot2_guest(path, RAM, "verbose root=1", modules, rsdp)
    under_test = boot(guest, ram=RAM, mmu=mmu)
    assert under_test.run("10ms") == 0x10 << 1 | 1, under_test.describe()
    return under_test.console


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("mmu", ["shadow", "nested"])
def test_elf_with_modules(here: Path, bits: int, mmu: str) -> None:
    path = elf_kernel(here, header2(), bits=bits)
    modules = MODULE_TAGS.format(one=BASE + SIZE, two=BASE + SIZE + 0x2000)
    assert run(path, ("one first module", "two"), mmu=mmu) == GOLDEN + modules + MEMORY + END


@pytest.mark.parametrize("bits", [32, 64])
def test_sections(here: Path, bits: int) -> None:
    sections = (Section(".text", PROGBITS, b"x", ALLOC, BASE), Section(".strtab", STRTAB, b"\0abc\0"))
    console = run(elf_kernel(here, header2(), bits=bits, sections=sections), ("two",))
    end = RAM - 48  # where they lie: at the end of memory
    size = 20 + 4 * (40 if bits == 32 else 64)
    expected = f"""tag 9 size {size}
  at 0x00000000
 .text at {BASE:#010x}
 .strtab at {end:#010x}
 .shstrtab at {end + 16:#010x}
"""
    assert console.endswith(MEMORY + expected + END)


def test_address_and_entry_tags(here: Path) -> None:
    """The header is 16 bytes into the loaded part, and that is 64 bytes into the file."""
    header = header2(tag(ADDRESS, BASE + 16, BASE, 0, BASE + SIZE), tag(ENTRY, BASE + 80))
    data = image(here, header, BASE + 16)
    assert len(header) == 64
    Path("kernel").write_bytes(b"#" * 80 + data)
    assert run(Path("kernel")) == GOLDEN + MEMORY + END


def test_load_from_the_beginning_of_the_file(here: Path) -> None:
    header = header2(tag(ADDRESS, BASE + 16, 0xFFFF_FFFF, 0, BASE + SIZE), tag(ENTRY, BASE + 80))
    Path("kernel").write_bytes(b"#" * 16 + image(here, header, BASE + 16))
    assert run(Path("kernel")) == GOLDEN + MEMORY + END
    assert multiboot2_guest(Path("kernel"), RAM).image.page(BASE >> 12)[:16] == b"#" * 16


def test_entry_tag_of_an_elf_file(here: Path) -> None:
    header = header2(tag(ENTRY, BASE + 40))
    assert len(header) == 40
    load = Load(BASE, image(here, header), SIZE, 0xC010_0000)
    Path("kernel").write_bytes(elf([load], 0))
    assert run(Path("kernel")) == GOLDEN + MEMORY + END


@pytest.mark.parametrize(
    ("base", "tag_words", "loaded"),
    [
        (BASE, (0, 0xFFFF_FFFF, 0x1000, 0), BASE),
        (BASE, (BASE, BASE + SIZE - 1, 0x1000, 2), BASE),
        (BASE, (0x20_0001, 0xFFFF_FFFF, 0x1000, 1), 0x20_1000),
        (0, (0, 0xFFFF_FFFF, 0x1000, 0), BASE),
        (0x8000_0000, (0, 0xFFFF_FFFF, 0x40_0000, 0), 0x40_0000),
        (0x8000_0000, (0, 0xFFFF_FFFF, 0, 0), BASE),
    ],
)
def test_relocatable(here: Path, base: int, tag_words: tuple[int, ...], loaded: int) -> None:
    path = elf_kernel(here, header2(tag(RELOCATABLE, *tag_words)), base)
    assert run(path) == GOLDEN + MEMORY + f"tag 21 size 12 {loaded:#010x}\n" + END


def test_relocatable_without_a_place(here: Path) -> None:
    path = elf_kernel(here, header2(tag(RELOCATABLE, BASE, BASE + SIZE - 2, 1, 0)))
    with pytest.raises(BadInput, match="no RAM for its 16384 bytes between 0x100000 and 0x103ffe"):
        multiboot2_guest(path, RAM)


def test_rsdp(here: Path) -> None:
    path = elf_kernel(here, header2())
    old = b"RSD PTR ".ljust(20, b"\1")
    assert run(path, rsdp=old) == GOLDEN + MEMORY + "tag 14 size 28 RSD PTR\n" + END
    both = "tag 14 size 28 RSD PTR\ntag 15 size 44 RSD PTR\n"
    assert run(path, rsdp=old.ljust(36, b"\2")) == GOLDEN + MEMORY + both + END


def test_what_a_loader_may_ignore(here: Path) -> None:
    """Console, framebuffer, module alignment, EFI, an optional unknown tag, and requests of what there may be."""
    tags = (
        tag(1, 1, 6, 8, 14), tag(1, 99, optional=True), tag(4, 3), tag(5, 1024, 768, 32), tag(6), tag(7), tag(8, 0),
        tag(9, 0), tag(77, 1, 2, 3, optional=True),
    )  # fmt: skip
    graphics = "tag 8 size 38 0xfd000000 0x00000000\n"
    assert run(elf_kernel(here, header2(*tags))) == GOLDEN + MEMORY_MAP + graphics + END


def test_the_header_lies_within_the_first_32_kib(here: Path) -> None:
    for offset, found in ((32768 - 24, True), (32768 - 16, False), (32768, False)):
        Path("kernel").write_bytes(elf([Load(BASE, bytes(offset - 0x100) + header2())], BASE))
        if found:
            assert multiboot2_guest(Path("kernel"), RAM).kind == "multiboot 2 kernel"
        else:
            with pytest.raises(BadInput, match="no multiboot 2 header in its first 32768 bytes|is truncated"):
                multiboot2_guest(Path("kernel"), RAM)


# ---- broken files


def small(*tags: bytes, **options: int) -> bytes:
    return elf([Load(BASE, header2(*tags, **options))], BASE)


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"", "no multiboot 2 header"),
        (elf([Load(BASE, b"1234" + header2())], BASE), "no multiboot 2 header"),
        (small(architecture=4), "architecture 4"),
        (small(length=8), "header of 8 bytes"),
        (small(length=32), "header of 32 bytes at offset 0x100 is truncated"),
        (small(tag(11)), "a feature that emu does not know (tag 11)"),
        (small(tag(1, 5, 22)), "unknown information (tag 22)"),
        (small(tag(ADDRESS, 1, 2)), "tag 2 in its multiboot 2 header is too short: 16 of 24 bytes"),
        (small(struct.pack("<HHI", 6, 0, 4)), "tag 6 in its multiboot 2 header has an impossible size: 4"),
        (small(struct.pack("<HHI", 6, 0, 4000)), "impossible size: 4000"),
        (small(tag(ADDRESS, BASE, BASE, 0, 0)), "no entry address"),
        (small(tag(ADDRESS, BASE, BASE + 1, 0, 0), tag(ENTRY, BASE)), "loaded at 0x100001"),
        (header2(), "does not tell where to load it"),
        (elf([Load(BASE, header2())], BASE, machine=8), "another architecture (MIPS)"),
        (small()[:-1], "truncated"),
        (elf([Load(0xA0000, header2())], 0xA0000), "is not in usable RAM"),
    ],
)
def test_broken_files(tmp_path: Path, data: bytes, complaint: str) -> None:
    path = tmp_path / "kernel"
    path.write_bytes(data)
    with pytest.raises(BadInput) as caught:
        multiboot2_guest(path, RAM)
    assert complaint in str(caught.value)
    assert caught.value.what == str(path)
    assert "\n" not in str(caught.value)


def outcome(path: Path, data: bytes) -> Guest | None:
    """The guest that a file gives, or None after BadInput; reads what it would load."""
    path.write_bytes(data)
    try:
        guest = multiboot2_guest(path, RAM)
    except BadInput as error:
        assert "\n" not in str(error)
        return None
    for gfn in list(guest.image.gfns())[:16]:
        guest.image.page(gfn)
    return guest


TAGS = st.lists(
    st.builds(
        lambda kind, words, optional: tag(kind, *words, optional=optional),
        st.integers(0, 12),
        st.lists(st.integers(0, 0xFFFF_FFFF) | st.integers(BASE - 64, BASE + 300) | st.integers(0, 30), max_size=5),
        st.booleans(),
    ),
    max_size=5,
)


@settings(max_examples=300, deadline=None)
@given(tags=TAGS, length=st.none() | st.integers(0, 300), wrap=st.booleans(), cut=st.integers(0, 40))
def test_any_tags(
    tmp_path_factory: pytest.TempPathFactory, tags: list[bytes], length: int | None, wrap: bool, cut: int
) -> None:
    data = header2(*tags, length=length)
    if wrap:
        data = elf([Load(BASE, data, 0x1000)], BASE)
    outcome(tmp_path_factory.getbasetemp() / "mutated", data[: len(data) - cut])


def test_the_unmutated_file_is_good(tmp_path: Path) -> None:
    assert outcome(tmp_path / "kernel", small()) is not None
