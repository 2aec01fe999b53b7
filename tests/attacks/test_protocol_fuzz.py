"""Requests that schemathesis makes up from the protocol's OpenAPI document, right ones and wrong ones.

Whatever comes: an answer that the document knows, `{"error"}` as the only other body, never a 5xx that is a bug, and a
server that answers as before.
"""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from support.openapi import document
from support.serving import Server, identity, pack, serving

pytestmark = pytest.mark.slow
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    negative_data_rejection,
    unsupported_method,
]
RIGHT = json.dumps({"inputs": [{"name": "x", "shape": [1, 16], "datatype": "FP32", "data": [0.5] * 16}]}).encode()
schema = schemathesis.openapi.from_dict(document("same"))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("fuzz")
    with serving(pack(identity(folder / "same.onnx"), folder / "same.portolan")) as running:
        yield running


@schema.parametrize()
@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
def test_every_answer_is_one_that_the_protocol_knows(case: schemathesis.Case, server: Server) -> None:
    case.call_and_validate(base_url=server.url, checks=CHECKS)


def test_the_server_answers_as_before(server: Server) -> None:
    before = server.children()
    with urllib.request.urlopen(f"{server.url}/v2/models/same/infer", RIGHT, timeout=30) as answer:
        assert json.loads(answer.read())["outputs"][0]["data"] == [0.5] * 16
    assert len(before["replica"]) == 1
    with urllib.request.urlopen(f"{server.url}/metrics", timeout=30) as answer:
        assert 'portolan_replicas_lost_total{model="same",version="1"} 0' in answer.read().decode()
