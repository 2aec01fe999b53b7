"""Graphs written out for a reader that lacks an operator, or passes over what it does not know."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from portolan.backends.openvino import openvino
from portolan.core import protos
from portolan.core.graph import load_model
from portolan.core.silence import runtime
from portolan.errors import ModelError, UnsupportedOperator
from portolan.importers.definitions import expanded
from portolan.importers.scans import closed
from portolan.testing.frontend import tiny_onnx
from portolan.testing.models import this_machine

#: A sum along an axis whose body uses a constant, what is computed outside, and names no types.
SCAN = """<ir_version: 8, opset_import: ["": 18]> g (float[3,N,4] x, float[N,4] start, float[4] weight)
    => (float[N,4] last, float[3,N,4] sums) <float[1] one = {1.0}>
{
    twice = Add (weight, weight)
    last, sums = Scan <num_scan_inputs = 1, body = b (state, now) => (float[N,4] next, float[N,4] sum)
        { scaled = Mul (now, twice)  more = Add (scaled, one)  next = Add (state, more)  sum = Identity (next) }>
        (start, x)
}"""


def answers(proto: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    session = runtime("onnxruntime").InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return [np.asarray(value) for value in session.run(None, feeds)]


def compiled(proto: onnx.ModelProto, folder: Path, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    onnx.save(proto, str(folder / "model.onnx"))
    made = openvino.compile(load_model(folder / "model.onnx"), this_machine(), threads=1)
    return list(made.run(feeds).values())


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def test_a_scan_hands_its_body_all_that_it_uses() -> None:
    proto = onnx.parser.parse_model(SCAN)
    written = closed(proto)
    onnx.checker.check_model(written, full_check=True)
    (scan,) = [node for node in protos.walk(written.graph.node) if node.op_type == "Scan"]
    (body,) = protos.subgraphs(scan)
    own = {value.name for value in body.input} | {name for node in body.node for name in node.output}
    assert {name for node in body.node for name in node.input} <= own
    assert [value.type.tensor_type.elem_type for value in body.input] == [1, 1, 1]
    assert list(scan.input) == ["twice", "start", "x"]
    assert closed(written) is written
    feeds = {"x": normal(3, 2, 4), "start": normal(2, 4), "weight": normal(4)}
    for found, wanted in zip(answers(written, feeds), answers(proto, feeds), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-6)


def test_openvino_reads_a_scan_whose_body_uses_what_is_outside(tmp_path: Path) -> None:
    proto = onnx.parser.parse_model(SCAN.replace("N", "2"))
    feeds = {"x": normal(3, 2, 4), "start": normal(2, 4), "weight": normal(4)}
    for found, wanted in zip(compiled(proto, tmp_path, feeds), answers(proto, feeds), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_a_graph_without_scans_stays_as_it_is() -> None:
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 18]> g (float[2] x) => (float[2] y) {y = Abs (x)}'
    )
    assert closed(proto) is proto
    assert expanded(proto, frozenset(("Abs", "Mod"))) is proto


@pytest.mark.parametrize(("kind", "fmod", "written"), [("float", 0, True), ("float", 1, False), ("int32", 0, False)])
def test_a_remainder_of_floats_with_the_divisors_sign(kind: str, fmod: int, written: bool) -> None:
    text = f'<ir_version: 13, opset_import: ["": 21]> g ({kind}[6] x, {kind}[6] y) => ({kind}[6] z)'
    proto = onnx.parser.parse_model(f"{text} {{ z = Mod <fmod = {fmod}> (x, y) }}")
    plain = expanded(proto, frozenset(("Mod",)))
    assert (plain is not proto) is written
    if written:
        x, y = np.float32([7.5, -7.5, 7.5, -7.5, 6, -6]), np.float32([2, 2, -2, -2, 3, -3])
        np.testing.assert_allclose(answers(plain, {"x": x, "y": y})[0], np.mod(x, y))


def test_an_operator_whose_version_has_no_definition_stays() -> None:
    """ONNX defines SpaceToDepth since it has two modes."""
    text = '<ir_version: 8, opset_import: ["": 13]> g (float[1,1,4,4] x) => (float[1,4,2,2] y)'
    proto = onnx.parser.parse_model(f"{text} {{ y = SpaceToDepth <blocksize = 2> (x) }}")
    assert expanded(proto, frozenset(("SpaceToDepth",))) is proto


@pytest.mark.parametrize("text", [b"Scan no graph", b""])
def test_a_file_that_is_no_graph_is_refused_with_openvinos_reason(text: bytes, tmp_path: Path) -> None:
    model = load_model(tiny_onnx(tmp_path / "model.onnx"))
    model.path.write_bytes(text)
    with pytest.raises(ModelError, match=r"`openvino` cannot read `model\.onnx`"):
        openvino.compile(model, this_machine(), threads=1)


def test_without_onnx_the_runtimes_own_reason_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_model(tiny_onnx(tmp_path / "model.onnx"))
    model.path.write_bytes(model.path.read_bytes()[:-40])
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ModelError, match="`openvino` cannot read") as caught:
        openvino.compile(model, this_machine(), threads=1)
    assert "No module" not in str(caught.value)
    assert "import of onnx" not in str(caught.value)


ATTENTION = """<ir_version: 13, opset_import: ["": 25]> g (float[1,2,6,8] q, float[1,2,6,8] k, float[1,2,6,8] v)
    => (float[1,2,6,8] y) { y = Attention <is_causal = 1, left_window_size = 2> (q, k, v) }"""


def test_openvino_does_not_pass_over_the_window_of_an_attention(tmp_path: Path) -> None:
    proto = onnx.parser.parse_model(ATTENTION)
    q, k, v = np.random.default_rng(0).standard_normal((3, 1, 2, 6, 8)).astype(np.float32)
    scores = q @ k.swapaxes(2, 3) / np.sqrt(8)
    apart = np.arange(6)[:, None] - np.arange(6)
    weights = np.where((apart >= 0) & (apart <= 2), np.exp(scores), 0)
    wanted = (weights / weights.sum(-1, keepdims=True)) @ v
    np.testing.assert_allclose(compiled(proto, tmp_path, {"q": q, "k": k, "v": v})[0], wanted, atol=1e-5)


def test_openvino_refuses_what_it_would_pass_over(tmp_path: Path) -> None:
    head = '<ir_version: 8, opset_import: ["": 18]> g (float[1,1,4,4] x) => (float[1,1,2,2] y)'
    made = '<float[4] s = {1,1,0.5,0.5}> { y = Resize <mode = "linear", antialias = 1> (x, , s) }'
    proto = onnx.parser.parse_model(f"{head} {made}")
    with pytest.raises(UnsupportedOperator, match="`openvino` passes over `antialias` of `Resize`"):
        compiled(proto, tmp_path, {"x": normal(1, 1, 4, 4)})
