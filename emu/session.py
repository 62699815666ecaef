"""From a guest's name to a running VM, and from there to an outcome: what the command line, tests and benchmarks use.

::

    vm = boot_vm("hello")
    outcome = run_vm(vm, until="protected mode")
    print(outcome.sentence, outcome.status)
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from emu.addr import PAGE_SHIFT, PAGE_SIZE
from emu.boot.detect import Found, detect
from emu.boot.guest import Guest
from emu.boot.kinds import DISK_KINDS, Kind
from emu.boot.make import make_guest
from emu.devices import layout
from emu.devices.disc import Disc
from emu.devices.disk import Disk
from emu.devices.floppy import FloppyDisk
from emu.devices.net import make_net
from emu.devices.parts import Parts
from emu.devices.vbe import MEMORY_SIZE
from emu.dmm import catalog
from emu.dmm.errors import OutOfFrames, StoreError, StoreFull
from emu.engine.cpustate import EFER_LMA
from emu.errors import BadInput
from emu.machine.machine import Machine
from emu.machine.schedule import DEFAULT_QUANTUM, Schedule
from emu.machine.vm import Stop, VirtualMachine
from emu.observe.console import ConsoleWatch
from emu.observe.outcome import STATUS_CRASH, STATUS_FAULT, STATUS_LIMIT, STATUS_RESET, STATUS_SUCCESS, Ending, Outcome
from emu.options import DEFAULT_RAM, BootOptions, disk_options, floppy_options
from emu.units import format_size


def boot_vm(
    guest: str | Path | Guest,
    options: BootOptions | None = None,
    *,
    name: str = "vm0",
    machine: Machine | None = None,
    **keywords: Any,
) -> VirtualMachine:
    """A VM with a guest in it, before its first instruction.

    Args:
        guest: a name from ``emu guests``, a file (:mod:`emu.boot.detect`), or a guest made by hand.
        options: how to boot it.
        name: the VM's name, which its events carry.
        machine: where to make it; by default a machine that is just large enough.
        keywords: fields of :class:`emu.options.BootOptions`, in the place of those in ``options``:
            ``boot_vm("hello", ram="2M", mmu="nested")``.

    Raises:
        BadInput: one of them cannot be used.
        TypeError: there is no such option.
    """
    options = replace(options or BootOptions(), **keywords)
    choices = catalog.choose(options.policies)
    found = None
    if not isinstance(guest, Guest):
        found = detect(guest, options.load, options.as_, for_bios=options.bios is not None)
    if options.bios is not None and (found is None or found.kind not in DISK_KINDS):
        raise BadInput("--bios", "the guest must be a disk image, which the BIOS then boots")
    ram = options.ram_bytes
    if ram is None:
        ram = found.ram if found and found.ram else DEFAULT_RAM
    wanted = ram if options.pool_bytes is None else options.pool_bytes
    Machine.check_sizes(ram, wanted, options.mmu)
    if not isinstance(guest, Guest):
        assert found is not None
        guest = _load(found, ram, options)
    above_ram = len(guest.image.gfns_outside(layout.ram_ranges(ram))) * PAGE_SIZE  # a ROM has frames, too
    pool = wanted + above_ram if options.pool is None else wanted
    alone = machine is None
    if machine is None:
        machine = _machine_for(ram, pool, wanted, options)
    parts = _parts(found, options)
    schedule = Schedule(DEFAULT_QUANTUM if options.quantum_ns is None else options.quantum_ns, options.seed)
    vm = machine.create_vm(name, ram, pool, options.mmu, parts, options.cpus, schedule, options.cpu)
    if options.pool is None and alone:
        vm.memory.reserve = MEMORY_SIZE >> PAGE_SHIFT
    vm.restarts = not options.no_reboot
    try:
        vm.boot(guest)
        if vm.cpu.efer & EFER_LMA and "lm" not in vm.model.features:
            raise BadInput("--cpu", f"{options.cpu} has no 64-bit mode, which the guest starts in")
        if options.audit:
            vm.audit_every_change()
        for choice in choices:
            try:
                vm.attach(choice.make(guest.image))
            except OutOfFrames as error:
                reason = f"{format_size(pool)} is too small to start with --policy {choice.name}"
                raise BadInput("--pool", reason) from error
    except BaseException:
        vm.close()
        raise
    vm.platform.uart.offer(options.serial_input)
    return vm


def _load(found: Found, ram: int, options: BootOptions) -> Guest:
    """The guest that was found, ready for a VM with ``ram`` bytes."""
    if options.bios is None:
        return make_guest(
            found, ram, append=options.append, load=options.load, initrd=options.initrd, cpus=options.cpus
        )
    from emu.boot.bios import rom_guest

    return rom_guest(Path(options.bios), ram)


def _machine_for(ram: int, pool: int, wanted: int, options: BootOptions) -> Machine:
    """A machine just large enough; ``wanted`` is the pool without the frames of a ROM."""
    size = Machine.size_for(ram, pool, options.mmu)
    host = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if size > host:
        reason = f"{format_size(wanted)} and what maps it do not fit into the {host >> 20}M of this host"
        raise BadInput("--ram" if options.pool is None else "--pool", reason)
    return Machine(size + (MEMORY_SIZE if options.pool is None else 0))  # untouched, it costs nothing


def _parts(found: Found | None, options: BootOptions) -> Parts:
    """What is plugged in: a guest that is a disk image, in the drive from which it is booted, and the options'."""
    disks, floppies, cdrom, boot_order = [*options.disks], [*options.floppies], options.cdrom, "cad"
    if found is not None and found.kind is Kind.FLOPPY:
        floppies.insert(0, found.path)
        boot_order = "acd"
    elif found is not None and found.kind is Kind.CD:
        if cdrom is not None:
            raise BadInput("--cdrom", f"{found.name} is in the drive already")
        cdrom, boot_order = found.path, "dca"
    elif found is not None and found.kind in DISK_KINDS:
        disks.insert(0, found.path)
    with ExitStack() as opened:  # closes them again when one cannot be had

        def image(path: str | Path, writable: bool) -> Disk:
            return opened.enter_context(closing(Disk(path, writable)))

        named = [disk_options(disk) for disk in disks]
        ide = [image(path, writable) for path, is_virtio, writable in named if not is_virtio]
        virtio = [image(path, writable) for path, is_virtio, writable in named if is_virtio]
        if len(virtio) > 1:
            raise BadInput("--disk", f"{len(virtio)} virtio disks, there is a place for one")
        floppy_disks = [FloppyDisk(*floppy_options(floppy)) for floppy in floppies]
        disc = None if cdrom is None else Disc(cdrom)
        net = None if options.net_plan is None else make_net(options.net_plan)
        opened.pop_all()
    return Parts(ide, virtio[0] if virtio else None, options.devices, floppy_disks, disc, boot_order, net)


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
        return Outcome(Ending.RESET, STATUS_RESET, "the guest reset the machine")
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


NO_THREADS = "this host allows no thread for it (ulimit -u); --max-time needs none"


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
        try:
            timer.start()
        except RuntimeError:
            raise BadInput("--timeout", NO_THREADS) from None
    try:
        yield alarm
    finally:
        if timer:
            timer.cancel()
