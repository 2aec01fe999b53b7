"""Methods combined, on networks trained on digits: `python benchmarks/compression/digits.py [cnn] [mlp] [vgg]`.

Each network is trained on scikit-learn's digits (`demo:digits` is shipped trained), compressed by a chain of passes
with the training images as their data, and judged by accuracy on the 600 images that the demo holds out, which neither
training nor any pass saw.

    cnn    channels pruned, distilled, static int8: at least 12 times smaller and 5 times faster, at most 1 point lost
    mlp    90 % zeros, distilled, static int8: at least 17.8 times smaller as stored, at most 1 point lost
    vgg    wide dense layers in tensor-train form, distilled: at least 80 times fewer parameters in the dense layers, at
           most 1.1 points lost; the whole network's ratio is shown

Sizes are bytes on disk of what a bundle holds. Speed is the ratio of medians in one interleaved race over fresh
processes, batches of BATCH images, the untouched and the compressed network on the same backend. Exits with 1 where a
bound is missed. Needs torch and scikit-learn.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from recover import DEMO, applied, outputs, tool

from portolan.core.data import Data, save_npz
from portolan.core.graph import load_model
from portolan.core.model import Model
from portolan.core.recipe import Recipe
from portolan.core.registry import pass_
from portolan.core.silence import silence
from portolan.measure.race import Arm, race
from portolan.study.builder import Builder, Samples
from portolan.study.probe import Session
from portolan.study.workspace import Workspace
from portolan.targets.local import local
from portolan.worker.environments import backends

BATCH, STARTS, EPOCHS = 64, 8, 40
BACKENDS = ("onnxruntime", "openvino")


@dataclass(frozen=True)
class Digits:
    """Images and labels to train on, and others to judge on."""

    images: np.ndarray
    labels: np.ndarray
    held: np.ndarray
    answers: np.ndarray

    def accuracy(self, model: Model) -> float:
        """Share of the held-out images that a model names right."""
        found = next(iter(outputs(model, {"image": self.held}).values()))
        return float((found.argmax(-1) == self.answers).mean())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[*CASES, []], metavar="NAME")
    names = parser.parse_args().names or list(CASES)
    silence()
    data = Digits(*tool("train_digits").data())
    bad: list[str] = []
    for name in names:
        with tempfile.TemporaryDirectory() as scratch:
            bad += [f"{name}: {why}" for why in CASES[name](data, Path(scratch))]
    print("missed: " + "; ".join(bad) if bad else "every bound holds")
    return int(bool(bad))


def cnn(data: Digits, scratch: Path) -> list[str]:
    """The demo's network, with three methods on top of each other."""
    model = load_model(DEMO / "digits.onnx")
    result = chain(model, data, scratch, [
        ("prune", {"kind": "channels", "ratio": 0.5}), ("distill", {}), ("quantize", {"mode": "static"}),
    ])  # fmt: skip
    lost, smaller = told("cnn", model, result, data, scratch)
    faster = {name: speed(model, result, data, scratch / f"race-{name}", name) for name in BACKENDS}
    for name, (ratio, lo, hi) in faster.items():
        print(f"  {name}: {ratio:.2f}x [{lo:.2f}, {hi:.2f}] faster, batches of {BATCH}", flush=True)
    best = max(ratio for ratio, _, _ in faster.values())
    return missed(("points lost", -lost, -1.0), ("smaller", smaller, 12.0), ("faster", best, 5.0))


def mlp(data: Digits, scratch: Path) -> list[str]:
    """A perceptron 64-512-512-10 with one weight in ten left."""
    model = trained(perceptron, data, scratch)
    result = chain(model, data, scratch, [
        ("prune", {"kind": "unstructured", "ratio": 0.9}), ("distill", {"steps": 2000}),
        ("quantize", {"mode": "static"}),
    ])  # fmt: skip
    lost, smaller = told("mlp", model, result, data, scratch)
    return missed(("points lost", -lost, -1.0), ("smaller", smaller, 17.8))


def vgg(data: Digits, scratch: Path) -> list[str]:
    """Convolutions and three dense layers, of which the first two hold nearly all parameters."""
    model = trained(wide, data, scratch)
    result = chain(model, data, scratch, [
        ("decompose", {"method": "tt", "keep": 0.008, "align": 1}), ("distill", {"steps": 2000}),
    ])  # fmt: skip
    lost, _ = told("vgg", model, result, data, scratch)
    before, after = parameters(model), parameters(result)
    fewer = before["dense"] / after["dense"]
    whole = sum(before.values()) / sum(after.values())
    print(f"  dense layers {before['dense']:,} to {after['dense']:,} parameters: {fewer:.1f}x fewer", flush=True)
    print(f"  the whole network {sum(before.values()):,} to {sum(after.values()):,}: {whole:.1f}x fewer", flush=True)
    return missed(("points lost", -lost, -1.1), ("fewer dense parameters", fewer, 80.0))


CASES: dict[str, Callable[[Digits, Path], list[str]]] = {"cnn": cnn, "mlp": mlp, "vgg": vgg}


def missed(*bounds: tuple[str, float, float]) -> list[str]:
    """What is below its bound."""
    return [f"{what} {abs(value):.4g}, bound {abs(least):g}" for what, value, least in bounds if value < least]


def chain(model: Model, data: Digits, scratch: Path, steps: list[tuple[str, dict[str, Any]]]) -> Model:
    """The model after these passes, each with all training images as its data."""
    result = model
    for i, (name, options) in enumerate(steps):
        result = applied(pass_(name), result, {"image": data.images}, data.labels, model, scratch / f"{i}", **options)
        print(f"  {name} {options}: accuracy {data.accuracy(result):.2%}", flush=True)
    return result


def told(name: str, model: Model, result: Model, data: Digits, scratch: Path) -> tuple[float, float]:
    """Prints and gives the points of accuracy lost, and how many times smaller the stored model is."""
    before, after = data.accuracy(model), data.accuracy(result)
    sizes = [builder(one, data, scratch / f"size-{i}").compiled(_plain("onnxruntime")).size
             for i, one in enumerate((model, result))]  # fmt: skip
    smaller = sizes[0] / sizes[1]
    print(f"{name}: accuracy {before:.2%} to {after:.2%} (n={len(data.answers)}), {sizes[0]:,} to {sizes[1]:,} bytes: "
          f"{smaller:.2f}x smaller", flush=True)  # fmt: skip
    return 100 * (before - after), smaller


def speed(model: Model, result: Model, data: Digits, scratch: Path, backend: str) -> tuple[float, float, float]:
    """How many times faster a compressed model is, with the interval."""
    feeds = [{"image": np.ascontiguousarray(data.held[:BATCH])}]
    arms = [
        Arm(name, partial(Session, builder(one, data, scratch / name).compiled(_plain(backend)), feeds))
        for name, one in (("before", model), ("after", result))
    ]
    found = race(arms, baseline="before", starts=STARTS, blocks=4, rng=np.random.default_rng(0))
    ratio = found.ratio("after", "before")
    return 1 / ratio.ratio, 1 / ratio.hi, 1 / ratio.lo


def builder(model: Model, data: Digits, folder: Path) -> Builder:
    """What compiles a model and saves it as a bundle would hold it."""
    folder.mkdir(parents=True)
    kept = Data({"image": data.images}, data.labels, "digits")
    rows = tuple(range(len(data.images)))
    samples = Samples(kept, save_npz(kept, folder / "data.npz"), rows, rows[:1], synthetic=False)
    target = local.detect()
    return Builder(Workspace(folder / "work"), model, target, backends(target, BACKENDS), samples)


def _plain(backend: str) -> Recipe:
    return Recipe((), backend)


def parameters(model: Model) -> dict[str, int]:
    """Weights in front of the last reshaping of images (`conv`) and behind it (`dense`), biases included."""
    proto = onnx.load(model.path)
    tensors = {t.name: t for t in proto.graph.initializer if t.data_type == onnx.TensorProto.FLOAT}
    conv = {name for node in proto.graph.node if node.op_type == "Conv" for name in node.input if name in tensors}
    count = {name: int(np.prod(t.dims)) for name, t in tensors.items()}
    return {
        "conv": sum(count[name] for name in conv), "dense": sum(n for name, n in count.items() if name not in conv),
    }  # fmt: skip


# Networks -------------------------------------------------------------------------------------------------------------


def perceptron() -> Any:
    """64-512-512-10."""
    from torch import nn

    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10)
    )


def wide() -> Any:
    """Four convolutions as in VGG, then dense layers 256-2048-2048-10."""
    from torch import nn

    sizes, layers = (1, 32, 32, 64, 64), []
    for i, (before, after) in enumerate(pairwise(sizes)):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU(), *([nn.MaxPool2d(2)] if i % 2 else [])]
    dense = [nn.Linear(256, 2048), nn.ReLU(), nn.Dropout(), nn.Linear(2048, 2048), nn.ReLU(), nn.Dropout()]
    return nn.Sequential(*layers, nn.Flatten(), *dense, nn.Linear(2048, 10))


def trained(make: Callable[[], Any], data: Digits, folder: Path) -> Model:
    """A network trained on the images, as an ONNX file with a free batch."""
    import torch

    torch.manual_seed(0)
    network = make()
    images, labels = torch.from_numpy(data.images), torch.from_numpy(data.labels).long()
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3)
    network.train()
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(images)).split(64):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(network(images[rows]), labels[rows]).backward()
            optimizer.step()
    network.eval()
    path = folder / f"{make.__name__}.onnx"
    torch.onnx.export(
        network, (images[:2],), str(path), input_names=["image"], output_names=["logits"], dynamo=True,
        dynamic_shapes=({0: torch.export.Dim("batch")},), external_data=False, verbose=False,
    )  # fmt: skip
    return load_model(path)


if __name__ == "__main__":
    sys.exit(main())
