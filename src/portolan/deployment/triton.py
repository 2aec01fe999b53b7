"""Triton Inference Server: a model repository, `NAME/config.pbtxt` and `NAME/1/model.onnx`.

Field names and their meaning: triton-inference-server/common, `protobuf/model_config.proto`; parameters of
the backends: the READMEs of triton-inference-server/onnxruntime_backend and openvino_backend.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from portolan.bundle.names import show
from portolan.core.signature import TensorSpec
from portolan.deployment import _sizing as sizing
from portolan.deployment._facts import Facts
from portolan.deployment._files import model_files
from portolan.deployment._platform import Emitted, Platform
from portolan.deployment._yaml import comment, sentence
from portolan.errors import NoBackend

_TYPES: Mapping[str, str] = {
    "bool": "TYPE_BOOL", "string": "TYPE_STRING",
    "float16": "TYPE_FP16", "float32": "TYPE_FP32", "float64": "TYPE_FP64",
    **{f"{sign}int{bits}": f"TYPE_{sign.upper()}INT{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)},
}  # fmt: skip
#: ONNX Runtime's levels in Triton's numbers; without one it is `all`.
_LEVELS = {"basic": -1, "extended": 1, "disabled": 2}
_FOLDER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}\Z")
_MODEL = "model.onnx"
#: Triton's own image; its releases are named after months.
_IMAGE = "nvcr.io/nvidia/tritonserver:YY.MM-py3"


class Triton(Platform):
    """A model repository for Triton's ONNX Runtime or OpenVINO backend."""

    name = "triton"
    about = "a Triton model repository"

    def emit(self, facts: Facts) -> Emitted:
        """Refuses bundles without an ONNX graph, and element types that Triton has no word for."""
        backend = facts.manifest.recipe.backend
        if backend not in ("onnxruntime", "openvino") or _MODEL not in model_files(facts.bundle):
            raise NoBackend(
                f"Triton cannot run this bundle: `{backend}` compiled it, and only ONNX graphs for `onnxruntime` and "
                "`openvino` run there",
                hint="pack for one of those (`--backend onnxruntime`), or `--to docker`, which runs any bundle",
            )
        name = facts.choices.service or facts.manifest.name
        notes = []
        if not _FOLDER.match(name):
            name = facts.label
            notes.append(f"Triton calls the model `{name}`: `{show(facts.manifest.name)}` cannot be a folder there")
        bare = [spec for spec in _specs(facts) if len(spec.shape) == int(_batched(facts))]
        notes += [f"Triton's clients see `{show(s.name)}` with a further axis of 1: it takes no scalars" for s in bare]
        if backend == "openvino" and facts.bundle.options.get("precision", "f32") == "f32":
            notes.append(
                "Triton's OpenVINO backend cannot be told to stay with f32: where the processor has bf16 it takes that"
            )
        config = "\n".join(_config(facts, name, backend)) + "\n"
        run = f"docker run --rm -p 8000:8000 -v {{folder}}:/models {_IMAGE} tritonserver --model-repository=/models"
        return Emitted({f"{name}/config.pbtxt": config}, model=f"{name}/1", next=[run], notes=notes)


def _config(facts: Facts, name: str, backend: str) -> Iterator[str]:
    manifest = facts.manifest
    batched = _batched(facts)
    made = " ".join(f"{dist} {version}" for dist, version in manifest.versions.items())
    yield from comment(f"`{manifest.name}`, bundle sha256 {facts.bundle.sha256[:12]}, made with {made or backend}.")
    yield from comment("Use a Triton release that brings this version of the runtime or a newer one.")
    yield f"name: {quote(name)}"
    yield f"backend: {quote(backend)}"
    yield f"default_model_filename: {quote(_MODEL)}"
    yield from _limit(facts, batched)
    for side, specs in (("input", manifest.signature.inputs), ("output", manifest.signature.outputs)):
        for spec in specs:
            shape = spec.shape[1:] if batched else spec.shape
            yield f"{side} {{ name: {quote(spec.name)} data_type: {_type(spec)} {_dims(shape)} }}"
    yield from _instances(facts)
    if batched:
        yield from _batching(facts)
    yield from _options(facts, backend)
    yield from _warmup(facts, batched)


def _dims(shape: Sequence[int | str]) -> str:
    """The extents; a free one is -1. Triton knows no tensor without extents, so one of 1 stands for it."""
    if not shape:
        return "dims: [ 1 ] reshape { shape: [ ] }"
    return f"dims: [ {', '.join(str(d) if isinstance(d, int) else '-1' for d in shape)} ]"


def _batched(facts: Facts) -> bool:
    """Whether Triton may join requests: a measured limit, and a first axis that is free everywhere."""
    free = all(spec.shape and isinstance(spec.shape[0], str) for spec in _specs(facts))
    return free and (facts.batch or 1) > 1 and isinstance(facts.manifest.signature.batch, str)


def _specs(facts: Facts) -> tuple[TensorSpec, ...]:
    return (*facts.manifest.signature.inputs, *facts.manifest.signature.outputs)


def _limit(facts: Facts, batched: bool) -> Iterator[str]:
    if batched:
        measured = "measured" if facts.profile else "set by the recipe"
        yield from comment(f"Most rows that run together ({measured}); a request with more is refused.")
        yield f"max_batch_size: {facts.max_batch}"
        return
    if isinstance(facts.manifest.signature.batch, str):
        yield from comment("No batch limit was measured, so requests are not joined; one may hold any number of rows.")
    else:
        yield from comment("The model's first axis is fixed, so requests cannot be joined.")
    yield "max_batch_size: 0"


def _instances(facts: Facts) -> Iterator[str]:
    few, many = facts.replicas
    if few != many:
        yield from comment(f"The recipe scales from {few} to {many}; Triton does not scale, so it is the most.")
    yield f"instance_group {{ count: {many} kind: KIND_CPU }}"


def _batching(facts: Facts) -> Iterator[str]:
    yield from comment("No delay: a batch is what waits when an instance is free.")
    yield "dynamic_batching {"
    yield "  default_queue_policy {"
    deadline = facts.serving.deadline
    if deadline is None:
        yield from comment("No deadline was chosen: requests wait unless they name a timeout.", "    ")
    yield "    timeout_action: REJECT"
    if deadline is not None:
        yield f"    default_timeout_microseconds: {max(1, round(deadline * 1e6))}"
    yield "    allow_timeout_override: true"
    bound = sizing.queue(facts, facts.replicas[1])
    yield from comment(sentence(bound.why), "    ")
    yield f"    max_queue_size: {bound.value}"
    yield "  }"
    yield "}"


def _options(facts: Facts, backend: str) -> Iterator[str]:
    options = facts.bundle.options
    yield from comment(sentence(sizing.cpus(facts).why))
    if backend == "openvino":
        yield _parameter("INFERENCE_NUM_THREADS", facts.threads)
        yield _parameter("PERFORMANCE_HINT", str(options.get("hint", "latency")).upper())
        if options.get("precision") == "bf16":
            yield _parameter("HINT_BF16", "YES")
        return
    yield _parameter("intra_op_thread_count", facts.threads)
    if (level := _LEVELS.get(str(options.get("graph_optimization", "all")))) is not None:
        yield f"optimization {{ graph {{ level: {level} }} }}"


def _warmup(facts: Facts, batched: bool) -> Iterator[str]:
    yield from comment("Run before the model is ready, so that no client pays for the first call of a size.")
    feeds = facts.bundle.feeds(0)
    measured = facts.profile.sizes if facts.profile else []
    # A model without a batch axis is warmed up with one call: Triton passes over samples of size 0.
    sizes = [s for s in measured if s <= facts.max_batch] or sorted({1, facts.max_batch}) if batched else [1]
    for size in sizes:
        yield "model_warmup {"
        yield f"  name: {quote(f'batch of {size}' if batched else 'one call')}"
        yield f"  batch_size: {size}"
        for spec in facts.manifest.signature.inputs:
            yield from _sample(spec, feeds[spec.name].shape[1 if batched else 0 :])
        yield "}"


def _sample(spec: TensorSpec, shape: Sequence[int]) -> Iterator[str]:
    dims = ", ".join(map(str, shape or (1,)))
    yield "  inputs {"
    yield f"    key: {quote(spec.name)}"
    yield f"    value {{ data_type: {_type(spec)} dims: [ {dims} ] zero_data: true }}"
    yield "  }"


def _type(spec: TensorSpec) -> str:
    try:
        return _TYPES[spec.dtype]
    except KeyError as error:
        raise NoBackend(
            f"Triton has no element type for `{show(spec.name)}`, which is {spec.dtype}",
            hint="`--to docker` runs any bundle",
        ) from error


def _parameter(key: str, value: Any) -> str:
    return f"parameters {{ key: {quote(key)} value {{ string_value: {quote(str(value))} }} }}"


def quote(text: str) -> str:
    """A string of protobuf's text format; what is not plain ASCII as escaped bytes."""
    return '"' + "".join(_byte(b) for b in text.encode("utf-8", "surrogatepass")) + '"'


def _byte(b: int) -> str:
    c = chr(b)
    if c in '"\\':
        return f"\\{c}"
    return c if 0x20 <= b < 0x7F else f"\\{b:03o}"


triton = Triton()
