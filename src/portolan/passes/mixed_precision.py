"""`mixed_precision`: as few bits per layer as its sensitivity allows.

A few layers carry most of the damage of few bits: the first ones, or those with outliers. Which ones is measured, layer
by layer, and the bytes are saved where a byte costs least.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from portolan.core import protos
from portolan.core.model import Model
from portolan.core.passes import Context, Params, compression
from portolan.core.schema import Knob
from portolan.core.target import Target
from portolan.errors import UsageError
from portolan.passes._calibration import usable
from portolan.passes._graphs import save_graph
from portolan.passes._lowbits import LEAST_GROUP, arrays, opened_for_layers, refuse
from portolan.passes._moments import hessians
from portolan.passes._round import Codes, rounded
from portolan.passes._sensitivity import Choice, Switchboard, within_budget, within_bytes
from portolan.passes._weights import Layer, layers, store

if TYPE_CHECKING:
    import numpy as np

Method = Literal["gptq", "hqq", "rtn"]
_HINT = "leave `mixed_precision` out of the recipe"
#: Samples that layers are judged on: damages are means, and their order shows early.
_JUDGED = 16
#: Beside the groups asked for stand groups so many times smaller: more bytes of scales for less damage.
_FINER = 4
#: How often the choice is corrected by the damage that it really does together.
_CORRECTIONS = 4


def _refuse(model: Model, options: Params, target: Target) -> str | None:
    del options, target
    return refuse(model, {"mode": "weights"})


@compression(
    needs=lambda options: "calibration",
    produces=lambda options: (f"weights:int{options.get('lowest', 4)}",),
    lossy=lambda options: True, stage=lambda options: "precision",
    refuse=_refuse, folds=lambda options: True,
    distributions=("onnxruntime", "onnxslim", "onnx"),
)  # fmt: skip
def mixed_precision(
    model: Model,
    context: Context,
    *,
    budget: Annotated[
        float, Knob(values=(0.01, 0.003), help="largest mean loss of cosine between outputs and the original's")
    ] = 0.01,
    lowest: Annotated[Literal[8, 4, 2], Knob(values=(4, 2), help="fewest bits a weight may get")] = 4,
    smaller: Annotated[
        float, Knob(search=False, help="how many times smaller the constants must become; 0 goes by the budget")
    ] = 0.0,
    method: Annotated[Method, Knob(search=False, help="how weights are rounded, see quantize")] = "gptq",
    group: Annotated[int, Knob(search=False, help="weights under one scale at 4 and 2 bits")] = 128,
    embeddings: Annotated[bool, Knob(search=False, help="tables that are looked up get fewer bits too")] = True,
) -> Model:
    """Stores each layer's weights in float, 8, 4 or 2 bits: the fewest that an error budget allows.

    Each layer's damage at each number of bits is measured alone, with half of the calibration data; the sum predicts
    the damage of all together, and the fewest bytes under that sum are chosen. Then the joint
    damage is measured, and the choice corrected by what was wrong with the prediction. GPTQ fits to the other half.

    Args:
        model: a float model.
        context: its folder gets the file; its calibration data, at least 8 samples, are what is measured on.
        budget: one minus the mean cosine, on the calibration samples that are for choosing.
        lowest: the candidates are float, 8 and so on down to these bits.
        smaller: with a number above 1, the least damage at that ratio is chosen, and `budget` ignored.
        method: as in `quantize`.
        group: the larger of two sizes that layers may have at 4 and 2 bits; the other is a quarter of it.
        embeddings: as in `quantize`.

    Raises:
        UsageError: refused, nothing to quantize, unusable data, a budget or a ratio that nothing reaches.
        ModelError: weights that are NaN or infinite, or a graph that cannot be handled.
    """
    if reason := _refuse(model, {}, context.target):
        raise UsageError(f"`{model.name}` cannot be quantized: {reason}", hint=_HINT)
    if budget < 0 or group < LEAST_GROUP or (smaller and smaller <= 1):
        raise UsageError(
            f"`mixed_precision` cannot use budget={budget}, group={group}, smaller={smaller}",
            hint=f"budget is at least 0, group at least {LEAST_GROUP}, smaller above 1 or 0",
        )
    fitting, judging = halves(usable(model, context.calibration, "mixed precision"))
    original, graph = opened_for_layers(model)
    chosen = layers(graph, embeddings=embeddings)
    if not chosen:
        raise UsageError(f"`{model.name}` cannot be quantized: it has no constant weights", hint=_HINT)
    weights = arrays(graph, chosen, model.name)
    moments = hessians(graph, chosen, fitting, model.name) if method == "gptq" else {}
    work = _Work(weights, moments, group, method)
    board = Switchboard(graph, chosen, weights, judging, model.name)
    choices = {layer: work.choices(board, layer, lowest) for layer in chosen}
    others = protos.weight_bytes(graph) - sum(4 * layer.size for layer in chosen)
    most = int(protos.weight_bytes(graph) / smaller) - others if smaller else None
    plan = _plan(choices, budget, most, work, board, model.name)
    done = [(layer, work.codes(layer, choice.bits, choice.group)) for layer, choice in plan.items() if choice.bits < 32]
    features = (f"weights:int{lowest}",)
    return save_graph(store(graph, done, model.name), original, model, context.folder, features)


class _Work:
    """Quantized layers, each made once."""

    def __init__(
        self, weights: Mapping[str, np.ndarray], moments: Mapping[str, np.ndarray], group: int, method: Method
    ) -> None:
        self._weights, self._moments, self._group, self._method = weights, moments, group, method
        self._known: dict[tuple[Layer, int, int], Codes] = {}

    def codes(self, layer: Layer, bits: int, group: int) -> Codes:
        """The layer by the method."""
        key = (layer, bits, group)
        if key not in self._known:
            moments = self._moments.get(layer.name) if layer.role == "product" else None
            plain = bits == 8 or (self._method == "gptq" and moments is None)
            method: Any = "rtn" if plain else self._method
            real: Any = layer.bits(bits)  # type: ignore[arg-type]
            matrix = layer.matrix(self._weights[layer.name])
            self._known[key] = rounded(matrix, real, layer.group(real, group), method, moments)
        return self._known[key]

    def array(self, layer: Layer, bits: int, group: int) -> np.ndarray:
        """The weights that the layer's codes stand for."""
        return layer.array(self.codes(layer, bits, group).matrix())

    def choices(self, board: Switchboard, layer: Layer, lowest: int) -> list[Choice]:
        """Every precision of a layer with the damage it does alone: float, 8 bits, and fewer in large or small groups.

        Damage grows with the squared error of the weights, so that of 8 bits, too small to measure, follows from the
        damage of the next.
        """
        import numpy as np

        found = [Choice(32, 4 * layer.size, 0.0)]
        groups = dict.fromkeys((max(self._group // _FINER, LEAST_GROUP), self._group))
        wanted = [(b, group) for b in (8, 4, 2) if b >= lowest for group in (groups if b < 8 else [self._group])]
        seen: dict[int, float] = {}
        share = 0.0
        for bits, group in reversed(wanted):  # 8 bits come last
            stored = layer.stored(bits, group)  # type: ignore[arg-type]
            if stored in seen:  # small groups that are the large ones, or bits that the layer cannot have
                continue
            array = self.array(layer, bits, group)
            error = float(np.square(array - self._weights[layer.name], dtype=np.float64).sum())
            if bits == 8 and seen:
                damage = min(share * error, *seen.values())
            else:
                damage = board.damage({layer: array})
                share = damage / error if error > 0 else 0.0
            seen[stored] = damage
            found.insert(1, Choice(bits, stored, damage, group))
        return found


def _plan(
    choices: Mapping[Layer, Sequence[Choice]],
    budget: float,
    most: int | None,
    work: _Work,
    board: Switchboard,
    name: str,
) -> dict[Layer, Choice]:
    """A precision per layer: by bytes where `most` is given, else by the budget, corrected by what it really does.

    Raises:
        UsageError: no choice is that small, or none but float keeps within the budget.
    """
    if most is not None:
        plan = within_bytes(choices, most)
        if sum(choice.stored for choice in plan.values()) > most:
            raise UsageError(
                f"`{name}` cannot become so small: {min(c.bits for c in plan.values())} bits per weight are not enough",
                hint="ask for less with `smaller`, or allow fewer bits with `lowest`",
            )
        return plan
    best: dict[Layer, Choice] | None = None
    asked, low, high = budget, 0.0, float("inf")
    for _ in range(_CORRECTIONS):
        plan = within_budget(choices, asked)
        real = board.damage({x: work.array(x, c.bits, c.group) for x, c in plan.items() if c.bits < 32})
        if real <= budget:
            best, low = plan, asked
            if all(choice == choices[layer][-1] for layer, choice in plan.items()):
                break  # nothing is left to save
        else:
            high = asked
        # The prediction is off by a factor; once both sides are known, the middle.
        guess = asked * budget / real if real > 0 else asked * 4
        asked = min(max(guess, low * 1.05), asked * 4) if high == float("inf") else (low + high) / 2 if low else guess
        if low and high / low < 1.05:
            break
    if best is None or all(choice.bits == 32 for choice in best.values()):
        raise UsageError(
            f"no layer of `{name}` can have fewer bits within a budget of {budget:g}",
            hint="allow more with `budget`",
        )
    return best


def halves(
    runs: Sequence[dict[str, np.ndarray]],
) -> tuple[list[dict[str, np.ndarray]], list[dict[str, np.ndarray]]]:
    """Runs to fit to and runs to choose on; none is in both, equal ones neither."""
    import numpy as np

    def digest(inputs: Mapping[str, np.ndarray]) -> str:
        found = hashlib.sha256()
        for key in sorted(inputs):
            found.update(np.ascontiguousarray(inputs[key]).tobytes())
        return found.hexdigest()

    different = list({digest(inputs): inputs for inputs in runs}.values())
    if len(different) < 2:
        raise UsageError(
            "mixed precision needs different samples to fit to and to choose on, got one run",
            hint="give more samples with `--data`",
        )
    judging = different[1::2]
    rows = np.unique(np.linspace(0, len(judging) - 1, _JUDGED).round().astype(int))
    return different[::2], [judging[int(row)] for row in rows]
