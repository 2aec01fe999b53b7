"""`bench`, `compress`, `pack` and the Python API, end to end."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import portolan
import portolan.api
from portolan.errors import GoalsNotMet, NoBackend, UnknownName, UsageError, VerificationFailed
from support.studies import Lab, labelled, matmul

QUICK: dict[str, Any] = {"goals": ["min latency_p50", "min size"], "starts": 1}


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished study with a failed trial, and the bundle of its best one: made once, copied for each test."""
    lab = Lab(tmp_path_factory.mktemp("kept"))
    lab.script(fast={"latency_ms": 1.0}, broken={"latency_ms": 0.5, "behaviour": "raise"})
    with pytest.MonkeyPatch.context() as patch:
        for name, value in lab.env.items():
            patch.setenv(name, value)
        patch.chdir(lab.folder)
        lab.optimize(**QUICK)
        portolan.pack(lab.folder / "study", out=lab.folder / "tiny.portolan")
    return lab.folder


@pytest.fixture
def done(lab: Lab, kept: Path) -> Lab:
    """The lab with that study in it. The model it asks for is the lab's own, of the same content."""
    shutil.copytree(kept, lab.folder, dirs_exist_ok=True)
    return lab


# --- bench


def bench(lab: Lab, *arms: str, **options: Any) -> Any:
    return portolan.bench(*arms, **{"budget": "20s", **options})


def short_races(monkeypatch: pytest.MonkeyPatch, starts: int) -> None:
    import functools

    from portolan import comparison

    short = functools.partial(comparison.race, blocks=3, block_seconds=0.02, warm_up=0.02)
    monkeypatch.setattr(comparison, "race", short)
    monkeypatch.setattr(comparison, "MOST_STARTS", starts)


def test_identical_arms_are_no_different(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    short_races(monkeypatch, 5)
    lab.script(default={"latency_ms": 3.0, "jitter": 0.02})
    found = bench(lab, f"{lab.model}@fake", f"{lab.model}@fake")
    (ratio,) = found.ratios
    assert ratio["verdict"] == "no significant difference"
    assert ratio["lo"] <= 1 <= ratio["hi"]
    assert [arm["name"] for arm in found.arms] == [f"{lab.model}@fake#0", f"{lab.model}@fake#1"]
    assert found.noise["aa_ratio"] == pytest.approx(1, abs=0.05)


def test_an_arm_that_fails_is_reported_with_its_reason(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whenever it fails: when it is built, loaded, or timed."""
    short_races(monkeypatch, 1)
    lab.script(
        a={"behaviour": "segfault", "when": "compile"}, b={"behaviour": "abort", "when": "load"},
        c={"behaviour": "raise", "when": "time"},
    )  # fmt: skip
    names = [f"{lab.model}@fake{rest}" for rest in ("", "(variant=a)", "(variant=b)", "(variant=c)")]
    found = bench(lab, *names)
    reasons = {arm["name"]: arm.get("reason") for arm in found.arms}
    assert reasons == {
        names[0]: None,
        names[1]: "crashed with SIGSEGV during `compile`",
        names[2]: "crashed with SIGABRT during `load`",
        names[3]: "RuntimeError: the script says: fail",
    }


def test_an_arm_that_answers_otherwise_is_not_timed(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each would be the fastest. Arms that are asked for other arithmetic may differ, and `noisy` is one."""
    short_races(monkeypatch, 1)
    lab.script(
        wrong={"latency_ms": 0.5, "behaviour": "wrong"}, nan={"latency_ms": 0.5, "behaviour": "nan"},
        noisy={"latency_ms": 2.0, "error": 0.05},
    )  # fmt: skip
    names = [f"{lab.model}@fake{rest}" for rest in ("", "(variant=wrong)", "(variant=nan)", "(variant=noisy)")]
    found = bench(lab, *names)
    reasons = {arm["name"]: arm.get("reason") for arm in found.arms}
    assert reasons[names[0]] is None
    assert str(reasons[names[1]]).startswith("verification failed: the outputs are off by ")
    assert str(reasons[names[2]]).startswith("verification failed: the outputs hold NaN or infinity")
    assert reasons[names[3]] is None
    assert [ratio["a"] for ratio in found.ratios] == [names[3]]


@pytest.mark.parametrize("liar", ["first", "second"])
def test_times_below_the_roofline_are_no_result(lab: Lab, monkeypatch: pytest.MonkeyPatch, liar: str) -> None:
    """64 FLOP in 0.01 ms, on a machine of 1 kFLOP/s."""
    short_races(monkeypatch, 1)
    monkeypatch.setattr("portolan.measure.roofline.ceilings", lambda cores: {"flops_fp32": 1e3})
    slow, magic = {"latency_ms": 20.0}, {"latency_ms": 0.01}
    lab.script(default=magic if liar == "first" else slow, other=slow if liar == "first" else magic)
    found = bench(lab, f"{lab.model}@fake", f"{lab.model}@fake(variant=other)")
    honest, rejected = found.arms
    assert honest["metrics"]["latency_p50"]["value"] > 19
    assert rejected["metrics"] == {}
    assert "is below the roofline floor of" in rejected["reason"]
    assert found.ratios == []


def test_the_command_line_says_which_arm_failed(lab: Lab) -> None:
    lab.script(a={"behaviour": "exit", "when": "compile"})
    done = lab.run("bench", f"{lab.model}@fake", f"{lab.model}@fake(variant=a)", "--budget", "1s")
    assert done.returncode == 0, done.stderr
    assert f"{lab.model}@fake(variant=a) failed: ended with code 3 during `compile`" in done.stdout


def test_a_bundle_against_its_model(done: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    short_races(monkeypatch, 1)
    lab = done
    found = bench(lab, f"{lab.model}@fake", str(lab.folder / "tiny.portolan"))
    medians = [arm["metrics"]["latency_p50"]["value"] for arm in found.arms]
    assert medians[0] > 3.9 > 2 > medians[1]


def test_what_bench_refuses(lab: Lab) -> None:
    other = matmul(lab.folder / "other.onnx", inner=8, nodes=("MatMul",))
    model = onnx.load(str(other))
    model.graph.input[0].name = "image"
    model.graph.node[0].input[0] = "image"
    onnx.save(model, str(other))
    with pytest.raises(UsageError, match="do not take the same inputs"):
        bench(lab, f"{lab.model}@fake", f"{other}@fake")
    with pytest.raises(UnknownName, match="no backend named `fakr`"):
        bench(lab, f"{lab.model}@fakr")
    with pytest.raises(UsageError, match="no variant of the fake backend named `fist`"):
        bench(lab, f"{lab.model}@fake(variant=fist)")
    with pytest.raises(UsageError, match="cannot be read"):
        bench(lab, f"{lab.model}@fake(variant=default")
    with pytest.raises(UsageError, match="nothing to measure"):
        bench(lab)
    portolan.pack(lab.model, backend="fake", out="b.portolan")
    with pytest.raises(UsageError, match="a bundle as the first arm is timed on its own golden inputs") as own:
        bench(lab, "b.portolan", data=labelled(lab.folder / "d.npz"))
    assert own.value.hint == "leave out --data, or name a model first"


def test_a_backend_that_is_not_ready(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PORTOLAN_FAKE")
    with pytest.raises(NoBackend, match="`fake` is not ready: `PORTOLAN_FAKE` names no script") as caught:
        bench(lab, f"{lab.model}@fake")
    assert caught.value.exit_code == 4


# --- compress


def test_compress_writes_a_model_and_leaves_the_original_alone(lab: Lab) -> None:
    lab.model = matmul(lab.folder / "wide.onnx", inner=512)
    before = lab.model.read_bytes()
    plan = portolan.compress(lab.model, passes=["quantize"], dry_run=True)
    assert plan.dry_run
    assert not (lab.folder / "wide-quantize.onnx").exists()
    found = portolan.compress(lab.model, passes=["quantize"], shapes={"x": (1, 512)})
    assert found.model == "wide-quantize.onnx"
    small = lab.folder / found.model
    assert small.stat().st_size < len(before)
    assert 0.9 < found.metrics["cosine"]["value"] <= 1
    assert lab.model.read_bytes() == before
    with pytest.raises(UsageError, match=r"`wide-quantize\.onnx` exists") as caught:
        portolan.compress(lab.model, passes=["quantize"])
    assert "--force" in str(caught.value.hint)
    portolan.compress(lab.model, passes=["quantize"], force=True)
    assert not [p.name for p in lab.folder.iterdir() if "partial" in p.name]


def test_compress_copies_external_data_and_nothing_else(lab: Lab) -> None:
    """Two results in one folder keep their own weights, and neighbours of the model stay where they are."""
    place = lab.folder / "models"
    place.mkdir()
    weights = np.random.default_rng(0).standard_normal((512, 64)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Identity", ["h"], ["y"])], "big",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 512])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 64])], [numpy_helper.from_array(weights, "w")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 9
    onnx.save(model, str(place / "big.onnx"), save_as_external_data=True, location="big.data", size_threshold=0)
    (place / "notes.txt").write_text("private")
    out = lab.folder / "out"
    for name in ("a", "b"):
        portolan.compress(place / "big.onnx", passes=["simplify"], out=out / f"{name}.onnx")
    assert "notes.txt" not in {p.name for p in out.iterdir()}
    for name in ("a", "b"):
        assert {p.name for p in out.iterdir() if p.name.startswith(name)} <= {f"{name}.onnx", f"{name}.onnx.data"}
        loaded = onnx.load(str(out / f"{name}.onnx"))
        assert np.array_equal(numpy_helper.to_array(loaded.graph.initializer[0]), weights)


def test_what_compress_refuses(lab: Lab) -> None:
    with pytest.raises(UnknownName, match="no pass named `quantise`") as unknown:
        portolan.compress(lab.model, passes=["quantise"])
    assert unknown.value.hint == "did you mean `quantize`?"
    with pytest.raises(UsageError, match="needs calibration data") as needs:
        portolan.compress(lab.model, passes=["quantize(mode=static)"])
    assert needs.value.hint == "give it with --data"
    with pytest.raises(UsageError, match="mode"):
        portolan.compress(lab.model, passes=["quantize(mode=strange)"])
    with pytest.raises(UsageError, match="no pass to apply") as none:
        portolan.compress(lab.model, passes=[])
    assert str(none.value.hint).startswith("--pass ")
    with pytest.raises(UsageError, match="the order of the passes is refused: "):
        portolan.compress(lab.model, passes=["quantize", "simplify"])
    relu = lab.folder / "relu.onnx"
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])], "r",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 8])],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 9
    onnx.save(model, str(relu))
    with pytest.raises(UsageError, match="is refused: ") as refused:
        portolan.compress(relu, passes=["quantize"])
    assert refused.value.exit_code == 2
    assert sorted(p.name for p in lab.folder.glob("*.onnx")) == ["relu.onnx", "tiny.onnx"]


# --- pack


def test_pack_from_a_study(done: Lab) -> None:
    lab = done
    study = portolan.open(lab.folder / "study")
    bad = next(t for t in study.trials if t.status == "failed")
    out = lab.folder / "best.portolan"
    plan = portolan.pack(lab.folder / "study", out=out, dry_run=True)
    assert plan.files == []
    assert not out.exists()
    found = portolan.pack(lab.folder / "study", out=out)
    assert found.verified
    with pytest.raises(UsageError, match="exists"):
        portolan.pack(lab.folder / "study", out=out)
    with portolan.open(out) as bundle:
        assert bundle.manifest.recipe.options["variant"] == "fast"
        x = np.ones((1, 8), np.float32)
        (y,) = bundle.run({"x": x}).values()
        weights = np.random.default_rng(0).standard_normal((8, 4)).astype(np.float32)
        np.testing.assert_allclose(y, x @ weights, rtol=1e-5)
    assert portolan.api.check(out).verified

    other = portolan.pack(lab.folder / "study", trial=study.baseline.id, out=lab.folder / "usual")
    assert other.verified
    with portolan.open(lab.folder / "usual") as bundle:
        assert bundle.manifest.recipe.options["variant"] == "default"
    with pytest.raises(UsageError, match=f"trial {bad.id} has no result: RuntimeError"):
        portolan.pack(lab.folder / "study", trial=bad.id, out=lab.folder / "no")
    with pytest.raises(UsageError, match="the study has no trial 99"):
        portolan.pack(lab.folder / "study", trial=99, out=lab.folder / "no")
    assert not (lab.folder / "no").exists()


def test_pack_of_what_has_changed_since(lab: Lab) -> None:
    data = labelled(lab.folder / "d.npz")
    lab.optimize(**QUICK, data=data, budget="1 trials")
    labelled(data, rows=65)
    with pytest.raises(UsageError, match=r"the data of `.*` has changed since the study"):
        portolan.pack(lab.folder / "study", out=lab.folder / "b")
    matmul(lab.model, seed=3)
    with pytest.raises(UsageError, match="is not the model that was optimized: it has changed since"):
        portolan.pack(lab.folder / "study", out=lab.folder / "b")


def test_pack_of_an_unmet_study_is_exit_code_3(lab: Lab) -> None:
    study = lab.optimize(goals=["latency_p50 < 0.1ms"], starts=1, budget="1 trials")
    with pytest.raises(GoalsNotMet) as caught:
        portolan.pack(lab.folder / "study", out=lab.folder / "b")
    assert caught.value.exit_code == 3
    done = lab.run("pack", "study", "-o", "b", "--json")
    assert done.returncode == 3
    assert json.loads(done.stdout)["error"]["code"] == 3
    assert portolan.pack(lab.folder / "study", trial=study.baseline.id, out=lab.folder / "b").verified


def test_pack_for_a_backend_that_is_not_ready(lab: Lab) -> None:
    with pytest.raises(NoBackend, match="`iree` is not ready: ") as caught:
        portolan.pack(lab.model, backend="iree", out=lab.folder / "b")
    assert caught.value.hint == "portolan env add iree"
    assert not (lab.folder / "b").exists()


def test_pack_from_a_model(lab: Lab) -> None:
    found = portolan.pack(lab.model, out=lab.folder / "b.portolan")
    assert found.verified
    with portolan.open(lab.folder / "b.portolan") as bundle:
        assert bundle.manifest.recipe.backend == "onnxruntime"


def test_a_bundle_whose_runtime_lies_does_not_verify(done: Lab) -> None:
    lab = done
    lab.script(fast={"latency_ms": 1.0, "behaviour": "wrong"})
    with pytest.raises(VerificationFailed) as caught:
        portolan.api.check(lab.folder / "tiny.portolan")
    assert caught.value.exit_code == 6


# --- the Python API


def test_results_in_a_notebook(done: Lab) -> None:
    lab = done
    study = portolan.open(lab.folder / "study")
    assert repr(study).startswith(
        f"Study('tiny', {len(study.trials)} trials, best Trial({study.best.id}, -, fake, ok, "
    )
    page = study._repr_html_()
    assert page.startswith("<table>")
    assert "★" in page
    assert study.to_json()["best"]["id"] == study.best.id
    assert json.loads(json.dumps(study.to_json()))["met"] is True
    with pytest.raises(UsageError, match="there is no study in"):
        portolan.open(lab.folder / "nowhere")


def test_a_study_that_is_not_finished(lab: Lab) -> None:
    from portolan.study.workspace import Workspace

    Workspace(lab.folder / "begun").close()
    with pytest.raises(UsageError, match="is not finished") as caught:
        portolan.open(lab.folder / "begun")
    assert "repeat" in str(caught.value.hint)


def test_odd_folder_names(lab: Lab) -> None:
    """A folder's name is never read as an address."""
    place = lab.folder / "a b?c#d%20e"
    lab.optimize(**QUICK, study=place, budget="1 trials")
    assert portolan.open(place).met
    assert Path(portolan.open(place).folder) == place
