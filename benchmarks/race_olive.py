"""Olive's f32 for CPUs, in Olive's own environment: `OLIVE_PYTHON race_olive.py KIND MODEL.onnx OUT.onnx`.

KIND is an architecture of transformers, or `none`. A peer for race_peers.py, run there when PORTOLAN_PYTHON_OLIVE names
an interpreter that has it. The passes are those that Olive's own rules choose for an ONNX model in f32 on a CPU.
Olive's telemetry stays off.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path


def main() -> int:
    kind, model, out = sys.argv[1:4]
    os.environ["OLIVE_DISABLE_TELEMETRY"] = "1"
    from olive import run

    passes: dict[str, object] = {"peephole": {"type": "OnnxPeepholeOptimizer"}}
    if kind != "none":
        passes["transformers"] = {"type": "OrtTransformersOptimization", "model_type": kind}
    with tempfile.TemporaryDirectory() as folder:
        run(
            {
                "input_model": {"type": "OnnxModel", "model_path": str(Path(model).resolve())},
                "passes": passes,
                "output_dir": f"{folder}/out",
                "cache_dir": f"{folder}/cache",
                "log_severity_level": 3,
            }
        )
        found = next(Path(folder, "out").rglob("*.onnx"), None)
        if found is None:
            sys.exit("Olive wrote no model: its pass failed")
        shutil.copyfile(found, out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
