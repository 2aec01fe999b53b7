"""What a call of a kernel costs in OpenVINO: through the compiled door and through Python, in alternating blocks.

    python benchmarks/kernels/openvino_doors.py [--threads 2] [--seconds 5]

Three models: one call of a max-plus product of 8 x 8 numbers, which is nothing but the call; and the two whole models
of `whole_models.py`, a transformer with windowed attention and a state-space model. Both ways run in one process, and
their answers are compared with each other and with the model's own function, the body.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import operators
import torch
from whole_models import exports, nets

from portolan.core import registry
from portolan.core.graph import load_model
from portolan.core.model import Model
from portolan.kernels import Kernel
from portolan.kernels.compiler import find
from portolan.kernels.embed.carry import carry
from portolan.kernels.embed.function import model as one_node
from portolan.kernels.embed.ort import library
from portolan.kernels.embed.torch_ import operator
from portolan.kernels.verify import difference
from portolan.targets.local import local
from run import Contender, here, keep_memory, ratio

SMALL = {"i": 8, "k": 8, "j": 8}


@contextmanager
def without_compiler() -> Iterator[None]:
    """No C++ compiler, and a cache in which there is no door."""
    with tempfile.TemporaryDirectory() as folder:
        before = {name: os.environ.get(name) for name in ("PORTOLAN_CXX", "PORTOLAN_CACHE")}
        os.environ |= {"PORTOLAN_CXX": "none", "PORTOLAN_CACHE": folder}
        try:
            yield
        finally:
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})


def models(folder: Path) -> Iterator[tuple[str, Model, dict[str, np.ndarray]]]:
    """Each model with its kernel, and an input."""
    path = folder / "call.onnx"
    onnx.save(one_node(operators.tropical.program, SMALL), str(path))
    square = np.random.default_rng(0).standard_normal((8, 8), np.float32)
    yield "one call", carrying(path, operators.tropical, SMALL), {"A": square, "B": square}
    for name, sizes in (
        ("window_attention", {"h": 4, "i": 1024, "j": 1024, "d": 64, "w": 128}),
        ("selective_scan", {"t": 512, "c": 512, "n": 16}),
    ):
        kernel: Kernel = getattr(operators, name)
        op = operator(kernel)
        ours, theirs, x = nets(name, op)
        own = folder / name
        own.mkdir()
        path = exports(kernel, op, ours, theirs, x, own)[0]
        made = carrying(path, kernel, sizes)
        yield name, made, {made.signature.inputs[0].name: x.numpy()}


def carrying(path: Path, kernel: Kernel, sizes: dict[str, int]) -> Model:
    """The model in a file, with its kernel."""
    built = library(kernel.program, kernel.schedules(sizes), find())
    return replace(load_model(path), kernels=carry(path.parent / "kernels", [(kernel.program, built)]).path)


def arm(name: str, model: Model, feeds: dict[str, np.ndarray], threads: int) -> tuple[Contender, np.ndarray]:
    """One way of running a model, and its answer."""
    executable: Any = registry.backend("openvino").compile(model, local.detect(), threads=threads)
    way = executable.facts().get("kernels", "body").partition(":")[0]
    if way != name:
        raise SystemExit(f"wanted {name}, and kernels are called this way: {way}")
    return here(name, lambda: executable.run(feeds), cpu=False), next(iter(executable.run(feeds).values()))


def main() -> int:
    """Measures the three models."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=5.0, help="of blocks, for each model")
    given = parser.parse_args()
    keep_memory()
    torch.set_num_threads(given.threads)
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory(prefix="portolan-doors-") as folder:
        for name, model, feeds in models(Path(folder)):
            compiled, answer = arm("compiled", model, feeds, given.threads)
            with without_compiler():
                python, other = arm("python", model, feeds, given.threads)
            _, body = arm("body", replace(model, kernels=None), feeds, given.threads)
            arms, end = [compiled, python], time.perf_counter() + given.seconds
            while time.perf_counter() < end:
                for number in rng.permutation(2):
                    arms[number].ms.append(arms[number].block())
            ms = {a.name: float(np.median(a.ms)) for a in arms}
            text = "  ".join(f"{n} {v:.4f} ms" for n, v in ms.items())
            low = "{:.3f}x ({:.3f} to {:.3f})".format(*ratio(python, compiled))
            apart = max(difference(answer, other), difference(answer, body))
            print(f"{name:17} {given.threads} thr  {text}  {low}  n={len(python.ms)}  error {apart:.1e}", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
