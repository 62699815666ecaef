"""A process that gives up what a run does not need: no file is opened, no program started, nobody talked to.

It is a seccomp filter (Linux, seccomp(2)) that the process puts on itself for good, when all that the run uses is open.
The filter names the system calls that are left; every other one fails with EPERM.  docs/security.md says what that is
good for.  Python opens files when it imports, so whatever a run may need at its end is imported first.
"""

from __future__ import annotations

import errno
import os
import termios
from collections.abc import Iterable
from importlib import import_module
from typing import TYPE_CHECKING, Any

from emu.errors import BadInput

if TYPE_CHECKING:
    from emu.commands.files import OutputFile
    from emu.machine.vm import VirtualMachine

OPTION = "--sandbox"
_CLONE_THREAD = 0x10000  # sched.h: the new task is a thread of this process
_LATE_MODULES = (
    "capstone", "emu.commands.interactive", "emu.observe.crash", "emu.observe.picture", "emu.observe.screen",
    "emu.observe.summary", "emu.observe.trace", "emu.units", "traceback",
)  # fmt: skip
_CALLS = (
    # open files: contents, sizes, locks. A name is never looked up but for what it is (the stat family).
    "read", "write", "readv", "writev", "pread64", "pwrite64", "preadv", "pwritev", "lseek", "fsync", "fdatasync",
    "ftruncate", "close", "dup", "dup2", "dup3", "fcntl", "flock", "fstat", "stat", "lstat", "newfstatat", "statx",
    "pipe2", "poll", "ppoll", "select", "pselect6",
    # memory; translated code is executed
    "mmap", "munmap", "mprotect", "mremap", "madvise", "brk",
    # threads of this process
    "futex", "set_robust_list", "rseq", "sched_yield", "sched_getaffinity", "exit", "exit_group", "membarrier",
    # signals that it gets
    "rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "sigaltstack", "restart_syscall", "setitimer",
    # time, chance, and who it is
    "clock_gettime", "clock_getres", "clock_nanosleep", "nanosleep", "gettimeofday", "time", "times", "getrandom",
    "getpid", "gettid", "getuid", "geteuid", "getgid", "getegid", "getrusage", "uname", "sysinfo",
)  # fmt: skip
_TERMINAL = (termios.TCGETS, termios.TCSETS, termios.TCSETSW, termios.TCSETSF, termios.TIOCGWINSZ)


def find_seccomp() -> Any:
    """The library that makes filters.

    Raises:
        BadInput: it is not there.
    """
    try:
        return import_module("pyseccomp")
    except (ImportError, OSError, RuntimeError) as error:  # RuntimeError: the binding is there, the library is not
        what = "needs Linux, pip install 'emu[sandbox]', and the system's libseccomp (Debian: libseccomp2)"
        raise BadInput(OPTION, f"{what}: {error}") from None


def enter_sandbox(vm: VirtualMachine, outputs: Iterable[OutputFile] = ()) -> None:
    """Close the sandbox around this process and all its threads.  There is no way out.

    Args:
        vm: the VM that is to run; its policies give up the names of their files.
        outputs: what else is written at the end.

    Raises:
        BadInput: the library is missing, or the kernel refuses.
    """
    seccomp = find_seccomp()
    _import_early(vm)
    for policy in vm.dmm.policies:
        policy.forget_names()
    for output in outputs:
        output.hold()
    try:
        _filter(seccomp).load()
    except OSError as error:
        raise BadInput(OPTION, f"the kernel refuses the filter: {error.strerror or error}") from None


def _filter(seccomp: Any) -> Any:
    rules = seccomp.SyscallFilter(seccomp.ERRNO(errno.EPERM))
    rules.set_attr(seccomp.Attr.CTL_TSYNC, 1)  # all threads, not only this one
    for call in _CALLS:
        rules.add_rule(seccomp.ALLOW, call)
    for request in _TERMINAL:  # not TIOCSTI, which types on behalf of the user
        rules.add_rule(seccomp.ALLOW, "ioctl", seccomp.Arg(1, seccomp.EQ, request))
    rules.add_rule(seccomp.ALLOW, "clone", seccomp.Arg(0, seccomp.MASKED_EQ, _CLONE_THREAD, _CLONE_THREAD))
    # its flags are in memory, where a filter cannot look; told that there is none, the C library takes clone
    rules.add_rule(seccomp.ERRNO(errno.ENOSYS), "clone3")
    rules.add_rule(seccomp.ALLOW, "tgkill", seccomp.Arg(0, seccomp.EQ, os.getpid()))
    return rules


def _import_early(vm: VirtualMachine) -> None:
    """Have everything loaded that a run may need later on: reports and pictures are made once, for nobody."""
    for name in _LATE_MODULES:
        import_module(name)
    from emu.devices.vbe import DEPTHS, Picture, VideoMode
    from emu.observe.crash import report
    from emu.observe.picture import picture_png
    from emu.observe.screen import as_png, as_text

    if vm.guest is not None:
        vm.guest.image.prepare()
    report(vm)
    shown = vm.platform.vga.screen()
    as_text(shown)
    try:
        as_png(shown)
        for depth in DEPTHS:
            mode = VideoMode(1, 1, depth)
            picture_png(Picture(mode, mode.pitch, bytes(mode.pitch), ((0, 0, 0),) * 256))
    except ImportError:  # without Pillow there are no pictures, and --screen has said so
        pass
