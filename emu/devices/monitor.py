"""Somebody who looks at the text screen every now and then, in virtual time.

Nothing tells when a guest has drawn something: text memory is memory. So it is looked at every LOOK_NS, while somebody
wants to know, and without touching a page.
"""

from __future__ import annotations

from collections.abc import Callable

from emu.devices.vga import ScreenText, Vga

LOOK_NS = 10_000_000  # from one look to the next; a key is not pressed and released faster


class Monitor:
    """Calls each of ``watchers`` with what is on the screen, whenever that has changed."""

    def __init__(self, vga: Vga) -> None:
        self._vga = vga
        self._looked_ns = 0
        self._last: ScreenText | None = None
        self.watchers: list[Callable[[ScreenText], None]] = []

    def deadline(self) -> int | None:
        """Virtual time in ns of the next look; None while nobody watches."""
        return (self._looked_ns // LOOK_NS + 1) * LOOK_NS if self.watchers else None

    def tick(self, now_ns: int) -> None:
        """Look, if it is time for that."""
        deadline = self.deadline()
        if deadline is not None and deadline <= now_ns:
            self.look(now_ns)

    def look(self, now_ns: int) -> None:
        """Look now."""
        self._looked_ns = now_ns
        seen = self._vga.text()
        if seen != self._last:
            self._last = seen
            for watcher in tuple(self.watchers):
                watcher(seen)
