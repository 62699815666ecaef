"""From a guest's name to a running VM, and from there to an outcome: what the command line, tests and benchmarks use.

::

    vm = boot_vm("hello")
    outcome = run_vm(vm, until="protected mode")
    print(outcome.sentence, outcome.status)
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from emu.addr import PAGE_SIZE
from emu.boot.detect import DISK_KINDS, detect, make_guest
from emu.boot.guest import Guest
from emu.devices import layout
from emu.devices.disk import Disk
from emu.dmm import catalog
from emu.dmm.errors import OutOfFrames, StoreError, StoreFull
from emu.errors import BadInput
from emu.machine.machine import Machine
from emu.machine.vm import Stop, VirtualMachine
from emu.observe.console import ConsoleWatch
from emu.observe.outcome import STATUS_CRASH, STATUS_FAULT, STATUS_LIMIT, STATUS_SUCCESS, Ending, Outcome
from emu.units import format_size, parse_size

DEFAULT_RAM = 64 << 20  # bytes


def boot_vm(
    guest: str | Path | Guest,
    *,
    ram: int | str | None = None,
    pool: int | str | None = None,
    mmu: str = "shadow",
    policies: Sequence[str] = (),
    append: str = "",
    load: int | None = None,
    initrd: str | None = None,
    disks: Sequence[str | Path] = (),
    bios: str | Path | None = None,
    serial_input: bytes = b"",
    audit: bool = False,
    name: str = "vm0",
    machine: Machine | None = None,
) -> VirtualMachine:
    """A VM with a guest in it, before its first instruction.

    Args:
        guest: a name from ``emu guests``, a file (:mod:`emu.boot.detect`), or a guest made by hand.
        ram: guest memory, in bytes or as text like "64M"; by default what ``emu guests`` says, or 64M for a file.
        pool: machine memory that it may use, the same way; as much as ``ram`` by default.
        mmu: paging architecture, "shadow" or "nested".
        policies: as ``--policy`` takes them; demand paging by default.
        append: the guest's command line.
        load: gpa of a flat binary.
        initrd: a Linux kernel's initial RAM disk, or a multiboot kernel's modules (:func:`emu.boot.detect.make_guest`).
        disks: raw disk images, up to two IDE drives and one virtio block device, as :func:`disk_options` reads them.
            A guest that is a disk image goes before them.
        bios: a ROM image to start in; the guest, which must be a disk image then, is the first disk.
        serial_input: bytes that wait at the serial port until the guest looks for them.
        audit: check every invariant after every change of the mapping.
        name: the VM's name, which its events carry.
        machine: where to make it; by default a machine that is just large enough.

    Raises:
        BadInput: one of them cannot be used.
    """
    choices = catalog.choose(policies)
    found = None if isinstance(guest, Guest) else detect(guest, load)
    if bios is not None and (found is None or found.kind not in DISK_KINDS):
        raise BadInput("--bios", "the guest must be a disk image, which the BIOS then boots")
    if ram is None:
        ram = found.ram if found and found.ram else DEFAULT_RAM
    ram = _size("--ram", ram)
    pool_is_ram = pool is None
    wanted = ram if pool is None else _size("--pool", pool)
    Machine.check_sizes(ram, wanted, mmu)
    if not isinstance(guest, Guest):
        assert found is not None
        if found.kind in DISK_KINDS:
            disks = [found.path, *disks]
        if bios is not None:
            from emu.boot.bios import rom_guest

            guest = rom_guest(Path(bios), ram)
        else:
            guest = make_guest(found, ram, append=append, load=load, initrd=initrd)
    above_ram = len(guest.image.gfns_outside(layout.ram_ranges(ram))) * PAGE_SIZE  # a ROM has frames, too
    pool = wanted + above_ram if pool is None else wanted
    if machine is None:
        size = Machine.size_for(ram, pool, mmu)
        host = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        if size > host:
            reason = f"{format_size(wanted)} and what maps it do not fit into the {host >> 20}M of this host"
            raise BadInput("--ram" if pool_is_ram else "--pool", reason)
        machine = Machine(size)
    parts_of_disks = [disk_options(disk) for disk in disks]
    ide = [Disk(path, writable) for path, is_virtio, writable in parts_of_disks if not is_virtio]
    virtio = [Disk(path, writable) for path, is_virtio, writable in parts_of_disks if is_virtio]
    if len(virtio) > 1:
        raise BadInput("--disk", f"{len(virtio)} virtio disks, there is a place for one")
    vm = machine.create_vm(name, ram, pool, mmu, ide, virtio[0] if virtio else None)
    try:
        vm.boot(guest)
        if audit:
            vm.audit_every_change()
        for choice in choices:
            try:
                vm.attach(choice.make(guest.image))
            except OutOfFrames as error:
                reason = f"{format_size(pool)} is too small to start with --policy {choice.name}"
                raise BadInput("--pool", reason) from error
    except BaseException:
        machine.remove_vm(vm)
        raise
    vm.platform.uart.offer(serial_input)
    return vm


def disk_options(disk: str | Path) -> tuple[str, bool, bool]:
    """The parts of "FILE[,virtio][,writable]": the file, whether it is a virtio device, whether the file is written to.

    Without ``writable`` the file is never changed: what the guest writes is kept in memory.
    """
    path, virtio, writable = str(disk), False, False
    while True:
        if path.endswith(",virtio"):
            path, virtio = path.removesuffix(",virtio"), True
        elif path.endswith(",writable"):
            path, writable = path.removesuffix(",writable"), True
        else:
            return path, virtio, writable


def _size(option: str, size: int | str) -> int:
    if isinstance(size, int):
        return size
    try:
        return parse_size(size)
    except ValueError as error:
        raise BadInput(option, str(error)) from None


def run_vm(
    vm: VirtualMachine, *, until: str | None = None, max_time: int | None = None, timeout: float | None = None
) -> Outcome:
    """Run a VM to an end.  After UNTIL, MAX_TIME, TIMEOUT and STOPPED it can be run on.

    Args:
        until: text; the run ends as soon as the guest has printed it, counting from now.
        max_time: virtual time in ns, counting from now.
        timeout: wall time in s.  What the guest did until then differs from run to run; use it as a safety net.

    Raises:
        Exception: a fault of emu or of a policy (:meth:`emu.machine.vm.VirtualMachine.run`).
    """
    with _stop_at(vm, until) as watch, _alarm(vm, timeout) as alarm:
        try:
            stop = vm.run(None if max_time is None else vm.now + max_time)
        except MEMORY_ERRORS as error:
            return outcome_of_error(error)
        if watch is not None and watch.end is not None:
            return Outcome(Ending.UNTIL, STATUS_SUCCESS, f"the console printed {until!r}")
        if stop == Stop.REQUESTED and alarm.rang:
            return Outcome(Ending.TIMEOUT, STATUS_LIMIT, "the limit in wall time was reached")
        return outcome_of(vm, stop)


MEMORY_ERRORS = (OutOfFrames, StoreError)
"""What :meth:`emu.machine.vm.VirtualMachine.run` raises for want of memory, or of what was in it."""


def outcome_of_error(error: OutOfFrames | StoreError) -> Outcome:
    """What one of MEMORY_ERRORS means."""
    if isinstance(error, OutOfFrames):
        return Outcome(Ending.OUT_OF_FRAMES, STATUS_LIMIT, str(error))
    if isinstance(error, StoreFull):
        return Outcome(Ending.STORE_FULL, STATUS_LIMIT, str(error))
    return Outcome(Ending.STORE_FAILED, STATUS_FAULT, str(error))


def outcome_of(vm: VirtualMachine, stop: Stop) -> Outcome:
    """What a return of :meth:`emu.machine.vm.VirtualMachine.run` means."""
    if stop == Stop.EXIT:
        value = vm.exit_value or 0
        # a process has eight bits of status; QEMU's isa-debug-exit loses the others too
        return Outcome(Ending.EXIT, (value << 1 | 1) & 0xFF, f"the guest wrote {value} to the exit port")
    if stop == Stop.POWER_OFF:
        return Outcome(Ending.POWER_OFF, STATUS_SUCCESS, "the guest switched the machine off")
    if stop == Stop.RESET:
        return Outcome(Ending.RESET, STATUS_SUCCESS, "the guest reset the machine")
    if stop == Stop.CRASH:
        return Outcome(Ending.CRASH, STATUS_CRASH, "the guest crashed: triple fault")
    if stop == Stop.HALTED:
        return Outcome(Ending.HALTED, STATUS_LIMIT, "the guest halted, and nothing can ever wake it")
    if stop == Stop.DEADLINE:
        return Outcome(Ending.MAX_TIME, STATUS_LIMIT, "the limit in virtual time was reached")
    return Outcome(Ending.STOPPED, STATUS_LIMIT, "the run was stopped")


@contextmanager
def _stop_at(vm: VirtualMachine, text: str | None) -> Iterator[ConsoleWatch | None]:
    """Stop a VM as soon as it has printed ``text``."""
    watch = ConsoleWatch(vm, text.encode(), vm.request_stop) if text else None
    try:
        yield watch
    finally:
        if watch is not None:
            watch.close()


class _Alarm:
    """Stops a VM from another thread when its wall time is over."""

    def __init__(self, vm: VirtualMachine) -> None:
        self.rang = False
        self._vm = vm

    def ring(self) -> None:
        self.rang = True
        self._vm.request_stop()


@contextmanager
def _alarm(vm: VirtualMachine, timeout: float | None) -> Iterator[_Alarm]:
    alarm = _Alarm(vm)
    timer = threading.Timer(timeout, alarm.ring) if timeout is not None else None
    if timer:
        timer.daemon = True
        timer.start()
    try:
        yield alarm
    finally:
        if timer:
            timer.cancel()
