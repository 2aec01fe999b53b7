"""Kernels in other languages than C through the verb: what is said of them here, kept, delivered and refused."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

from portolan import kernels
from portolan.core.running import CompilerError
from portolan.errors import PortolanError
from portolan.kernels import elsewhere
from portolan.kernels.language import Here, language, languages
from portolan.kernels.languages.cuda import cuda
from portolan.testing.kit import kernels as kit
from portolan.testing.languages import layouts

SNAPSHOT = Path(__file__).parents[1] / "golden" / "kernel_language_errors.txt"
OPS = """
from portolan import kernel, shapes

@kernel
def tropical(A: "i k", B: "k j") -> "i j":
    return max(A[i, k] + B[k, j] for k in K)

shapes(tropical, i=40, k=24, j=33)
"""


@pytest.fixture
def ops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PORTOLAN_CACHE", str(tmp_path / "cache"))
    Path("ops.py").write_text(OPS)
    return Path("ops.py")


def ready(name: str, *levels: str) -> Here:
    found = elsewhere.here(name)
    if found.level not in levels:
        pytest.skip(f"{name}: {found.reason} ({found.fix})")
    return found


@pytest.mark.parametrize("name", languages())
def test_the_code_is_printed_anywhere(name: str, ops: Path) -> None:
    code = kernels.emitted(ops, name)
    assert "portolan_tropical_0_0" in code
    assert kernels.emitted(ops, name) == code


def test_names_that_are_no_ascii_are_written_in_it(ops: Path) -> None:
    ops.write_text(OPS.replace("tropical", "größe").replace("A", "Ä"), encoding="utf-8")
    for name in languages():
        assert kernels.emitted(ops, name).isascii(), name


def test_a_dry_run_says_what_every_language_can_do_here(ops: Path) -> None:
    rows = {row["name"]: row for row in kernels.build(ops, dry_run=True)["languages"]}
    assert list(rows) == ["c", *languages()]
    for row in rows.values():
        assert row["level"] in ("print", "compile", "check", "time")
        assert row["level"] == "time" or row["reason"]
        assert row["level"] != "print" or row["fix"]


def test_opencl_is_tuned_and_remembered(ops: Path) -> None:
    ready("opencl", "time")
    first, again = (kernels.build(ops, target="opencl", out="out", force=True)["kernels"][0] for _ in range(2))
    assert first["target"] == "opencl"
    assert first["max_abs_error"] < 1e-6
    assert first["latency"]["value"] > 0
    assert (first["cached"], again["cached"]) == (False, True)
    assert {p.name for p in Path("out").iterdir()} == {"tropical.cl", "tropical.json"}
    with pytest.raises(PortolanError, match="exists"):
        kernels.build(ops, target="opencl", out="out")


@pytest.mark.browser
def test_wgsl_is_checked_and_remembered(ops: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ready("wgsl", "check")
    (row,) = kernels.build(ops, target="wgsl")["kernels"]
    assert row["max_abs_error"] < 1e-6
    assert "latency" not in row
    monkeypatch.setattr(elsewhere, "odd_cases", None)
    assert kernels.build(ops, target="wgsl")["kernels"] == [row]


def test_triton_is_checked_and_compiled_without_a_gpu(ops: Path) -> None:
    ready("triton", "check")
    (row,) = kernels.build(ops, target="triton", out="out")["kernels"]
    assert row["max_abs_error"] < 1e-6
    assert Path("out/tropical.cubins.zip").stat().st_size > 1000


def test_cuda_is_compiled_without_a_gpu(ops: Path) -> None:
    ready("cuda", "compile", "time")
    (row,) = kernels.build(ops, target="cuda", out="out")["kernels"]
    assert Path(row["artefact"]).read_bytes()[:4] == b"\x50\xed\x55\xba", "a fat binary"
    assert {p.suffix for p in Path("out").iterdir()} == {".cu", ".fatbin", ".json"}


@pytest.mark.hardware
@pytest.mark.parametrize("name", ["cuda", "triton"])
def test_a_gpu_is_tuned_for_and_timed(name: str, ops: Path) -> None:
    ready(name, "time")
    (row,) = kernels.build(ops, target=name)["kernels"]
    assert row["max_abs_error"] < 1e-5
    assert row["latency"]["value"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", kit())
def test_every_kernel_compiles_for_cuda(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ready("cuda", "compile", "time")
    monkeypatch.setenv("PORTOLAN_CACHE", str(tmp_path))
    for layout in layouts(cuda, name, 2):
        assert cuda.build(kit()[name].program, layout).stat().st_size > 1000


def test_code_that_the_compiler_refuses(tmp_path: Path) -> None:
    ready("cuda", "compile", "time")
    (tmp_path / "x.cu").write_text("this is no program\n")
    with pytest.raises(CompilerError, match="`nvcc` ended with code"):
        cuda.compile(tmp_path / "x.cu", tmp_path / "x.fatbin")
    assert not (tmp_path / "x.fatbin").exists()


def test_what_is_wrong_is_said(ops: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Golden: a language that is mistyped, one that nothing here runs, two answers to one question."""
    monkeypatch.setattr(
        sys.modules["portolan.kernels.build"],
        "here",
        lambda name: Here("print", reason="pyopencl is not installed", fix="pip install 'portolan[opencl]'"),
    )
    calls = {
        "unknown-language": lambda: kernels.emitted(ops, "opncl"),
        "unknown-target": lambda: kernels.build(ops, target="opncl"),
        "nothing-runs-it": lambda: kernels.build(ops, target="opencl"),
        "two-answers": lambda: kernels.build(ops, target="opencl", arch="aarch64"),
    }
    said = []
    for name, call in calls.items():
        with pytest.raises(PortolanError) as caught:
            call()
        error = caught.value
        said.append(f"== {name}\nerror: {error.message}\nhint: {error.hint}\nexit {error.exit_code}\n")
    if os.environ.get("UPDATE_GOLDEN"):
        SNAPSHOT.write_text("\n".join(said))
    assert "\n".join(said) == SNAPSHOT.read_text()


def test_a_language_without_its_runtime_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("PORTOLAN_NVCC", raising=False)
    monkeypatch.delenv("PORTOLAN_CHROMIUM", raising=False)
    assert shutil.which("nvcc") is None
    for name, word in (("cuda", "nvcc"), ("wgsl", "chromium")):
        found = language(name).probe()
        assert found.level == "print"
        assert word in str(found.fix)
