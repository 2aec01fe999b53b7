"""The gRPC door with the protocol's own client, in front of models that need no process."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton

from portolan.serving.calls import HTTP
from portolan.serving.grpc_ import CODES, Door, Settings
from portolan.serving.guard import Guard, Tokens
from portolan.serving.journal import Journal
from portolan.serving.messages import COMPILED, messages

sys.path.insert(0, str(Path(__file__).parents[1]))
from support.doors import FakeModels, LoopThread

Opened = Callable[..., "Front"]


class Front:
    """A door on a loop of its own, its models, and its log."""

    def __init__(self, loop: LoopThread, folder: Path, settings: Settings, guard: Guard | None) -> None:
        self.models, self.log = FakeModels(), folder / "log.jsonl"
        self.journal = Journal(self.log, access=True)
        self.guard = guard or Guard()
        self.loop = loop

        async def start() -> tuple[Door, int]:
            door = Door(self.models, settings, self.guard, self.journal)
            return door, await door.start()

        self.door, self.port = loop.run(start())
        self.client = triton.InferenceServerClient(f"127.0.0.1:{self.port}")

    def close(self) -> None:
        self.client.close()
        self.loop.run(self.door.stop(0))
        self.journal.close()


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Opened]:
    loop, fronts = LoopThread(), []

    def go(guard: Guard | None = None, **settings: Any) -> Front:
        fronts.append(Front(loop, tmp_path, Settings(port=0, **settings), guard))
        return fronts[-1]

    yield go
    for front in fronts:
        front.close()
    loop.close()


@pytest.fixture
def front(opened: Opened) -> Front:
    return opened()


def tensor(array: np.ndarray, datatype: str, name: str = "x") -> triton.InferInput:
    made = triton.InferInput(name, array.shape, datatype)
    made.set_data_from_numpy(array)
    return made


ROWS = np.arange(32, dtype=np.float32).reshape(2, 16)


def test_health_metadata_and_repository(front: Front) -> None:
    client = front.client
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("identity")
    assert client.get_server_metadata().extensions == ["binary_tensor_data", "statistics"]
    metadata = client.get_model_metadata("identity")
    assert metadata.inputs[0].shape == [-1, 16]
    assert metadata.platform == "onnxruntime"
    config = client.get_model_config("identity").config
    assert config.input[0].data_type == 11
    assert config.dynamic_batching.default_queue_policy.max_queue_size == 7
    assert config.parameters["sha256"].string_value == "abc"
    stats = client.get_inference_statistics("identity").model_stats[0]
    assert stats.inference_stats.success.ns == 4_000_000_000
    assert stats.batch_stats[0].compute_infer.ns == 9
    index = client.get_model_repository_index().models
    assert [(m.name, m.state) for m in index] == [("identity", "READY"), ("other", "UNAVAILABLE")]
    client.load_model("identity", config="{}")
    client.unload_model("identity")
    assert front.models.loaded == [("identity", {"config": "{}"}), ("identity", {})]


def test_a_call_arrives_as_it_was_sent_and_so_does_its_answer(front: Front) -> None:
    found = front.client.infer(
        "identity",
        [tensor(ROWS, "FP32")],
        request_id="seven",
        outputs=[triton.InferRequestedOutput("y")],
        timeout=2_500_000,
        priority=3,
        parameters={"colour": "red"},
    )
    np.testing.assert_array_equal(found.as_numpy("y"), ROWS)
    assert found.get_response().id == "seven"
    assert found.get_response().model_version == "1"
    (call,) = front.models.calls
    assert (call.model, call.version, call.id, call.outputs) == ("identity", None, "seven", ["y"])
    assert (call.timeout, call.priority, call.parameters) == (2.5, 3, {"colour": "red"})


def test_text_and_gzip(front: Front) -> None:
    words = np.array([["a\0b", "ä", ""]], object)
    found = front.client.infer("identity", [tensor(words, "BYTES")], compression_algorithm="gzip")
    assert [item.decode() for item in found.as_numpy("y").ravel()] == ["a\0b", "ä", ""]


@pytest.mark.parametrize(
    ("datatype", "field", "values", "raw"),
    [
        ("FP32", "fp32_contents", [1.5, -2], np.array([1.5, -2], "<f4").tobytes()),
        ("FP64", "fp64_contents", [1.5], np.array([1.5], "<f8").tobytes()),
        ("INT8", "int_contents", [-1, 7], np.array([-1, 7], "<i1").tobytes()),
        ("INT16", "int_contents", [-300], np.array([-300], "<i2").tobytes()),
        ("INT32", "int_contents", [2**31 - 1], np.array([2**31 - 1], "<i4").tobytes()),
        ("INT64", "int64_contents", [-(2**62)], np.array([-(2**62)], "<i8").tobytes()),
        ("UINT8", "uint_contents", [255], b"\xff"),
        ("UINT16", "uint_contents", [65535], b"\xff\xff"),
        ("UINT32", "uint_contents", [2**32 - 1], b"\xff" * 4),
        ("UINT64", "uint64_contents", [2**64 - 1], b"\xff" * 8),
        ("BOOL", "bool_contents", [True, False], b"\x01\x00"),
        ("BYTES", "bytes_contents", [b"\xff\x00", b""], b"\x02\0\0\0\xff\x00\0\0\0\0"),
    ],
)
def test_typed_contents_are_the_same_as_raw_ones(
    front: Front, datatype: str, field: str, values: list[Any], raw: bytes
) -> None:
    request = infer_request(front, datatype, [len(values)])
    getattr(request.inputs[0].contents, field).extend(values)
    assert call(front, "ModelInfer", request).raw_output_contents == [raw]


def test_an_empty_tensor_needs_no_contents(front: Front) -> None:
    assert call(front, "ModelInfer", infer_request(front, "FP32", [0, 16])).raw_output_contents == [b""]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda r: r.inputs[0].contents.int_contents.extend([1]), "contents holds int_contents; FP32 goes into fp32"),
        (lambda r: r.raw_input_contents.extend([b"1234", b""]), "has 2 entries, $.inputs has 1"),
        (lambda r: both(r), "send one of them"),
        (lambda r: setattr(r.inputs[0], "datatype", "FP16"), "raw_input_contents only"),
        (lambda r: setattr(r.inputs[0], "datatype", "FLOAT"), "raw_input_contents only"),
        (lambda r: small(r), "$.inputs[0].contents.int_contents is no INT8"),
        (lambda r: setattr(r.parameters["timeout"], "int64_param", -1), "$.parameters.timeout must be"),
        (lambda r: setattr(r.parameters["timeout"], "string_param", "soon"), "$.parameters.timeout must be"),
        (lambda r: setattr(r.parameters["priority"], "bool_param", True), "$.parameters.priority must be"),
        (lambda r: r.parameters["empty"].SetInParent(), "`empty` has no value"),
        (lambda r: setattr(r.parameters["sequence_id"], "int64_param", 4), "$.parameters.sequence_id"),
        (lambda r: setattr(r.inputs[0].parameters["shared_memory_region"], "string_param", "m"), "shared_memory"),
        (lambda r: setattr(r.outputs.add().parameters["classification"], "int64_param", 3), "classification"),
    ],
)
def test_what_does_not_fit_is_an_invalid_argument(front: Front, change: Callable[[Any], Any], said: str) -> None:
    request = infer_request(front, "FP32", [1])
    change(request)
    with pytest.raises(grpc.RpcError) as error:
        call(front, "ModelInfer", request)
    assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert said in error.value.details()
    assert front.models.calls == []


def both(request: Any) -> None:
    request.inputs[0].contents.fp32_contents.append(1)
    request.raw_input_contents.append(b"1234")


def small(request: Any) -> None:
    request.inputs[0].datatype = "INT8"
    request.inputs[0].contents.int_contents.append(300)


@pytest.mark.parametrize("kind", HTTP)
def test_every_refusal_has_its_code(front: Front, kind: str) -> None:
    with pytest.raises(triton.InferenceServerException) as error:
        front.client.infer("refuses", [tensor(ROWS, "FP32")], request_id=kind)
    assert error.value.status() == f"StatusCode.{CODES[kind]}"  # type: ignore[index]
    assert error.value.message() == f"refused: {kind}"


def test_a_late_answer_to_a_call_with_a_deadline_is_its_deadline(front: Front) -> None:
    with pytest.raises(triton.InferenceServerException) as error:
        front.client.infer("refuses", [tensor(ROWS, "FP32")], request_id="late", client_timeout=20)
    assert error.value.status() == "StatusCode.DEADLINE_EXCEEDED"


def test_an_overloaded_server_says_when_to_come_back(front: Front) -> None:
    request = infer_request(front, "FP32", [0], model="refuses", id="overloaded")
    with pytest.raises(grpc.RpcError) as error:
        call(front, "ModelInfer", request)
    assert ("grpc-retry-pushback-ms", "2000") in [tuple(item) for item in error.value.trailing_metadata()]


def test_an_unknown_model_is_not_found_everywhere(front: Front) -> None:
    client = front.client
    asks: list[Callable[[], Any]] = [
        lambda: client.infer("nobody", [tensor(ROWS, "FP32")]),
        lambda: client.is_model_ready("nobody"),
        lambda: client.get_model_metadata("identity", "9"),
        lambda: client.get_model_config("nobody"),
        lambda: client.get_inference_statistics("nobody"),
        lambda: client.load_model("nobody"),
        lambda: client.unload_model("nobody"),
    ]
    for ask in asks:
        with pytest.raises(triton.InferenceServerException) as error:
            ask()
        assert error.value.status() == "StatusCode.NOT_FOUND"


def test_a_bug_is_logged_and_its_words_stay_inside(front: Front) -> None:
    with pytest.raises(triton.InferenceServerException) as error:
        front.client.infer("identity", [tensor(ROWS, "FP32")], request_id="bug")
    assert error.value.status() == "StatusCode.INTERNAL"
    assert "secret" not in str(error.value.message())
    front.journal.close()
    assert "ZeroDivisionError: secret detail" in front.log.read_text()


def test_the_deadline_of_the_call_is_its_timeout(front: Front) -> None:
    front.client.infer("identity", [tensor(ROWS, "FP32")], client_timeout=20, timeout=90_000_000)
    assert front.models.calls[0].timeout is not None
    # gRPC writes deadlines in coarse units, rounded up.
    assert 10 < front.models.calls[0].timeout < 21


def test_a_call_that_the_client_gives_up_is_cancelled(front: Front) -> None:
    pending = front.client.async_infer(
        "identity", [tensor(ROWS, "FP32")], callback=lambda result, error: None, request_id="hold"
    )
    until(lambda: len(front.models.held) == 1)
    pending.cancel()
    until(lambda: front.models.held[0].cancelled())


def test_a_stream_answers_in_order_and_survives_a_refusal(front: Front) -> None:
    seen: list[tuple[str, str | None]] = []

    def took(result: Any, error: Any) -> None:
        seen.append((result.get_response().id if result else "", str(error) if error else None))

    front.client.start_stream(took)
    for i in range(100):
        model, request_id = ("refuses", "too_many") if i == 50 else ("identity", str(i))
        front.client.async_stream_infer(model, [tensor(ROWS, "FP32")], request_id=request_id)
    until(lambda: len(seen) == 100)
    front.client.stop_stream()
    assert "refused: too_many" in str(seen[50][1])
    assert [name for name, _ in seen[:50] + seen[51:]] == [str(i) for i in range(100) if i != 50]


def test_a_message_that_is_too_large_is_refused_also_when_it_is_small_on_the_wire(opened: Opened) -> None:
    front = opened(message=1 << 20)
    zeros = tensor(np.zeros((1, 4 << 20), np.uint8), "UINT8")
    for compression in (None, "gzip"):
        with pytest.raises(triton.InferenceServerException) as error:
            front.client.infer("identity", [zeros], compression_algorithm=compression)
        assert error.value.status() == "StatusCode.RESOURCE_EXHAUSTED"
    assert front.models.calls == []


def test_tokens_are_asked_of_everything_but_health(opened: Opened, tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text("0123456789abcdef\n")
    front = opened(guard=Guard(Tokens(tmp_path / "tokens")))
    assert front.client.is_server_live()
    for headers in ({}, {"authorization": "Bearer wrong-wrong-wrong"}, {"authorization": "0123456789abcdef"}):
        with pytest.raises(triton.InferenceServerException) as error:
            front.client.get_server_metadata(headers=headers)
        assert error.value.status() == "StatusCode.UNAUTHENTICATED"
    right = {"authorization": "Bearer 0123456789abcdef"}
    assert front.client.get_server_metadata(headers=right).name == "portolan"
    errors: list[Any] = []
    front.client.start_stream(lambda result, error: errors.append(error))
    until(lambda: bool(errors))
    front.client.stop_stream()
    assert "StatusCode.UNAUTHENTICATED" in str(errors[0])
    assert front.models.calls == []
    assert front.guard.inside == 0


def test_grpc_health_checks(front: Front) -> None:
    def status(service: str) -> int:
        request = messages().classes["grpc.health.v1.HealthCheckRequest"](service=service)
        return call(front, "Check", request, "grpc.health.v1.Health").status

    assert status("") == 1
    front.models.healthy = False
    assert status("inference.GRPCInferenceService") == 2
    with pytest.raises(grpc.RpcError) as error:
        status("nobody")
    assert error.value.code() is grpc.StatusCode.NOT_FOUND


def test_a_taken_port_is_said(opened: Opened) -> None:
    front = opened()
    port, loop = front.port, LoopThread()

    async def start() -> None:
        await Door(FakeModels(), Settings(port=port), Guard(), front.journal).start()

    with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1:{port}"):
        loop.run(start())
    loop.close()


def test_the_compiled_messages_are_those_of_the_sources() -> None:
    sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
    import make_messages

    assert (make_messages.FOLDER / COMPILED).read_bytes() == make_messages.compiled(), "run tools/make_messages.py"


def test_messages_agree_with_tritons_on_every_field_they_share() -> None:
    from tritonclient.grpc import model_config_pb2, service_pb2

    theirs = {**service_pb2.DESCRIPTOR.message_types_by_name, **model_config_pb2.DESCRIPTOR.message_types_by_name}
    compared = 0
    for name, made in messages().classes.items():
        if not name.startswith("inference."):
            continue
        compared += same_fields(made.DESCRIPTOR, theirs[name.removeprefix("inference.")])
    assert compared > 120


def same_fields(ours: Any, theirs: Any) -> int:
    for field in ours.fields:
        other = theirs.fields_by_name[field.name]
        assert (field.number, field.type, field.is_repeated) == (other.number, other.type, other.is_repeated), field
        if field.enum_type is not None:
            values = {v.name: v.number for v in other.enum_type.values}
            assert {v.name: v.number for v in field.enum_type.values}.items() <= values.items()
    nested = (same_fields(m, theirs.nested_types_by_name[m.name]) for m in ours.nested_types)
    return len(ours.fields) + sum(nested)


def infer_request(front: Front, datatype: str, shape: list[int], model: str = "identity", id: str = "") -> Any:
    made = messages().classes["inference.ModelInferRequest"](model_name=model, id=id)
    made.inputs.add(name="x", datatype=datatype, shape=shape)
    return made


def call(front: Front, method: str, request: Any, service: str = "inference.GRPCInferenceService") -> Any:
    found = next(m for m in messages().services[service] if m.name == method)
    with grpc.insecure_channel(f"127.0.0.1:{front.port}") as channel:
        ask = channel.unary_unary(
            f"/{service}/{method}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=found.response.FromString,
        )
        return ask(request, timeout=20)


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)
