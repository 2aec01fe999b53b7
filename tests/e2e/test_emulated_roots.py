"""Arm and RISC-V under qemu-user, WebAssembly and WebGPU: made by the verb, from the network, and asked. Minutes.

PORTOLAN_TEST_WEB may name a folder of targets that are there already: those are used, and only the others are made.
"""

from __future__ import annotations

import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import portolan
from portolan.emulation.kinds import KINDS
from portolan.errors import NoBackend
from portolan.targets import _added
from portolan.testing.models import convolutions
from support.envs import made_environment

NEEDS = {
    "arm": ("aarch64", ("apt-get", "dpkg-deb")),
    "riscv": ("riscv64", ("apt-get", "dpkg-deb")),
    "wasm": ("wasm", ("node", "npm")),
    "webgpu": ("webgpu", ("node", "npm", "chromium")),
}
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    given = os.environ.get("PORTOLAN_TEST_WEB")
    return Path(given) if given else tmp_path_factory.mktemp("targets")


@pytest.fixture(autouse=True)
def place(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(_added.VARIABLE, str(root))
    monkeypatch.chdir(tmp_path)


@pytest.fixture(params=NEEDS)
def target(request: pytest.FixtureRequest, root: Path) -> str:
    """The name of a target that is whole."""
    kind, tools = NEEDS[request.param]
    if missing := [tool for tool in tools if shutil.which(tool) is None]:
        pytest.skip(f"needs {', '.join(missing)}")
    if platform.machine() not in ("x86_64", "aarch64"):
        pytest.skip("Debian's qemu is pinned for x86-64 and Arm")
    if request.param not in _added.names():
        try:
            portolan.target("add", request.param, emulate=kind)
        except NoBackend as error:
            if "fetching" in error.message or "lists" in error.message:
                pytest.skip(f"nothing can be fetched here: {error.message}")
            raise
    return str(request.param)


def test_it_says_what_it_is_and_answers_as_here(target: str) -> None:
    kind = KINDS[NEEDS[target][0]]
    found = portolan.doctor(target)
    assert (found.target["kind"], found.target["arch"]) == ("emulated", kind.arch)
    ready = {row["name"] for row in found.backends if row["ready"]}
    assert ready & {"onnxruntime", "onnxruntime-web"}
    compared = portolan.bench("demo:digits", target=target)
    assert compared.arms
    for arm in compared.arms:
        assert arm["same"], arm
        assert arm["metrics"]["latency_p50"]["value"] is None


def test_int8_gives_there_what_vnni_gives_here(target: str) -> None:
    """Only x86 saturates: where the reference here is exact, these are too."""
    if "avx512_vnni" not in portolan.doctor().target["features"]:
        pytest.skip("this machine has no VNNI to compare with")
    portolan.compress("demo:digits", passes=["quantize(mode=static, weight_type=s8)"], out="int8.onnx")
    backend = "onnxruntime-web" if target.startswith("w") else "onnxruntime"
    (arm,) = portolan.bench("int8.onnx", target=target, backend=[backend]).arms
    assert arm["metrics"]["max_rel_error"]["value"] < 1e-3


@pytest.mark.parametrize("target", ["wasm"], indirect=True)
def test_a_command_that_is_killed_leaves_nothing_that_looks_whole(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(_added.VARIABLE, str(tmp_path / "fresh"))
    argv = [sys.executable, "-m", "portolan", "target", "add", "w", "--emulate", "wasm"]
    started = subprocess.Popen(argv, start_new_session=True, stderr=subprocess.DEVNULL)
    for _ in range(600):
        if list((tmp_path / "fresh").glob(".making-*/package.json")):
            break
        time.sleep(0.05)
    os.killpg(started.pid, signal.SIGKILL)
    started.wait()
    assert _added.names() == []
    portolan.target("add", "w", emulate="wasm")
    assert _added.names() == ["w"]
    assert sorted(p.name for p in (tmp_path / "fresh").iterdir()) == [".lock", "w"]


@pytest.mark.parametrize("target", ["arm"], indirect=True)
def test_the_instructions_of_the_processor_are_those_that_it_has(target: str) -> None:
    """A dot product of bytes runs on a Neoverse V1 and ends a Cortex-A72's process."""
    qemu, _, _, *rest = _added.find(target).reach
    program = (
        "import ctypes, mmap; p = mmap.mmap(-1, 4096, prot=7); p.write(bytes.fromhex('2094824ec0035fd6'))\n"
        "f = ctypes.CFUNCTYPE(None)(ctypes.addressof(ctypes.c_char.from_buffer(p))); f(); print('ran')"
    )
    codes = {}
    for cpu in ("neoverse-v1", "cortex-a72"):
        done = subprocess.run([qemu, "-cpu", cpu, *rest, "-c", program], capture_output=True, text=True, check=False)
        codes[cpu] = done.returncode
    assert codes["neoverse-v1"] == 0
    assert codes["cortex-a72"] == -signal.SIGILL


def test_numbers_are_those_of_here_to_the_last_digits(target: str) -> None:
    for arm in portolan.bench("demo:digits", target=target).arms:
        error = arm["metrics"]["max_rel_error"]["value"]
        assert np.isfinite(error)
        assert error < 1e-5, arm["name"]


@pytest.mark.parametrize("target", ["wasm"], indirect=True)
def test_what_was_found_for_the_web_is_packed_and_becomes_a_folder_for_pages(target: str, root: Path) -> None:
    study = portolan.optimize("demo:digits", target=target, study="study", budget="20 trials", passes=["simplify"])
    assert study.best.recipe.backend == "onnxruntime-web"
    packed = portolan.pack("study", out="digits.portolan")
    assert any("answers on `wasm` as here" in note for note in packed.notes)
    assert any("portolan deploy digits.portolan --to web" in note for note in packed.notes)
    portolan.deploy("digits.portolan", to=["web"], out="out")
    folder = Path("out") / "web"
    (folder / "node_modules").symlink_to(root / target / "node_modules")
    done = subprocess.run(["node", "check.mjs"], cwd=folder, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stdout) == (0, "answers as packed\n"), done.stderr


@pytest.mark.parametrize("target", ["arm"], indirect=True)
def test_what_its_converter_made_here_runs_there(target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made_environment("ncnn", monkeypatch)
    case = convolutions(tmp_path, rows=1)
    (arm,) = portolan.bench(case.model.path, target=target, backend=["ncnn"]).arms
    assert arm.get("same"), arm


#: Real models, where PORTOLAN_TEST_ZOO names the folder of `benchmarks/models.py`: f32 answers are those from here.
ZOO = os.environ.get("PORTOLAN_TEST_ZOO")


@pytest.mark.skipif(not ZOO, reason="needs PORTOLAN_TEST_ZOO, a folder that `python benchmarks/models.py` filled")
@pytest.mark.parametrize("name", ["mobilenetv2", "minilm"])
def test_real_models_answer_as_here(target: str, name: str, tmp_path: Path) -> None:
    place = Path(ZOO or "")
    with np.load(place / f"{name}.npz") as arrays:
        np.savez(tmp_path / "rows.npz", **{key: arrays[key][:8] for key in arrays.files})
    for arm in portolan.bench(place / f"{name}.onnx", data=tmp_path / "rows.npz", target=target).arms:
        assert arm["same"], arm
        assert arm["metrics"]["latency_p50"]["value"] is None
