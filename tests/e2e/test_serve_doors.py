"""A real server's other doors and what surrounds them: gRPC, TLS, tokens, limits, metrics, traces, logs."""

from __future__ import annotations

import http.server
import json
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
import trustme
from prometheus_client.parser import text_string_to_metric_families

from portolan.serving.messages import messages
from support.serving import identity, pack, serving

ROWS = np.arange(32, dtype=np.float32).reshape(2, 16)
BODY = json.dumps({"inputs": [{"name": "x", "shape": [1, 16], "datatype": "FP32", "data": [0.5] * 16}]}).encode()
INFER = "/v2/models/same/infer"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("doors")
    return pack(identity(folder / "same.onnx"), folder / "same.portolan")


def ask(url: str, body: bytes | None = None, *, secure: ssl.SSLContext | None = None, **headers: str) -> Any:
    """Status, headers and body, whatever they are."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(url, body, named)
    try:
        with urllib.request.urlopen(request, timeout=30, context=secure) as answer:
            return answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers, error.read()


def tensor(array: np.ndarray) -> triton.InferInput:
    made = triton.InferInput("x", array.shape, "FP32")
    made.set_data_from_numpy(array)
    return made


def metrics(url: str, **headers: str) -> dict[str, float]:
    """Samples by name and labels."""
    status, _, raw = ask(f"{url}/metrics", **headers)
    assert status == 200
    found = {}
    for family in text_string_to_metric_families(raw.decode()):
        for sample in family.samples:
            labels = ",".join(f"{k}={v}" for k, v in sample.labels.items() if k not in ("model", "version"))
            name = sample.name.removesuffix("_total")  # which this reader adds to every counter
            found[f"{name}{{{labels}}}" if labels else name] = sample.value
    return found


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not true():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


def test_grpc_and_what_the_metrics_say_of_it(bundle: Path) -> None:
    with serving(bundle, "--grpc-port", "0") as server, triton.InferenceServerClient(server.grpc) as client:
        assert client.is_model_ready("same")
        assert client.get_model_metadata("same").inputs[0].shape == [-1, 16]
        assert client.get_model_config("same").config.max_batch_size == 16
        np.testing.assert_array_equal(client.infer("same", [tensor(ROWS)]).as_numpy("y"), ROWS)
        for rows, status in ((ROWS[:, :3], "INVALID_ARGUMENT"), (ROWS.reshape(-1), "INVALID_ARGUMENT")):
            with pytest.raises(triton.InferenceServerException) as error:
                client.infer("same", [tensor(rows)])
            assert error.value.status() == f"StatusCode.{status}"
        assert client.get_inference_statistics("same").model_stats[0].inference_count == 2
        found = metrics(server.url)
        assert found["nv_inference_request_success"] == 1
        assert found["nv_inference_count"] == 2
        assert found["nv_inference_exec_count"] == 1
        assert found["nv_inference_request_failure{reason=OTHER}"] == 2
        assert found["nv_inference_pending_request_count"] == 0
        assert found["portolan_replicas{state=free}"] == 1
        assert found["portolan_batch_rows_sum"] == 2
        assert found["portolan_request_seconds_count"] == 1
        assert 0 < found["nv_inference_compute_infer_duration_us"] < found["nv_inference_request_duration_us"]
        assert found["nv_inference_request_duration_us"] % 1000 != 0, "the clock counts less than milliseconds"
        assert server.stop() == 0


def test_every_metric_stands_in_the_reference(bundle: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "reference" / "serving-metrics.md").read_text()
    with serving(bundle) as server:
        told = ask(f"{server.url}/metrics")[2].decode()
    names = {line.split()[2] for line in told.splitlines() if line.startswith("# TYPE")}
    assert len(names) > 20
    assert [name for name in sorted(names) if f"`{name}`" not in page] == []


def test_calls_over_grpc_survive_the_order_to_stop(bundle: Path) -> None:
    classes = messages().classes  # tritonclient's own asynchronous calls cancel themselves now and then
    request = classes["inference.ModelInferRequest"](model_name="same", raw_input_contents=[ROWS.tobytes()])
    request.inputs.add(name="x", datatype="FP32", shape=ROWS.shape)
    with serving(bundle, "--grpc-port", "0") as server, grpc.insecure_channel(server.grpc) as channel:
        ask = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=classes["inference.ModelInferResponse"].FromString,
        )
        ask(request)
        calls = [ask.future(request) for _ in range(500)]
        until(lambda: any(call.done() for call in calls))
        assert server.stop() == 0
        assert {call.code() for call in calls} == {grpc.StatusCode.OK}
        assert calls[-1].result().raw_output_contents == [ROWS.tobytes()]


def test_tls_clients_with_certificates_and_tokens(bundle: Path, tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    for name in ("server", "client"):
        issued = authority.issue_cert("localhost", "127.0.0.1")
        issued.cert_chain_pems[0].write_to_path(str(tmp_path / f"{name}.pem"))
        issued.private_key_pem.write_to_path(str(tmp_path / f"{name}.key"))
    (tmp_path / "tokens").write_text("first-token-0123456789\n")
    files = [f"--tls-{part}" for part in ("cert", "key", "client-ca")]
    given = [tmp_path / name for name in ("server.pem", "server.key", "ca.pem")]
    flags = [str(item) for pair in zip(files, given, strict=True) for item in pair]
    secure = ssl.create_default_context(cafile=str(tmp_path / "ca.pem"))
    stranger = ssl.create_default_context(cafile=str(tmp_path / "ca.pem"))
    secure.load_cert_chain(tmp_path / "client.pem", tmp_path / "client.key")
    with serving(bundle, "--grpc-port", "0", "--token-file", str(tmp_path / "tokens"), *flags) as server:
        assert server.url.startswith("https://")
        right = {"Authorization": "Bearer first-token-0123456789"}
        status, _, raw = ask(server.url + INFER, BODY, secure=secure, **right)
        assert status == 200
        assert json.loads(raw)["outputs"][0]["data"] == [0.5] * 16
        image = np.zeros((500, 16), np.float32).tobytes()  # larger than one record of TLS
        head = {"inputs": [{"name": "x", "shape": [500, 16], "datatype": "FP32"}]}
        head["inputs"][0]["parameters"] = {"binary_data_size": len(image)}
        text = json.dumps(head).encode()
        size = {"Inference_Header_Content_Length": str(len(text))}
        assert ask(server.url + INFER, text + image, secure=secure, **right, **size)[0] == 200
        assert ask(server.url + INFER, BODY, secure=secure)[0] == 401
        with pytest.raises((urllib.error.URLError, ssl.SSLError, ConnectionError)):
            ask(server.url + INFER, BODY, secure=stranger, **right)
        with triton.InferenceServerClient(
            f"localhost:{server.grpc.rpartition(':')[2]}",
            ssl=True,
            root_certificates=str(tmp_path / "ca.pem"),
            private_key=str(tmp_path / "client.key"),
            certificate_chain=str(tmp_path / "client.pem"),
        ) as client:
            named = {"authorization": "Bearer first-token-0123456789"}
            np.testing.assert_array_equal(client.infer("same", [tensor(ROWS)], headers=named).as_numpy("y"), ROWS)
            with pytest.raises(triton.InferenceServerException) as error:
                client.infer("same", [tensor(ROWS)])
            assert error.value.status() == "StatusCode.UNAUTHENTICATED"
        assert server.stop() == 0


def test_tokens_over_http_and_what_needs_none(bundle: Path, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("first-token-0123456789\n")
    with serving(bundle, "--token-file", tokens) as server:
        for path in ("/v2/health/live", "/v2/health/ready", "/"):
            assert ask(server.url + path)[0] == 200
        for path in ("/v2", "/metrics", "/live.json", "/v2/models/same", "/v2/models/same/ready", "//", "/nowhere"):
            status, headers, raw = ask(server.url + path)
            assert (status, headers["WWW-Authenticate"]) == (401, "Bearer"), path
            assert list(json.loads(raw)) == ["error"]
        assert ask(server.url + INFER, BODY, Authorization="Bearer first-token-0123456789")[0] == 200
        tokens.write_text("second-token-0123456789\n")
        until(lambda: ask(server.url + INFER, BODY, Authorization="Bearer second-token-0123456789")[0] == 200)
        assert ask(server.url + INFER, BODY, Authorization="Bearer first-token-0123456789")[0] == 401
        assert metrics(server.url, Authorization="Bearer second-token-0123456789")["nv_inference_count"] == 2


def test_limits_of_rate_size_and_number(bundle: Path) -> None:
    with serving(bundle, "--max-rate", "3", "--max-request", "1KiB") as server:
        statuses = [ask(server.url + INFER, BODY) for _ in range(8)]
        codes = [status for status, _, _ in statuses]
        assert codes[:3] == [200] * 3
        assert 429 in codes
        late = next(headers for status, headers, _ in statuses if status == 429)
        assert int(late["Retry-After"]) >= 1
        assert ask(server.url + "/v2/health/ready")[0] == 200, "probes are not counted"
        assert ask(server.url + INFER, BODY + b" " * 1024)[0] == 413


def test_pages_of_other_sites_cannot_make_a_browser_ask(bundle: Path) -> None:
    with serving(bundle) as server:
        port = server.port
        unload = f"{server.url}/v2/repository/models/same/unload"
        for origin in (
            "https://example.org",
            f"http://example.org:{port}",
            "null",
            f"http://127.0.0.1:{port + 1}",
            "[",
        ):
            assert ask(unload, b"{}", Origin=origin)[0] == 400, origin
        # A name of the stranger's own that leads to this machine.
        assert ask(unload, b"{}", Origin=f"http://example.org:{port}", Host=f"example.org:{port}")[0] == 400
        assert ask(server.url + INFER, BODY)[0] == 200
        assert ask(server.url + INFER, BODY, Origin=server.url)[0] == 200


def test_logs_tell_of_requests_replicas_and_the_end(bundle: Path, tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    with serving(bundle, "--log-file", log, "--access-log", "--grpc-port", "0") as server:
        ask(server.url + INFER, BODY)
        ask(server.url + INFER, b"{")
        with triton.InferenceServerClient(server.grpc) as client:
            client.infer("same", [tensor(ROWS)], request_id="seven")
        (replica,) = server.children()["replica"]
        subprocess.run(["kill", "-9", str(replica)], check=True)
        until(lambda: "replica_lost" in log.read_text())
        assert server.stop() == 0
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    requests = [line for line in lines if line["event"] == "request"]
    assert [(line["door"], line["status"]) for line in requests] == [("http", 200), ("http", 400), ("grpc", "OK")]
    assert requests[0]["path"] == INFER
    assert requests[0]["client"] == "127.0.0.1"
    assert requests[2]["id"] == "seven"
    events = [line["event"] for line in lines]
    assert events.index("replica_ready") < events.index("request") < events.index("replica_lost")
    lost = lines[events.index("replica_lost")]
    assert (lost["model"], lost["pid"]) == ("same", replica)
    assert "SIGKILL" in lost["reason"]
    assert any(line.get("closing") for line in lines)


def test_a_full_disk_for_logs_stops_no_answer(bundle: Path) -> None:
    with serving(bundle, "--log-file", "/dev/full", "--access-log") as server:
        assert {ask(server.url + INFER, BODY)[0] for _ in range(200)} == {200}
        until(lambda: metrics(server.url)["portolan_log_lines_lost"] >= 200)
        assert server.stop() == 0


class Collector(http.server.ThreadingHTTPServer):
    """What an OpenTelemetry collector hears."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.heard: list[tuple[str, bytes]] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def spans(self) -> list[Any]:
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

        messages = [ExportTraceServiceRequest.FromString(raw) for path, raw in self.heard if path == "/v1/traces"]
        return [s for m in messages for r in m.resource_spans for scope in r.scope_spans for s in scope.spans]


class Handler(http.server.BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            import gzip

            raw = gzip.decompress(raw)
        self.server.heard.append((self.path, raw))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.shutdown()
    made.server_close()


def test_traces_follow_the_caller_s_and_show_where_the_time_went(bundle: Path, collector: Collector) -> None:
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    unsampled = parent[:-1] + "0"
    with serving(bundle, "--otlp-endpoint", f"http://127.0.0.1:{collector.server_port}", "--otlp-share", "0") as server:
        ask(server.url + INFER, BODY, traceparent=parent)
        ask(server.url + INFER, BODY, traceparent=unsampled)
        ask(server.url + INFER, BODY)
        assert server.stop() == 0
    spans = {span.name: span for span in collector.spans()}
    assert len(collector.spans()) == 3, "one call of the three was to be traced"
    top = spans["InferRequest"]
    assert top.trace_id.hex() == "0af7651916cd43dd8448eb211c80319c"
    assert top.parent_span_id.hex() == "b7ad6b7169203331"
    attributes = {a.key: a.value.string_value for a in top.attributes}
    assert attributes["triton.model_name"] == "same"
    assert abs(top.start_time_unix_nano / 1e9 - time.time()) < 60
    for name in ("queue", "compute"):
        assert spans[name].parent_span_id == top.span_id
        assert top.start_time_unix_nano <= spans[name].start_time_unix_nano <= spans[name].end_time_unix_nano
        assert spans[name].end_time_unix_nano <= top.end_time_unix_nano
    assert spans["queue"].end_time_unix_nano == spans["compute"].start_time_unix_nano


def test_without_a_collector_nothing_of_opentelemetry_or_grpc_is_loaded(bundle: Path) -> None:
    with serving(bundle) as server:
        ask(server.url + INFER, BODY)
        (front,) = server.children()["front"]
        mapped = Path(f"/proc/{front}/maps").read_text()
        assert "grpc" not in mapped
    wanted = "[m for m in sys.modules if m.startswith(('opentelemetry', 'grpc', 'onnxruntime', 'numpy'))]"
    script = f"import sys\nimport portolan.serving.front\nprint({wanted})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_taken_grpc_port_is_said_before_anything_starts(bundle: Path) -> None:
    with serving(bundle) as server:
        argv = [sys.executable, "-m", "portolan", "serve", str(bundle), "--port", "0", "--grpc-port", str(server.port)]
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert f"cannot listen on `127.0.0.1:{server.port}`: address already in use" in done.stderr
