"""Boot loaders and a hypervisor that others made, each entered as it wants to be."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import pytest

from emu.boot import packages
from emu.boot.initramfs import build_initramfs
from emu.observe.typist import Typist, parse_typing
from emu.testing import boot
from tests.boot.bios_disks import source
from tests.devices.test_user_network import there
from tests.systems.conftest import fetched

MMUS = ["shadow", "nested"]
SECTOR_0 = """
.code16
    xor ax, ax
    mov ds, ax
    mov es, ax
    mov ax, 0x0201                  # the second sector of the disk that booted
    mov cx, 0x0002
    xor dh, dh
    mov bx, 0x9000
    int 0x13
    jc failed
    mov si, 0x9000
    mov cx, 8
next:
    lodsb
    out 0xE9, al
    loop next
failed:
    xor al, al
    out 0xF4, al
    hlt
"""


@pytest.mark.parametrize("mmu", MMUS)
def test_memdisk_boots_a_floppy_from_memory(tmp_path: Path, mmu: str) -> None:
    image = bytearray(1_474_560)
    code = source(SECTOR_0, 0x7C00)
    image[: len(code)] = code
    image[510:520] = b"\x55\xaasector 1"
    path = tmp_path / "floppy"
    path.write_bytes(image)
    guest = boot(fetched(packages.memdisk), ram="16M", initrd=str(path), mmu=mmu)
    assert guest.run(max_time="5s") == 1, guest.describe()
    assert "Loading boot sector... booting...\r\nsector 1" in guest.console


def test_ipxe_finds_no_network_and_says_so(tmp_path: Path) -> None:
    guest = boot(fetched(packages.ipxe), ram="32M")
    guest.wait_for("Open Source Network Boot Firmware", max_time="10s")
    guest.wait_for("No more network devices", max_time="30s")


LONG = pytest.mark.skipif(os.environ.get("EMU_LONG") is None, reason="takes a minute; EMU_LONG=1 runs it")
PROGRAM = """
.code16
    xor ax, ax
    mov ds, ax
    mov si, offset text
next:
    lodsb
    out 0xE9, al
    test al, al
    jnz next
    out 0xF4, al
    hlt
text:
    .asciz "came by TFTP\\n"
"""


@pytest.mark.skipif(not there(), reason="libslirp is not installed (Debian's libslirp0)")
@pytest.mark.parametrize("mmu", ["nested", pytest.param("shadow", marks=LONG)])
def test_ipxe_boots_from_the_user_network(tmp_path: Path, mmu: str) -> None:
    """By DHCP it gets the name of a script, the script by TFTP, and with that a program."""
    (tmp_path / "script").write_text("#!ipxe\necho script for ${ip} by ${next-server}\nchain program\n")
    (tmp_path / "program").write_bytes(source(PROGRAM, 0x7C00))
    net = f"user,card=e1000,tftp={tmp_path},bootfile=script"
    guest = boot(fetched(packages.ipxe), ram="32M", mmu=mmu, net=net)
    assert guest.run(max_time="60s") == 1, guest.describe()
    assert "script for 10.0.2.15 by 10.0.2.2" in guest.console and "came by TFTP" in guest.console


@pytest.mark.parametrize("mmu", MMUS)
def test_xen_misses_its_first_guest(tmp_path: Path, mmu: str) -> None:
    """It is a multiboot kernel that asks the BIOS in real mode, reads ACPI tables and wants its guest as a module."""
    path = tmp_path / "xen"
    path.write_bytes(gzip.decompress(fetched(packages.xen).read_bytes()))
    guest = boot(path, ram="128M", append="com1=115200 console=com1 noreboot", mmu=mmu)
    guest.wait_for("VGA is text mode 80x25, font 8x16", max_time="10s")
    guest.wait_for("dom0 kernel not specified", max_time="10s")


@pytest.mark.parametrize("mmu", MMUS)
def test_gnu_mach_misses_its_first_server(tmp_path: Path, mmu: str) -> None:
    path = tmp_path / "gnumach"
    path.write_bytes(gzip.decompress(fetched(packages.gnumach).read_bytes()))
    guest = boot(path, ram="32M", append="console=com0", mmu=mmu)
    guest.wait_for("GNU Mach 1.8", max_time="5s")
    guest.wait_for("biosmem: 00000000000009fc00:0000000000000a0000, reserved", max_time="5s")
    guest.wait_for("No bootstrap code loaded with the kernel!", max_time="10s")


def test_grub_reads_the_tables_of_the_machine() -> None:
    """It draws its menu by INT 10h, reads itself by INT 13h, and knows ACPI, PCI and the memory map."""
    guest = boot(fetched(packages.grub), ram="32M", as_="disk", cpus=2)
    typist = Typist(
        guest.vm,
        [
            parse_typing(text)
            for text in (
                "c@command-line.",
                *(rf"{line}\n@grub> " for line in ("set pager=0", "lsacpi", "lspci", "lsmmap", "ls")),
            )
        ],
    )
    guest.wait_for("(hd0)", max_time="60s")
    assert not typist.left
    for text in (
        "RSDPv2 signature:RSD PTR  chksum:", "APIC  118B rev=3", "LAPIC ACPI_ID=01 APIC_ID=01 Flags=00000001",
        "00:00.0 8086:1237 [0600] Host Bridge", "base_addr = 0x100000, length = 0x1f00000, available RAM",
    ):  # fmt: skip
        assert text in guest.console
    assert "invalid" not in guest.console


@LONG
def test_linux_starts_as_the_first_guest_of_xen(tmp_path: Path, kernel: Path, busybox: Path) -> None:
    path, initrd = tmp_path / "xen", tmp_path / "initrd"
    path.write_bytes(gzip.decompress(fetched(packages.xen).read_bytes()))
    initrd.write_bytes(build_initramfs(busybox, "#!/bin/sh\npoweroff -f\n"))
    guest = boot(
        path, ram="512M", append="com1=115200 console=com1 noreboot dom0_mem=256M",
        initrd=f"{kernel} console=hvc0 earlyprintk=xen,{initrd}",
    )  # fmt: skip
    guest.wait_for("Run /init as init process", max_time="60s")
    guest.wait_for("Hardware Dom0 halted", max_time="60s")
