"""What the tests of the DMM start from."""

from __future__ import annotations

import pytest

from tests.dmm.bench import Bench


@pytest.fixture(params=["shadow", "nested"])
def bench(request: pytest.FixtureRequest) -> Bench:
    return Bench(request.param)
