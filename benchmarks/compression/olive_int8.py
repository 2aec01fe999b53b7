"""Olive's int8, in Olive's own environment: `OLIVE_PYTHON olive_int8.py MODEL.onnx SAMPLES.npz MODE OUT.onnx`.

MODE is `dynamic` or `static`; static calibrates on the samples in the file, 64 at most. A peer for int8.py, run there
when PORTOLAN_PYTHON_OLIVE names an interpreter that has it (`pip install olive-ai onnxruntime requests`, with torch
pinned as in constraints.txt). Olive's telemetry stays off.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path

SCRIPT = """
import numpy as np
from olive.data.registry import Registry

class Samples:
    def __init__(self, path):
        with np.load(path) as archive:
            self.arrays = {n: archive[n] for n in archive.files if n != "labels"}
    def __len__(self):
        return min(64, len(next(iter(self.arrays.values()))))
    def __getitem__(self, row):
        return {n: a[row] for n, a in self.arrays.items()}, 0

@Registry.register_dataset()
def samples(data_path, **_):
    return Samples(data_path)
"""


def main() -> int:
    model, samples, mode, out = sys.argv[1:5]
    os.environ["OLIVE_DISABLE_TELEMETRY"] = "1"
    from olive import run

    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "script.py"
        script.write_text(SCRIPT)
        step: dict[str, object] = {"type": f"Onnx{mode.capitalize()}Quantization"}
        config: dict[str, object] = {
            "input_model": {"type": "OnnxModel", "model_path": str(Path(model).resolve())},
            "passes": {"quantize": step},
            "output_dir": f"{folder}/out",
            "cache_dir": f"{folder}/cache",
            "log_severity_level": 3,
        }
        if mode == "static":
            config["data_configs"] = [
                {
                    "name": "samples",
                    "type": "DataContainer",
                    "user_script": str(script),
                    "load_dataset_config": {"type": "samples", "data_path": str(Path(samples).resolve())},
                    "dataloader_config": {"batch_size": 1},
                }
            ]
            step["data_config"] = "samples"
        run(config)
        found = next(Path(folder, "out").rglob("*.onnx"))
        shutil.copyfile(found, out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
