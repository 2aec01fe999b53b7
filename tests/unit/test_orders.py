"""Orders of passes: which are refused, and why, for the passes that there are."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
from nets import perceptron

import portolan
from portolan.core import registry
from portolan.core.passes import STAGES, Stage, misplaced
from portolan.core.plain import parse_call
from portolan.core.recipe import Step
from portolan.core.signature import TensorSpec
from portolan.errors import UsageError
from portolan.search.chains import disorder
from portolan.testing.models import this_machine

GRID = "weights of reduced precision are on a grid that any later change leaves: reduce the precision last"
TWICE = "the weights have a reduced precision already, and a second one would lose twice"
DENSE = "its smaller matrices mix the zeros with the rest, so none would be left: make zeros afterwards"
FIRST = "a simplified graph is what the other passes look for: simplify first"
LAST = "a kernel hides the operators that the other passes look for: put kernels in last"
HIDDEN = "sizes that depend on the data are hidden from it: cut lengths afterwards"
TRIMMED = "it is trimmed already"
MEASURED = "layers were measured as they are: change them before that"
CODES: dict[Stage, str] = {
    "layers": "the model is quantized, and its convolutions are between codes: winograd takes floats",
    "kernels": "the model is quantized, and its chains are between codes: fuse the float model",
}
#: One pass of each kind that a perceptron has something for, and others of that kind.
KINDS: dict[Stage, tuple[str, ...]] = {
    "graph": ("simplify",),
    "structure": ("decompose", "prune(kind=neurons)"),
    "recovery": ("finetune", "distill"),
    "sparsity": ("prune", "prune(kind=2:4)"),
    "length": ("trim",),
    "precision": ("quantize", "quantize(mode=float16)", "mixed_precision"),
    "layers": ("winograd",),
    "kernels": ("fuse",),
}
INTEGERS = ("quantize", "mixed_precision")
BAD: dict[tuple[Stage, Stage], str] = {
    ("precision", "precision"): TWICE,
    **{("precision", later): GRID for later in ("graph", "structure", "recovery", "sparsity", "length")},
    ("sparsity", "structure"): DENSE,
    **{(before, "graph"): FIRST for before in ("structure", "recovery", "sparsity", "length")},
    **{("length", after): HIDDEN for after in ("structure", "recovery", "sparsity")},
    **{("layers", after): MEASURED for after in STAGES if after != "kernels"},
    **{("kernels", after): LAST for after in STAGES},
}  # fmt: skip
PAIRS = list(itertools.product(STAGES, STAGES))


@pytest.mark.parametrize(("before", "after"), PAIRS, ids=[f"{a}-{b}" for a, b in PAIRS])
def test_every_order_of_two_kinds(before: Stage, after: Stage, tmp_path: Path) -> None:
    assert misplaced(before, after) == BAD.get((before, after))
    model = perceptron(tmp_path / "net.onnx")
    mask = TensorSpec("mask", "int64", ("n", "t"))  # something to trim by, to filter and to fuse
    signature = replace(model.signature, inputs=(*model.signature.inputs, mask))
    model = replace(model, operators={**model.operators, "Softmax": 2, "Conv": 1}, signature=signature)
    for first, second in itertools.product(KINDS[before], KINDS[after]):
        steps = [_step(first), _step(second)]
        passes = {step.name: registry.pass_(step.name) for step in steps}
        assert passes[steps[0].name].stage(steps[0].options) == before
        why = disorder(steps, passes, model, this_machine())
        reason = CODES.get(after) if first in INTEGERS else None
        reason = reason or BAD.get((before, after))
        reason = TRIMMED if (before, after) == ("length", "length") else reason
        assert why == (reason and f"`{steps[1].name}` after `{steps[0].name}`: {reason}"), f"{first}, {second}"


@pytest.mark.parametrize(
    ("passes", "reason"),
    [
        (["quantize", "quantize(mode=weights,method=rtn)"], TWICE),
        (["quantize(mode=weights,method=rtn)", "prune(score=magnitude)"], GRID),
        (["prune(score=magnitude)", "decompose(score=magnitude)"], DENSE),
        (["decompose(score=magnitude)", "simplify"], FIRST),
        (["simplify", "prune(score=magnitude)", "quantize", "simplify"], FIRST),
    ],
)
def test_compress_says_why_before_it_does_anything(passes: list[str], reason: str, tmp_path: Path) -> None:
    model = perceptron(tmp_path / "net.onnx")
    with pytest.raises(UsageError) as caught:
        portolan.compress(str(model.path), passes=passes, data=None, out=str(tmp_path / "out.onnx"))
    assert caught.value.message.startswith("the order of the passes is refused: `")
    assert caught.value.message.endswith(reason)
    assert caught.value.exit_code == 2
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]


def _step(text: str) -> Step:
    name, given = parse_call(text, "pass")
    return Step(name, registry.pass_(name).schema.check(given))
