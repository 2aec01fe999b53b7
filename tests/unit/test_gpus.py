"""GPUs as part of a machine: what the driver says, what it keeps from saying, and what a search makes of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from portolan.backends import _cuda, _ort_gpu, _torch_gpu, _xla_gpu
from portolan.backends.onnxruntime import onnxruntime
from portolan.backends.torch import torch
from portolan.backends.xla import xla
from portolan.cli import show
from portolan.core import cuda, interpreters
from portolan.core.backend import Backend, Support, on_processor
from portolan.core.doctor import examine
from portolan.core.goal import parse_goals
from portolan.core.recipe import Recipe
from portolan.core.target import Device, Target
from portolan.errors import NoBackend, PortolanError
from portolan.search.candidate import Candidate
from portolan.search.space import candidates
from portolan.search.surrogate import rule_of_thumb
from portolan.targets.local import from_files, local
from portolan.testing.models import perceptron, this_machine
from support import gpus


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return gpus.driver(tmp_path_factory.mktemp("driver"))


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    yield
    cuda._asked.cache_clear()


def target(device: Device | None = gpus.H200) -> Target:
    """This machine with a GPU, or without."""
    return replace(this_machine(), devices=(device,) if device else (), accelerators=(str(device),) if device else ())


# --- the driver


def test_two_gpus_and_the_first_is_used(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpus.use_driver(library, monkeypatch, STUB_GPUS="2")
    found = local.detect()
    assert found.devices == (
        Device("cuda", 0, "no GPU", 2**33, "9.0", "", "13.0"),
        Device("cuda", 1, "no GPU either", 2**34, "9.0", "", "13.0"),
    )
    assert found.accelerators == ("no GPU, 8 GiB", "no GPU either, 16 GiB")
    assert found.has("cuda")
    assert Target.from_json(json.loads(json.dumps(found.to_json()))) == found
    assert local.processor().devices == ()
    text = "\n".join(line.text for line in show.examination(examine(found)).lines)
    assert "no GPU, 8.00 GiB, compute capability 9.0, CUDA 13.0 at most" in text
    assert "no GPU either, 16.0 GiB, compute capability 9.0, CUDA 13.0 at most (backends use the first one)" in text


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"STUB_GPUS": "0"}, "the NVIDIA driver sees no GPU"),
        ({"STUB_INIT": "100"}, "`cuInit` failed: CUDA_ERROR_NO_DEVICE (100)"),
        ({"STUB_INIT": "803"}, "`cuInit` failed: CUDA_ERROR_SYSTEM_DRIVER_MISMATCH (803)"),
        ({"STUB_INIT": "crash"}, "asking the NVIDIA driver ended with code -6"),
        ({"STUB_INIT": "hang"}, "the NVIDIA driver did not answer within 0.7 s"),
    ],
)
def test_a_driver_that_does_not_work(
    library: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, str], reason: str
) -> None:
    gpus.use_driver(library, monkeypatch, **settings)
    if settings.get("STUB_INIT") == "hang":
        monkeypatch.setattr(cuda, "SECONDS", 0.7)
    assert cuda.asked() == cuda.Found(reason=reason)
    assert local.detect().devices == ()


def test_no_driver_and_one_without_a_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpus.use_driver(tmp_path / "libcuda.so", monkeypatch)
    assert cuda.asked().reason == "there is no NVIDIA driver (libcuda.so.1)"
    old = tmp_path / "old.so"
    gpus.built("int cuInit(unsigned flags) { return flags; }", old)
    gpus.use_driver(old, monkeypatch)
    assert cuda.asked().reason == "the NVIDIA driver is too old: it has no `cuDriverGetVersion`"


def test_nobody_waits_for_a_driver_where_nothing_is_plugged_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(cuda.VARIABLE, raising=False)
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "nvidiactl").touch()
    assert not cuda.visible(tmp_path)
    (tmp_path / "dev" / "nvidia0").touch()
    assert cuda.visible(tmp_path)


def test_the_drivers_version_in_the_kernel(tmp_path: Path) -> None:
    for line, version in (
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun May 12 19:39:15 UTC 2024\n", "535.183.01"),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build\n", "580.65.06"),
        ("nothing\n", ""),
    ):
        (tmp_path / "version").write_text(line)
        assert cuda._module(tmp_path / "version") == version
    assert cuda._module(tmp_path / "none") == ""


def test_why_a_gpu_that_is_plugged_in_is_of_no_use(tmp_path: Path) -> None:
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "nvidia0").touch()
    found = from_files(tmp_path, "x86_64", (0,), {}, cuda.Found(reason="the NVIDIA driver did not answer"))
    assert found.accelerators == ("NVIDIA GPU (the NVIDIA driver did not answer)",)
    assert not found.has("cuda")


def test_what_a_device_changes_in_a_target() -> None:
    here = target()
    assert here.fingerprint != target(None).fingerprint
    assert here.fingerprint != target(replace(gpus.H200, driver="581.0")).fingerprint
    assert here.instructions == target(None).instructions
    assert here.has("cuda_bf16")
    assert not target(replace(gpus.H200, capability="7.5")).has("cuda_bf16", "cuda_tf32")
    assert target(replace(gpus.H200, capability="7.5")).has("cuda_f16")


# --- packages


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that packages are looked for in, in place of this interpreter's."""

    def folder(name: str, module: str) -> Path | None:
        return tmp_path / module if (tmp_path / module).is_dir() else None

    monkeypatch.setattr(interpreters, "folder", folder)
    monkeypatch.setattr(_cuda, "_LOADER", tmp_path / "none")
    monkeypatch.delenv("LD_LIBRARY_PATH", raising=False)
    return tmp_path


def test_a_package_without_code_for_gpus(packages: Path) -> None:
    gpus.package(packages, cuda=None)
    found = onnxruntime.devices(target())
    assert found.keys() == {"cuda", "tensorrt"}
    assert found["cuda"].reason == "the package `onnxruntime` has no code for GPUs"
    assert "pip install 'onnxruntime-gpu[cuda,cudnn]'" in (found["cuda"].fix or "")
    assert onnxruntime.devices(target(None)) == {}


def test_a_driver_that_is_too_old_for_the_package(packages: Path) -> None:
    gpus.package(packages)
    found = onnxruntime.devices(target(replace(gpus.H200, runtime="12.4")))
    reason = "the NVIDIA driver runs CUDA 12.4 at most, and `onnxruntime-gpu` was built for CUDA 13.0"
    assert {on.reason for on in found.values()} == {reason}
    assert "update the NVIDIA driver" in (found["cuda"].fix or "")


def test_libraries_that_are_not_there(packages: Path) -> None:
    gpus.package(packages, files=gpus.LIBRARIES[:1])
    found = onnxruntime.devices(target())
    assert found["cuda"].reason == "`libcudnn.so.9` is not installed, which `onnxruntime-gpu` needs"
    assert found["tensorrt"] == found["cuda"]
    (packages / gpus.LIBRARIES[1]).parent.mkdir(parents=True)
    (packages / gpus.LIBRARIES[1]).touch()
    found = onnxruntime.devices(target())
    assert found["cuda"] == Support(True)
    assert "`libnvinfer.so.10` is not installed" in (found["tensorrt"].reason or "")
    assert "'tensorrt-cu13==10.*'" in (found["tensorrt"].fix or "")


def test_libraries_that_only_the_loader_knows(packages: Path) -> None:
    gpus.package(packages, files=())
    names = (Path(name).name.encode() for name in (*gpus.LIBRARIES, *gpus.TENSORRT))
    (packages / "none").write_bytes(b"\0".join([b"glibc-ld.so.cache1.1", *names, b""]))
    assert onnxruntime.devices(target()) == {"cuda": Support(True), "tensorrt": Support(True)}


def test_torch_says_what_it_lacks(packages: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "CUDA_HOME", "CUDA_PATH":
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(_torch_gpu, "_TOOLKIT", packages / "toolkit")
    (packages / "torch").mkdir()
    version = packages / "torch" / "version.py"
    version.write_text("__version__ = '2.13.0+cpu'\ncuda: Optional[str] = None\n")
    reasons = [torch.devices(target())["cuda"].reason]
    version.write_text("__version__ = '2.13.0'\ncuda: Optional[str] = '13.0'\n")
    reasons.append(torch.devices(target())["cuda"].reason)
    (packages / "triton").mkdir()
    reasons.append(torch.devices(target())["cuda"].reason)
    monkeypatch.setenv("CUDA_HOME", str(packages))
    reasons.append(torch.devices(target())["cuda"].reason)
    reasons.append(torch.devices(target(replace(gpus.H200, runtime="12.8")))["cuda"].reason)
    assert [(r or "ready").split(",")[0] for r in reasons] == [
        "the package `torch` has no code for GPUs",
        "Inductor writes for GPUs in Triton",
        "Inductor's code needs CUDA's headers",
        "ready",
        "the NVIDIA driver runs CUDA 12.8 at most",
    ]


def test_xla_says_what_it_lacks(packages: Path) -> None:
    assert xla.devices(target()) == {}
    (packages / "jax").mkdir()
    found = xla.devices(target(replace(gpus.H200, runtime="12.8")))["cuda"]
    assert found.reason == "JAX's plug-in for CUDA is not installed"
    assert "'jax[cuda12]==" in (found.fix or "")
    (packages / "jax_plugins" / "xla_cuda13").mkdir(parents=True)
    assert xla.devices(target())["cuda"].ready
    reason = xla.devices(target(replace(gpus.H200, runtime="12.8")))["cuda"].reason
    assert "`jax-cuda13-plugin` was built for CUDA 13.0" in (reason or "")


@pytest.mark.parametrize("backend", [onnxruntime, torch, xla], ids=lambda backend: backend.name)
def test_a_device_that_is_not_there_is_refused_before_anything_is_loaded(backend: Backend, tmp_path: Path) -> None:
    model, here = perceptron(tmp_path).model, target(None)
    with pytest.raises(NoBackend, match=rf"`{backend.name}` cannot run with device=cuda.*no device `cuda`"):
        backend.compile(model, here, **backend.schema.check({"device": "cuda"}))
    reason = backend.lacks(backend.schema.check({"precision": "tf32"}), target())
    assert reason is not None
    assert "is not of device `cpu`" in (reason.reason or "")


# --- the search


def test_devices_are_options_only_where_they_are(packages: Path, tmp_path: Path) -> None:
    gpus.package(packages, files=gpus.LIBRARIES)
    goals = parse_goals(["cosine >= 0.99", "min latency_p50"])
    model = perceptron(tmp_path / "model").model
    tried: dict[str, list[set[str]]] = {}
    for name, here in (("gpu", target()), ("none", target(None))):
        found = candidates(model, here, goals, backends={"onnxruntime": onnxruntime}, passes=[])
        live = [c.recipe.options for c in found if c.refused is None]
        tried[name] = [{str(o["device"]) for o in live}, {str(o["precision"]) for o in live}]
        told = [c.refused for c in found if c.refused and "device" in c.recipe.options]
        assert told == ([] if name == "none" else [t for t in told if "libnvinfer" in str(t)])
        assert len(told) == (name == "gpu")
    assert tried == {"gpu": [{"cpu", "cuda"}, {"f32", "tf32"}], "none": [{"cpu"}, {"f32"}]}
    on_gpu = [o for o in onnxruntime.space(target()) if o["device"] == "cuda"]
    assert {o["threads"] for o in on_gpu} == {0}


def test_who_asks_for_a_device_is_told_why_not(tmp_path: Path) -> None:
    found = candidates(
        perceptron(tmp_path).model, target(None), parse_goals(["min latency_p50"]),
        backends={"onnxruntime": onnxruntime}, passes=[], fixed={"options": {"device": "cuda"}},
    )  # fmt: skip
    reasons = [c.refused for c in found if c.refused]
    assert reasons == ["this target has no device `cuda`"]
    assert [c.recipe.options["device"] for c in found if c.refused is None] == ["cpu"]  # the baseline


def test_doctor_says_what_devices_lack(packages: Path) -> None:
    gpus.package(packages, files=gpus.LIBRARIES)
    data = examine(target())
    row = next(row for row in data["backends"] if row["name"] == "onnxruntime")
    assert row["devices"]["cuda"] == {"ready": True, "reason": None, "fix": None}
    text = "\n".join(line.text for line in show.examination(data).lines)
    assert "also on cuda; not on tensorrt: `libnvinfer.so.10` is not installed" in text
    assert "NVIDIA H200, 139 GiB, compute capability 9.0, driver 580.65.06, CUDA 13.0 at most" in text


def test_support_crosses_to_other_interpreters() -> None:
    support = Support(True, "1", devices={"cuda": Support(False, reason="no", fix="do")})
    assert Support.from_json(json.loads(json.dumps(asdict(support)))) == support


# --- what is asked after loading


def test_code_for_another_gpu_is_not_run() -> None:
    _torch_gpu.check_gpu({"AOTI_COMPUTE_CAPABILITY": "90"}, (9, 0))
    _torch_gpu.check_gpu({}, (9, 0))
    with pytest.raises(PortolanError, match=r"compute capability `9\.0`, this one has `12\.0`") as caught:
        _torch_gpu.check_gpu({"AOTI_COMPUTE_CAPABILITY": "90"}, (12, 0))
    assert caught.value.hint == "compile the model again on this machine"


def test_jax_without_a_gpu_is_no_bug() -> None:
    with pytest.raises(NoBackend, match="JAX does not reach it: Unknown backend cuda"), _xla_gpu.blamed("cuda"):
        raise RuntimeError("Unknown backend cuda\nmore")
    with pytest.raises(RuntimeError), _xla_gpu.blamed("cpu"):
        raise RuntimeError("something else")


def test_operators_that_do_the_work() -> None:
    assert all(map(_ort_gpu._works, ("Conv", "ai.onnx.ml.TreeEnsembleRegressor", "nobody.Mystery", "MatMul")))
    assert not any(map(_ort_gpu._works, ("Shape", "Add", "Cast", "com.microsoft.Gelu", "ai.onnx.ml.Scaler")))


def test_what_is_known_of_the_processor_is_not_said_of_a_gpu() -> None:
    """Outputs of a GPU are judged anew, and no floor of the processor's makes its times untrue."""
    options = onnxruntime.schema.check({})
    here, there = (Candidate(Recipe((), "onnxruntime", options | {"device": d}), True) for d in ("cpu", "cuda"))
    assert here.numerics != there.numerics
    assert (on_processor(here.recipe.options), on_processor(there.recipe.options), on_processor({})) == (
        True,
        False,
        True,
    )
    assert rule_of_thumb(here, options, 2, 5.0) == rule_of_thumb(there, options, 2, 5.0)
