"""Tiny wheels and requirements files, so that environments are made in tests without a network."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from portolan.core import environments


def wheel(folder: Path, name: str, version: str, files: Mapping[str, str] | None = None) -> Path:
    """A wheel of pure Python; by default one module of its name."""
    folder.mkdir(parents=True, exist_ok=True)
    info, path = f"{name}-{version}.dist-info", folder / f"{name}-{version}-py3-none-any.whl"
    contents = dict(files or {f"{name}.py": f"VERSION = {version!r}\n"})
    contents[f"{info}/METADATA"] = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    contents[f"{info}/WHEEL"] = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    record = f"{info}/RECORD"
    contents[record] = "".join(f"{file},,\n" for file in (*contents, record))
    with zipfile.ZipFile(path, "w") as archive:
        for file, text in contents.items():
            archive.writestr(file, text)
    return path


class Shop:
    """Plans and wheels of a test, and the folder in which environments go."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.plans, self.wheels, self.root = folder / "plans", folder / "wheels", folder / "envs"
        self.plans.mkdir()
        self.wheels.mkdir()
        patch.setattr(environments, "PLANS", self.plans)
        settings = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(self.wheels), "PIP_CONFIG_FILE": "/dev/null"}
        for name, value in {environments.VARIABLE: str(self.root), **settings}.items():
            patch.setenv(name, value)

    def plan(self, name: str, text: str) -> None:
        """A requirements file."""
        (self.plans / f"{name}.txt").write_text(text)
