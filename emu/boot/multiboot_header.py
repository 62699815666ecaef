"""Where a file has a multiboot header.
Source: Multiboot Specification 0.6.96, 3.1; Multiboot2 Specification 2.0, 3.1.1.

    version 1, dword-aligned in the first 8192 bytes of the file      version 2, qword-aligned in the first 32768
     0 magic   4 flags   8 checksum                                    0 magic          4 architecture
    12 header_addr  16 load_addr  20 load_end_addr  24 bss_end_addr    8 header_length 12 checksum
    28 entry_addr   (valid with flags bit 16)
"""

from __future__ import annotations

import struct

MAGIC, SEARCH = 0x1BAD_B002, 8192  # SEARCH: bytes of the file in which the header lies
MAGIC_2, SEARCH_2 = 0xE852_50D6, 32768
HAS_ADDRESSES = 1 << 16  # flag of version 1
ADDRESSES_AT, HEADER_END = 12, 32  # offsets in the header of version 1: of the addresses, behind them


def find_header(head: bytes) -> int | None:
    """Offset of the header of version 1 in a file's beginning."""
    head = head[:SEARCH]
    for at in range(0, len(head) - 11, 4):
        magic, flags, checksum = struct.unpack_from("<3I", head, at)
        if magic == MAGIC and magic + flags + checksum & 0xFFFF_FFFF == 0:
            return at
    return None


def find_header_2(head: bytes) -> int | None:
    """Offset of the header of version 2 in a file's beginning."""
    head = head[:SEARCH_2]
    for at in range(0, len(head) - 15, 8):
        fields = struct.unpack_from("<4I", head, at)
        if fields[0] == MAGIC_2 and sum(fields) & 0xFFFF_FFFF == 0:
            return at
    return None


def has_addresses(head: bytes, at: int) -> bool:
    """Whether the header of version 1 at offset ``at`` says where a file is to be loaded that is no ELF file."""
    (flags,) = struct.unpack_from("<I", head, at + 4)
    return bool(flags & HAS_ADDRESSES)


def loads_whole_file(head: bytes, at: int, size: int) -> bool:
    """Whether the addresses in the header of version 1 fit a kernel that is the file of ``size`` bytes from its first
    byte on. In a disk image that holds a kernel somewhere they do not."""
    if not has_addresses(head, at) or len(head) < at + HEADER_END:
        return False
    header, load, load_end, bss_end, entry = struct.unpack_from("<5I", head, at + ADDRESSES_AT)
    end = load_end or load + size
    return header - load == at and load <= entry < end <= load + size and (not bss_end or end <= bss_end)
