"""Options and fixtures of the project's own tests."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-goldens", action="store_true", help="write tests/guests/golden anew")


def pytest_configure(config: pytest.Config) -> None:
    """The plugin under test, where emu is not installed but run from a checkout."""
    config.pluginmanager.import_plugin("pytester")
    if not config.pluginmanager.has_plugin("emu"):
        import emu.pytest_plugin

        config.pluginmanager.register(emu.pytest_plugin, "emu")
