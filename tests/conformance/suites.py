"""What is known of each suite: its images, how each machine is started on them, and what success looks like.

All of it is data. A case becomes a row of the table; the files are below the folder that EMU_CONFORMANCE names, laid
out as docs/conformance.md builds it. kvm-unit-tests bring the list of their cases with them (unittests.cfg).
"""

from __future__ import annotations

import configparser
import re
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Case:
    """One guest to run. In arguments ``{image}`` and ``{folder}`` stand for paths.

    Attributes:
        image: the guest, below the folder.
        emu: the arguments of ``emu run``.
        qemu: the arguments of QEMU; a machine without a display, with a serial port and an exit port, is there.
        results: finds the single results in the console, as the groups "name" and "result".
        bad: the results that count as failed; all others passed or were skipped.
        done: finds what a run that came to its end prints last; empty for one that is judged by its status alone.
        statuses: the exit statuses of success, on QEMU and on emu.
        until: the console text at which a run is stopped, for guests that never end.
        typed: (text, prompt) to type, for the guests that wait for somebody.
        console: the port that the guest prints at: "serial" or "debug" (0xE9).
        seconds: of wall time that a run may take on either machine.
    """

    suite: str
    name: str
    image: str
    emu: tuple[str, ...] = ()
    qemu: tuple[str, ...] = ()
    program: str = "qemu-system-x86_64"
    results: str = ""
    bad: tuple[str, ...] = ("FAIL",)
    done: str = ""
    statuses: tuple[int, ...] = (1,)
    until: str = ""
    typed: tuple[str, str] | None = None
    console: str = "serial"
    seconds: int = 120


# -- kvm-unit-tests: x86/unittests.cfg names the cases; x86/run starts them -------------------------------------------

_KVM_RESULT = r"^(?P<result>PASS|FAIL|XFAIL|XPASS|SKIP): ?(?P<name>.*)$"
# Left out: nested virtualisation, what only a hypervisor has, and "vmexit", which measures and decides nothing.
_KVM_GROUPS = {"svm", "vmx", "hyperv", "nested_exception", "nodefault", "vmexit"}
_KVM_NAMES = ("asyncpf", "svm", "pmu", "vmware", "kvmclock", "intel_iommu", "cet", "hypercall")
_KVM_CPU = re.compile(r"-cpu (\S+)")
# QEMU's models that emu does not have, and those with another maker's name
_EMU_CPU = {
    "max,vendor=GenuineIntel": "Icelake-Server",
    "qemu64,vendor=GenuineIntel": "core2duo",
    "Opteron_G1,vendor=AuthenticAMD": "qemu64",
    "IvyBridge,phys-bits=36,": "Westmere",
}


def kvm_unit_tests(folder: Path) -> Iterator[Case]:
    """The cases of both builds that need no hypervisor. Exit statuses: 1 passed, 3 failed, 77 skipped, 127 aborted."""
    for where, program in (("kvm64", "qemu-system-x86_64"), ("kvm32", "qemu-system-i386")):
        listed = folder / where / "unittests.cfg"
        if not listed.exists():
            continue
        parser = configparser.ConfigParser(interpolation=None)
        parser.read_string(listed.read_text())
        for name in parser.sections():
            entry = parser[name]
            if _KVM_GROUPS.isdisjoint(entry.get("groups", "").split()) and not name.startswith(_KVM_NAMES):
                yield _kvm_case(where, program, name, entry)


def _kvm_case(where: str, program: str, name: str, entry: configparser.SectionProxy) -> Case:
    parameters = entry.get("qemu_params", "").replace("host-phys-bits=off", "").replace(",host-phys-bits", "")
    parameters = parameters.replace("-enable-kvm", "").replace("-cpu host", "-cpu max")
    model = _KVM_CPU.search(parameters)
    cpu = _EMU_CPU.get(model[1], model[1]) if model else ""
    arguments = " ".join(shlex.split(entry.get("test_args", "")))
    append = ("--append", arguments) if arguments else ()
    cpus = entry.get("smp", "1")
    return Case(
        where,
        name,
        f"{where}/{entry['file']}",
        emu=("--ram", "128M", "--cpus", cpus, "--device", "testdev", *append, *(("--cpu", cpu) if cpu else ())),
        qemu=(
            *("-kernel", "{image}", "-m", "128M", "-smp", cpus, "-device", "pc-testdev", "-device", "pci-testdev"),
            *(argument.replace("--append", "-append") for argument in append),
            *shlex.split(parameters),
        ),
        program=program,
        results=_KVM_RESULT,
        bad=("FAIL", "XPASS"),
        statuses=(1, 77),
        seconds=max(60, int(entry.get("timeout", "0"))),
    )


# -- Linux: tools/testing/selftests/x86, all in one boot ---------------------------------------------------------------


def selftests(folder: Path) -> Iterator[Case]:
    """Each program ends with 0, or with 4 where it cannot run; the init script prints it. amx_64 needs AMX."""
    for kernel in sorted((folder / "selftests").glob("vmlinuz*")):
        initrd, append = "{folder}/selftests/initrd.gz", "console=ttyS0 quiet"
        yield Case(
            "selftests",
            kernel.name.removeprefix("vmlinuz-"),
            f"selftests/{kernel.name}",
            emu=("--ram", "256M", "--initrd", initrd, "--append", append),
            qemu=("-kernel", "{image}", "-m", "256M", "-initrd", initrd, "-append", append),
            results=r"^TEST (?P<name>(?!amx_64)\S+) (?P<result>status \d+)$",
            bad=tuple(f"status {status}" for status in range(1, 256) if status != 4),
            done="^TESTS DONE",
            statuses=(0,),
            seconds=600,
        )


# -- others ------------------------------------------------------------------------------------------------------------

_DRIVE = ("-drive", "file={image},index=0,media=disk,format=raw,snapshot=on")


def test386(_folder: Path) -> Iterator[Case]:
    """A BIOS that writes the number of each test to the POST port, here 0xE9, and FF at the end; then it halts."""
    yield Case(
        "test386",
        "POST codes",
        "test386/post.bin",
        emu=("{folder}/test386/empty.img", "--bios", "{image}"),
        qemu=("-bios", "{image}"),
        program="qemu-system-i386",
        done=r"\xff$",
        statuses=(124, -15),
        console="debug",
        seconds=60,
    )


def memtest(_folder: Path) -> Iterator[Case]:
    """memtest86+ up to its seventh test, with no error in those before."""
    append = "console=ttyS0,115200"
    yield Case(
        "memtest86+",
        "first tests",
        "memtest/memtest.bin",
        emu=("--ram", "8M", "--append", append),
        qemu=("-kernel", "{image}", "-m", "8M", "-append", append, "-vga", "std"),
        results=r"(?P<name>Errors): *(?P<result>\d+)",
        bad=tuple(map(str, range(1, 100))),
        until="#6  ",
    )


def xv6(_folder: Path) -> Iterator[Case]:
    """Its own usertests, on one processor and on two."""
    for cpus in ("1", "2"):
        yield Case(
            "xv6",
            f"usertests, {cpus} CPU",
            "xv6/xv6.img",
            emu=("--cpus", cpus, "--ram", "512M", "--disk", "{folder}/xv6/fs.img"),
            qemu=(
                *("-smp", cpus, "-m", "512M", "-vga", "std", *_DRIVE),
                *("-drive", "file={folder}/xv6/fs.img,index=1,media=disk,format=raw,snapshot=on"),
            ),
            results=r"^(?P<name>[\w ]+?)(?: test)? (?P<result>ok|failed)",
            bad=("failed",),
            typed=("usertests\n", "$ "),
            until="ALL TESTS PASSED",
            seconds=600,
        )


def jos(folder: Path) -> Iterator[Case]:
    """Lab 4 with one of its user programs each."""
    for name in ("forktree", "hello", "stresssched", "pingpong"):
        yield Case(
            "JOS",
            name,
            f"jos/{name}.img",
            emu=("--ram", "64M"),
            qemu=("-m", "64M", "-vga", "std", *_DRIVE),
            program="qemu-system-i386",
            until="No runnable environments in the system!",
        )


def pintos(folder: Path) -> Iterator[Case]:
    """Tests of its first project; each kernel command line is in its disk image."""
    for image in sorted((folder / "pintos").glob("*.img")):
        yield Case(
            "Pintos",
            image.stem,
            f"pintos/{image.name}",
            emu=("--ram", "4M"),
            qemu=("-m", "4", "-vga", "std", *_DRIVE),
            program="qemu-system-i386",
            results=r"^\((?P<name>\S+)\) (?P<result>end|FAIL.*)$",
            until="Powering off...",
        )


SUITES: tuple[Callable[[Path], Iterator[Case]], ...] = (kvm_unit_tests, selftests, test386, memtest, xv6, jos, pintos)


def all_cases(folder: Path) -> list[Case]:
    """Every case whose image the folder has."""
    return [case for suite in SUITES for case in suite(folder) if (folder / case.image).exists()]
