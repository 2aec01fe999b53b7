"""Weight-only quantization: bytes on disk and held-out fidelity: `python benchmarks/compression/lowbits.py MODELS`.

MODELS is a folder that `benchmarks/models.py` filled with `minilm`. Fidelity is the cosine of outputs with those of the
untouched model in ONNX Runtime, over samples that no calibration saw. Beside it stand ONNX Runtime's own MatMulNBits
quantizer and, where it is installed, NNCF's `compress_weights`. Exits 1 when a bound is missed: 3.95x, 7.5x and 14x for
8, 4 and 2 bits on a model that is nearly all weights, and 6x at a cosine of 0.985 for MiniLM in 4 bits.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from portolan.core.data import load_data
from portolan.core.graph import load_model
from portolan.core.model import Model
from portolan.core.passes import Context, Pass
from portolan.core.silence import runtime
from portolan.passes._graphs import hushed
from portolan.passes.quantize import quantize
from portolan.targets.local import local

BOUNDS = {8: 3.95, 4: 7.5, 2: 14.0}
MINILM_SMALLER, MINILM_COSINE = 6.0, 0.985


@dataclass(frozen=True)
class Judge:
    """A model, the samples it may be calibrated on, and others to judge on."""

    model: Model
    calibration: dict[str, np.ndarray]
    held_out: dict[str, np.ndarray]

    @classmethod
    def of(cls, folder: Path, name: str, most: int) -> Judge:
        """`NAME.onnx` and `NAME.npz` of a folder; at most so many samples to judge on."""
        model = load_model(folder / f"{name}.onnx")
        data = load_data(str(folder / f"{name}.npz"), model.signature)
        fit, rest = data.split()
        parts = [{key: value[rows] for key, value in data.inputs.items()} for rows in (fit, rest[:most])]
        return cls(model, *parts)

    def answers(self, path: Path) -> np.ndarray:
        """The first output for each held-out sample, one row each."""
        ort = runtime("onnxruntime")
        options = ort.SessionOptions()
        options.log_severity_level = 3
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        rows = range(len(next(iter(self.held_out.values()))))
        found = [session.run(None, {k: v[i : i + 1] for k, v in self.held_out.items()})[0].ravel() for i in rows]
        return np.stack(found)

    def cosines(self, path: Path) -> np.ndarray:
        """Of each held-out sample, the cosine with the untouched model's answer."""
        right, got = self.answers(self.model.path), self.answers(path)
        found: np.ndarray = (right * got).sum(1) / np.linalg.norm(right, axis=1) / np.linalg.norm(got, axis=1)
        return found

    def applied(self, folder: Path, pass_: Pass, **options: Any) -> Model:
        """A pass applied into a folder."""
        folder.mkdir(parents=True)
        return pass_(self.model, Context(folder, local.detect(), self.calibration), **options)


def smaller(before: Path, after: Path) -> float:
    """How many times smaller a file is, external data included."""
    return size(before) / size(after)


def size(path: Path) -> int:
    """Bytes of a model that was written alone into its folder, or of a lone file."""
    data = path.with_suffix(".data")
    return path.stat().st_size + (data.stat().st_size if data.exists() else 0)


def heavy(folder: Path) -> Model:
    """Four products of 1024 x 1024: nearly all weights."""
    import onnx
    from onnx import helper, numpy_helper

    rng = np.random.default_rng(0)
    nodes, weights = [], []
    for i in range(4):
        weights.append(numpy_helper.from_array((rng.standard_normal((1024, 1024)) / 32).astype("f4"), f"w{i}"))
        nodes.append(helper.make_node("MatMul", [f"x{i}", f"w{i}"], [f"x{i + 1}"]))
    sides = [[helper.make_tensor_value_info(x, 1, ["n", 1024])] for x in ("x0", "x4")]
    graph = helper.make_graph(nodes, "heavy", *sides, weights)
    path = folder / "heavy.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return load_model(path)


def onnx_runtimes_own(source: Path, out: Path, bits: int) -> Path:
    """ONNX Runtime's round-to-nearest quantizer at its block of 32, with 4-bit tables where the bits are 4."""
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer

    operators = ("MatMul", "Gather") if bits == 4 else ("MatMul",)
    axes = (("MatMul", 0), ("Gather", 1)) if bits == 4 else (("MatMul", 0),)
    config = DefaultWeightOnlyQuantConfig(
        bits=bits, block_size=32, is_symmetric=False, accuracy_level=4, op_types_to_quantize=operators, quant_axes=axes
    )
    quantizer = MatMulNBitsQuantizer(onnx.load(source), algo_config=config)
    quantizer.process()
    quantizer.model.save_model_to_file(str(out), False)
    return out


def nncf_own(source: Path, out: Path) -> Path:
    """NNCF's asymmetric 8-bit weights."""
    import nncf
    import onnx

    onnx.save(nncf.compress_weights(onnx.load(source), mode=nncf.CompressWeightsMode.INT8_ASYM), out)
    return out


def line(label: str, ratio: float, cosines: np.ndarray | None, seconds: float) -> None:
    """One row of the table."""
    quality = "" if cosines is None else f"{cosines.mean():.4f}   {cosines.min():.4f}"
    print(f"{label:44s} {ratio:6.2f}x   {quality:18s} {seconds:6.1f} s", flush=True)


def storage(scratch: Path) -> list[str]:
    """Stored ratios of the heavy model; the bounds that are missed."""
    model, missed = heavy(scratch), []
    for bits, bound in BOUNDS.items():
        folder = scratch / f"heavy{bits}"
        folder.mkdir()
        start = time.perf_counter()
        result = quantize(model, Context(folder, local.detect()), mode="weights", bits=bits, method="rtn")
        ratio = smaller(model.path, result.path)
        line(f"4 x 1024 x 1024, {bits} bits", ratio, None, time.perf_counter() - start)
        if ratio < bound:
            missed.append(f"{bits} bits: {ratio:.2f}x, at least {bound}x wanted")
    return missed


def minilm(judge: Judge, scratch: Path) -> list[str]:
    """MiniLM by bits and method, and its peers; the bounds that are missed."""
    reached = []
    plans: list[tuple[int, str, int]] = [(8, "rtn", 128)]
    plans += [(bits, method, group) for bits in (4, 2) for method in ("rtn", "hqq", "gptq") for group in (128, 32)]
    for i, (bits, method, group) in enumerate(plans):
        start = time.perf_counter()
        options = {"mode": "weights", "bits": bits, "method": method, "group": group}
        result = judge.applied(scratch / str(i), quantize, **options)
        seconds = time.perf_counter() - start
        ratio, cosines = smaller(judge.model.path, result.path), judge.cosines(result.path)
        line(f"minilm, {bits} bits, {method}, group {group}", ratio, cosines, seconds)
        reached.append(bits == 4 and ratio >= MINILM_SMALLER and cosines.mean() >= MINILM_COSINE)
    for kind in ("float16", "bfloat16"):
        start = time.perf_counter()
        result = judge.applied(scratch / kind, quantize, mode=kind)
        seconds = time.perf_counter() - start
        line(f"minilm, {kind}", smaller(judge.model.path, result.path), judge.cosines(result.path), seconds)
    peers(judge, scratch)
    bound = f"no 4-bit variant of MiniLM is {MINILM_SMALLER:g}x smaller at a cosine of {MINILM_COSINE}"
    return [] if any(reached) else [bound]


def peers(judge: Judge, scratch: Path) -> None:
    """What others make of the same file."""
    makers: list[tuple[str, Any]] = [
        (f"onnxruntime MatMulNBits, {bits} bits", lambda source, out, bits=bits: onnx_runtimes_own(source, out, bits))
        for bits in (8, 4, 2)
    ]
    if importlib.util.find_spec("nncf"):
        makers.append(("nncf compress_weights, 8 bits", nncf_own))
    for i, (label, make) in enumerate(makers):
        start = time.perf_counter()
        try:
            with hushed():
                path = make(judge.model.path, scratch / f"peer{i}.onnx")
            seconds = time.perf_counter() - start
            line(label, smaller(judge.model.path, path), judge.cosines(path), seconds)
        except Exception as error:  # a peer's failure is a row of the table
            print(f"{label:44s} fails: {str(error)[:100]}")


def main() -> int:
    """Prints the table; 1 when a bound is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", type=Path)
    parser.add_argument("--samples", type=int, default=256, help="held-out samples to judge on")
    given = parser.parse_args()
    print(f"{'':44s} smaller   cosine   lowest        made in")
    with tempfile.TemporaryDirectory() as scratch:
        missed = storage(Path(scratch))
        missed += minilm(Judge.of(given.models, "minilm", given.samples), Path(scratch))
    for reason in missed:
        print(f"missed: {reason}")
    print("bounds met" if not missed else f"{len(missed)} bounds missed")
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
