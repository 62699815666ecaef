"""Fleet files: what they say arrives in the plan, and what cannot be is one line with the VM and the key."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from emu.boot import firmware
from emu.commands import fleet as commands_fleet
from emu.errors import BadInput
from emu.fleet.file import input_files, load_fleet
from emu.fleet.fleet import FleetPlan, VmPlan
from emu.fleet.steps import Step
from emu.options import BootOptions

MB = 1 << 20
VM = '[[vm]]\nname = "a"\nguest = "hello"\n'
MACHINE = '[machine]\nmemory = "16M"\n'


def load(tmp_path: Path, text: str) -> FleetPlan:
    path = tmp_path / "fleet.toml"
    path.write_text(text)
    return load_fleet(path)


def test_everything_arrives(tmp_path: Path) -> None:
    (tmp_path / "kernel.s").write_text(".code16\nhlt\n")
    (tmp_path / "keys").write_text("x")
    plan = load(
        tmp_path,
        """
        [machine]
        memory = "32M"
        quantum = "200us"
        max-time = "2s"
        [[vm]]
        name = "k"
        count = 2
        guest = "kernel.s"
        ram = "8M"
        pool = "1M"
        mmu = "nested"
        cpus = 4
        cpu = "Nehalem,+smap"
        quantum = "50us"
        cpu-schedule = "seed=7"
        policies = ["swap:victims=fifo", "share"]
        append = "one two"
        as = "source"
        disks = ["d.img,virtio,writable"]
        floppies = ["f.img"]
        cdrom = "c.iso"
        initrd = "m1 arg,m2"
        input = "keys"
        start = "3ms"
        schedule = [
          { at = "9ms", shutdown = true },
          { at = "5ms", pool = "2M" },
          { at = "5ms", balloon = "64K" },
          { at = "6ms", attach = "balloon:target=4" },
          { at = "7ms", detach = "share" },
          { at = "8ms", retire = 3 },
        ]
        [[vm]]
        name = "h"
        guest = "hello"
        """,
    )
    assert (plan.memory, plan.quantum, plan.max_time) == (32 * MB, 200_000, 2_000_000_000)
    k, other, h = plan.vms
    ms = 1_000_000
    assert k == VmPlan(
        "k-0", tmp_path / "kernel.s",
        BootOptions(
            ram=8 * MB, pool=MB, mmu="nested", cpus=4, cpu="Nehalem,+smap", quantum="50us", schedule="seed=7",
            policies=("swap:victims=fifo", "share"), append="one two", as_="source",
            initrd=f"{tmp_path}/m1 arg,{tmp_path}/m2",
            disks=(f"{tmp_path}/d.img,virtio,writable",), floppies=(f"{tmp_path}/f.img",), cdrom=f"{tmp_path}/c.iso",
        ),
        tmp_path / "keys", 3 * ms,
        (
            Step(5 * ms, "pool", "2M"), Step(5 * ms, "balloon", "64K"), Step(6 * ms, "attach", "balloon:target=4"),
            Step(7 * ms, "detach", "share"), Step(8 * ms, "retire", 3), Step(9 * ms, "shutdown", True),
        ),
    )  # fmt: skip
    assert other.name == "k-1"
    assert h == VmPlan("h", "hello", BootOptions(ram=firmware.guests()["hello"].ram_bytes))
    names = ("kernel.s", "m1", "m2", "d.img", "f.img", "c.iso", "keys")
    assert input_files(plan) == [str(tmp_path / name) for name in names] + ["hello"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[machine", "is no TOML"),
        (MACHINE, "file: vm is missing"),
        (VM, "file: machine is missing"),
        (f"x = 1\n{MACHINE}{VM}", "file: unknown key 'x'; there are machine, vm"),
        (f"vm = []\n{MACHINE}", "file: there is no [[vm]]"),
        (f"vm = [1]\n{MACHINE}", "[[vm]] 1: expected a table"),
        (f'[machine]\nmemory = "x"\n{VM}', "[machine] memory: not a size: 'x'"),
        (f'[machine]\nmemory = "5K"\n{VM}', "[machine] memory: 5K is not a multiple of 4K"),
        (f"[machine]\nmemory = 5\n{VM}", "[machine]: memory: expected text in quotes instead of 5"),
        (f'{MACHINE}quantum = "0ms"\n{VM}', "[machine] quantum: expected a time above 0"),
        (f'{MACHINE}max-time = "1"\n{VM}', "[machine] max-time: not a virtual time"),
        (f'[machine]\nmemory = "1M"\n{VM}', "VM a: its pool and shadow tables take"),
        (f'[machine]\nmemory = "2M"\n{VM}count = 2', "[machine] memory: 2M are too little"),
        (f'{MACHINE}[[vm]]\nguest = "hello"', "[[vm]] 1: name is missing"),
        (f'{MACHINE}[[vm]]\nname = "a"', "VM a: guest is missing"),
        (f"{MACHINE}{VM}{VM}", "VM a: there are two of this name"),
        (f'{MACHINE}[[vm]]\nname = "../a"\nguest = "hello"', "VM ../a: name: expected letters"),
        (f'{MACHINE}[[vm]]\nname = "a"\nguest = "helo"', "there is neither a guest of this name nor such a file"),
        (f"{MACHINE}{VM}count = 0", "VM a: count: expected a number from 1"),
        (f"{MACHINE}{VM}count = true", "VM a: count: expected a number instead of True"),
        (f"{MACHINE}{VM}pools = 1", "VM a: unknown key 'pools'; there are name, "),
        (f'{MACHINE}{VM}pool = "2M"', "VM a: pool: 2M is more than the 1M of RAM it would back"),
        (f'{MACHINE}{VM}mmu = "x"', "VM a: mmu: 'x' is not one of shadow, nested"),
        (f"{MACHINE}{VM}cpu = 'Z80'", "VM a: cpu: no model 'Z80'; there are 486,"),
        (f"{MACHINE}{VM}cpus = 17", "VM a: cpus: 17: expected a number of processors from 1 to 16"),
        (f'{MACHINE}{VM}quantum = "0us"', "VM a: quantum: expected a time above 0"),
        (f'{MACHINE}{VM}cpu-schedule = "7"', "VM a: cpu-schedule: '7': expected seed=N"),
        (f'{MACHINE}{VM}policies = ["swop"]', "VM a: policy: 'swop' is none of the policies"),
        (f"{MACHINE}{VM}policies = [1]", "VM a: policies: expected a list of texts"),
        (f'{MACHINE}{VM}input = "none"', "VM a: input: "),
        (f'{MACHINE}{VM}as = "x"', "VM a: as: 'x' is no kind of guest; there are source, "),
        (f'{MACHINE}{VM}start = "soon"', "VM a: start: not a virtual time: 'soon'"),
        (f"{MACHINE}{VM}schedule = [1]", "VM a: schedule, step 1: expected a table"),
        (f'{MACHINE}{VM}schedule = [{{ pool = "1M" }}]', "schedule, step 1: at is missing"),
        (f'{MACHINE}{VM}schedule = [{{ at = "1ms" }}]', "schedule, step 1: expected at and one of pool, balloon"),
        (f'{MACHINE}{VM}schedule = [{{ at = "1ms", pool = "1M", retire = 1 }}]', "expected at and one of"),
        (f'{MACHINE}{VM}schedule = [{{ at = "1ms", pool = "2M" }}]', "step 1: pool: 2M is more than the 1M of RAM"),
        (f'{MACHINE}{VM}schedule = [{{ at = "1ms", balloon = "2M" }}]', "step 1: balloon: 2M are more than the 1M"),
        (f'{MACHINE}{VM}schedule = [{{ at = "1ms", attach = "x" }}]', "step 1: policy: 'x' is none of the policies"),
        (f'{MACHINE}{VM}schedule = [{{ at = "1ms", detach = "x" }}]', "step 1: detach: 'x' is none of the policies"),
        (f'{MACHINE}{VM}schedule = [{{ at = "1ms", retire = 0 }}]', "step 1: retire: expected a number above 0"),
        (f'{MACHINE}{VM}schedule = [{{ at = "1ms", shutdown = false }}]', "step 1: shutdown: expected true"),
        (f'{MACHINE}{VM}start = "2ms"\nschedule = [{{ at = "1ms", retire = 1 }}]', "1ms is before the VM's start"),
    ],
)
def test_what_cannot_be_is_one_line(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(BadInput) as raised:
        load(tmp_path, text)
    message = str(raised.value)
    assert message.startswith(f"{tmp_path}/fleet.toml: ") and says in message and "\n" not in message


@pytest.mark.parametrize("place", ["help", "README"])
def test_the_examples_that_people_are_shown_are_good(tmp_path: Path, place: str) -> None:
    readme = Path(__file__).parents[2] / "README.md"
    text = (commands_fleet.__doc__ or "") if place == "help" else readme.read_text(encoding="utf-8")
    begin = text.index("[machine]\n")
    indent = begin - text.rindex("\n", 0, begin) - 1
    lines = text[begin - indent :].splitlines()
    end = next(number for number, line in enumerate(lines) if line and not line.startswith(" " * indent))
    assert load(tmp_path, textwrap.dedent("\n".join(lines[:end]))).vms


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="cannot be read: No such file"):
        load_fleet(tmp_path / "none.toml")


def test_the_files_that_come_with_emu_are_good() -> None:
    files = sorted((firmware.firmware_directory() / "fleets").glob("*.toml"))
    assert files
    for file in files:
        load_fleet(file)


@pytest.mark.parametrize("policy", ["swap:file=s", "record:file=t"])
def test_no_two_vms_write_to_one_file(policy: str, tmp_path: Path) -> None:
    file = tmp_path / "fleet.toml"
    file.write_text(
        f'[machine]\nmemory = "16M"\n[[vm]]\nname = "a"\nguest = "hello"\ncount = 2\npolicies = ["{policy}"]\n'
    )
    with pytest.raises(BadInput, match=r"VM a-1: policy \w+: file . is that of a-0 already"):
        load_fleet(file)
