"""Convolutions with fewer products: right at every size, in the runtime's own form, and only where measured."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator

from portolan.backends._artefact import KERNELS
from portolan.backends._blocked.layers import block, layers, optimised
from portolan.backends._blocked.noted import NOTED
from portolan.backends._blocked.weights import transformed, unblocked
from portolan.backends.onnxruntime import onnxruntime
from portolan.backends.openvino import openvino
from portolan.core.carried import MANIFEST
from portolan.core.extensions import folders
from portolan.core.graph import load_model
from portolan.core.model import Model
from portolan.core.native import Library, registered
from portolan.core.passes import Context
from portolan.core.silence import runtime
from portolan.errors import ModelError, UsageError
from portolan.filtering import winograd
from portolan.kernels.compiler import find
from portolan.kernels.embed.ort import door
from portolan.kernels.winograd import race
from portolan.targets.local import local

pytestmark = [
    pytest.mark.skipif(not any(map(shutil.which, ("gcc", "clang", "cc"))), reason="needs a C compiler"),
    pytest.mark.skipif(local.detect().arch != "x86_64", reason="the runtime's form is that of x86_64"),
]

#: A layer with a function behind it, one without a bias, one whose results are added to, and one with steps of two.
TEXT = """
<ir_version: 10, opset_import: ["": 18]>
net (float[n,3,h,w] x) => (float[n,48,p,q] y) {
  a = Conv <pads = [1, 1, 1, 1]> (x, w0, b0)
  b = Conv <pads = [1, 1, 1, 1]> (a, w1, b1)  c = Relu (b)
  d = Conv <pads = [1, 1, 1, 1]> (c, w2)
  e = Conv <pads = [1, 1, 1, 1]> (d, w3, b3)  f = Add (e, a)  g = Relu (f)
  y = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (g, w4)
}"""
SIDES = {"w0": (32, 3), "w1": (48, 32), "w2": (64, 48), "w3": (32, 64), "w4": (48, 32)}


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One for all tests: each kernel is compiled once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PORTOLAN_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def written(folder: Path, text: str = TEXT) -> Path:
    rng, proto = np.random.default_rng(1), onnx.parser.parse_model(text)
    given = {name: rng.standard_normal((*sides, 3, 3)) / (3 * sides[1] ** 0.5) for name, sides in SIDES.items()}
    given |= {"b0": rng.standard_normal(32), "b1": rng.standard_normal(48), "b3": rng.standard_normal(32)}
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(a.astype(np.float32), n) for n, a in given.items())
    folder.mkdir(exist_ok=True)
    onnx.checker.check_model(proto, full_check=True)
    onnx.save(proto, folder / "net.onnx")
    return folder / "net.onnx"


def filtered(path: Path, folder: Path, out: int, monkeypatch: pytest.MonkeyPatch) -> Model:
    """The model with tiles of `out` by `out` results wherever they can be, faster or not."""
    monkeypatch.setattr(race, "OUTS", (out,))
    folder.mkdir()
    return winograd(load_model(path), Context(folder, local.detect()), gain=0.0)


def image(*sides: int) -> np.ndarray:
    return np.random.default_rng(sum(sides)).standard_normal(sides).astype(np.float32)


@pytest.mark.parametrize("out", race.OUTS)
def test_every_size_on_every_number_of_threads(out: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, target = written(tmp_path / "in"), local.detect()
    made = filtered(path, tmp_path / "out", out, monkeypatch)
    onnx.checker.check_model(str(made.path), full_check=True)
    assert [n.op_type for n in onnx.load(made.path).graph.node] == [n.op_type for n in onnx.load(path).graph.node]
    oracle = ReferenceEvaluator(str(path))
    for threads in (1, 2):
        session = onnxruntime.compile(made, target, threads=threads)
        assert session.facts()["winograd"] == 3
        # Images smaller than a tile, and with parts of tiles at both ends; images that tasks share.
        for sides in ((1, 3, 1, 1), (1, 3, 2, 7), (2, 3, 9, 5), (5, 3, 8, 8), (1, 3, 50, 43)):
            (right,) = oracle.run(None, {"x": image(*sides)})
            np.testing.assert_allclose(session.run({"x": image(*sides)})["y"], right, rtol=1e-4, atol=1e-5)
        session.close()


def test_what_a_layer_reads_may_be_what_it_adds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = """
    <ir_version: 10, opset_import: ["": 18]>
    net (float[n,3,h,w] x) => (float[n,48,h,w] y) {
      a = Conv <pads = [1, 1, 1, 1]> (x, w0, b0)  b = Conv <pads = [1, 1, 1, 1]> (a, w1, b1)
      c = Conv <pads = [1, 1, 1, 1]> (b, same, b1)  y = Add (c, b)
    }"""
    monkeypatch.setitem(SIDES, "same", (48, 48))
    path = written(tmp_path / "in", text)
    session = onnxruntime.compile(filtered(path, tmp_path / "out", 4, monkeypatch), local.detect(), threads=1)
    assert session.facts()["winograd"] == 2
    (right,) = ReferenceEvaluator(str(path)).run(None, {"x": image(2, 3, 9, 7)})
    np.testing.assert_allclose(session.run({"x": image(2, 3, 9, 7)})["y"], right, rtol=1e-4, atol=1e-5)


def test_a_graph_that_does_not_run_at_the_sizes_tried_is_refused_in_words(tmp_path: Path) -> None:
    text = TEXT.replace("e = Conv", "o = Constant <value_ints = [-1, 64, 30, 30]> ()  t = Reshape (d, o)  e = Conv")
    model = load_model(written(tmp_path / "in", text.replace("(d, w3, b3)", "(t, w3, b3)")))
    with pytest.raises(ModelError, match=r"`onnxruntime` cannot run `model\.onnx`: .*Reshape"):
        winograd(model, Context(tmp_path, local.detect()))


def test_what_is_no_number_stays_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, x = written(tmp_path / "in"), image(1, 3, 12, 12)
    x[0, 0, 6, 6] = np.nan
    session = onnxruntime.compile(filtered(path, tmp_path / "out", 2, monkeypatch), local.detect(), threads=1)
    (right,) = ReferenceEvaluator(str(path)).run(None, {"x": x})
    got = session.run({"x": x})["y"]
    assert np.isnan(right).any()
    assert np.isnan(got)[np.isnan(right)].all()


def test_what_was_saved_runs_where_nothing_is_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = filtered(written(tmp_path / "in"), tmp_path / "out", 4, monkeypatch)
    before = onnxruntime.compile(made, local.detect(), threads=1)
    (tmp_path / "saved").mkdir()
    before.save(tmp_path / "saved")
    monkeypatch.setenv("PORTOLAN_CACHE", str(tmp_path / "empty"))
    after = onnxruntime.load(tmp_path / "saved", threads=1)
    assert after.facts() == before.facts()
    x = {"x": image(1, 3, 20, 20)}
    assert after.run(x)["y"].tobytes() == before.run(x)["y"].tobytes()


def test_what_was_compiled_for_another_processor_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = filtered(written(tmp_path / "in"), tmp_path / "out", 4, monkeypatch)
    before, saved, x = onnxruntime.compile(made, local.detect(), threads=1), tmp_path / "saved", image(1, 3, 20, 20)
    saved.mkdir()
    before.save(saved)
    listed = saved / KERNELS / MANIFEST
    rows = json.loads(listed.read_text())
    assert all("x86_64" in row["needs"] for row in rows)
    listed.write_text(json.dumps([row | {"needs": [*row["needs"], "amx_of_tomorrow"]} for row in rows]))
    monkeypatch.setenv("PORTOLAN_CACHE", str(tmp_path / "empty"))
    after = onnxruntime.load(saved, threads=1)
    assert "winograd" not in after.facts()
    np.testing.assert_allclose(after.run({"x": x})["y"], before.run({"x": x})["y"], rtol=1e-4, atol=1e-5)


def test_a_machine_without_the_package_onnx_computes_the_layers_as_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = filtered(written(tmp_path / "in"), tmp_path / "out", 4, monkeypatch)
    saved, x = tmp_path / "saved", {"x": image(1, 3, 20, 20)}
    saved.mkdir()
    before = onnxruntime.compile(made, local.detect(), threads=1)
    before.save(saved)
    monkeypatch.setitem(sys.modules, "onnx", None)
    after = onnxruntime.load(saved, threads=1)
    assert "winograd" not in after.facts()
    np.testing.assert_allclose(after.run(x)["y"], before.run(x)["y"], rtol=1e-4, atol=1e-5)


def test_without_its_kernels_the_model_is_what_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "in")
    made, x = filtered(path, tmp_path / "out", 4, monkeypatch), {"x": image(1, 3, 20, 20)}
    assert len(folders(made.path, local.detect())) == 2  # with something to add, and without
    monkeypatch.setenv("PORTOLAN_CACHE", str(tmp_path / "empty"))
    plain, session = (onnxruntime.compile(m, local.detect(), threads=1) for m in (load_model(path), made))
    assert "winograd" not in session.facts()
    assert session.run(x)["y"].tobytes() == plain.run(x)["y"].tobytes()
    # Others do not know what the metadata are about, and a search does not try them.
    assert openvino.refuse(made, local.detect()) is not None
    other = openvino.compile(load_model(made.path), local.detect(), threads=1)
    np.testing.assert_allclose(other.run(x)["y"], plain.run(x)["y"], rtol=1e-4, atol=1e-5)


def test_weights_that_were_not_measured_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = filtered(written(tmp_path / "in"), tmp_path / "out", 4, monkeypatch)
    proto = onnx.load(made.path)
    for tensor in proto.graph.initializer:
        if tensor.name in ("w1", "w2"):
            array = onnx.numpy_helper.to_array(tensor) + np.float32(0.01)
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    onnx.save(proto, tmp_path / "changed.onnx")
    changed = replace(load_model(tmp_path / "changed.onnx"), features=made.features)
    session = onnxruntime.compile(changed, local.detect(), threads=1)
    assert session.facts()["winograd"] == 1
    x = {"x": image(1, 3, 20, 20)}
    (right,) = ReferenceEvaluator(str(changed.path)).run(None, x)
    np.testing.assert_allclose(session.run(x)["y"], right, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("text", ["{", "[]", '{"operators": [[4]], "layers": {}}', '{"operators": [], "layers": 3}'])
def test_metadata_that_the_pass_did_not_write(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = filtered(written(tmp_path / "in"), tmp_path / "out", 4, monkeypatch)
    proto = onnx.load(made.path)
    (entry,) = proto.metadata_props
    # An operator's name in the file is what makes the runtime look; elsewhere the metadata are nobody's business.
    proto.doc_string, entry.value = entry.value, text
    onnx.save(proto, tmp_path / "net.onnx")
    with pytest.raises(ModelError, match=r"the model's metadata `portolan\.winograd` cannot be read"):
        onnxruntime.compile(load_model(tmp_path / "net.onnx"), local.detect(), threads=1)
    monkeypatch.setenv("PORTOLAN_CACHE", str(tmp_path / "empty"))
    onnxruntime.compile(load_model(tmp_path / "net.onnx"), local.detect(), threads=1).close()


def test_the_file_alone_is_enough_and_the_pass_may_come_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = filtered(written(tmp_path / "in"), tmp_path / "out", 4, monkeypatch)
    again = filtered(first.path, tmp_path / "again", 2, monkeypatch)
    assert [entry.key for entry in onnx.load(again.path).metadata_props] == [NOTED]
    session = onnxruntime.compile(load_model(again.path), local.detect(), threads=1)
    assert session.facts()["winograd"] == 3


def test_sizes_are_compared_before_anything_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model may name the operator itself, with tensors of its own."""
    made = filtered(written(tmp_path / "in"), tmp_path / "out", 2, monkeypatch)
    carried, _ = race.kernel(2, False, local.detect())
    (file,) = [f.file(k) for f in folders(made.path, local.detect()) for k in f.kernels() if k.name == carried.name]
    columns, ort = int(carried.inputs[1].axes[-1]), runtime("onnxruntime")

    def called(channels: int, results: int, blocks: int) -> np.ndarray:
        text = f"""
        <ir_version: 10, opset_import: ["": 18, "{carried.domain}": 1]>
        net (float[1,{channels},4,4] x, float[{blocks},16,{channels},{columns}] u, float[{results}] b, float[1] l) =>
            (float[1,{results},4,4] y) {{ y = {carried.domain}.{carried.name} (x, u, b, l) }}"""
        options = ort.SessionOptions()
        registered(options, [(carried.domain, file)])
        session = ort.InferenceSession(onnx.parser.parse_model(text).SerializeToString(), options)
        sides = {"x": (1, channels, 4, 4), "u": (blocks, 16, channels, columns), "b": (results,), "l": (1,)}
        return np.asarray(session.run(None, {name: np.ones(side, np.float32) for name, side in sides.items()})[0])

    assert called(32, 32, 32 // columns).shape == (1, 32, 4, 4)
    for sizes in ((7, 32, 32 // columns), (32, 20, 1), (32, 32, 5), (32, 64, 1)):
        with pytest.raises(Exception, match="sizes that the kernel cannot take"):
            called(*sizes)


def kernel(lanes: int, out: int, added: bool) -> Library:
    carried, code = race.kernel(out, added, local.detect())
    code = re.sub(r"#define LANES \d+", f"#define LANES {lanes}", code, count=1)
    library = find().build(f"{code}\n{door(carried)}")
    return Library(library, carried.entry, carried.symbols)


@pytest.mark.parametrize(("lanes", "out", "added"), [(8, 4, True), (8, 2, False), (16, 4, False), (16, 2, True)])
def test_blocks_of_every_width(lanes: int, out: int, added: bool) -> None:
    library = kernel(lanes, out, added)

    @settings(max_examples=25, deadline=None)
    @given(
        st.integers(1, 3), st.integers(1, 3), st.integers(1, 5), st.integers(1, 23), st.integers(1, 23), st.booleans()
    )
    def right(n: int, given: int, made: int, h: int, w: int, positive: bool) -> None:
        c, k = given * lanes, made * lanes
        rng = np.random.default_rng(n * h + w)
        x, z, bias = (rng.standard_normal(s).astype(np.float32) for s in ((n, c, h, w), (n, k, h, w), (k,)))
        weights = rng.standard_normal((k, c, 3, 3)).astype(np.float32) / np.float32(3 * c**0.5)
        u = transformed(weights, (out + 2) ** 2, 2 * lanes)
        least = np.asarray([0 if positive else -np.inf], np.float32)
        y = np.full((n, k // lanes, h, w, lanes), np.nan, np.float32)
        arrays = [blocked(x, lanes), u, bias, least, *([blocked(z, lanes)] if added else []), y]
        library(arrays, dict(zip("nchwkq", (n, c, h, w, k, len(u)), strict=True)))
        wanted = convolved(x, weights) + bias[:, None, None] + (z if added else 0)
        got = y.transpose(0, 1, 4, 2, 3).reshape(wanted.shape)
        np.testing.assert_allclose(got, np.maximum(wanted, least), rtol=1e-4, atol=2e-5)

    right()


def test_sizes_that_are_no_whole_blocks_are_an_error() -> None:
    library = kernel(8, 2, added=False)
    with pytest.raises(ValueError, match="sizes that the kernel cannot take"):
        library.bound(dict(zip("nchwkq", (1, 12, 4, 4, 16, 1), strict=True)))


def blocked(x: np.ndarray, lanes: int) -> np.ndarray:
    n, c, h, w = x.shape
    return np.ascontiguousarray(x.reshape(n, c // lanes, lanes, h, w).transpose(0, 1, 3, 4, 2))


def convolved(x: np.ndarray, weights: np.ndarray) -> np.ndarray:
    h, w = x.shape[2:]
    framed = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (1, 1), (1, 1)))
    every = [(framed[:, :, i : i + h, j : j + w], weights[:, :, i, j]) for i in range(3) for j in range(3)]
    return np.asarray(sum(np.einsum("nchw,kc->nkhw", part, one) for part, one in every))


def test_the_runtimes_blocks_are_read_as_they_lie(tmp_path: Path) -> None:
    path, target = written(tmp_path / "in"), local.detect()
    proto = optimised(path, tmp_path)
    found = {one.channels: one for one in layers(proto, target)}
    assert {channels: one.added for channels, one in found.items()} == {
        (32, 48): False, (48, 64): False, (64, 32): True,
    }  # fmt: skip
    blocked = constants(proto)[found[32, 48].node.input[1]]
    np.testing.assert_array_equal(unblocked(blocked, block(target)), constants(onnx.load(path))["w1"])


def constants(proto: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}


def test_nothing_to_gain(tmp_path: Path) -> None:
    text = TEXT.replace("[1, 1, 1, 1]>", "[1, 1, 1, 1], strides = [1, 2]>").replace("f = Add (e, a)", "f = Neg (e)")
    model, target = load_model(written(tmp_path / "in", text)), local.detect()
    with pytest.raises(UsageError, match=r"no convolution of `net` is 1\.1 times as fast with fewer products"):
        winograd(model, Context(tmp_path, target))
    made = load_model(written(tmp_path / "more"))
    with pytest.raises(UsageError, match="no convolution of `net` is 1000 times as fast"):
        winograd(made, Context(tmp_path, target), gain=1000.0)
    away = replace(target, arch="aarch64", features=("asimd",))
    assert "the target is another one" in str(winograd.refuse(made, {}, away))
