"""Kernels for other processors: compiled by zig, run under qemu and Node against the oracle."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import pytest

from portolan.core.target import Target
from portolan.errors import NoBackend
from portolan.kernels import candidates
from portolan.kernels import cross as crossing
from support import operators

ZIG = importlib.util.find_spec("ziglang") is not None or shutil.which("zig") is not None
SIZES = {"matmul": 40, "window_attention": 40, "knn": 40, "butterfly": 8, "half": 40, "elementwise": 40}


def test_without_zig_it_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NoBackend) as found:
        crossing.zig()
    assert found.value.hint == "pip install ziglang"


@pytest.mark.parametrize(("arch", "lanes"), [("aarch64", 4), ("riscv64", 1), ("riscv64v", 4), ("wasm32", 4)], ids=str)
def test_the_width_of_vectors_is_the_target_records(arch: str, lanes: int) -> None:
    found = crossing.ARCHES[arch]
    assert candidates.lanes(Target(arch, "emulated", found.arch, found.features, 1, 0)) == lanes


@pytest.mark.slow
@pytest.mark.skipif(not ZIG, reason="needs zig")
@pytest.mark.parametrize("arch", crossing.ARCHES)
@pytest.mark.parametrize("name", SIZES)
def test_a_kernel_for_another_processor(name: str, arch: str, tmp_path: Path) -> None:
    kernel = operators.EVERY[name]
    row = crossing.cross(kernel.program, dict.fromkeys(kernel.program.symbols, SIZES[name]), arch, tmp_path)
    assert Path(row["artefact"]).stat().st_size > 0
    if shutil.which(crossing.ARCHES[arch].by[0]):
        assert row["max_abs_error"] < 2e-3
    else:
        assert row["max_abs_error"] is None
