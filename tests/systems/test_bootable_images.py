"""Boot loaders that others put on CDs and floppy disks, through the built-in BIOS and through SeaBIOS."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from emu.boot import packages
from emu.observe.outcome import Ending
from emu.session import boot_vm, run_vm
from tests.systems.conftest import fetched

BIOSES = ("built-in", "SeaBIOS")


def expect(text: str, guest: Path, bios: str, **options: object) -> None:
    """The guest prints ``text``."""
    if bios == "SeaBIOS":
        options["bios"] = fetched(packages.seabios)
    vm = boot_vm(guest, **options)  # type: ignore[arg-type]
    outcome = run_vm(vm, until=text, max_time=30 * 10**9)
    assert outcome.ending is Ending.UNTIL, bytes(vm.platform.console)[-2000:]


@pytest.mark.parametrize("bios", BIOSES)
def test_grub_on_a_cd(bios: str) -> None:
    expect("GNU/Linux", fetched(lambda: packages.grub_discs()[0]), bios)


@pytest.mark.parametrize("bios", BIOSES)
def test_grub_on_a_cd_as_a_hard_disk(bios: str) -> None:
    """The same image has an MBR, for USB sticks."""
    expect("GNU/Linux", fetched(lambda: packages.grub_discs()[0]), bios, as_="disk")


@pytest.mark.parametrize("bios", BIOSES)
def test_grub_on_a_floppy_disk(bios: str) -> None:
    expect("GNU GRUB", fetched(lambda: packages.grub_discs()[1]), bios, as_="floppy")


@pytest.mark.parametrize("bios", BIOSES)
def test_isolinux(bios: str, tmp_path: Path) -> None:
    if shutil.which("xorriso") is None:
        pytest.skip("xorriso is not installed")
    tree, image = tmp_path / "tree", tmp_path / "disc.iso"
    tree.mkdir()
    for file in fetched(packages.isolinux):  # type: ignore[arg-type]
        shutil.copy(file, tree)
    (tree / "isolinux.cfg").write_text("SAY It reads its configuration.\nPROMPT 1\n")
    options = ["-quiet", "-b", "isolinux.bin", "-c", "boot.cat", "-no-emul-boot", "-boot-load-size", "4"]
    command = ["xorriso", "-as", "mkisofs", *options, "-boot-info-table", "-o", str(image), str(tree)]
    subprocess.run(command, check=True, capture_output=True)
    expect("It reads its configuration.", image, bios)
