"""LitServe with our model: `litserve_host.py MODEL PORT`. It has no such protocol: the body is read by hand."""

from __future__ import annotations

import os
import sys
from typing import Any

import litserve
import numpy as np
import onnxruntime


class Api(litserve.LitAPI):
    def setup(self, device: str) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(os.environ["MODEL"], options)

    def decode_request(self, request):  # type: ignore[no-untyped-def] # its name and missing type decide what LitServe passes
        first = request["inputs"][0]
        return np.asarray(first["data"], np.float32).reshape(first["shape"])

    def predict(self, x: np.ndarray) -> np.ndarray:
        return self._session.run(None, {"x": x})[0]

    def encode_response(self, output: np.ndarray) -> dict[str, Any]:
        data = output.ravel().tolist()
        return {"outputs": [{"name": "y", "datatype": "FP32", "shape": list(output.shape), "data": data}]}


def main() -> None:
    model, port = sys.argv[1:]
    os.environ["MODEL"] = model  # its workers are new processes and know nothing that was set here otherwise
    server = litserve.LitServer(Api(), accelerator="cpu", workers_per_device=1)
    server.run(port=int(port), host="127.0.0.1", log_level="error", generate_client_file=False)


if __name__ == "__main__":
    main()
