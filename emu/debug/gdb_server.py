"""A VM under gdb: the commands of the remote protocol (GDB manual, appendix E "GDB Remote Serial Protocol").

Threads are processors, numbered from 1.  One client at a time; while none is there, the guest stands still.  What gdb
looks at changes nothing, and breakpoints are no bytes in the guest's memory, so the guest's run is that of a run
without gdb, until something is changed by hand.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

from emu.addr import PAGE_MASK, PAGE_SIZE
from emu.debug import gdb_target, look
from emu.debug.breaks import Breakpoints, Watch
from emu.debug.commands import Commands
from emu.debug.gdb_packets import LARGEST, Connection, Lost
from emu.debug.stepper import Stepper
from emu.errors import BadInput
from emu.machine.vm import Stop
from emu.observe import pagewalk
from emu.observe.outcome import Ending, Outcome
from emu.session import MEMORY_ERRORS, outcome_of

if TYPE_CHECKING:
    from emu.machine.processor import Processor
    from emu.machine.vm import VirtualMachine

_SLICE_NS = 1_000_000  # virtual; between two looks for a Ctrl-C
_TRAP, _INTERRUPTED, _CRASHED, _MEMORY = 5, 2, 11, 7  # SIGTRAP, SIGINT, SIGSEGV, SIGBUS
_RUNS = ("e", "event", "i", "instruction", "c", "continue", "q", "quit", "cpu")  # what gdb itself does
_WATCHES = ("2", "3", "4")  # writes, reads, both; x86 cannot tell reads alone
_BAD = b"E16"  # EINVAL
_ALL = (1 << 64) - 1


class Leave(Exception):
    """The client is done.

    Attributes:
        kills: the run is over with it.
    """

    def __init__(self, kills: bool) -> None:
        super().__init__()
        self.kills = kills


class GdbServer:
    """Serves one VM, client after client.

    Args:
        vm: a VM with a guest in it, wherever it stands.
        architecture: one of :data:`emu.debug.gdb_target.ARCHITECTURES`; by default what the processor runs when a
            client comes.
        stopped: whether the run is to end.

    Attributes:
        outcome: how the guest ended; None while it can run on.
    """

    def __init__(
        self, vm: VirtualMachine, stopped: Callable[[], bool] = lambda: False, architecture: str | None = None
    ) -> None:
        self.vm = vm
        self.outcome: Outcome | None = None
        self._wanted = architecture
        self._is_to_end = stopped
        self._breaks = Breakpoints(vm)
        self._stepper = Stepper(vm)
        self._commands = Commands(self._stepper)
        self._physical = False
        self._connection: Connection
        self._thread = 1  # that registers and memory are asked of
        self._reply = b""
        self._describe()

    def serve(self, connected: socket.socket) -> tuple[bool, bool]:
        """Serve a client until it leaves.

        Returns:
            Whether it has let the guest run, and whether it has ended the run.
        """
        self._connection = Connection(connected, self._is_to_end)
        self._describe()
        self._breaks.gvas.clear()
        self._breaks.watch([])
        self._thread = self._running
        self._reply = self._stopped(_TRAP)
        try:
            while True:
                message = self._connection.receive()
                answer = self._stopped(_INTERRUPTED) if message.interrupt else self._execute(message.data)
                self._connection.send(answer)
                if message.data == b"QStartNoAckMode":
                    self._connection.acknowledges = False
        except Leave as leave:
            return not leave.kills, leave.kills
        except Lost:
            return False, False
        finally:
            self._connection.close()

    def _describe(self) -> None:
        architecture = self._wanted or next(
            name for name, bits in gdb_target.ARCHITECTURES.items() if bits == self.vm.cpu.bits
        )
        self._features = gdb_target.registers(self.vm, gdb_target.ARCHITECTURES[architecture])
        self._registers = [one for members in self._features.values() for one in members]
        self._description = gdb_target.description(self._features, architecture).encode()

    # --- processors ---

    @property
    def _running(self) -> int:
        return int(self.vm.native.current) + 1

    @property
    def _processor(self) -> Processor:
        return self.vm.processors[self._thread - 1]

    def _thread_of(self, text: str) -> int:
        """A thread's number; 0 and -1 stand for any, which is the one that runs.

        Raises:
            ValueError: there is none such.
        """
        number = int(text, 16) if text not in ("", "-1") else 0
        if not 0 <= number <= len(self.vm.processors):
            raise ValueError(f"no thread {number}")
        return number or self._running

    # --- commands ---

    def _execute(self, data: bytes) -> bytes:
        """The answer to a packet; empty for one that is not known, an error for one that makes no sense."""
        for prefix, method in _METHODS:
            if data.startswith(prefix):
                try:
                    return method(self, data[len(prefix) :].decode("latin-1"))
                except (ValueError, IndexError, BadInput):
                    return _BAD
        return b""

    def _supported(self, rest: str) -> bytes:
        return (
            f"PacketSize={LARGEST:x};QStartNoAckMode+;qXfer:features:read+;qXfer:memory-map:read+;"
            "qXfer:threads:read+;vContSupported+;swbreak+;hwbreak+"
        ).encode()

    def _transfer(self, rest: str) -> bytes:
        kind, action, annex, window = rest.split(":")
        offset, length = (int(number, 16) for number in window.split(","))
        texts = {("features", "target.xml"): self._description, ("memory-map", ""): self._memory_map(),
                 ("threads", ""): self._thread_list()}  # fmt: skip
        if action != "read" or (kind, annex) not in texts:
            return b"E00"
        piece = texts[kind, annex][offset : offset + min(length, LARGEST - 1)]
        return (b"m" if offset + len(piece) < len(texts[kind, annex]) else b"l") + piece

    def _memory_map(self) -> bytes:
        """All of it as RAM: what nothing stands behind cannot be read."""
        size = 1 << 64 if self._registers[0].size == 8 else 1 << 32
        return f'<memory-map><memory type="ram" start="0x0" length="{size - 1:#x}"/></memory-map>'.encode()

    def _thread_list(self) -> bytes:
        threads = (f'<thread id="{p.index + 1:x}" core="{p.index}">{_state_of(p)}</thread>' for p in self.vm.processors)
        return f"<threads>{''.join(threads)}</threads>".encode()

    def _extra_info(self, rest: str) -> bytes:
        return _state_of(self.vm.processors[self._thread_of(rest) - 1]).encode().hex().encode()

    def _first_threads(self, rest: str) -> bytes:
        return b"m" + ",".join(f"{p.index + 1:x}" for p in self.vm.processors).encode()

    def _select(self, rest: str) -> bytes:
        if rest[0] == "g":
            self._thread = self._thread_of(rest[1:])
        return b"OK"

    def _alive(self, rest: str) -> bytes:
        self._thread_of(rest)
        return b"OK"

    def _read_all(self, rest: str) -> bytes:
        return b"".join(one.get(self._processor) for one in self._registers).hex().encode()

    def _write_all(self, rest: str) -> bytes:
        data = bytes.fromhex(rest)
        pieces, at = [], 0
        for one in self._registers:
            pieces.append((one, data[at : at + one.size]))
            at += one.size
        whole = [(one, piece) for one, piece in pieces if len(piece) == one.size]
        changed = [(one, piece) for one, piece in whole if piece != one.get(self._processor)]
        if any(one.set is None for one, _ in changed):
            return _BAD
        for one, piece in changed:
            assert one.set is not None
            one.set(self._processor, piece)
        return b"OK"

    def _read_one(self, rest: str) -> bytes:
        return self._registers[_index(rest)].get(self._processor).hex().encode()

    def _write_one(self, rest: str) -> bytes:
        number, _, value = rest.partition("=")
        one, data = self._registers[_index(number)], bytes.fromhex(value)
        if one.set is None or len(data) != one.size:
            return _BAD
        one.set(self._processor, data)
        return b"OK"

    def _read_memory(self, rest: str) -> bytes:
        at, size = (int(number, 16) & _ALL for number in rest.split(","))
        with self.vm.looking_at(self._thread - 1):
            size = min(size, LARGEST // 2)
            data = self.vm.memory.peek(at, size) if self._physical else look.read(self.vm, at, size)
        return data.hex().encode() if data or not size else b"E14"

    def _write_memory(self, rest: str) -> bytes:
        where, _, digits = rest.partition(":")
        return self._store(where, bytes.fromhex(digits))

    def _write_binary(self, rest: str) -> bytes:
        where, _, data = rest.partition(":")
        return self._store(where, data.encode("latin-1"))

    def _store(self, where: str, data: bytes) -> bytes:
        at, size = (int(number, 16) & _ALL for number in where.split(","))
        if size != len(data):
            return _BAD
        pieces = []
        with self.vm.looking_at(self._thread - 1):
            while data:
                length = min(len(data), PAGE_SIZE - (at & PAGE_MASK))
                gpa = at if self._physical else pagewalk.translate(self.vm, at)
                if gpa is None or not self.vm.dmm.is_memory(gpa >> 12):
                    return b"E14"
                pieces.append((gpa, data[:length]))
                at, data = at + length, data[length:]
        for gpa, piece in pieces:
            self.vm.memory.write(gpa, piece)
        return b"OK"

    def _insert(self, rest: str) -> bytes:
        kind, at, size = _place(rest)
        if kind in _WATCHES:
            self._breaks.watch([*self._breaks.watched, Watch(at, size, kind != "2")])
        elif kind in "01":
            self._breaks.gvas.add(at)
        else:
            return b""
        return b"OK"

    def _remove(self, rest: str) -> bytes:
        kind, at, size = _place(rest)
        if kind in _WATCHES:
            left = list(self._breaks.watched)
            left.remove(Watch(at, size, kind != "2"))
            self._breaks.watch(left)
        elif kind in "01":
            self._breaks.gvas.discard(at)
        else:
            return b""
        return b"OK"

    def _monitor(self, rest: str) -> bytes:
        """``monitor``: the commands of ``emu step`` that look and change, and ``physical on|off``."""
        line = bytes.fromhex(rest).decode("utf-8", "replace").strip()
        if match := re.fullmatch(r"physical (on|off)", line):
            self._physical = match[1] == "on"
            text = f"memory is now that of {'physical' if self._physical else 'linear'} addresses"
        elif line.split(" ")[0] in _RUNS:
            text = f"{line}: gdb's own commands run the guest and choose its processor"
        else:
            try:
                with self.vm.looking_at(self._thread - 1):
                    text = self._commands.execute(line or "help") or ""
            except BadInput as error:
                text = str(error)
        return (text + "\n").encode().hex().encode()[: LARGEST // 2 * 2]

    # --- running ---

    def _resume(self, rest: str) -> bytes:
        """vCont: the first action that names a thread to step, else continue all."""
        for action in rest.split(";"):
            what, _, thread = action.partition(":")
            if what[:1] in ("s", "S"):
                return self._step(self._thread_of(thread) if thread else self._running)
            if what[:1] == "r":
                begin, end = (int(number, 16) for number in what[1:].split(","))
                return self._step_range(self._thread_of(thread) if thread else self._running, begin, end)
            if what[:1] not in ("c", "C"):
                return _BAD
        return self._continue("")

    def _continue(self, rest: str) -> bytes:
        return self._run(self._breaks.run)

    def _step_one(self, rest: str) -> bytes:
        return self._step(self._thread)

    def _step(self, thread: int) -> bytes:
        alone = None if len(self.vm.processors) == 1 else thread - 1
        return self._run(lambda until: self.vm.step(1, until, alone))

    def _step_range(self, thread: int, begin: int, end: int) -> bytes:
        """Step on while the processor stays within a range of addresses, and stands at no breakpoint."""
        registers = self.vm.processors[thread - 1].registers
        while True:
            reply = self._step(thread)
            if not reply.startswith(b"T05") or self._connection.interrupted():
                return reply
            if not begin <= registers.pc < end or registers.pc in self._breaks.gvas:
                return reply

    def _run(self, run: Callable[[int], Stop]) -> bytes:
        """Run until what is waited for has happened, the guest has ended, or the client interrupts."""
        if self.outcome is not None:
            return self._reply
        try:
            while True:
                stop = run(self.vm.now + _SLICE_NS)
                if stop is not Stop.DEADLINE:
                    break
                if self._connection.interrupted() or self._is_to_end():
                    return self._note(self._stopped(_INTERRUPTED))
        except MEMORY_ERRORS as error:
            self._say(str(error))
            return self._note(self._stopped(_MEMORY))
        if stop is Stop.STEP:
            return self._note(self._stopped(_TRAP))
        if stop is Stop.REQUESTED:
            return self._note(self._stopped(_INTERRUPTED))
        return self._note(self._end(outcome_of(self.vm, stop)))

    def _end(self, outcome: Outcome) -> bytes:
        """The guest has ended; a crash can still be looked at."""
        self._say(outcome.sentence)
        self.outcome = outcome
        return self._stopped(_CRASHED) if outcome.ending is Ending.CRASH else b"W%02x" % outcome.status

    def _note(self, reply: bytes) -> bytes:
        self._thread = self._running
        self._reply = reply
        return reply

    def _stopped(self, signal: int) -> bytes:
        touched = self._breaks.touched() if signal == _TRAP else None
        why = b"" if touched is None else b"%s:%x;" % (b"awatch" if touched.reads else b"watch", touched.gva)
        return b"T%02x%sthread:%x;" % (signal, why, self._running)

    def _say(self, text: str) -> None:
        """Have gdb print a line."""
        self._connection.send(b"O" + f"emu: {text}\n".encode().hex().encode())

    def _why(self, rest: str) -> bytes:
        return self._reply

    def _detach(self, rest: str) -> bytes:
        self._connection.send(b"OK")
        raise Leave(kills=False)

    def _kill(self, rest: str) -> bytes:
        raise Leave(kills=True)

    def _kill_process(self, rest: str) -> bytes:
        self._connection.send(b"OK")
        raise Leave(kills=True)


def _place(rest: str) -> tuple[str, int, int]:
    """What Z and z are about: the kind, the address and the size."""
    kind, at, size = rest.split(";")[0].split(",")
    return kind, int(at, 16) & _ALL, int(size, 16)


def _index(digits: str) -> int:
    number = int(digits, 16)
    if number < 0:
        raise ValueError("a register's number is not negative")
    return number


def _state_of(processor: Processor) -> str:
    return f"CPU {processor.index}, {processor.activity}"


def _fixed(answer: bytes) -> Callable[[GdbServer, str], bytes]:
    return lambda server, rest: answer


_METHODS: tuple[tuple[bytes, Callable[[GdbServer, str], bytes]], ...] = (
    (b"qSupported", GdbServer._supported),
    (b"qXfer:", GdbServer._transfer),
    (b"QStartNoAckMode", _fixed(b"OK")),
    (b"qAttached", _fixed(b"1")),
    (b"qC", lambda server, rest: b"QC%x" % server._thread),
    (b"qfThreadInfo", GdbServer._first_threads),
    (b"qsThreadInfo", _fixed(b"l")),
    (b"qThreadExtraInfo,", GdbServer._extra_info),
    (b"qRcmd,", GdbServer._monitor),
    (b"qSymbol::", _fixed(b"OK")),
    (b"vCont?", _fixed(b"vCont;c;C;s;S;r")),
    (b"vCont;", GdbServer._resume),
    (b"vKill;", GdbServer._kill_process),
    (b"?", GdbServer._why),
    (b"H", GdbServer._select),
    (b"T", GdbServer._alive),
    (b"g", GdbServer._read_all),
    (b"G", GdbServer._write_all),
    (b"p", GdbServer._read_one),
    (b"P", GdbServer._write_one),
    (b"m", GdbServer._read_memory),
    (b"M", GdbServer._write_memory),
    (b"X", GdbServer._write_binary),
    (b"Z", GdbServer._insert),
    (b"z", GdbServer._remove),
    (b"c", GdbServer._continue),
    (b"s", GdbServer._step_one),
    (b"D", GdbServer._detach),
    (b"k", GdbServer._kill),
)
"""By the beginning of a packet, the first that fits."""
