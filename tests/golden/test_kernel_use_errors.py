"""Every error of kernels in models, in frameworks and in derivatives, word for word.

After a wanted change: `UPDATE_GOLDEN=1 pytest tests/golden/test_kernel_use_errors.py`, and read the diff.
"""

# ruff: noqa: B023, F722, F821, UP037

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from portolan import embedding
from portolan.core import carried
from portolan.core.running import plus
from portolan.errors import PortolanError
from portolan.kernels import export, kernel
from portolan.kernels.compiler import Compiler
from portolan.kernels.embed.find import sites
from portolan.kernels.embed.function import DOMAIN
from support import operators

GOLDEN = Path(__file__).with_name("kernel_use_errors.txt")
TROPICAL = """from portolan import kernel


@kernel
def tropical(A: "i k", B: "k j") -> "i j":
    return max(A[i, k] + B[k, j] for k in K)
"""


def file(tmp: Path, text: str = TROPICAL) -> Path:
    path = tmp / "ops.py"
    path.write_text(text)
    return path


def calls(name: str, count: int) -> onnx.ModelProto:
    node = helper.make_node(name, ["x"] * count, ["y"], domain=DOMAIN)
    sides = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [4, 4]) for n in ("x", "y")]
    return helper.make_model(helper.make_graph([node], "net", sides[:1], sides[1:]))


def export_over(tmp: Path) -> None:
    (tmp / "tropical.onnx").write_bytes(b"")
    export(file(tmp), tmp / "tropical.onnx")


def export_two(tmp: Path) -> None:
    export(file(tmp, TROPICAL + TROPICAL.partition("\n\n\n")[2].replace("tropical", "second")), tmp / "both.onnx")


def bundle_over(tmp: Path) -> None:
    (tmp / "made.portolan").write_bytes(b"")
    embedding.embed(file(tmp), "net.onnx", embedding.Asked(out=tmp / "made.portolan"), print)


def folded(tmp: Path) -> None:
    @kernel
    def folded(x: "t n") -> "t":
        return scan(lambda h: sum(h * x[t, n] for n in N), t)

    folded.grad()


def shared_axis(tmp: Path) -> None:
    @kernel
    def paired(x: "t n") -> "t n":
        return sum(scan(lambda h: h * x[t, n] + x[t, m], t) for m in N)

    paired.grad()


def swapped(tmp: Path) -> None:
    about = carried.Carried(DOMAIN, "tropical", "f", "tropical.so", "tropical.c", "0" * 64, (), (), ())
    carried.write(tmp / "kernels", [(about, b"library", b"source")]).kernels()


def no_plus(tmp: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shutil, "which", lambda name: None)
        plus("XLA's interface")


def hanging(tmp: Path) -> None:
    compiler = tmp / "slowcc"
    compiler.write_text("#!/bin/sh\nsleep 1000\n")
    compiler.chmod(0o755)
    Compiler((str(compiler),), "slow", seconds=0.2).build("int x;")


CASES: dict[str, Callable[[Path], Any]] = {
    "a file that is there": export_over,
    "one file for two kernels": export_two,
    "a bundle that is there": bundle_over,
    "a model that calls another operator": lambda tmp: sites(calls("tropicl", 2), [operators.tropical.program]),
    "a model that calls none": lambda tmp: sites(calls("x", 0), [operators.tropical.program]),
    "a model that calls with one argument": lambda tmp: sites(calls("tropical", 1), [operators.tropical.program]),
    "a runtime that takes no kernels": lambda tmp: embedding.embed(
        file(tmp), "net.onnx", embedding.Asked(backends=("reference",)), print
    ),
    "integers": lambda tmp: operators.integers.grad(),
    "a reduced state": folded,
    "a state without axes of its own": shared_axis,
    "too few arrays": lambda tmp: operators.matmul.grad()(np.zeros((2, 2), np.float32)),
    "another library": swapped,
    "no list of kernels": lambda tmp: carried.Folder(tmp).kernels(),
    "no C++ compiler": no_plus,
    "a compiler that hangs": hanging,
}


def said(case: Callable[[Path], Any], tmp: Path) -> str:
    with pytest.raises(PortolanError) as found:
        case(tmp)
    error = found.value
    lines = [f"error: {error.message}"]
    lines += [f"  at {Path(error.where.partition(':')[0]).name}"] if error.where else []
    lines += [f"hint: {error.hint}"] if error.hint else []
    return f"{type(error).__name__} {error.exit_code}\n" + "\n".join(lines).replace(str(tmp), "DIR")


def test_what_they_say(tmp_path: Path) -> None:
    parts = []
    for name, case in CASES.items():
        folder = tmp_path / name.replace(" ", "-")
        folder.mkdir()
        parts.append(f"[{name}] {said(case, folder)}\n")
    text = "\n".join(parts)
    if os.environ.get("UPDATE_GOLDEN"):
        GOLDEN.write_text(text)
    assert text == GOLDEN.read_text()
