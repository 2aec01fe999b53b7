"""What is about to be shipped, asked for its golden answers on a target that is not this machine."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from portolan.bundle import golden, open_bundle
from portolan.core.model import Model
from portolan.core.scratch import Scratch
from portolan.core.signature import Signature
from portolan.core.target import Target
from portolan.errors import NoBackend, VerificationFailed, WorkerError
from portolan.study.builder import Compiled
from portolan.study.elsewhere import SAME
from portolan.study.probe import Session
from portolan.worker.environments import backends, python_on

Outputs = Mapping[str, np.ndarray]
#: What runs on targets for the web.
WEB, _WEB_ARCH = "onnxruntime-web", "wasm32"


def verified(
    target: Target, backend: str, folder: Path, signature: Signature, feeds: Sequence[Outputs], wanted: Outputs,
    tolerance: Mapping[str, golden.Tolerance],
) -> dict[str, Any]:  # fmt: skip
    """Runs compiled files on `target` and compares with the golden outputs.

    Args:
        target: where.
        backend: what runs them.
        folder: the compiled files.
        signature: the model's.
        feeds: the inputs of each call.
        wanted: the golden outputs of all calls.
        tolerance: how far each output may be off.

    Returns:
        `target`; `same`, whether the answers are those from here but for the last digits; `max_rel_error`, the largest
        difference over the RMS of its output; `differences` as in a bundle's verification.

    Raises:
        NoBackend: the backend is not ready there.
        VerificationFailed: it does not run there, or an output is off by more than is allowed.
    """
    with _as_there(folder, backend, target) as (backend, folder):
        got = _answers(target, backend, folder, signature, feeds)
    found = [golden.compare(name, wanted[name], got[name], tolerance[name]) for name in wanted]
    if bad := next((difference for difference in found if not difference.ok), None):
        raise VerificationFailed(
            f"on `{target.id}` the output `{bad.output}` is off by {bad.worst:.3g}, where {bad.allowed:.3g} is allowed",
            hint=f"search for a recipe that holds there: portolan optimize MODEL -t {target.id}",
        )
    furthest = max((_relative(wanted[name], got[name]) for name in wanted), default=0.0)
    return {
        "target": target.id,
        "same": furthest <= SAME,
        "max_rel_error": furthest,
        "differences": [difference.to_json() for difference in found],
    }


@contextlib.contextmanager
def _as_there(folder: Path, backend: str, target: Target) -> Iterator[tuple[str, Path]]:
    """Backend and files as the target has them: on the web, ONNX Runtime Web runs what ONNX Runtime runs here."""
    if target.arch != _WEB_ARCH or backend != "onnxruntime":
        yield backend, folder
        return
    with Scratch("portolan-web-") as scratch:
        copy = scratch.path / "compiled"
        shutil.copytree(folder, copy)
        (copy / "compiled.json").write_text(json.dumps({"backend": WEB, "options": {}}), encoding="utf-8")
        yield WEB, copy


def _answers(
    target: Target, backend: str, folder: Path, signature: Signature, feeds: Sequence[Outputs]
) -> Mapping[str, np.ndarray]:
    support = backends(target, [backend])[backend].probe(target)
    if not support.ready:
        raise NoBackend(
            f"`{backend}` is not ready on `{target.id}`: {support.reason}", hint=f"portolan doctor {target.id}"
        )
    model = Model("shipped", folder, "", signature)
    reach = tuple(python_on(target, backend) or ())
    try:
        session = Session(Compiled("", folder, model, backend, 0.0, 0, 0, {}, reach), [])
        try:
            return golden.join([session.answer(feed) for feed in feeds], signature)
        finally:
            session.close()
    except WorkerError as error:
        raise VerificationFailed(
            f"what is shipped does not run on `{target.id}`: {error.message}", hint=f"portolan doctor {target.id}"
        ) from error


def check(path: Path, target: Target, *, native: bool) -> dict[str, Any]:
    """Runs a bundle's golden inputs on `target`; as `verified`."""
    with open_bundle(path, native=native) as bundle:
        manifest = bundle.manifest
        return verified(
            target, manifest.recipe.backend, bundle.compiled(), manifest.signature,
            [bundle.feeds(row) for row in range(manifest.rows)], bundle.golden_outputs, manifest.tolerance,
        )  # fmt: skip


def note(found: Mapping[str, Any]) -> str:
    """What `verified` found, in one line."""
    if found["same"]:
        return f"answers on `{found['target']}` as here"
    return (
        f"answers change on `{found['target']}`: by up to {found['max_rel_error']:.2g} of the outputs' RMS, which the "
        "bundle's tolerance allows"
    )


def _relative(wanted: np.ndarray, got: np.ndarray) -> float:
    """The largest difference over the RMS of `wanted`; 1 where things that are not numbers differ."""
    if wanted.dtype.kind not in "fiub":
        return float((wanted != got).any())
    a, b = wanted.astype(np.float64), got.astype(np.float64)
    both = np.isfinite(a) & np.isfinite(b)
    scale = float(np.sqrt(np.mean(a[both] ** 2))) if both.any() else 0.0
    worst = float(np.abs(a - b)[both].max(initial=0.0))
    return 0.0 if worst == 0 else worst / scale if scale else float("inf")
