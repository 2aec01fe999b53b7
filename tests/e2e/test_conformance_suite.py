"""ONNX's node tests: what passed with these versions still passes, on every backend that is here."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from portolan.core import conformance as kept
from portolan.core import environments
from portolan.core.interpreters import variable
from portolan.testing.conformance import Case, by_onnx_runtime, cases, through
from portolan.testing.models import this_machine
from portolan.worker.environments import backends
from support.envs import made_environment

FOLDER = Path(__file__).parents[1] / "conformance"
MEASURED = sorted(kept.table())
#: Every so many cases make the sample of the default run.
SAMPLED = 40


@pytest.fixture(scope="module")
def passing() -> list[Case]:
    """The cases that ONNX Runtime passes by itself; another version passes others, on which nothing was measured."""
    here = backends(this_machine(), ["onnxruntime"])["onnxruntime"].versions()
    if not kept.table()["onnxruntime"].holds(here):
        pytest.skip(f"measured with {kept.table()['onnxruntime'].versions}, here is {here}")
    return [case for case in cases() if by_onnx_runtime(case).status == "pass"]


def exceptions(name: str) -> set[str]:
    data = json.loads((FOLDER / f"{name}.json").read_text())
    return {case for names in data["exceptions"].values() for case in names}


def fallen(name: str, chosen: list[Case], patch: pytest.MonkeyPatch) -> dict[str, str]:
    """The cases that pass no more, and why."""
    if environments.find(name) is not None and variable(name) not in os.environ:
        made_environment(name, patch)
    backend = backends(this_machine(), [name])[name]
    support = backend.probe(this_machine())
    if not support.ready:
        pytest.skip(f"{name}: {support.reason}")
    if not kept.table()[name].holds(backend.versions()):
        pytest.skip(f"{name}: measured with {kept.table()[name].versions}, here is {backend.versions()}")
    known = exceptions(name)
    expected = [case for case in chosen if case.name not in known]
    return {n: outcome.reason for n, outcome in through(name, expected).items() if outcome.status != "pass"}


@pytest.mark.parametrize("name", MEASURED)
def test_a_sample_still_passes(name: str, passing: list[Case], monkeypatch: pytest.MonkeyPatch) -> None:
    assert fallen(name, passing[::SAMPLED], monkeypatch) == {}


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", MEASURED)
def test_all_that_passed_still_pass(name: str, passing: list[Case], monkeypatch: pytest.MonkeyPatch) -> None:
    assert fallen(name, passing, monkeypatch) == {}


@pytest.mark.parametrize(("name", "least"), [("onnxruntime", 1), ("openvino", 0.9), ("torch", 0.9), ("xla", 0.9)])
def test_enough_passes(name: str, least: float) -> None:
    total = kept.table()[name].total
    assert total.passed >= least * total.cases


@pytest.mark.parametrize("name", MEASURED)
def test_every_exception_has_its_cause(name: str) -> None:
    """As many as the counts say."""
    data = json.loads((FOLDER / f"{name}.json").read_text())
    total = kept.table()[name].total
    assert sum(map(len, data["exceptions"].values())) == total.failed + total.unsupported
    assert all(cause.partition(": ")[2] for cause in data["exceptions"])
