"""FrontendContract: what every front end has to keep. Subclass it in a test module and say what its sources are.

A subclass sets `front_end` and writes `source(folder)`, which makes a small model of this kind in the folder and
returns what a user would give, and `damaged(folder)`, the same but unreadable.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from portolan.core.frontend import FrontEnd
from portolan.core.graph import load_model
from portolan.core.model import Model
from portolan.core.registry import FRONTENDS
from portolan.errors import ModelError

if TYPE_CHECKING:
    import numpy as np
    import onnx

#: No front end may load one of these just by being imported.
HEAVY = ("numpy", "onnx", "onnxruntime", "openvino", "torch", "scipy", "jax", "tensorflow", "sklearn")


def tiny_graph(batch: int | str = "batch", *, seed: int = 0) -> onnx.ModelProto:
    """A graph of a convolution, a pool and a product: `x` (batch, 3, 8, 8) float32 to `y` (batch, 2)."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(seed)
    weights = {"w": (4, 3, 3, 3), "v": (4, 2), "b": (2,)}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"], name="relu"),
        helper.make_node("GlobalAveragePool", ["r"], ["g"], name="pool"),
        helper.make_node("Flatten", ["g"], ["f"], name="flatten"),
        helper.make_node("Gemm", ["f", "v", "b"], ["y"], name="gemm"),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 2])],
        [numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), n) for n, shape in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def tiny_onnx(path: Path, batch: int | str = "batch", *, seed: int = 0) -> Path:
    """Writes `tiny_graph` to `path`."""
    path.write_bytes(tiny_graph(batch, seed=seed).SerializeToString())
    return path


class FrontendContract:
    """Inherited tests; see the module's docstring."""

    front_end: ClassVar[FrontEnd]

    def source(self, folder: Path) -> Any:
        """A good source of this front end's kind, made in `folder`."""
        raise NotImplementedError

    def damaged(self, folder: Path) -> Any:
        """A source of the same form that cannot be read."""
        raise NotImplementedError

    def load(self, source: Any, out: Path, name: str | None = None) -> Model:
        """Loads a source; a subclass may do so elsewhere, where the front end's packages are."""
        return self.front_end.load(source, out, name=name)

    @pytest.fixture
    def model(self, tmp_path: Path) -> Model:
        """The source, loaded."""
        return self.load(self.source(tmp_path), tmp_path / "out")

    def test_is_registered_under_its_name(self) -> None:
        """The registry finds it, and it says what its sources look like."""
        assert FRONTENDS.get(self.front_end.name) is self.front_end
        assert self.front_end.forms

    def test_accepts_its_own_sources_only(self, tmp_path: Path) -> None:
        """It claims its own kind and nothing else."""
        assert self.front_end.accepts(self.source(tmp_path))
        for foreign in ("model.tflite", Path("weights.bin"), "", 3, None, object(), ["x.unknown"]):
            assert not self.front_end.accepts(foreign)

    def test_no_two_front_ends_claim_it(self, tmp_path: Path) -> None:
        """A source belongs to one front end."""
        source = self.source(tmp_path)
        assert [n for n in FRONTENDS.names() if FRONTENDS.get(n).accepts(source)] == [self.front_end.name]

    def test_gives_a_good_model(self, model: Model) -> None:
        """The Model is what its own file says."""
        again = load_model(model.path)
        assert (again.sha256, again.signature, again.operators) == (model.sha256, model.signature, model.operators)
        assert model.signature.inputs
        assert model.signature.outputs
        assert model.operators
        assert Model.from_json(model.to_json()) == model

    def test_the_graph_runs(self, model: Model) -> None:
        """The graph gives outputs of the promised types and ranks."""
        from onnx.reference import ReferenceEvaluator

        outputs = ReferenceEvaluator(str(model.path)).run(None, _feeds(model))
        assert [str(o.dtype) for o in outputs] == [spec.dtype for spec in model.signature.outputs]
        assert [o.ndim for o in outputs] == [len(spec.shape) for spec in model.signature.outputs]

    def test_the_same_source_gives_the_same_hash(self, model: Model, tmp_path: Path) -> None:
        """Nothing random and no path gets into the graph."""
        (tmp_path / "again").mkdir()
        assert self.load(self.source(tmp_path / "again"), tmp_path / "other").sha256 == model.sha256

    def test_leaves_the_source_alone(self, tmp_path: Path) -> None:
        """Only `out` is written to."""
        source = self.source(tmp_path)
        before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
        self.load(source, tmp_path / "out")
        inside = {p: p.read_bytes() for p in before}
        assert inside == before
        added = {p for p in tmp_path.rglob("*") if p.is_file() and "__pycache__" not in p.parts} - before.keys()
        assert all(p.is_relative_to(tmp_path / "out") for p in added)

    def test_takes_a_name(self, tmp_path: Path) -> None:
        """A given name wins."""
        assert self.load(self.source(tmp_path), tmp_path / "out", name="mine").name == "mine"

    def test_refuses_a_damaged_source_in_one_line(self, tmp_path: Path) -> None:
        """A damaged source is a ModelError with a hint, in one line."""
        with pytest.raises(ModelError) as caught:
            self.load(self.damaged(tmp_path), tmp_path / "out")
        assert caught.value.exit_code == 5
        assert caught.value.hint
        assert "\n" not in caught.value.message

    def test_importing_it_loads_nothing_heavy(self) -> None:
        """The registry may import every front end."""
        module = type(self.front_end).__module__
        code = f"import sys, {module}; print([m for m in {HEAVY!r} if m in sys.modules])"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "[]"


def _feeds(model: Model) -> dict[str, np.ndarray]:
    from portolan.core.data import generate, sample

    shapes = {s.name: [2 if isinstance(d, str) else d for d in s.shape] for s in model.signature.inputs}
    return sample(generate(model.signature, 2, 0, shapes), 0, model.signature)
