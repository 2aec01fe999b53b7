"""Chains of passes: which are worth trying on a model, and why the others are not."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from portolan.core import registry
from portolan.core.goal import Goals
from portolan.core.model import Model
from portolan.core.passes import Pass
from portolan.core.recipe import Recipe, Step
from portolan.core.target import Target
from portolan.errors import PortolanError, UnknownName, UsageError
from portolan.search.candidate import ANY, CHANGES, Candidate, Fixed, named, what_differs


@dataclass(frozen=True)
class Variant:
    """A pass with its options, and what the rules say about it."""

    step: Step
    features: tuple[str, ...]
    lossy: bool
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

    A chain is any of the passes that leave outputs alone, by name, and then at most one that changes them: what two
    lossy passes do to each other is not known before it was tried, and `fixed` can ask for it.
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
        every = [_variant(item, o, model, target, goals, has_calibration) for o in schema.space(target, pinned)]
        told.extend(_refusals(every, target))
        return [v for v in every if v.refused is None]

    if "passes" in fixed:
        columns = [
            variants(ready[item["name"]], {k: v for k, v in item.items() if k != "name"}) for item in fixed["passes"]
        ]
        return [_chain(steps) for steps in itertools.product(*columns)], told
    every = {name: variants(item, {}) for name, item in sorted(ready.items())}
    gentle = [(None, *(v for v in row if not v.lossy)) for row in every.values()]
    lossy = [v for row in every.values() for v in row if v.lossy]
    chains = [
        _chain([v for v in (*before, last) if v is not None])
        for last in (None, *lossy)
        for before in itertools.product(*gentle)
        if last is None or all(v is None or v.step.name != last.step.name for v in before)
    ]
    return sorted(chains, key=lambda c: len(c.steps)), told


def _variant(
    item: Pass, options: Mapping[str, Any], model: Model, target: Target, goals: Goals, has_calibration: bool
) -> Variant:
    lossy, needs = item.lossy(options), item.needs(options)
    refused = item.refuse(model, options, target)
    if refused is None and lossy and not goals.lossy:
        refused = CHANGES
    if refused is None and needs == "calibration" and not has_calibration:
        refused = "needs calibration data: give --data"
    if refused is None and needs == "training":
        refused = "needs training, which a search does not do: apply it with `portolan compress`"
    said = {name: value for name, value in options.items() if value is not None}  # None has no place in TOML
    return Variant(Step(item.name, said), item.produces(options), lossy, refused)


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
