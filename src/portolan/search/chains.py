"""Chains of passes: which are worth trying on a model, and why the others are not."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from portolan.core import registry
from portolan.core.goal import Goals
from portolan.core.model import Model
from portolan.core.passes import STAGES, Pass, Stage, misplaced
from portolan.core.recipe import Recipe, Step
from portolan.core.target import Target
from portolan.errors import PortolanError, UnknownName, UsageError
from portolan.search.candidate import ANY, CHANGES, Candidate, Fixed, named, what_differs

#: Passes that change outputs in one chain of a search. More can be asked for with a recipe.
MOST_LOSSY = 2


@dataclass(frozen=True)
class Variant:
    """A pass with its options, and what the rules say about it."""

    step: Step
    features: tuple[str, ...]
    lossy: bool
    stage: Stage
    folds: bool
    refused: str | None


@dataclass(frozen=True)
class Chain:
    """Passes in order, what they produce, and whether they change outputs; without steps, the untouched model."""

    steps: tuple[Step, ...] = ()
    features: tuple[str, ...] = ()
    lossy: bool = False


def selected(given: Mapping[str, Pass] | Sequence[str] | None, fixed: Fixed) -> dict[str, Pass | PortolanError]:
    """The passes to use by name: those that `fixed` names, else those given, else all of the registry.

    Raises:
        UnknownName: no such pass.
        UsageError: a pass in `fixed` without a name.
    """
    wanted = None
    if "passes" in fixed:
        wanted = list(dict.fromkeys(_name(item, i) for i, item in enumerate(fixed["passes"])))
    return named(given, wanted, registry.PASSES, "pass")


def _name(item: Any, i: int) -> str:
    if not isinstance(item, Mapping) or not isinstance(item.get("name"), str):
        raise UsageError("a pass of a recipe needs a `name`", where=f"recipe: $.passes[{i}]")
    return str(item["name"])


def make_chains(
    found: Mapping[str, Pass | PortolanError],
    model: Model,
    target: Target,
    goals: Goals,
    fixed: Fixed,
    has_calibration: bool,
) -> tuple[list[Chain], list[Candidate]]:
    """The chains to try, the empty one first, and what is refused of them.

    A chain is any of the passes that leave outputs alone and at most two that change them, each of another kind, in
    the order of `STAGES`: smaller shapes before zeros, zeros before fewer bits, kernels last; and none simplifies what
    the next one simplifies on its way. With `fixed`, a chain
    is what it names, in its order, unless that order is known to be bad.
    """
    told, ready = [], {}
    for name, item in found.items():
        if isinstance(item, PortolanError):
            told.append(Candidate(Recipe((Step(name),), ANY, target=target.id), refused=str(item)))
        else:
            ready[name] = item

    def variants(item: Pass, pinned: Mapping[str, Any]) -> list[Variant]:
        schema = item.schema
        if unknown := next((name for name in pinned if name not in schema.parameters), None):
            raise UnknownName(f"option of `{item.name}`", unknown, schema.parameters)
        asked = "passes" in fixed
        every = [_variant(item, o, model, target, goals, has_calibration, asked) for o in schema.space(target, pinned)]
        told.extend(_refusals(every, target))
        return [v for v in every if v.refused is None]

    if "passes" in fixed:
        columns = [
            variants(ready[item["name"]], {k: v for k, v in item.items() if k != "name"}) for item in fixed["passes"]
        ]
        chains = []
        for steps in itertools.product(*columns):
            if reason := disorder([v.step for v in steps], ready, model, target):
                told.append(Candidate(Recipe(tuple(v.step for v in steps), ANY, target=target.id), refused=reason))
            else:
                chains.append(_chain(steps))
        return chains, told
    every = {name: variants(item, {}) for name, item in sorted(ready.items())}
    gentle = [(None, *(v for v in row if not v.lossy)) for row in every.values()]
    lossy = [v for row in every.values() for v in row if v.lossy]
    known: Said = {}
    chains = [
        _chain(steps)
        for changing in _combinations(lossy)
        for keeping in itertools.product(*gentle)
        if not {v.step.name for v in keeping if v is not None} & {v.step.name for v in changing}
        for steps in [_in_order([*(v for v in keeping if v is not None), *changing])]
        if not _twice(steps)
        if not disorder([v.step for v in steps], ready, model, target, known)
    ]
    return sorted(chains, key=lambda c: len(c.steps)), told


def _in_order(steps: Sequence[Variant]) -> list[Variant]:
    """By kind, in the order of `STAGES`."""
    return sorted(steps, key=lambda v: STAGES.index(v.stage))


def _twice(steps: Sequence[Variant]) -> bool:
    """Whether a pass that only folds constants stands before one that does so anyway."""
    return any(a.folds and not a.features and b.folds for a, b in itertools.pairwise(steps))


def _combinations(lossy: Sequence[Variant]) -> Iterator[tuple[Variant, ...]]:
    """None of the variants, each alone, and those of different kinds together, in the order of their kinds."""
    ordered = sorted(lossy, key=lambda v: STAGES.index(v.stage))
    for count in range(MOST_LOSSY + 1):
        for some in itertools.combinations(ordered, count):
            if len({v.stage for v in some}) == len(some):
                yield some


#: What a pass said of a model with these features, which takes milliseconds to ask.
Said = dict[tuple[str, tuple[str, ...]], str | None]


def disorder(
    steps: Sequence[Step], passes: Mapping[str, Pass], model: Model, target: Target, said: Said | None = None
) -> str | None:
    """Why these passes must not follow each other in this order; None if they may.

    Args:
        steps: in the order of a recipe, their options checked.
        passes: every pass that `steps` name.
        model: what they are applied to.
        target: where the result is to run.
        said: remembers what passes said of this model, from chain to chain.
    """
    said = {} if said is None else said
    for i, step in enumerate(steps):
        item = passes[step.name]
        for earlier in steps[:i]:
            if why := misplaced(passes[earlier.name].stage(earlier.options), item.stage(step.options)):
                return f"`{step.name}` after `{earlier.name}`: {why}"
        key = str(step), tuple(sorted(model.features))
        if i and key not in said:
            said[key] = item.refuse(model, step.options, target)
        if i and (why := said[key]):
            return f"`{step.name}` after `{steps[i - 1].name}`: {why}"
        model = replace(model, features=(*model.features, *item.produces(step.options)))
    return None


def _variant(
    item: Pass,
    options: Mapping[str, Any],
    model: Model,
    target: Target,
    goals: Goals,
    has_calibration: bool,
    asked: bool,
) -> Variant:
    lossy, needs = item.lossy(options), item.needs(options)
    refused = item.refuse(model, options, target)
    if refused is None and lossy and not goals.lossy:
        refused = CHANGES
    if refused is None and needs != "nothing" and not has_calibration:
        refused = f"needs {needs} data: give --data"
    if refused is None and needs == "training" and not asked:
        refused = "trains for minutes, which a search does only when asked to: name it with --recipe or --passes"
    chosen = item.schema.chosen(options, target)
    said = {name: value for name, value in options.items() if name in chosen and value is not None}  # TOML has no None
    return Variant(
        Step(item.name, said), item.produces(options), lossy, item.stage(options), item.folds(options), refused
    )


def _refusals(variants: Sequence[Variant], target: Target) -> Iterator[Candidate]:
    """One line per pass and reason, with the options that the reason is about."""
    options = [v.step.options for v in variants]
    for reason in dict.fromkeys(v.refused for v in variants if v.refused is not None):
        mine = [v for v in variants if v.refused == reason]
        step = Step(mine[0].step.name, what_differs([v.step.options for v in mine], options))
        yield Candidate(Recipe((step,), ANY, target=target.id), not mine[0].lossy, reason)


def _chain(variants: Sequence[Variant]) -> Chain:
    features = dict.fromkeys(f for v in variants for f in v.features)
    return Chain(tuple(v.step for v in variants), tuple(features), any(v.lossy for v in variants))
