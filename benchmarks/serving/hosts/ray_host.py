"""Ray Serve with our model, in its cheap mode: `ray_host.py MODEL PORT`. The body is read by hand."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import threading

os.environ |= {"RAY_SERVE_THROUGHPUT_OPTIMIZED": "1", "RAY_SERVE_ENABLE_HA_PROXY": "1", "RAY_USAGE_STATS_ENABLED": "0"}

import ray
from ray import serve
from ray.serve.schema import LoggingConfig
from starlette.requests import Request


@serve.deployment(max_ongoing_requests=256, ray_actor_options={"num_cpus": 0.5})
class Onnx:
    def __init__(self, path: str) -> None:
        import numpy as np
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session, self._np = onnxruntime.InferenceSession(path, options), np

    async def __call__(self, request: Request) -> dict[str, object]:
        first = (await request.json())["inputs"][0]
        x = self._np.asarray(first["data"], self._np.float32).reshape(first["shape"])
        (y,) = self._session.run(None, {"x": x})
        data = y.ravel().tolist()
        return {"outputs": [{"name": "y", "datatype": "FP32", "shape": list(y.shape), "data": data}]}


def main() -> None:
    model, port = sys.argv[1:]
    folder, quiet = tempfile.mkdtemp(prefix="ray-"), LoggingConfig(enable_access_log=False)
    ray.init(address="local", num_cpus=2, include_dashboard=False, _temp_dir=folder, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": int(port)}, logging_config=quiet)
    serve.run(Onnx.bind(model), route_prefix="/infer", logging_config=quiet)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    stop.wait()
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main()
