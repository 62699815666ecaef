"""Console output: collected where nobody is in a hurry, in order, and never lost."""

from __future__ import annotations

import ctypes

from emu.devices.output import ALL, ConsoleOutput


def collect(output: ConsoleOutput, data: bytes) -> None:
    """What the native plane does."""
    for byte in data:
        assert not ctypes.c_ubyte.from_address(output.urgent_at + byte).value
        ctypes.c_ubyte.from_address(output.data_at + output.count).value = byte
        output.count += 1


def urgent(output: ConsoleOutput) -> bytes:
    return bytes(byte for byte in ALL if ctypes.c_ubyte.from_address(output.urgent_at + byte).value)


def test_what_is_collected_comes_before_what_is_printed_then() -> None:
    output = ConsoleOutput()
    seen: list[bytes] = []
    output.listen(seen.append, urgent=b"")
    collect(output, b"first ")
    output(b"then")
    assert (seen, output.printed) == ([b"first ", b"then"], b"first then")


def test_looking_shows_what_is_collected() -> None:
    output = ConsoleOutput()
    seen: list[bytes] = []
    output.listen(seen.append, urgent=b"")
    collect(output, b"text")
    assert output.printed == b"text"
    assert seen == [b"text"]
    output.flush()
    assert seen == [b"text"]


def test_a_listener_gets_what_is_printed_while_it_listens() -> None:
    output = ConsoleOutput()
    seen: list[bytes] = []
    collect(output, b"before ")
    output.listen(seen.append, urgent=b"")
    collect(output, b"within ")
    output.unlisten(seen.append)
    collect(output, b"behind")
    assert seen == [b"within "]
    assert output.printed == b"before within behind"


def test_the_urgent_bytes_are_those_of_all_who_listen() -> None:
    output = ConsoleOutput()
    sinks: list[list[bytes]] = [[], [], []]
    assert urgent(output) == b""
    output.listen(sinks[0].append, urgent=b"#")
    output.listen(sinks[1].append, urgent=b"$#")
    assert urgent(output) == b"#$"
    output.listen(sinks[2].append)
    assert urgent(output) == ALL
    output.unlisten(sinks[2].append)
    output.unlisten(sinks[1].append)
    assert urgent(output) == b"#"
