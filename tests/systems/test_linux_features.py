"""Debian's cloud kernel on a processor with protection keys, 5-level paging, PCIDs and UMIP, which it makes use of."""

from __future__ import annotations

import gzip
import shutil
import subprocess
from pathlib import Path

import pytest

from emu.boot.initramfs import Archive, build_initramfs
from emu.observe.outcome import Ending
from emu.session import boot_vm, run_vm

SCRIPT = """\
#!/bin/sh
mount -t proc proc /proc
busybox grep -m1 ^flags /proc/cpuinfo
busybox grep -m1 "address sizes" /proc/cpuinfo
busybox dmesg | busybox grep -o "tables isolation: enabled"
/features
poweroff -f
"""

PROGRAM = r"""
#define _GNU_SOURCE
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

static sigjmp_buf again;
static int code, key;

static void caught(int signal, siginfo_t *info, void *context)
{
    code = info->si_code;
    key = info->si_pkey;
    siglongjmp(again, 1);
}

/* 0, or si_code of the SIGSEGV; 4 is SEGV_PKUERR */
static int look(volatile char *p) { code = 0; if (!sigsetjmp(again, 1)) (void)*p; return code; }
static int change(volatile char *p) { code = 0; if (!sigsetjmp(again, 1)) *p = 1; return code; }

int main(void)
{
    struct sigaction action = {.sa_sigaction = caught, .sa_flags = SA_SIGINFO};
    sigaction(SIGSEGV, &action, 0);
    char *page = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    int ours = pkey_alloc(0, 0);
    printf("key %d, %d\n", ours, pkey_mprotect(page, 4096, PROT_READ | PROT_WRITE, ours));
    int read = look(page);
    printf("free: %d %d\n", read, change(page));
    pkey_set(ours, PKEY_DISABLE_WRITE);
    read = look(page);
    printf("no writes: %d %d\n", read, change(page)); /* the handler's PKRU stays: siglongjmp does not restore it */
    pkey_set(ours, PKEY_DISABLE_ACCESS);
    printf("no access: %d, key %d\n", look(page), key);
    fflush(stdout);
    if (!fork()) {
        printf("child: %d", look(page));
        pkey_set(ours, 0);
        printf(" %d\n", change(page));
        fflush(stdout);
        _exit(0);
    }
    wait(0);
    printf("parent: %d\n", look(page));
    char *code_only = mmap(0, 4096, PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    printf("execute-only: %d\n", look(code_only));
    char *high = mmap((void *)(1UL << 50), 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    printf("high: %p %d\n", high, change(high));
    return 0;
}
"""

SEEN = """\
tables isolation: enabled
key 1, 0
free: 0 0
no writes: 0 4
no access: 4, key 1
child: 4 0
parent: 4
execute-only: 4
high: 0x4000000000000 0
"""


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("gcc") is None:
        pytest.skip("needs gcc")
    path = tmp_path_factory.mktemp("features") / "features"
    made = subprocess.run(
        ["gcc", "-O1", "-static", "-x", "c", "-", "-o", str(path)], input=PROGRAM, text=True, capture_output=True
    )
    if made.returncode:
        pytest.skip(f"gcc: {made.stderr}")
    return path


@pytest.mark.parametrize("mmu", ["shadow", "nested"])
def test_linux_uses_them(mmu: str, kernel: Path, busybox: Path, program: Path, tmp_path: Path) -> None:
    archive = Archive()
    archive.add("features", 0o100755, program.read_bytes())
    initrd = tmp_path / "initrd.gz"
    initrd.write_bytes(build_initramfs(busybox, SCRIPT) + gzip.compress(archive.finish(), mtime=0))
    vm = boot_vm(
        kernel, ram="128M", mmu=mmu, cpu="EPYC,+pku,+la57,+pcid,+invpcid,+umip", initrd=str(initrd),
        append="console=ttyS0 quiet loglevel=1 pti=on",
    )  # fmt: skip
    outcome = run_vm(vm, max_time=60_000_000_000)
    vm.audit()
    output = bytes(vm.platform.console).decode().replace("\r", "")
    assert outcome.ending is Ending.POWER_OFF, output
    flags = next(line for line in output.splitlines() if line.startswith("flags")).split()
    assert {"pku", "ospke", "la57", "pcid", "invpcid", "umip", "pti"} <= set(flags)
    assert "57 bits virtual" in output
    assert output[output.index("tables isolation") :].startswith(SEEN), output
