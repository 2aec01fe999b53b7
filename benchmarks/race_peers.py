"""Peers' defaults at the fidelity of the original, for race_runtimes.py: what a user of each would run.

- `ort-transformers`: the file that ONNX Runtime's own optimizer of transformers writes, with its fusions; Optimum's
  `-O2` and Olive's pass call the same.
- `olive`: the file that Olive's passes for f32 on CPUs write (where PORTOLAN_PYTHON_OLIVE names an interpreter that
  has it: `pip install olive-ai onnxruntime requests`, with torch pinned as in constraints.txt).
- `torch`, `torch.compile`: the exported program in eager mode, and compiled with the defaults. Triton Model Navigator's
  candidates on a CPU are these and ONNX Runtime's defaults.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from portolan.core.graph import load_model
from portolan.errors import WorkerError

#: What ONNX Runtime's optimizer calls the architectures.
TRANSFORMERS = {"vit": "vit", "bert": "bert", "minilm": "bert", "gpt2": "gpt2"}
EAGER, COMPILED = "torch eager", "torch.compile"
#: Seconds that making a file may take, and one answer of torch.
_SECONDS, _PATIENCE = 600, 300.0


def make(name: str, zoo: Path, graph: Path) -> tuple[dict[str, Path], dict[str, str]]:
    """The peers' files by the peers' names, and why others have none."""
    folder = zoo / "runtimes-peers"
    folder.mkdir(exist_ok=True)
    made: dict[str, Path] = {}
    out: dict[str, str] = {}
    commands = {}
    if name in TRANSFORMERS:
        commands["ort-transformers"] = [sys.executable, "-c", _FUSE, TRANSFORMERS[name]]
    if python := os.environ.get("PORTOLAN_PYTHON_OLIVE"):
        script = Path(__file__).with_name("race_olive.py")
        commands["olive"] = [*shlex.split(python), str(script), TRANSFORMERS.get(name, "none")]
    for peer, command in commands.items():
        file = folder / f"{name}-{peer}.onnx"
        done = None
        if not file.is_file():
            done = subprocess.run(
                [*command, graph, file], capture_output=True, text=True, timeout=_SECONDS, env=_quiet()
            )
        if file.is_file():
            made[peer] = file
        elif done is not None:
            out[peer] = (done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"])[-1][:300]
    program = zoo / f"{name}.pt2"
    return made | ({EAGER: program, COMPILED: program} if program.is_file() else {}), out


def _quiet() -> dict[str, str]:
    return dict(os.environ) | {"ORT_DISABLE_TELEMETRY": "1", "OLIVE_DISABLE_TELEMETRY": "1"}


_FUSE = """
import sys
from onnxruntime.transformers.optimizer import optimize_model
kind, source, out = sys.argv[1:]
optimize_model(source, model_type=kind).save_model_to_file(out)
"""


def session(peer: str, file: Path, task: Any) -> Any:
    """A fresh process of a peer's: its file on ONNX Runtime with the defaults, or torch.

    Raises:
        WorkerError: it does not load or run.
    """
    if peer in (EAGER, COMPILED):
        return Torch(file, task, compiled=peer == COMPILED)
    return task.session("onnxruntime", {}, load_model(file))


class Torch:
    """A process of torch's own: loads the program, and is told how long to run it."""

    def __init__(self, program: Path, task: Any, compiled: bool) -> None:
        self._feeds, self._folder = task.feeds, tempfile.TemporaryDirectory(prefix="race-torch-")
        self._outputs = [spec.name for spec in task.model.signature.outputs]
        place = Path(self._folder.name)
        names = [spec.name for spec in task.model.signature.inputs]
        np.savez(
            place / "feeds.npz",
            **{f"{i}/{k}": feed[n] for i, feed in enumerate(self._feeds) for k, n in enumerate(names)},
        )
        script = Path(__file__).with_name("race_torch.py")
        command = [sys.executable, str(script), str(program), "compile" if compiled else "eager", str(place)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        try:
            self._ask({"run": 0})
        except BaseException:
            self.close()
            raise

    def _ask(self, request: Mapping[str, Any]) -> Any:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        late = threading.Timer(_PATIENCE, self._process.kill)
        late.start()
        try:
            with contextlib.suppress(BrokenPipeError):
                stdin.write(json.dumps(request) + "\n")
                stdin.flush()
            line = stdout.readline()
        finally:
            late.cancel()
        reply = json.loads(line) if line else {"error": "torch ended, or took too long"}
        if "error" in reply:
            raise WorkerError(reply["error"])
        return reply

    def block(self, seconds: float) -> np.ndarray:
        """Milliseconds of each inference of a block of about `seconds`."""
        return np.array(self._ask({"seconds": seconds})["ms"])

    def answer(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs of one call with one of the task's feeds."""
        self._ask({"run": next(i for i, one in enumerate(self._feeds) if one is feed)})
        with np.load(Path(self._folder.name) / "outputs.npz") as arrays:
            return {name: arrays[str(i)] for i, name in enumerate(self._outputs)}

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        self._folder.cleanup()
