"""A real server for tests: `portolan serve` in processes of its own, and bundles to give it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import portolan


@dataclass
class Server:
    """A running `portolan serve`."""

    process: subprocess.Popen[bytes]
    url: str
    models: list[str]
    grpc: str | None = None

    @property
    def address(self) -> str:
        """Host and port."""
        return self.url.partition("://")[2]

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])

    def get(self, path: str) -> Any:
        """A GET's JSON."""
        with urllib.request.urlopen(f"{self.url}{path}", timeout=30) as answer:
            raw = answer.read()
        return json.loads(raw) if raw else None

    def answer(self, model: str, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What a model says to float32 and int64 arrays, asked in JSON."""
        kinds = {"float32": "FP32", "int64": "INT64"}
        inputs = [
            {"name": n, "shape": list(a.shape), "datatype": kinds[str(a.dtype)], "data": a.ravel().tolist()}
            for n, a in feeds.items()
        ]
        body, kind = json.dumps({"inputs": inputs}).encode(), {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.url}/v2/models/{model}/infer", body, kind)
        with urllib.request.urlopen(request, timeout=60) as reply:
            outputs = json.loads(reply.read())["outputs"]
        return {o["name"]: np.reshape(o["data"], o["shape"]) for o in outputs}

    def children(self) -> dict[str, list[int]]:
        """Process ids of the front and of the replicas."""
        found: dict[str, list[int]] = {"front": [], "replica": []}
        parents = [self.process.pid]
        while parents:
            children = [int(p) for parent in parents for p in children_of(parent)]
            for pid in children:
                words = words_of(pid)
                for kind in found:
                    if f"portolan.serving.{kind}".encode() in words:
                        found[kind].append(pid)
            parents = children
        return found

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Sends a signal and waits for the end."""
        self.process.send_signal(number)
        return self.process.wait(60)


def children_of(pid: int) -> list[str]:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return []


def words_of(pid: int) -> list[bytes]:
    """The command line of a process; empty where it has just ended."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    return []


@contextlib.contextmanager
def serving(*arguments: str | Path, **environment: str) -> Iterator[Server]:
    """Starts `portolan serve` with these arguments on a free port; ends it, and looks that nothing stays behind."""
    argv = [sys.executable, "-m", "portolan", "serve", *map(str, arguments), "--port", "0", "--json"]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, env={**os.environ, **environment})
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        told = json.loads(line)
        yield Server(process, told["url"], told["models"], told["grpc"])
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(40)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if process.stdout is not None:
            process.stdout.close()


def pack(source: str | Path, out: Path, **keywords: Any) -> Path:
    """A bundle of a model."""
    portolan.pack(source, out=out, force=True, **keywords)
    return out


def model(path: Path, nodes: Sequence[Any], inputs: dict[str, Any], outputs: dict[str, Any], weights: Any = ()) -> Path:
    """An ONNX file; inputs and outputs are names with (type, shape)."""
    sides = [[helper.make_tensor_value_info(n, t, s) for n, (t, s) in side.items()] for side in (inputs, outputs)]
    stored = [numpy_helper.from_array(array, name) for name, array in dict(weights).items()]
    graph = helper.make_graph(list(nodes), path.stem, *sides, stored)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(made)
    path.write_bytes(made.SerializeToString())
    return path


def identity(path: Path, width: int = 16, dtype: int = TensorProto.FLOAT, shape: Sequence[int | str] = ()) -> Path:
    """A model that answers what it is asked: input `x`, output `y`, of [N, width]."""
    sizes = list(shape) or ["N", width]
    nodes = [helper.make_node("Identity", ["x"], ["y"])]
    return model(path, nodes, {"x": (dtype, sizes)}, {"y": (dtype, sizes)})


def scaled(path: Path, factor: float) -> Path:
    """A model that multiplies by a number: versions can be told apart by what they answer."""
    nodes = [helper.make_node("Mul", ["x", "f"], ["y"])]
    sides = {"x": (TensorProto.FLOAT, ["N", 4])}, {"y": (TensorProto.FLOAT, ["N", 4])}
    return model(path, nodes, *sides, {"f": np.array(factor, np.float32)})
