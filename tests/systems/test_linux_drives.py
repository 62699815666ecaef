"""Linux's drivers for the drives of a PC."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from emu.boot.initramfs import build_initramfs
from emu.boot.packages import full_kernel, grub_discs, kernel_modules
from emu.session import boot_vm, run_vm
from tests.systems.conftest import fetched

MODULES = ("scsi_common", "scsi_mod", "libata", "ata_piix", "sd_mod", "cdrom", "sr_mod", "isofs")
SCRIPT = f"""\
#!/bin/sh
mount -t proc proc /proc
busybox mkdir -p /mnt
mount -t devtmpfs devtmpfs /dev
for m in {" ".join(MODULES)}; do insmod /lib/modules/$m.ko; done
while [ ! -e /dev/sda -o ! -e /dev/sr0 ]; do sleep 0.1; done
busybox md5sum /dev/sda
dd if=/bin/busybox of=/dev/sda bs=4096 seek=100 count=200 conv=notrunc 2>/dev/null
busybox sync
echo 3 > /proc/sys/vm/drop_caches
dd if=/dev/sda bs=4096 skip=100 count=200 2>/dev/null | busybox md5sum
busybox head -c 819200 /bin/busybox | busybox md5sum
busybox md5sum < /dev/sr0
mount -t iso9660 /dev/sr0 /mnt
busybox md5sum < /mnt/boot/grub/fonts/unicode.pf2
dmesg | busybox grep -o "max MWDMA2 cmd 0x1f0.* irq 14"
dmesg | busybox grep -i -e "failed command" -e "qc timeout"
busybox awk '/ata_piix/ {{print "interrupts", ($2 < 200)}}' /proc/interrupts
poweroff -f
"""


@pytest.mark.parametrize("mmu", ["shadow", "nested"])
def test_ata_piix_sd_and_sr(kernel: Path, busybox: Path, tmp_path: Path, mmu: str) -> None:
    """Eight megabytes and a CD with one interrupt for each request: by PIO it would be one for each block."""
    modules = [fetched(lambda name=name: kernel_modules(name)[0]) for name in MODULES]  # type: ignore[misc]
    initrd = tmp_path / "initrd"
    initrd.write_bytes(build_initramfs(busybox, SCRIPT, modules))
    data = b"".join(number.to_bytes(8, "little") for number in range(1 << 20))
    (tmp_path / "disk").write_bytes(data)
    disc = fetched(lambda: grub_discs()[0])
    vm = boot_vm(
        kernel, ram="128M", mmu=mmu, initrd=str(initrd), append="console=ttyS0 quiet", disks=[tmp_path / "disk"],
        cdrom=disc,
    )  # fmt: skip
    outcome = run_vm(vm, max_time=60 * 10**9)
    lines = vm.platform.console.decode().replace("\r", "").splitlines()
    assert outcome.status == 0, lines
    assert lines[0] == f"{hashlib.md5(data).hexdigest()}  /dev/sda"
    assert lines[1] == lines[2]
    assert lines[3] == f"{hashlib.md5(disc.read_bytes()).hexdigest()}  -"
    assert lines[4].endswith("  -") and lines[4] not in lines[:4]  # a file of the ISO 9660 file system
    assert lines[5:8] == ["max MWDMA2 cmd 0x1f0 ctl 0x3f6 bmdma 0xc040 irq 14", "interrupts 1", "interrupts 1"]


FLOPPY_SCRIPT = """\
#!/bin/sh
mount -t proc proc /proc
mount -t devtmpfs devtmpfs /dev
insmod /lib/modules/floppy.ko
busybox md5sum < /dev/fd0
dd if=/bin/busybox of=/dev/fd0 bs=512 seek=1000 count=100 conv=notrunc 2>/dev/null
busybox sync
echo 3 > /proc/sys/vm/drop_caches
dd if=/dev/fd0 bs=512 skip=1000 count=100 2>/dev/null | busybox md5sum
busybox head -c 51200 /bin/busybox | busybox md5sum
dmesg | busybox grep -o "fd0 is .*"
dmesg | busybox grep -e "I/O error" -e "floppy timeout"
poweroff -f
"""


@pytest.mark.skipif(os.environ.get("EMU_LONG") is None, reason="takes a minute; EMU_LONG=1 runs it")
@pytest.mark.parametrize(("size", "kind"), [(360, "360K PC"), (720, "720k"), (1200, "1.2M"), (1440, "1.44M")])
def test_the_floppy_driver(busybox: Path, tmp_path: Path, size: int, kind: str) -> None:
    """Its autodetection, DMA, and what was written read back. Cloud kernels have no such driver."""
    kernel, module = fetched(lambda: full_kernel("floppy"))  # type: ignore[arg-type,return-value]
    script = FLOPPY_SCRIPT if size > 700 else FLOPPY_SCRIPT.replace("=1000", "=500")
    (tmp_path / "initrd").write_bytes(build_initramfs(busybox, script, [module]))
    data = b"".join(number.to_bytes(8, "little") for number in range(size << 7))
    (tmp_path / "disk").write_bytes(data)
    vm = boot_vm(
        kernel, ram="256M", initrd=str(tmp_path / "initrd"), append="console=ttyS0 quiet", floppies=[tmp_path / "disk"]
    )
    outcome = run_vm(vm, max_time=120 * 10**9)
    lines = vm.platform.console.decode().replace("\r", "").splitlines()
    assert outcome.status == 0, lines
    assert lines[0] == f"{hashlib.md5(data).hexdigest()}  -" and lines[1] == lines[2]
    assert lines[3:4] == [f"fd0 is {kind}"] and "reboot: Power down" in lines[4]
