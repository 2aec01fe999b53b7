"""MLServer with our model: `mlserver_host.py MODEL PORT`. In process (no parallel workers), which is its cheapest."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class Onnx(MLModel):
    async def load(self) -> bool:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(self.settings.parameters.uri, options)
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        x = NumpyCodec.decode_input(payload.inputs[0]).astype(np.float32, copy=False)
        (y,) = self._session.run(None, {"x": x})
        return InferenceResponse(model_name=self.name, outputs=[NumpyCodec.encode_output("y", y)])


def main() -> None:
    model, port = sys.argv[1:]
    ports = {"http_port": int(port), "grpc_port": int(port) + 1, "metrics_port": int(port) + 2}
    settings = {"debug": False, "host": "127.0.0.1", "parallel_workers": 0, **ports}
    Path("settings.json").write_text(json.dumps(settings))
    Path("model-settings.json").write_text(
        json.dumps({"name": "identity", "implementation": "mlserver_host.Onnx", "parameters": {"uri": model}})
    )
    os.environ["PYTHONPATH"] = str(Path(__file__).parent)
    os.execvp("mlserver", ["mlserver", "start", "."])


if __name__ == "__main__":
    main()
