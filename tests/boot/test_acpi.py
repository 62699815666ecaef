"""The ACPI tables, found and read as a kernel does it, and taken apart by ACPICA's disassembler where there is one."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from emu.boot.acpi import Hardware, tables
from emu.devices.acpi_pm import SLP_TYP_S5
from emu.errors import BadInput

GPA = 0xE0000
PCI = tuple((slot, pin, (10, 10, 11, 11)[slot - 1 + pin & 3]) for slot in range(1, 32) for pin in range(4))
VIRTIO = ((0xD000_0000, 0x200, 16), (0xD000_0200, 0x200, 5))
HARDWARE = Hardware(pci_interrupts=PCI, virtio=VIRTIO)


class Tables:
    """What a kernel sees of them."""

    def __init__(self, hardware: Hardware = HARDWARE, gpa: int = GPA) -> None:
        self.gpa = gpa
        self.block = tables(gpa, hardware)
        signature, _, _, self.revision, self.rsdt, length, self.xsdt = struct.unpack_from("<8sB6sBIIQ", self.block)
        assert (signature, length) == (b"RSD PTR ", 36)
        assert sum(self.block[:20]) & 0xFF == sum(self.block[:36]) & 0xFF == 0
        self.found = {self.at(address)[:4]: self.at(address) for address in self.list(self.xsdt, "Q")}

    def at(self, gpa: int) -> bytes:
        """The table at an address, its checksum verified; the FACS has none."""
        offset = gpa - self.gpa
        (length,) = struct.unpack_from("<I", self.block, offset + 4)
        table = self.block[offset : offset + length]
        assert len(table) == length
        assert sum(table) & 0xFF == 0 or table[:4] == b"FACS"
        return table

    def list(self, gpa: int, form: str) -> list[int]:
        return [address for (address,) in struct.iter_unpack(f"<{form}", self.at(gpa)[36:])]

    def fadt(self, form: str, offset: int) -> int:
        value: int = struct.unpack_from(f"<{form}", self.found[b"FACP"], offset)[0]
        return value

    def dsdt(self) -> bytes:
        return self.at(self.fadt("I", 40))

    def madt(self) -> list[bytes]:
        entries, rest = [], self.found[b"APIC"][44:]
        while rest:
            entries.append(rest[: rest[1]])
            rest = rest[rest[1] :]
        return entries


def test_both_roots_list_the_same_tables() -> None:
    found = Tables()
    assert found.revision == 2
    assert found.list(found.rsdt, "I") == found.list(found.xsdt, "Q")
    assert list(found.found) == [b"FACP", b"APIC", b"HPET"]
    assert (found.at(found.rsdt)[:4], found.at(found.xsdt)[:4]) == (b"RSDT", b"XSDT")


def test_fadt() -> None:
    found = Tables()
    assert len(found.found[b"FACP"]) == 244
    assert found.fadt("H", 46) == 9, "SCI"
    assert [found.fadt("I", offset) for offset in (48, 56, 64, 76)] == [0, 0x600, 0x604, 0x608]
    assert [found.fadt("B", offset) for offset in (88, 89, 91)] == [4, 2, 4]
    assert found.fadt("I", 112) & (1 << 20 | 1 << 8 | 1 << 4) == 0, "not reduced, 24-bit timer, fixed power button"
    assert found.fadt("I", 112) >> 10 & 1
    assert struct.unpack_from("<BBBBQB", found.found[b"FACP"], 116) == (1, 8, 0, 1, 0xCF9, 0x0F)
    assert [found.fadt("Q", offset) for offset in (132, 140)] == [0, found.fadt("I", 40)]
    generic = [struct.unpack_from("<BBBBQ", found.found[b"FACP"], offset) for offset in (148, 172, 208)]
    assert generic == [(1, 32, 0, 2, 0x600), (1, 16, 0, 2, 0x604), (1, 32, 0, 3, 0x608)]


def test_facs() -> None:
    found = Tables()
    address = found.fadt("I", 36)
    assert address % 64 == 0
    facs = found.at(address)
    assert (facs[:4], len(facs), facs[32], sum(facs[8:32])) == (b"FACS", 64, 1, 0)


def test_madt() -> None:
    found = Tables()
    assert struct.unpack_from("<II", found.found[b"APIC"], 36) == (0xFEE00000, 1)
    assert found.madt() == [
        bytes((0, 8, 0, 0, 1, 0, 0, 0)),
        bytes((1, 12, 0, 0, 0, 0, 0xC0, 0xFE, 0, 0, 0, 0)),
        bytes((2, 10, 0, 0, 2, 0, 0, 0, 0, 0)),
        *(bytes((2, 10, 0, irq, irq, 0, 0, 0, 0xD, 0)) for irq in (5, 9, 10, 11)),
        bytes((4, 6, 0xFF, 0, 0, 1)),
    ]
    assert [entry[3] for entry in Tables(Hardware()).madt() if entry[0] == 2] == [0, 9]


def test_madt_lists_the_processors() -> None:
    madt = Tables(Hardware(cpus=16)).madt()
    assert madt[:16] == [bytes((0, 8, n, n, 1, 0, 0, 0)) for n in range(16)]
    assert madt[16:] == Tables(Hardware()).madt()[1:]


def test_hpet() -> None:
    table = Tables().found[b"HPET"]
    assert struct.unpack_from("<IBBBBQBHB", table, 36) == (0x8086A201, 0, 64, 0, 0, 0xFED00000, 0, 0, 0)
    without = Tables(Hardware(hpet=None))
    assert b"HPET" not in without.found
    assert b"HPET" not in without.dsdt()


def test_s5_is_what_the_power_management_block_takes() -> None:
    """Hobby kernels search the DSDT for the bytes of _S5_ and read the package behind them."""
    dsdt = Tables().dsdt()
    at = dsdt.index(b"_S5_")
    assert dsdt[at - 2 : at] == b"\x08\\"
    assert dsdt[at + 4] == 0x12
    length, count, first = dsdt[at + 5 : at + 8]
    assert (length, count, first) == (6, 4, SLP_TYP_S5)


def test_the_tables_can_lie_anywhere_below_4_gib() -> None:
    found = Tables(gpa=0x3FF_0000)
    assert found.fadt("I", 40) > 0x3FF_0000
    assert Tables().dsdt() == found.dsdt()
    for bad in (0xE0010, -64, (1 << 32) - 64, 1 << 32):
        with pytest.raises(BadInput, match="ACPI tables at"):
            tables(bad, HARDWARE)


@pytest.fixture(scope="module")
def disassembled(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The DSDT as source, after a trip through disassembler and compiler without a warning."""
    if shutil.which("iasl") is None:
        pytest.skip("iasl is missing (Debian package acpica-tools)")
    folder: Path = tmp_path_factory.mktemp("acpi")
    (folder / "dsdt.aml").write_bytes(Tables().dsdt())
    subprocess.run(["iasl", "-d", "dsdt.aml"], cwd=folder, check=True, capture_output=True)
    compiler = subprocess.run(["iasl", "dsdt.dsl"], cwd=folder, check=True, capture_output=True, text=True)
    assert "0 Errors, 0 Warnings" in compiler.stdout
    return " ".join((folder / "dsdt.dsl").read_text().split())


@pytest.mark.parametrize(
    "text",
    [
        "Name (\\_S5, Package (0x04)",
        "Method (\\_PIC, 1, NotSerialized) // _PIC: Interrupt Model { PICM = Arg0 }",
        'Name (_HID, EisaId ("PNP0A03") /* PCI Bus */)',
        'Name (_HID, EisaId ("PNP0501")',
        'Name (_HID, EisaId ("PNP0B00")',
        'Name (_HID, EisaId ("PNP0303")',
        'Name (_HID, EisaId ("PNP0F13")',
        'Name (_HID, EisaId ("PNP0103")',
        "IRQNoFlags () {4}",
        "IO (Decode16, 0x03F8, // Range Minimum 0x03F8, // Range Maximum 0x01, // Alignment 0x08, // Length )",
        "0xE0000000, // Range Minimum 0xFEBFFFFF, // Range Maximum 0x00000000, // Translation Offset 0x1EC00000,",
        "Package (0x04) { 0x001FFFFF, 0x03, Zero, 0x0A }",
        'Device (VR01) { Name (_HID, "LNRO0005") // _HID: Hardware ID Name (_UID, One)',
        "Memory32Fixed (ReadWrite, 0xD0000200, // Address Base 0x00000200, // Address Length )",
        "Interrupt (ResourceConsumer, Level, ActiveHigh, Exclusive, ,, ) { 0x00000005, }",
    ],
)
def test_iasl_reads_what_was_meant(disassembled: str, text: str) -> None:
    assert text in disassembled


@pytest.mark.parametrize("signature", [b"FACP", b"APIC", b"HPET"])
def test_iasl_reads_the_data_tables(tmp_path: Path, signature: bytes) -> None:
    if shutil.which("iasl") is None:
        pytest.skip("iasl is missing (Debian package acpica-tools)")
    (tmp_path / "table.dat").write_bytes(Tables().found[signature])
    run = subprocess.run(["iasl", "-d", "table.dat"], cwd=tmp_path, check=True, capture_output=True, text=True)
    source = (tmp_path / "table.dsl").read_text()
    assert f'Signature : "{signature.decode()}"' in source
    assert not any(word in run.stdout + run.stderr + source for word in ("nvalid", "ncorrect", "Unknown"))
