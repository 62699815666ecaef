"""Builds the native plane when emu is installed, so that no start has to (:mod:`emu.engine.native_object`)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

_FOLDER = "emu/_native"
_BUILD = f"""
from pathlib import Path
from emu.engine.native_object import build_into
print(build_into(Path("{_FOLDER}")))
"""


class NativePlane(BuildHookInterface):
    """For wheels and editable installs."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name != "wheel":
            return
        done = subprocess.run([sys.executable, "-c", _BUILD], cwd=self.root, stdout=subprocess.PIPE, text=True)
        if done.returncode:  # the first start compiles, then
            self.app.display_warning("emu: the native plane could not be compiled; the first start will try again")
            return
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{_platform()}"
        build_data["artifacts"].append(f"{_FOLDER}/{Path(done.stdout.strip()).name}")


def _platform() -> str:
    from packaging.tags import platform_tags

    return next(tag for tag in platform_tags() if not tag.startswith("many"))
