"""Build a minimal initramfs from a BusyBox binary: Linux to a shell in two commands.

The same files give the same bytes.  Without --init the guest mounts /proc, /sys and /dev, loads the modules in their
order, asks for an address where there is a network card, and starts a shell.

    emu image busybox -o initrd.gz
    emu run vmlinuz --initrd initrd.gz --ram 128M --append "console=ttyS0" --interactive
"""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from pathlib import Path

from emu.commands.files import open_output, read_file
from emu.errors import BadInput

USAGE = "BUSYBOX -o FILE [--module FILE]… [--init SCRIPT]"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("busybox", metavar="BUSYBOX", help="a statically linked one (Debian package busybox-static)")
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="the initramfs; - is standard output")
    parser.add_argument(
        "--module", dest="modules", action="append", default=[], metavar="FILE",
        help="a kernel module to load, repeatable, each behind those that it needs; it is in /lib/modules",
    )  # fmt: skip
    parser.add_argument("--init", metavar="SCRIPT", help="a shell script that is run as process 1")


def main(options: argparse.Namespace) -> int:
    from emu.boot.initramfs import build_initramfs

    init = None
    if options.init is not None:
        try:
            init = read_file("--init", options.init).decode()
        except UnicodeDecodeError:
            raise BadInput("--init", f"{options.init} is not UTF-8 text") from None
    initramfs = build_initramfs(Path(options.busybox), init, [Path(module) for module in options.modules])
    inputs = [path for path in (options.busybox, options.init, *options.modules) if path is not None]
    with ExitStack() as files:
        output = open_output(files, "--output", options.output, inputs, whole=True, compress=False)  # it is already
        assert output is not None
        output.write(initramfs)
    return 0
