"""A model on the chip and the CPU: compiled into programs and graphs, run part by part, saved and loaded."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from portolan.core.backend import Executable, Tensors
from portolan.core.model import Model
from portolan.core.silence import runtime
from portolan.errors import ModelError, PortolanError, UnsupportedOperator, VerificationFailed
from portolan_systolic import parts as cutting
from portolan_systolic.chip import CLOCK_HZ, EDGE, Chip
from portolan_systolic.claims import Claim, claims
from portolan_systolic.program import Printer, parse

_LACKS = re.compile(r"Fatal error: (\S+?)\(-?\d+\) is not a registered function/op")
_PLAN = "plan.json"


@dataclass(frozen=True, eq=False)
class Kernel:
    """A product, compiled: its program, its constants, and how its tensors lie."""

    about: dict[str, Any]
    program: str
    blobs: dict[str, np.ndarray]

    @classmethod
    def of(cls, claim: Claim) -> Kernel:
        """Prints the claim's program."""
        about = {
            "input": claim.input, "output": claim.output, "batched": claim.batched, "shape": list(claim.shape),
            "type": claim.type, "bytes": claim.output_bytes, "macs": claim.rows * claim.depth * claim.columns,
        }  # fmt: skip
        return cls(
            about, Printer().source(claim), {"weights": claim.packed(), "scale": claim.scale, "bias": claim.bias}
        )

    def __call__(self, value: np.ndarray) -> np.ndarray:
        """Runs every sample of `value`."""
        samples = value if self.about["batched"] else value[None]
        program = parse(self.program)
        made = [self._one(program, sample)[0] for sample in samples]
        empty = np.zeros((0, *self.about["shape"]), self.about["type"])
        result = np.stack(made) if made else empty
        return result if self.about["batched"] else result[0]

    def _one(self, program: Any, sample: np.ndarray) -> tuple[np.ndarray, Chip]:
        chip = Chip()
        data = chip.run(program, np.ascontiguousarray(sample).tobytes(), self.blobs, self.about["bytes"])
        return np.frombuffer(data, self.about["type"]).reshape(self.about["shape"]), chip

    def cost(self, sample: np.ndarray) -> Chip:
        """The chip after one sample: its cycles do not depend on the numbers."""
        return self._one(parse(self.program), sample)[1]


@dataclass(frozen=True, eq=False)
class Plan:
    """Everything that runs, in order: kernels, and graphs for ONNX Runtime as bytes."""

    steps: tuple[Kernel | bytes, ...]
    outputs: tuple[str, ...]
    about: dict[str, Any]


class Shared(Executable):
    """A model on the chip and the CPU."""

    def __init__(self, plan: Plan, where: Path) -> None:
        self._plan = plan
        self._run = [step if isinstance(step, Kernel) else _session(step, where) for step in plan.steps]

    def run(self, inputs: Tensors) -> dict[str, np.ndarray]:
        """Part by part; results that nobody needs any more are dropped with the call."""
        values = dict(inputs)
        for step in self._run:
            if isinstance(step, Kernel):
                values[step.about["output"]] = step(values[step.about["input"]])
            else:
                values |= step(values)
        return {name: np.array(values[name]) for name in self._plan.outputs}

    def save(self, folder: Path) -> None:
        """Programs as text, constants as arrays, graphs as ONNX; never pickle."""
        steps: list[dict[str, Any]] = []
        for number, step in enumerate(self._plan.steps):
            name = f"part{number}"
            if isinstance(step, Kernel):
                (folder / f"{name}.sys").write_text(step.program)
                np.savez(folder / f"{name}.npz", **step.blobs)  # type: ignore[arg-type]
                steps.append({"kernel": name, "about": step.about})
            else:
                (folder / f"{name}.onnx").write_bytes(step)
                steps.append({"graph": name})
        plan = self._plan
        data = {"steps": steps, "outputs": plan.outputs, "about": plan.about}
        (folder / _PLAN).write_text(json.dumps(data))

    def facts(self) -> dict[str, Any]:
        """What the chip took, why not the rest, and the time of its share by its own model: estimated."""
        return {"device": "systolic (simulated) and cpu", **self._plan.about}


def compiled(model: Model) -> Shared:
    """Cuts the graph, prints a program for each product that the chip takes, and checks each against the graph.

    Raises:
        ModelError: the file cannot be read.
        UnsupportedOperator: an operator that neither has.
        VerificationFailed: a program computes something else.
    """
    try:
        batch = model.signature.batch
        graph = cutting.read(model.path, batch if isinstance(batch, str) else None)
    except PortolanError:
        raise
    except Exception as error:  # protobuf's own errors have no types
        hint = "export it again"
        raise ModelError(f"`systolic` cannot read `{model.path.name}`", hint=hint, where=str(model.path)) from error
    taken, refused = claims(graph)
    kernels = {claim.output: Kernel.of(claim) for claim in taken}
    for claim in taken:
        wrong = cutting.verified(claim, kernels[claim.output], lambda p: _session(p, model.path), graph)
        if wrong is not None:
            raise VerificationFailed(
                f"the program of `{claim.operator} {claim.output}` is wrong: its result {wrong}",
                hint="report it to who made the chip's compiler",
            )
    steps = tuple(
        kernels[part.output] if isinstance(part, Claim) else part.proto.SerializeToString()
        for part in cutting.cut(graph, taken)
    )
    outputs = tuple(spec.name for spec in model.signature.outputs)
    return Shared(Plan(steps, outputs, _about(taken, refused, kernels)), model.path)


def load(folder: Path) -> Shared:
    """Reads what `save` wrote; programs are parsed, not trusted: the chip checks every address.

    Raises:
        ModelError: the folder does not hold it.
    """
    try:
        data = json.loads((folder / _PLAN).read_text())
        plan = Plan(tuple(_step(folder, s) for s in data["steps"]), tuple(data["outputs"]), dict(data["about"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"`{folder}` holds no program: {error}", hint="compile the model again") from error
    return Shared(plan, folder)


def _step(folder: Path, step: Mapping[str, Any]) -> Kernel | bytes:
    name = str(step.get("kernel") or step["graph"])
    if not re.fullmatch(r"part\d+", name):
        raise ValueError(f"`{name}` is no part")
    if "graph" in step:
        return (folder / f"{name}.onnx").read_bytes()
    with np.load(folder / f"{name}.npz", allow_pickle=False) as blobs:
        return Kernel(dict(step["about"]), (folder / f"{name}.sys").read_text(), dict(blobs))


def _about(taken: Sequence[Claim], refused: Sequence[tuple[str, str]], kernels: Mapping[str, Kernel]) -> dict[str, Any]:
    chips = [kernels[c.output].cost(np.zeros(c.input_bytes, c.stream["type"])) for c in taken]
    cycles = sum(chip.cycles for chip in chips)
    macs = sum(kernel.about["macs"] for kernel in kernels.values())
    return {
        "precision": "int8" if taken else "f32",
        "claimed": [f"{claim.operator} {claim.output}" for claim in taken],
        "refused": dict(refused),
        "estimate": {
            "kind": "estimated", "of": "the chip's share of one sample", "cycles": cycles, "seconds": cycles / CLOCK_HZ,
            "utilisation": round(macs / (cycles * EDGE * EDGE), 4) if cycles else None,
        },
    }  # fmt: skip


def _session(proto: bytes, where: Path) -> Callable[[Tensors], dict[str, np.ndarray]]:
    ort = runtime("onnxruntime")
    settings = ort.SessionOptions()
    settings.log_severity_level = 3
    try:
        session = ort.InferenceSession(proto, settings, providers=["CPUExecutionProvider"])
    except Exception as error:  # whatever the runtime raises becomes one of Portolan's errors
        if found := _LACKS.search(str(error)):
            hint = "`--backend reference` has every operator that ONNX defines"
            raise UnsupportedOperator(
                f"`systolic` has no operator `{found[1]}`", hint=hint, where=str(where)
            ) from error
        reason = str(error).strip().splitlines()[-1:] or [""]
        raise ModelError(f"`systolic` cannot read `{where.name}`: {reason[0]}", hint="export it again") from error
    inputs, outputs = [i.name for i in session.get_inputs()], [o.name for o in session.get_outputs()]
    return lambda values: dict(zip(outputs, session.run(outputs, {n: values[n] for n in inputs}), strict=True))
