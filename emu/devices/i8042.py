"""The keyboard controller. Sources: IBM PC/AT Technical Reference (8042), PS/2 Hardware Interface Technical Reference;
commands as Linux, SeaBIOS and QEMU's PC use them.

    0x60 read   output buffer                      0x64 read   status
    0x60 write  byte for a controller command      0x64 write  controller command
                that waits for one, else keyboard

    status  0 output full  1 input full (never)  2 system flag  3 last write was a command  4 not locked
            5 output is the mouse's  6 timeout  7 parity error
    command byte  0 IRQ 1 on  1 IRQ 12 on  2 system flag  4 keyboard off  5 mouse off  6 translate to scan code set 1
    output port   0 reset, active low  1 A20  4 IRQ 1  5 IRQ 12  others high

The controller starts as a BIOS leaves it: tested, IRQ 1 on, translating, mouse off.

The devices answer without delay: an answer is in the output buffer as soon as the one before it was read, and each is
an edge on the interrupt line. The controller's own answers come before the keyboard's, and these before the mouse's.
Typed keys come KEY_NS apart, and only when the guest has read all that came before, so none is lost to a slow one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from emu.devices.device import Clock, Device, IrqLine, State, check_fields
from emu.devices.ps2 import Keyboard, Mouse, chord, keys_for, translated

STATUS_OUTPUT = 0x01
STATUS_SYSTEM = 0x04
STATUS_COMMAND = 0x08
STATUS_UNLOCKED = 0x10
STATUS_MOUSE = 0x20

MODE_KEYBOARD_IRQ = 0x01
MODE_MOUSE_IRQ = 0x02
MODE_SYSTEM = 0x04
MODE_KEYBOARD_OFF = 0x10
MODE_MOUSE_OFF = 0x20
MODE_TRANSLATE = 0x40

PORT_RUN = 0x01  # low resets the CPU
PORT_A20 = 0x02
PORT_KEYBOARD_IRQ = 0x10  # output buffer full, from the keyboard
PORT_MOUSE_IRQ = 0x20  # output buffer full, from the mouse
PORT_HIGH = 0xCC  # pins that nothing is connected to
INPUT_PORT = 0x80  # keyboard not locked

KEYBOARD, MOUSE = range(2)  # where the byte in the output buffer came from

READ_RAM, WRITE_RAM = 0x20, 0x60  # commands, and 31 more each; byte 0 of the RAM is the command byte
WRITE_OUTPUT_PORT, WRITE_KEYBOARD_OUTPUT, WRITE_MOUSE_OUTPUT, WRITE_MOUSE = 0xD1, 0xD2, 0xD3, 0xD4
PULSE = 0xF0  # and 15 more: a clear bit pulses that pin of the output port
MODE_COMMANDS = {  # bits of the command byte to set, to clear
    0xA7: (MODE_MOUSE_OFF, 0),
    0xA8: (0, MODE_MOUSE_OFF),
    0xAA: (MODE_SYSTEM, 0),  # and answers
    0xAD: (MODE_KEYBOARD_OFF, 0),
    0xAE: (0, MODE_KEYBOARD_OFF),
}
ANSWERS = {0xA9: 0x00, 0xAA: 0x55, 0xAB: 0x00, 0xC0: INPUT_PORT}  # mouse port, controller, keyboard port: good
KEY_NS = 5_000_000  # from one press or release of a typed key to the next


class I8042(Device):
    """The controller with both devices. Register ``data`` at port 0x60 and ``command`` at port 0x64.

    Args:
        keyboard_line, mouse_line: IRQ 1 and IRQ 12.
        clock: virtual time in ns.
        set_a20: gets the A20 bit of the output port when it is written.
        on_reset: is called when the guest pulls the CPU's reset line.
    """

    STATE: ClassVar[tuple[str, ...]] = (
        "ram", "output_port", "output", "full", "source", "last_was_command", "argument_of", "replies", "forced",
        "typed", "next_key_at", "prefix",
    )  # fmt: skip

    def __init__(
        self,
        keyboard_line: IrqLine,
        mouse_line: IrqLine,
        clock: Clock,
        set_a20: Callable[[bool], None],
        on_reset: Callable[[], None],
    ) -> None:
        self._lines = (keyboard_line, mouse_line)
        self._clock = clock
        self._set_a20 = set_a20
        self._on_reset = on_reset
        self.keyboard = Keyboard()
        self.mouse = Mouse()
        self.data = _Port(self._read_data, self._write_data)
        self.command = _Port(self._read_status, self._write_command)
        self.ram = [MODE_KEYBOARD_IRQ | MODE_SYSTEM | MODE_MOUSE_OFF | MODE_TRANSLATE] + [0] * 31
        self.output_port = PORT_HIGH | PORT_A20 | PORT_RUN
        self.output = 0  # output buffer; keeps its byte after it was read
        self.full = False  # it was not read yet
        self.source = KEYBOARD
        self.last_was_command = False
        self.argument_of = 0  # command that waits for a byte at port 0x60; 0: none
        self.replies: list[int] = []  # of the controller itself; a new one takes the place of one that waits
        self.forced: list[int] = []  # the same, to appear as the mouse's
        self.typed: list[int] = []  # keys still to be pressed and released
        self.next_key_at: int | None = None  # virtual ns; None while there is none, or the guest would lose it
        self.prefix = False  # the translator has seen the prefix of a release

    # ---- the person at the keyboard ----

    def type(self, text: str) -> None:
        """Type ``text`` on a US keyboard. Raises BadInput, and types nothing, for characters that have no keys."""
        keys = [key for character in text for key in keys_for(character)]
        self.typed += keys
        self._expect(self._clock())

    def press(self, *codes: int) -> None:
        """Press keys in this order and release them in the opposite one. They are named by their make codes in scan
        code set 1, with 0xE0 in front for extended ones: 0x1D, 0x38, 0xE053 is Ctrl-Alt-Del.

        Raises BadInput for what is no make code.
        """
        self.typed += chord(codes)
        self._expect(self._clock())

    def move_mouse(self, right: int = 0, up: int = 0, wheel: int = 0, buttons: int = 0) -> None:
        """Move the mouse by so many counts, and its wheel by so many clicks towards the person.

        Args:
            buttons: those that are held now: bit 0 left, 1 right, 2 middle.
        """
        self.mouse.move(right, up, wheel, buttons)
        self._update(self._clock())

    # ---- the machine's side ----

    def deadline(self) -> int | None:
        return self.next_key_at

    def tick(self, now_ns: int) -> None:
        if self.next_key_at is None or self.next_key_at > now_ns:
            return
        self.next_key_at = None
        if self._can_type():
            self.keyboard.key(self.typed.pop(0))
        self._update(now_ns)

    def machine_reset(self, power_up: State) -> None:
        """Whoever types goes on."""
        typed = self.typed
        super().machine_reset(power_up)
        self.typed = typed
        self._update(self._clock())

    def state(self) -> State:
        return super().state() | {"keyboard": self.keyboard.state(), "mouse": self.mouse.state()}

    def load_state(self, state: State) -> None:
        check_fields("I8042", state, (*self.STATE, "keyboard", "mouse"))
        super().load_state({name: state[name] for name in self.STATE})
        self.keyboard.load_state(state["keyboard"])
        self.mouse.load_state(state["mouse"])

    # ---- the guest's side ----

    @property
    def mode(self) -> int:
        """The command byte."""
        return self.ram[0]

    @mode.setter
    def mode(self, value: int) -> None:
        self.ram[0] = value

    def _read_data(self) -> int:
        value = self.output
        if self.full:
            self.full = False
            self._update_lines()  # the next byte is to be an edge
            self._update(self._clock())
        return value

    def _read_status(self) -> int:
        status = STATUS_UNLOCKED | STATUS_COMMAND * self.last_was_command
        if self.mode & MODE_SYSTEM:
            status |= STATUS_SYSTEM
        if self.full:
            status |= STATUS_OUTPUT | STATUS_MOUSE * (self.source == MOUSE)
        return status

    def _write_data(self, value: int) -> None:
        command, self.argument_of = self.argument_of, 0
        self.last_was_command = False
        if command & 0xE0 == WRITE_RAM:
            self.ram[command & 0x1F] = value
        elif command == WRITE_OUTPUT_PORT:
            self._write_output_port(value)
        elif command == WRITE_KEYBOARD_OUTPUT:
            self.replies = [value]
        elif command == WRITE_MOUSE_OUTPUT:
            self.forced = [value]
        elif command == WRITE_MOUSE:
            self.mode &= ~MODE_MOUSE_OFF  # talking to a device switches it on
            self.mouse.write(value)
        else:
            self.mode &= ~MODE_KEYBOARD_OFF
            self.keyboard.write(value)
        self._update(self._clock())

    def _write_command(self, value: int) -> None:
        self.last_was_command = True
        self.argument_of = 0
        if value & 0xE0 == READ_RAM:
            self.replies = [self.ram[value & 0x1F]]
        elif value & 0xE0 == WRITE_RAM or WRITE_OUTPUT_PORT <= value <= WRITE_MOUSE:
            self.argument_of = value
        elif value == 0xD0:
            self.replies = [self._output_port_now()]
        elif value in (0xDD, 0xDF):
            self._write_output_port(self.output_port & ~PORT_A20 | PORT_A20 * (value == 0xDF))
        elif value >= PULSE:
            if not value & PORT_RUN:
                self._on_reset()
        else:
            to_set, to_clear = MODE_COMMANDS.get(value, (0, 0))
            self.mode = (self.mode | to_set) & ~to_clear
            if value in ANSWERS:
                self.replies = [ANSWERS[value]]
        self._update(self._clock())

    def _write_output_port(self, value: int) -> None:
        self.output_port = value & ~(PORT_KEYBOARD_IRQ | PORT_MOUSE_IRQ)
        self._set_a20(bool(value & PORT_A20))
        if not value & PORT_RUN:
            self._on_reset()

    def _output_port_now(self) -> int:
        full = (PORT_KEYBOARD_IRQ, PORT_MOUSE_IRQ)[self.source] if self.full else 0
        return self.output_port | full

    # ---- bytes to the guest ----

    def _update(self, now_ns: int) -> None:
        self._fill()
        self._update_lines()
        self._expect(now_ns)

    def _fill(self) -> None:
        """Put the next byte into the output buffer, if that is empty."""
        while not self.full:
            if self.replies:
                self._put(self.replies.pop(0), KEYBOARD)
            elif self.forced:
                self._put(self.forced.pop(0), MOUSE)
            elif self.keyboard.pending() and not self.mode & MODE_KEYBOARD_OFF:
                self._from_keyboard(self.keyboard.take())
            elif self.mouse.pending() and not self.mode & MODE_MOUSE_OFF:
                self._put(self.mouse.take(), MOUSE)
            else:
                return

    def _from_keyboard(self, value: int) -> None:
        if not self.mode & MODE_TRANSLATE:
            self._put(value, KEYBOARD)
        elif value == Keyboard.RELEASE:
            self.prefix = True
        else:
            self._put(translated(value) | 0x80 * self.prefix, KEYBOARD)
            self.prefix = False

    def _put(self, value: int, source: int) -> None:
        self.output, self.source, self.full = value, source, True

    def _update_lines(self) -> None:
        mode = self.mode
        keyboard = self.full and self.source == KEYBOARD and not mode & MODE_KEYBOARD_OFF
        mouse = self.full and self.source == MOUSE
        self._lines[KEYBOARD].set(keyboard and bool(mode & MODE_KEYBOARD_IRQ))
        self._lines[MOUSE].set(mouse and bool(mode & MODE_MOUSE_IRQ))

    def _can_type(self) -> bool:
        return not self.full and not self.mode & MODE_KEYBOARD_OFF and self.keyboard.accepts_keys()

    def _expect(self, now_ns: int) -> None:
        """Let the next key be on its way, if the guest would get it."""
        if self.next_key_at is None and self.typed and self._can_type():
            self.next_key_at = now_ns + KEY_NS


class _Port(Device):
    """One of the controller's ports."""

    def __init__(self, read: Callable[[], int], write: Callable[[int], None]) -> None:
        self._read = read
        self._write = write

    def read(self, offset: int, size: int) -> int:
        return self._read()

    def write(self, offset: int, size: int, value: int) -> None:
        self._write(value)
