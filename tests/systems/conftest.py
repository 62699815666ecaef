"""The public guests, fetched once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from emu.boot import packages


def fetched(what: Callable[[], Path]) -> Path:
    try:
        return what()
    except packages.NoPackage as error:
        pytest.skip(f"no package source: {error}")


@pytest.fixture(scope="session")
def kernel() -> Path:
    return fetched(packages.kernel)


@pytest.fixture(scope="session")
def busybox() -> Path:
    return fetched(packages.busybox)


@pytest.fixture(scope="session")
def memtest() -> Path:
    return fetched(packages.memtest)
