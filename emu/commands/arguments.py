"""What several sub-commands have in common: the options that choose and size a guest, and value types for argparse."""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from emu.boot.kinds import WORDS
from emu.commands.files import check_no_input, read_file
from emu.cpu import models
from emu.devices.net import CARDS, KINDS, parse_net
from emu.devices.parts import DEVICES
from emu.dmm import catalog
from emu.errors import BadInput
from emu.machine.schedule import MAX_CPUS
from emu.options import BootOptions, disk_options, floppy_options

if TYPE_CHECKING:
    from emu.machine.vm import VirtualMachine


def seconds(text: str) -> float:
    """An option's value in seconds, above 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < 1e9:
        raise argparse.ArgumentTypeError(f"not a time in seconds: {text!r} (expected a number above 0)")
    return value


def address(text: str) -> int:
    """An option's value as an address: decimal, or hexadecimal with 0x."""
    try:
        value = int(text, 0)
    except ValueError:
        value = -1
    if value < 0:
        raise argparse.ArgumentTypeError(f"not an address: {text!r} (expected a number like 0x7c00)")
    return value


def text(value: str) -> str:
    """An option's value as text that can be encoded; bytes of the command line that are no UTF-8 cannot."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError("not UTF-8 text") from None
    return value


def number(text: str) -> int:
    """An option's value as a whole number."""
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"not a whole number: {text!r}")
    return int(text)


class _CpuOption(argparse.Action):
    """``--cpu``, whose value ``help`` prints a list and ends the command."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option: str | None = None) -> None:
        if values == "help":
            sys.stdout.write(models.describe())
            parser.exit()
        setattr(namespace, self.dest, values)


def add_guest_arguments(parser: argparse.ArgumentParser) -> None:
    """GUEST and the options that :func:`boot_from` reads.  Those of :class:`emu.options.BootOptions` have its names."""
    policies = "; ".join(f"{name}: {entry.about}" for name, entry in catalog.POLICIES.items())
    parser.add_argument("guest", metavar="GUEST", help="a name that `emu guests` lists, or a file")
    parser.add_argument("--mmu", default="shadow", metavar="KIND", help="shadow (default) or nested paging")
    parser.add_argument("--ram", metavar="SIZE", help="guest memory (default: what the guest wants, or 64M)")
    parser.add_argument("--pool", metavar="SIZE", help="machine memory that it may use (default: as RAM)")
    parser.add_argument("--cpus", type=number, default=1, metavar="N", help=f"processors, 1 (default) to {MAX_CPUS}")
    parser.add_argument(
        "--cpu",
        action=_CpuOption,
        metavar="MODEL[,+FEATURE][,-FEATURE]",
        help=f"what the processors are (default {models.DEFAULT}); help lists models and features",
    )
    parser.add_argument("--quantum", metavar="TIME", help="most virtual time of a processor's turn, such as 100us")
    parser.add_argument(
        "--schedule", metavar="seed=N", help="draw order and length of the processors' turns from N (default: fixed)"
    )
    parser.add_argument(
        "--policy",
        dest="policies",
        action="append",
        default=[],
        metavar="NAME[:key=value,…]",
        help=f"a memory policy, repeatable (default {catalog.DEFAULT}). {policies}",
    )
    parser.add_argument("--append", type=text, default="", metavar="TEXT", help="the guest's command line")
    parser.add_argument(
        "--initrd",
        metavar="FILE",
        help="a Linux kernel's initial RAM disk, or a multiboot kernel's modules as 'FILE arguments,FILE'",
    )
    parser.add_argument(
        "--disk",
        dest="disks",
        action="append",
        default=[],
        metavar="FILE[,virtio][,writable]",
        help="a raw disk image, repeatable: an IDE drive, or with ,virtio a virtio block device; the file is never "
        "changed, except with ,writable",
    )
    parser.add_argument(
        "--floppy",
        dest="floppies",
        action="append",
        default=[],
        metavar="FILE[,writable]",
        help="the image of a floppy disk, from 160K to 2.88M, in drive A, given again in drive B",
    )
    parser.add_argument("--cdrom", metavar="FILE", help="the image of a CD-ROM or DVD, in an IDE drive")
    devices = "; ".join(f"{name}: {about}" for name, about in DEVICES.items())
    parser.add_argument(
        "--device", dest="devices", action="append", default=[], metavar="NAME", help=f"one more device. {devices}"
    )
    parser.add_argument(
        "--net",
        metavar="KIND[,key=value,…]",
        help=f"a network card, on a network of one of the kinds {', '.join(KINDS)}. card={' or '.join(CARDS)}, mac=, "
        "log=FILE for every frame (pcap); user: tftp=FOLDER, bootfile=NAME, forward=PORT:PORT from the host's loopback,"
        " restrict=on",
    )
    parser.add_argument("--bios", metavar="FILE", help="a ROM image to start in; GUEST is the disk image that it finds")
    parser.add_argument(
        "--as", dest="as_", metavar="KIND", help=f"what the file is, whatever it looks like: {', '.join(WORDS)}"
    )
    parser.add_argument("--load", type=address, metavar="ADDRESS", help="run a file as a flat binary at this gpa")
    parser.add_argument("--input", metavar="FILE", help="what comes in at the guest's serial port")
    parser.add_argument(
        "--no-reboot", action="store_true", help="end the run when the guest resets the machine (default: start again)"
    )
    parser.add_argument("--audit", action="store_true", help="check every invariant after every change of the mapping")


def input_files(options: argparse.Namespace) -> list[str]:
    """The files that the options of :func:`add_guest_arguments` name."""
    given = (options.input, options.initrd, options.bios, options.cdrom)
    named = [options.guest, *(path for path in given if path is not None)]
    modules = [module.split(" ")[0] for module in (options.initrd or "").split(",")]
    images = [disk_options(disk)[0] for disk in options.disks] + [floppy_options(disk)[0] for disk in options.floppies]
    plan = None if options.net is None else parse_net(options.net)
    return [*named, *filter(None, modules), *images, *(plan.inputs if plan is not None else ())]


def files_in_use(options: argparse.Namespace) -> list[str]:
    """Those, and the log of ``--net``: outputs must not overwrite them."""
    plan = None if options.net is None else parse_net(options.net)
    return [*input_files(options), *([plan.log] if plan is not None and plan.log is not None else ())]


def boot_from(arguments: argparse.Namespace) -> VirtualMachine:
    """The VM that the options of :func:`add_guest_arguments` describe.

    Raises:
        BadInput: one of them cannot be used.
    """
    if arguments.mmu == "direct":
        raise BadInput("--mmu", "direct (paravirtual) paging is not there yet; use shadow or nested")
    if arguments.guest == "":
        raise BadInput("GUEST", "expected a name that `emu guests` lists, or a file")
    if arguments.net is not None:
        log = parse_net(arguments.net).log
        if log is not None:
            check_no_input("--net", log, input_files(arguments))
    given = {field.name: vars(arguments)[field.name] for field in fields(BootOptions) if field.name in arguments}
    if arguments.input is not None:
        given["serial_input"] = read_file("--input", arguments.input, vars(arguments).get("timeout"))
    options = BootOptions(**given)
    from emu.session import boot_vm

    return boot_vm(arguments.guest, options)
