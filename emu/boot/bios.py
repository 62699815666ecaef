"""Starting as a PC does: the CPU at its reset vector, in a ROM.

Our own BIOS is ``firmware/bios``: 64 KiB below 1 MiB.  Any other ROM lies at the top of the first 4 GiB, where 32-bit
CPUs begin, and the last 128 KiB of it also below 1 MiB, where the rest of a PC expects them.
"""

from __future__ import annotations

from pathlib import Path

from emu.boot.entry import at_reset_vector
from emu.boot.guest import Guest
from emu.boot.image import BytesSource, GuestImage, Source, open_source
from emu.boot.low_memory import place_rom
from emu.devices import layout
from emu.errors import BadInput

ROM_UNIT = 0x1_0000  # bytes; the size of any ROM is a multiple of it
MAX_ROM = 16 << 20  # bytes, up to which there are no device registers below 4 GiB
LOW_ROM = 0x2_0000  # bytes of a ROM that lie below 1 MiB, too
RESET_BASE = 0xFFFF_0000  # of CS after reset
RESET_VECTOR = 16  # bytes from there to the end of the ROM


def bios_guest(name: str, ram: int, cpus: int = 1) -> Guest:
    """A guest that boots from the first disk of the machine, through our BIOS.

    Args:
        name: for people.
        ram: bytes of guest memory, for the memory map.
        cpus: number of processors, for the tables in the ROM.
    """
    image = GuestImage()
    place_rom(image, ram, cpus)
    start = at_reset_vector(layout.BIOS_AREA)
    return Guest(name, "disk, by the built-in BIOS", image, start, resume=start)


def rom_guest(path: Path, ram: int) -> Guest:
    """A guest that starts in the ROM image ``path``, as after the reset of a CPU since the 386.

    Args:
        ram: bytes of guest memory; ROMs ask the machine's devices for it.

    Raises:
        BadInput: there is no such file, it cannot be read, or it is no ROM: its size is not a multiple of 64 KiB, or
            there is nothing at the reset vector.
    """
    source = _open_rom(path)
    size = len(source)
    image = GuestImage()
    image.add(layout.HIGH_RAM - size, source)
    low = min(size, LOW_ROM)
    image.add(layout.EXTENDED_MEMORY - low, BytesSource(source.read(size - low, low)))
    start = at_reset_vector(RESET_BASE)
    return Guest(path.name, "ROM image", image, start, resume=start, own_tables=True)


def _open_rom(path: Path) -> Source:
    name = str(path)
    source = open_source(path)
    size = len(source)
    if not size or size % ROM_UNIT:
        raise BadInput(name, f"{size} bytes, but the size of a ROM image is a multiple of 64K")
    if size > MAX_ROM:
        raise BadInput(name, f"{size} bytes, but a ROM image has at most {MAX_ROM >> 20}M")
    if source.read(size - RESET_VECTOR, 1) in (b"\x00", b"\xff"):  # no jump; erased or filled up
        raise BadInput(name, "there is no code at the reset vector, 16 bytes before its end")
    return source
