"""List the guests that come with emu, with what their command line (--append) may set, and where to get others."""

from __future__ import annotations

import argparse

PUBLIC = """\
Debian's packages have more.  `apt-get download PACKAGE` fetches one without installing it, `dpkg -x FILE.deb DIRECTORY`
unpacks it:

  linux-image-cloud-amd64  depends on the package with the kernel, which is in boot/vmlinuz-VERSION: download that
  busybox-static           bin/busybox, of which `emu image` makes an initramfs with a shell
  memtest86+               boot/memtest86+x64.bin, a memory test
  seabios                  usr/share/seabios/bios-256k.bin, a PC's BIOS

Linux to a shell:
  emu image busybox -o initrd.gz
  emu run vmlinuz --initrd initrd.gz --ram 128M --append "console=ttyS0" --interactive"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """None yet."""


def main(options: argparse.Namespace) -> int:
    from emu.boot import firmware

    guests = firmware.guests().values()
    width = max(len(guest.name) for guest in guests)
    for guest in guests:
        print(f"{guest.name:<{width}}  {guest.summary}")
        for name, parameter in guest.parameters.items():
            print(f"{'':<{width}}    {name}={parameter.default}  {parameter.meaning}")
    print()
    print("Run one with: emu run NAME")
    print(f"The sources are in {firmware.firmware_directory()}")
    print()
    print(PUBLIC)
    return 0
