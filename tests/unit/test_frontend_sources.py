"""What is refused before a front end is asked, and what the torch front end makes of modules."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from portolan.core.registry import FRONTENDS
from portolan.errors import ModelError, NoBackend, UnknownName, UnsupportedOperator, UsageError, VerificationFailed
from portolan.frontends import demo as demo_module
from portolan.frontends import interpreter, load
from portolan.testing.frontend import tiny_onnx


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("m.pt", "torch.export.save"),
        ("m.pth", "torch.export.save"),
        ("m.ckpt", "torch.export.save"),
        ("m.pkl", "skops.io.dump"),
        ("m.joblib", "file.py:factory"),
        ("m.tflite", "tf2onnx.convert --tflite"),
        ("m.pb", "tf2onnx.convert --graphdef"),
        ("m.h5", "model.save('model.keras')"),
        ("m.safetensors", "config.json"),
        ("m.xml", "`.onnx` file that it was converted from"),
        ("m.py", "m.py:factory"),
    ],
)
def test_known_kinds_that_are_not_read(tmp_path: Path, name: str, hint: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(ModelError) as caught:
        load(tmp_path / name, out=tmp_path / "out")
    assert caught.value.message == f"`{tmp_path / name}` cannot be read directly"
    assert hint in (caught.value.hint or "")
    assert not (tmp_path / "out").exists()


FORMS = "give one of: " + ", ".join(FRONTENDS.get(name).forms for name in FRONTENDS.names())


def test_unknown_sources(tmp_path: Path) -> None:
    (tmp_path / "m.weird").write_bytes(b"x")
    with pytest.raises(ModelError, match="is of no kind that is read here") as caught:
        load(tmp_path / "m.weird", out=tmp_path)
    assert caught.value.hint == FORMS
    with pytest.raises(UsageError, match="a `int` is not a model") as usage:
        load(3, out=tmp_path)
    assert usage.value.hint == FORMS
    with pytest.raises(UsageError, match="there is no model `resnet50`"):
        load("resnet50", out=tmp_path)
    tiny_onnx(tmp_path / "resnet50.onnx")
    with pytest.raises(UsageError) as usage:
        load(tmp_path / "resnet50", out=tmp_path)
    assert usage.value.hint == f"did you mean `{tmp_path / 'resnet50.onnx'}`?"


def test_folders(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is a folder, not a model") as caught:
        load(tmp_path, out=tmp_path)
    assert caught.value.hint == FORMS
    tiny_onnx(tmp_path / "m.onnx")
    with pytest.raises(ModelError) as caught:
        load(tmp_path, out=tmp_path)
    assert caught.value.hint == f"give the file in it: `{tmp_path / 'm.onnx'}`"


def test_onnx_with_and_without_shapes(tmp_path: Path) -> None:
    path = tiny_onnx(tmp_path / "m.onnx")
    assert load(path, out=tmp_path / "out").path == path
    assert not (tmp_path / "out").exists()
    model = load(str(path), out=tmp_path / "out", shapes={"x": (4, 3, 8, 8)}, name="four")
    assert model.path == tmp_path / "out" / "four.onnx"
    assert model.signature.batch == 4


def test_demos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_onnx(tmp_path / "digits.onnx")
    monkeypatch.setattr(demo_module, "folder", lambda: tmp_path)
    model = load("demo:digits", out=tmp_path / "out", shapes={"x": (2, 3, 8, 8)})
    assert (model.name, model.signature.batch) == ("digits", 2)
    assert demo_module.demo_data("demo:digits") == tmp_path / "digits.npz"
    with pytest.raises(UnknownName) as caught:
        load("demo:digit", out=tmp_path / "out")
    assert caught.value.message == "no demo named `digit`"
    assert caught.value.hint == "did you mean `digits`?"
    with pytest.raises(UnknownName) as caught:
        demo_module.demo_data("zzz")
    assert caught.value.hint == "known: digits"


def test_demos_lie_in_the_package() -> None:
    assert demo_module.folder().parent == Path(demo_module.__file__).parent.parent


def test_without_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(NoBackend, match="needs torch, which is not installed") as caught:
        load(tmp_path / "m.pt2", out=tmp_path)
    assert caught.value.hint == "pip install 'portolan[torch]'"


@pytest.mark.parametrize(
    ("name", "package"), [("saved", "tensorflow"), ("net.keras", "tensorflow"), ("net.py:net", "jax")]
)
def test_without_the_other_frameworks(name: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "saved_model.pb").write_bytes(b"")
    (tmp_path / "net.py").write_text("import jax\n\ndef net(x):\n    return x\n")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(NoBackend, match=f"needs {package}") as caught:
        load(tmp_path / name if ":" not in name else f"{tmp_path}/{name}", out=tmp_path / "out")
    assert caught.value.hint == f"portolan env add {package}"


def test_sources_are_read_where_their_packages_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jax", None)
    monkeypatch.setenv("PORTOLAN_PYTHON_JAX", "/there/python -u")
    (tmp_path / "both.py").write_text("import torch\nfrom jax import numpy\n")
    (tmp_path / "none.py").write_text("import json\n")
    assert interpreter(f"{tmp_path / 'both.py'}:net") == ["/there/python", "-u"]
    assert interpreter(f"{tmp_path / 'none.py'}:net") is None
    assert interpreter(tmp_path / "m.onnx") is None


MODULES = """
import torch
from torch import nn

class Text(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.linear, self.drop = nn.Embedding(50, 8), nn.Linear(8, 2), nn.Dropout(0.5)

    def forward(self, ids, mask=None):
        hidden = self.drop(self.embed(ids)) * mask.unsqueeze(-1)
        return {"hidden": hidden, "embedding": self.linear(hidden.mean(1)), "same": ids}

class Plain(nn.Module):
    def forward(self, x):
        return x * 2 + 1

class Wrong(nn.Module):
    def forward(self, x):
        return torch.linalg.eigvalsh(x)

def text():
    torch.manual_seed(0)
    return Text(), {"ids": torch.randint(0, 50, (1, 5)), "mask": torch.ones(1, 5)}

def text_named():
    torch.manual_seed(0)
    return Text(), (torch.randint(0, 50, (1, 5)), torch.ones(1, 5)), ["mul", "linear"]

class Limited(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("positions", torch.arange(16.0))

    def forward(self, x):
        return x + self.positions[: x.shape[1]]

class Fixed(nn.Module):
    def forward(self, x):
        return x.reshape(2, 3)

def number():
    return 3

def fails():
    raise RuntimeError("no weights")

def with_number():
    return Plain(), (3,)

def two_for_one():
    return Plain(), (torch.zeros(2), torch.zeros(2))

def names():
    return Plain(), (torch.zeros(2),), ["a", "b"]

def wrong():
    return Wrong(), torch.eye(3)
"""


@pytest.fixture
def modules(tmp_path: Path) -> str:
    (tmp_path / "nets.py").write_text(MODULES)
    return f"{tmp_path / 'nets.py'}:"


def runs(model: Any, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    from onnx.reference import ReferenceEvaluator

    return ReferenceEvaluator(str(model.path)).run(None, feeds)


@pytest.mark.torch
def test_free_axes_dicts_and_names_that_clash(tmp_path: Path, modules: str) -> None:
    free = ("batch", "tokens")
    model = load(modules + "text", out=tmp_path / "out", shapes={"ids": free, "mask": free})
    assert [str(s) for s in model.signature.inputs] == ["ids:batchxtokens int64", "mask:batchxtokens float32"]
    assert [s.name for s in model.signature.outputs] == ["hidden", "embedding", "same"]
    assert model.format == "torch"
    for batch, tokens in [(1, 1), (3, 7)]:
        ids = np.arange(batch * tokens).reshape(batch, tokens)
        hidden, embedding, same = runs(model, {"ids": ids, "mask": np.ones((batch, tokens), np.float32)})
        assert (hidden.shape, embedding.shape) == ((batch, tokens, 8), (batch, 2))
        np.testing.assert_array_equal(same, ids)
    assert str(tmp_path).encode() not in model.path.read_bytes()
    assert model.program is not None
    assert str(tmp_path).encode() not in model.program.read_bytes()
    again = load(model.program, out=tmp_path / "again", shapes={"ids": (2, 4), "mask": (2, 4)})
    assert again.signature.inputs[0].shape == (2, 4)
    assert again.program == tmp_path / "again" / "text.pt2"


@pytest.mark.torch
def test_a_program_beside_its_graph_and_without_example_inputs(tmp_path: Path) -> None:
    import torch

    path = tmp_path / "plain.pt2"
    program = torch.export.export(torch.nn.Linear(3, 2), (torch.zeros(4, 3),))
    torch.export.save(program, str(path))
    before = path.read_bytes()
    assert load(path, out=tmp_path).program == path
    assert path.read_bytes() == before
    program.example_inputs = None
    torch.export.save(program, str(path))
    model = load(path, out=tmp_path / "out")
    assert str(model.signature.inputs[0]) == "input:4x3 float32"


@pytest.mark.torch
def test_a_free_axis_takes_the_module_s_own_limit(tmp_path: Path, modules: str) -> None:
    model = load(modules + "Limited", out=tmp_path / "out", shapes={"x": ("batch", "tokens")})
    assert str(model.signature.inputs[0]) == "x:batchxtokens float32"
    assert runs(model, {"x": np.zeros((1, 16), np.float32)})[0].tolist() == [list(range(16))]


@pytest.mark.torch
def test_an_axis_that_cannot_be_free(tmp_path: Path, modules: str) -> None:
    with pytest.raises(ModelError) as caught:
        load(modules + "Fixed", out=tmp_path / "out", shapes={"x": ("batch", 3)})
    assert caught.value.message == "the axis `batch` cannot be free: the module computes with a size of 2 there"


@pytest.mark.torch
def test_input_names_that_are_operators(tmp_path: Path, modules: str) -> None:
    model = load(modules + "text_named", out=tmp_path / "out", shapes={"mul": (3, 5), "linear": (3, 5)})
    assert [str(s) for s in model.signature.inputs] == ["mul:3x5 int64", "linear:3x5 float32"]


@pytest.mark.torch
def test_a_module_object_from_shapes_is_left_as_it_was(tmp_path: Path) -> None:
    import torch
    from torch import nn

    module = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Dropout(0.5))
    module[1].eval()
    model = load(module, out=tmp_path, shapes={"input": ("batch", 4)}, name="mlp")
    assert [part.training for part in module] == [True, False, True]
    assert str(model.signature.inputs[0]) == "input:batchx4 float32"
    x = np.ones((5, 4), np.float32)
    with torch.no_grad():
        wanted = module.eval()(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(runs(model, {"input": x})[0], wanted, atol=1e-6)


@pytest.mark.torch
def test_a_module_with_example_inputs(tmp_path: Path) -> None:
    import torch

    module = torch.nn.ReLU()
    module.example_inputs = (torch.zeros(2, 3),)  # type: ignore[assignment]
    model = load(module, out=tmp_path)
    assert (model.name, model.operators) == ("relu", {"Relu": 1})


@pytest.mark.torch
def test_factories_refused(tmp_path: Path, modules: str) -> None:
    def refused(name: str, kind: type[UsageError] = UsageError, **more: Any) -> UsageError:
        with pytest.raises(kind) as caught:
            load(modules + name, out=tmp_path / "out", **more)
        assert caught.value.hint
        return caught.value

    assert "gives int, expected a model of" in refused("number").message
    error = refused("fails")
    assert "raised RuntimeError: no weights" in error.message
    assert error.where is not None
    assert error.where.startswith(str(tmp_path / "nets.py"))
    assert "is a int, expected a tensor" in refused("with_number").message
    assert "do not fit its forward" in refused("two_for_one").message
    assert "names 2 inputs and has 1" in refused("names").message
    assert refused("txt", UnknownName).hint == "did you mean `text`?"
    assert refused("text", UnknownName, shapes={"idz": (1, 2)}).hint == "did you mean `ids`?"
    assert "does not fit the input `ids`" in refused("text", shapes={"ids": (1, 2, 3)}).message
    error = refused("Plain")
    assert "has no example inputs, and no shape for `x`" in error.message
    assert "--shapes x:1x3x224x224" in (error.hint or "")
    assert refused("Plain", UnknownName, shapes={"x": (1,), "z": (1,)}).hint == "known: x"
    with pytest.raises(UsageError, match="there is no file"):
        load(tmp_path / "none.pt2", out=tmp_path)


@pytest.mark.torch
def test_an_operator_that_onnx_lacks(tmp_path: Path, modules: str) -> None:
    with pytest.raises(UnsupportedOperator) as caught:
        load(modules + "wrong", out=tmp_path / "out")
    assert "no ONNX for the operator `aten._linalg_eigh`" in caught.value.message


@pytest.mark.torch
def test_an_exporter_that_is_wrong_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from portolan.frontends import _verify

    honest = _verify.run
    monkeypatch.setattr(_verify, "run", lambda path, feeds: [a + 1 for a in honest(path, feeds)])
    with pytest.raises(VerificationFailed, match="does not compute what torch does: output `output` differs by 1"):
        load(torch.nn.Softmax(-1), out=tmp_path, shapes={"input": (2, 3)})


@pytest.mark.parametrize(
    ("actual", "words"),
    [
        (np.array([1.0, 2.0], np.float32), None),
        (np.array([1.0, 2.000001], np.float32), None),
        (np.array([1.0, 2.1], np.float32), "differs by 0.1"),
        (np.array([1.0, np.nan], np.float32), "has NaN or infinity in other places"),
        (np.array([1.0], np.float32), "is float32 (1,)"),
        (np.array([1.0, 2.0]), "is float64 (2,)"),
    ],
)
def test_disagreement(actual: np.ndarray, words: str | None) -> None:
    from portolan.frontends._verify import disagreement

    found = disagreement(np.array([1.0, 2.0], np.float32), actual)
    assert found is None if words is None else words in (found or "")


def test_disagreement_of_integers_and_of_nothing_finite() -> None:
    from portolan.frontends._verify import disagreement

    ids = np.arange(1000)
    assert disagreement(ids, ids) is None
    assert disagreement(ids, ids + (ids < 5)) is None  # a tie may fall either way
    assert disagreement(ids, ids + (ids < 50)) == "differs in 5.0% of its values"
    nothing = np.full(3, np.nan, np.float32)
    assert disagreement(nothing, nothing) is None


def test_models_stay_frozen(tmp_path: Path) -> None:
    model = load(tiny_onnx(tmp_path / "m.onnx"), out=tmp_path)
    with pytest.raises(dataclasses.FrozenInstanceError):
        model.name = "other"  # type: ignore[misc]


def test_large_weights_lie_beside_a_converted_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from portolan.frontends import _graphs
    from portolan.testing.frontend import tiny_graph

    proto, x = tiny_graph(), {"x": np.ones((1, 3, 8, 8), np.float32)}
    whole = runs(_graphs.write(tiny_graph(), tmp_path / "whole", "net", "jax"), x)
    monkeypatch.setattr(_graphs, "LARGEST", 100)
    model = _graphs.write(proto, tmp_path / "out", "net", "jax")
    assert (tmp_path / "out" / "net.onnx.data").stat().st_size > 0
    again = _graphs.write(tiny_graph(), tmp_path / "out", "net", "jax")
    assert again.sha256 == model.sha256
    np.testing.assert_array_equal(runs(again, x)[0], whole[0])


def test_a_front_end_of_files_takes_no_objects(tmp_path: Path) -> None:
    from portolan.core.frontend import Made
    from portolan.frontends.onnx_ import onnx

    with pytest.raises(UsageError, match="`it` gives a int, which `onnx` reads from files only"):
        onnx.convert(Made(3, source="it"), tmp_path)
