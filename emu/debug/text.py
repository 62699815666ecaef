"""What :mod:`emu.debug.look` and the stepper find, as lines of text."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING

from emu.debug import look
from emu.debug.stepper import PATIENCE, Pause
from emu.engine.cpustate import REGISTER_NAMES, SEGMENT_NAMES
from emu.engine.events import DmmFault, Event, PageFault, ShadowFill, TableWrite
from emu.observe import crash, pagewalk
from emu.observe.outcome import Ending
from emu.units import format_time

if TYPE_CHECKING:
    from emu.machine.vm import VirtualMachine

Mark = Callable[[str], str]
"""Makes a piece of text stand out."""

_EVENTS_SHOWN = 20  # at a pause; of those before them only how many there were
_FLAGS = ((0, "CF"), (2, "PF"), (4, "AF"), (6, "ZF"), (7, "SF"), (8, "TF"), (9, "IF"), (10, "DF"), (11, "OF"),
          (14, "NT"), (17, "VM"), (18, "AC"))  # fmt: skip


def plain_mark(text: str) -> str:
    """A mark for places without colours: a star behind the text."""
    return text + "*"


def bold_mark(text: str) -> str:
    """A mark for terminals."""
    return f"\x1b[1;33m{text}\x1b[0m "


def pause(vm: VirtualMachine, found: Pause, mark: Mark = plain_mark) -> str:
    """What a person wants to know where a guest stands: events, page walk, code, registers; or how the guest ended."""
    sections = [_what_happened(vm, found)]
    if found.outcome is not None:
        sections[0] += [f"--- {found.outcome.sentence}; status {found.outcome.status}, {format_time(vm.now)} virtual"]
        if found.outcome.ending == Ending.CRASH:
            return "\n".join([*sections[0], "", crash.report(vm)])
    if found.outcome is None or found.outcome.ending != Ending.EXIT:
        sections += [about(vm, event) for event in (found.wanted or found.events)[-1:]]
        sections += [running(vm, found.idle)]
        if vm.processor.activity != "waiting":
            sections += [code(vm), registers(vm, found.changed, mark)]
    return "\n".join(line for section in sections for line in section)


def _what_happened(vm: VirtualMachine, found: Pause) -> list[str]:
    """All events since the last pause, in order; of very many the last ones, and those that were waited for."""
    events = found.events
    first = max(0, len(events) - _EVENTS_SHOWN)
    if found.wanted:
        first = min(first, events.index(found.wanted[0]))
    shown = events[first:]
    earlier = dict(found.counts)
    for event in shown:
        earlier[event.NAME] -= 1
    kinds = ", ".join(f"{count} {kind}" for kind, count in earlier.items() if count)
    summary = [f"on the way: {kinds}"] if kinds else []
    return summary + [event_line(vm, event) for event in shown]


def event_line(vm: VirtualMachine, event: Event) -> str:
    """An event with its number and time, and where there are several processors, the one on which it happened."""
    where = f", processor {event.cpu}" if len(vm.processors) > 1 else ""
    return f"#{event.sequence} at {event.time} ns{where}: {event.sentence()}"


def running(vm: VirtualMachine, idle: bool = False) -> list[str]:
    """Whose code and registers follow, where there are several processors, and what that one does.

    Args:
        idle: it was to execute something, and has not.
    """
    if len(vm.processors) == 1 and not idle:
        return []
    processor = vm.processor
    what = {"running": "", "halted": " is halted", "waiting": " waits for a start-up message"}[processor.activity]
    lines = [f"processor {processor.index}{what}{'' if processor.activity == 'waiting' else ':'}"]
    if idle:
        lines.insert(0, f"processor {processor.index} has executed nothing for {format_time(PATIENCE)}; i waits on")
    return lines


def processors(vm: VirtualMachine) -> list[str]:
    """What each processor does; the one that is looked at has a mark."""
    lines = crash.processors(vm) or ["processor 0 is the only one"]
    here = f"processor {vm.processor.index} "
    return [("=> " if line.startswith(here) else "   ") + line for line in lines]


def about(vm: VirtualMachine, event: Event) -> list[str]:
    """The page that an event is about: the walk of its address, or what the P2M says about its gfn."""
    gva = look.event_gva(vm, event)
    if gva is not None and isinstance(event, (PageFault, ShadowFill, DmmFault)):
        return walk(vm, gva, event.cpu)
    gfn = look.event_gfn(event)
    if gfn is None:
        return []
    lines = about_gfn(vm, gfn)
    if isinstance(event, TableWrite) and event.size >= 4:
        lines = [f"before: {_entry(event.before)}", f"after:  {_entry(event.after)}", *lines]
    return lines


def walk(vm: VirtualMachine, gva: int, cpu: int | None = None) -> list[str]:
    """The page walk of an address, by default on the processor that is looked at."""
    elsewhere = cpu is not None and cpu != vm.processor.index
    with vm.looking_at(vm.selected if cpu is None else cpu):
        lines = pagewalk.render(pagewalk.explain(vm, gva)).splitlines()
    return [f"on processor {cpu}:", *lines] if elsewhere else lines


def about_gfn(vm: VirtualMachine, gfn: int) -> list[str]:
    """What the P2M says about a page."""
    return [f"P2M: {pagewalk.describe_backing(pagewalk.backing(vm, gfn))}"]


def _entry(value: int) -> str:
    return f"{value:#x} ({pagewalk.describe_bits(value, True) or 'not present'})"


def code(vm: VirtualMachine, gva: int | None = None) -> list[str]:
    """Disassembly at ``gva``, or around the instruction that comes next."""
    cpu = vm.cpu
    found = look.code(vm, gva)
    where = f"code at {gva:#x}" if gva is not None else f"next: {cpu.cs.selector:#x}:{cpu.rip:#x}"
    lines = [f"{where}, {cpu.bits}-bit code, CPL {cpu.cpl}"]
    if not found:
        return [*lines, "  nothing can be read there"]
    for instruction in found:
        pointer = "=>" if instruction.gva == cpu.pc else "  "
        lines.append(f"{pointer} {instruction.gva:8x}  {instruction.code.hex():<20}  {instruction.text}")
    return lines


def registers(
    vm: VirtualMachine, changed: Collection[str] = (), mark: Mark = plain_mark, full: bool = False
) -> list[str]:
    """General registers; with ``full`` also segments and control registers.  Those of ``changed`` are marked."""
    values = look.registers(vm.processor)
    wide = "r8" in values
    digits = 16 if wide else 8

    def cell(name: str, digits: int) -> str:
        value = f"{values[name]:0{digits}x}"
        label = name if wide or not name.startswith("r") else "e" + name[1:]  # rax is eax there
        return f"{label:<3} {mark(value) if name in changed else value + ' '}"

    names = [name for name in (*REGISTER_NAMES, "rip") if name in values]
    lines = [" ".join(cell(name, digits) for name in names[at : at + 4]).rstrip() for at in range(0, len(names), 4)]
    flags = " ".join(name for bit, name in _FLAGS if values["eflags"] >> bit & 1)
    lines[-1] += f"  {cell('eflags', 8).rstrip()} ({flags or 'none'})"
    if full:
        lines.append(" ".join(cell(name, 4) for name in SEGMENT_NAMES).rstrip())
        lines.append(" ".join(cell(name, 8) for name in look.CONTROL_NAMES).rstrip())
    return lines


def memory(vm: VirtualMachine, gva: int, size: int) -> list[str]:
    """A hexadecimal dump."""
    data = look.read(vm, gva, size)
    lines = []
    for at in range(0, len(data), 16):
        row = data[at : at + 16]
        readable = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in row)
        lines.append(f"{gva + at:8x}  {row.hex(' '):<47}  {readable}")
    if len(data) < size:
        lines.append(f"{gva + len(data):8x}  nothing can be read here")
    return lines


def history(vm: VirtualMachine, events: Sequence[Event]) -> list[str]:
    """Events one by one, and how many of each kind there were."""
    counts = vm.events.counts()
    totals = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)
    return [*(event_line(vm, event) for event in events), f"so far: {totals or 'no events'}"]
