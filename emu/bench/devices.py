"""Group ``devices``: accesses to device registers by a guest, and how fast disks move."""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path

from emu.bench.harness import Case, Round, timed
from emu.bench.longmode import (
    APIC_WINDOW,
    DATA,
    DEVICE_WINDOW,
    VIRTIO_GPA,
    VIRTIO_WINDOW,
    assemble,
    long_mode_vm,
    restart,
)
from emu.devices import layout, virtio_mmio
from emu.machine.vm import VirtualMachine

_ACCESSES = 20_000
_COMMANDS, _SECTORS = 8, 256  # reads, and sectors of each
_REQUESTS, _REQUEST_SIZE, _PAGE = 100, 128 << 10, 4096  # virtio reads, and bytes of each, in pages
_MEGABYTE = 1e6

_APIC, _HPET = APIC_WINDOW, DEVICE_WINDOW + layout.HPET - layout.IO_APIC  # gvas


def _port(name: str, port: int, access: str = "in al, dx") -> tuple[str, str]:
    return name, f"xor eax, eax; mov edx, {port}; l: {access}; dec ecx; jnz l; hlt"


def _memory(name: str, gva: int, access: str = "mov eax, [rsi]") -> tuple[str, str]:
    return name, f"xor eax, eax; mov rsi, {gva}; l: {access}; dec ecx; jnz l; hlt"


REGISTERS = (
    _memory("load of the local APIC's ID", _APIC + 0x20),
    _memory("load of the APIC timer's count", _APIC + 0x390),
    _memory("store to the APIC's TPR", _APIC + 0x80, "mov [rsi], eax"),
    _memory("store to the APIC's EOI", _APIC + 0xB0, "mov [rsi], eax"),
    _memory("load of the HPET's counter", _HPET + 0xF0),
    _memory("load of an I/O APIC register", DEVICE_WINDOW + 0x10),
    _port("IN from the PM timer", layout.ACPI_PM_PORT + 8, "in eax, dx"),
    _port("IN from the PIT's counter 2", layout.PIT_PORT + 2),
    _port("IN from port 0x61", layout.SYSTEM_CONTROL_PORT),
    _port("IN from the 8259's mask", layout.PIC_MASTER_PORT + 1),
    _port("OUT of an EOI to the 8259", layout.PIC_MASTER_PORT, "mov al, 0x20; out dx, al"),
    _port("IN from the UART's line status", layout.COM1_PORT + 5),
    _port("OUT to the UART", layout.COM1_PORT, "out dx, al"),
    _port("OUT to port 0x80", layout.POST_PORT, "out dx, al"),
)


def _outputs() -> str:
    """READ SECTORS of 256 sectors from LBA 0."""
    registers = zip(range(0x1F2, 0x1F8), (0, 0, 0, 0, 0xE0, 0x20), strict=True)
    return "".join(f"mov dx, {port}; mov al, {value}; out dx, al;" for port, value in registers)


IDE_READ = (
    f"l: {_outputs()} mov ebx, {_SECTORS};"
    f"s: mov dx, 0x1F7; in al, dx; test al, 8; jz s; mov rdi, {DATA}; push rcx; mov ecx, 128; mov dx, 0x1F0;"
    "rep insd; pop rcx; dec ebx; jnz s; dec ecx; jnz l; hlt"
)


def _accesses(source: str, ask_devices: bool) -> Round:
    vm = long_mode_vm(assemble(source), "nested")
    vm.native.ask_devices = int(ask_devices)
    restart(vm, 1)
    return lambda: timed(lambda: restart(vm, _ACCESSES), _ACCESSES)


def _ide(image: Path) -> Round:
    vm = long_mode_vm(assemble(IDE_READ), "nested", disks=[image])
    restart(vm, 1)
    moved = _COMMANDS * _SECTORS * 512
    return lambda: 1 / timed(lambda: restart(vm, _COMMANDS), moved)


def _store(vm: VirtualMachine, offset: int, value: int) -> None:
    vm.platform.mmio.write(layout.virtio_slots()[-1][0] + offset, 4, value)


def _virtio(image: Path) -> Round:
    """One request for ever again, laid out as a driver does: the guest makes it available and notifies the device."""
    registers = VIRTIO_WINDOW + layout.virtio_slots()[-1][0] - VIRTIO_GPA
    notify = f"mov rsi, {registers + virtio_mmio.QUEUE_NOTIFY}; mov rdi, {DATA + 0x1002};"
    vm = long_mode_vm(
        assemble(f"{notify} l: inc word ptr [rdi]; mov dword ptr [rsi], 0; dec ecx; jnz l; hlt"),
        "nested",
        disks=[f"{image},virtio"],
    )
    ring, driver, device, header, status = DATA, DATA + 0x1000, DATA + 0x2000, DATA + 0x3000, DATA + 0x3800
    pages = _REQUEST_SIZE // _PAGE
    chain = [(header, 16, 1), *((DATA + 0x10000 + i * _PAGE, _PAGE, 3) for i in range(pages)), (status, 1, 2)]
    for number, (gpa, size, flags) in enumerate(chain):
        vm.memory.write(ring + 16 * number, struct.pack("<QIHH", gpa, size, flags, number + 1))
    vm.memory.write(header, struct.pack("<IIQ", 0, 0, 0))
    for offset, value in (
        (virtio_mmio.STATUS, 0), (virtio_mmio.STATUS, 3), (virtio_mmio.DRIVER_FEATURES_SELECT, 1),
        (virtio_mmio.DRIVER_FEATURES, 1), (virtio_mmio.STATUS, 11), (virtio_mmio.QUEUE_SIZE, 64), (0x80, ring),
        (0x90, driver), (0xA0, device), (virtio_mmio.QUEUE_READY, 1), (virtio_mmio.STATUS, 15),
    ):  # fmt: skip
        _store(vm, offset, value)

    def requests() -> None:
        restart(vm, _REQUESTS)
        if vm.memory.read(status, 1) != b"\0" or vm.memory.read(device + 2, 2) != vm.memory.read(driver + 2, 2):
            raise AssertionError("the requests were not carried out")

    return lambda: 1 / timed(requests, _REQUESTS * _REQUEST_SIZE)


def cases() -> Iterator[Case]:
    """Register accesses in us, disks in MB/s."""
    for name, source in REGISTERS:
        sides = _accesses(source, ask_devices=False), _accesses(source, ask_devices=True)
        yield Case("devices", name, *sides, "the devices in Python", scale=1e6, unit="us")
    with tempfile.TemporaryDirectory() as directory:
        image = Path(directory) / "disk.img"
        image.write_bytes(bytes(range(256)) * 4096)
        yield Case("devices", "IDE disk, PIO reads", _ide(image), scale=1 / _MEGABYTE, unit="MB/s")
        yield Case("devices", "virtio disk, 128K reads", _virtio(image), scale=1 / _MEGABYTE, unit="MB/s")
