"""A `portolan.api` that answers from contract-shaped objects, and a way to run the command line on it."""

from __future__ import annotations

import json
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from click.testing import CliRunner

from portolan.cli.app import app
from portolan.core.measurement import METRICS


def metric(name: str, value: float | None, half: float | None = None, n: int | None = None) -> dict[str, Any]:
    lo, hi = (None, None) if half is None or value is None else (value - half, value + half)
    return {"value": value, "unit": METRICS[name].unit, "lo": lo, "hi": hi, "n": n, "kind": "measured"}


def recipe(backend: str = "onnxruntime", *passes: dict[str, Any], **options: Any) -> dict[str, Any]:
    return {"passes": list(passes), "backend": backend, "options": options, "target": "local", "serving": {}}


def trial(number: int | None, made: dict[str, Any], **rest: Any) -> dict[str, Any]:
    base = {"id": number, "recipe": made, "status": "ok", "reason": None, "metrics": {}, "pareto": False, "met": False}
    return {**base, **rest}


def measured(p50: float, p95: float, mib: float, accuracy: float, drop: float) -> dict[str, Any]:
    return {
        "latency_p50": metric("latency_p50", p50, p50 / 100, 312),
        "latency_p95": metric("latency_p95", p95, p95 / 80, 312),
        "size": metric("size", mib * 2**20),
        "accuracy": metric("accuracy", accuracy, 0.004, 1000),
        "accuracy_drop": metric("accuracy_drop", drop, 0.002, 1000),
    }


INT8 = {"name": "quantize", "bits": 8, "mode": "static"}
GOALS = ["latency_p95 < 8ms", "accuracy_drop <= 1%", "min size"]
BASELINE = trial(0, recipe(), metrics=measured(18.7, 19.4, 97.8, 0.801, 0.0), reason="too slow")
BEST = trial(14, recipe("openvino", INT8, threads=2), metrics=measured(6.1, 6.9, 24.8, 0.798, 0.003), met=True)
BEST["pareto"] = True
SECOND = trial(9, recipe("openvino"), metrics=measured(10.4, 11.2, 97.7, 0.801, 0.0), reason="too slow")
SPARSE = {"name": "prune", "pattern": "2:4"}
REFUSED = [
    trial(None, recipe(b, SPARSE), status="refused", reason="sparsity:2:4 is not exploited by any backend here")
    for b in ("onnxruntime", "openvino", "torch", "reference")
]
CRASHED = trial(11, recipe("torch"), status="failed", reason="the worker died of signal 11 (SIGSEGV)\nmore lines")
RATIO = {"a": 14, "b": 0, "metric": "latency_p95", "ratio": 0.356, "lo": 0.35, "hi": 0.361, "verdict": "faster"}
NOISE = {"aa_ratio": 1.004, "lo": 0.996, "hi": 1.012, "ok": True}
STUDY = {
    "study": "study-resnet50",
    "name": "resnet50",
    "goals": GOALS,
    "met": True,
    "baseline": BASELINE,
    "best": BEST,
    "closest": None,
    "trials": [BASELINE, SECOND, CRASHED, BEST, *REFUSED],
    "seconds": 41.2,
    "measurements": 15,
    "ratios": [RATIO],
    "noise": NOISE,
    "environment": {"steal": 0.001},
    "data": {"rows": 2000, "calibration": 1000, "evaluation": 1000, "labels": True, "synthetic": False},
}
UNMET = {**STUDY, "met": False, "best": None, "closest": SECOND, "trials": [BASELINE, SECOND, CRASHED, *REFUSED]}
PLAN = {
    "study": "study-resnet50",
    "goals": GOALS,
    "budget": "5min",
    "candidates": 18,
    "exact": 6,
    "refused": 1,
    "chains": {"-": 6, "quantize(bits=8, mode=static)": 12},
    "backends": {
        "onnxruntime": {"recipes": 6, "options": {"threads": [2, 1]}},
        "openvino": {"recipes": 12, "options": {"threads": [2, 1], "bf16": [False, True]}},
    },
    "refusals": [{"passes": "prune", "backend": "torch", "options": {}, "reason": "`torch` is not ready"}],
}
INSPECTION = {
    "name": "resnet50",
    "format": "onnx",
    "opset": 17,
    "sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "inputs": [{"name": "x", "dtype": "float32", "shape": ["batch", 3, 224, 224]}],
    "outputs": [{"name": "y", "dtype": "float32", "shape": ["batch", 1000]}],
    "operators": {"Relu": 49, "Conv": 53, "Add": 16, "Gemm": 1},
    "parameters": 25557032,
    "flops": 8178892840.0,
    "bytes_moved": 153092096.0,
    "notes": ["`batch` is free; 1 was taken"],
}
EXAMINATION = {
    "target": {
        "id": "local",
        "fingerprint": "0123456789abcdef",
        "kind": "vm",
        "arch": "x86_64",
        "features": ["avx2", "avx512_vnni", "fma", "fpu"],
        "cores": 2,
        "ram": 16 * 2**30,
        "caches": {"L1d": 49152, "L2": 1048576, "L3": 33554432},
        "accelerators": [],
        "devices": [],
        "runtimes": {"onnxruntime": "1.24.1"},
        "display": "AMD EPYC (AuthenticAMD family 26 model 2)",
        "reach": [],
    },
    "backends": [
        {"name": "onnxruntime", "ready": True, "version": "1.24.1", "reason": None, "fix": None, "devices": {}},
        {
            "name": "openvino",
            "ready": False,
            "version": None,
            "reason": "the package `openvino` is not installed",
            "fix": "pip install 'portolan[openvino]'",
            "devices": {},
        },
    ],
    "passes": [{"name": "quantize", "about": "Integer weights.", "needs": "calibration", "reason": None}],
}
ENVIRONMENTS: dict[str, Any] = {
    "action": "list",
    "root": "/home/me/.local/share/portolan/envs",
    "environments": [
        {
            "name": "iree", "state": "absent", "reason": None, "fix": "portolan env add iree", "version": None,
            "size": None, "folder": "/home/me/.local/share/portolan/envs/iree", "about": "Ahead-of-time code.",
            "packages": [{"name": "iree-base-runtime", "version": "3.13.0", "licence": "Apache-2.0"}],
        },
        {
            "name": "litert", "state": "ready", "reason": None, "fix": None, "version": "2.3.0",
            "size": 2_100_000_000, "folder": "/home/me/.local/share/portolan/envs/litert",
            "about": "Phones and boards.",
            "packages": [
                {"name": "ai-edge-litert", "version": "2.3.0", "licence": "Apache-2.0"},
                {"name": "numpy", "version": "2.4.6", "licence": "BSD-3-Clause"},
            ],
        },
        {
            "name": "tvm", "state": "half installed", "reason": "the environment `tvm` is half installed",
            "fix": "portolan env repair tvm", "version": None, "size": None,
            "folder": "/home/me/.local/share/portolan/envs/tvm", "about": "Untuned code.", "packages": [],
        },
    ],
}  # fmt: skip
PAYOFFS: list[dict[str, Any]] = [
    {"passes": "quantize(bits=8, mode=dynamic)", "features": ["int8:dynamic"], "operators": operators,
     "backend": "onnxruntime", "ratio": ratio, "lo": lo, "hi": hi, "reason": reason}
    for operators, ratio, lo, hi, reason in (
        ("products", 2.31, 2.2, 2.4, None), ("convolutions", None, None, None, "the worker was killed"),
    )
]  # fmt: skip
PAYOFFS.append({**PAYOFFS[0], "passes": "decompose(keep=0.5)", "ratio": 1.4, "lo": 1.3, "hi": 1.5})
CEILINGS = {"flops_fp32": 121e9, "flops_int8": 402e9, "bandwidth": 38.5e9}
COMPRESSION = {
    "model": "resnet50-quantize.onnx",
    "recipe": recipe("onnxruntime", INT8),
    "metrics": {"size": metric("size", 24.8 * 2**20), "cosine": metric("cosine", 0.9987, 0.0002, 64)},
}
COMPARISON = {
    "arms": [
        {"name": "m.onnx@onnxruntime", "metrics": {k: BASELINE["metrics"][k] for k in ("latency_p50", "latency_p95")}},
        {"name": "m.onnx@openvino", "metrics": {k: SECOND["metrics"][k] for k in ("latency_p50", "latency_p95")}},
    ],
    "ratios": [
        {
            "a": "m.onnx@openvino",
            "b": "m.onnx@onnxruntime",
            "metric": "latency_p50",
            "ratio": 0.556,
            "lo": 0.55,
            "hi": 0.563,
            "verdict": "faster",
        }
    ],
    "noise": NOISE,
    "environment": {"steal": 0.06},
}
ARM = {
    "id": "arm", "fingerprint": "3f2a0d1c9b8e7f66", "kind": "emulated", "arch": "aarch64",
    "features": ["asimd", "asimddp"], "cores": 2, "ram": 2**34, "caches": {}, "accelerators": [], "runtimes": {},
    "display": "neoverse-v1 under qemu-user 10.0.13",
    "reach": ["/targets/arm/qemu-aarch64", "-cpu", "neoverse-v1", "/targets/arm/root/usr/bin/python3.13"],
}  # fmt: skip
ADDED = {
    "name": "arm", "emulate": "aarch64", "folder": "/targets/arm", "made": "2026-11-21T18:00:00+00:00",
    "size": 263 * 2**20,
    "packages": {"onnxruntime": "1.31.1", "qemu-user": "1:10.0.13"}, "target": ARM,
}  # fmt: skip
BROKEN = {"name": "old", "folder": "/targets/old", "reason": "the record of the target `old` cannot be read: format 0",
          "fix": "portolan target remove old, and add it again"}  # fmt: skip
OLDER = {**ADDED, "name": "older", "outdated": ["ncnn absent for 1.0.20261020", "onnxruntime 1.31.1 for 1.32.0"],
         "fix": "portolan target add older --emulate aarch64 --force"}  # fmt: skip
TARGETS: dict[str, Any] = {"action": "list", "targets": [ADDED, BROKEN, OLDER]}
NOTHING = {"value": None, "lo": None, "hi": None, "n": None, "kind": "measured"}
ELSEWHERE = {
    "arms": [
        {
            "name": f"m-{name}.onnx@onnxruntime", "same": error < 1e-3,
            "metrics": {
                "latency_p50": {**NOTHING, "unit": "ms"}, "size": metric("size", 97 * 2**20),
                "agreement": metric("agreement", 1.0, 0.0, 64),
                "max_rel_error": metric("max_rel_error", error, None, 64),
            },
        }
        for name, error in (("f32", 6e-7), ("int8", 0.035))
    ],
    "ratios": [], "noise": {"aa_ratio": None, "lo": None, "hi": None, "ok": False}, "environment": {}, "target": ARM,
    "notes": ["`arm` is emulated: time, energy and cost are not measured there, only answers and crashes"],
}  # fmt: skip
PACKING = {
    "bundle": "resnet50.portolan",
    "sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "files": ["manifest.json", "recipe.toml", "compiled/model.onnx", "golden/inputs.npz", "golden/outputs.npz"],
    "verified": True,
    "notes": [],
}


DEPLOYMENT: dict[str, Any] = {
    "bundle": "resnet50.portolan",
    "sha256": PACKING["sha256"],
    "name": "resnet50",
    "out": "deploy-resnet50",
    "facts": {
        "replicas": [1, 4], "max_batch": 8, "deadline": 0.05, "cpus": 2, "profiled": True,
        "latency": metric("latency_p95", 6.9, 0.1, 312), "memory": metric("memory", 300 * 2**20), "cold_start": None,
    },
    "platforms": [
        {
            "name": "docker", "folder": "deploy-resnet50/docker", "notes": [],
            "files": ["Dockerfile", *(f"bundle/compiled/part{i}.bin" for i in range(9)), "bundle/manifest.json"],
            "next": ["docker build -t resnet50:9f86d081884c deploy-resnet50/docker"],
        },
        {
            "name": "triton", "folder": "deploy-resnet50/triton",
            "files": ["resnet50/1/model.onnx", "resnet50/config.pbtxt"], "next": ["docker run tritonserver"],
            "notes": ["Triton's clients see `y` with a further axis of 1: it takes no scalars"],
        },
    ],
}  # fmt: skip


@dataclass(frozen=True)
class Answered:
    data: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        return self.data


class Api(types.ModuleType):
    """The verbs with the keywords of the real ones, so that a call that does not fit them fails here too."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
        self.answers: dict[str, Any] = {
            "inspect": INSPECTION,
            "doctor": EXAMINATION,
            "optimize": STUDY,
            "compress": COMPRESSION,
            "bench": COMPARISON,
            "pack": PACKING,
            "check": PACKING,
            "deploy": DEPLOYMENT,
            "env": ENVIRONMENTS,
            "target": TARGETS,
        }

    @property
    def keywords(self) -> dict[str, Any]:
        """The keywords of the last call, less the progress function."""
        return {k: v for k, v in self.calls[-1][2].items() if k != "progress"}

    def _answer(self, verb: str, args: tuple[Any, ...], keywords: dict[str, Any]) -> Answered:
        self.calls.append((verb, args, keywords))
        answer = self.answers[verb]
        if isinstance(answer, BaseException):
            raise answer
        return Answered(answer() if callable(answer) else answer)

    def inspect(self, model: str, *, shapes: Any = None, target: str = "local") -> Answered:
        return self._answer("inspect", (model,), {"shapes": shapes, "target": target})

    def doctor(self, target: str = "local", *, bench: bool = False, progress: Any = None) -> Answered:
        return self._answer("doctor", (target,), {"bench": bench})

    def optimize(
        self, model: str, *, goals: Any, data: Any, metric: Any, shapes: Any, study: Any, backend: Any, passes: Any,
        recipe: Any, budget: Any, jobs: int, seed: int, target: str, price: Any, dry_run: bool,
        progress: Callable[[str], None],
    ) -> Answered:  # fmt: skip
        progress("screening 3 of 18")
        given = {k: v for k, v in locals().items() if k not in ("self", "model")}
        return self._answer("optimize", (model,), given)

    def compress(
        self, model: str, *, passes: Any, out: Any, data: Any, shapes: Any, seed: int, force: bool, dry_run: bool,
        progress: Callable[[str], None],
    ) -> Answered:  # fmt: skip
        given = {k: v for k, v in locals().items() if k not in ("self", "model")}
        return self._answer("compress", (model,), given)

    def bench(
        self, *arms: str, data: Any, shapes: Any, backend: Any, budget: Any, seed: int, target: str,
        native: bool, progress: Callable[[str], None],
    ) -> Answered:  # fmt: skip
        given = {k: v for k, v in locals().items() if k not in ("self", "arms")}
        return self._answer("bench", arms, given)

    def target(
        self, action: str, name: Any, *, emulate: Any, cpu: Any, mirror: Any, latest: bool, force: bool, dry_run: bool,
        progress: Callable[[str], None],
    ) -> Answered:  # fmt: skip
        given = {k: v for k, v in locals().items() if k not in ("self", "action", "name")}
        return self._answer("target", (action, name), given)

    def report(self, *studies: str, out: str, force: bool, dry_run: bool) -> Answered:
        self.answers.setdefault("report", lambda: {"report": self.keywords["out"]})
        return self._answer("report", studies, {"out": out, "force": force, "dry_run": dry_run})

    def pack(
        self, source: str, *, out: Any, name: Any, trial: Any, backend: Any, data: Any, shapes: Any, target: str,
        force: bool, dry_run: bool, progress: Callable[[str], None],
    ) -> Answered:  # fmt: skip
        given = {k: v for k, v in locals().items() if k not in ("self", "source")}
        return self._answer("pack", (source,), given)

    def check(self, bundle: str, *, native: bool, target: str) -> Answered:
        return self._answer("check", (bundle,), {"native": native, "target": target})

    def deploy(
        self, bundle: str, *, to: Any, out: Any, service: Any, image: Any, replicas: Any, storage_uri: Any,
        scale_on: Any, force: bool, dry_run: bool,
    ) -> Answered:  # fmt: skip
        given = {k: v for k, v in locals().items() if k not in ("self", "bundle")}
        return self._answer("deploy", (bundle,), given)

    def env(self, action: str, *names: str, force: bool, dry_run: bool, progress: Any) -> Answered:
        return self._answer("env", (action, *names), {"force": force, "dry_run": dry_run})

    def open(self, path: str) -> Answered:
        self.calls.append(("open", (path,), {}))
        if isinstance(answer := self.answers.get("open"), BaseException):
            raise answer
        return Answered(STUDY)


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one object on stdout."""
        return json.loads(self.out)

    @property
    def last(self) -> str:
        return self.out.splitlines()[-1]


def run(*args: str) -> Ran:
    """Runs the command line in this process."""
    result = CliRunner().invoke(app, list(args))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Ran(result.exit_code, result.stdout, result.stderr)
