"""The torch backend keeps the contract. One compilation takes 10 to 25 s, so all its cases are one module."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from portolan.backends import _torch_gpu
from portolan.backends._exported import read_program
from portolan.backends.torch import Package, _reduced, check_processor, torch
from portolan.core.model import Model
from portolan.core.signature import Signature, TensorSpec
from portolan.core.silence import runtime
from portolan.errors import ModelError, PortolanError, UnsupportedOperator, UsageError
from portolan.testing.backend import BackendContract, python
from portolan.testing.models import Case, cases, corrupt, sized_by_an_input, this_machine, unsupported

pytestmark = pytest.mark.torch

SIGNATURE = Signature(
    (TensorSpec("image", "float32", ("batch", 3, 12, 12)), TensorSpec("ids", "int64", ("batch", 4))),
    (
        TensorSpec("classes", "float32", ("batch", 5)),
        TensorSpec("next", "int64", ("batch", 4)),
        TensorSpec("same", "float32", ("batch", 3, 12, 12)),
        TensorSpec("weight", "float32", (8,)),
    ),
)

# In a process of its own: exporting leaves torch's compiler loaded, and its threads.
_EXPORT = """
import json, sys
import numpy as np
import torch
from torch import nn
folder, = json.loads(sys.argv[1])

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.table, self.head = nn.Conv2d(3, 8, 3), nn.Embedding(20, 8), nn.Linear(8, 5)
    def forward(self, image, ids):
        pooled = torch.relu(self.conv(image)).mean((2, 3)) + self.table(ids).sum(1)
        return self.head(pooled).softmax(-1), ids + 1, image, self.conv.bias

torch.manual_seed(0)
net, batch = Net().eval(), torch.export.Dim("batch", min=1, max=64)
for rows in 2, 5:
    args = torch.randn(rows, 3, 12, 12), torch.randint(0, 20, (rows, 4))
    values = [v.detach().numpy() for v in (*args, *net(*args))]
    np.savez(f"{folder}/{rows}.npz", *values)
program = torch.export.export(net, args, dynamic_shapes=({0: batch}, {0: batch}))
torch.export.save(program, f"{folder}/net.pt2")

class Custom(nn.Module):
    def forward(self, x):
        return torch.ops.nobody.Mystery(x) + 1
library = torch.library.Library("nobody", "DEF")
library.define("Mystery(Tensor x) -> Tensor")
library.impl("Mystery", lambda x: x.clone(), "CompositeExplicitAutograd")
library.impl("Mystery", lambda x: torch.empty_like(x), "Meta")
torch.export.save(torch.export.export(Custom(), (torch.ones(2),)), f"{folder}/custom.pt2")
"""


_LOAD = """
import json, sys
from pathlib import Path
from portolan.backends.torch import torch
executable = torch.load(Path(json.loads(sys.argv[1])[0]), threads=1)
print(executable.facts()["threads"])
executable.close()
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    python(_EXPORT, [str(folder)])
    return folder


def model(folder: Path, program: str = "net.pt2") -> Model:
    return Model("net", folder / "net.onnx", "0" * 64, SIGNATURE, format="torch", program=folder / program)


class TestTorch(BackendContract):
    backend = torch
    exported: Path

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def programs(cls, exported: Path) -> None:
        cls.exported = exported

    def cases(self, folder: Path) -> list[Case]:
        for file in self.exported.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        names = [spec.name for spec in SIGNATURE.inputs + SIGNATURE.outputs]
        found = []
        for rows in 5, 2:
            with np.load(folder / f"{rows}.npz") as arrays:
                values = dict(zip(names, arrays.values(), strict=True))
            inputs = {name: values.pop(name) for name in names[:2]}
            found.append(Case(f"net, batch {rows}", model(folder), inputs, values))
        first, other = found
        return [Case("net", first.model, first.inputs, first.expected, other)]

    def unsupported(self, folder: Path) -> Model:
        return model(self.exported, "custom.pt2")

    def corrupt(self, folder: Path) -> Model:
        data = (self.exported / "net.pt2").read_bytes()
        (folder / "cut.pt2").write_bytes(data[: len(data) // 2])
        return model(folder, "cut.pt2")


def test_options_off_the_default_path(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with np.load(exported / "5.npz") as arrays:
        image, ids, classes, *_ = arrays.values()
    executable = torch.compile(model(exported), this_machine(), freezing=False, layout="contiguous", threads=1)
    assert isinstance(executable, Package)
    assert executable.facts()["threads"] == 1
    assert executable.facts()["precision"] == "f32"
    outputs = executable.run({"image": image, "ids": ids})
    np.testing.assert_allclose(outputs["classes"], classes, rtol=1e-4, atol=1e-6)
    saved = tmp_path / "saved"
    saved.mkdir()
    executable.save(saved)
    executable.close()
    with pytest.raises(PortolanError, match="asked for precision `bf16` and runs with `f32`"):
        torch.load(saved, precision="bf16")
    monkeypatch.setenv("PATH", "")  # loading needs no compiler, and a bundle's machine has none
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    assert python(_LOAD, [str(saved)]) == "1"
    assert not (tmp_path / "cache").exists()


def test_bf16_is_bf16_inside_and_f32_outside(exported: Path) -> None:
    # Without compiling: what Inductor is given. The contract compiles it.
    pytorch = runtime("torch")
    program = read_program(exported / "net.pt2")
    reduced = _reduced(program)
    for rows in 5, 2:  # the batch is still free
        with np.load(exported / f"{rows}.npz") as arrays:
            image, ids, classes, following, *_ = arrays.values()
        outputs = reduced.module()(pytorch.from_numpy(image), pytorch.from_numpy(ids))
        assert [str(value.dtype) for value in outputs] == [f"torch.{spec.dtype}" for spec in SIGNATURE.outputs]
        error = np.abs(outputs[0].detach().numpy() - classes).max() / classes.std()
        assert 1e-4 < error < 0.1
        np.testing.assert_array_equal(outputs[1].numpy(), following)


def test_a_program_is_moved_to_where_it_will_run(exported: Path) -> None:
    """To `meta` here, which has no numbers: every GPU takes the same way."""
    moved = _torch_gpu.moved(read_program(exported / "net.pt2"), "meta")
    assert {str(weight.device) for weight in moved.state_dict.values()} == {"meta"}
    assert {str(example.device) for example in moved.example_inputs[0]} == {"meta"}


def test_code_for_another_processor_is_not_run() -> None:
    wide = {"AOTI_MACHINE": "x86_64", "AOTI_CPU_ISA": "AVX512 AVX512_VNNI"}
    check_processor(wide, "x86_64", "AVX512")
    check_processor({"AOTI_MACHINE": "x86_64", "AOTI_CPU_ISA": "AVX2"}, "x86_64", "AVX512")
    check_processor({"AOTI_MACHINE": "aarch64", "AOTI_CPU_ISA": "SVE"}, "aarch64", "SVE256")
    check_processor({}, "x86_64", "DEFAULT")
    for machine, capability in ("x86_64", "AVX2"), ("aarch64", "AVX512"):
        with pytest.raises(PortolanError, match="compiled for `x86_64 AVX512`") as caught:
            check_processor(wide, machine, capability)
        assert caught.value.hint == "compile the model again on this machine"


def test_graphs_run_operator_by_operator(tmp_path: Path) -> None:
    """Every case of the contract without a compilation: right, saved, loaded, two sizes."""
    for case in cases(tmp_path):
        assert torch.refuse(case.model, this_machine()) is None
        executable = torch.compile(case.model, this_machine(), compiler="eager", threads=1)
        case.check(executable.run(case.inputs), 1e-4)
        if case.other is not None:
            case.other.check(executable.run(case.other.inputs), 1e-4)
        saved = tmp_path / f"saved-{case.name}"
        saved.mkdir()
        executable.save(saved)
        executable.close()
        again = torch.load(saved, compiler="eager", threads=1)
        case.check(again.run(case.inputs), 1e-4)
        assert again.facts()["compiler"] == "eager"


def test_a_search_tries_graphs_only_where_torch_is_named(exported: Path, tmp_path: Path) -> None:
    graph = cases(tmp_path)[0].model
    assert "--backend torch" in (torch.unasked(graph) or "")
    assert torch.unasked(model(exported)) is None


@pytest.mark.slow
def test_graphs_are_compiled(tmp_path: Path) -> None:
    """By Inductor, from the graph alone; a free size stays free."""
    for case in cases(tmp_path):
        executable = torch.compile(case.model, this_machine(), threads=1)
        case.check(executable.run(case.inputs), 1e-4)
        if case.other is not None:
            case.other.check(executable.run(case.other.inputs), 1e-4)
        executable.close()


def test_what_a_graph_cannot_be(tmp_path: Path) -> None:
    """Operators that nobody has, a file cut short, sizes that an input holds, arithmetic that eager has not."""
    with pytest.raises(UnsupportedOperator, match=r"no operator `com\.example\.Mystery`"):
        torch.compile(unsupported(tmp_path), this_machine())
    (tmp_path / "cut").mkdir()
    with pytest.raises(ModelError, match="cannot"):
        torch.compile(corrupt(tmp_path / "cut"), this_machine())
    model = sized_by_an_input(tmp_path)
    with pytest.raises(UnsupportedOperator, match="depend on what its input `shape` holds") as caught:
        torch.compile(model, this_machine())
    assert "compiler=eager" in (caught.value.hint or "")
    executable = torch.compile(model, this_machine(), compiler="eager", threads=1)
    for shape in [2, 6], [3, 4]:
        assert executable.run({"x": np.ones(12, np.float32), "shape": np.array(shape)})["y"].shape == tuple(shape)
    with pytest.raises(UsageError, match="computes in f32 only"):
        torch.compile(model, this_machine(), compiler="eager", precision="bf16")


def test_without_a_compiler_it_is_not_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    support = torch.probe(this_machine())
    assert not support.ready
    assert "`no-such-compiler`" in (support.reason or "")
    assert support.fix == "apt-get install g++"
