"""What this machine can compute and move at most: measured, and kept for the roofline floor of searches and benches."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from portolan.core.backend import Backend
from portolan.core.data import sample
from portolan.core.folders import cache_folder
from portolan.core.ledger import Ledger
from portolan.core.recipe import Recipe
from portolan.core.target import Target
from portolan.errors import PortolanError
from portolan.measure import roofline
from portolan.measure.lock import measuring
from portolan.study.builder import Builder
from portolan.study.payoff_layers import integer_product, layer
from portolan.study.probe import Session
from portolan.study.workspace import Workspace

_KIND, _SIZE, _SECONDS = "ceilings", 1024, 0.4


def measured(target: Target, backends: Mapping[str, Backend]) -> dict[str, Any]:
    """The ceilings of this machine, the one of int8 included; see `roofline.ceilings`. Takes some seconds."""
    return roofline.ceilings(target.cores, integers=integer_rates(target, backends))


def integer_rates(target: Target, backends: Mapping[str, Backend]) -> list[float]:
    """Int8 operations per second of a matrix product on ONNX Runtime, one per run; empty where that is not ready.

    NumPy, which measures the other ceilings, has no fast integer product.
    """
    backend = backends.get("onnxruntime")
    if backend is None or not backend.probe(target).ready:
        return []
    with tempfile.TemporaryDirectory(prefix="portolan-ceiling-") as folder, closing(Workspace(Path(folder))) as space:
        model, samples = layer("integers", integer_product(_SIZE), Path(folder))
        builder = Builder(space, model, target, backends, samples)
        feed = sample(samples.data, 0, model.signature)
        with closing(Session(builder.compiled(Recipe((), backend.name)), [feed], least=5)) as session, measuring():
            session.block(_SECONDS / 4)
            milliseconds = session.block(_SECONDS)
    return [2.0 * _SIZE**3 / (ms / 1e3) for ms in milliseconds]


def keep(target: Target, found: Mapping[str, Any], folder: Path | None = None) -> None:
    """Adds what was measured to the user's ledger, for later searches on this target.

    Raises:
        PortolanError: it cannot be written.
    """
    place = folder or cache_folder()
    place.mkdir(parents=True, exist_ok=True)
    with closing(Ledger(place / "ledger.sqlite")) as ledger:
        ledger.append(_KIND, target.fingerprint, found)


def here(target: Target, folder: Path | None = None) -> dict[str, Any]:
    """The ceilings as they are now, with the one of int8 if it was measured on this target before, else None."""
    found = roofline.ceilings(target.cores)
    try:
        with closing(Ledger((folder or cache_folder()) / "ledger.sqlite", writable=False)) as ledger:
            event = ledger.latest(_KIND, target.fingerprint)
    except (PortolanError, OSError):
        event = None
    return {**found, "flops_int8": (event or {}).get("flops_int8")}


def known(target: Target, ledger: Ledger) -> Mapping[str, Any]:
    """What a study goes by from its start to its end: in its ledger, or `here` and then in it."""
    kept = ledger.latest(_KIND, target.fingerprint)
    if kept is None:
        kept = here(target)
        ledger.append(_KIND, target.fingerprint, kept)
    return kept
