"""List the guests that come with emu, with what their command line (--append) may set."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """None yet."""


def main(options: argparse.Namespace) -> int:
    from emu import firmware

    guests = firmware.guests().values()
    width = max(len(guest.name) for guest in guests)
    for guest in guests:
        print(f"{guest.name:<{width}}  {guest.summary}")
        for name, parameter in guest.parameters.items():
            print(f"{'':<{width}}    {name}={parameter.default}  {parameter.meaning}")
    print()
    print("Run one with: emu run NAME")
    print(f"The sources are in {firmware.firmware_directory()}")
    return 0
