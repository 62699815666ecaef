"""The pytest plugin, in pytest runs of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

from emu.engine.events import DmmFault, ExceptionDelivery
from emu.errors import BadInput
from emu.testing import GuestFailure, boot, virtual_time

ECHO = """
.code16
    mov dx, 0x3FD
wait:
    in al, dx
    test al, 1
    jz wait
    mov dx, 0x3F8
    in al, dx
    out 0xE9, al
    mov dx, 0x3FD
    cmp al, 'q'
    jne wait
    mov al, 3
    out 0xF4, al
"""


def test_wait_for_and_run(vm) -> None:
    guest = vm("hello", events=True)
    assert (guest.outcome, guest.exit_status) == (None, None)
    guest.wait_for("real mode")
    assert guest.console.endswith("real mode") and guest.exit_status == 0
    guest.wait_for("CR0.PE", max_time="1ms")
    assert guest.run() == 1 == guest.exit_status
    assert "protected mode" in guest.console
    assert [event.sequence for event in guest.events] == list(range(len(guest.events)))
    assert guest.events_of("dmm-fault") == guest.events_of(DmmFault) != []


def test_what_was_printed_before_counts_once(vm) -> None:
    guest = vm(ECHO)
    guest.send("ab")
    guest.wait_for("ab")
    guest.send("abq")
    guest.wait_for("a")
    guest.wait_for("b")
    guest.expect_status(7)
    with pytest.raises(GuestFailure):
        guest.wait_for("a")
    guest.wait_for("q")


def test_events_of_some_kinds_only(vm) -> None:
    guest = vm("paging32", events=["exception"])
    guest.expect_status(1)
    assert guest.events and all(isinstance(event, ExceptionDelivery) for event in guest.events)


def test_events_that_are_not_collected_are_not_none(vm) -> None:
    nothing = vm("hello")
    nothing.run()
    for ask in (lambda: nothing.events_of("page-fault"), lambda: nothing.events):
        with pytest.raises(BadInput, match="boot the guest with events=True"):
            ask()
    exceptions = vm("hello", events=["exception"])
    exceptions.run()
    assert exceptions.events_of(ExceptionDelivery) == [] == exceptions.events
    with pytest.raises(BadInput, match="dmm-fault: not collected; the guest was booted for exception"):
        exceptions.events_of("exception", "dmm-fault")
    with pytest.raises(BadInput, match="expected kinds of events"):
        exceptions.events_of()


@pytest.mark.parametrize("seed", range(3))
def test_several_processors(vm, seed: int) -> None:
    guest = vm("smp", cpus=2, append="part=2", schedule=f"seed={seed}", events=["interrupt"])
    guest.expect_status(1, max_time="1s")
    assert {event.cpu for event in guest.events} == {0, 1}


def test_several_guests(vm) -> None:
    first, second = vm("hello"), vm("hello", mmu="nested")
    first.run()
    second.run()
    assert first.console == second.console


def test_the_message_of_a_guest_that_does_not_print(vm) -> None:
    guest = vm("hello")
    with pytest.raises(GuestFailure) as failure:
        guest.wait_for("login:", max_time="2 ms")
    assert failure.value.outcome.status == 1
    message = str(failure.value)
    assert "hello: waited for 'login:' for at most 2 ms, but the guest wrote 0 to the exit port" in message
    assert "virtual time 61.26 us" in message
    assert "| loaded a GDT" in message


def test_the_message_of_a_guest_that_hangs(vm) -> None:
    guest = vm(".code16\n    jmp .\n")
    with pytest.raises(GuestFailure, match="limit in virtual time was reached.*\n.*printed nothing"):
        guest.wait_for("x", max_time="1ms")


def test_the_message_of_a_guest_that_crashes(vm) -> None:
    guest = vm("crash")
    with pytest.raises(GuestFailure) as failure:
        guest.expect_status(1)
    assert guest.exit_status == 134
    assert "triple fault" in str(failure.value) and "page walk" in str(failure.value)


@pytest.mark.parametrize(
    ("text", "ns"), [("1s", 10**9), ("1.5 ms", 1_500_000), (" 7ns ", 7), (2, 2 * 10**9), (0.25, 25 * 10**7)],
)
def test_virtual_times(text: str | float, ns: int) -> None:
    assert virtual_time(text) == ns


@pytest.mark.parametrize("text", ["", "1", "1 h", "-1s", "s", "1e3s"])
def test_what_is_no_virtual_time(text: str) -> None:
    with pytest.raises(BadInput):
        virtual_time(text)


def test_a_source_that_does_not_assemble() -> None:
    with pytest.raises(BadInput, match="bogus"):
        boot(".code16\n    bogus\n")


def test_no_such_kind_of_event() -> None:
    with pytest.raises(BadInput, match="no kind of event"):
        boot("hello", events=["page-faults"])


def test_the_report_of_a_test_that_fails(pytester: pytest.Pytester) -> None:
    # where emu is installed, its entry point has registered the plugin already
    pytester.makeconftest("""
        import emu.pytest_plugin

        def pytest_configure(config):
            if not config.pluginmanager.has_plugin("emu"):
                config.pluginmanager.register(emu.pytest_plugin, "emu")
    """)
    pytester.makepyfile("""
        def test_it(vm):
            assert vm("crash").run() == 1
    """)
    result = pytester.runpytest()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*guest 1: crash*", "*triple fault*status 134*", "*CR2*"])


def test_importing_the_plugin_is_cheap() -> None:
    script = "import sys, emu.pytest_plugin; print({'numba', 'unicorn', 'numpy'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout.strip() == "set()"
