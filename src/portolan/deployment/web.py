"""The web: what a page or Node loads, with ONNX Runtime Web from npm, and a check of the golden answers."""

from __future__ import annotations

import base64
import json
from importlib import resources
from typing import TYPE_CHECKING, Any

from portolan.bundle.names import show
from portolan.deployment._facts import Facts
from portolan.deployment._files import model_files
from portolan.deployment._platform import Emitted, Platform
from portolan.errors import NoBackend

if TYPE_CHECKING:
    import numpy as np

_MODEL, _FOLDER = "model.onnx", "model"
_TYPES = frozenset(
    ("bool", "float16", "float32", "float64", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)))
)
#: Bytes of golden arrays; above it only the first call is written, as text a page has to fetch.
_GOLDEN = 4 * 2**20


class Web(Platform):
    """A folder for pages and for Node: the model, a module that runs it, and a page that checks its answers."""

    name = "web"
    about = "a page and a module for ONNX Runtime Web"

    def emit(self, facts: Facts) -> Emitted:
        """Refuses bundles without an ONNX graph, and element types that a page has no arrays for."""
        backend = facts.manifest.recipe.backend
        if backend != "onnxruntime" or _MODEL not in model_files(facts.bundle):
            raise NoBackend(
                f"a page cannot run this bundle: `{backend}` compiled it, and only ONNX graphs for `onnxruntime` run "
                "there",
                hint="pack for it: `--backend onnxruntime`",
            )
        signature = facts.manifest.signature
        for spec in (*signature.inputs, *signature.outputs):
            if spec.dtype not in _TYPES:
                raise NoBackend(
                    f"a page has no arrays of {spec.dtype}, which `{show(spec.name)}` holds",
                    hint="`--to docker` runs any bundle",
                )
        texts = {name: _script(name) for name in ("index.html", "model.mjs", "check.mjs", "compare.mjs")}
        beside = [name for name in model_files(facts.bundle) if name != _MODEL]
        texts["package.json"] = _json(_package(facts))
        texts["about.json"] = _json(_about(facts, beside))
        texts["golden.json"] = _json(_golden(facts))
        check = "npm install --ignore-scripts --prefix {folder} && node {folder}/check.mjs"
        threads = (
            "a page gets threads only where its server sends `Cross-Origin-Opener-Policy: same-origin` and "
            "`Cross-Origin-Embedder-Policy: require-corp`"
        )
        return Emitted(texts, model=_FOLDER, next=[check], notes=[threads])


def _script(name: str) -> str:
    return (resources.files("portolan.deployment") / "_web" / name).read_text(encoding="utf-8")


def _json(data: Any) -> str:
    return json.dumps(data, indent=1, sort_keys=True) + "\n"


def _package(facts: Facts) -> dict[str, Any]:
    """What npm reads; with the version that targets for the web are made with."""
    pins = json.loads((resources.files("portolan.emulation") / "pins" / "web" / "package.json").read_text("utf-8"))
    return {
        "name": facts.label, "private": True, "type": "module", "main": "model.mjs",
        "scripts": {"check": "node check.mjs"}, "dependencies": pins["dependencies"],
    }  # fmt: skip


def _about(facts: Facts, beside: list[str]) -> dict[str, Any]:
    """What the module reads: the files, the signature, and which bundle it was."""
    signature = facts.manifest.signature
    return {
        "name": facts.manifest.name, "bundle": facts.bundle.sha256, "model": f"{_FOLDER}/{_MODEL}",
        "data": {name: f"{_FOLDER}/{name}" for name in beside},
        "inputs": [spec.to_json() for spec in signature.inputs],
        "outputs": [spec.to_json() for spec in signature.outputs],
    }  # fmt: skip


def _golden(facts: Facts) -> dict[str, Any]:
    """Inputs and right outputs of the golden calls, and how far an answer may be off."""
    bundle, rows = facts.bundle, facts.manifest.rows
    everything = [*bundle.golden_inputs.values(), *bundle.golden_outputs.values()]
    calls = rows if sum(array.nbytes for array in everything) <= _GOLDEN else 1
    feeds = [{name: _encoded(array) for name, array in bundle.feeds(row).items()} for row in range(calls)]
    outputs = {name: array[: len(array) // rows * calls] for name, array in bundle.golden_outputs.items()}
    return {
        "inputs": feeds,
        "outputs": {name: _encoded(array) for name, array in outputs.items()},
        "tolerance": {name: {"rtol": t.rtol, "atol": t.atol} for name, t in facts.manifest.tolerance.items()},
    }


def _encoded(array: np.ndarray) -> dict[str, Any]:
    import numpy as np

    data = np.ascontiguousarray(array).tobytes()
    return {"dtype": str(array.dtype), "dims": list(array.shape), "base64": base64.b64encode(data).decode()}


web = Web()
