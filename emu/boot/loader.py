"""What a boot loader does for any multiboot kernel: the kernel and its modules go to memory, tables to where there is
room, and the CPU enters flat 32-bit protected mode.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from emu.addr import PAGE_SIZE
from emu.boot.e820 import USABLE, memory_map
from emu.boot.entry import CODE_32, DATA_32, descriptor, enter_protected_mode
from emu.boot.guest import Guest
from emu.boot.image import GuestImage, Source, open_source
from emu.devices import layout
from emu.engine.cpustate import CpuState
from emu.errors import BadInput

FIRST_FREE = 0x1000  # gpa; vectors and BIOS data are below it: only a kernel that is linked there gets them
BOOT_DATA = 0x9000  # gpa from which boot information is placed
CODE, DATA = 0x08, 0x10  # selectors
NAME = b"emu\0"  # of this boot loader


@dataclass(frozen=True)
class Segment:
    """A part of a kernel's file that becomes memory.

    Attributes:
        gpa: where.
        offset: where it begins in the file.
        file_size: bytes in the file.
        size: bytes in memory; those that the file does not have are zero.
    """

    gpa: int
    offset: int
    file_size: int
    size: int

    @property
    def end(self) -> int:
        """The gpa behind it."""
        return self.gpa + self.size


@dataclass(frozen=True)
class Program:
    """A kernel, ready to be loaded.

    Attributes:
        segments: at least one.
        entry: gpa of its first instruction.
    """

    segments: tuple[Segment, ...]
    entry: int

    @property
    def gpa(self) -> int:
        """Where it begins."""
        return min(segment.gpa for segment in self.segments)

    @property
    def end(self) -> int:
        """The gpa behind it."""
        return max(segment.end for segment in self.segments)

    def moved(self, distance: int) -> Program:
        """The same, so many bytes higher."""
        segments = (replace(segment, gpa=segment.gpa + distance) for segment in self.segments)
        return Program(tuple(segments), self.entry + distance)


@dataclass(frozen=True)
class Module:
    """A file that was loaded beside the kernel.

    Attributes:
        gpa: where; page-aligned.
        size: in bytes.
        text: the file's name without folders, then its arguments.
    """

    gpa: int
    size: int
    text: str


class Part:
    """A part of a source."""

    def __init__(self, source: Source, offset: int, size: int) -> None:
        self._source = source
        self._offset = offset
        self._size = size

    def __len__(self) -> int:
        return self._size

    def read(self, offset: int, size: int) -> bytes:
        return self._source.read(self._offset + offset, min(size, self._size - offset))


class Loader:
    """The memory of a guest while it is filled: what lies where, and what is free.

    Everything lies in RAM below 4 GiB that the memory map calls usable.

    Args:
        path: the kernel's file.
        ram: bytes of guest memory.

    Attributes:
        image: what has been placed so far.
        file: the kernel's file.
        lower: KiB of memory from 0.
        upper: KiB of memory from 1 MiB to the first hole.
        top: gpa behind the kernel and the modules.

    Raises:
        BadInput: the file cannot be read.
    """

    def __init__(self, path: Path, ram: int) -> None:
        self.image = GuestImage()
        self.file = open_source(path)
        self.top = FIRST_FREE
        self._path = path
        self._ram = ram
        end = layout.ram_ranges(ram)[0].stop
        self.lower = min(end, layout.EBDA) >> 10
        self.upper = max(end - layout.EXTENDED_MEMORY, 0) >> 10
        low = [entry for entry in memory_map(ram) if entry.kind == USABLE and entry.gpa < end]
        self._usable = [range(entry.gpa, entry.gpa + entry.size) for entry in low]
        self._free = list(self._usable)

    def load(self, program: Program) -> None:
        """Place a kernel.

        Raises:
            BadInput: its segments overlap or are not in RAM, or it would be entered elsewhere.
        """
        for segment in program.segments:
            if not self._take(segment.gpa, segment.size):
                where = f"its segment {segment.gpa:#x} to {segment.end:#x}"
                if any(part.start <= segment.gpa and segment.end <= part.stop for part in self._usable):
                    raise BadInput(str(self._path), f"{where} overlaps another one")
                raise BadInput(str(self._path), f"{where} is not in usable RAM ({self._usable_text()})")
            self.image.add(segment.gpa, Part(self.file, segment.offset, segment.file_size))
        if not any(segment.gpa <= program.entry < segment.end for segment in program.segments):
            raise BadInput(str(self._path), f"its entry point {program.entry:#x} is not in what is loaded")
        self.top = max(self.top, program.end)

    def load_modules(self, modules: Sequence[str]) -> list[Module]:
        """Place files above the kernel, each on pages of its own.

        Args:
            modules: "FILE" or "FILE arguments" each.

        Raises:
            BadInput: one cannot be read or does not fit.
        """
        loaded = []
        for text in modules:
            name, *arguments = text.strip().split(" ", 1)
            source = open_source(Path(name)) if name else None
            if source is None:
                raise BadInput("module", f"{text!r} names no file")
            pages = -(-len(source) // PAGE_SIZE) * PAGE_SIZE  # nothing else on the last one
            gpa = self.room(pages, PAGE_SIZE, self.top)
            if gpa is None:
                size = f"the module of {len(source)} bytes"
                raise BadInput(name, f"{size} does not fit above {self.top:#x} in {self._ram >> 20}M of RAM")
            self._take(gpa, pages)
            self.image.add(gpa, source)
            self.top = gpa + pages
            loaded.append(Module(gpa, len(source), " ".join((Path(name).name, *arguments))))
        return loaded

    def room(self, size: int, alignment: int, above: int) -> int | None:
        """The lowest gpa from ``above`` on with so many free bytes, or None."""
        for part in self._free:
            gpa = -(-max(part.start, above) // alignment) * alignment
            if gpa + size <= part.stop:
                return gpa
        return None

    def room_at_end(self, size: int, alignment: int) -> int | None:
        """The highest gpa with so many free bytes above the kernel, or None."""
        part = self._free[-1] if self._free else range(0)
        gpa = (part.stop - size) // alignment * alignment
        return gpa if gpa >= max(part.start, self.top) else None

    def put(self, gpa: int, source: Source | bytes) -> None:
        """Place bytes where there is :meth:`room`."""
        self._take(gpa, len(source))
        self.image.add(gpa, source)

    def place(self, data: bytes, alignment: int = 4) -> int:
        """Place boot information; returns its gpa.

        Raises:
            BadInput: the RAM is full.
        """
        gpa = self._reserve(len(data), alignment)
        self.image.add(gpa, data)
        return gpa

    def guest(self, kind: str, entry: int, magic: int, info: int) -> Guest:
        """The guest: entered in 32-bit protected mode with EAX = ``magic`` and EBX = ``info``.

        The specifications leave GDTR and ESP undefined; here both can be used, as sloppy kernels do.
        """
        gdt_data = bytes(8) + descriptor(CODE_32) + descriptor(DATA_32)
        gdt = self.place(gdt_data, 8)
        stack = self._reserve(PAGE_SIZE, PAGE_SIZE) + PAGE_SIZE

        def start(cpu: CpuState) -> None:
            cpu.gdtr.set(0, gdt, len(gdt_data) - 1, 0)
            enter_protected_mode(cpu, CODE, DATA)
            cpu.rip, cpu.rsp, cpu.rax, cpu.rbx = entry, stack, magic, info

        return Guest(self._path.name, kind, self.image, start, after_bios=True)

    def _reserve(self, size: int, alignment: int) -> int:
        gpa = self.room(size, alignment, BOOT_DATA)
        if gpa is None:
            raise BadInput("--ram", f"{self._ram >> 10}K is too little: {self._path.name} leaves no room to boot it")
        self._take(gpa, size)
        return gpa

    def _take(self, gpa: int, size: int) -> bool:
        """Whether these bytes were free; now they are not."""
        for index, part in enumerate(self._free):
            if part.start <= gpa and gpa + size <= part.stop:
                rest = range(part.start, gpa), range(gpa + size, part.stop)
                self._free[index : index + 1] = [piece for piece in rest if piece]
                return True
        return False

    def _usable_text(self) -> str:
        return " and ".join(f"{part.start:#x} to {part.stop:#x}" for part in self._usable)


def c_string(text: str) -> bytes:
    """The bytes of a command line, with NUL."""
    return text.encode("utf-8", "surrogateescape") + b"\0"


def split_modules(text: str) -> list[str]:
    """The modules in an option's value: separated by commas; a file's own comma is written twice."""
    return [part.replace("\0", ",") for part in text.replace(",,", "\0").split(",")]


def address_program(
    path: Path, at: int, size: int, addresses: tuple[int, int, int, int], entry: int, from_start: int | None = None
) -> Program:
    """The kernel that its multiboot header describes, whatever the file's format (the "a.out kludge").

    Args:
        path: the file, for errors.
        at: offset of the header in the file.
        size: of the file, in bytes.
        addresses: header_addr, load_addr, load_end_addr (0: the file's end), bss_end_addr (0: no bss).
        entry: gpa.
        from_start: the load_addr that stands for the file's beginning, if there is one.

    Raises:
        BadInput: the addresses contradict each other or the file.
    """
    header, load, load_end, bss_end = addresses
    offset = 0 if load == from_start else at - (header - load)
    load = header - at + offset
    file_size = load_end - load if load_end else size - offset
    if offset < 0 or offset > at or load < 0:
        raise BadInput(str(path), f"header at offset {at:#x} of the file and at {header:#x}, but loaded at {load:#x}")
    if file_size <= 0 or bss_end and bss_end < load + file_size:
        raise BadInput(str(path), "the load addresses in its header are not in order")
    if offset + file_size > size:
        raise BadInput(str(path), f"the kernel is truncated: {size} of {offset + file_size} bytes")
    return Program((Segment(load, offset, file_size, max(bss_end - load, file_size)),), entry)
