"""Each processor finds its own APIC in the page."""

from __future__ import annotations

from emu.devices.apic_bus import ApicBus
from emu.devices.apic_page import ApicPage
from emu.devices.cpu_pins import CpuPins

ID, SVR = 0x20, 0xF0


def test_the_running_processor_is_the_one_that_is_asked() -> None:
    pins = CpuPins(lambda cpu, level: None, lambda cpu: None, lambda cpu: None, lambda cpu, vector: None)
    apics = ApicBus(3, pins, lambda: 0, lambda vector: None, lambda: 0).apics
    running = 0
    page = ApicPage(apics, lambda: running)
    ids = []
    for running in range(3):
        ids.append(page.read(ID, 4) >> 24)
        page.write(SVR, 4, 0x1F0 + running)
    assert ids == [0, 1, 2]
    assert [apic.read(SVR, 4) for apic in apics] == [0x1F0, 0x1F1, 0x1F2]
    running = 1
    assert apics[1].write_msr(0x1B, 0xFEE0_0C00)
    page.write(SVR, 4, 0x1FF)
    assert (page.read(SVR, 4), page.read(SVR, 1)) == (0xFFFF_FFFF, 0xFF), "in x2APIC mode the page is not there"
    assert apics[1].read_msr(0x80F) == 0x1F1
    running = 2
    assert page.read(SVR, 4) == 0x1F2, "but it is for the others"
