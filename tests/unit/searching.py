"""Fakes for the tests of the search: a model, a target, passes and backends with the options of the real ones, and a
SYNTHETIC machine whose times follow published ratios. Nothing here was measured."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np

from portolan.core.backend import Backend, Executable, Exploit, Support
from portolan.core.goal import Goals, parse_goals
from portolan.core.measurement import Measurement, Metrics
from portolan.core.model import Model
from portolan.core.passes import Context, Pass, compression
from portolan.core.schema import Knob, cores
from portolan.core.signature import Signature, TensorSpec
from portolan.core.target import Target
from portolan.search.space import Candidate, candidates

TARGET = Target("local", "vm", "x86_64", ("avx2", "avx512_bf16", "avx512_vnni"), cores=2, ram=8 << 30)
PLAIN = replace(TARGET, features=("avx2",))
MODEL = Model(
    "net",
    Path("net.onnx"),
    "0" * 64,
    Signature((TensorSpec("x", "float32", (1, 8)),), (TensorSpec("y", "float32", (1, 2)),)),
    program=Path("net.pt2"),
)


class Fake(Backend):
    """Never compiles: the search only reads what a backend declares."""

    name = "onnxruntime"
    distributions = ("onnxruntime",)
    module = "onnxruntime"
    fix = "pip install onnxruntime"
    support: ClassVar[Support] = Support(True, "1")

    def probe(self, target: Target) -> Support:
        return self.support

    def load(self, folder: Path, **options: Any) -> Executable:
        raise NotImplementedError


class Ort(Fake):
    exploits = (Exploit("int8:dynamic", ("avx512_vnni",)), Exploit("int8:static", ("avx512_vnni",)))

    def compile(  # type: ignore[override]
        self,
        model: Model,
        target: Target,
        *,
        graph_optimization: Literal["all", "basic", "disabled"] = "all",
        threads: Annotated[int, Knob(values=cores)] = 0,
        spinning: Annotated[bool, Knob(search=False)] = True,
    ) -> Executable:
        raise NotImplementedError


class Vino(Fake):
    name = "openvino"
    distributions = ("openvino",)
    module = "openvino"
    fix = "pip install openvino"
    exploits = (Exploit("int8:static", ("avx512_vnni",)),)

    def compile(  # type: ignore[override]
        self,
        model: Model,
        target: Target,
        *,
        precision: Annotated[Literal["f32", "bf16"], Knob(needs={"bf16": ("avx512_bf16",)})] = "f32",
        threads: Annotated[int, Knob(values=cores)] = 0,
        hint: Literal["latency", "throughput"] = "latency",
    ) -> Executable:
        raise NotImplementedError


class Torch(Fake):
    name = "torch"
    distributions = ("torch",)
    module = "torch"
    fix = "pip install torch"
    needs_program = True

    def compile(  # type: ignore[override]
        self,
        model: Model,
        target: Target,
        *,
        freezing: bool = True,
        layout: Literal["contiguous", "channels_last"] = "contiguous",
    ) -> Executable:
        raise NotImplementedError


class Missing(Ort):
    name = "missing"
    support = Support(False, reason="the package `missing` is not installed", fix="pip install missing")


@compression()
def simplify(model: Model, context: Context) -> Model:
    """Folds constants."""
    return model


@compression(
    needs=lambda p: "calibration" if p["mode"] == "static" else "nothing",
    produces=lambda p: (f"int8:{p['mode']}",),
    stage=lambda p: "precision",
    lossy=lambda p: True,
)
def quantize(model: Model, context: Context, *, mode: Literal["dynamic", "static"] = "dynamic") -> Model:
    """Makes weights int8."""
    return model


BACKENDS: dict[str, Backend] = {"onnxruntime": Ort(), "openvino": Vino(), "torch": Torch()}
PASSES: dict[str, Pass] = {"simplify": simplify, "quantize": quantize}
EXACT = parse_goals([])
LOSSY = parse_goals(["cosine >= 0.99"])


def space(goals: Goals = LOSSY, **changes: Any) -> list[Candidate]:
    """The space of the fakes; keywords override those of `candidates`."""
    keywords: dict[str, Any] = {"passes": PASSES, "backends": BACKENDS, "has_calibration": True, **changes}
    return candidates(keywords.pop("model", MODEL), keywords.pop("target", TARGET), goals, **keywords)


@dataclass(frozen=True)
class Network:
    """SYNTHETIC factors on the time of the untouched model on ONNX Runtime's defaults."""

    milliseconds: float
    size: float
    vino: float = 0.75
    bf16: float = 0.57
    torch: float = 1.0
    dynamic: float = 0.45
    static: float = 0.35
    basic: float = 1.0
    disabled: float = 1.1
    static_cosine: float = 0.995


NETWORKS: Mapping[str, Network] = {
    "resnet": Network(21.5, 98e6, 0.88, 0.5, 0.94, 6.0, 0.34, 1.5, 1.51),
    "mobilenet": Network(2.8, 14e6, 0.65, 0.6, 1.38, 4.0, 0.4, 2.09, 2.08),
    "vit": Network(8.0, 22e6, 0.89, 0.7, 1.09, 0.6, 0.7, 1.04, 1.06, 0.97),
    "bert": Network(73.0, 420e6, 0.75, 0.56, 0.85, 0.45, 0.5, 0.93, 0.91, 0.9),
    "minilm": Network(9.6, 87e6, 0.75, 0.59, 1.1, 0.42, 0.6, 0.95, 0.89, 0.98),
}


class Machine:
    """A SYNTHETIC machine: fixed true values, and readings with a short run's noise."""

    def __init__(self, network: Network, seed: int = 0, crash: Any = lambda recipe: False) -> None:
        self.network, self.crash = network, crash
        self._seed = seed

    def truth(self, candidate: Candidate) -> tuple[float, float, float]:
        """Milliseconds, bytes and cosine."""
        n, recipe = self.network, candidate.recipe
        factor, size, cosine = {"onnxruntime": 1.0, "openvino": n.vino, "torch": n.torch}[recipe.backend], n.size, 1.0
        for step in recipe.passes:
            if step.name == "simplify":
                factor *= 0.99
            elif step.options["mode"] == "dynamic":
                factor, size, cosine = factor * n.dynamic, size / 3.9, 0.998
            else:
                factor, size, cosine = factor * n.static, size / 3.95, n.static_cosine
        o = recipe.options
        quantized = cosine < 1.0
        if o.get("precision") == "bf16":
            factor *= 0.97 if quantized else n.bf16
            cosine = min(cosine, 0.9999)
        factor *= {"basic": n.basic, "disabled": n.disabled}.get(o.get("graph_optimization", "all"), 1.0)
        factor *= 1.7 if o.get("threads") == 1 else 1.0
        factor *= 1.5 if o.get("hint") == "throughput" else 1.0
        factor *= 1.25 if o.get("freezing") is False else 1.0
        wobble = np.random.default_rng([self._seed, int(candidate.key, 16)]).normal(0, 0.03)
        return n.milliseconds * factor * math.exp(wobble), size, cosine

    def seconds(self, candidate: Candidate, level: int) -> float:
        """What a trial costs."""
        build = {"onnxruntime": 1.0, "openvino": 1.6, "torch": 18.0}[candidate.recipe.backend]
        return (build if level == 0 else 1.0) + (0.6, 3.0)[level]

    def trial(self, candidate: Candidate, level: int, judge: bool = True) -> tuple[Metrics | None, float, str | None]:
        """Metrics, seconds and failure of one trial."""
        if self.crash(candidate.recipe):
            return None, self.seconds(candidate, 0), "crashed with SIGSEGV during `compile`"
        ms, size, cosine = self.truth(candidate)
        noise = (0.03, 0.01)[level]
        read = ms * math.exp(np.random.default_rng([self._seed, level, int(candidate.key, 16)]).normal(0, noise))
        metrics = {
            "latency_p50": Measurement.of("latency_p50", read, read * (1 - 2 * noise), read * (1 + 2 * noise), 50),
            "size": Measurement.of("size", size),
        }
        if judge:
            metrics["cosine"] = Measurement.of("cosine", cosine, cosine - 1e-4, cosine + 1e-5, 64)
            metrics["max_rel_error"] = Measurement.of("max_rel_error", 1e-5 if cosine == 1.0 else 0.05)
        return metrics, self.seconds(candidate, level), None


def kinds_model(*operators: str) -> Model:
    """The model of the fakes with these operators."""
    return replace(MODEL, operators=dict.fromkeys(operators, 1))
