"""Measuring what each pass brings here: `doctor --bench` applies it to single layers and races them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path

import numpy as np

from portolan.core import registry
from portolan.core.backend import Backend
from portolan.core.data import sample
from portolan.core.folders import cache_folder
from portolan.core.ledger import Ledger
from portolan.core.model import Model
from portolan.core.passes import Pass
from portolan.core.recipe import Recipe, Step, digest
from portolan.core.target import Target
from portolan.errors import CannotHelp, PortolanError
from portolan.measure.race import Arm, race
from portolan.search.payoff import Payoff
from portolan.study.builder import Builder, Samples, versions
from portolan.study.payoff_layers import LAYERS, layer
from portolan.study.probe import Session
from portolan.study.workspace import Workspace

_KIND, _SEED = "payoff", 20
_STARTS, _BLOCKS, _BLOCK_SECONDS = 5, 2, 0.04
_UNTOUCHED, _SIZED = "untouched", "shape:"
#: Arms in one race beside the untouched layers: idle processes of some runtimes keep their threads spinning.
_TOGETHER = 3
Say = Callable[[str], None]


def payoffs(target: Target, backends: Mapping[str, Backend], say: Say = lambda line: None) -> list[Payoff]:
    """Races every pass that a search would try on layers of each kind, on each ready backend. Takes some minutes.

    Args:
        target: this machine.
        backends: by name; those that start from a torch program have nothing to gain from passes.
        say: told one line per race.
    """
    ready = {n: b for n, b in backends.items() if b.searched and not b.heavy and b.probe(target).ready}
    found: list[Payoff] = []
    with tempfile.TemporaryDirectory(prefix="portolan-payoff-") as folder, closing(Workspace(Path(folder))) as space:
        for kind, make in LAYERS.items():
            model, samples = layer(kind, make(), Path(folder))
            builder = Builder(space, model, target, backends, samples)
            for backend in ready.values():
                found += _measured(kind, builder, model, samples, backend, target, say)
    return found


def _measured(
    kind: str, builder: Builder, model: Model, samples: Samples, backend: Backend, target: Target, say: Say
) -> Iterator[Payoff]:
    feeds = [sample(samples.data, row, model.signature) for row in range(2)]
    untouched = Arm(_UNTOUCHED, partial(Session, builder.compiled(Recipe((), backend.name)), feeds))
    arms: list[Arm] = []
    found: dict[str, tuple[str, ...]] = {}
    for step, features in _steps(model, target):
        if any(backend.gain(feature, target) is None for feature in features):
            continue
        say(f"{kind} on {backend.name}: {step}")
        try:
            arms.append(Arm(str(step), partial(Session, builder.compiled(Recipe((step,), backend.name)), feeds)))
            found[str(step)] = features
        except CannotHelp:
            continue  # these layers have nothing for it; others may
        except PortolanError as error:
            yield Payoff(str(step), features, kind, backend.name, None, reason=error.message)
    for first in range(0, len(arms), _TOGETHER):
        some = arms[first : first + _TOGETHER]
        outcome = race(
            [untouched, *some], baseline=_UNTOUCHED, starts=_STARTS, blocks=_BLOCKS, block_seconds=_BLOCK_SECONDS,
            rng=np.random.default_rng(_SEED), progress=lambda line: say(f"{kind} on {backend.name}: {line}"),
        )  # fmt: skip
        for arm in some:
            if why := outcome.failures.get(arm.name):
                yield Payoff(arm.name, found[arm.name], kind, backend.name, None, reason=why)
            else:
                r = outcome.ratio(arm.name, _UNTOUCHED)
                yield Payoff(arm.name, found[arm.name], kind, backend.name, 1 / r.ratio, 1 / r.hi, 1 / r.lo)


def _steps(model: Model, target: Target) -> Iterator[tuple[Step, tuple[str, ...]]]:
    """Every pass with the options that a search would try, if it produces a feature and takes this model.

    How much is dropped decides what smaller shapes bring, so each of those is asked about. Of any other feature once:
    the first setting of a search, or one that it leaves alone (2:4, two bits) where no other produces it.
    """
    for name in registry.PASSES.names():
        try:
            item: Pass = registry.pass_(name)
        except PortolanError:
            continue  # `doctor` has its reason
        searched = list(item.schema.space(target))
        seen: set[tuple[str, ...]] = set()
        for options in (*searched, *item.schema.others(target)):
            features = item.produces(options)
            sized = options in searched and any(feature.startswith(_SIZED) for feature in features)
            if features in seen and not sized:
                continue
            if features and item.needs(options) != "training" and item.refuse(model, options, target) is None:
                seen.add(features)
                chosen = item.schema.chosen(options, target)
                yield Step(name, {k: v for k, v in options.items() if k in chosen and v is not None}), features


# --- kept for later searches


def keep(target: Target, backends: Mapping[str, Backend], found: Sequence[Payoff], folder: Path | None = None) -> None:
    """Adds what was measured to the user's ledger.

    Raises:
        PortolanError: it cannot be written.
    """
    place = folder or cache_folder()
    place.mkdir(parents=True, exist_ok=True)
    with closing(Ledger(place / "ledger.sqlite")) as ledger:
        for backend in {p.backend for p in found}:
            rows = [p.to_json() for p in found if p.backend == backend]
            ledger.append(_KIND, _key(target, backends[backend]), {"rows": rows})


def kept(target: Target, backends: Mapping[str, Backend], folder: Path | None = None) -> list[Payoff]:
    """What was measured earlier on this target with these versions of the backends; nothing if nobody did."""
    found: list[Payoff] = []
    try:
        with closing(Ledger((folder or cache_folder()) / "ledger.sqlite", writable=False)) as ledger:
            for backend in backends.values():
                event = ledger.latest(_KIND, _key(target, backend))
                found += [Payoff.from_json(row) for row in (event or {"rows": []})["rows"]]
    except (PortolanError, OSError):
        return []
    return found


def _key(target: Target, backend: Backend) -> str:
    return digest([target.fingerprint, backend.name, backend.versions(), versions([])])
