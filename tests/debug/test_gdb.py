"""The real gdb: in 16-, 32- and 64-bit code, with a kernel in C, and in Linux."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.systems.conftest import busybox, fetched, kernel  # noqa: F401

pytestmark = pytest.mark.skipif(shutil.which("gdb") is None, reason="gdb is not installed")

KERNEL = """
__attribute__((section(".mb"), used)) static const unsigned mb[3] = {0x1BADB002, 0, -0x1BADB002u};
static char stack[4096] __attribute__((aligned(16), used));
static volatile int victim = 7;
static void out(unsigned short port, unsigned char v) { __asm__ volatile("outb %0, %1" :: "a"(v), "Nd"(port)); }
static int factorial(int n)
{
    if (n <= 1) {
        victim += n;
        return 1;
    }
    return n * factorial(n - 1);
}
static void print(const char *s) { while (*s) out(0x3F8, *s++); }
void kmain(void)
{
    int result = factorial(5);
    victim = result;
    print(result == 120 ? "right\\n" : "wrong\\n");
    out(0xF4, 0);
    for (;;);
}
__attribute__((naked)) void _start(void) { __asm__("movl $stack + 4096, %esp\\n call kmain"); }
"""
LAYOUT = """
ENTRY(_start)
SECTIONS { . = 1M; .text : { *(.mb) *(.text*) } .rodata : { *(.rodata*) } .data : { *(.data*) } .bss : { *(.bss*) }
           /DISCARD/ : { *(.note*) *(.eh_frame*) } }
"""


def under_gdb(guest: str | Path, commands: list[str], *options: str, status: int = 0) -> str:
    """What gdb and the guest print."""
    command = [sys.executable, "-m", "emu", "gdb", str(guest), "--batch", *options]
    for one in commands:
        command += ["--command", one]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, stdin=subprocess.DEVNULL)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def c_kernel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")
    folder = tmp_path_factory.mktemp("kernel")
    (folder / "kernel.c").write_text(KERNEL)
    (folder / "kernel.ld").write_text(LAYOUT)
    flags = "-m32 -g -O0 -ffreestanding -fno-pic -fno-stack-protector -fno-asynchronous-unwind-tables".split()
    subprocess.run(["gcc", *flags, "-c", "kernel.c", "-o", "kernel.o"], cwd=folder, check=True)
    link = "ld -m elf_i386 --no-warn-rwx-segments -T kernel.ld -o kernel.elf kernel.o".split()
    subprocess.run(link, cwd=folder, check=True)
    return folder / "kernel.elf"


def test_a_kernel_in_c(c_kernel: Path) -> None:
    commands = ["break factorial if n == 3", "continue", "backtrace", "print victim", "delete"]
    commands += ["tbreak kmain", "next", "finish", "info registers eip", "continue"]
    told = under_gdb(c_kernel, commands, status=1)
    assert "Breakpoint 1, factorial (n=3) at kernel.c:" in told
    assert "#0  factorial (n=3)" in told and "#3  0x" in told and "in kmain () at kernel.c:" in told
    assert "$1 = 7" in told
    assert "Value returned is" in told
    assert "right" in told and "exited with code 01" in told


def test_who_writes_a_variable(c_kernel: Path) -> None:
    commands = ["watch victim", "continue", "backtrace 1", "continue", "delete", "continue"]
    told = under_gdb(c_kernel, commands, status=1)
    assert "Old value = 7\nNew value = 8" in told and "factorial (n=1)" in told
    assert "Old value = 8\nNew value = 120" in told


def test_memory_and_registers_are_changed(c_kernel: Path) -> None:
    commands = ["break kmain", "continue", "set var victim = 41", "print victim + 1", "break print", "continue"]
    commands += ['set var *(char *)s = "X"[0]', "set $ecx = 0x1234", "info registers ecx", "delete", "continue"]
    told = under_gdb(c_kernel, commands, status=1)
    assert "$1 = 42" in told and "0x1234" in told and "Xight" in told


def test_16_bit_code() -> None:
    told = under_gdb("hello", ["x/2i $pc", "stepi", "stepi", "info registers eip", "info registers cr0", "kill"])
    assert "=> 0x8000:" in told and re.search(r"^cr0 +0x10\b", told, re.MULTILINE)


def test_64_bit_code() -> None:
    commands = ["stepi 3", "info registers rip", "print/x $xmm0.uint128", "continue"]
    told = under_gdb("long64", commands, "--gdb-arch", "i386:x86-64", status=1)
    assert "rip            0x" in told and "$1 = 0x0" in told and "exited with code 01" in told


def test_processors() -> None:
    told = under_gdb("smp", ["info threads", "thread 3", "continue"], "--cpus", "4", status=1)
    assert "Thread 4 (CPU 3, waiting)" in told and "exited with code 01" in told


def test_linux(kernel: Path, tmp_path: Path) -> None:  # noqa: F811
    """A breakpoint at the first instruction behind the decompressor."""
    arguments = [
        "--ram",
        "128M",
        "--append",
        "console=ttyS0 nokaslr panic=-1",
        "--no-reboot",
        "--gdb-arch",
        "i386:x86-64",
    ]
    commands = ["tbreak *0x1000000", "continue", "x/i $pc", "monitor w", "kill"]
    told = under_gdb(kernel, commands, *arguments)
    assert "Temporary breakpoint 1, 0x0000000001000000" in told
