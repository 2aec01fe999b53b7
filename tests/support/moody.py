"""A runtime that does what its inputs say: x[0, 0] of 666 ends the process, 777 hangs, 888 raises, below 0 sleeps.

Installed as a package with an entry point, so that replicas find it; `y` is `x` times the number in `factor.txt`. Where
there is a `rows.txt`, it runs with that many rows alone; where there is a `ragged.txt`, `y` has the columns above 1.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from portolan.bundle import BundleParts, write_bundle
from portolan.core import registry
from portolan.core.model import Model
from portolan.core.recipe import Recipe
from portolan.core.signature import Signature, TensorSpec
from portolan.core.target import Target

SOURCE = """
import os, signal, threading, time
from portolan.core.backend import Backend, Executable

class Play(Executable):
    def __init__(self, folder):
        self.factor = float((folder / "factor.txt").read_text())
        rows = folder / "rows.txt"
        self.rows = int(rows.read_text()) if rows.exists() else None
        self.ragged = (folder / "ragged.txt").exists()
    def run(self, inputs):
        x = inputs["x"]
        if self.rows is not None and len(x) != self.rows:
            raise RuntimeError(f"{len(x)} rows, and it takes {self.rows}")
        first = x[:, 0]
        if (first == 666).any():
            os.kill(os.getpid(), signal.SIGKILL)
        if (first == 777).any():
            threading.Event().wait()
        if (first == 888).any():
            raise RuntimeError("the inputs say: fail")
        if (first < 0).any():
            time.sleep(float(-first.min()))
        y = x * self.factor
        return {"y": y[:, x[0] > 1] if self.ragged else y}
    def save(self, folder):
        (folder / "factor.txt").write_text(str(self.factor))

class Moody(Backend):
    name = "moody"
    distributions = ("moody-runtime",)
    module = "moody_runtime"
    fix = "pip install moody-runtime"
    def compile(self, model, target):
        raise NotImplementedError
    def load(self, folder):
        return Play(folder)

moody = Moody()
"""
SIGNATURE = Signature((TensorSpec("x", "float32", ("N", 4)),), (TensorSpec("y", "float32", ("N", 4)),))
TARGET = Target("lab", "physical", "x86_64", (), 2, 2**34)


def install(site: Path) -> dict[str, str]:
    """Makes `site` a folder of packages with the runtime; the environment that finds it."""
    site.mkdir(parents=True, exist_ok=True)
    (site / "moody_backend.py").write_text(SOURCE)
    (site / "moody_runtime.py").write_text("")
    info = site / "moody_runtime-1.0.dist-info"
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: moody-runtime\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[portolan.backends]\nmoody = moody_backend:moody\n")
    return {"PYTHONPATH": f"{site}:{Path(registry.__file__).parents[2]}"}


def bundle(out: Path, factor: float = 2.0, **serving: Any) -> Path:
    """A bundle for it."""
    folder = out.parent / f"built-{out.name}-{factor}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "factor.txt").write_text(str(factor))
    x = np.ones((2, 4), np.float32)
    parts = BundleParts(
        name="moody",
        model=Model("moody", folder / "model.onnx", hashlib.sha256(b"moody").hexdigest(), SIGNATURE),
        recipe=Recipe((), "moody", {}, serving=serving),
        compiled=folder,
        golden_inputs={"x": x},
        golden_outputs={"y": x * factor},
        claims={},
        target=TARGET,
        backend_versions={"moody-runtime": "1.0"},
        created="2026-11-20T12:00:00Z",
        environment={},
    )
    return write_bundle(out, parts, force=out.exists())
