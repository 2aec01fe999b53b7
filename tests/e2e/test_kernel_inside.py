"""Kernels inside of a whole model: found, compiled, verified, raced, shipped; and what an attacker would try."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from portolan import embedding
from portolan.bundle import open_bundle
from portolan.core import carried, registry
from portolan.core.graph import load_model
from portolan.errors import UsageError, VerificationFailed
from portolan.kernels.compiler import find
from portolan.kernels.embed.carry import carry
from portolan.kernels.embed.find import sites
from portolan.kernels.embed.function import DOMAIN, function
from portolan.kernels.embed.ort import library
from portolan.kernels.source import read_file
from portolan.targets.local import local
from support import operators
from support.serving import serving

pytestmark = [
    pytest.mark.usefixtures("cache"),
    pytest.mark.skipif(not any(map(shutil.which, ("gcc", "clang", "cc"))), reason="needs a C compiler"),
]
FILE = """from portolan import kernel


@kernel
def tropical(A: "i k", B: "k j") -> "i j":
    return max(A[i, k] + B[k, j] for k in K)
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "ops.py"
    path.write_text(FILE)
    return path


def net(path: Path, body: onnx.FunctionProto | None = None, name: str = "tropical") -> Path:
    """A model of two layers of max-plus with a Relu between them."""
    rng = np.random.default_rng(0)
    weights = [numpy_helper.from_array(rng.standard_normal((48, 48), np.float32), f"w{n}") for n in range(2)]
    nodes = [
        helper.make_node(name, ["x", "w0"], ["a"], domain=DOMAIN),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node(name, ["b", "w1"], ["y"], domain=DOMAIN),
    ]
    sides = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["rows", 48]) for n in ("x", "y")]
    graph = helper.make_graph(nodes, "net", sides[:1], sides[1:], weights)
    functions = [body or function(operators.tropical.program)]
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid(DOMAIN, 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, functions=functions, ir_version=10), str(path))
    return path


def asked(**given: object) -> embedding.Asked:
    return embedding.Asked(**{"backends": ("onnxruntime",), "budget": "1s", **given})  # type: ignore[arg-type]


def quiet(text: str) -> None:
    """No progress."""


def test_nodes_are_found_with_their_sizes(tmp_path: Path, file: Path) -> None:
    model = onnx.load(str(net(tmp_path / "net.onnx")))
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 7
    (site,) = sites(model, [f.program for f in read_file(file)])
    assert (site.nodes, site.sizes) == (2, {"i": 7, "k": 48, "j": 48})
    assert site.function.name == "tropical"


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What `--for` answers, and the bundle in a folder."""
    place = tmp_path_factory.mktemp("packed")
    (place / "ops.py").write_text(FILE)
    out = place / "bundle"
    return embedding.embed(place / "ops.py", str(net(place / "net.onnx")), asked(out=out), quiet)


def test_a_model_with_its_kernels_is_verified_raced_and_shipped(packed: dict[str, Any]) -> None:
    found, out = packed, Path(packed["bundle"]["bundle"])
    (row,), (line,) = found["kernels"], found["backends"]
    assert (row["nodes"], row["max_abs_error"] < 1e-5) == (2, True)
    assert line["max_error"] < 1e-5
    assert line["ratio"]["b"] == "body"
    assert found["bundle"]["verified"]
    held = found["bundle"]["files"]
    assert {f"compiled/kernels/{n}" for n in ("tropical.so", "tropical.c", "kernels.json")} <= set(held)
    with open_bundle(out) as bundle, pytest.raises(Exception, match="code"):
        bundle.verify()
    with open_bundle(out, native=True) as bundle:
        assert bundle.manifest.needs.arch == local.detect().arch
        assert bundle.verify()


def test_openvino_calls_the_kernel_through_an_extension(tmp_path: Path) -> None:
    backend, target = registry.backend("openvino"), local.detect()
    if not backend.probe(target).ready:
        pytest.skip("`openvino` is not installed")
    # A body that is wrong on purpose shows which of the two has answered.
    wrong = function(operators.matmul.program, name="tropical")
    model = load_model(net(tmp_path / "net.onnx", wrong))
    program = operators.tropical.program
    built = library(program, operators.tropical.schedules({"i": 40, "k": 48, "j": 48}), find())
    fast = type(model)(**{**vars(model), "kernels": carry(tmp_path / "kernels", [(program, built)]).path})
    x = np.random.default_rng(1).standard_normal((5, 48), np.float32)
    weights = [numpy_helper.to_array(t) for t in onnx.load(str(model.path)).graph.initializer]
    first = np.maximum(operators.tropical.oracle(x, weights[0])[0], 0).astype(np.float32)
    want = operators.tropical.oracle(first, weights[1])[0]
    for name in ("openvino", "onnxruntime"):
        executable = registry.backend(name).compile(fast, target)
        np.testing.assert_allclose(executable.run({"x": x})["y"], want, rtol=1e-5)
        saved = tmp_path / f"saved-{name}"
        saved.mkdir()
        executable.save(saved)
        np.testing.assert_allclose(registry.backend(name).load(saved).run({"x": x})["y"], want, rtol=1e-5)


def test_a_function_that_computes_something_else_is_refused(tmp_path: Path, file: Path) -> None:
    source = net(tmp_path / "net.onnx", function(operators.matmul.program, name="tropical"))
    with pytest.raises(VerificationFailed, match="is not what the kernel computes"):
        embedding.embed(file, str(source), asked(), quiet)


def test_a_model_without_the_operator_says_what_it_has(tmp_path: Path, file: Path) -> None:
    source = net(tmp_path / "net.onnx", function(operators.tropical.program, name="tropicl"), "tropicl")
    with pytest.raises(UsageError, match="calls none of the operators `tropical`") as found:
        embedding.embed(file, str(source), asked(), quiet)
    assert found.value.hint == "did you mean `tropicl`?"


def test_names_in_a_model_reach_no_compiler(tmp_path: Path, file: Path, cache: Path) -> None:
    """Functions, nodes and values with hostile names: only the user's own kernel is compiled, from the user's text."""
    hostile = '"; system("touch PWNED"); //'
    path = net(tmp_path / "net.onnx")
    model = onnx.load(str(path))
    body = function(operators.matmul.program, name=hostile)
    body.attribute.append(hostile)
    model.functions.append(body)
    model.graph.node[1].name = model.graph.doc_string = hostile
    model.graph.node.append(helper.make_node(hostile, ["b", "w1"], [hostile], domain=DOMAIN))
    onnx.save(model, str(path))
    before = {p.name for p in (cache / "kernels" / "lib").glob("*.c")}
    found = sites(model, [f.program for f in read_file(file)])
    assert [s.program.name for s in found] == ["tropical"]
    embedding._compiled(found, read_file(file), local.detect(), find(), quiet)
    for made in (cache / "kernels" / "lib").glob("*.c"):
        if made.name not in before:
            assert "PWNED" not in made.read_text()


def test_a_swapped_library_is_not_loaded(tmp_path: Path) -> None:
    program = operators.tropical.program
    built = library(program, operators.tropical.schedules({"i": 40, "k": 40, "j": 40}), find())
    folder = carry(tmp_path / "kernels", [(program, built)])
    assert [k.name for k in folder.kernels()] == ["tropical"]
    (folder.path / "tropical.so").write_bytes(built.read_bytes() + b"\0")
    with pytest.raises(VerificationFailed, match="is not the one that was compiled"):
        folder.kernels()
    (folder.path / "tropical.so").unlink()
    with pytest.raises(VerificationFailed, match="cannot be read"):
        folder.kernels()


@pytest.mark.parametrize("name", ["../../evil.so", "/tmp/evil.so"])
def test_a_list_cannot_name_a_library_elsewhere(name: str, tmp_path: Path) -> None:
    program = operators.tropical.program
    built = library(program, operators.tropical.schedules({"i": 40, "k": 40, "j": 40}), find())
    folder = carry(tmp_path / "in" / "kernels", [(program, built)])
    rows = json.loads((folder.path / carried.MANIFEST).read_text())
    rows[0]["library"] = name
    (folder.path / carried.MANIFEST).write_text(json.dumps(rows))
    with pytest.raises(VerificationFailed, match="cannot be read"):
        folder.kernels()


def test_a_bundle_whose_library_was_swapped_fails_its_checksum(packed: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "copy"
    shutil.copytree(packed["bundle"]["bundle"], out)
    swapped = out / "compiled" / "kernels" / "tropical.so"
    data = bytearray(swapped.read_bytes())
    data[-1] ^= 1
    swapped.write_bytes(bytes(data))
    with pytest.raises(VerificationFailed, match="tropical"), open_bundle(out, native=True) as bundle:
        bundle.verify()


@pytest.mark.slow
def test_a_bundle_with_kernels_is_served(packed: dict[str, Any]) -> None:
    x = np.random.default_rng(1).standard_normal((3, 48), np.float32)
    with serving(packed["bundle"]["bundle"], "--native") as server:
        found = server.answer("net", {"x": x})
    rng = np.random.default_rng(0)
    w = [rng.standard_normal((48, 48), np.float32) for _ in range(2)]
    first = np.maximum(operators.tropical.oracle(x, w[0])[0], 0).astype(np.float32)
    want = operators.tropical.oracle(first, w[1])[0]
    np.testing.assert_allclose(found["y"], want, rtol=1e-5)
