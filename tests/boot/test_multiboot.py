"""Multiboot 1: kernels that walk their boot information and print it, here and on QEMU, and broken files."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emu.boot.guest import Guest
from emu.boot.loader import split_modules
from emu.boot.multiboot import multiboot_guest
from emu.errors import BadInput
from emu.testing import boot
from tests.boot import kernels
from tests.boot.kernels import ALLOC, NOBITS, PROGBITS, STRTAB, SYMTAB, Load, Section, code, elf, header1

RAM = 16 << 20
BASE = 0x10_0000
QEMU = "qemu-system-x86_64"
BSS = 0x8000  # bytes; the stack is at its end

# What may differ between loaders is on lines that begin with a "~".
KERNEL = """
.macro show text, value
    print \\text
    print_hex \\value
    print "\\n"
.endm
.macro show_string text, pointer
    print \\text
    mov esi, \\pointer
    call put_string
    print "\\n"
.endm
.macro print_char
    out PORT_CONSOLE, al
.endm

start:
    mov esp, STACK_TOP
    mov ebp, ebx                    # the information
    print "kernel\\n"
    show "magic ", eax
    pushfd
    pop eax
    and eax, 0x20200
    show "vm and if ", eax
    mov eax, cr0
    and eax, 0x80000001
    show "pg and pe ", eax
    mov eax, [ebp]
    and eax, 0xffffffdf             # not the ELF sections
    show "flags ", eax
    mov eax, ebp
    and eax, 3
    show "information's alignment ", eax
    show "mem_lower ", [ebp + 4]
    show "~mem_upper ", [ebp + 8]
    show "boot_device ", [ebp + 12]
    show_string "cmdline ", [ebp + 16]
    show_string "~loader ", [ebp + 64]

    # bss
    mov edi, BSS_AT
    mov ecx, BSS_WORDS
    xor eax, eax
sum:
    or eax, [edi]
    add edi, 4
    dec ecx
    jnz sum
    show "bss ", eax

    mov ecx, [ebp + 20]
    mov ebx, [ebp + 24]
    show "modules ", ecx
module:
    test ecx, ecx
    jz modules_done
    mov eax, [ebx]
    show "~ at ", eax
    and eax, 0xfff
    show " page offset ", eax
    mov eax, [ebx + 4]
    sub eax, [ebx]
    show " size ", eax
    show_string " string ", [ebx + 8]
    show " reserved ", [ebx + 12]
    print " begins "
    mov esi, [ebx]
    lodsb
    print_char
    lodsb
    print_char
    print "\\n"
    add ebx, 16
    dec ecx
    jmp module
modules_done:

    mov ecx, [ebp + 44]
    mov ebx, [ebp + 48]
    add ecx, ebx
entry:
    cmp ebx, ecx
    jae map_done
    print "~map "
    print_hex [ebx + 8]
    print " "
    print_hex [ebx + 4]
    print " size "
    print_hex [ebx + 16]
    print " "
    print_hex [ebx + 12]
    show " type ", [ebx + 20]
    add ebx, [ebx]
    add ebx, 4
    jmp entry
map_done:

    test dword ptr [ebp], 0x20
    jz done
    mov ecx, [ebp + 28]             # sections
    show "~sections ", ecx
    mov eax, [ebp + 40]
    mul dword ptr [ebp + 32]
    add eax, [ebp + 36]
    mov edi, [eax + ADDRESS_AT]     # the names
    mov ebx, [ebp + 36]
section:
    print "~ "
    mov esi, [ebx]
    add esi, edi
    call put_string
    show " type ", [ebx + 4]
    mov edx, [ebx + ADDRESS_AT]
    show "~  at ", edx
    cmp dword ptr [ebx + 4], 3
    jne not_strings
    inc edx
    show_string "~  strings ", edx
not_strings:
    add ebx, [ebp + 32]
    dec ecx
    jnz section
done:
    print "end\\n"
    mov eax, 0x10
    jmp exit
"""

MODULES = {"one": b"AB" + bytes(5000), "two": b"CD", "a,b": b"EF" * 2048}
OPTION = "one first module,two,a,,b x=1,,2"

GOLDEN = """kernel
magic 0x2badb002
vm and if 0x00000000
pg and pe 0x00000001
flags 0x0000024f
information's alignment 0x00000000
mem_lower 0x0000027f
~mem_upper 0x00003c00
boot_device 0x8000ffff
cmdline kernel verbose root=1
~loader emu
bss 0x00000000
modules 0x00000003
~ at {one}
 page offset 0x00000000
 size 0x0000138a
 string one first module
 reserved 0x00000000
 begins AB
~ at {two}
 page offset 0x00000000
 size 0x00000002
 string two
 reserved 0x00000000
 begins CD
~ at {three}
 page offset 0x00000000
 size 0x00001000
 string a,b x=1,2
 reserved 0x00000000
 begins EF
~map 0x00000000 0x00000000 size 0x00000000 0x0009fc00 type 0x00000001
~map 0x00000000 0x0009fc00 size 0x00000000 0x00000400 type 0x00000002
~map 0x00000000 0x000f0000 size 0x00000000 0x00010000 type 0x00000002
~map 0x00000000 0x00100000 size 0x00000000 0x00f00000 type 0x00000001
~map 0x00000000 0xfffc0000 size 0x00000000 0x00040000 type 0x00000002
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory with the modules, where the tests are."""
    monkeypatch.chdir(tmp_path)
    for name, data in MODULES.items():
        Path(name).write_bytes(data)
    return tmp_path


def image(directory: Path, base: int = BASE, header: bytes | None = None, bits: int = 32) -> bytes:
    """Header and code; BSS bytes must follow it, from the next page on."""
    header = header1() if header is None else header
    begin = base + len(header)
    bss = base + 0x2000
    constants = {
        "BSS_AT": bss,
        "BSS_WORDS": BSS // 8,
        "STACK_TOP": bss + BSS,
        "ADDRESS_AT": 12 if bits == 32 else 16,
    }
    source = "".join(f".equ {name}, {value}\n" for name, value in constants.items()) + KERNEL
    data = header + code(directory, source, begin)
    assert len(data) <= 0x2000
    return data


def elf_kernel(directory: Path, bits: int = 32, sections: tuple[Section, ...] = ()) -> bytes:
    data = image(directory, bits=bits)
    machine = kernels.EM_386 if bits == 32 else kernels.EM_X86_64
    return elf([Load(BASE, data, 0x2000 + BSS)], BASE + 12, bits, machine, sections=sections)


def run(path: Path, modules: str = OPTION, ram: int = RAM, mmu: str = "shadow") -> str:
    guest = multiboot_guest(path, ram, "verbose root=1", split_modules(modules))
    under_test = boot(guest, ram=ram, mmu=mmu)
    assert under_test.run("10ms") == 0x10 << 1 | 1, under_test.describe()
    return under_test.console


def golden(first_module: int, end: str = "") -> str:
    places = (f"{first_module + distance:#010x}" for distance in (0, 0x2000, 0x3000))
    return GOLDEN.format(**dict(zip(("one", "two", "three"), places, strict=True))) + end + "end\n"


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("mmu", ["shadow", "nested"])
def test_elf(here: Path, bits: int, mmu: str) -> None:
    Path("kernel").write_bytes(elf_kernel(here, bits))
    assert run(Path("kernel"), mmu=mmu) == golden(BASE + 0x2000 + BSS)


def test_address_fields_in_a_file_of_any_format(here: Path) -> None:
    """The header is 16 bytes into the loaded part, and that is 64 bytes into the file."""
    base = 0x20_0000
    fields = (base, base - 16, 0, base + 0x2000 + BSS, base + 32)
    Path("kernel").write_bytes(b"#" * 80 + image(here, base, header1(0x10003, *fields)))
    assert run(Path("kernel")) == golden(base + 0x2000 + BSS)


def test_the_end_addresses_cut_the_file(here: Path) -> None:
    data = image(here, BASE, header1(0x10003, BASE, BASE, 0, 0, BASE + 32))
    end = BASE + len(data)
    header = header1(0x10003, BASE, BASE, end, end + 0x7000, BASE + 32)
    Path("kernel").write_bytes(header + data[32:] + b"rest" * 1000)
    guest = multiboot_guest(Path("kernel"), RAM)
    page = guest.image.page(end - 1 >> 12)
    assert page[(end & 0xFFF) - 1 :] == data[-1:] + bytes(0x1000 - (end & 0xFFF))


def test_address_fields_count_more_than_elf_headers(here: Path) -> None:
    data = image(here, BASE, header1(0x10003, BASE, BASE, 0, BASE + 0x2000 + BSS, BASE + 32))
    Path("kernel").write_bytes(elf([Load(0x500_0000, data)], 0x500_0000))
    assert run(Path("kernel")) == golden(BASE + 0x2000 + BSS)


@pytest.mark.parametrize("bits", [32, 64])
def test_sections_are_loaded_and_have_addresses(here: Path, bits: int) -> None:
    sections = (
        Section(".text", PROGBITS, b"code", ALLOC, BASE),
        Section(".bss", NOBITS, b"", ALLOC, BASE + 0x2000),
        Section(".symtab", SYMTAB, bytes(16 * 3)),
        Section(".strtab", STRTAB, b"\0a name that a kernel looks up\0"),
        Section(".empty", PROGBITS),
    )
    Path("kernel").write_bytes(elf_kernel(here, bits, sections))
    top = BASE + 0x2000 + BSS
    end = RAM - 0x80  # where they lie: at the end of memory, not where the kernel has its heap
    expected = f"""~sections 0x00000007
~  type 0x00000000
~  at 0x00000000
~ .text type 0x00000001
~  at {BASE:#010x}
~ .bss type 0x00000008
~  at {BASE + 0x2000:#010x}
~ .symtab type 0x00000002
~  at {end:#010x}
~ .strtab type 0x00000003
~  at {end + 0x30:#010x}
~  strings a name that a kernel looks up
~ .empty type 0x00000001
~  at 0x00000000
~ .shstrtab type 0x00000003
~  at {end + 0x50:#010x}
~  strings .text
"""
    assert run(Path("kernel")) == golden(top, expected)


def test_sections_without_room_are_not_loaded(here: Path) -> None:
    sections = (Section(".debug", PROGBITS, bytes(3 << 20)),)
    Path("kernel").write_bytes(elf_kernel(here, sections=sections))
    guest = multiboot_guest(Path("kernel"), 2 << 20)
    assert guest.image.end == BASE + len(image(here))


def test_a_virtual_entry_point_is_turned_into_a_physical_one(here: Path) -> None:
    virtual = 0xC000_0000
    data = image(here)
    load = Load(BASE, data, 0x2000 + BSS, virtual + BASE)
    Path("kernel").write_bytes(elf([load], virtual + BASE + 12))
    assert run(Path("kernel")) == golden(BASE + 0x2000 + BSS)
    Path("kernel").write_bytes(elf([load], BASE + 12))
    assert run(Path("kernel")) == golden(BASE + 0x2000 + BSS)


def test_boot_information_keeps_away_from_a_kernel_in_low_memory(here: Path) -> None:
    base = 0x1000
    data = image(here, base)
    Path("kernel").write_bytes(elf([Load(base, data, 0x2000 + BSS)], base + 12))
    console = run(Path("kernel"))
    assert console == golden(base + 0x2000 + BSS)


def test_a_machine_of_64_kib(here: Path) -> None:
    base = 0x1000
    Path("kernel").write_bytes(elf([Load(base, image(here, base), 0x2000 + BSS)], base + 12))
    console = run(Path("kernel"), "two", 64 << 10)
    assert "mem_lower 0x00000040\n~mem_upper 0x00000000\n" in console
    assert console.endswith("~map 0x00000000 0xfffc0000 size 0x00000000 0x00040000 type 0x00000002\nend\n")


def test_without_modules_and_arguments(here: Path) -> None:
    Path("kernel").write_bytes(elf_kernel(here))
    under_test = boot(multiboot_guest(Path("kernel"), RAM), ram=RAM)
    under_test.run("10ms")
    assert "cmdline kernel\n" in under_test.console
    assert "modules 0x00000000\n~map" in under_test.console


def test_nothing_is_resident_before_the_first_touch(here: Path) -> None:
    Path("kernel").write_bytes(elf_kernel(here))
    assert boot(multiboot_guest(Path("kernel"), RAM, modules=["one"]), ram=RAM).vm.pool.used == 0


@pytest.mark.skipif(shutil.which(QEMU) is None, reason=f"{QEMU} is not installed")
@pytest.mark.parametrize("kludge", [False, True])
def test_the_same_on_qemu(here: Path, kludge: bool) -> None:
    if kludge:
        header = header1(0x10003, BASE, BASE, 0, BASE + 0x2000 + BSS, BASE + 32)
        Path("kernel").write_bytes(image(here, BASE, header))
    else:
        Path("kernel").write_bytes(elf_kernel(here))
    command = [
        QEMU, "-accel", "tcg", "-m", "16M", "-nodefaults", "-display", "none", "-no-reboot", "-kernel", "kernel",
        "-append", "verbose root=1", "-initrd", OPTION, "-debugcon", "file:console",
        "-device", "isa-debug-exit,iobase=0xf4,iosize=4",
    ]  # fmt: skip
    status = subprocess.run(command, timeout=60, stdin=subprocess.DEVNULL, check=False).returncode
    assert status == 0x10 << 1 | 1
    theirs = Path("console").read_text("latin-1")
    theirs = theirs[theirs.index("kernel\nmagic") :]
    assert without_differences(run(Path("kernel"))) == without_differences(theirs)


def without_differences(console: str) -> list[str]:
    return [line for line in console.splitlines() if not line.startswith("~")]


C_KERNEL = r"""
typedef unsigned int u32;
__attribute__((section(".multiboot"), used)) static const u32 header[3] = {0x1BADB002, 3, -(0x1BADB002 + 3)};
static char stack[4096] __attribute__((used));
__asm__(".globl _start\n_start: movl $stack + 4096, %esp\n pushl %ebx\n pushl %eax\n call kmain\n");

static void put(char c) { __asm__ volatile("outb %0, $0xe9" : : "a"(c)); }
static void puts(const char *text) { while (*text) put(*text++); }
static void puthex(u32 value) {
    for (int shift = 28; shift >= 0; shift -= 4) put("0123456789abcdef"[value >> shift & 15]);
}

int find_me = 42;

static int same(const char *a, const char *b) { while (*a && *a == *b) a++, b++; return *a == *b; }

void kmain(u32 magic, const u32 *info) {
    const u32 *table = (const u32 *)info[9];
    puts("magic "); puthex(magic);
    puts("\narguments "); puts((const char *)info[4]);
    for (u32 n = 0; n < info[7]; n++) {
        const u32 *section = table + n * info[8] / 4;
        if (section[1] != 2) continue;
        const u32 *symbol = (const u32 *)section[3], *end = symbol + section[5] / 4;
        const char *names = (const char *)table[section[6] * info[8] / 4 + 3];
        for (; symbol < end; symbol += 4)
            if (same(names + symbol[0], "find_me")) { puts("\nfind_me is "); puthex(*(int *)symbol[1]); }
    }
    puts("\n");
    __asm__ volatile("outb %0, $0xf4" : : "a"((char)0x10));
    for (;;) __asm__ volatile("hlt");
}
"""
SCRIPT = """ENTRY(_start) SECTIONS { . = 0x100000; .text : { *(.multiboot) *(.text*) *(.rodata*) }
.data : { *(.data*) } .bss : { *(.bss*) *(COMMON) } /DISCARD/ : { *(.note*) *(.eh_frame*) *(.comment) } }"""


def test_a_c_kernel_finds_its_own_symbols(here: Path) -> None:
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")
    Path("kernel.c").write_text(C_KERNEL)
    Path("kernel.ld").write_text(SCRIPT)
    command = [
        "gcc", "-m32", "-ffreestanding", "-fno-pic", "-fno-stack-protector", "-nostdlib", "-static", "-O1", "-g",
        "-mno-sse", "-Wl,-T,kernel.ld,--build-id=none", "-o", "kernel", "kernel.c",
    ]  # fmt: skip
    build = subprocess.run(command, capture_output=True, text=True, check=False)
    if build.returncode:
        pytest.skip(f"gcc -m32 does not work: {build.stderr[:200]}")
    under_test = boot(multiboot_guest(Path("kernel"), RAM, "a b"), ram=RAM)
    assert under_test.run("10ms") == 0x10 << 1 | 1, under_test.describe()
    assert under_test.console == "magic 2badb002\narguments kernel a b\nfind_me is 0000002a\n"


# ---- broken files

TEXT = header1() + b"\xf4" * 4


def small(base: int = BASE, memory: int | None = None, entry: int | None = None) -> bytes:
    return elf([Load(base, TEXT, memory)], base + 12 if entry is None else entry)


def kludge(*fields: int) -> bytes:
    return header1(0x10003, *fields) + bytes(100)


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"", "no multiboot header"),
        (bytes(9000) + header1(), "no multiboot header"),
        (header1() + bytes(100), "does not tell where to load it"),
        (elf([Load(BASE, header1(0x13))], BASE), "flags 0x0010"),
        (elf([Load(BASE, TEXT)], BASE, machine=kernels.EM_386 + 5), "another architecture (MIPS)"),
        (elf([Load(BASE, TEXT)], BASE, 64, 183), "another architecture (AARCH64)"),
        (elf([Load(BASE, TEXT)], BASE, machine=0x7777), "another architecture (machine 30583)"),
        (elf([Load(BASE, TEXT)], BASE, kind=1), "of type ET_REL"),
        (elf([], BASE) + TEXT, "no segments"),
        (small(base=0x9FBF8), "segment 0x9fbf8 to 0x9fc08 is not in usable RAM (0x0 to 0x9fc00 and 0x100000 to "),
        (small(base=0xB8000), "is not in usable RAM"),
        (small(base=RAM - 8), "is not in usable RAM"),
        (small(memory=RAM), "is not in usable RAM"),
        (small(base=0xFFFF_FFF0), "is not in usable RAM"),
        (small(memory=1), "more bytes in the file than in memory"),
        (small(entry=BASE + 16), "entry point 0x100010"),
        (small(entry=0), "entry point 0x0"),
        (elf([Load(BASE, TEXT, 0x2000), Load(BASE + 0x1000, TEXT)], BASE), "overlaps another one"),
        (elf([Load(1 << 32, TEXT)], 1 << 32, 64, kernels.EM_X86_64), "is not in usable RAM"),
        (small()[:-1], "truncated"),
        (small()[:44] + b"\xff\0" + small()[46:], "truncated"),
        (small()[:42] + b"\x04\0" + small()[44:], "program headers of 4 bytes"),
        (b"\x7fELF\1\1\1".ljust(20, b"\0") + header1(), "the ELF file is broken"),
        (b"\x7fELF\7\1\1".ljust(20, b"\0") + header1(), "the ELF file is broken"),
        (elf([Load(BASE, TEXT)], BASE, sections=(Section(".x", PROGBITS, b"x"),))[:-1], "section headers"),
        (header1(0x10003, BASE, BASE, 0), "truncated"),
        (kludge(BASE, BASE + 4, 0, 0, BASE), "loaded at 0x100004"),
        (kludge(BASE, BASE - 4, 0, 0, BASE), "loaded at 0xffffc"),
        (kludge(BASE, BASE, BASE, 0, BASE), "not in order"),
        (kludge(BASE, BASE, BASE + 200, 0, BASE), "truncated: 132 of 200 bytes"),
        (kludge(BASE, BASE, BASE + 100, BASE + 50, BASE), "not in order"),
        (kludge(BASE, BASE, 0, 0, BASE + 132), "entry point"),
        (kludge(BASE, BASE, 0, 0xFFFF_FFFF, BASE), "is not in usable RAM"),
    ],
)
def test_broken_files(tmp_path: Path, data: bytes, complaint: str) -> None:
    path = tmp_path / "kernel"
    path.write_bytes(data)
    with pytest.raises(BadInput) as caught:
        multiboot_guest(path, RAM)
    assert complaint in str(caught.value)
    assert caught.value.what == str(path)
    assert "\n" not in str(caught.value)


def test_a_big_endian_file(tmp_path: Path) -> None:
    path = tmp_path / "kernel"
    path.write_bytes(b"\x7fELF\1\2\1" + bytes(9) + struct.pack(">HHIIIIIHHHHHH", 2, 3, *[0] * 11) + header1())
    with pytest.raises(BadInput, match=r"another architecture \(386, big-endian\)"):
        multiboot_guest(path, RAM)


@pytest.mark.parametrize(
    ("modules", "complaint"),
    [
        (["nosuch"], "nosuch: cannot be read: No such file"),
        (["."], "directory"),
        (["/dev/zero"], "no regular file"),
        (["  "], "names no file"),
        (["\0"], "cannot be read"),
        (["one x", "big y"], "big: the module of 16777216 bytes does not fit above 0x103000 in 16M of RAM"),
    ],
)
def test_bad_modules(here: Path, modules: list[str], complaint: str) -> None:
    Path("kernel").write_bytes(small())
    Path("big").write_bytes(bytes(RAM))
    with pytest.raises(BadInput) as caught:
        multiboot_guest(Path("kernel"), RAM, modules=modules)
    assert complaint in str(caught.value)


def test_an_empty_module_and_one_that_just_fits(here: Path) -> None:
    Path("kernel").write_bytes(small())
    Path("empty").write_bytes(b"")
    Path("large").write_bytes(b"\x77" * (RAM - BASE - 0x1000))
    guest = multiboot_guest(Path("kernel"), RAM, modules=["empty", "large"])
    assert guest.image.end == RAM
    assert guest.image.page((RAM >> 12) - 1) == b"\x77" * 4096


def test_a_kernel_that_leaves_no_room(here: Path) -> None:
    Path("kernel").write_bytes(small(0x1000, (64 << 10) - 0x1000))
    with pytest.raises(BadInput, match="--ram: 64K is too little"):
        multiboot_guest(Path("kernel"), 64 << 10)


def outcome(path: Path, data: bytes) -> Guest | None:
    """The guest that a file gives, or None after BadInput; reads what it would load."""
    path.write_bytes(data)
    try:
        guest = multiboot_guest(path, RAM)
    except BadInput as error:
        assert "\n" not in str(error)
        return None
    for gfn in list(guest.image.gfns())[:16]:
        guest.image.page(gfn)
    return guest


MUTATION = st.tuples(st.integers(0, 0x120), st.sampled_from([0, 1, 2, 0x7F, 0x80, 0xFF]) | st.integers(0, 255))


@settings(max_examples=300, deadline=None)
@given(
    bits=st.sampled_from([32, 64]),
    mutations=st.lists(MUTATION, min_size=1, max_size=6),
    table=st.lists(st.tuples(st.integers(1, 128), st.integers(0, 255)), max_size=3),
    cut=st.integers(0, 64),
)
def test_mutated_files(
    tmp_path_factory: pytest.TempPathFactory,
    bits: int,
    mutations: list[tuple[int, int]],
    table: list[tuple[int, int]],
    cut: int,
) -> None:
    path = tmp_path_factory.getbasetemp() / "mutated"
    machine = kernels.EM_386 if bits == 32 else kernels.EM_X86_64
    sections = (Section(".symtab", SYMTAB, bytes(32)),)
    good = elf([Load(BASE, TEXT), Load(2 * BASE, b"data", 0x1000)], BASE + 12, bits, machine, sections=sections)
    assert outcome(path, good) is not None
    data = bytearray(good)
    for at, value in mutations:
        data[at] = value
    for at, value in table:
        data[-at] = value
    outcome(path, bytes(data[: len(data) - cut]))


@settings(max_examples=200, deadline=None)
@given(
    fields=st.lists(st.integers(0, 0xFFFF_FFFF) | st.integers(BASE - 64, BASE + 300), min_size=5, max_size=5),
    flags=st.integers(0, 7),
)
def test_any_address_fields(tmp_path_factory: pytest.TempPathFactory, fields: list[int], flags: int) -> None:
    guest = outcome(tmp_path_factory.getbasetemp() / "mutated", header1(0x10000 | flags, *fields) + bytes(100))
    assert guest is None or fields[1] <= fields[0]
