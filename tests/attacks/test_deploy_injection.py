"""A bundle comes from a stranger: nothing in it may become a line, a key, a flag or a path of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from portolan.deployment import Choices, deploy
from portolan.errors import UsageError
from support.deploying import (
    check_dockerfile,
    check_kserve,
    check_triton,
    hadolint,
    measured_bundle,
    one_input,
    onnx_bundle,
)

NAMES = [
    '"; rm -rf / #',
    "../../etc/cron.d/x",
    "a: b, c: d",
    "x' y\" z",
    "{{ .Values.x }}",
    "$(reboot) `reboot` ${HOME}",
    "- !!python/object/apply:os.system ['reboot']",
    "# comment",
    "name\\",
]
UNPRINTABLE = ["a\nUSER root", "a: b\u2028c: d", "# comment\u0085USER root", "\u202egnp.exe", "a\0b", "a\ud800"]
PLATFORMS = ["docker", "kserve", "ray-serve", "triton"]


def _files(out: Path) -> dict[str, str]:
    """The texts that were written, by path."""
    names = ("config.pbtxt", "Dockerfile", ".dockerignore", "requirements.txt")
    texts = [p for p in out.rglob("*") if p.is_file() and (p.name in names or p.suffix == ".yaml")]
    return {p.relative_to(out).as_posix(): p.read_text(encoding="utf-8") for p in texts}


@pytest.mark.parametrize("name", UNPRINTABLE)
def test_no_bundle_has_a_name_that_cannot_be_printed(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        onnx_bundle(tmp_path, name=name)


@pytest.mark.parametrize("name", NAMES)
def test_a_name_stays_a_name(name: str, tmp_path: Path) -> None:
    evil, good = tmp_path / "evil", tmp_path / "good"
    for folder, called in ((evil, name), (good, "digits")):
        bundle = measured_bundle(folder, name=called)
        deploy(bundle, PLATFORMS, Choices(service="digits"), out=folder / "out", force=False, dry_run=False)
    assert sorted(p for p in tmp_path.iterdir()) == [evil, good]
    ours, theirs = _files(evil / "out"), _files(good / "out")
    assert ours.keys() == theirs.keys()
    for path, text in ours.items():
        # The name stands in comments alone, so without them the files are the same but for the bundle's hash.
        assert _code(text) == _code(theirs[path])


def _code(text: str) -> list[str]:
    import re

    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    return [re.sub(r"\b[0-9a-f]{12}\b", "HASH", line) for line in lines]


@pytest.mark.parametrize("name", NAMES)
def test_the_default_names_are_as_tame(name: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    deploy(onnx_bundle(tmp_path, name=name), PLATFORMS, Choices(), out=out, force=False, dry_run=False)
    assert {p.name for p in out.iterdir()} == set(PLATFORMS)
    assert {p.name for p in tmp_path.iterdir()} == {"out", "product", "compiled", "built"}
    for path, text in _files(out).items():
        if path == "ray-serve/config.yaml":
            assert yaml.safe_load(text)["applications"][0]["name"].replace("-", "").isalnum()
        elif path.endswith(".yaml"):
            document = check_kserve(text)
            assert document["metadata"]["name"].replace("-", "").isalnum()
        elif path.endswith(".pbtxt"):
            assert check_triton(text).backend == "onnxruntime"
    if hadolint():
        assert check_dockerfile(out / "docker" / "Dockerfile") == []


@pytest.mark.parametrize("name", ['x" data_type: TYPE_BOOL } #', "x\\", "a: b", "../x", "'\"", "名前"])
def test_a_tensors_name_stays_one(name: str, tmp_path: Path) -> None:
    bundle = onnx_bundle(tmp_path, **one_input("float32", name=name))
    out = tmp_path / "out"
    deploy(bundle, ["triton"], Choices(), out=out, force=False, dry_run=False)
    config = check_triton((out / "triton/digits/config.pbtxt").read_text(encoding="utf-8"))
    assert [i.name for i in config.input] == [name]
    assert list(config.model_warmup[0].inputs) == [name]


@pytest.mark.parametrize(
    "uri", ["s3://a\nkind: Secret", "s3://a b", "file:///etc/passwd' ", "s3://${x}", "-oProxyCommand=x://y", "S3://A"]
)
def test_a_uri_is_one_word_or_refused(uri: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        deploy(
            onnx_bundle(tmp_path), ["kserve"], Choices(storage=uri), out=tmp_path / "out", force=False, dry_run=False
        )


@pytest.mark.parametrize("version", ["1.0; reboot", "1.0\n--index-url http://evil", "1.0 --hash=x", "$(x)"])
def test_a_version_is_a_version_before_pip_reads_it(version: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError):  # no bundle can be written with it, and none read
        onnx_bundle(tmp_path, backend_versions={"onnxruntime": version})


@pytest.mark.parametrize("numpy", ["2.0\n--index-url http://evil", "2.0 # x", "é", 2, None, ["2"]])
def test_what_the_environment_says_of_numpy_is_checked(numpy: object, tmp_path: Path) -> None:
    environment = {"versions": {"python": "3.11.7\nRUN reboot", "numpy": numpy}}
    bundle, out = onnx_bundle(tmp_path, environment=environment), tmp_path / "out"
    deploy(bundle, ["docker"], Choices(), out=out, force=False, dry_run=False)
    lines = (out / "docker" / "requirements.txt").read_text().splitlines()
    assert not any("numpy" in line for line in lines)
    froms = [
        line for line in (out / "docker" / "Dockerfile").read_text().splitlines() if line.startswith(("FROM", "RUN"))
    ]
    assert froms[0] == "FROM python:3.11-slim"
    assert len(froms) == 3


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    bundle, out = onnx_bundle(tmp_path), tmp_path / "out"
    (out / "kserve").mkdir(parents=True)
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (out / "kserve" / "servingruntime.yaml").symlink_to(victim)
    deploy(bundle, ["kserve"], Choices(), out=out, force=True, dry_run=False)
    assert victim.read_text() == "mine"
    assert yaml.safe_load((out / "kserve" / "servingruntime.yaml").read_text())["kind"] == "ServingRuntime"
