"""A Haswell x86 under the system's qemu-user: real runtimes, real answers, no times."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import portolan
from portolan.emulation.kinds import KINDS
from portolan.emulation.qemu import on_path
from portolan.errors import UsageError, VerificationFailed
from portolan.targets import _added
from portolan.worker.environments import backends

FOUND = on_path(KINDS["haswell"]) if shutil.which("qemu-x86_64") else None
pytestmark = pytest.mark.skipif(
    platform.machine() != "x86_64" or FOUND is None or FOUND[1] < KINDS["haswell"].oldest,
    reason="needs an x86-64 machine with qemu-user 7.2 or newer",
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the target `haswell`."""
    folder = tmp_path_factory.mktemp("targets")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(_added.VARIABLE, str(folder))
        portolan.target("add", "haswell", emulate="haswell")
    return folder


@pytest.fixture(autouse=True)
def place(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(_added.VARIABLE, str(root))
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def int8(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo with int8 weights of eight bits: what a machine with VNNI would be given."""
    path = tmp_path_factory.mktemp("int8") / "digits-int8.onnx"
    portolan.compress("demo:digits", passes=["quantize(mode=static, weight_type=s8)"], out=path)
    return path


def test_it_is_what_it_stands_for() -> None:
    found = portolan.doctor("haswell")
    target = found.target
    assert (target["kind"], target["arch"]) == ("emulated", "x86_64")
    assert {"avx2", "fma"} <= set(target["features"])
    assert not [name for name in target["features"] if "vnni" in name or name.startswith(("avx512", "amx"))]
    ready = {row["name"]: row["version"] for row in found.backends if row["ready"]}
    assert "onnxruntime" in ready
    versions = backends(_added.find("haswell"), ["onnxruntime"])["onnxruntime"].versions()
    assert versions == {"onnxruntime": ready["onnxruntime"], "qemu-user": ".".join(map(str, FOUND[1]))}


def test_nothing_is_timed_and_answers_are_compared() -> None:
    found = portolan.bench("demo:digits", target="haswell", backend=["onnxruntime"])
    (arm,) = found.arms
    assert arm["same"]
    assert arm["metrics"]["max_rel_error"]["value"] < 1e-5
    for name in ("latency_p50", "latency_p95", "latency_p99"):
        assert arm["metrics"][name]["value"] is None
    assert not {"throughput", "energy", "cost", "carbon", "memory"} & arm["metrics"].keys()
    assert found.ratios == []
    with pytest.raises(UsageError, match="nothing is timed"):
        portolan.doctor("haswell", bench=True)


@pytest.mark.slow
def test_a_crash_there_is_a_row_with_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fake.toml").write_text('[variants.default]\nbehaviour = "segfault"\n')
    monkeypatch.setenv("PORTOLAN_FAKE", str(tmp_path / "fake.toml"))
    (arm,) = portolan.bench("demo:digits@fake()", target="haswell").arms
    assert arm["metrics"] == {}
    assert arm["reason"] == "crashed with SIGSEGV during `evaluate`"


def test_int8_that_overflows_is_flagged_before_it_ships(int8: Path) -> None:
    packed = portolan.pack(int8, out="here.portolan")
    assert packed.overflow["wide"] > 0
    assert "processors without VNNI" in packed.notes[-1]
    with pytest.raises(VerificationFailed, match="on `haswell` the output `logits` is off by"):
        portolan.pack(int8, out="there.portolan", target="haswell")
    assert not Path("there.portolan").exists()


@pytest.mark.slow
def test_a_bundle_that_holds_there(tmp_path: Path) -> None:
    packed = portolan.pack("demo:digits", out="d.portolan", target="haswell")
    assert packed.overflow == {"products": 0, "wide": 0}
    assert packed.elsewhere[0]["same"]
    argv = [sys.executable, "-m", "portolan", "pack", "--check", "d.portolan", "-t", "haswell", "--json"]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["elsewhere"][0]["target"] == "haswell"


@pytest.mark.slow
def test_a_search_there_finds_what_holds_and_claims_no_speed() -> None:
    study = portolan.optimize(
        "demo:digits", goals=["cosine >= 0.99"], target="haswell", backend=["onnxruntime"], budget="120s", study="st"
    )
    assert study.met
    assert study.best.metrics["size"].value < study.baseline.metrics["size"].value
    data = study.to_json()
    for trial in (data["baseline"], data["best"], *(t for t in data["trials"] if t["status"] == "ok")):
        assert trial["metrics"]["latency_p50"]["value"] is None
        assert not {"throughput", "cold_start", "memory"} & trial["metrics"].keys()
    assert data["ratios"] == []
    assert data["notes"][-1].startswith("`haswell` is emulated")
    assert Path(portolan.report("st", out="st.html").report).stat().st_size > 0
    packed = portolan.pack("st", out="st.portolan")
    assert [item["target"] for item in packed.elsewhere] == ["haswell"]


def test_goals_on_time_are_refused_before_anything_is_read() -> None:
    for goal in ("latency_p95 < 8ms", "max throughput", "memory < 1GB"):
        with pytest.raises(UsageError, match="is not measured on `haswell`: it is emulated"):
            portolan.optimize("nowhere.onnx", goals=[goal], target="haswell")
