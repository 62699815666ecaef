"""The MMIO transport: Linux's virtio_mmio probe, its interrupts, and accesses of every kind."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emu.devices.virtio import VirtioDevice
from emu.errors import BadInput
from tests.devices.virtio_guest import INDIRECT_DESC, VERSION_1, Guest, Memory

SEL, NUM, READY, STATUS = 0x030, 0x038, 0x044, 0x070


class Plain(VirtioDevice):
    """Two queues and six bytes of configuration."""

    DEVICE_ID = 42
    FEATURES = 1 << 5
    QUEUES = (16, 64)

    def __init__(self, memory: Memory) -> None:
        super().__init__(memory)
        self.settings = bytearray(b"config")

    def config(self) -> bytes:
        return bytes(self.settings)

    def write_config(self, offset: int, data: bytes) -> None:
        self.settings[offset : offset + len(data)] = data


@pytest.fixture
def guest() -> Guest:
    return Guest(Plain)


def test_linux_probe(guest: Guest) -> None:
    """virtio_mmio_probe, vm_get_features, vm_setup_vq."""
    assert guest.get(0x000) == 0x7472_6976
    assert guest.get(0x004) == 2
    assert guest.get(0x008) == 42
    assert guest.offered() == VERSION_1 | INDIRECT_DESC | 1 << 5
    guest.set_up([16, 64])
    assert not guest.line.level


def test_features_that_do_not_fit(guest: Guest) -> None:
    for features in (0, 1 << 5, VERSION_1 | 1 << 6, VERSION_1 | 1 << 33):
        assert not guest.accept(features)
        assert guest.get(STATUS) == 3
    assert guest.accept(VERSION_1)
    guest.put(0x024, 0)
    guest.put(0x020, 1 << 5)
    assert guest.device.driver_features == VERSION_1, "they are settled"


def test_features_beyond_64_do_not_exist(guest: Guest) -> None:
    for group in (2, 3, 0xFFFF_FFFF):
        guest.put(0x014, group)
        assert guest.get(0x010) == 0
        guest.put(0x024, group)
        guest.put(0x020, 0xFFFF_FFFF)
    assert guest.device.driver_features == 0


def test_queues_that_do_not_exist(guest: Guest) -> None:
    guest.set_up([16, 64])
    guest.put(SEL, 2)
    assert (guest.get(0x034), guest.get(READY)) == (0, 0)
    for offset, value in ((NUM, 8), (0x080, 0x1000), (READY, 1)):
        guest.put(offset, value)
    assert guest.get(READY) == 0
    guest.put(0x050, 2)
    assert guest.get(STATUS) == 15


@pytest.mark.parametrize(
    ("offset", "value"), [(NUM, 0), (NUM, 12), (NUM, 32), (NUM, 1 << 31), (0x080, 8), (0x090, 1), (0x0A0, 2)]
)
def test_queues_that_are_none_do_not_get_ready(guest: Guest, offset: int, value: int) -> None:
    guest.accept(VERSION_1)
    guest.put(offset, value)
    guest.put(READY, 1)
    assert guest.get(READY) == 0


def test_a_ready_queue_does_not_move(guest: Guest) -> None:
    queue = guest.set_up([16])[0]
    guest.put(SEL, 0)
    guest.put(NUM, 4)
    guest.put(0x080, 0)
    assert guest.device.queues[0].size == 16
    assert guest.device.queues[0].descriptors == queue.descriptors
    guest.put(READY, 0)
    assert guest.get(READY) == 0


def test_addresses_of_64_bits(guest: Guest) -> None:
    guest.accept(VERSION_1)
    for offset in (0x080, 0x090, 0x0A0):
        guest.put(offset + 4, 0x12)
        guest.put(offset, 0x3456_7890)
    queue = guest.device.queues[0]
    assert queue.descriptors == queue.driver_area == queue.device_area == 0x12_3456_7890


def test_configuration_of_any_width(guest: Guest) -> None:
    assert [guest.get(0x100 + n, 1) for n in range(8)] == [*b"config", 0, 0]
    assert guest.get(0x102, 2) == int.from_bytes(b"nf", "little")
    assert guest.get(0x104, 4) == int.from_bytes(b"ig\0\0", "little")
    assert guest.get(0x1FC, 4) == 0
    guest.put(0x102, 0x5858, 2)
    assert guest.device.config() == b"coXXig"


def test_registers_are_words(guest: Guest) -> None:
    for offset, size in ((0x000, 1), (0x000, 2), (0x001, 4), (0x0FE, 2)):
        assert guest.get(offset, size) == 0
    guest.put(STATUS, 1, 1)
    guest.put(0x072, 1, 4)
    assert guest.get(STATUS) == 0


def test_there_is_no_shared_memory(guest: Guest) -> None:
    assert [guest.get(offset) for offset in (0x0B0, 0x0B4, 0x0B8, 0x0BC)] == [0xFFFF_FFFF] * 4


def test_interrupts_stay_until_they_are_acknowledged(guest: Guest) -> None:
    guest.set_up([16])
    guest.device.on_signal(1)
    generation = guest.get(0x0FC)
    guest.device.on_signal(2)
    assert guest.get(0x0FC) == generation + 1
    guest.put(0x064, 1)
    assert guest.line.level and guest.get(0x060) == 2
    guest.put(0x064, 2)
    assert not guest.line.level


def test_reset(guest: Guest) -> None:
    guest.set_up([16, 64])
    guest.device.on_signal(3)
    guest.put(STATUS, 0)
    assert (guest.get(STATUS), guest.get(0x060), guest.line.level) == (0, 0, False)
    assert not any(queue.ready for queue in guest.device.queues)
    assert guest.device.driver_features == 0


def test_state_survives_json(guest: Guest) -> None:
    guest.set_up([16, 64])
    guest.put(SEL, 1)
    guest.device.on_signal(2)
    other = Guest(Plain)
    guest.copy_into(other)
    for each in (guest, other):
        assert (each.get(STATUS), each.get(READY), each.get(0x034), each.get(0x060)) == (15, 1, 64, 2)
    with pytest.raises(BadInput):
        guest.mmio.load_state({"registers": {}})


ACCESSES = st.lists(
    st.tuples(
        st.booleans(),
        st.sampled_from([*range(0, 0x110, 4), 0x03, 0x71, 0x1FF]),
        st.sampled_from([1, 2, 4]),
        st.sampled_from([0, 1, 3, 11, 15, 0xFF, 0x1000]) | st.integers(0, 0xFFFF_FFFF),
    ),
    max_size=60,
)


@settings(max_examples=150, deadline=None)
@given(ACCESSES)
def test_nonsense_never_raises(accesses: list[tuple[bool, int, int, int]]) -> None:
    guest = Guest(Plain, Memory(0x8000))
    for write, offset, size, value in accesses:
        if write:
            guest.put(offset, value & (1 << 8 * size) - 1, size)
        else:
            assert 0 <= guest.get(offset, size) < 1 << 8 * size
    guest.device.settings[:] = b"config"  # type: ignore[attr-defined]
    guest.set_up([16, 64], base=0)
