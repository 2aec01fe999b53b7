"""Static int8 against its peers: `python benchmarks/compression/int8.py ZOO [NAME...] [--starts 10] [--rows 128]`.

ZOO is the folder that `python benchmarks/models.py ZOO` fills. For each model, in one interleaved race over fresh
processes: ONNX Runtime's defaults in f32 (the baseline), the outputs of ONNX Runtime's own `quantize_dynamic` and
`quantize_static`, NNCF's on OpenVINO in f32 and bf16 (where `PORTOLAN_PYTHON_NNCF` names an interpreter that has it, or
it is installed here), Olive's (where `PORTOLAN_PYTHON_OLIVE` names one), and Portolan's `quantize(mode=static)` on
OpenVINO in f32 and bf16 and on ONNX Runtime, alone and behind `trim`, which helps where samples hold padding. All are
calibrated on the same samples, timed on the same sixteen, and judged on others that none of them saw.

Exits 1 where a bound is missed. MiniLM: Portolan at least 3.9 times smaller and 3.8 times faster than the baseline at a
held-out cosine of 0.995; what `quantize` does of that alone is told. Every model: `quantize` alone on OpenVINO is not
slower than NNCF's best beyond the noise; over all models Portolan's best is ahead in geometric mean, and that of
`quantize` alone is told. Models with random weights say nothing about quality.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from portolan.core.data import feeds, sample, timed
from portolan.core.graph import load_model
from portolan.core.model import Model
from portolan.core.recipe import Recipe, Step
from portolan.core.registry import pass_
from portolan.core.silence import silence
from portolan.errors import PortolanError
from portolan.measure.race import Arm, race
from portolan.measure.result import Race
from portolan.study.builder import Builder, Compiled, Samples
from portolan.study.optimize import read_samples
from portolan.study.probe import Session, judge
from portolan.study.workspace import Workspace
from portolan.targets.local import local
from portolan.worker.environments import backends

NAMES = ("minilm", "bert", "vit", "resnet50", "mobilenetv2")
TRAINED = ("minilm",)
SMALLER, FASTER, COSINE = 3.9, 3.8, 0.995
CALIBRATION = 64
BASE = "f32 on onnxruntime"
#: The beginnings of the names of `quantize` alone on OpenVINO, and of all that is Portolan's.
ALONE, OURS = "portolan on openvino", ("portolan", "trimmed")
PRECISIONS = ("f32", "bf16")


@dataclass
class Result:
    """One arm: how much smaller and faster than the baseline, and how near to it on samples that nobody saw."""

    name: str
    size: float
    cosine: float
    speed: float = math.nan
    lo: float = math.nan
    hi: float = math.nan


@dataclass
class Outcome:
    """One model: its arms, those that failed with their reasons, and the speed of `quantize`, and of all, over NNCF."""

    model: str
    arms: list[Result]
    failed: dict[str, str] = field(default_factory=dict)
    over_nncf: tuple[float, float, float] | None = None
    best_over_nncf: tuple[float, float, float] | None = None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("zoo", type=Path)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(NAMES)}; all by default")
    parser.add_argument("--starts", type=int, default=10, help="process starts of each arm")
    parser.add_argument("--rows", type=int, default=128, help="held-out samples")
    given = parser.parse_args()
    silence()
    outcomes = []
    for name in given.names or NAMES:
        with tempfile.TemporaryDirectory() as scratch:
            outcomes.append(measure(given.zoo / f"{name}.onnx", Path(scratch), given.starts, given.rows))
        show(outcomes[-1])
        (given.zoo / f"int8-{name}.json").write_text(json.dumps(asdict(outcomes[-1]), indent=1))
    return verdict(outcomes)


def measure(path: Path, scratch: Path, starts: int, rows: int) -> Outcome:
    """Builds, judges and races every arm for one model."""
    model, workspace, target = load_model(path), Workspace(scratch / "work"), local.detect()
    samples = read_samples(str(path.with_suffix(".npz")), model, scratch, 0, None, str(path))
    inputs = timed(samples.data, samples.evaluation, model.signature)
    outcome, arms, built = Outcome(path.stem, []), [], {}
    for name, make, backend, options in contenders(path.stem in ("resnet50", "mobilenetv2")):
        print(f"  {path.stem}: {name}", file=sys.stderr, flush=True)
        try:
            changed = make(Maker(model, samples, scratch, workspace))
            builder = Builder(workspace, changed, target, backends(target), samples)
            built[name] = builder.compiled(Recipe((), backend, options))
            arms.append(Arm(name, partial(Session, built[name], inputs)))
        except Exception as error:  # a peer's library may raise anything
            outcome.failed[name] = f"{type(error).__name__}: {error}"
    held = samples.evaluation[:rows]
    right = outputs(built[BASE], samples, held, model)
    original = path.stat().st_size
    for name, compiled in built.items():
        found = judge(outputs(compiled, samples, held, model), right, None, None, model.signature.outputs)
        outcome.arms.append(Result(name, original / compiled.size, found["cosine"].value))
    settle(outcome, race(arms, baseline=BASE, starts=starts, blocks=4, rng=np.random.default_rng(0)))
    workspace.close()
    return outcome


def contenders(convolutional: bool) -> Iterator[tuple[str, Callable[[Maker], Model], str, dict[str, str]]]:
    """Name, how the model is made, backend and options of each arm; the baseline first."""
    yield BASE, Maker.untouched, "onnxruntime", {}
    if not convolutional:  # which would be six times slower
        yield "ort dynamic", Maker.ort_dynamic, "onnxruntime", {}
    yield "ort static", Maker.ort_static, "onnxruntime", {}
    yield "portolan on onnxruntime", Maker.portolan, "onnxruntime", {}
    if not convolutional:
        yield "trimmed, portolan on onnxruntime", Maker.trimmed, "onnxruntime", {}
    for precision in PRECISIONS:
        yield f"nncf on openvino {precision}", Maker.nncf, "openvino", {"precision": precision}
        yield f"portolan on openvino {precision}", Maker.portolan, "openvino", {"precision": precision}
        if convolutional:
            yield f"portolan on openvino {precision}, signed", Maker.signed, "openvino", {"precision": precision}
        else:
            yield f"trimmed, portolan on openvino {precision}", Maker.trimmed, "openvino", {"precision": precision}
    for mode in ("dynamic", "static") if os.environ.get("PORTOLAN_PYTHON_OLIVE") else ():
        if mode == "static" or not convolutional:
            yield f"olive {mode}", partial(Maker.olive, mode=mode), "onnxruntime", {}


@dataclass(frozen=True)
class Maker:
    """Makes the contenders' models, all from the same calibration samples."""

    model: Model
    samples: Samples
    scratch: Path
    workspace: Workspace

    def untouched(self) -> Model:
        """The baseline."""
        return self.model

    def portolan(self, *before: Step, **options: str | bool) -> Model:
        """Portolan's own static int8."""
        step = Step("quantize", pass_("quantize").schema.check({"mode": "static", **options}))
        few = Samples(
            self.samples.data, self.samples.path, self.samples.calibration[:CALIBRATION],
            self.samples.evaluation, self.samples.synthetic,
        )  # fmt: skip
        target = local.detect()
        if why := pass_("quantize").refuse(self.model, step.options, target):
            raise PortolanError(why)
        return Builder(self.workspace, self.model, target, backends(target), few).artefact([*before, step])

    def trimmed(self) -> Model:
        """The same of a model whose padding is cut off."""
        return self.portolan(Step("trim", pass_("trim").schema.check({})))

    def nncf(self) -> Model:
        """NNCF's, through the same pass."""
        return self.portolan(method="nncf")

    def signed(self) -> Model:
        """Portolan's, with activations in int8 in place of uint8."""
        return self.portolan(signed=True)

    def olive(self, mode: str) -> Model:
        """Olive's, in its own environment, on the same calibration samples."""
        rows = list(self.samples.calibration[:CALIBRATION])
        np.savez(self.scratch / "rows.npz", **{n: a[rows] for n, a in self.samples.data.inputs.items()})
        out = self.scratch / f"olive-{mode}.onnx"
        script = Path(__file__).with_name("olive_int8.py")
        command = [
            *shlex.split(os.environ["PORTOLAN_PYTHON_OLIVE"]), script, self.model.path, self.scratch / "rows.npz",
            mode, out,
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
        if done.returncode:
            raise PortolanError(f"Olive failed: {done.stderr.strip().splitlines()[-1]}")
        return load_model(out)

    def ort_dynamic(self) -> Model:
        """As ONNX Runtime's documentation has it: per channel, weights signed."""
        from onnxruntime.quantization import QuantType, quantize_dynamic

        out = self.scratch / "ort-dynamic.onnx"
        quantize_dynamic(self._prepared(), out, per_channel=True, weight_type=QuantType.QInt8)
        return load_model(out)

    def ort_static(self) -> Model:
        """As ONNX Runtime's documentation has it: QDQ, per channel, activations unsigned, everything."""
        from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

        runs = feeds(self.samples.data, self.samples.calibration[:CALIBRATION], self.model.signature)

        class Reader(CalibrationDataReader):  # type: ignore[misc]
            def get_next(self) -> dict[str, np.ndarray] | None:
                return next((inputs for inputs, _ in runs), None)

        out = self.scratch / "ort-static.onnx"
        quantize_static(
            self._prepared(), out, Reader(), per_channel=True,
            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
        )  # fmt: skip
        return load_model(out)

    def _prepared(self) -> Path:
        from onnxruntime.quantization.shape_inference import quant_pre_process

        out = self.scratch / "prepared.onnx"
        if not out.is_file():
            quant_pre_process(self.model.path, out, skip_symbolic_shape=True)
        return out


def outputs(compiled: Compiled, samples: Samples, rows: tuple[int, ...], model: Model) -> dict[str, np.ndarray]:
    """What a compiled model gives for the held-out rows."""
    session = Session(compiled, [sample(samples.data, rows[0], model.signature)])
    try:
        return session.outputs(samples, rows, model.signature)
    finally:
        session.close()


def settle(outcome: Outcome, raced: Race) -> None:
    """Adds what the race found."""
    outcome.failed.update(raced.failures)
    for arm in outcome.arms:
        if arm.name == BASE:
            arm.speed = arm.lo = arm.hi = 1.0
        elif arm.name in raced.arms:
            ratio = raced.ratio(arm.name, BASE)
            arm.speed, arm.lo, arm.hi = 1 / ratio.ratio, 1 / ratio.hi, 1 / ratio.lo
    theirs = best(outcome, "nncf on openvino")
    for ours, place in ((best(outcome, ALONE), "over_nncf"), (best(outcome, *OURS), "best_over_nncf")):
        if ours is not None and theirs is not None:
            ratio = raced.ratio(ours.name, theirs.name)
            setattr(outcome, place, (1 / ratio.ratio, 1 / ratio.hi, 1 / ratio.lo))


def best(outcome: Outcome, *prefixes: str) -> Result | None:
    """The fastest arm whose name begins so."""
    found = [arm for arm in outcome.arms if arm.name.startswith(prefixes) and arm.speed == arm.speed]
    return max(found, key=lambda arm: arm.speed, default=None)


def show(outcome: Outcome) -> None:
    """A table per model."""
    quality = "held-out cosine" if outcome.model in TRAINED else "random weights: no quality claim"
    print(f"{outcome.model} ({quality})")
    for arm in outcome.arms:
        near = f"{arm.cosine:.4f}" if outcome.model in TRAINED else ""
        print(
            f"  {arm.name:28} {arm.size:5.2f}x smaller  {arm.speed:5.2f}x [{arm.lo:.2f}, {arm.hi:.2f}] faster  {near}"
        )
    for name, why in outcome.failed.items():
        print(f"  {name:28} - {why}")
    for what, over in (("quantize", outcome.over_nncf), ("portolan", outcome.best_over_nncf)):
        if over is not None:
            print(f"  {what} over nncf, each on its best: {over[0]:.3f}x [{over[1]:.3f}, {over[2]:.3f}]", flush=True)


def mean(over: list[tuple[float, float, float] | None]) -> float | None:
    """The geometric mean of ratios; None without any."""
    known = [math.log(each[0]) for each in over if each is not None]
    return math.exp(sum(known) / len(known)) if known else None


def verdict(outcomes: list[Outcome]) -> int:
    """Every bound, and whether it holds."""
    bad: list[str] = []
    for outcome in outcomes:
        ours = best(outcome, *OURS)
        if ours is None:
            bad.append(f"{outcome.model}: Portolan's arms failed")
        elif outcome.model == "minilm":
            reached = (("smaller", ours.size, SMALLER), ("faster", ours.speed, FASTER), ("cosine", ours.cosine, COSINE))
            bad += [f"minilm: {word} {value:.4g}, at least {least}" for word, value, least in reached if value < least]
        if outcome.over_nncf is not None and outcome.over_nncf[2] < 1:
            bad.append(f"{outcome.model}: slower than NNCF beyond the noise")
    alone = mean([outcome.over_nncf for outcome in outcomes])
    if (ahead := mean([outcome.best_over_nncf for outcome in outcomes])) is not None:
        print(f"geometric mean over NNCF: {ahead:.3f}x (above 1); `quantize` alone: {alone:.3f}x")
        bad += ["not ahead of NNCF in geometric mean"] * (ahead <= 1)
    print("missed: " + "; ".join(bad) if bad else "every bound holds")
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
