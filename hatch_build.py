"""Compiles what every request passes through, when a wheel is built: interpreted, it is most of what the front does.

An editable install stays as it is, so that no compiled module hides what was edited. `PORTOLAN_COMPILE=0` makes a wheel
that runs anywhere, as does a machine without a C compiler.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

#: Of `portolan.serving`; mypyc compiles them together, and calls between them pass the interpreter by.
MODULES = (
    *("arena", "batches", "calls", "checks", "codec", "cores", "counters", "datatypes", "direct", "door", "entry"),
    *("executor", "expected", "gate", "guard", "heads", "http", "instance", "models", "pool", "protocol"),
    *("reading", "request", "responses", "routes", "scheduler", "ticket", "turns", "version", "wire"),
)
_MYPYC = "mypy[mypyc]>=1.18,<3"
#: Run where the sources are; the first argument is where the modules go.
_SETUP = """
import os, sys
from mypyc.build import mypycify
from setuptools import setup

place, *sources = sys.argv[1:]
flags = ["--ignore-missing-imports", "--follow-imports=silent"]
modules = mypycify([*flags, *sources], opt_level=os.environ.get("MYPYC_OPT_LEVEL", "3"), target_dir=place + "/c")
setup(name="portolan", packages=[], ext_modules=modules,
      script_args=["-q", "build_ext", "--build-lib", place + "/lib", "--build-temp", place + "/o"])
"""


class Compiled(BuildHookInterface):
    """The hook that `pyproject.toml` names."""

    PLUGIN_NAME = "custom"
    _place: Path | None = None

    def dependencies(self) -> list[str]:
        """What the build needs besides hatchling."""
        return [_MYPYC] if _wanted() else []

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compiles, unless the install is editable or nobody wants it."""
        if version == "editable" or not _wanted():
            return
        place = self._place = Path(tempfile.mkdtemp(prefix="portolan-build-"))
        sources = [f"portolan/serving/{name}.py" for name in MODULES]
        environment = {**os.environ, "MYPYPATH": ".", "MYPY_CACHE_DIR": str(place / "cache")}
        argv = [sys.executable, "-c", _SETUP, str(place), *sources]
        done = subprocess.run(argv, cwd=Path(self.root) / "src", env=environment, capture_output=True, text=True)
        if done.returncode:
            self.finalize(version, build_data, "")
            self.app.abort(f"{done.stderr}\nthe server was not compiled; PORTOLAN_COMPILE=0 leaves it interpreted")
        build_data["pure_python"] = False
        build_data["infer_tag"] = True
        for module in place.glob(f"lib/**/*{sysconfig.get_config_var('EXT_SUFFIX')}"):
            build_data["force_include"][str(module)] = str(module.relative_to(place / "lib"))

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Removes what was built on the way."""
        if self._place is not None:
            shutil.rmtree(self._place, ignore_errors=True)


def _wanted() -> bool:
    asked = os.environ.get("PORTOLAN_COMPILE")
    if asked is not None:
        return asked != "0"
    return shutil.which(os.environ.get("CC", "cc").split()[0]) is not None
