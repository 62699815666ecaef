"""Run a guest under gdb, which is started in this terminal.  What the guest prints appears in between.

The symbols are those of the guest, if it is an ELF file; --symbols names another one.  `info registers` shows the
control registers, too, and `monitor help` what can be asked of emu itself: page walks, the pool, the last events.

exit status: as `emu run` when the guest has ended, else 0
"""

from __future__ import annotations

import argparse
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from emu.commands.arguments import add_guest_arguments, boot_from
from emu.commands.host import explain_slow_start
from emu.commands.screen import Screen
from emu.errors import BadInput
from emu.observe.outcome import Ending

USAGE = "GUEST [options]"
_ELF = b"\x7fELF"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_guest_arguments(parser)
    parser.add_argument("--symbols", metavar="FILE", help="an ELF file with the guest's symbols")
    parser.add_argument("--command", action="append", default=[], metavar="COMMAND", help="for gdb, first; repeatable")
    parser.add_argument("--batch", action="store_true", help="let gdb end behind the commands")
    parser.add_argument(
        "--gdb-arch",
        choices=("i8086", "i386", "i386:x86-64"),
        help="what gdb is told that the processor is (default: what it runs at first)",
    )


def main(options: argparse.Namespace) -> int:
    program = shutil.which("gdb")
    if program is None:
        raise BadInput("gdb", "it is not installed; on Debian: apt-get install gdb")
    with explain_slow_start():
        vm = boot_from(options)
        from emu.commands.gdb_listener import listen, run_under_gdb

    symbols = options.symbols or (options.guest if _is_elf(options.guest) else None)
    with tempfile.TemporaryDirectory(prefix="emu-gdb-") as folder, listen(f"unix:{folder}/gdb") as listener:
        command = [program, "-q", *(["-batch"] if options.batch else []), *([symbols] if symbols else [])]
        for one in (f"target remote {folder}/gdb", *options.command):
            command += ["-ex", one]
        vm.platform.listen(Screen(sys.stdout.buffer), urgent=b"")
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is gdb's, which then asks for it
        try:
            child = subprocess.Popen(command, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
            outcome = run_under_gdb(
                vm, listener, True, lambda: child.poll() is not None, options.gdb_arch, one_client=True
            )
            child.wait()
        finally:
            signal.signal(signal.SIGINT, before)
            vm.close()
    return 0 if outcome.ending is Ending.STOPPED else outcome.status


def _is_elf(guest: str) -> bool:
    path = Path(guest)
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        return file.read(4) == _ELF
