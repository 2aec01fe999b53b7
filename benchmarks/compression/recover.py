"""What `finetune` and `distill` give back: `python benchmarks/compression/recover.py [ZOO] [--seeds 3]`.

Networks are damaged by a few lines of their own here (zeros by magnitude, channels removed, matrices cut to half their
parameters by SVD), trained again, and judged on data that neither training nor the choice of weights saw:

- digits: `demo:digits` with 90 % zeros in every kernel, and without half the channels inside its last block. Trained on
  the images that the network itself was trained on (scikit-learn's, with or without their labels), judged by accuracy
  on the demo's 600 others.
- MiniLM from ZOO (see `benchmarks/models.py`): every matrix of at least 64 rows and columns replaced by two with half
  its parameters. Distilled on three quarters of the sentences, judged by cosine with the untouched model on the rest.

Exit code 1 if a bound that the project set itself is missed. Needs torch and scikit-learn.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from portolan.core.graph import load_model
from portolan.core.model import Model
from portolan.core.passes import Context
from portolan.core.silence import runtime
from portolan.passes.distill import distill
from portolan.passes.finetune import finetune
from portolan.targets.local import local

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "src" / "portolan" / "demo"
#: Least accuracy of the recovered digits networks, and least cosine of the recovered MiniLM.
SPARSE, NARROW, LOW_RANK = 0.97, 0.98, 0.7
SENTENCES = 3 / 4


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("zoo", nargs="?", type=Path, help="folder with `minilm.onnx` and `minilm.npz`")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", choices=("digits", "minilm"))
    parser.add_argument("--seconds", type=float, default=300.0, help="limit of one training of MiniLM")
    parser.add_argument("--threads", type=int, default=0, help="of that training; 0 goes by the model's size")
    arguments = parser.parse_args()
    met = True
    with tempfile.TemporaryDirectory() as scratch:
        if arguments.only != "minilm":
            met &= digits(Path(scratch), range(arguments.seeds))
        if arguments.only != "digits" and arguments.zoo is not None:
            met &= minilm(Path(scratch), arguments.zoo, arguments.seconds, arguments.threads)
    return 0 if met else 1


# Digits ---------------------------------------------------------------------------------------------------------------


def digits(folder: Path, seeds: range) -> bool:
    model = load_model(DEMO / "digits.onnx")
    images, labels, held, answers = tool("train_digits").data()
    sparse, narrow = without_small(model, folder / "sparse", 0.9), without_channels(model, folder / "narrow")

    def right(one: Model) -> float:
        return float((outputs(one, {"image": held})["logits"].argmax(-1) == answers).mean())

    print(f"digits, {len(images):,} images to train on, accuracy on {len(held)} others; untouched {right(model):.2%}")
    found = []
    for name, student, bound in (("90 % zeros", sparse, SPARSE), ("half the channels", narrow, NARROW)):
        for label, pass_, given in (
            ("finetune, labels", finetune, labels),
            ("finetune, no labels", finetune, None),
            ("distill, labels", distill, labels),
            ("distill, no labels", distill, None),
        ):
            values, begin = [], time.monotonic()
            for seed in seeds:
                result = applied(pass_, student, {"image": images}, given, model, folder / f"{len(found)}-{seed}",
                                 seed=seed)  # fmt: skip
                assert kept(student, result), "a zero was lost"
                values.append(right(result))
            seconds = (time.monotonic() - begin) / len(seeds)
            said = ", ".join(f"{v:.2%}" for v in values)
            print(f"  {name:18} {right(student):7.2%} -> {label:20} {said}   {seconds:.0f} s each", flush=True)
            found.append(min(values) >= bound)
    return all(found)


def tool(name: str) -> Any:
    """A script of tools/ as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def without_small(model: Model, folder: Path, share: float) -> Model:
    """Zeros in place of the smallest values of each kernel."""

    def change(proto: onnx.ModelProto) -> None:
        for tensor in proto.graph.initializer:
            values = numpy_helper.to_array(tensor)
            if values.ndim > 1 and values.dtype == np.float32 and values.size > 500:
                small = abs(values) < np.quantile(abs(values), share)
                tensor.CopyFrom(numpy_helper.from_array(np.where(small, np.float32(0), values), tensor.name))

    return changed(model, folder, change)


def without_channels(model: Model, folder: Path) -> Model:
    """The digits network without the weaker half of the channels inside its last block."""

    def change(proto: onnx.ModelProto) -> None:
        tensors = {t.name: t for t in proto.graph.initializer}
        first, second = [n for n in proto.graph.node if n.op_type == "Conv"][-2:]
        weight = numpy_helper.to_array(tensors[first.input[1]])
        keep = np.sort(np.argsort(-abs(weight).sum((1, 2, 3)))[: len(weight) // 2])
        for name, axis in ((first.input[1], 0), (first.input[2], 0), (second.input[1], 1)):
            values = np.ascontiguousarray(np.take(numpy_helper.to_array(tensors[name]), keep, axis))
            tensors[name].CopyFrom(numpy_helper.from_array(values, name))

    return changed(model, folder, change)


def kept(before: Model, after: Model) -> bool:
    """Whether every zero of a kernel is still one."""
    tensors = {t.name: numpy_helper.to_array(t) for t in onnx.load(after.path).graph.initializer}
    pairs = ((numpy_helper.to_array(t), tensors[t.name]) for t in onnx.load(before.path).graph.initializer)
    return all(not new[old == 0].any() for old, new in pairs if old.ndim > 1)


# MiniLM ---------------------------------------------------------------------------------------------------------------


def minilm(folder: Path, zoo: Path, seconds: float, threads: int) -> bool:
    model = load_model(zoo / "minilm.onnx")
    with np.load(zoo / "minilm.npz") as archive:
        inputs = {spec.name: archive[spec.name] for spec in model.signature.inputs}
    count = int(SENTENCES * len(next(iter(inputs.values()))))
    train, held = ({k: v[part] for k, v in inputs.items()} for part in (slice(count), slice(count, None)))
    right = outputs(model, held)
    student = low_rank(model, folder / "low-rank", 0.5)
    before = cosine(outputs(student, held), right)
    begin = time.monotonic()
    result = applied(distill, student, train, None, model, folder / "minilm", learning_rate=3e-4, batch=4,
                     seconds=seconds, threads=threads)  # fmt: skip
    after = cosine(outputs(result, held), right)
    sizes = [m.path.stat().st_size / 2**20 for m in (model, student)]
    print(
        f"MiniLM, SVD to half the parameters of its matrices ({sizes[0]:.1f} to {sizes[1]:.1f} MiB), {count} sentences"
        f" to train on, cosine on {len(next(iter(held.values())))} others\n"
        f"  mean {before[0]:.4f}, least {before[1]:.4f} -> distill mean {after[0]:.4f}, least {after[1]:.4f}"
        f"   {time.monotonic() - begin:.0f} s",
        flush=True,
    )
    return after[0] >= LOW_RANK


def low_rank(model: Model, folder: Path, share: float) -> Model:
    """Each MatMul with a constant matrix as two, which hold `share` of its parameters."""

    def change(proto: onnx.ModelProto) -> None:
        tensors = {t.name: t for t in proto.graph.initializer}
        nodes: list[onnx.NodeProto] = []
        for node in proto.graph.node:
            found = list(split(node, tensors, share))
            for tensor in found[:2]:
                proto.graph.initializer.append(tensor)
            nodes.extend(found[2:] or [node])
        del proto.graph.node[:]
        proto.graph.node.extend(nodes)
        used = {name for node in nodes for name in node.input}
        for tensor in [t for t in proto.graph.initializer if t.name not in used]:
            proto.graph.initializer.remove(tensor)

    return changed(model, folder, change)


def split(node: onnx.NodeProto, tensors: dict[str, onnx.TensorProto], share: float) -> Iterator[Any]:
    if node.op_type != "MatMul" or node.input[1] not in tensors:
        return
    weight = numpy_helper.to_array(tensors[node.input[1]])
    if weight.ndim != 2 or min(weight.shape) < 64:
        return
    rank = int(share * weight.size / sum(weight.shape))
    u, s, v = np.linalg.svd(weight.astype(np.float64), full_matrices=False)
    name = node.output[0]
    parts = {"a": u[:, :rank] * np.sqrt(s[:rank]), "b": np.sqrt(s[:rank])[:, None] * v[:rank]}
    for key, values in parts.items():
        yield numpy_helper.from_array(np.ascontiguousarray(values, np.float32), f"{name}.{key}")
    yield helper.make_node("MatMul", [node.input[0], f"{name}.a"], [f"{name}.thin"], name=f"{name}.first")
    yield helper.make_node("MatMul", [f"{name}.thin", f"{name}.b"], [name], name=f"{name}.second")


def cosine(got: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> tuple[float, float]:
    """Mean and least over the samples, of the first output."""
    a, b = (next(iter(side.values())).reshape(len(next(iter(side.values()))), -1) for side in (got, right))
    found = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    return float(found.mean()), float(found.min())


# Both -----------------------------------------------------------------------------------------------------------------


def changed(model: Model, folder: Path, change: Callable[[onnx.ModelProto], None]) -> Model:
    proto = onnx.load(model.path)
    change(proto)
    del proto.graph.value_info[:]
    folder.mkdir()
    onnx.save(proto, folder / "student.onnx")
    return load_model(folder / "student.onnx", name=model.name)


def applied(
    pass_: Any, student: Model, inputs: dict[str, np.ndarray], labels: np.ndarray | None, original: Model, out: Path,
    **options: Any,
) -> Model:  # fmt: skip
    out.mkdir()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        result: Model = pass_(student, Context(out, local.detect(), inputs, labels, original), **options)
    for note in said:
        print(f"  note: {note.message}")
    return result


def outputs(model: Model, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    ort = runtime("onnxruntime")
    session = ort.InferenceSession(str(model.path), providers=["CPUExecutionProvider"])
    names = [spec.name for spec in model.signature.outputs]
    rows = len(next(iter(inputs.values())))
    batch = 1 if model.signature.batch == 1 else 32
    parts = [session.run(names, {k: v[i : i + batch] for k, v in inputs.items()}) for i in range(0, rows, batch)]
    return {name: np.concatenate([part[i] for part in parts]) for i, name in enumerate(names)}


if __name__ == "__main__":
    sys.exit(main())
