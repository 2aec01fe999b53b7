"""The server's routes without its sockets, on a real bundle: what platforms with HTTP of their own use."""

from __future__ import annotations

import asyncio
import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import portolan
from portolan.bundle import open_bundle
from portolan.hosting import gateway
from portolan.serving.bounds import Bounds
from portolan.serving.gateway import Answered, Gateway

pytest.importorskip("msgspec")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gateway") / "digits.portolan"
    portolan.pack("demo:digits", out=path)
    return path


def _body(images: np.ndarray) -> bytes:
    data = {"name": "image", "datatype": "FP32", "shape": list(images.shape), "data": images.reshape(-1).tolist()}
    return json.dumps({"id": "7", "inputs": [data]}).encode()


async def _all(bundle: Path, images: np.ndarray) -> dict[str, Answered]:
    """Every kind of request, over one gateway."""
    gate = await gateway(bundle, replicas=(1, 1), max_batch=4)
    infer, body = "/v2/models/digits/infer", _body(images)
    try:
        many = await asyncio.gather(*(gate.answer("POST", infer, {}, body) for _ in range(20)))
        found = {
            "ready": await gate.answer("GET", "/v2/health/ready", {}, b""),
            "metadata": await gate.answer("GET", "/v2/models/digits?x=1", {}, b""),
            "unknown": await gate.answer("GET", "/v2/models/digit", {}, b""),
            "broken": await gate.answer("POST", infer, {}, b"{"),
            "method": await gate.answer("DELETE", infer, {}, b""),
            "packed": await gate.answer("POST", infer, {"Content-Encoding": "gzip"}, gzip.compress(body)),
            "bomb": await gate.answer("POST", infer, {"content-encoding": "gzip"}, b"no gzip"),
            "binary": await gate.answer("POST", infer, {"Inference-Header-Content-Length": "0"}, images[:1].tobytes()),
            "control": await gate.answer("POST", "/v2/repository/models/digits/unload", {}, b""),
            "large": await Gateway(gate.models, Bounds(body=10)).answer("POST", infer, {}, body),
        }
        waiting = asyncio.ensure_future(gate.answer("POST", infer, {}, body))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        return {**found, **{f"many{i}": answer for i, answer in enumerate(many)}}
    finally:
        await gate.close()


def test_a_gateway_answers_as_the_server_does(bundle: Path) -> None:
    with open_bundle(bundle) as opened:
        images = np.concatenate([opened.feeds(row)["image"] for row in (0, 1)])
        wanted = opened.run({"image": images})["logits"]
    found = asyncio.run(_all(bundle, images))
    statuses = {name: answer.status for name, answer in found.items() if not name.startswith("many")}
    assert statuses == {
        "ready": 200, "metadata": 200, "unknown": 404, "broken": 400, "method": 405, "packed": 200, "bomb": 400,
        "binary": 200, "control": 403, "large": 413,
    }  # fmt: skip
    for name in ["packed", *(f"many{i}" for i in range(20))]:
        answer = json.loads(found[name].body)
        assert answer["id"] == "7"
        np.testing.assert_allclose(_values(answer), wanted.reshape(-1), rtol=1e-5, atol=1e-5)
    binary = found["binary"]
    mark = int(binary.headers["Inference-Header-Content-Length"])
    np.testing.assert_allclose(np.frombuffer(binary.body[mark:], np.float32), wanted[0], rtol=1e-5, atol=1e-5)
    assert set(json.loads(found["unknown"].body)) == {"error"}


def _values(answer: Any) -> list[float]:
    return [value for output in answer["outputs"] for value in output["data"]]
