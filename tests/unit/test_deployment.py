"""What `deploy` fills in, refuses and writes."""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import yaml
from hypothesis import given

from portolan.bundle import open_bundle
from portolan.core import storage
from portolan.core.measurement import Measurement
from portolan.deployment import Choices, Facts, deploy, platform
from portolan.deployment import _sizing as sizing
from portolan.deployment._facts import label
from portolan.deployment._yaml import Said, dump
from portolan.deployment.triton import quote
from portolan.errors import DiskFull, NoBackend, UnknownName, UsageError
from support.bundles import make_bundle
from support.deploying import (
    MEASURED,
    PROFILE,
    SERVING,
    check_kserve,
    check_triton,
    emit,
    measured_bundle,
    one_input,
    onnx_bundle,
)

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)


def facts(bundle: Path, **choices: Any) -> Facts:
    return Facts(open_bundle(bundle), Choices(**choices))


# --- YAML


@given(st.dictionaries(TEXT, VALUES, min_size=1, max_size=4))
def test_yaml_reads_back_as_what_was_written(data: dict[str, Any]) -> None:
    flat = json.loads(json.dumps(data))  # a list in a list is the one thing that is not written
    if not _nested_lists(flat):
        assert yaml.safe_load(dump(flat)) == flat


def _nested_lists(node: Any) -> bool:
    if isinstance(node, list):
        return any(isinstance(item, list) or _nested_lists(item) for item in node)
    return isinstance(node, dict) and any(map(_nested_lists, node.values()))


@given(TEXT)
def test_a_comment_cannot_become_anything_else(text: str) -> None:
    assert yaml.safe_load(dump({"a": Said(1, text), "b": [{"c": Said(2, text)}]}, [text])) == {"a": 1, "b": [{"c": 2}]}


@pytest.mark.parametrize(
    "word", ["yes", "NO", "null", "~", "1", "1e3", "0x1f", "12:30", "", " a", "a: b", "- a", "#a", "a #b"]
)
def test_a_string_stays_one(word: str) -> None:
    assert yaml.safe_load(dump({"a": word})) == {"a": word}


def test_plain_words_are_not_quoted() -> None:
    assert dump({"kind": "InferenceService", "uri": "s3://a/b", "flag": "--host"}) == (
        "kind: InferenceService\nuri: s3://a/b\nflag: --host\n"
    )


# --- names and choices


@pytest.mark.parametrize(
    ("name", "made"),
    [("digits", "digits"), ("ResNet 50 (int8)", "resnet-50-int8"), ("50 ways", "m-50-ways"), ("a" * 80, "a" * 53),
     ("x" * 52 + "-y", "x" * 52)],
)  # fmt: skip
def test_a_service_has_a_name_that_every_platform_takes(name: str, made: str) -> None:
    assert label(name) == made


@pytest.mark.parametrize(
    ("choice", "told"),
    [
        ({"service": "Digits"}, "service's name"), ({"service": "../x"}, "service's name"),
        ({"service": "a\nb"}, "service's name"),
        ({"image": "a b"}, "image"), ({"image": '"; rm -rf /'}, "image"), ({"image": "/x"}, "image"),
        ({"storage": "models/digits"}, "storage URI"), ({"storage": "s3://a b"}, "storage URI"),
        ({"replicas": (0, 0)}, "range of replicas"), ({"replicas": (3, 1)}, "range of replicas"),
        ({"replicas": (1, 10**6)}, "range of replicas"),
    ],
)  # fmt: skip
def test_a_choice_that_does_not_fit_is_refused(choice: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told) as caught:
        Choices(**choice)
    assert caught.value.hint


def test_a_bundle_without_a_letter_needs_a_name(tmp_path: Path) -> None:
    bundle = onnx_bundle(tmp_path, name="模型")
    with pytest.raises(UsageError, match="模型") as caught:
        emit(bundle, "kserve", tmp_path / "out")
    assert "--service" in str(caught.value.hint)
    assert check_kserve((emit(bundle, "kserve", tmp_path / "out", service="zh") / "inferenceservice.yaml").read_text())


# --- numbers


def test_what_was_measured_is_filled_in(tmp_path: Path) -> None:
    found = facts(measured_bundle(tmp_path))
    assert found.replicas == (1, 3)
    assert found.max_batch == 4
    assert found.threads == 1
    assert found.python == "3.11"
    assert sizing.capacity(found)[0] == pytest.approx(4 / 0.006)
    # 310 MiB is the bad end of what was measured.
    assert sizing.memory(found).value == 310 * 2**20 + sizing.SERVER_BYTES
    assert sizing.startup(found).value == 36
    assert sizing.qps(found).value == 533
    assert sizing.in_flight(found).value == 8
    assert sizing.queue(found).value == 34 + 4


def test_a_short_deadline_lowers_what_a_replica_is_given(tmp_path: Path) -> None:
    found = facts(measured_bundle(tmp_path, serving={**SERVING, "deadline": 0.008}))
    assert sizing.in_flight(found).value == 4
    assert "deadline" in sizing.in_flight(found).why


def test_a_long_deadline_lengthens_the_grace(tmp_path: Path) -> None:
    assert sizing.grace(facts(measured_bundle(tmp_path, serving={"deadline": 60.0}))).value == 135


def test_what_was_not_measured_is_not_made_up(tmp_path: Path) -> None:
    found = facts(onnx_bundle(tmp_path))
    assert sizing.memory(found).value is None
    assert sizing.memory_limit(found) is None
    assert sizing.qps(found).value is None
    assert sizing.capacity(found)[0] is None
    for sized in (sizing.memory(found), sizing.qps(found), sizing.startup(found)):
        assert "not measured" in sized.why
    assert found.to_json()["memory"] is None
    assert found.replicas == (1, 1)


def test_an_estimate_is_no_measurement(tmp_path: Path) -> None:
    guess = Measurement(2.0**28, "B", None, None, None, "estimated")
    assert sizing.memory(facts(onnx_bundle(tmp_path, claims={"memory": guess}))).value is None


def test_without_a_thread_option_a_replica_has_all_cores_of_its_machine(tmp_path: Path) -> None:
    found = facts(onnx_bundle(tmp_path, options={}))
    assert found.threads == 2
    assert "all cores" in sizing.cpus(found).why


def test_measured_throughput_stands_in_for_a_profile(tmp_path: Path) -> None:
    claims = {"throughput": Measurement.of("throughput", 100.0, 90.0, 110.0, 9)}
    assert sizing.qps(facts(onnx_bundle(tmp_path, claims=claims))).value == 72


# --- Triton


def test_triton_gets_the_models_files_and_nothing_else(tmp_path: Path) -> None:
    folder = emit(onnx_bundle(tmp_path), "triton", tmp_path / "out")
    assert sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()) == [
        "digits/1/model.onnx", "digits/config.pbtxt",
    ]  # fmt: skip
    assert (folder / "digits/1/model.onnx").read_bytes() == b"an ONNX graph"


def test_triton_gets_packed_files_unpacked(tmp_path: Path) -> None:
    plain, packed = tmp_path / "plain", tmp_path / "built"
    plain.mkdir()
    packed.mkdir()
    (plain / "model.onnx").write_bytes(b"\0" * 5000)
    (plain / "weights.bin").write_bytes(b"\1" * 9000)
    storage.pack(sorted(plain.iterdir()), packed)
    bundle = make_bundle(tmp_path, **_packed_parts(packed))
    folder = emit(bundle, "triton", tmp_path / "out") / "product" / "1"
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == {p.name: p.read_bytes() for p in plain.iterdir()}


def _packed_parts(packed: Path) -> dict[str, Any]:
    from portolan.core.recipe import Recipe

    return {"recipe": Recipe((), "onnxruntime", {}), "backend_versions": {"onnxruntime": "1.31.1"}, "compiled": packed}


@pytest.mark.parametrize(("options", "told"), [({"threads": 3}, "3"), ({}, "2")])
def test_triton_runs_with_the_recipes_threads(options: dict[str, Any], told: str, tmp_path: Path) -> None:
    config = check_triton(_config(onnx_bundle(tmp_path, options=options), tmp_path))
    assert config.parameters["intra_op_thread_count"].string_value == told


@pytest.mark.parametrize(("level", "number"), [("all", 0), ("basic", -1), ("extended", 1), ("disabled", 2)])
def test_triton_optimizes_as_much_as_the_recipe(level: str, number: int, tmp_path: Path) -> None:
    config = check_triton(_config(onnx_bundle(tmp_path, options={"graph_optimization": level}), tmp_path))
    assert config.optimization.graph.level == number


def test_triton_runs_openvino(tmp_path: Path) -> None:
    options = {"precision": "bf16", "hint": "throughput", "threads": 2}
    bundle = onnx_bundle(tmp_path, backend="openvino", options=options)
    config = check_triton(_config(bundle, tmp_path))
    assert (config.backend, config.default_model_filename) == ("openvino", "model.onnx")
    assert {k: v.string_value for k, v in config.parameters.items()} == {
        "INFERENCE_NUM_THREADS": "2", "PERFORMANCE_HINT": "THROUGHPUT", "HINT_BF16": "YES",
    }  # fmt: skip


def test_what_triton_cannot_promise_is_noted(tmp_path: Path) -> None:
    bundle = measured_bundle(tmp_path, backend="openvino", name="ResNet 50")
    notes = platform("triton").emit(facts(bundle)).notes
    assert [n.split("`")[1] for n in notes[:2]] == ["resnet-50", "label"]
    assert "bf16" in notes[2]


def test_triton_joins_nothing_whose_outputs_have_no_free_axis(tmp_path: Path) -> None:
    parts = one_input("float32", (8, 4))
    config = check_triton(_config(measured_bundle(tmp_path, **parts), tmp_path))
    assert config.max_batch_size == 0
    assert list(config.input[0].dims) == [8, 4]
    assert not config.HasField("dynamic_batching")


def test_the_recipes_policy_in_tritons_words(tmp_path: Path) -> None:
    batching = check_triton(_config(measured_bundle(tmp_path), tmp_path)).dynamic_batching
    policy = batching.default_queue_policy
    assert batching.max_queue_delay_microseconds == 0
    assert (policy.timeout_action, policy.default_timeout_microseconds) == (0, 50_000)  # REJECT
    assert policy.allow_timeout_override
    assert policy.max_queue_size == 3 * 38


@pytest.mark.parametrize("dtype", ["bool", "string", "float16", "float64", "int64", "uint8"])
def test_triton_knows_the_type(dtype: str, tmp_path: Path) -> None:
    config = check_triton(_config(onnx_bundle(tmp_path, **one_input(dtype)), tmp_path))
    assert config.input[0].data_type == config.model_warmup[0].inputs["x"].data_type != 0


def test_triton_refuses_a_type_it_has_no_word_for(tmp_path: Path) -> None:
    with pytest.raises(NoBackend, match="complex64"):
        emit(onnx_bundle(tmp_path, **one_input("complex64")), "triton", tmp_path / "out")


@pytest.mark.parametrize("backend", ["torch", "reference", "tiny"])
def test_triton_refuses_what_no_backend_of_its_runs(backend: str, tmp_path: Path) -> None:
    bundle = onnx_bundle(tmp_path, backend=backend, options={})
    with pytest.raises(NoBackend, match=backend) as caught:
        emit(bundle, "triton", tmp_path / "out")
    assert "--to docker" in str(caught.value.hint)
    assert not (tmp_path / "out").exists()


def test_what_runs_on_a_gpu_is_not_taken_to_a_processor(tmp_path: Path) -> None:
    bundle = onnx_bundle(tmp_path, options={"device": "cuda"})
    with pytest.raises(NoBackend, match="the bundle runs on device `cuda`") as caught:
        emit(bundle, "docker", tmp_path / "out")
    assert "portolan serve" in str(caught.value.hint)
    assert not (tmp_path / "out").exists()


@given(st.text(max_size=30))
def test_a_quoted_text_is_read_back(text: str) -> None:
    from hypothesis import assume

    assume(not any(0xD800 <= ord(c) <= 0xDFFF for c in text))
    assert check_triton(f"name: {quote(text)}").name == text


def _config(bundle: Path, tmp_path: Path) -> str:
    folder = emit(bundle, "triton", tmp_path / "out")
    return next(folder.glob("*/config.pbtxt")).read_text(encoding="utf-8")


# --- KServe


@pytest.mark.parametrize(
    ("choice", "told"),
    [({"replicas": (0, 2)}, "scales to zero"), ({"replicas": (1, 2), "scale_on": "qps"}, "not measured")],
)
def test_kserve_refuses_what_it_cannot_scale(choice: dict[str, Any], told: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=told) as caught:
        emit(onnx_bundle(tmp_path), "kserve", tmp_path / "out", **choice)
    assert "--scale-on concurrency" in str(caught.value.hint)


def test_kserve_with_one_size_scales_on_nothing(tmp_path: Path) -> None:
    folder = emit(onnx_bundle(tmp_path), "kserve", tmp_path / "out")
    predictor = check_kserve((folder / "inferenceservice.yaml").read_text())["spec"]["predictor"]
    assert "scaleMetric" not in predictor
    assert (predictor["minReplicas"], predictor["maxReplicas"]) == (1, 1)


def test_kserve_scales_on_calls_in_flight(tmp_path: Path) -> None:
    folder = emit(measured_bundle(tmp_path), "kserve", tmp_path / "out", scale_on="concurrency")
    predictor = check_kserve((folder / "inferenceservice.yaml").read_text())["spec"]["predictor"]
    assert (predictor["scaleMetric"], predictor["scaleTarget"]) == ("concurrency", 8)


def test_code_runs_only_where_the_files_say_so(tmp_path: Path) -> None:
    (tmp_path / "compiled").mkdir()
    (tmp_path / "compiled" / "kernel.so").write_bytes(b"\x7fELF")
    folder = emit(onnx_bundle(tmp_path), "docker", tmp_path / "out")
    assert '"--native"' in (folder / "Dockerfile").read_text()
    assert "avx512f" in (folder / "Dockerfile").read_text()


# --- Docker


def test_docker_pins_what_was_measured(tmp_path: Path) -> None:
    versions = {"torch": "2.13.0+cpu", "onnxscript": "0.5.1"}
    folder = emit(
        onnx_bundle(tmp_path, backend="torch", options={}, backend_versions=versions), "docker", tmp_path / "out"
    )
    lines = [line for line in (folder / "requirements.txt").read_text().splitlines() if not line.startswith("#")]
    assert lines[0] == "--extra-index-url https://download.pytorch.org/whl/cpu"
    assert lines[2:] == ["numpy==2.4.6", "onnxscript==0.5.1", "torch==2.13.0+cpu"]


def test_the_image_holds_the_very_bundle(tmp_path: Path) -> None:
    bundle = onnx_bundle(tmp_path)
    folder = emit(bundle, "docker", tmp_path / "out")
    with open_bundle(bundle) as one, open_bundle(folder / "bundle") as other:
        assert one.sha256 == other.sha256


def test_another_user_can_read_the_files(tmp_path: Path) -> None:
    old = os.umask(0o077)
    try:
        folder = emit(onnx_bundle(tmp_path), "docker", tmp_path / "out")
    finally:
        os.umask(old)
    modes = {stat.S_IMODE(p.stat().st_mode) for p in folder.rglob("*") if p.is_file()}
    assert modes == {0o644}


# --- Ray Serve


def _ray(bundle: Path, out: Path, **choices: Any) -> Any:
    return yaml.safe_load((emit(bundle, "ray-serve", out, **choices) / "config.yaml").read_text())["applications"][0]


def test_ray_gets_what_was_measured(tmp_path: Path) -> None:
    application = _ray(measured_bundle(tmp_path), tmp_path / "out")
    assert application["args"] == {"bundle": "bundle", "max_batch": 4}
    (deployment,) = application["deployments"]
    assert deployment["autoscaling_config"] == {"min_replicas": 1, "max_replicas": 3, "target_ongoing_requests": 8}
    assert deployment["max_ongoing_requests"] == deployment["max_queued_requests"] == 38
    assert deployment["ray_actor_options"] == {"num_cpus": 1, "memory": 310 * 2**20 + sizing.SERVER_BYTES}


def test_ray_scales_nothing_that_is_to_stay(tmp_path: Path) -> None:
    application = _ray(onnx_bundle(tmp_path), tmp_path / "out", replicas=(2, 2))
    (deployment,) = application["deployments"]
    assert deployment["num_replicas"] == 2
    assert "autoscaling_config" not in deployment
    assert "memory" not in deployment["ray_actor_options"]
    assert application["args"] == {"bundle": "bundle"}


def test_rays_module_is_the_one_that_is_tested(tmp_path: Path) -> None:
    from portolan import deployment

    folder = emit(onnx_bundle(tmp_path), "ray-serve", tmp_path / "out")
    source = Path(str(deployment.__file__)).with_name("_ray_app.py")
    assert (folder / "portolan_app.py").read_bytes() == source.read_bytes()


# --- the command


def _command(bundle: Path, out: Path) -> list[str]:
    lines = (emit(bundle, "docker", out) / "Dockerfile").read_text().splitlines()
    return list(json.loads(lines[-1].removeprefix("CMD ")))


def test_the_server_is_told_what_its_bundle_does_not_say(tmp_path: Path) -> None:
    said = _command(measured_bundle(tmp_path / "a"), tmp_path / "a" / "out")
    assert "--max-batch" not in said  # it reads the recipe
    assert said[said.index("--grace") + 1] == "25s"
    profiled = _command(measured_bundle(tmp_path / "b", serving={}), tmp_path / "b" / "out")
    assert "--max-batch" not in profiled  # it reads the profile
    assert "--max-batch" not in _command(onnx_bundle(tmp_path / "c"), tmp_path / "c" / "out")


# --- writing


def test_nothing_is_overwritten_unasked(tmp_path: Path) -> None:
    bundle, out = onnx_bundle(tmp_path), tmp_path / "out"
    emit(bundle, "kserve", out)
    with pytest.raises(UsageError, match="exists"):
        emit(bundle, "kserve", out)
    (out / "kserve" / "servingruntime.yaml").write_text("changed")
    deploy(bundle, ["kserve"], Choices(), out=out, force=True, dry_run=False)
    assert check_kserve((out / "kserve" / "servingruntime.yaml").read_text())


def test_force_mixes_nothing_with_other_files(tmp_path: Path) -> None:
    bundle, out = onnx_bundle(tmp_path), tmp_path / "out"
    emit(bundle, "triton", out)
    (out / "triton" / "digits" / "2").mkdir()
    (out / "triton" / "digits" / "2" / "model.onnx").write_bytes(b"mine")
    with pytest.raises(UsageError, match=r"digits/2/model\.onnx"):
        deploy(bundle, ["triton"], Choices(), out=out, force=True, dry_run=False)


def test_a_place_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = make_bundle(tmp_path)
    (tmp_path / "taken" / "docker").parent.mkdir()
    (tmp_path / "taken" / "docker").write_text("in the way")
    with pytest.raises(UsageError, match="docker` is there and is no folder"):
        deploy(bundle, ["docker"], Choices(), out=tmp_path / "taken", force=False, dry_run=False)
    with pytest.raises(UsageError, match=r"`.*below` cannot be written: Not a directory"):
        deploy(bundle, ["docker"], Choices(), out=tmp_path / "taken" / "docker" / "below", force=False, dry_run=False)

    def full(self: Path, *args: Any, **options: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for name in ("write_text", "rename"):  # as files are made, and as they get their place
        with monkeypatch.context() as patch:
            patch.setattr(Path, name, full)
            with pytest.raises(DiskFull, match=r"the disk is full: `.*docker.*` could not be written"):
                deploy(bundle, ["docker"], Choices(), out=tmp_path / "full", force=False, dry_run=False)
        assert not (tmp_path / "full").exists()


def test_a_dry_run_writes_nothing_and_lists_all(tmp_path: Path) -> None:
    bundle, out = onnx_bundle(tmp_path), tmp_path / "out"
    told = deploy(bundle, ["docker", "triton"], Choices(), out=out, force=False, dry_run=True)
    assert not out.exists()
    done = deploy(bundle, ["docker", "triton"], Choices(), out=out, force=False, dry_run=False)
    assert told == done
    for entry in done["platforms"]:
        folder = Path(entry["folder"])
        assert entry["files"] == sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def test_one_refusal_leaves_nothing_of_the_others(tmp_path: Path) -> None:
    bundle = onnx_bundle(tmp_path, backend="torch", options={})
    with pytest.raises(NoBackend):
        deploy(bundle, ["docker", "triton"], Choices(), out=tmp_path / "out", force=False, dry_run=False)
    assert not (tmp_path / "out").exists()


def test_the_same_bundle_gives_the_same_files(tmp_path: Path) -> None:
    bundle = measured_bundle(tmp_path)
    one, two = (emit(bundle, "docker", tmp_path / n) for n in ("a", "b"))
    for path in (p for p in one.rglob("*") if p.is_file()):
        assert path.read_bytes() == (two / path.relative_to(one)).read_bytes()


def test_a_mistyped_platform_is_answered_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UnknownName) as caught:
        deploy(tmp_path, ["kserv"], Choices(), out=None, force=False, dry_run=True)
    assert caught.value.hint == "did you mean `kserve`?"


def test_no_platform_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no platform"):
        deploy(tmp_path, [], Choices(), out=None, force=False, dry_run=True)


def test_the_facts_are_told(tmp_path: Path) -> None:
    told = deploy(measured_bundle(tmp_path), ["kserve"], Choices(), out=tmp_path / "out", force=False, dry_run=True)
    assert told["facts"] == {
        "replicas": [1, 3], "max_batch": 4, "deadline": 0.05, "cpus": 1, "profiled": True,
        "latency": MEASURED["latency_p95"].to_json(), "memory": MEASURED["memory"].to_json(),
        "cold_start": MEASURED["cold_start"].to_json(),
    }  # fmt: skip
    assert PROFILE.largest == 8
