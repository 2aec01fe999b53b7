"""What static int8 makes of a model: ranges from one part of the calibration samples, choices on the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from portolan.errors import ModelError, UsageError
from portolan.passes import _ranges, _smooth
from portolan.passes._int8 import Builder, Plan, folds, places, weights_of
from portolan.passes._observe import Feeds, Judge, Seen, observe
from portolan.passes._products import PRODUCTS, Graph, Layer, attends
from portolan.passes._steps import Kind

if TYPE_CHECKING:
    import numpy as np
    import onnx

#: Migrations to choose from where none is asked for: one per activation by its own error, one for all, none.
_MIGRATIONS = (None, 0.8, 0.0)
#: How many products that went to float are tried in int8 again.
_RETRIES = 12


@dataclass(frozen=True)
class Options:
    """The options of `quantize` that static int8 reads, and the whole numbers that suit the target."""

    per_channel: bool = True
    calibrator: _ranges.Calibrator = "minmax"
    signed: bool = False
    smooth: float | None = None
    keep_cosine: float = 0.99
    kind: Kind = "s8"


def static(
    graph: onnx.ModelProto, fit: Sequence[Feeds], select: Sequence[Feeds], options: Options, name: str
) -> onnx.ModelProto:
    """The graph in static int8.

    Args:
        graph: a float model, simplified.
        fit: the runs that ranges are found on.
        select: the runs that choose the migration, and which products stay in float.
        options: see `Options`.
        name: what to call the model in an error.

    Raises:
        UsageError: an activation is NaN or infinite.
        ModelError: the graph does not run, or no product can be int8 within `keep_cosine`.
    """
    found = Graph(graph)
    builder, judge = Builder(found), Judge(graph, select, name)
    sight = look(found, fit, name)
    if not any(layer.weight is not None for layer in sight.layers):
        raise UsageError(
            f"`{name}` cannot be quantized: no float32 product with constant weights in it is of a kind that int8 has",
            hint="leave `quantize` out of the recipe",
        )
    alphas = _MIGRATIONS if options.smooth is None and sight.groups and attends(graph) else (options.smooth or 0.0,)
    plans = [draft(found, sight, replace(options, smooth=alpha)) for alpha in alphas]
    graphs = [builder.build(plan) for plan in plans]
    cosines = [judge.cosine(one) for one in graphs]
    best = max(range(len(plans)), key=lambda i: cosines[i])
    if cosines[best] >= options.keep_cosine:
        return graphs[best]
    return _within(builder, judge, plans[best], sight, options.keep_cosine, name)


@dataclass(frozen=True)
class Sight:
    """What can be int8 in a graph, and what its activations were.

    Attributes:
        layers: the products.
        more: further tensors of a chain of convolutions.
        groups: the activations that only MatMul and Gemm with constant weights read in 8 bits, and those products.
        seen: every activation.
    """

    layers: tuple[Layer, ...]
    more: tuple[str, ...]
    groups: Mapping[str, Sequence[Layer]]
    seen: Mapping[str, Seen]


def look(graph: Graph, fit: Sequence[Feeds], name: str) -> Sight:
    """Finds the products and runs the graph.

    Of the products of two activations, those in front of a softmax are worth it. Those behind it are not: what 8 bits
    save there is lost again in converting the softmax's result.
    """
    layers = [layer for layer in graph.layers() if layer.weight is not None or not _behind_softmax(graph, layer)]
    more = () if attends(graph.proto) else edges(graph, layers)
    groups = _groups(layers)
    points = set(places(graph, layers, more))
    seen = observe(graph.proto, fit, set(groups), points - set(groups), name)
    layers = [layer for layer in layers if all(seen[tensor].usable for tensor in layer.inputs)]
    more = tuple(tensor for tensor in more if seen[tensor].usable)
    return Sight(tuple(layers), more, _groups(layers), seen)


def draft(graph: Graph, sight: Sight, options: Options) -> Plan:
    """The plan that has every product in int8."""
    points = places(graph, sight.layers, sight.more)
    signed = {tensor for layer in sight.layers if layer.weight is None for tensor in layer.inputs}
    signed = set(points) if options.signed else signed & set(points)
    scales = {}
    for tensor, members in sight.groups.items():
        maker = graph.makers.get(tensor)
        free = maker is not None and folds(graph, maker) and len(graph.readers[tensor]) == len(points[tensor])
        scale = _smooth.choose(sight.seen[tensor], weights_of(graph, members), options.smooth, free=free)
        if scale is not None:
            scales[tensor] = scale
    ranges = {
        tensor: _range(graph, sight.seen[tensor], sight.groups.get(tensor), scales.get(tensor), options)
        for tensor in points
    }
    return Plan(
        sight.layers, (), ranges, scales, sight.more, frozenset(signed), options.kind, options.per_channel
    )  # fmt: skip


def edges(graph: Graph, layers: Sequence[Layer]) -> tuple[str, ...]:
    """What leaves a convolution, and what enters and leaves the additions between them.

    ONNX Runtime computes neither in 8 bits unless these are quantized too, and OpenVINO moves a quarter of the bytes.
    """
    tensors: dict[str, None] = {}
    for layer in layers:
        if layer.kind in ("Conv", "ConvTranspose"):
            tensors[graph.fused(layer.output)] = None
    if tensors:
        for node in graph.proto.graph.node:
            if node.op_type == "Add" and not any(name in graph.constants for name in node.input):
                ends = (*node.input, graph.fused(node.output[0]))
                if any(end in tensors for end in ends[:2]):
                    tensors.update(dict.fromkeys(ends))
    return tuple(tensor for tensor in tensors if tensor in graph.readers and tensor in graph.makers)


def _behind_softmax(graph: Graph, layer: Layer) -> bool:
    return any(tensor in graph.makers and graph.makers[tensor].op_type == "Softmax" for tensor in layer.inputs)


def _groups(layers: Sequence[Layer]) -> dict[str, list[Layer]]:
    groups: dict[str, list[Layer]] = {}
    others: set[str] = set()
    for layer in layers:
        if layer.weight is not None and layer.kind in PRODUCTS:
            groups.setdefault(layer.inputs[0], []).append(layer)
        else:
            others.update(layer.inputs)
    return {tensor: members for tensor, members in groups.items() if tensor not in others}


def _range(
    graph: Graph, seen: Seen, members: Sequence[Layer] | None, scale: np.ndarray | None, options: Options
) -> _ranges.Range:
    import numpy as np

    care = None
    if scale is not None:
        seen = _smooth.smoothed(seen, scale)
    if members and options.calibrator == "mse" and seen.rows.shape[1] > 1:
        weights = weights_of(graph, members)
        care = np.sum([np.square(weight, dtype="f8").sum(axis=1) for weight in weights], axis=0)
        care = (care if scale is None else care * np.square(scale, dtype="f8")).astype("f4")
    return _ranges.choose(seen, options.calibrator, care)


# Float where int8 does the most damage ---------------------------------------------------------------------------


def _within(builder: Builder, judge: Judge, plan: Plan, sight: Sight, keep: float, name: str) -> onnx.ModelProto:
    """The plan with as few products in float as the limit allows, those that do most damage first.

    How noisy each product is alone gives the order, at no cost; where that misleads, what each of them alone does to
    the outputs, which takes a run each. How many have to go is found by halving; then each of them may come back if
    the limit still holds.
    """
    noise = {layer.name: _noise(builder.graph, layer, plan, sight) for layer in plan.layers}
    order = sorted(plan.layers, key=lambda layer: -noise[layer.name])
    trial = _Trial(builder, judge, plan)
    if len(order) > 1 and trial.cosine(order[:-1]) < keep:
        alone = {one.name: trial.cosine([other for other in order if other is not one]) for one in order}
        order = sorted(order, key=lambda layer: alone[layer.name])
    if len(order) == 1 or trial.cosine(order[:-1]) < keep:
        found = trial.cosine(order[:-1])
        raise ModelError(
            f"int8 cannot keep a cosine of {keep:g} on `{name}`: with one product in int8 it is {found:.4f}",
            hint="allow more with `keep_cosine`, give more calibration samples, or use another mode",
        )
    few, many = 0, len(order) - 1  # few is too few
    while many - few > 1:
        middle = (few + many) // 2
        few, many = (few, middle) if trial.cosine(order[:middle]) >= keep else (middle, many)
    gone = order[:many]
    for layer in reversed(order[max(0, many - 1 - _RETRIES) : many - 1]):
        fewer = [other for other in gone if other is not layer]
        gone = fewer if trial.cosine(fewer) >= keep else gone
    return builder.build(without(plan, gone))


@dataclass(frozen=True)
class _Trial:
    """What leaving products in float does to the outputs."""

    builder: Builder
    judge: Judge
    plan: Plan

    def cosine(self, gone: Sequence[Layer]) -> float:
        """The outputs' cosine with these products in float."""
        return self.judge.cosine(self.builder.build(without(self.plan, gone)))


def without(plan: Plan, gone: Sequence[Layer]) -> Plan:
    """The plan with these products in float; their weights stay 8-bit on disk."""
    names = {layer.name for layer in gone}
    return replace(
        plan,
        layers=tuple(layer for layer in plan.layers if layer.name not in names),
        stored=tuple(layer for layer in plan.layers if layer.name in names),
    )


def _noise(graph: Graph, layer: Layer, plan: Plan, sight: Sight) -> float:
    """The squared error that 8-bit activations put into a product, as a share of what it gives."""
    import numpy as np

    total = 0.0
    for tensor in layer.inputs:
        seen, scale = sight.seen[tensor], plan.scales.get(tensor)
        seen = seen if scale is None else _smooth.smoothed(seen, scale)
        lo, hi = plan.ranges[tensor]
        if tensor in plan.signed and lo < 0:
            lo, hi = -max(-lo, hi), max(-lo, hi)
        step, zero = _ranges.steps(lo, hi)
        rows = seen.rows.astype("f4")
        wrong = (np.clip(np.round(rows / np.float32(step)) + zero, 0, _ranges.LEVELS) - zero) * np.float32(step) - rows
        if tensor in sight.groups:
            weight = weights_of(graph, [layer])[0]
            weight = weight if scale is None else weight * scale[:, None]
            rows, wrong = rows @ weight, wrong @ weight
        power = float(np.mean(np.square(rows, dtype="f8")))
        total += float(np.mean(np.square(wrong, dtype="f8"))) / power if power else 0.0
    return total
