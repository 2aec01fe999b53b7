"""Small real bundles, a tiny backend to run them on, and the tools to break them."""

from __future__ import annotations

import hashlib
import io
import json
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from portolan.bundle import Bundle, BundleParts, open_bundle, write_bundle
from portolan.bundle.fields import encode
from portolan.core import registry
from portolan.core.measurement import Measurement
from portolan.core.model import Model
from portolan.core.recipe import Recipe, Step
from portolan.core.serving import Profile
from portolan.core.signature import Signature, TensorSpec
from portolan.core.target import Target
from portolan.errors import PortolanError, VerificationFailed

CREATED = "2026-11-20T12:00:00Z"
#: A runtime in one file: y = x @ w + b, and the index of its largest value. `PORTOLAN_TINY` makes it misbehave.
TINY = """
import os, sys
from pathlib import Path
import numpy as np
from portolan.core.backend import Backend, Executable

class Product(Executable):
    def __init__(self, folder):
        import tiny_runtime
        with np.load(folder / "weights.npz", allow_pickle=False) as arrays:
            self.w, self.b = arrays["w"], arrays["b"]
    def run(self, inputs):
        mood = os.environ.get("PORTOLAN_TINY", "")
        if mood == "print":
            os.write(1, b"noise of a runtime on stdout\\n")
        if mood == "crash":
            import signal
            os.kill(os.getpid(), signal.SIGSEGV)
        if mood == "hang":
            import threading
            threading.Event().wait()
        if mood == "raise":
            raise RuntimeError("kernel launch failed")
        y = inputs["x"] @ self.w + self.b
        if mood == "wrong":
            y = y + 0.5
        if mood == "nan":
            y[0, 0] = np.nan
        if mood == "shape":
            y = y[:, :1]
        if mood == "type":
            y = y.astype(np.float64)
        outputs = {"y": y, "label": y.argmax(axis=-1)}
        if mood == "less":
            del outputs["label"]
        return outputs
    def save(self, folder):
        np.savez(folder / "weights.npz", w=self.w, b=self.b)

class Tiny(Backend):
    name = "tiny"
    distributions = ("tiny-runtime",)
    module = "tiny_runtime"
    fix = "pip install tiny-runtime"
    def compile(self, model, target, *, threads: int = 0):
        return Product(model.path.parent)
    def load(self, folder, *, threads: int = 0):
        return Product(folder)

class Absent(Tiny):
    name = "absent"
    distributions = ("absent-runtime",)
    module = "absent_runtime"
    fix = "pip install absent-runtime"

tiny = Tiny()
absent = Absent()
"""
TARGET = Target(
    id="lab-7", kind="physical", arch="x86_64", features=("avx2", "avx512f", "sme", "smep", "sse"), cores=2, ram=2**34,
    caches={"L2": 2**21}, display="a test machine", reach=("ssh", "lab-7"), runtimes={"tiny-runtime": "1.2"},
)  # fmt: skip
SIGNATURE = Signature(
    (TensorSpec("x", "float32", ("N", 4)),),
    (TensorSpec("y", "float32", ("N", 3)), TensorSpec("label", "int64", ("N",))),
)


def install_tiny(site: Path, version: str = "1.2") -> Path:
    """Makes `site` a folder of installed packages that brings the backends `tiny`, ready, and `absent`, not ready."""
    site.mkdir(parents=True, exist_ok=True)
    (site / "tiny_backend.py").write_text(TINY)
    (site / "tiny_runtime.py").write_text("")
    info = site / f"tiny_runtime-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: tiny-runtime\nVersion: {version}\n")
    entries = "[portolan.backends]\ntiny = tiny_backend:tiny\nabsent = tiny_backend:absent\nlost = tiny_lost:lost\n"
    (info / "entry_points.txt").write_text(entries)
    return site


def use_site(monkeypatch: Any, site: Path) -> None:
    """Puts `site` on this process's path and on that of the processes it starts."""
    monkeypatch.syspath_prepend(str(site))
    source = Path(registry.__file__).parents[2]
    monkeypatch.setenv("PYTHONPATH", f"{site}:{source}")
    for module in ("tiny_backend", "tiny_runtime"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.delitem(registry.BACKENDS.__dict__, "_places", raising=False)
    # Filled again inside the test, and emptied after it: other tests must not see `tiny`.
    monkeypatch.setitem(registry.BACKENDS.__dict__, "_places", registry.Registry("backends")._places)


def weights() -> dict[str, np.ndarray]:
    """The parameters of the product."""
    rng = np.random.default_rng(7)
    return {"w": rng.standard_normal((4, 3)).astype(np.float32), "b": rng.standard_normal(3).astype(np.float32)}


def make_parts(folder: Path, backend: str = "tiny", **changes: Any) -> BundleParts:
    """The parts of a good bundle; its compiled files go into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "weights.npz", **weights())
    x = np.random.default_rng(3).standard_normal((5, 4)).astype(np.float32)
    y = x @ weights()["w"] + weights()["b"]
    recipe = Recipe((Step("quantize", {"bits": 8, "scheme": None}),), backend, {"threads": 1})
    parts: dict[str, Any] = {
        "name": "product",
        "model": Model("product", folder / "model.onnx", hashlib.sha256(b"model").hexdigest(), SIGNATURE),
        "recipe": recipe,
        "compiled": folder,
        "golden_inputs": {"x": x},
        "golden_outputs": {"y": y, "label": y.argmax(axis=-1)},
        "claims": {"latency_p95": Measurement.of("latency_p95", 6.9, 6.8, 7.0, 312)},
        "target": TARGET,
        "backend_versions": {"tiny-runtime": "1.2"},
        "created": CREATED,
        "environment": {"load": 0.1, "governor": None},
        "profile": Profile({1: Measurement(0.004, "s", n=40), 2: Measurement(0.006, "s", n=40)}),
    }
    return BundleParts(**{**parts, **changes})


def make_bundle(tmp: Path, out: str = "product", **changes: Any) -> Path:
    """A good bundle: a folder, or a file if `out` ends in `.portolan`."""
    return write_bundle(tmp / out, make_parts(tmp / "built", **changes))


def reseal(folder: Path, change: Callable[[dict[str, Any]], None] | None = None, *, rehash: bool = True) -> Path:
    """Changes a folder's manifest as somebody would who knows the format: digests and its own sha256 made right."""
    path = folder / "manifest.json"
    data = json.loads(path.read_bytes())
    if rehash:
        for entry in data["files"]:
            raw = (folder / entry["path"]).read_bytes()
            entry["bytes"], entry["sha256"] = len(raw), hashlib.sha256(raw).hexdigest()
    if change:
        change(data)
    data.pop("sha256", None)
    data["sha256"] = hashlib.sha256(encode(data)).hexdigest()
    path.write_bytes(encode(data))
    return folder


def read_entries(path: Path) -> list[tuple[str, bytes]]:
    """The entries of a zip, in order."""
    with zipfile.ZipFile(path) as archive:
        return [(info.filename, archive.read(info)) for info in archive.infolist()]


def zip_entries(
    path: Path, entries: list[tuple[str | zipfile.ZipInfo, bytes]], method: int = zipfile.ZIP_STORED
) -> Path:
    """Writes a zip with just these entries, whatever their names."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, raw in entries:
            archive.writestr(name, raw, method)
    path.write_bytes(out.getvalue())
    return path


def bundle_sha256(path: Path) -> str:
    """The hash of a bundle."""
    with open_bundle(path) as bundle:
        return bundle.sha256


def opened_or_refused(path: Path) -> Bundle | None:
    """The bundle at `path`, or None where it was refused as it should be: as usage or as failed verification."""
    try:
        return open_bundle(path)
    except PortolanError as error:
        if error.exit_code not in (2, 6):
            raise
        return None


def refused(path: Path, words: str, where: str | None = None) -> VerificationFailed:
    """Opens the bundle at `path`, which must fail verification with these words, a hint, and this place."""
    with pytest.raises(VerificationFailed, match=words) as caught:
        open_bundle(path)
    assert caught.value.hint
    if where is not None:
        assert caught.value.where == where
    return caught.value
