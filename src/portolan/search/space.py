"""The search space: every recipe worth trying here, and for what is left out, why.

Rules come before measurements. A recipe that cannot run, that no backend would gain from, or that changes outputs
when no goal allows it, is refused with its reason, at no cost:

    untouched model ─┐                       ┌─ not ready, or cannot run this model
    chains of passes ┴─ × backends × options ┼─ a produced feature that nothing exploits
                                             ├─ outputs would change, and no goal allows it
                                             └─ data is needed that is not there

Refusals are told once each, not once per combination: a table of hundreds of equal lines helps nobody.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from portolan.core import registry
from portolan.core.backend import Backend
from portolan.core.extensions import FEATURE as KERNELS
from portolan.core.goal import Goals
from portolan.core.model import Model
from portolan.core.passes import Pass
from portolan.core.recipe import Recipe
from portolan.core.target import DEVICE_FEATURES, Target
from portolan.errors import NoBackend, PortolanError, UnknownName
from portolan.search.candidate import ANY, CHANGES, Candidate, Fixed, named, what_differs
from portolan.search.chains import Chain, make_chains, selected
from portolan.search.payoff import Payoff, wasted

__all__ = ["ANY", "DEFAULT_BACKEND", "Candidate", "candidates", "describe"]

#: The runtime that the untouched model runs on when nobody chose: the baseline of every study.
DEFAULT_BACKEND = "onnxruntime"
_KEYS = ("passes", "backend", "options", "target", "serving")


def candidates(
    model: Model,
    target: Target,
    goals: Goals,
    *,
    passes: Mapping[str, Pass] | Sequence[str] | None = None,
    backends: Mapping[str, Backend] | Sequence[str] | None = None,
    named: bool = True,
    default: Backend | None = None,
    fixed: Fixed | None = None,
    has_calibration: bool = False,
    payoffs: Sequence[Payoff] = (),
    refused_too: bool = True,
) -> list[Candidate]:
    """Every recipe to search, the baseline first, then backends' defaults before other options; refusals last.

    Args:
        model: the model as it was loaded.
        target: where it is to run.
        goals: whether outputs may change is read from them.
        passes: pass objects by name, or names in the registry; None means all of the registry.
        backends: likewise; None means all that let themselves be searched.
        named: whether somebody named the backends; those that want to be named for this model are refused if not.
        default: the backend of the baseline, whether or not it is searched; by default the registry's ONNX Runtime,
            or with objects given the first of them that can run the model.
        fixed: what is pinned, in the form of a recipe; a list of values is a range. What it leaves out is searched.
        has_calibration: whether there is data that passes may calibrate on.
        payoffs: what features were measured to bring here; those that bring nothing are refused, unless a goal is
            about bytes or the recipe is pinned.
        refused_too: False leaves the refusals out.

    Raises:
        NoBackend: no backend can run the model on this target.
        UnknownName: a pass, backend or option that does not exist.
        UsageError: `fixed` has an unknown key or a value that does not fit.
    """
    fixed = fixed or {}
    if unknown := next((key for key in fixed if key not in _KEYS), None):
        raise UnknownName("key of a recipe", unknown, _KEYS)
    usable, refused = _usable(_backends(backends, fixed), model, target, named)
    chains, more = make_chains(selected(passes, fixed), model, target, goals, fixed, has_calibration)
    refused += more
    if not usable:
        raise _nobody_runs(model, target, refused)
    if default is None and not isinstance(backends, Mapping) and DEFAULT_BACKEND in registry.BACKENDS.names():
        default = registry.backend(DEFAULT_BACKEND)
    base = _default(usable, default, model, target)
    _check_options(usable, fixed)

    baseline = Recipe((), base.name, base.schema.check({}), target.id)
    found = [Candidate(baseline, base.exact(baseline.options), heavy=base.heavy or base.needs_program)]
    options = {name: _options(b, target, goals, fixed.get("options", {})) for name, b in usable.items()}
    for _, told in options.values():
        refused += [replace(c, recipe=replace(c.recipe, target=target.id)) for c in told]
    serving = fixed.get("serving", {})
    known = () if "passes" in fixed else payoffs
    for chain, backend in _pairs(chains, usable, model, target, goals, known, refused):
        for chosen in options[backend.name][0]:
            # What somebody names is tried all the same.
            if not fixed.get("options") and backend.ignores(chain.features, chosen):
                continue
            recipe = Recipe(chain.steps, backend.name, chosen, target.id, serving)
            exact = not chain.lossy and backend.exact(chosen)
            heavy = backend.heavy or backend.needs_program or KERNELS in chain.features
            found.append(Candidate(recipe, exact, heavy=heavy, features=chain.features))
    return _merged(found + refused if refused_too else found)


def describe(space: Sequence[Candidate]) -> dict[str, Any]:
    """The size of a space and its dimensions, as plain data for `--dry-run`.

    Returns:
        `candidates` and `refused` (counts), `exact` (how many keep the arithmetic), `chains` (recipes per chain of
        passes), `backends` (per backend: `recipes`, and `options` with the values tried), `refusals` (each with
        `passes`, `backend`, `options`, `reason`).
    """
    live = [c for c in space if c.refused is None]
    chains: dict[str, int] = {}
    backends: dict[str, dict[str, Any]] = {}
    for recipe in (c.recipe for c in live):
        chains[str(recipe)] = chains.get(str(recipe), 0) + 1
        entry = backends.setdefault(recipe.backend, {"recipes": 0, "options": {}})
        entry["recipes"] += 1
        for name, value in recipe.options.items():
            values = entry["options"].setdefault(name, [])
            if value not in values:
                values.append(value)
    refusals = [
        {"passes": str(c.recipe), "backend": c.recipe.backend, "options": dict(c.recipe.options), "reason": c.refused}
        for c in space
        if c.refused is not None
    ]
    return {
        "candidates": len(live),
        "exact": sum(c.exact for c in live),
        "refused": len(refusals),
        "chains": chains,
        "backends": backends,
        "refusals": refusals,
    }


def _merged(found: Iterable[Candidate]) -> list[Candidate]:
    seen: dict[tuple[str, str | None], Candidate] = {}
    for candidate in found:
        seen.setdefault((candidate.key, candidate.refused), candidate)
    return list(seen.values())


# --- backends


def _backends(given: Mapping[str, Backend] | Sequence[str] | None, fixed: Fixed) -> dict[str, Backend | PortolanError]:
    pinned = fixed.get("backend")
    wanted = [pinned] if isinstance(pinned, str) else pinned
    found: dict[str, Backend | PortolanError] = named(given, wanted, registry.BACKENDS, "backend")
    if given is None and wanted is None:
        found = {n: b for n, b in found.items() if isinstance(b, PortolanError) or b.searched}
    return found


def _usable(
    found: Mapping[str, Backend | PortolanError], model: Model, target: Target, named: bool
) -> tuple[dict[str, Backend], list[Candidate]]:
    """The backends that can run the untouched model, the default one first and those that compile for long last."""
    usable, refused = {}, []
    for name, backend in found.items():
        reason = str(backend) if isinstance(backend, PortolanError) else _unusable(backend, model, target, named)
        if isinstance(backend, PortolanError) or reason is not None:
            refused.append(Candidate(Recipe((), name, target=target.id), refused=reason))
        else:
            usable[name] = backend
    order = sorted(usable, key=lambda n: (n != DEFAULT_BACKEND, usable[n].heavy or usable[n].needs_program))
    return {name: usable[name] for name in order}, refused


def _unusable(backend: Backend, model: Model, target: Target, named: bool) -> str | None:
    support = backend.probe(target)
    if not support.ready:
        reason = support.reason or f"`{backend.name}` cannot run on this target"
        return f"{reason}: {support.fix}" if support.fix else reason
    if backend.simulated:
        return f"the hardware of `{backend.name}` is simulated, so nothing on it can be measured: `bench` estimates"
    return backend.refuse(model, target) or (None if named else backend.unasked(model))


def _default(usable: Mapping[str, Backend], default: Backend | None, model: Model, target: Target) -> Backend:
    """The backend of the baseline: the default runtime, even when others were asked for, else the first usable one."""
    if DEFAULT_BACKEND in usable:
        return usable[DEFAULT_BACKEND]
    if default is not None and _unusable(default, model, target, named=True) is None:
        return default
    return next(iter(usable.values()))


def _nobody_runs(model: Model, target: Target, refused: Sequence[Candidate]) -> NoBackend:
    reasons = "; ".join(dict.fromkeys(f"`{c.recipe.backend}`: {c.refused}" for c in refused if c.recipe.backend != ANY))
    return NoBackend(
        f"no backend can run `{model.name}` on `{target.id}`" + (f" ({reasons})" if reasons else ""),
        hint="`portolan doctor` says what is missing and the command that adds it",
    )


def _check_options(usable: Mapping[str, Backend], fixed: Fixed) -> None:
    known = {name for backend in usable.values() for name in backend.schema.parameters}
    for name in fixed.get("options", {}) if usable else ():
        if name not in known:
            raise UnknownName("option of the backends", name, known)


def _options(
    backend: Backend, target: Target, goals: Goals, pinned: Mapping[str, Any]
) -> tuple[list[dict[str, Any]], list[Candidate]]:
    """The option sets to try, the defaults first, and what is refused of them."""
    schema = backend.schema
    mine = {name: value for name, value in pinned.items() if name in schema.parameters}
    able = list(backend.space(target, mine))
    defaults = schema.check({})
    if not mine and defaults not in able and backend.lacks(defaults, target) is None:
        able.insert(0, defaults)
    allowed = [o for o in able if goals.lossy or backend.exact(o)]
    told = [Candidate(Recipe((), backend.name, {n: v}), refused=why) for n, v, why in _lacking(backend, target, mine)]
    if len(allowed) < len(able):
        reduced = [o for o in able if o not in allowed]
        told.append(Candidate(Recipe((), backend.name, what_differs(reduced, able)), False, CHANGES))
    return allowed, told


def _lacking(backend: Backend, target: Target, pinned: Mapping[str, Any]) -> Iterator[tuple[str, Any, str]]:
    """Option values that the target rules out, each with its reason."""
    single = {name: value for name, value in pinned.items() if not isinstance(value, (list, tuple))}
    usual = backend.schema.check({}) | single
    for name, parameter in backend.schema.parameters.items():
        given = pinned.get(name)
        asked = given if isinstance(given, (list, tuple)) else (given,)
        if given is None:
            needs = parameter.knob.needs if parameter.knob.search else {}
            asked = [value for value, of in needs.items() if _news(name, of, target)]
        for value in asked:
            if lacking := backend.lacks({**usual, name: value}, target):
                yield name, value, ": ".join(filter(None, (lacking.reason, lacking.fix)))


def _news(name: str, needs: tuple[str, ...], target: Target) -> bool:
    """Whether it is worth a word that a value cannot be used which nobody asked for.

    A device that is not there is not, but one that is and cannot be used is.
    """
    if name == "device":
        return target.has(*needs)
    return not target.has(*needs) and not set(needs) <= set(DEVICE_FEATURES)


# --- chains on backends


def _pairs(
    chains: Sequence[Chain],
    usable: Mapping[str, Backend],
    model: Model,
    target: Target,
    goals: Goals,
    payoffs: Sequence[Payoff],
    refused: list[Candidate],
) -> list[tuple[Chain, Backend]]:
    """Every chain with every backend that takes it; the reasons of the others go to `refused`."""
    pairs = []
    known: dict[frozenset[str], set[str]] = {}  # backends that refused these steps, and were told
    for chain in chains:
        reasons = {name: _unfit(b, chain, model, target, goals, payoffs) for name, b in usable.items()}
        pairs += [(chain, usable[name]) for name, reason in reasons.items() if reason is None]
        steps = frozenset(map(str, chain.steps))
        old = set().union(*(names for shorter, names in known.items() if shorter < steps))
        why = {name: reason for name, reason in reasons.items() if reason is not None}
        news = {name: reason for name, reason in why.items() if name not in old}
        # What starts from the torch program has one reason for all chains.
        known[steps] = {name for name in why if not usable[name].needs_program}
        known.setdefault(frozenset(), set()).update(name for name in why if usable[name].needs_program)
        if news and len(why) == len(usable) and all(b.needs_program or n in news for n, b in usable.items()):
            news = {ANY: _nobody(chain, usable, target, goals) or "; ".join(dict.fromkeys(news.values()))}
        for name, reason in news.items():
            refused.append(Candidate(Recipe(chain.steps, name, target=target.id), not chain.lossy, reason))
    return pairs


def _unfit(
    backend: Backend, chain: Chain, model: Model, target: Target, goals: Goals, payoffs: Sequence[Payoff]
) -> str | None:
    if not chain.steps:
        return None
    if backend.needs_program:
        return f"`{backend.name}` starts from the torch program, and passes change only the ONNX graph"
    if why := backend.refuse(replace(model, features=(*model.features, *chain.features)), target):
        return why
    if {"size", "memory"} & set(goals.metrics):
        return None
    for feature in chain.features:
        if backend.gain(feature, target) == "size":
            return f"{feature} saves bytes but no time on `{backend.name}`, and no goal is about size"
    return wasted(payoffs, backend.name, chain.features, model.operators)


def _nobody(chain: Chain, usable: Mapping[str, Backend], target: Target, goals: Goals) -> str | None:
    """The first feature of the chain that no backend exploits here, or none for speed where only that would help."""
    able = [b for b in usable.values() if not b.needs_program]
    for feature in chain.features:
        gains = {b.gain(feature, target) for b in able}
        if gains <= {None}:
            return f"{feature} is exploited by no backend on this target"
        if "speed" not in gains and not {"size", "memory"} & set(goals.metrics):
            return f"{feature} saves bytes but no time on this target, and no goal is about size"
    return None
