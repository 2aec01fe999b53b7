"""Model: plain data that crosses to workers and back."""

from __future__ import annotations

import json
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from portolan.core.model import Model
from portolan.core.signature import Signature, TensorSpec

names = st.text(min_size=1, max_size=10)
specs = st.builds(
    TensorSpec,
    names,
    st.sampled_from(["float32", "int64", "bool", "string"]),
    st.lists(st.integers(0, 2**40) | names, max_size=5).map(tuple),
)
models = st.builds(
    Model,
    name=names,
    path=names.map(lambda n: Path("/models") / n.replace("\0", "0")),
    sha256=st.text("0123456789abcdef", min_size=64, max_size=64),
    signature=st.builds(Signature, st.lists(specs, max_size=3).map(tuple), st.lists(specs, max_size=3).map(tuple)),
    format=st.sampled_from(["onnx", "torch"]),
    opset=st.integers(0, 30),
    operators=st.dictionaries(names, st.integers(1, 1000), max_size=4),
    features=st.lists(names, max_size=3).map(tuple),
    program=st.none() | st.just(Path("/models/m.pt2")),
)


@given(models)
def test_json_comes_back(model: Model) -> None:
    again = Model.from_json(json.loads(json.dumps(model.to_json())))
    assert again == model
    assert json.dumps(again.to_json()) == json.dumps(model.to_json())


def test_html_holds_names_as_text() -> None:
    model = Model("<b>tiny</b>", Path("m.onnx"), "ab" * 32, Signature((), ()))
    page = model._repr_html_()
    assert page.startswith("<table><caption>Model &lt;b&gt;tiny&lt;/b&gt;</caption>")
    assert "<b>" not in page
    assert "ab" * 32 in page


def test_repr_is_one_line() -> None:
    spec = TensorSpec("x", "float32", ("batch", 3, 8, 8))
    model = Model("tiny", Path("m.onnx"), "ab" * 32, Signature((spec,), ()))
    assert repr(model) == "Model('tiny', x:batchx3x8x8 float32, sha256=abababababab)"
