"""Public guests from Debian packages: fetched without installing them, unpacked once, kept in the user's cache.

Only for benchmarks and tests; ``emu guests`` tells people how to do the same by hand.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path

from emu.errors import EmuError

_TIMEOUT = 300  # s, for one command


class NoPackage(EmuError):
    """A package cannot be had here; the message tells why."""


def kernel(flavour: str = "cloud-amd64", series: str = "") -> Path:
    """One of Debian's kernels, a bzImage: the newest of its flavour, or of a series such as "6.12"."""
    return _only(_kernel_package(flavour, series), "boot/vmlinuz-*")


def kernel_modules(*names: str) -> list[Path]:
    """Modules of that kernel, each by its name without ".ko"."""
    package = _kernel_package()
    return [_only(package, f"lib/modules/*/kernel/**/{name}.ko") for name in names]


def full_kernel(*names: str) -> list[Path]:
    """Debian's newest kernel for any amd64 machine, which has drivers for old hardware, and modules of it."""
    package = _kernel_package("amd64")
    return [_only(package, "boot/vmlinuz-*")] + [_only(package, f"lib/modules/*/kernel/**/{name}.ko") for name in names]


def busybox() -> Path:
    """A static BusyBox."""
    return _only(_unpacked("busybox-static"), "bin/busybox")


def memtest() -> Path:
    """memtest86+ for 64-bit CPUs, a bzImage."""
    return _only(_unpacked("memtest86+"), "boot/memtest86+x64.bin")


def ipxe() -> Path:
    """iPXE in the shape of a Linux kernel."""
    return _only(_unpacked("ipxe"), "boot/ipxe.lkrn")


def memdisk() -> Path:
    """SYSLINUX's memdisk, which boots a disk image from memory; it has the shape of a Linux kernel."""
    return _only(_unpacked("syslinux-common"), "usr/lib/syslinux/memdisk")


def grub() -> Path:
    """GRUB's rescue disk, for a floppy or a hard disk drive."""
    return _only(_unpacked("grub-rescue-pc"), "usr/lib/grub-rescue/grub-rescue-floppy.img")


def gnumach() -> Path:
    """GNU Mach, a 64-bit ELF file for multiboot, as it is in the package: compressed by gzip."""
    return _only(_unpacked("gnumach-image-1.8-486"), "boot/gnumach-*-486.gz")


def xen() -> Path:
    """The Xen hypervisor, an ELF file for multiboot, as it is in the package: compressed by gzip."""
    return _only(_unpacked("xen-hypervisor-4.17-amd64"), "boot/xen-*-amd64.gz")


def seabios() -> Path:
    """SeaBIOS for QEMU, 256 KiB."""
    return _only(_unpacked("seabios"), "usr/share/seabios/bios-256k.bin")


def ovmf() -> Path:
    """UEFI firmware for QEMU, 64 bit, with its variables: 2 MiB."""
    return _only(_unpacked("ovmf"), "usr/share/ovmf/OVMF.fd")


def grub_discs() -> tuple[Path, Path]:
    """GRUB on a CD, an ISO with an MBR in front, and on a floppy disk, an image that is shorter than one."""
    directory = _unpacked("grub-rescue-pc") / "usr/lib/grub-rescue"
    return _only(directory, "grub-rescue-cdrom.iso"), _only(directory, "grub-rescue-floppy.img")


def isolinux() -> list[Path]:
    """What an ISO needs to boot by ISOLINUX: the loader, which is the boot image, and its library."""
    loader = _only(_unpacked("isolinux"), "usr/lib/ISOLINUX/isolinux.bin")
    return [loader, _only(_unpacked("syslinux-common"), "usr/lib/syslinux/modules/bios/ldlinux.c32")]


def _kernel_package(flavour: str = "cloud-amd64", series: str = "") -> Path:
    if series:
        name = re.compile(rf"linux-image-({re.escape(series)}[.\d]*)\S*-{re.escape(flavour)}(-unsigned)?")
        named = map(name.fullmatch, _run(["apt-cache", "pkgnames", f"linux-image-{series}"]).split())
        found = [(tuple(map(int, match[1].strip(".").split("."))), match[0]) for match in named if match]
        if found:
            return _unpacked(max(found)[1])
    else:
        dependencies = _run(["apt-cache", "depends", f"linux-image-{flavour}"])
        depends = re.search(rf"Depends: (linux-image-\S+-{re.escape(flavour)})", dependencies)
        if depends:
            return _unpacked(depends[1])
    raise NoPackage(f"no package linux-image-{series or flavour}; `apt-get update` may help")


def _only(directory: Path, pattern: str) -> Path:
    found = sorted(directory.glob(pattern))
    if not found:
        raise NoPackage(f"the package has no {pattern}")
    return found[-1]


def _unpacked(package: str) -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "emu-packages"
    directory = cache / package
    if not directory.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as work:
            _run(["apt-get", "download", package], work)
            files = sorted(Path(work).glob("*.deb"))
            if not files:
                raise NoPackage(f"apt-get downloaded no {package}")
            unpacked = Path(work) / "unpacked"
            _run(["dpkg", "-x", str(files[0]), str(unpacked)])
            with suppress(OSError):  # another process was faster
                unpacked.rename(directory)
    return directory


def _run(command: list[str], directory: str | None = None) -> str:
    try:
        done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=True, timeout=_TIMEOUT)
    except FileNotFoundError:
        raise NoPackage(f"there is no {command[0]} here: no Debian") from None
    except subprocess.TimeoutExpired:
        raise NoPackage(f"{' '.join(command)} did not end within {_TIMEOUT} s") from None
    except subprocess.CalledProcessError as error:
        reason = (error.stderr or error.stdout).strip().splitlines()
        raise NoPackage(f"{' '.join(command)}: {reason[-1] if reason else error}") from None
    return done.stdout
