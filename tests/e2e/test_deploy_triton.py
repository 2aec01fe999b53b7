"""What `deploy --to triton` writes, read by a real Triton; and our own server beside it, asked the same."""

from __future__ import annotations

import json
import re
import shutil
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import portolan
from support.deploying import emit, measured_bundle, onnx_bundle
from support.serving import Server, serving
from support.triton import Triton, running, said, served_by_python

BUNDLES = {"measured": measured_bundle, "bare": onnx_bundle}


@pytest.mark.parametrize("kind", BUNDLES)
def test_a_real_triton_takes_the_configuration_and_warms_the_model_up(kind: str, tmp_path: Path) -> None:
    repository = emit(BUNDLES[kind](tmp_path / "bundle"), "triton", tmp_path / "out")
    assert "unable to find backend library for backend 'onnxruntime'" in said(repository, tmp_path)
    served_by_python(repository)
    with running(repository, tmp_path) as triton:
        config = get(triton.address, "v2/models/digits/config")
        counted = get(triton.address, "v2/models/digits/stats")["model_stats"][0]
    if kind == "measured":
        policy = config["dynamic_batching"]["default_queue_policy"]
        assert config["max_batch_size"] == 4
        assert (policy["timeout_action"], policy["default_timeout_microseconds"]) == ("REJECT", 50_000)
        assert policy["max_queue_size"] > 0
        assert [item["batch_size"] for item in config["model_warmup"]] == [1, 2, 4]
    else:
        assert (config["max_batch_size"], config.get("dynamic_batching")) == (0, None)
        assert len(config["model_warmup"]) == 1
    # Triton counts what it warms up with: every size on every instance.
    assert counted["inference_stats"]["success"]["count"] == (3 * (1 + 2 + 4) if kind == "measured" else 1)


@pytest.mark.parametrize(
    ("find", "put", "why"),
    [
        ("dynamic_batching {", "dynamic_batching {\n  wrong: 3", 'has no field named "wrong"'),
        ("TYPE_FP32 dims", "TYPE_F32 dims", "Unknown enumeration value"),
        ("timeout_action: REJECT", "timeout_action: REFUSE", "Unknown enumeration value"),
        ("dims: [ 1 ] reshape", "dims: [ 2 ] reshape", "reshape"),
    ],
)
def test_a_real_triton_refuses_what_is_wrong(find: str, put: str, why: str, tmp_path: Path) -> None:
    repository = emit(measured_bundle(tmp_path / "bundle"), "triton", tmp_path / "out")
    served_by_python(repository)
    config = repository / "digits" / "config.pbtxt"
    assert find in config.read_text()
    config.write_text(config.read_text().replace(find, put))
    assert why in said(repository, tmp_path)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Triton, Server]]:
    folder = tmp_path_factory.mktemp("both")
    bundle = folder / "digits.portolan"
    portolan.pack("demo:digits", out=bundle)
    repository = emit(bundle, "triton", folder / "out")
    served_by_python(repository)
    for file in repository.rglob("model.onnx"):
        file.unlink()
    with running(repository, folder) as triton, serving(bundle) as server:
        yield triton, server
    shutil.rmtree(folder)


def test_health_metadata_and_index_are_said_alike(both: tuple[Triton, Server]) -> None:
    theirs, ours = ((lambda path, at=one: get(at, path)) for one in addresses(both))
    for path in ("v2/health/live", "v2/health/ready", "v2/models/digits/ready"):
        assert status(both[0].address, path) == status(both[1].address, path) == 200
    one, other = theirs("v2/models/digits"), ours("v2/models/digits")
    assert one["name"] == other["name"]
    assert one["versions"] == other["versions"]
    for side in ("inputs", "outputs"):
        assert one[side] == other[side]
    assert set(theirs("v2")) == set(ours("v2"))
    (entry,), (mine,) = (post(address, "v2/repository/index") for address in addresses(both))
    assert {**entry, "reason": ""} == {"reason": "", **mine}


def test_statistics_have_every_name_of_a_real_triton(both: tuple[Triton, Server]) -> None:
    one, other = (get(address, "v2/models/digits/stats")["model_stats"][0] for address in addresses(both))
    missing = names(one) - names(other)
    assert missing <= {"response_stats", "memory_usage"}, missing


def test_metrics_are_named_as_a_real_triton_names_them(both: tuple[Triton, Server]) -> None:
    theirs = metrics(both[0].metrics)
    ours = {name for name in metrics(f"{both[1].url}/metrics") if name.startswith("nv_")}
    assert ours
    assert ours - theirs <= {"nv_inference_request_failure"}, ours - theirs


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("v2/models/none/infer", {"inputs": []}),
        ("v2/models/digits/versions/9/infer", {"inputs": []}),
        (
            "v2/models/digits/infer",
            {"inputs": [{"name": "image", "shape": [1], "datatype": "F32", "data": [0]}]},
        ),
        ("v2/models/digits/infer", {"inputs": "no list"}),
        ("v2/models/digits/infer", {}),
    ],
)
def test_what_is_wrong_is_the_clients_fault_on_both(both: tuple[Triton, Server], path: str, body: Any) -> None:
    codes = []
    for address in addresses(both):
        request = urllib.request.Request(f"http://{address}/{path}", json.dumps(body).encode())
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request, timeout=30)
        with refused.value as answer:
            codes.append(answer.code)
            assert set(json.loads(answer.read())) == {"error"}
    theirs, ours = codes
    assert 400 <= ours < 500
    assert theirs in (ours, 500), codes


def addresses(both: tuple[Triton, Server]) -> tuple[str, str]:
    return both[0].address, both[1].address


def get(address: str, path: str) -> Any:
    with urllib.request.urlopen(f"http://{address}/{path}", timeout=30) as answer:
        return json.loads(answer.read())


def post(address: str, path: str) -> Any:
    with urllib.request.urlopen(urllib.request.Request(f"http://{address}/{path}", b"{}"), timeout=30) as answer:
        return json.loads(answer.read())


def status(address: str, path: str) -> int:
    with urllib.request.urlopen(f"http://{address}/{path}", timeout=30) as answer:
        return int(answer.status)


def names(data: Any, before: str = "") -> set[str]:
    """Every name in plain data, with those above it."""
    if isinstance(data, dict):
        inner = (names(value, f"{before}{key}.") for key, value in data.items())
        return {f"{before}{key}" for key in data}.union(*inner)
    return set()


def metrics(url: str) -> set[str]:
    with urllib.request.urlopen(url, timeout=30) as answer:
        return set(re.findall(r"^# TYPE (\w+)", answer.read().decode(), re.M))
