"""Every pass on weights that layers share, that are constants of nodes or external, or beside a foreign operator."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from nets import node, normal, save
from onnx import numpy_helper as nh

from portolan.core import registry
from portolan.core.graph import load_model
from portolan.core.model import Model
from portolan.core.passes import Context
from portolan.core.plain import parse_call
from portolan.errors import PortolanError
from portolan.testing.models import this_machine
from portolan.testing.passes import run

SAMPLES = {"x": normal(40, 48)}
torch = pytest.mark.torch
#: Every way to compress dense layers, and how near the outputs must stay: below 1 they are the same network.
PASSES: list[Any] = [
    ("simplify", 1e-5), ("quantize", 0.05), ("quantize(mode=static)", 0.1), ("quantize(mode=weights)", 0.05),
    ("quantize(mode=weights,bits=4,group=16)", 0.3), ("quantize(mode=float16)", 0.01),
    ("quantize(mode=bfloat16)", 0.05), ("mixed_precision(budget=0.5,lowest=8)", 0.1), ("prune(ratio=0.2)", 0.5),
    ("prune(kind=2:4)", 0.8),
    ("decompose(keep=0.8,align=1)", 0.8), ("decompose(method=tt,keep=0.8,align=1)", 0.97),
    pytest.param(("finetune(steps=5,batch=8)", 0.5), marks=torch, id="finetune"),
    pytest.param(("distill(steps=5,batch=8)", 0.5), marks=torch, id="distill"),
]  # fmt: skip
IDS = [entry[0] if isinstance(entry, tuple) else None for entry in PASSES]


def layers(path: Path, *, shared: bool) -> Model:
    """Three dense layers of 48 by 48, the first two with one weight or with two."""
    second = "w" if shared else "u"
    nodes = [
        node("MatMul", ["x", "w"], ["a"]), node("Relu", ["a"], ["ar"]),
        node("MatMul", ["ar", second], ["b"]), node("Relu", ["b"], ["br"]), node("MatMul", ["br", "v"], ["y"]),
    ]  # fmt: skip
    weights = {name: normal(48, 48, seed=seed) / 5 for seed, name in enumerate("wv" if shared else "wuv")}
    return save(path, nodes, weights, {"x": ["n", 48]}, {"y": ["n", 48]})


def applied(how: str, model: Model, out: Path) -> Model:
    name, given = parse_call(how, "pass")
    out.mkdir(parents=True)
    item = registry.pass_(name)
    result = item(model, Context(out, this_machine(), SAMPLES, original=model), **given)
    onnx.checker.check_model(onnx.load(result.path), full_check=True)
    return result


def off(model: Model, result: Model) -> float:
    inputs = {"x": normal(16, 48, seed=77)}
    right, got = (run(m, inputs)["y"] for m in (model, result))
    return float(np.linalg.norm(got - right) / np.linalg.norm(right))


def stored(model: Model) -> int:
    """Bytes of everything constant, wherever it is."""
    graph = onnx.load(model.path).graph
    values = [a.t for n in graph.node for a in n.attribute if a.type == onnx.AttributeProto.TENSOR]
    return sum(len(t.raw_data) or nh.to_array(t).nbytes for t in (*graph.initializer, *values))


@pytest.mark.parametrize("how", PASSES, ids=IDS)
def test_a_weight_of_two_layers_is_changed_once_and_stored_once(how: tuple[str, float], tmp_path: Path) -> None:
    one, two = (layers(tmp_path / f"{shared}.onnx", shared=shared) for shared in (True, False))
    result = applied(how[0], one, tmp_path / "shared")
    assert off(one, result) < how[1]
    assert stored(result) < 0.75 * stored(applied(how[0], two, tmp_path / "apart"))


@pytest.mark.parametrize("how", PASSES, ids=IDS)
@pytest.mark.parametrize("place", ["constant nodes", "external"])
def test_weights_elsewhere_are_found(how: tuple[str, float], place: str, tmp_path: Path) -> None:
    model = layers(tmp_path / "net.onnx", shared=False)
    moved = tmp_path / "moved" / "net.onnx"
    moved.parent.mkdir()
    proto = onnx.load(model.path)
    if place == "external":
        onnx.save(proto, moved, save_as_external_data=True, location="weights", size_threshold=0)
        assert (moved.parent / "weights").is_file()
    else:
        for tensor in list(proto.graph.initializer)[::-1]:
            proto.graph.node.insert(0, node("Constant", [], [tensor.name], value=tensor))
        del proto.graph.initializer[:]
        onnx.save(proto, moved)
    other = load_model(moved)
    plain, result = (applied(how[0], m, tmp_path / str(i)) for i, m in enumerate((model, other)))
    assert off(model, result) < how[1]
    assert result.path.stat().st_size < 1.1 * plain.path.stat().st_size, "it was compressed as much"


@pytest.mark.parametrize("how", PASSES, ids=IDS)
def test_an_operator_of_one_runtime_is_kept_or_named(how: tuple[str, float], tmp_path: Path) -> None:
    """It stays as it is, or the pass fails with a reason: no traceback, and no file."""
    nodes = [
        node("MatMul", ["x", "w"], ["a"]), node("QuickGelu", ["a"], ["b"], domain="com.microsoft"),
        node("MatMul", ["b", "v"], ["y"]),
    ]  # fmt: skip
    model = save(tmp_path / "plain.onnx", [node("Identity", ["x"], ["y"])], {}, {"x": ["n", 48]}, {"y": ["n", 48]})
    proto = onnx.load(model.path)
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    proto.graph.initializer.extend(nh.from_array(normal(48, 48, seed=i) / 5, name) for i, name in enumerate("wv"))
    proto.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    onnx.save(proto, tmp_path / "odd.onnx")
    odd = load_model(tmp_path / "odd.onnx")
    name, given = parse_call(how[0], "pass")
    (out := tmp_path / "out").mkdir()
    failed = None
    try:
        context = Context(out, this_machine(), SAMPLES, original=odd)
        result = registry.pass_(name)(odd, context, **given)
    except PortolanError as error:
        failed = error
    if failed is None:
        assert result.operators["com.microsoft.QuickGelu"] == 1
    else:
        assert failed.hint
        assert "QuickGelu" in failed.message
        assert list(out.iterdir()) == []
