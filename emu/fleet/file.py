"""Fleet files: a plan for :class:`emu.fleet.Fleet` in TOML.  ``emu fleet --help`` shows one.

Everything that can be known to be wrong before a VM starts is found here.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from emu.addr import PAGE_SIZE
from emu.boot import firmware
from emu.boot.detect import detect
from emu.boot.loader import split_modules
from emu.devices.net import MAC, parse_net
from emu.dmm import catalog
from emu.errors import BadInput
from emu.fleet.fleet import QUANTUM, FleetPlan, VmPlan
from emu.fleet.steps import SHUTDOWN, Step
from emu.infile import read_input
from emu.machine.control import ACTIONS
from emu.machine.machine import Machine
from emu.options import DEFAULT_RAM, BootOptions, disk_options, floppy_options
from emu.units import format_size, parse_duration, parse_time, parse_whole_pages

_FILE = {"machine": dict, "vm": list}
_MACHINE = {"memory": str, "quantum": str, "max-time": str}
_VM = {
    "name": str, "guest": str, "count": int, "ram": str, "pool": str, "mmu": str, "cpus": int, "cpu": str,
    "quantum": str, "cpu-schedule": str, "policies": list, "append": str, "as": str, "initrd": str, "disks": list,
    "floppies": list, "cdrom": str, "devices": list, "net": str, "no-reboot": bool, "input": str, "start": str,
    "schedule": list,
}  # fmt: skip
_STEP = {
    "at": str, "pool": str, "balloon": str, "attach": str, "detach": str, "retire": int, "pin": int, "unpin": int,
    SHUTDOWN: bool,
}  # fmt: skip
_TYPES = {str: "text in quotes", int: "a number", bool: "true", list: "a list", dict: "a table"}
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")  # console files are called so
MOST_VMS = 1000
MOST_BYTES = 4 << 20  # of a fleet file


def load_fleet(path: str | Path) -> FleetPlan:
    """Read a fleet file.

    Raises:
        BadInput: it cannot be read, or says what cannot be; the line names the VM and the key.
    """
    path = Path(path)
    try:
        table = tomllib.loads(read_input(str(path), path, MOST_BYTES, named=False).decode())
    except ValueError as error:
        raise BadInput(str(path), f"is no TOML: {error}") from None
    except RecursionError:
        raise BadInput(str(path), "is no TOML: too many brackets within brackets") from None
    try:
        return _fleet(table, path.parent)
    except BadInput as error:
        raise BadInput(str(path), str(error)) from None


def input_files(plan: FleetPlan) -> list[str]:
    """The files that a plan names, which must not be overwritten."""
    named: list[str] = []
    for vm in plan.vms:
        named.append(str(vm.guest))
        named += [module.split(" ")[0] for module in split_modules(vm.options.initrd or "")]
        named += [disk_options(disk)[0] for disk in vm.options.disks]
        named += [floppy_options(disk)[0] for disk in vm.options.floppies]
        named += [] if vm.options.cdrom is None else [str(vm.options.cdrom)]
        net = vm.options.net_plan
        named += [] if net is None else [*net.inputs, *([net.log] if net.log is not None else ())]
        named += [str(vm.input)] if vm.input is not None else []
    return [name for name in dict.fromkeys(named) if name]


# Below, BadInput names the place in the file; load_fleet puts the file's name before it.


def _fleet(table: Mapping[str, Any], directory: Path) -> FleetPlan:
    _check_keys(table, _FILE, "file", {"machine", "vm"})
    machine = table["machine"]
    _check_keys(machine, _MACHINE, "[machine]", {"memory"})
    memory = _value("[machine] memory", parse_whole_pages, machine["memory"])
    quantum = _value("[machine] quantum", parse_duration, machine["quantum"]) if "quantum" in machine else QUANTUM
    max_time = _value("[machine] max-time", parse_duration, machine["max-time"]) if "max-time" in machine else None
    vms: list[VmPlan] = []
    for number, entry in enumerate(table["vm"], 1):
        vms += _vms(entry, number, directory)
    vms = [_with_address(vm, number) for number, vm in enumerate(vms)]
    names = [vm.name for vm in vms]
    for name in names:
        if names.count(name) > 1:
            raise BadInput(f"VM {name}", "there are two of this name")
    if not vms:
        raise BadInput("file", "there is no [[vm]]")
    _check_policy_files(vms)
    _check_logs(vms)
    _check_fit(vms, memory)
    return FleetPlan(memory, tuple(vms), quantum, max_time)


def _vms(entry: Any, number: int, directory: Path) -> list[VmPlan]:
    """The VMs of one [[vm]]: as many as its count."""
    place = f"[[vm]] {number}"
    if not isinstance(entry, dict):
        raise BadInput(place, "expected a table")
    if isinstance(entry.get("name"), str):
        place = f"VM {entry['name']}"
    _check_keys(entry, _VM, place, {"name", "guest"})
    name, count = entry["name"], entry.get("count")
    if not _NAME.fullmatch(name):
        raise BadInput(place, "name: expected letters, digits, dots, dashes and underscores")
    if count is not None and not 1 <= count <= MOST_VMS:
        raise BadInput(place, f"count: expected a number from 1 to {MOST_VMS}")
    try:
        plan = _plan(entry, directory)
    except BadInput as error:
        key = {"--schedule": "cpu-schedule", "--device": "devices"}.get(error.what, error.what.removeprefix("--"))
        raise BadInput(place, f"{key}: {error.reason}") from None
    names = [name] if count is None else [f"{name}-{index}" for index in range(count)]
    return [replace(plan, name=name) for name in names]


def _with_address(vm: VmPlan, number: int) -> VmPlan:
    """The VM with the given number in its fleet; its network card has an address of its own."""
    net = vm.options.net_plan
    if net is None or net.mac != MAC:
        return vm
    mac = (int.from_bytes(MAC, "big") + number).to_bytes(len(MAC), "big")
    return replace(vm, options=replace(vm.options, net=replace(net, mac=mac)))


def _plan(entry: Mapping[str, Any], directory: Path) -> VmPlan:
    """The VM of an entry, or one of its VMs; BadInput names the key, or the option of emu run."""
    guest: str | Path = entry["guest"]
    kind = entry.get("as")
    if kind is not None or guest not in firmware.guests():
        guest = directory / guest
    found = detect(guest, kind=kind)
    ram = _value("ram", parse_whole_pages, entry["ram"]) if "ram" in entry else found.ram or DEFAULT_RAM
    pool = _value("pool", parse_whole_pages, entry["pool"]) if "pool" in entry else None
    mmu = entry.get("mmu", "shadow")
    Machine.check_sizes(ram, ram if pool is None else pool, mmu)
    policies = _texts(entry, "policies")
    catalog.choose(policies)
    options = BootOptions(
        ram=ram,
        pool=pool,
        mmu=mmu,
        cpus=entry.get("cpus", 1),
        cpu=entry.get("cpu"),
        quantum=entry.get("quantum"),
        schedule=entry.get("cpu-schedule"),
        policies=policies,
        append=entry.get("append", ""),
        as_=kind,
        initrd=_initrd(entry["initrd"], directory) if "initrd" in entry else None,
        disks=tuple(str(directory / disk) for disk in _texts(entry, "disks")),
        floppies=tuple(str(directory / disk) for disk in _texts(entry, "floppies")),
        cdrom=str(directory / entry["cdrom"]) if "cdrom" in entry else None,
        devices=_texts(entry, "devices"),
        net=parse_net(entry["net"]).within(directory) if "net" in entry else None,
        no_reboot=entry.get("no-reboot", False),
    )
    start = _value("start", parse_time, entry["start"]) if "start" in entry else 0
    return VmPlan(
        entry["name"],
        guest,
        options,
        input=_existing(directory / entry["input"]) if "input" in entry else None,
        start=start,
        schedule=_schedule(entry.get("schedule", []), start, ram, mmu),
    )


def _schedule(entries: list[Any], start: int, ram: int, mmu: str) -> tuple[Step, ...]:
    steps = []
    for number, entry in enumerate(entries, 1):
        place = f"schedule, step {number}"
        if not isinstance(entry, dict):
            raise BadInput(place, 'expected a table, such as { at = "5ms", pool = "2M" }')
        _check_keys(entry, _STEP, place, {"at"})
        actions = [key for key in entry if key != "at"]
        if len(actions) != 1:
            raise BadInput(place, f"expected at and one of {', '.join([*ACTIONS, SHUTDOWN])}")
        (action,) = actions
        at, value = _value(f"{place}: at", parse_time, entry["at"]), entry[action]
        if at < start:
            raise BadInput(f"{place}: at", f"{entry['at']} is before the VM's start")
        try:
            _check_action(action, value, ram, mmu)
        except BadInput as error:
            raise BadInput(place, str(error).removeprefix("--")) from None
        steps.append(Step(at, action, value))
    return tuple(sorted(steps, key=lambda step: step.at))


def _check_action(action: str, value: Any, ram: int, mmu: str) -> None:
    if action == "pool":
        Machine.check_sizes(ram, _value("pool", parse_whole_pages, value), mmu)
    elif action == "balloon" and _value("balloon", parse_whole_pages, value) > ram:
        raise BadInput("balloon", f"{value} are more than the {format_size(ram)} of RAM")
    elif action == "attach":
        catalog.parse(value)
    elif action == "detach" and value not in catalog.POLICIES:
        raise BadInput("detach", f"{value!r} is none of the policies: {', '.join(catalog.POLICIES)}")
    elif action == "retire" and value < 1:
        raise BadInput("retire", "expected a number above 0")
    elif action == SHUTDOWN and not value:
        raise BadInput(SHUTDOWN, "expected true")


def _check_policy_files(vms: list[VmPlan]) -> None:
    """No two policies may write to one file."""
    users: dict[Path, str] = {}
    for vm in vms:
        attached = [str(step.value) for step in vm.schedule if step.action == "attach"]
        for choice in (catalog.parse(text) for text in (*vm.options.policies, *attached)):
            file = choice.options.get("file")
            if file is not None and users.setdefault(Path(file).absolute(), vm.name) != vm.name:
                other = users[Path(file).absolute()]
                raise BadInput(f"VM {vm.name}", f"policy {choice.name}: file {file} is that of {other} already")


def _check_logs(vms: list[VmPlan]) -> None:
    """No two networks may write to one file."""
    users: dict[Path, str] = {}
    for vm in vms:
        net = vm.options.net_plan
        if net is not None and net.log is not None:
            other = users.setdefault(Path(net.log).absolute(), vm.name)
            if other != vm.name:
                raise BadInput(f"VM {vm.name}", f"net: log={net.log} is that of {other} already")


def _check_fit(vms: list[VmPlan], memory: int) -> None:
    """What starts at once must fit together, and each other VM must fit by itself."""
    needed = {vm.name: _needed(vm.options) for vm in vms}
    for vm in vms:
        if needed[vm.name] > memory:
            what = f"its pool and shadow tables take {format_size(needed[vm.name])}"
            raise BadInput(f"VM {vm.name}", f"{what}, and [machine] memory is {format_size(memory)}")
    together = sum(needed[vm.name] - PAGE_SIZE for vm in vms if vm.start == 0) + PAGE_SIZE
    if together > memory:
        what = f"pools and shadow tables of the VMs that start at once take {format_size(together)}"
        raise BadInput("[machine] memory", f"{format_size(memory)} are too little, {what}")


def _needed(options: BootOptions) -> int:
    """Bytes of machine memory for a VM."""
    ram, pool = options.ram_bytes, options.pool_bytes
    assert ram is not None
    return Machine.size_for(ram, ram if pool is None else pool, options.mmu)


# --- values ---


def _check_keys(table: Mapping[str, Any], known: Mapping[str, type], place: str, required: set[str]) -> None:
    for key, value in table.items():
        if key not in known:
            raise BadInput(place, f"unknown key {key!r}; there are {', '.join(known)}")
        if type(value) is not known[key]:
            raise BadInput(place, f"{key}: expected {_TYPES[known[key]]} instead of {value!r}")
    for key in known:
        if key in required and key not in table:
            raise BadInput(place, f"{key} is missing")


def _value(place: str, parse: Callable[[str], int], text: str) -> int:
    try:
        return parse(text)
    except ValueError as error:
        raise BadInput(place, str(error)) from None


def _texts(entry: Mapping[str, Any], key: str) -> tuple[str, ...]:
    values = entry.get(key, [])
    if not all(isinstance(value, str) for value in values):
        raise BadInput(key, "expected a list of texts in quotes")
    return tuple(values)


def _initrd(value: str, directory: Path) -> str:
    """The option's value with the directory before each of its files."""
    modules = [str(directory / module) if module else module for module in split_modules(value)]
    return ",".join(module.replace(",", ",,") for module in modules)


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise BadInput("input", f"{path} is no file")
    return path
