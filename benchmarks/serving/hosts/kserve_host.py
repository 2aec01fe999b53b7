"""KServe's Python server with our model: `kserve_host.py MODEL PORT`."""

from __future__ import annotations

import sys
from typing import Any

import kserve
import numpy as np
import onnxruntime
from kserve.protocol.infer_type import InferOutput, InferRequest, InferResponse


class Onnx(kserve.Model):
    def __init__(self, path: str) -> None:
        super().__init__("identity")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(path, options)
        self.ready = True

    async def predict(self, payload: InferRequest, headers: Any = None, response_headers: Any = None) -> InferResponse:
        x = payload.inputs[0].as_numpy().astype(np.float32, copy=False)
        (y,) = self._session.run(None, {"x": x})
        output = InferOutput("y", list(y.shape), "FP32")
        output.set_data_from_numpy(y, binary_data=False)
        return InferResponse(payload.id or "", self.name, [output])


def main() -> None:
    model, port = sys.argv[1:]
    server = kserve.ModelServer(
        http_port=int(port), workers=1, enable_grpc=False, enable_latency_logging=False, access_log_format=None
    )
    server.start([Onnx(model)])


if __name__ == "__main__":
    main()
