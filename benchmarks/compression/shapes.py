"""What smaller shapes and zeros cost and bring: `python benchmarks/compression/shapes.py ZOO [NAME...]`.

ZOO is the folder that `python benchmarks/models.py ZOO` fills; NAME is digits, minilm or resnet50, all by default. For
each method: file size and CPU time against the untouched file (one ONNX Runtime thread each, runs interleaved, median
of the ratios), and quality on samples that calibration never saw: accuracy on digits, cosine on MiniLM. ResNet-50 has
random weights: speed only. Exits 1 where looking at activations is worse than looking at weights alone.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from portolan.core.data import Data
from portolan.core.graph import load_model
from portolan.core.model import Model
from portolan.core.passes import Context, Pass
from portolan.core.silence import runtime
from portolan.frontends.demo import demo_data, folder
from portolan.passes.decompose import decompose
from portolan.passes.prune import prune
from portolan.targets.local import local

ROUNDS = 9
SAMPLES = 96
BLIND = {"score": "magnitude"}
CONVOLUTIONAL: list[tuple[Pass, dict[str, Any]]] = [
    (prune, {"kind": "channels", "ratio": 0.25}),
    (prune, {"kind": "channels", "ratio": 0.5}),
    (prune, {"kind": "unstructured", "ratio": 0.75}),
    (prune, {"kind": "2:4"}),
    (decompose, {"method": "tucker", "keep": 0.5}),
    (decompose, {"method": "tucker", "keep": 0.25}),
    (decompose, {"method": "cp", "keep": 0.25}),
]
TRANSFORMER: list[tuple[Pass, dict[str, Any]]] = [
    (prune, {"kind": "neurons", "ratio": 0.25}),
    (prune, {"kind": "heads", "ratio": 0.25}),
    (prune, {"kind": "unstructured", "ratio": 0.5}),
    (prune, {"kind": "2:4"}),
    (decompose, {"method": "svd", "keep": 0.75}),
    (decompose, {"method": "svd", "keep": 0.5}),
]
#: Random weights: no quality, so no calibration either.
SPEED: list[tuple[Pass, dict[str, Any]]] = [
    (prune, {"kind": "channels", "ratio": 0.25} | BLIND),
    (prune, {"kind": "channels", "ratio": 0.5} | BLIND),
    (decompose, {"method": "tucker", "keep": 0.5} | BLIND),
    (decompose, {"method": "svd", "keep": 0.5} | BLIND),
]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("zoo", type=Path)
    parser.add_argument("names", nargs="*", choices=["digits", "minilm", "resnet50", []], metavar="NAME")
    given = parser.parse_args()
    failures = []
    for name in given.names or ["digits", "minilm", "resnet50"]:
        path = folder() / "digits.onnx" if name == "digits" else given.zoo / f"{name}.onnx"
        data = dict(np.load(demo_data("digits") if name == "digits" else given.zoo / f"{name}.npz"))
        failures += one(load_model(path, name=name), data)
    for line in failures:
        print(line, file=sys.stderr)
    return bool(failures)


def one(model: Model, data: dict[str, np.ndarray]) -> list[str]:
    """Every method on one model; what should have held and did not."""
    labels = data.pop("labels", None)
    calibration, held_out = Data(data, labels, "").split()
    fitted = {key: array[calibration] for key, array in data.items()}
    held_out = held_out[: SAMPLES if labels is None else None]
    feeds = [{key: array[i : i + 1] for key, array in data.items()} for i in held_out]
    answers = None if labels is None else labels[held_out]
    methods = {"digits": CONVOLUTIONAL, "minilm": TRANSFORMER, "resnet50": SPEED}[model.name]
    trained, base = model.name != "resnet50", session(model)
    reference = outputs(base, feeds) if trained else None
    first = f"quality {quality(reference, reference, answers):.4f}" if reference is not None else "random weights"
    print(f"{model.name}: {model.path.stat().st_size:,} bytes, {first} (n={len(held_out)})", flush=True)
    failures = []
    for pass_, options in methods:
        scores = []
        for extra in ({}, BLIND) if trained else ({},):
            with tempfile.TemporaryDirectory() as scratch:
                began = time.perf_counter()
                result = pass_(model, Context(Path(scratch), local.detect(), fitted), **options, **extra)
                seconds = time.perf_counter() - began
                new = session(result)
                smaller = model.path.stat().st_size / result.path.stat().st_size
                faster = ratio(base, new, feeds[:4])
                line = f"  {pass_.name} {options | extra}: {smaller:.2f}x smaller, {faster:.2f}x faster"
                if reference is not None:
                    scores.append(quality(outputs(new, feeds), reference, answers))
                    line += f", quality {scores[-1]:.4f}"
                print(f"{line} ({seconds:.0f} s)", flush=True)
        if len(scores) == 2 and scores[0] < scores[1]:
            failures.append(f"{model.name}: {pass_.name} {options}: {scores[0]:.4f} is below {scores[1]:.4f}")
    return failures


def session(model: Model) -> Any:
    """One thread of ONNX Runtime."""
    ort = runtime("onnxruntime")
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(str(model.path), options, providers=["CPUExecutionProvider"])


def outputs(runner: Any, feeds: list[dict[str, np.ndarray]]) -> np.ndarray:
    """The first output of each run."""
    return np.concatenate([runner.run(None, inputs)[0] for inputs in feeds])


def quality(got: np.ndarray, reference: np.ndarray, labels: np.ndarray | None) -> float:
    """Accuracy where there are labels, else the mean cosine with the original's outputs."""
    if labels is not None:
        return float((got.argmax(1) == labels).mean())
    norms = np.linalg.norm(got, axis=1) * np.linalg.norm(reference, axis=1)
    return float(((got * reference).sum(1) / norms).mean())


def ratio(base: Any, new: Any, feeds: list[dict[str, np.ndarray]]) -> float:
    """CPU time of the original over that of the new one: median of interleaved rounds, the order alternating."""
    inner = max(1, round(0.05 / seconds_of(base, feeds)))
    found = []
    for i in range(ROUNDS):
        taken = {}
        for runner in (base, new) if i % 2 else (new, base):
            taken[runner] = seconds_of(runner, feeds * inner)
        found.append(taken[base] / taken[new])
    return statistics.median(found)


def seconds_of(runner: Any, feeds: list[dict[str, np.ndarray]]) -> float:
    """CPU seconds of these runs."""
    outputs(runner, feeds[:1])
    began = time.process_time()
    outputs(runner, feeds)
    return max(time.process_time() - began, 1e-6)


if __name__ == "__main__":
    sys.exit(main())
