"""Stock Linux with its own virtio_balloon: it gives up pages when asked to, takes them back, and reports free ones."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from emu.boot import packages
from emu.boot.initramfs import build_initramfs
from emu.dmm.policies.balloon import Balloon
from emu.observe.outcome import Ending
from emu.testing import GuestUnderTest, boot
from tests.systems.conftest import fetched

MODULES = ("virtio_ring", "virtio", "virtio_mmio", "virtio_balloon")  # each behind those that it needs
RAM = 65536  # pages; Linux reports nothing while less than 64 MiB are free
PAGES = 8192  # to put into the balloon, and in a file
TOTAL = 5  # tag of a statistic (VIRTIO 1.1, 5.5.6.3)

# A step prints what `free` says is the total, in KiB, and waits for a line of input.
SCRIPT = f"""\
#!/bin/sh
mount -t proc proc /proc
mount -t devtmpfs devtmpfs /dev
mount -t tmpfs tmpfs /tmp
step() {{ busybox free | busybox awk -v step="$1" '/Mem:/ {{ print "total", step, $2 }}'; read line; }}
balloon() {{ busybox awk '/^balloon_/ {{ n[$1] = $2 }} END {{ print n["balloon_inflate"] - n["balloon_deflate"] }}' \\
    /proc/vmstat; }}
cat /bin/busybox > /tmp/kept
step "without a driver"
for module in {" ".join(MODULES)}; do insmod /lib/modules/$module.ko; done
step "with a driver"
until [ $(balloon) = {PAGES} ]; do sleep 0.01; done
step "inflated"
until [ $(balloon) = 0 ]; do sleep 0.01; done
step "deflated"
dd if=/dev/zero of=/tmp/file bs=4096 count={PAGES} 2>/dev/null
step "with a file"
rm /tmp/file
sleep 5
step "without the file"
md5sum < /tmp/kept
poweroff -f
"""


class Linux:
    """The guest, from one step of the script to the next."""

    def __init__(self, kernel: Path, initrd: Path, mmu: str) -> None:
        options = {"ram": RAM << 12, "initrd": str(initrd), "append": "console=ttyS0", "policies": ["static"]}
        self.guest: GuestUnderTest = boot(kernel, mmu=mmu, **options)
        self.vm = self.guest.vm
        assert self.vm.guest is not None
        self.balloon = Balloon(self.vm.guest.image)
        self.vm.attach(self.balloon)

    def total(self, step: str) -> int:
        """KiB that the guest says it has at this step."""
        self.guest.wait_for(f"total {step} ", "20s")
        before = len(self.guest.console)
        self.guest.wait_for("\n")
        return int(self.guest.console[before:])

    def go_on(self) -> None:
        self.guest.send("\n")


@pytest.fixture(scope="module")
def initrd(busybox: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    modules = fetched(lambda: packages.kernel_modules(*MODULES))
    path = tmp_path_factory.mktemp("balloon") / "initrd.gz"
    path.write_bytes(build_initramfs(busybox, SCRIPT, modules))
    return path


@pytest.mark.parametrize("mmu", ["shadow", "nested"])
def test_linux_follows_the_target_and_reports_free_pages(kernel: Path, busybox: Path, initrd: Path, mmu: str) -> None:
    linux = Linux(kernel, initrd, mmu)
    vm, balloon = linux.vm, linux.balloon

    balloon.set_target(PAGES)  # nobody is there to see it
    total = linux.total("without a driver")
    assert (vm.pool.used, len(balloon.held)) == (RAM, 0)
    balloon.set_target(0)
    linux.go_on()

    assert linux.total("with a driver") == total
    assert vm.pool.used == RAM
    assert vm.platform.virtio_balloon.statistics[TOTAL] == total << 10
    balloon.set_target(PAGES)
    linux.go_on()

    assert linux.total("inflated") == total - 4 * PAGES
    assert (vm.pool.used, len(balloon.held)) == (RAM - PAGES, PAGES)
    assert vm.platform.virtio_balloon.actual == PAGES
    balloon.set_target(0)
    linux.go_on()

    assert linux.total("deflated") == total
    assert (len(balloon.held), vm.platform.virtio_balloon.actual) == (0, 0)
    deflated = vm.pool.used  # some of the pages have been used again already
    assert RAM - PAGES <= deflated < RAM - PAGES // 2
    linux.go_on()

    linux.total("with a file")
    with_file = vm.pool.used
    assert with_file - deflated > PAGES // 2
    linux.go_on()

    linux.total("without the file")
    assert with_file - vm.pool.used >= PAGES
    linux.go_on()

    linux.guest.run("5s")
    assert linux.guest.outcome is not None and linux.guest.outcome.ending is Ending.POWER_OFF
    assert hashlib.md5(busybox.read_bytes()).hexdigest() in linux.guest.console
    assert balloon.refused == 0
    vm.audit()
