"""A minimal initramfs from a BusyBox binary: Linux to a shell in two commands.

The archive is a "newc" cpio (Linux, Documentation/driver-api/early-userspace/buffer-format.rst), compressed by gzip.
The same files give the same bytes: no times, owners or names of this host are in it.
"""

from __future__ import annotations

import gzip
import shlex
from collections.abc import Iterable
from pathlib import Path

from emu.errors import BadInput
from emu.infile import read_input

MOST_FILE = 256 << 20  # bytes of a program or module

DEFAULT_INIT = """\
#!/bin/sh
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
exec </dev/console >/dev/console 2>&1
echo
echo "Welcome to Linux on emu.  'poweroff -f' ends it."
while true; do setsid cttyhack sh; done
"""

MODULES_INIT = """\
#!/bin/sh
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
exec </dev/console >/dev/console 2>&1
for module in {modules}; do insmod /lib/modules/$module; done
if [ -e /sys/class/net/eth0 ]; then
    mkdir -p /etc
    ip link set eth0 up
    udhcpc -i eth0 -n -q -f -s /bin/got-address
fi
echo
echo "Welcome to Linux on emu.  'poweroff -f' ends it."
while true; do setsid cttyhack sh; done
"""
"""As DEFAULT_INIT, with modules to load and a network, where there is a card."""

GOT_ADDRESS = """\
#!/bin/sh
[ "$1" = bound ] || exit 0
ip addr add $ip/$mask dev $interface
ip route add default via $router
for server in $dns; do echo "nameserver $server"; done > /etc/resolv.conf
"""
"""What udhcpc calls."""

_DIRECTORY, _FILE, _LINK, _DEVICE = 0o040755, 0o100755, 0o120777, 0o020600
_APPLETS = (
    "sh", "mount", "setsid", "cttyhack", "poweroff", "reboot", "ls", "cat", "echo", "ps", "uname", "dmesg", "free",
    "sleep", "md5sum", "dd", "true", "mknod", "insmod", "rm",
)
_NETWORK_APPLETS = ("mkdir", "ip", "udhcpc", "ping", "wget", "nc", "tftp", "nslookup")  # with modules  # fmt: skip


class Archive:
    """A cpio archive under construction."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._inode = 0

    def add(self, name: str, mode: int, contents: bytes = b"", device: tuple[int, int] = (0, 0)) -> None:
        """Add a file: its path without a leading slash, file type and permissions, contents, major and minor."""
        self._inode += 1
        path = name.encode() + b"\0"
        links = 2 if mode & 0o170000 == 0o040000 else 1
        fields = (self._inode, mode, 0, 0, links, 0, len(contents), 0, 0, *device, len(path), 0)
        self._append(b"070701" + b"".join(b"%08X" % field for field in fields) + path)
        self._append(contents)

    def finish(self) -> bytes:
        """The whole archive."""
        self._inode = -1
        self.add("TRAILER!!!", 0)
        return bytes(self._data)

    def _append(self, data: bytes) -> None:
        self._data += data
        self._data += bytes(-len(self._data) % 4)


def build_initramfs(busybox: Path, init: str | None = None, modules: Iterable[Path] = ()) -> bytes:
    """An initramfs, compressed.

    Args:
        busybox: a statically linked BusyBox.
        init: the shell script that is run as process 1; by default one that loads ``modules``, asks for an address
            where there is a network card, and starts a shell.
        modules: kernel modules, each behind those that it needs; they are in /lib/modules, under the names of these
            files.

    Raises:
        BadInput: one of the files cannot be read, or ``busybox`` is no program.
    """
    program = _contents(busybox)
    if not program.startswith(b"\x7fELF"):
        raise BadInput(str(busybox), "this is no ELF program; a static BusyBox is in Debian's package busybox-static")
    archive = Archive()
    for directory in ("bin", "dev", "proc", "sys", "tmp", "root", "lib", "lib/modules"):
        archive.add(directory, _DIRECTORY)
    archive.add("dev/console", _DEVICE, device=(5, 1))
    archive.add("dev/null", _DEVICE | 0o666, device=(1, 3))
    archive.add("bin/busybox", _FILE, program)
    modules = list(modules)
    for applet in (*_APPLETS, *(_NETWORK_APPLETS if modules else ())):
        archive.add(f"bin/{applet}", _LINK, b"busybox")
    if modules:
        archive.add("bin/got-address", _FILE, GOT_ADDRESS.encode())
    for module in modules:
        archive.add(f"lib/modules/{module.name}", _FILE, _contents(module))
    if init is None:
        names = " ".join(shlex.quote(module.name) for module in modules)
        init = MODULES_INIT.format(modules=names) if modules else DEFAULT_INIT
    archive.add("init", _FILE, init.encode())
    return gzip.compress(archive.finish(), mtime=0)


def _contents(path: Path) -> bytes:
    return read_input(str(path), path, MOST_FILE, named=False)
