"""Models that need no process, and a loop in a thread, for tests of the doors with ordinary clients."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Mapping
from typing import Any, TypeVar

from portolan.serving.calls import Answer, Call, Refusal, Tensor

T = TypeVar("T")


class FakeModels:
    """Two models: `identity` answers its inputs; `refuses` refuses with the kind that the call's id names.

    Attributes:
        calls: what came, in order.
        held: futures of calls whose id is `hold`, which are never answered.
    """

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.held: list[asyncio.Future[Answer]] = []
        self.loaded: list[tuple[str, dict[str, Any]]] = []
        self.healthy = True

    def infer(self, call: Call) -> asyncio.Future[Answer]:
        self.calls.append(call)
        if call.model == "refuses":
            raise Refusal(call.id, f"refused: {call.id}", 2.0 if call.id == "overloaded" else None)  # type: ignore[arg-type]
        self._known(call.model)
        if call.id == "bug":
            raise ZeroDivisionError("secret detail")
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        if call.id == "hold":
            self.held.append(future)
        else:
            outputs = [Tensor(t.name.replace("x", "y"), t.datatype, t.shape, t.data) for t in call.inputs]
            future.set_result(Answer(call.model, "1", outputs, call.id))
        return future

    def _known(self, model: str, version: str | None = None) -> None:
        if model != "identity" or version not in (None, "1"):
            raise Refusal("not_found", f"no model named `{model}`")

    def server(self) -> dict[str, Any]:
        return {"name": "portolan", "version": "0", "extensions": ["binary_tensor_data", "statistics"]}

    def live(self) -> bool:
        return True

    def ready(self, model: str | None = None, version: str | None = None) -> bool:
        if model is not None:
            self._known(model, version)
        return self.healthy

    def metadata(self, model: str, version: str | None = None) -> dict[str, Any]:
        self._known(model, version)
        spec = [{"name": "x", "datatype": "FP32", "shape": [-1, 16]}]
        return {"name": model, "versions": ["1"], "platform": "onnxruntime", "inputs": spec, "outputs": spec}

    def config(self, model: str, version: str | None = None) -> dict[str, Any]:
        self._known(model, version)
        return {
            "name": model,
            "backend": "onnxruntime",
            "max_batch_size": 16,
            "input": [{"name": "x", "data_type": "TYPE_FP32", "dims": [16]}],
            "dynamic_batching": {"default_queue_policy": {"timeout_action": "REJECT", "max_queue_size": 7}},
            "parameters": {"sha256": {"string_value": "abc"}},
            "of_no_field": 1,
        }

    def statistics(self, model: str | None = None, version: str | None = None) -> dict[str, Any]:
        if model is not None:
            self._known(model, version)
        success = {"count": 3, "ns": 4_000_000_000}
        stats = {"name": "identity", "version": "1", "inference_count": 5, "execution_count": 2}
        batches = [{"batch_size": 2, "compute_infer": {"count": 1, "ns": 9}}]
        return {"model_stats": [{**stats, "inference_stats": {"success": success}, "batch_stats": batches}]}

    def index(self, ready_only: bool = False) -> list[dict[str, Any]]:
        found = [{"name": "identity", "version": "1", "state": "READY", "reason": ""}]
        return found if ready_only else [*found, {"name": "other", "state": "UNAVAILABLE", "reason": "unloaded"}]

    async def load(self, model: str, parameters: Mapping[str, Any]) -> None:
        self._known(model)
        self.loaded.append((model, dict(parameters)))

    async def unload(self, model: str) -> None:
        self._known(model)
        self.loaded.append((model, {}))


class LoopThread:
    """An event loop in a thread of its own."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(30)

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(10)
        self.loop.close()
