"""`portolan serve` from a bundle to an answer, with the protocol's own client."""

from __future__ import annotations

import json
import signal
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import portolan
from support.serving import Server, pack, serving

http = pytest.importorskip("tritonclient.http", exc_type=ImportError)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack("demo:digits", tmp_path_factory.mktemp("bundle") / "digits.portolan")


@pytest.fixture(scope="module")
def server(bundle: Path) -> Iterator[Server]:
    with serving(bundle, "--replicas", "1..2") as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[Any]:
    with http.InferenceServerClient(server.address, concurrency=4) as made:
        yield made


@pytest.fixture(scope="module")
def expected(bundle: Path) -> tuple[np.ndarray, np.ndarray]:
    with portolan.open(bundle) as opened:
        image = np.concatenate([opened.feeds(row)["image"] for row in range(3)])
        return image, opened.run({"image": image})["logits"]


def tensor(image: np.ndarray, *, binary: bool = True) -> Any:
    made = http.InferInput("image", list(image.shape), "FP32")
    made.set_data_from_numpy(image, binary_data=binary)
    return made


def test_health_and_what_it_says_of_itself(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("digits")
    assert client.is_model_ready("digits", "1")
    told = client.get_server_metadata()
    assert told["name"] == "portolan"
    assert told["version"] == portolan.__version__
    assert "binary_tensor_data" in told["extensions"]


def test_metadata_config_and_index(client: Any) -> None:
    told = client.get_model_metadata("digits")
    assert told["inputs"] == [{"name": "image", "datatype": "FP32", "shape": [-1, 1, 8, 8]}]
    assert told["outputs"] == [{"name": "logits", "datatype": "FP32", "shape": [-1, 10]}]
    config = client.get_model_config("digits")
    assert config["max_batch_size"] == 16
    assert config["input"] == [{"name": "image", "data_type": "TYPE_FP32", "dims": [1, 8, 8]}]
    assert client.get_model_repository_index() == [{"name": "digits", "version": "1", "state": "READY", "reason": ""}]


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
def test_answers_are_the_bundle_s_in_json_and_binary(
    client: Any, expected: tuple[np.ndarray, np.ndarray], binary_in: bool, binary_out: bool
) -> None:
    image, logits = expected
    for rows in (1, 3):
        asked = [http.InferRequestedOutput("logits", binary_data=binary_out)]
        answer = client.infer("digits", [tensor(image[:rows], binary=binary_in)], outputs=asked, request_id="one")
        assert answer.get_response()["id"] == "one"
        assert answer.get_response()["model_version"] == "1"
        np.testing.assert_allclose(answer.as_numpy("logits"), logits[:rows], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_compressed_in_both_directions(client: Any, expected: tuple[np.ndarray, np.ndarray], coding: str) -> None:
    image, logits = np.repeat(expected[0], 30, axis=0), np.repeat(expected[1], 30, axis=0)
    for binary in (True, False):
        asked = [http.InferRequestedOutput("logits", binary_data=binary)]
        answer = client.infer(
            "digits", [tensor(image)], outputs=asked,
            request_compression_algorithm=coding, response_compression_algorithm=coding,
        )  # fmt: skip
        np.testing.assert_allclose(answer.as_numpy("logits"), logits, rtol=1e-4, atol=1e-5)


def test_many_at_once_are_answered_each_with_its_own(client: Any, expected: tuple[np.ndarray, np.ndarray]) -> None:
    image, logits = expected
    before = client.get_inference_statistics("digits")["model_stats"][0]
    waiting = [client.async_infer("digits", [tensor(image[i % 3 : i % 3 + 1])]) for i in range(60)]
    for i, answer in enumerate(waiting):
        got = answer.get_result().as_numpy("logits")
        np.testing.assert_allclose(got, logits[i % 3 : i % 3 + 1], rtol=1e-4, atol=1e-5)
    after = client.get_inference_statistics("digits")["model_stats"][0]
    assert after["inference_count"] - before["inference_count"] == 60
    assert after["inference_stats"]["success"]["count"] - before["inference_stats"]["success"]["count"] == 60
    assert after["execution_count"] - before["execution_count"] <= 60
    assert after["replicas"]["resident_bytes"] > 2**20


def ask(server: Server, path: str, body: bytes | None = None, **headers: str) -> tuple[int, dict[str, Any], Any]:
    request = urllib.request.Request(f"{server.url}{path}", body, headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            raw, status, told = answer.read(), answer.status, dict(answer.headers)
    except urllib.error.HTTPError as error:
        raw, status, told = error.read(), error.code, dict(error.headers)
    return status, told, json.loads(raw) if raw else None


def one(name: str, shape: list[int], datatype: str) -> bytes:
    """A request with one input of one element."""
    return json.dumps({"inputs": [{"name": name, "shape": shape, "datatype": datatype, "data": [1]}]}).encode()


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("/v2/models/nothing", None, 404, "no model named `nothing`"),
        ("/v2/models/digits/versions/7", None, 404, "no version `7`"),
        ("/v2/nowhere", None, 404, "nothing at"),
        ("/v2/models/digits/infer", None, 405, "takes POST"),
        ("/v2/models/digits/infer", b"{", 400, "cannot be read"),
        ("/v2/models/digits/infer", b'{"inputs": [{"name": "image"}]}', 400, "$.inputs[0]"),
        ("/v2/models/digits/infer", b'{"inputs": []}', 400, "`image` is missing"),
        ("/v2/models/digits/infer", one("x", [1], "FP32"), 400, "no input"),
        ("/v2/models/digits/infer", one("image", [1], "FP32"), 400, "shape"),
        ("/v2/models/digits/infer", one("image", [1], "F"), 400, "no datatype"),
        ("/v2/models/digits/infer", one("image", [2], "FP32"), 400, "elements"),
    ],
)
def test_errors_have_the_protocol_s_shape(server: Server, path: str, body: bytes, status: int, words: str) -> None:
    got, _, told = ask(server, path, body)
    assert got == status
    assert list(told) == ["error"]
    assert words in told["error"]


def test_both_spellings_of_the_root(server: Server) -> None:
    assert ask(server, "/v2")[2] == ask(server, "/v2/")[2]


def test_a_raw_body(server: Server, expected: tuple[np.ndarray, np.ndarray]) -> None:
    image, logits = expected
    headers = {"Inference-Header-Content-Length": "0"}
    request = urllib.request.Request(f"{server.url}/v2/models/digits/infer", image.tobytes(), headers)
    with urllib.request.urlopen(request, timeout=30) as answer:
        raw, length = answer.read(), int(answer.headers["Inference-Header-Content-Length"])
    np.testing.assert_allclose(np.frombuffer(raw[length:], np.float32).reshape(3, 10), logits, rtol=1e-4, atol=1e-5)


def test_a_deadline_that_cannot_be_met_is_refused_with_a_time_to_come_back(
    server: Server, expected: tuple[np.ndarray, np.ndarray]
) -> None:
    image = expected[0][:1].reshape(-1).tolist()
    item = {"name": "image", "shape": [1, 1, 8, 8], "datatype": "FP32", "data": image}
    body = json.dumps({"inputs": [item], "parameters": {"timeout": 1}}).encode()
    status, headers, told = ask(server, "/v2/models/digits/infer", body)
    assert status == 503
    assert int(headers["Retry-After"]) >= 1
    assert "deadline" in told["error"]


def test_unload_and_load_again(bundle: Path) -> None:
    with serving(bundle) as server, http.InferenceServerClient(server.address) as client:
        client.unload_model("digits")
        assert not client.is_model_ready("digits")
        assert client.get_model_repository_index()[0]["state"] == "UNAVAILABLE"
        client.load_model("digits")
        assert client.is_model_ready("digits")
        assert client.get_model_metadata("digits")["versions"] == ["2"]
        assert server.stop() == 0


def test_ctrl_c_ends_it_in_order(bundle: Path) -> None:
    with serving(bundle) as server:
        assert server.stop(signal.SIGINT) == 0
        assert server.children() == {"front": [], "replica": []}
