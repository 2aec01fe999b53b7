"""The importer: ONNX's own operator tests, small networks against ONNX Runtime, weights in and out."""

from __future__ import annotations

import collections
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from portolan.core.silence import runtime
from portolan.errors import ModelError, UnsupportedOperator
from portolan.importers.operators import TABLE, key
from portolan.importers.program import Program
from portolan.importers.reading import read, store, unsupported
from portolan.importers.torch_ import module
from portolan.testing.models import cases

pytestmark = pytest.mark.torch
DEMO = Path(__file__).parents[2] / "src" / "portolan" / "demo" / "digits.onnx"
#: What ONNX's cases show and the importer says it does not do, by a word of its reason.
KNOWN = (
    "known only as the model runs", "dilations", "training mode", "recurrent layer", "with indices",
    "`nearest` and `linear` only", "`Resize` with", "`ceil_mode` and", "operator set 1,", "UInt", "non-zero size",
    "before operator set 21", "element type",
)  # fmt: skip

#: Sequences do not cross a model's edge (they have tests of their own below), and these have no case of numbers.
UNSEEN = {
    "ConcatFromSequence", "GlobalLpPool", "LabelEncoder", "Optional", "Scaler", "SequenceAt",
    "SequenceConstruct", "SequenceEmpty", "SequenceErase", "SequenceInsert", "SequenceLength", "SplitToSequence",
    "TreeEnsembleClassifier", "TreeEnsembleRegressor",
}  # fmt: skip


def run(program: Program, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    import torch

    torch.set_num_threads(1)
    with torch.no_grad():
        return [v.numpy() for v in module(program)(*(torch.from_numpy(np.array(feeds[n])) for n in program.inputs))]


def expected(proto: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    ort = runtime("onnxruntime")
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, dict(feeds)))


def graph(
    nodes: Sequence[onnx.NodeProto],
    feeds: Mapping[str, np.ndarray],
    weights: Mapping[str, np.ndarray],
    outputs: Sequence[str] = ("y",),
    opset: int = 18,
) -> onnx.ModelProto:
    inputs = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape) for n, v in feeds.items()
    ]
    tensors = [numpy_helper.from_array(v, n) for n, v in weights.items()]
    side = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in outputs]
    body = helper.make_graph(list(nodes), "g", inputs, side, tensors)
    domains = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(body, opset_imports=domains, ir_version=9)


def close(got: Sequence[np.ndarray], right: Sequence[np.ndarray], name: str) -> None:
    for mine, theirs in zip(got, right, strict=True):
        assert (mine.dtype, mine.shape) == (theirs.dtype, theirs.shape), name
        tolerance = 1e-2 if theirs.dtype == np.float16 else 1e-4
        np.testing.assert_allclose(mine, theirs, rtol=tolerance, atol=tolerance, err_msg=name)


def test_onnx_own_cases_of_every_operator() -> None:
    """ONNX's node tests: each is right, or refused with a reason from KNOWN; never wrong."""
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = collect_testcases(None)
    right, seen, surprises = 0, set[str](), list[str]()
    for case in found:
        names = {key(node.op_type, node.domain) for node in case.model.graph.node}
        if not names <= {*TABLE, "Constant"}:
            continue
        if any(isinstance(a, list) or a is None for side in case.data_sets[0] for a in side):
            continue  # sequences: only tensors cross a model's edge
        inputs, outputs = ([np.asarray(a) for a in side] for side in case.data_sets[0])
        if any(a.dtype.kind not in "fiub" for a in (*inputs, *outputs)):
            continue
        try:
            close(run(read(case.model, "case"), _feeds(case.model, inputs)), outputs, case.name)
        except (ModelError, AssertionError) as error:
            if isinstance(error, AssertionError) or not any(word in str(error) for word in KNOWN):
                surprises.append(f"{case.name}: {error}")
            continue
        right, seen = right + 1, seen | names
    assert surprises == []
    assert right >= 1250
    assert {name for name in set(TABLE) - seen if "." not in name} == UNSEEN


def _feeds(model: onnx.ModelProto, inputs: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    return dict(zip((value.name for value in model.graph.input), inputs, strict=False))


X = np.random.default_rng(0).standard_normal((2, 6, 8)).astype(np.float32)
W = np.random.default_rng(1).standard_normal((6, 8)).astype(np.float32)
B = np.random.default_rng(2).standard_normal(8).astype(np.float32)
IMAGE = np.random.default_rng(3).standard_normal((2, 4, 9, 7)).astype(np.float32)
KERNEL = np.random.default_rng(4).standard_normal((4, 3, 3, 2)).astype(np.float32)


@pytest.mark.parametrize(
    ("node", "feeds", "weights"),
    [
        (("com.microsoft.BiasGelu", "x b", {}), {"x": X}, {"b": B}),
        (("com.microsoft.FastGelu", "x b", {}), {"x": X}, {"b": B}),
        (("com.microsoft.FastGelu", "x", {}), {"x": X}, {}),
        (("com.microsoft.Gelu", "x", {}), {"x": X}, {}),
        (("com.microsoft.QuickGelu", "x", {"alpha": 1.5}), {"x": X}, {}),
        (("com.microsoft.FusedMatMul", "x w", {"transB": 1, "alpha": 0.5}), {"x": X}, {"w": W}),
        (("com.microsoft.FusedMatMul", "x w", {"transA": 1}), {"x": X}, {"w": W}),
        (("com.microsoft.SkipLayerNormalization", "x x b b b", {"epsilon": 1e-3}), {"x": X}, {"b": B}),
        (("Conv", "x k", {"auto_pad": "SAME_UPPER", "strides": [2, 3], "group": 2}), {"x": IMAGE},
         {"k": KERNEL[:, :2]}),
        (("Conv", "x k", {"auto_pad": "SAME_LOWER", "group": 2}), {"x": IMAGE}, {"k": KERNEL[:, :2]}),
        (("Conv", "x k", {"pads": [0, 1, 2, 0], "group": 2}), {"x": IMAGE}, {"k": KERNEL[:, :2]}),
        (("ConvTranspose", "x k", {"strides": [2, 2], "pads": [1, 0, 0, 1], "output_padding": [1, 0]}), {"x": IMAGE},
         {"k": KERNEL}),
        (("ConvTranspose", "x k", {"strides": [2, 1], "output_shape": [20, 8]}), {"x": IMAGE}, {"k": KERNEL}),
        (("MaxPool", "x", {"kernel_shape": [3, 2], "strides": [2, 2], "ceil_mode": 1}), {"x": IMAGE}, {}),
        (("MaxPool", "x", {"kernel_shape": [3, 3], "pads": [0, 1, 2, 1]}), {"x": IMAGE}, {}),
        (("AveragePool", "x", {"kernel_shape": [3, 3], "pads": [1, 0, 1, 2], "strides": [2, 2]}), {"x": IMAGE}, {}),
        (("GRU", "x w r", {"hidden_size": 2, "linear_before_reset": 1, "direction": "bidirectional"}), {"x": X},
         {"w": np.stack([W, W[::-1]]), "r": np.stack([W[:, :2], W[:, 2:4]])}),
        (("LSTM", "x w r b", {"hidden_size": 2, "direction": "reverse"}), {"x": X},
         {"w": np.concatenate([W, W[:2]])[None], "r": np.concatenate([W, W[:2]])[None, :, :2],
          "b": np.concatenate([B, B])[None]}),
    ],
)  # fmt: skip
def test_what_those_cases_leave_out_is_onnx_runtimes(
    node: tuple[str, str, dict[str, Any]], feeds: Mapping[str, np.ndarray], weights: Mapping[str, np.ndarray]
) -> None:
    domain, _, operator = node[0].rpartition(".")
    made = helper.make_node(operator, node[1].split(), ["y"], domain=domain, **node[2])
    proto = graph([made], feeds, {n: np.ascontiguousarray(v) for n, v in weights.items()})
    close(run(read(proto, "one"), feeds), expected(proto, feeds), str(node))


def test_old_operator_sets() -> None:
    """Axes, pads, bounds and parts were attributes once, and Softmax took all axes from one on."""
    nodes = [
        helper.make_node("Softmax", ["x"], ["s"], axis=1),
        helper.make_node("Unsqueeze", ["s"], ["u"], axes=[0]),
        helper.make_node("Squeeze", ["u"], ["q"], axes=[0]),
        helper.make_node("Slice", ["q"], ["c"], starts=[1], ends=[5], axes=[1]),
        helper.make_node("Clip", ["c"], ["l"], min=0.01, max=0.05),
        helper.make_node("Pad", ["l"], ["p"], pads=[0, 1, 0, 0, 0, 2], value=0.5),
        helper.make_node("Split", ["p"], ["a", "b"], axis=1, split=[2, 3]),
        helper.make_node("TopK", ["a"], ["t", "places"], k=2, axis=2),
        helper.make_node("ReduceSum", ["b"], ["y"], axes=[1], keepdims=0),
        helper.make_node("Dropout", ["t"], ["z"]),
    ]
    proto = graph(nodes, {"x": X}, {}, ("y", "z"), opset=9)
    close(run(read(proto, "old"), {"x": X}), expected(proto, {"x": X}), "old")


def test_small_models_are_onnx_runtimes(tmp_path: Path) -> None:
    """Perceptron, convolutions, free batch, embeddings, several outputs, external data."""
    for case in cases(tmp_path):
        program = read(onnx.load(case.model.path), case.name)
        for one in (case, case.other):
            if one is not None:
                close(run(program, one.inputs), list(one.expected.values()), one.name)


def test_digits() -> None:
    proto = onnx.load(DEMO)
    images = np.random.default_rng(0).random((5, 1, 8, 8)).astype(np.float32)
    close(run(read(proto, "digits"), {"image": images}), expected(proto, {"image": images}), "digits")


def test_an_exported_transformer() -> None:
    """With sizes that the graph computes from its inputs, a causal mask and a table of positions."""
    import torch

    class Attention(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.places = torch.nn.Embedding(40, 16), torch.nn.Embedding(12, 16)
            self.layer = torch.nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, activation="gelu")
            self.head = torch.nn.Linear(16, 40, bias=False)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            size = ids.shape[1]
            mask = torch.triu(torch.full((size, size), float("-inf")), diagonal=1)
            return self.head(self.layer(self.table(ids) + self.places(torch.arange(size)), src_mask=mask))

    torch.manual_seed(0)
    ids = np.random.default_rng(0).integers(0, 40, (3, 7))
    axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("size", max=12)}
    exported = torch.onnx.export(
        Attention().eval(), (torch.from_numpy(ids),), dynamic_shapes=(axes,), dynamo=True, verbose=False
    )
    assert exported is not None
    proto = exported.model_proto
    program = read(proto, "attention")
    for rows in (ids, ids[:2, :5]):
        feeds = {program.inputs[0]: rows}
        close(run(program, feeds), expected(proto, feeds), "attention")


def test_gradients_reach_every_weight() -> None:
    import torch

    program = read(onnx.load(DEMO), "digits")
    network = module(program)
    (scores,) = network(torch.rand(4, 1, 8, 8))
    scores.square().mean().backward()
    assert set(network.named()) == set(program.weights)
    assert all(bool((w.grad != 0).any()) for w in network.named().values())


def test_weights_go_back_as_they_came(tmp_path: Path) -> None:
    """Initializers and constant nodes alike, bytes and all."""
    for path in [DEMO, *(case.model.path for case in cases(tmp_path))]:
        proto, before = onnx.load(path), onnx.load(path)
        program = read(proto, path.stem)
        store(proto, module(program).arrays())
        for new, old in zip(proto.graph.initializer, before.graph.initializer, strict=True):
            assert (new.name, new.dims, new.data_type) == (old.name, old.dims, old.data_type)
            assert numpy_helper.to_array(new).tobytes() == numpy_helper.to_array(old).tobytes()


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.floats(-(2.0**99), 2.0**99, width=32), min_size=2, max_size=12),
    st.booleans(),
    st.sampled_from(["f4", "f8"]),
)
def test_any_weight_is_stored_by_its_name(values: list[float], node: bool, kind: str) -> None:
    weight = np.array(values, kind)
    x = np.ones(len(values), kind)
    nodes = [helper.make_node("Mul", ["x", "w"], ["y"])]
    if node:
        nodes.insert(0, helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(weight, "other")))
    proto = graph(nodes, {"x": x}, {} if node else {"w": weight})
    program = read(proto, "m")
    assert program.weights == ("w",)
    np.testing.assert_array_equal(module(program).arrays()["w"], weight)
    store(proto, {"w": weight + 1})
    np.testing.assert_array_equal(read(proto, "m").constants["w"], weight + 1)


def test_what_is_no_weight() -> None:
    """Counted statistics, settings, single numbers, sizes and infinities are not to be trained."""
    nodes = [
        helper.make_node("BatchNormalization", ["x", "scale", "shift", "mean", "spread"], ["n"]),
        helper.make_node("Add", ["n", "infinite"], ["a"]),
        helper.make_node("Mul", ["a", "one"], ["m"]),
        helper.make_node("Resize", ["m", "", "scales"], ["y"]),
    ]
    four = np.ones(4, np.float32)
    weights = {"scale": four, "shift": four, "mean": four, "spread": four, "one": np.float32([2.0])}
    weights |= {"infinite": np.full((1, 4, 1, 1), -np.inf, np.float32), "scales": np.float32([1, 1, 2, 2])}
    proto = graph(nodes, {"x": IMAGE}, weights)
    assert read(proto, "m").weights == ("scale", "shift")
    close(run(read(proto, "m"), {"x": IMAGE}), expected(proto, {"x": IMAGE}), "m")


def test_importing_the_table_loads_nothing_heavy() -> None:
    import subprocess
    import sys

    code = "import sys, portolan.importers.program; print([n for n in ('numpy', 'onnx', 'torch') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_an_unknown_operator_is_named() -> None:
    proto = graph([helper.make_node("ImageDecoder", ["x"], ["y"], name="here")], {"x": X}, {})
    with pytest.raises(UnsupportedOperator, match="no operator `ImageDecoder`") as caught:
        read(proto, "m")
    assert caught.value.where == "node `here`"
    assert caught.value.hint is not None
    assert unsupported({"StringSplit": 1, "Add": 2, "Constant": 1, "com.microsoft.Odd": 1, "pkg.body": 1}) == [
        "StringSplit", "com.microsoft.Odd",
    ]  # fmt: skip


def test_sizes_that_inputs_hold_are_named_and_refused_where_nobody_knows_them() -> None:
    import torch

    shape = np.array([2, 48])
    proto = graph([helper.make_node("Reshape", ["x", "shape"], ["y"])], {"x": X, "shape": shape}, {})
    program = read(proto, "m")
    assert program.deciding == ("shape",)
    (found,) = run(program, {"x": X, "shape": shape})
    assert found.shape == (2, 48)
    with pytest.raises(UnsupportedOperator, match="input 1 is known only as the model runs") as caught:
        torch.export.export(module(program), (torch.from_numpy(X), torch.from_numpy(shape)))
    assert caught.value.where == "Reshape giving `y` of m"


def test_what_only_sizes_depend_on_decides_nothing() -> None:
    nodes = [
        helper.make_node("Shape", ["other"], ["s"]),
        helper.make_node("Concat", ["s", "more"], ["t"], axis=0),
        helper.make_node("Expand", ["x", "t"], ["y"]),
    ]
    feeds = {"x": np.ones(1, np.float32), "other": np.ones(3, np.float32), "more": np.array([2])}
    assert read(graph(nodes, feeds, {}), "m").deciding == ("more",)


def test_bodies_see_what_is_around_them() -> None:
    """A loop that is written out, a branch that is chosen as the model runs, both reading a value from outside."""
    body = helper.make_graph(
        [
            helper.make_node("Add", ["carried", "w"], ["next"]),
            helper.make_node("Identity", ["going"], ["goes"]),
            helper.make_node("Identity", ["next"], ["seen"]),
        ],
        "body",
        [helper.make_tensor_value_info(n, k, []) for n, k in (("i", 7), ("going", 9))]
        + [helper.make_tensor_value_info("carried", 1, None)],
        [helper.make_tensor_value_info(n, k, None) for n, k in (("goes", 9), ("next", 1), ("seen", 1))],
    )
    ways = [
        helper.make_graph(
            [helper.make_node(name, ["last", "w"], [f"{name}.y"])], name, [],
            [helper.make_tensor_value_info(f"{name}.y", 1, None)],
        )
        for name in ("Mul", "Sub")
    ]  # fmt: skip
    nodes = [
        helper.make_node("Loop", ["count", "", "x"], ["last", "all"], body=body),
        helper.make_node("ReduceSum", ["last"], ["sum"], keepdims=0),
        helper.make_node("Greater", ["sum", "zero"], ["positive"]),
        helper.make_node("If", ["positive"], ["y"], then_branch=ways[0], else_branch=ways[1]),
    ]
    weights = {"w": B, "count": np.array(3), "zero": np.array(0, np.float32)}
    for x in (B * 0 + 9, B * 0 - 9):
        proto = graph(nodes, {"x": x}, weights, ("y", "all"))
        close(run(read(proto, "m"), {"x": x}), expected(proto, {"x": x}), "bodies")


def test_sequences_inside_a_model_are_onnx_runtimes() -> None:
    nodes = [
        helper.make_node("SplitToSequence", ["x"], ["parts"], axis=1),
        helper.make_node("SequenceAt", ["parts", "two"], ["third"]),
        helper.make_node("SequenceInsert", ["parts", "third", "zero"], ["more"]),
        helper.make_node("SequenceErase", ["more", "two"], ["fewer"]),
        helper.make_node("ConcatFromSequence", ["fewer"], ["y"], axis=1),
        helper.make_node("SequenceEmpty", [], ["none"]),
        helper.make_node("SequenceInsert", ["none", "third"], ["one"]),
        helper.make_node("SequenceLength", ["one"], ["n"]),
        helper.make_node("Cast", ["n"], ["length"], to=TensorProto.FLOAT),
        helper.make_node("SequenceConstruct", ["third", "third"], ["pair"]),
        helper.make_node("ConcatFromSequence", ["pair"], ["z"], axis=0, new_axis=1),
    ]
    weights = {"two": np.array(2), "zero": np.array(0)}
    proto = graph(nodes, {"x": X}, weights, ("y", "length", "z"))
    close(run(read(proto, "m"), {"x": X}), expected(proto, {"x": X}), "sequences")


def test_pools_labels_and_scales_are_onnx_runtimes() -> None:
    keys = [float(v) for v in X[0, 0, :3]]
    nodes = [
        helper.make_node("GlobalLpPool", ["x"], ["y"], p=3),
        helper.make_node(
            "LabelEncoder", ["x"], ["z"], domain="ai.onnx.ml", keys_floats=keys, values_floats=[1.0, 2.0, 3.0]
        ),
    ]
    proto = graph(nodes, {"x": X}, {}, ("y", "z"))
    proto.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3))
    close(run(read(proto, "m"), {"x": X}), expected(proto, {"x": X}), "labels")
    scaler = helper.make_node("Scaler", ["x"], ["y"], domain="ai.onnx.ml", offset=[0.5] * 8, scale=[2.0] * 8)
    proto = graph([scaler], {"x": W}, {})
    proto.opset_import.append(helper.make_opsetid("ai.onnx.ml", 1))
    close(run(read(proto, "m"), {"x": W}), expected(proto, {"x": W}), "scales")


def test_operators_that_onnx_defines_by_others() -> None:
    """Alone and inside one another; which operator the definition needs is read from ONNX."""
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        helper.make_node("MeanVarianceNormalization", ["d"], ["y"], axes=[0, 2]),
    ]
    proto = graph(nodes, {"x": X}, {})
    assert unsupported({"MeanVarianceNormalization": 1, "DynamicQuantizeLinear": 1}) == []
    close(run(read(proto, "m"), {"x": X}), expected(proto, {"x": X}), "functions")


def test_what_cannot_be_read_is_refused() -> None:
    fine = [helper.make_node("Add", ["x", "x"], ["y"])]
    with pytest.raises(ModelError, match="operator set 6, the importer reads 7"):
        read(graph(fine, {"x": X}, {}, opset=6), "m")
    proto = graph([helper.make_node("Constant", [], ["c"], value_string="text"), *fine], {"x": X}, {})
    with pytest.raises(ModelError, match="`c` holds a `value_string`"):
        read(proto, "m")
    proto = graph(fine, {"x": X}, {})
    proto.graph.initializer.append(helper.make_tensor("s", TensorProto.STRING, [1], [b"text"]))
    with pytest.raises(ModelError, match="the constant `s` has the element type object"):
        read(proto, "m")
    proto = graph(fine, {"x": X}, {})
    proto.graph.sparse_initializer.add()
    with pytest.raises(ModelError, match="sparse initializers"):
        read(proto, "m")


def test_a_failing_operator_says_where() -> None:
    proto = graph([helper.make_node("MatMul", ["x", "w"], ["y"])], {"x": X}, {"w": W})
    with pytest.raises(ModelError, match="MatMul giving `y` of `m` cannot be computed"):
        run(read(proto, "m"), {"x": X})


def test_counts_of_operators_in_the_table() -> None:
    """Names are ONNX's or ONNX Runtime's, so that a model's own counts can be looked up."""
    known = collections.Counter(schema.name for schema in onnx.defs.get_all_schemas())
    assert [name for name in TABLE if "." not in name and not known[name]] == []
