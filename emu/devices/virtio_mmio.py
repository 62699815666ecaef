"""Virtio registers in memory, version 2. Source: VIRTIO 1.1, section 4.2.

One window of 0x200 bytes and one level interrupt for each device. Registers by offset, four bytes each:
    000 R  "virt"                    030 W  queue select             070 RW status (0: reset)
    004 R  version                   034 R  queue's maximum size     080 W  descriptors, low and high
    008 R  device ID                 038 W  queue size               090 W  driver area, low and high
    00c R  vendor                    044 RW queue ready              0a0 W  device area, low and high
    010 R  device features           050 W  queue notify             0b0 R  shared memory, four: there is none
    014 W  which 32 of them          060 R  interrupt status         0fc R  configuration generation
    020 W  driver features           064 W  interrupt acknowledge    100 RW the device's configuration, any width
    024 W  which 32 of them
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from emu.devices.device import Device, IrqLine, State, check_fields
from emu.devices.virtio import CONFIG_INTERRUPT, FEATURES_OK, VirtioDevice, Virtqueue

WINDOW = 0x200  # bytes of addresses
MAGIC = int.from_bytes(b"virt", "little")
VERSION = 2  # not a legacy device
VENDOR = int.from_bytes(b"QEMU", "little")  # what QEMU's have; no driver asks

DEVICE_FEATURES = 0x010
DEVICE_FEATURES_SELECT = 0x014
DRIVER_FEATURES = 0x020
DRIVER_FEATURES_SELECT = 0x024
QUEUE_SELECT = 0x030
QUEUE_MAXIMUM = 0x034
QUEUE_SIZE = 0x038
QUEUE_READY = 0x044
QUEUE_NOTIFY = 0x050
INTERRUPT_STATUS = 0x060
INTERRUPT_ACK = 0x064
STATUS = 0x070
AREAS = {0x080: "descriptors", 0x090: "driver_area", 0x0A0: "device_area"}  # low half; the high one is 4 above
SHARED_MEMORY = range(0x0B0, 0x0C0, 4)  # length and base, all ones: no such region
GENERATION = 0x0FC
CONFIG = 0x100
LOW, HIGH = 0xFFFF_FFFF, 0xFFFF_FFFF << 32


class VirtioMmio(Device):
    """The registers of one device."""

    max_access: ClassVar[int] = 4
    STATE: ClassVar[tuple[str, ...]] = (
        "device_features_select",
        "driver_features_select",
        "queue_select",
        "interrupts",
        "generation",
    )

    def __init__(self, line: IrqLine, device: VirtioDevice) -> None:
        self._line = line
        self.device = device
        self.device_features_select = 0  # number of a group of 32 features
        self.driver_features_select = 0
        self.queue_select = 0
        self.interrupts = 0  # reasons not yet acknowledged
        self.generation = 0  # counts changes of the configuration
        device.on_signal = self._signal

    def read(self, offset: int, size: int) -> int:
        if offset >= CONFIG:
            return int.from_bytes(self.device.config()[offset - CONFIG :][:size], "little")
        found = self._READS.get(offset) if size == 4 else None
        return 0 if found is None else found(self)

    def write(self, offset: int, size: int, value: int) -> None:
        if offset >= CONFIG:
            self.device.write_config(offset - CONFIG, value.to_bytes(size, "little"))
        elif size == 4 and offset & ~4 in AREAS:
            self._set_area(AREAS[offset & ~4], bool(offset & 4), value)
        elif size == 4 and offset in self._WRITES:
            self._WRITES[offset](self, value)

    def machine_reset(self, power_up: State) -> None:
        self._set_status(0)

    def state(self) -> State:
        return {"registers": super().state(), "device": self.device.state()}

    def load_state(self, state: State) -> None:
        check_fields("VirtioMmio", state, ("registers", "device"))
        super().load_state(state["registers"])
        self.device.load_state(state["device"])

    def _queue(self) -> Virtqueue | None:
        """The selected queue."""
        queues = self.device.queues
        return queues[self.queue_select] if self.queue_select < len(queues) else None

    def _signal(self, reason: int) -> None:
        self.interrupts |= reason
        if reason & CONFIG_INTERRUPT:
            self.generation = self.generation + 1 & LOW
        self._line.set(True)

    def _device_features(self) -> int:
        return self.device.features >> 32 * min(self.device_features_select, 2) & LOW

    def _maximum(self) -> int:
        queue = self._queue()
        return 0 if queue is None else queue.maximum

    def _ready(self) -> int:
        queue = self._queue()
        return int(queue is not None and queue.ready)

    def _select_device_features(self, value: int) -> None:
        self.device_features_select = value

    def _select_driver_features(self, value: int) -> None:
        self.driver_features_select = value

    def _set_driver_features(self, value: int) -> None:
        """They are fixed once both sides agreed on them; those beyond 64 do not exist."""
        device, group = self.device, self.driver_features_select
        if group < 2 and not device.status & FEATURES_OK:
            device.driver_features = device.driver_features & ~(LOW << 32 * group) | value << 32 * group

    def _select_queue(self, value: int) -> None:
        self.queue_select = value

    def _set_size(self, value: int) -> None:
        queue = self._queue()
        if queue is not None and not queue.ready:
            queue.size = value

    def _set_ready(self, value: int) -> None:
        queue = self._queue()
        if queue is not None and bool(value & 1) != queue.ready:
            queue.set_ready(bool(value & 1))

    def _set_area(self, name: str, high: bool, value: int) -> None:
        queue = self._queue()
        if queue is not None and not queue.ready:
            old = getattr(queue, name)
            setattr(queue, name, old & LOW | value << 32 if high else old & HIGH | value)

    def _notify(self, value: int) -> None:
        self.device.notify(value)

    def _acknowledge(self, value: int) -> None:
        self.interrupts &= ~value
        self._line.set(bool(self.interrupts))

    def _set_status(self, value: int) -> None:
        if value & 0xFF == 0:
            self.interrupts = self.queue_select = 0
            self.device_features_select = self.driver_features_select = 0
            self._line.set(False)
        self.device.set_status(value & 0xFF)

    _READS: ClassVar[dict[int, Callable[[VirtioMmio], int]]] = {
        0x000: lambda self: MAGIC,
        0x004: lambda self: VERSION,
        0x008: lambda self: self.device.DEVICE_ID,
        0x00C: lambda self: VENDOR,
        DEVICE_FEATURES: _device_features,
        QUEUE_MAXIMUM: _maximum,
        QUEUE_READY: _ready,
        INTERRUPT_STATUS: lambda self: self.interrupts,
        STATUS: lambda self: self.device.status,
        **dict.fromkeys(SHARED_MEMORY, lambda self: LOW),
        GENERATION: lambda self: self.generation,
    }

    _WRITES: ClassVar[dict[int, Callable[[VirtioMmio, int], None]]] = {
        DEVICE_FEATURES_SELECT: _select_device_features,
        DRIVER_FEATURES: _set_driver_features,
        DRIVER_FEATURES_SELECT: _select_driver_features,
        QUEUE_SELECT: _select_queue,
        QUEUE_SIZE: _set_size,
        QUEUE_READY: _set_ready,
        QUEUE_NOTIFY: _notify,
        INTERRUPT_ACK: _acknowledge,
        STATUS: _set_status,
    }


class EmptySlot(Device):
    """A window without a device: a driver reads device ID 0 and leaves it alone (4.2.2.2)."""

    max_access: ClassVar[int] = 4

    def read(self, offset: int, size: int) -> int:
        return {0: MAGIC, 4: VERSION}.get(offset, 0)

    def write(self, offset: int, size: int, value: int) -> None:
        pass
