"""A pytest fixture that boots guests: tests of kernels and of memory policies are a few lines.

It is there wherever emu is installed.  ::

    def test_my_kernel(vm):
        guest = vm("kernel.elf", ram="32M", mmu="nested", events=True)  # cpus=2: with two processors
        guest.wait_for("login: ", max_time="2s")
        guest.send(b"root\\n")
        assert guest.run(max_time="10s") == 1
        assert "panic" not in guest.console
        assert len(guest.events_of("page-fault")) < 1000

The report of a test that fails tells how its guests ended, with the virtual time, the last lines of their consoles and,
after a triple fault, the crash report.  All times are virtual: a test that passes on one machine passes on all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from emu.testing import GuestUnderTest

# Nothing else of emu is imported up here: every pytest run loads this module where emu is installed.

_guests_of = pytest.StashKey["list[GuestUnderTest]"]()


@pytest.fixture
def vm(request: pytest.FixtureRequest) -> Callable[..., GuestUnderTest]:
    """Boots a guest: ``vm(guest, **options)`` as :func:`emu.testing.boot`, any number of times."""
    from emu.testing import boot

    guests = request.node.stash.setdefault(_guests_of, [])

    def make(guest: Any, **options: Any) -> GuestUnderTest:
        __tracebackhide__ = True
        guests.append(boot(guest, **options))
        return guests[-1]

    return make


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Tell about the guests of a test that failed."""
    result: Any = yield
    guests = item.stash.get(_guests_of, None)
    if call.when != "call" or not guests or not result.get_result().failed:
        return
    from emu.testing import GuestFailure

    told = call.excinfo.value.guest if call.excinfo and isinstance(call.excinfo.value, GuestFailure) else None
    for number, guest in enumerate(guests, 1):
        if guest is not told:  # its message says it all
            name = guest.vm.guest.name if guest.vm.guest else guest.vm.name
            result.get_result().sections.append((f"guest {number}: {name}", guest.describe()))
