"""Kernels as operators of PyTorch, JAX and WebAssembly, against the oracle."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import portolan
from portolan.errors import UsageError
from portolan.kernels import cross as crossing
from portolan.kernels.lower.schedule import Schedule
from portolan.kernels.printers.c import function_name
from portolan.kernels.verify import odd_cases, random_arrays
from support import operators

pytestmark = pytest.mark.usefixtures("cache")
needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("gcc", "clang", "cc"))), reason="needs a C compiler (gcc, clang or cc)"
)
SIZES = {"tropical": {"i": 21, "k": 9, "j": 37}, "knn": {"i": 11, "d": 5, "j": 40}, "brain": {"i": 7, "k": 20, "j": 33}}


def made(name: str) -> Any:
    pytest.importorskip("torch", reason="needs the torch extra")
    from portolan.kernels.embed.torch_ import operator

    return operator(operators.EVERY[name])


@needs_compiler
@pytest.mark.torch
@pytest.mark.parametrize("name", SIZES)
def test_an_operator_of_pytorch(name: str) -> None:
    op = made(name)
    import torch

    program = operators.EVERY[name].program
    arrays = random_arrays(program, SIZES[name], np.random.default_rng(0))
    tensors = [torch.from_numpy(a) for a in arrays]
    tensors = [t.view(torch.bfloat16) if i.dtype == "bf16" else t for t, i in zip(tensors, program.inputs, strict=True)]
    found = op(*tensors)
    several = found if isinstance(found, tuple) else (found,)
    for value, want in zip(several, operators.EVERY[name].oracle(*arrays), strict=True):
        np.testing.assert_allclose(value.float().numpy(), want, rtol=1e-4, atol=1e-5)


@needs_compiler
@pytest.mark.torch
def test_pytorchs_own_checks_of_an_operator() -> None:
    op = made("tropical")
    import torch

    a, b = torch.randn(6, 5, requires_grad=True), torch.randn(5, 7, requires_grad=True)
    done = torch.library.opcheck(op, (a, b))
    assert set(done.values()) == {"SUCCESS"}
    op(a, b).square().sum().backward()
    by_op, a.grad = a.grad, None
    (a[:, :, None] + b[None]).amax(1).square().sum().backward()
    torch.testing.assert_close(by_op, a.grad, rtol=1e-4, atol=1e-4)
    with pytest.raises(UsageError, match=r"was given torch\.float64"):
        op(a.double(), b)


@needs_compiler
@pytest.mark.torch
def test_a_module_is_exported_with_the_operator_as_a_function(tmp_path: Path) -> None:
    op = made("tropical")
    import torch

    from portolan.kernels.embed.torch_ import to_onnx

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = torch.nn.Parameter(torch.randn(8, 6))

        def forward(self, x: Any) -> Any:
            return torch.relu(op(2 * x, self.w))

    net = Net().eval()
    dynamic = ({0: torch.export.Dim("rows")},)
    proto = to_onnx(net, (torch.randn(4, 8),), [(operators.tropical, op)], dynamic_shapes=dynamic)
    path = tmp_path / "net.onnx"
    onnx.save(proto, str(path))
    model = portolan.load(str(path))
    assert "rows" in str(model.signature.inputs[0])
    from portolan.core import registry
    from portolan.targets.local import local

    x = torch.randn(3, 8)
    found = registry.backend("onnxruntime").compile(model, local.detect())
    (y,) = found.run({model.signature.inputs[0].name: x.numpy()}).values()
    np.testing.assert_allclose(y, net(x).detach().numpy(), rtol=1e-5)


JAX = """
import sys
import numpy as np
import jax, jax.numpy as jnp
sys.path.insert(0, sys.argv[1])
from support import operators
from portolan.kernels.embed.jax_ import operator
from portolan.kernels.verify import random_arrays

kernel = operators.tropical
op = operator(kernel)
rng = np.random.default_rng(0)
a, b = (jnp.asarray(x) for x in random_arrays(kernel.program, {"i": 70, "k": 9, "j": 140}, rng))
plain = lambda a, b: (a[:, :, None] + b[None]).max(1)
assert np.array_equal(jax.jit(op)(a, b), kernel.oracle(a, b)[0].astype(np.float32))
ours = jax.grad(lambda a, b: (op(a, b) ** 2).sum(), argnums=(0, 1))(a, b)
theirs = jax.grad(lambda a, b: (plain(a, b) ** 2).sum(), argnums=(0, 1))(a, b)
for x, y in zip(ours, theirs):
    np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-4)
assert op(a[:, :0], b[:0]).tolist() == [[float("-inf")] * 140] * 70
assert op(a[:0], b).shape == (0, 140)
try:
    op(a, a)
    raise SystemExit("sizes that do not fit were taken")
except jax.errors.JaxRuntimeError as error:
    assert "differs from that of the same axis" in str(error), error
print("agreed")
"""


@needs_compiler
@pytest.mark.slow
def test_a_function_of_jax(tmp_path: Path) -> None:
    python = os.environ.get("PORTOLAN_PYTHON_JAX") or (sys.executable if importlib.util.find_spec("jax") else None)
    if python is None:
        pytest.skip("jax is not installed: PORTOLAN_PYTHON_JAX names an interpreter that has it")
    if not shutil.which("g++"):
        pytest.skip("needs g++")
    script = tmp_path / "inside_jax.py"
    script.write_text(JAX)
    source = str(Path(portolan.__file__).parents[1])
    env = {**os.environ, "PYTHONPATH": source, "PORTOLAN_CACHE": str(tmp_path / "cache")}
    tests = str(Path(__file__).parents[1])
    done = subprocess.run(
        [python, str(script), tests], env=env, capture_output=True, text=True, check=False, timeout=280
    )
    assert done.stdout.strip().endswith("agreed"), done.stderr[-2000:]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tropical", "selective_scan", "knn", "half"])
def test_a_module_of_webassembly_under_node(name: str, tmp_path: Path) -> None:
    if importlib.util.find_spec("ziglang") is None and not shutil.which("zig"):
        pytest.skip("needs zig (`pip install ziglang`)")
    if not shutil.which("node"):
        pytest.skip("needs Node.js")
    kernel = operators.EVERY[name]
    row = crossing.cross(kernel.program, kernel.usual(), "wasm32", tmp_path)
    script = Path(portolan.__file__).parent / "kernels" / "embed" / "wasm_call.mjs"
    command = ["node", str(script), row["artefact"], function_name(kernel.name)]
    for case in odd_cases(kernel.program, Schedule(None, None, 4), np.random.default_rng(0)):
        assert crossing._tried(command, kernel.program, case) < 2e-3
