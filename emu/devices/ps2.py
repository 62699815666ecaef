"""What hangs at the keyboard controller: a keyboard with 102 keys and a mouse with three buttons and a wheel.
Sources: IBM PS/2 Hardware Interface Technical Reference (keyboard, mouse); Microsoft, Keyboard Scan Code Specification.

Both get single bytes, commands and their arguments, and answer each with ACK, RESEND (not understood) or what the
command asks for.

    keyboard  ED lights (1 argument)  EE echo  F0 scan code set (1: 0 asks for it)  F2 identify  F3 rate (1)  F4 scan
              F5 defaults, do not scan  F6 defaults  FE resend  FF reset and test
    mouse     E6 E7 scaling 1:1, 2:1  E8 resolution (1)  E9 status  EA stream mode  EB poll  EC no wrap mode
              EE wrap mode  F0 remote mode  F2 identify  F3 rate (1)  F4 report  F5 do not  F6 defaults  FE resend
              FF reset and test

A mouse reports three bytes: buttons (0 left, 1 right, 2 middle), bit 3, signs of x and y in bits 4 and 5 and their
overflows in 6 and 7; x to the right; y upwards. Sample rates 200, 100, 80 one after the other switch the wheel on
(Microsoft IntelliMouse): the mouse is then identified by 3, and a fourth byte has the wheel's way.

A key is named here by its make code in scan code set 1, 0xE0 in front for extended keys; bit 7 is its release. In
set 2, which keyboards send unless told otherwise, keys have other codes and a release is F0 and the code. The
controller translates set 2 to set 1 on request.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from emu.devices.device import State, check_fields
from emu.errors import BadInput

ACK = 0xFA
RESEND = 0xFE
ECHO = 0xEE
TEST_PASSED = 0xAA
KEYBOARD_ID = (0xAB, 0x83)
MOUSE_ID = 0x00
EXTENDED = 0xE0  # prefix of extended keys, in both sets
QUEUE = 16  # bytes of scan codes that a keyboard keeps

# Set 2 to set 1, codes 0 to 0x7F; F7 and SysRq lie above. Codes of no key are translated, too.
TO_SET_1 = bytes.fromhex(
    "ff43413f3d3b3c58 644442403e0f2959 65382a701d10025a 66712c1f1e11035b"
    "672e2d201205045c 68392f211413065d 693130232215075e 6a7232241608095f"
    "6b332517180b0a60 6c34352627190c61 6d7328741a0d626e 3a361c1b752b6376"
    "55567778797a0e7b 7c4f7d4b477e7f6f 5253504c4d480145 574e514a37494654"
)
HIGH_TO_SET_1 = {0x83: 0x41, 0x84: 0x54}
TO_SET_2 = {code: index for index, code in enumerate(TO_SET_1)} | {code: high for high, code in HIGH_TO_SET_1.items()}

SHIFT, CONTROL = 0x2A, 0x1D
RELEASED = 0x80  # bit of a key's release
ROWS = (  # of a US keyboard: key of the first character, characters, the same with Shift
    (0x02, "1234567890-=", "!@#$%^&*()_+"),
    (0x10, "qwertyuiop[]", "QWERTYUIOP{}"),
    (0x1E, "asdfghjkl;'`", 'ASDFGHJKL:"~'),
    (0x2B, "\\zxcvbnm,./", "|ZXCVBNM<>?"),
)
PLAIN = {character: first + n for first, plain, _ in ROWS for n, character in enumerate(plain)} | {
    "\x1b": 0x01, "\b": 0x0E, "\x7f": 0x0E, "\t": 0x0F, "\n": 0x1C, "\r": 0x1C, " ": 0x39,
}  # fmt: skip
SHIFTED = {character: first + n for first, _, shifted in ROWS for n, character in enumerate(shifted)}


def translated(value: int) -> int:
    """What the controller makes of a byte in set 2; answers to commands stay what they are."""
    return TO_SET_1[value] if value < len(TO_SET_1) else HIGH_TO_SET_1.get(value, value)


def chord(codes: Iterable[int]) -> list[int]:
    """Presses of keys, and their releases in the opposite order. Raises BadInput for what is no key's make code."""
    pressed = list(codes)
    for code in pressed:
        if code >> 8 not in (0, EXTENDED) or not 0 < code & 0xFF < RELEASED:
            raise BadInput(f"scan code {code:#x}", "not 0x01 to 0x7f, or one of these with 0xe0 in front")
    return pressed + [code | RELEASED for code in reversed(pressed)]


def keys_for(character: str) -> list[int]:
    """Presses and releases that type ``character``. Raises BadInput when a US keyboard cannot."""
    if character in PLAIN:
        return chord((PLAIN[character],))
    if character in SHIFTED:
        return chord((SHIFT, SHIFTED[character]))
    if "\x01" <= character <= "\x1a":
        return chord((CONTROL, PLAIN[chr(ord(character) | 0x60)]))
    raise BadInput(f"character {character!r}", "a US keyboard has no key for it")


class Ps2Device:
    """One end of the cable: takes bytes, and has bytes to be taken, answers first."""

    STATE: ClassVar[tuple[str, ...]] = ("answers", "queue", "last", "argument_of")

    def __init__(self) -> None:
        self.answers: list[int] = []  # to commands
        self.queue: list[int] = []  # what happens by itself
        self.last = 0  # byte taken last
        self.argument_of = 0  # command whose argument comes next; 0: none

    def pending(self) -> bool:
        """Whether there is a byte to take."""
        return bool(self.answers or self.queue)

    def take(self) -> int:
        """The next byte for the controller."""
        self.last = (self.answers or self.queue).pop(0)
        return self.last

    def answer(self, *values: int) -> None:
        """Send an answer, as far as somebody takes it."""
        self.answers += values[: QUEUE - len(self.answers)]

    def state(self) -> State:
        values = {name: getattr(self, name) for name in self.STATE}
        return {name: list(value) if isinstance(value, list) else value for name, value in values.items()}

    def load_state(self, state: State) -> None:
        """Take over what ``state`` returned. Raises BadInput when the fields are not those of this device."""
        check_fields(type(self).__name__, state, self.STATE)
        for name, value in state.items():
            setattr(self, name, list(value) if isinstance(value, list) else value)


class Keyboard(Ps2Device):
    """The keyboard. Lights and repeat rate are taken note of by nobody: a held key does not repeat."""

    RELEASE: ClassVar[int] = 0xF0  # prefix of a release in set 2
    STATE: ClassVar[tuple[str, ...]] = (*Ps2Device.STATE, "scanning", "scan_set", "lights")
    LIGHTS, SCAN_SET, RATE, WITH_ARGUMENT = 0xED, 0xF0, 0xF3, (0xED, 0xF0, 0xF3)

    def __init__(self) -> None:
        super().__init__()
        self.scanning = True
        self.scan_set = 2
        self.lights = 0  # bit 0 scroll lock, 1 num lock, 2 caps lock

    def accepts_keys(self) -> bool:
        """Whether a key that is pressed now is sent before any other."""
        return self.scanning and not self.pending()

    def key(self, code: int) -> None:
        """A key is pressed or released."""
        low = code & 0xFF
        if code >> 8:
            self.queue.append(EXTENDED)
        if self.scan_set == 1:
            self.queue.append(low)
            return
        if low & RELEASED:
            self.queue.append(self.RELEASE)
        self.queue.append(TO_SET_2[low & ~RELEASED])

    def write(self, value: int) -> None:
        """A byte from the controller."""
        command, self.argument_of = self.argument_of, 0
        if command and value < 0x80:
            self._argument(command, value)
        elif value == 0xEE:
            self.answer(ECHO)
        elif value == 0xF2:
            self.answer(ACK, *KEYBOARD_ID)
        elif value == 0xFE:
            self.answer(self.last)
        elif value == 0xFF:
            self._restart(scanning=True)
            self.answer(ACK, TEST_PASSED)
        elif value in self.WITH_ARGUMENT:
            self.argument_of = value
            self.answer(ACK)
        elif value in (0xF4, 0xF5, 0xF6):
            if value == 0xF4:
                self.scanning = True
                self.queue.clear()
            else:
                self._restart(scanning=value == 0xF6)
            self.answer(ACK)
        else:
            self.answer(RESEND)

    def _argument(self, command: int, value: int) -> None:
        if command == self.SCAN_SET and value > 2:
            self.answer(RESEND)  # set 3 is not here
            return
        self.answer(ACK)
        if command == self.LIGHTS:
            self.lights = value & 7
        elif command == self.SCAN_SET:
            if value:
                self.scan_set = value
            else:
                self.answer(self.scan_set)

    def _restart(self, scanning: bool) -> None:
        self.scanning = scanning
        self.scan_set = 2
        self.lights = 0
        self.queue.clear()
        self.answers.clear()


class Mouse(Ps2Device):
    """The mouse. What it is moved while nobody asks for it is lost, but for the buttons."""

    STATE: ClassVar[tuple[str, ...]] = (
        *Ps2Device.STATE, "reporting", "remote", "wrapping", "double", "resolution", "rate", "rates", "has_wheel",
        "buttons", "moved",
    )  # fmt: skip
    RESOLUTION, RATE = 0xE8, 0xF3
    FARTHEST = 255  # counts of a report in either direction
    WHEEL_ID, WHEEL_RATES = 3, [200, 100, 80]

    SWITCHES: ClassVar[dict[int, tuple[str, bool]]] = {
        0xE6: ("double", False), 0xE7: ("double", True), 0xEA: ("remote", False), 0xF0: ("remote", True),
        0xEC: ("wrapping", False), 0xEE: ("wrapping", True), 0xF4: ("reporting", True), 0xF5: ("reporting", False),
    }  # fmt: skip
    ANSWERS: ClassVar[dict[int, tuple[int, ...]]] = dict.fromkeys((*SWITCHES, 0xE8, 0xE9, 0xF3, 0xF6), ()) | {
        0xEB: (),
        0xF2: (),
        0xFF: (TEST_PASSED, MOUSE_ID),
    }

    def __init__(self) -> None:
        super().__init__()
        self.buttons = 0
        self.has_wheel = False
        self.moved = [0, 0, 0]  # in remote mode since the last report: right, up, wheel
        self.rates: list[int] = []  # the last ones that were set
        self.wrapping = self.remote = self.reporting = False
        self._defaults()

    def move(self, right: int, up: int, wheel: int, buttons: int) -> None:
        """Somebody moves it, by counts, and holds these buttons.

        Args:
            wheel: clicks towards the person.
        """
        changed = buttons != self.buttons
        self.buttons = buttons
        if self.remote or not self.reporting:
            if self.remote:
                self.moved = [self.moved[0] + right, self.moved[1] + up, self.moved[2] + wheel]
            return
        while changed or right or up or (wheel and self.has_wheel):
            changed = False
            step = [self._within(right, self.FARTHEST), self._within(up, self.FARTHEST), self._within(wheel, 7)]
            if len(self.queue) + 4 <= QUEUE:
                self.queue += self._report(*step)
            right, up, wheel = right - step[0], up - step[1], wheel - step[2]

    @staticmethod
    def _within(way: int, most: int) -> int:
        return max(-most, min(way, most))

    def _report(self, right: int, up: int, wheel: int) -> list[int]:
        first = 0x08 | self.buttons | (right < 0) << 4 | (up < 0) << 5
        return [first, right & 0xFF, up & 0xFF, *([wheel & 0xFF] if self.has_wheel else [])]

    def _poll(self) -> list[int]:
        """What has happened since the last report in remote mode, as far as one report can tell."""
        right, up, wheel = self.moved
        self.moved = [0, 0, 0]
        return self._report(self._within(right, self.FARTHEST), self._within(up, self.FARTHEST), self._within(wheel, 7))

    def write(self, value: int) -> None:
        """A byte from the controller."""
        command, self.argument_of = self.argument_of, 0
        if self.wrapping and value not in (0xEC, 0xFF):
            self.answer(value)
        elif command == self.RESOLUTION:
            self.resolution = value
            self.answer(ACK)
        elif command == self.RATE:
            self.rate = value
            self.rates = [*self.rates[-2:], value]
            if self.rates == self.WHEEL_RATES:
                self.has_wheel = True
            self.answer(ACK)
        elif value == 0xFE:
            self.answer(self.last)
        elif value in self.ANSWERS:
            if value in (0xF6, 0xFF):
                self.has_wheel = self.has_wheel and value == 0xF6
                self._defaults()
            elif value in self.SWITCHES:
                name, on = self.SWITCHES[value]
                setattr(self, name, on)
            else:
                self.argument_of = value if value in (self.RESOLUTION, self.RATE) else 0
            self.answer(ACK, *self.ANSWERS[value])
            if value == 0xE9:
                self.answer(self._status(), self.resolution, self.rate)
            elif value == 0xEB:
                self.answer(*self._poll())
            elif value == 0xF2:
                self.answer(self.WHEEL_ID if self.has_wheel else MOUSE_ID)
        else:
            self.answer(RESEND)

    def _status(self) -> int:
        left, right, middle = (self.buttons >> bit & 1 for bit in range(3))
        modes = self.remote << 6 | self.reporting << 5 | self.double << 4
        return modes | left << 2 | middle << 1 | right

    def _defaults(self) -> None:
        self.moved, self.rates = [0, 0, 0], []
        self.queue.clear()
        self.reporting = self.remote = self.wrapping = self.double = False
        self.resolution = 2  # 4 counts a millimetre
        self.rate = 100  # reports a second
        self.answers.clear()
