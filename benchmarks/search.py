"""Does the search find the best recipe cheaply? `python benchmarks/search.py TABLE.jsonl... [--seeds 20]`

Replays recorded tables (see record_table.py): every trial of the space with its metrics and what it cost. Each method
gets the same share of what measuring everything would cost and picks a recipe; its regret is how much slower (or
larger) the pick is than the best feasible recipe of the whole table. All methods know the same rules, start with the
untouched model, share built artefacts and judgements of quality, and end a trial whose quality fails before timing it.

    portolan   this project's Searcher, with an empty ledger
    + ledger   the same, knowing the other models' tables
    random     without replacement
    tpe        Optuna's TPE (multivariate, grouped, with constraints)

Random and TPE are run with short readings and with long ones; the better of the two is shown. Exits with 1 unless, at
20 % of the cost, the median regret over the seeds is at most 2 % in every case (model and goal), and the mean over all
of them at most 2 % and below both baselines'. A case that misses is named, with how well the table knows its best.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from portolan.core.goal import Goals, parse_goals
from portolan.core.measurement import METRICS, Measurement, Metrics
from portolan.core.recipe import Recipe
from portolan.core.registry import pass_
from portolan.search.searcher import Searcher
from portolan.search.space import Candidate

SHARES = (0.05, 0.10, 0.20)
TARGET_SHARE, TARGET_REGRET = 0.20, 0.02
#: Share of the budget after which Portolan's search only measures contenders longer.
CLOSING = 0.8
#: Regret of a method that ends without a feasible recipe.
NOTHING = 1.0


@dataclass(frozen=True)
class Row:
    """One recorded trial; `readings` by level, `seconds` by stage (`build`, `judge`, `0`, `1`); `truth` for judging."""

    candidate: Candidate
    failure: str | None
    readings: Mapping[int, Metrics]
    truth: Metrics
    quality: Metrics
    seconds: Mapping[str, float]


def read(paths: Iterable[Path]) -> dict[str, list[Row]]:
    """Rows per model, the baseline first."""
    tables: dict[str, list[Row]] = {}
    for path in paths:
        for line in path.read_text().splitlines():
            data = json.loads(line)
            metrics = {
                level: {n: Measurement(**m) for n, m in found.items()} for level, found in data["metrics"].items()
            }
            shared, truth = metrics.pop("quality", {}), metrics.pop("truth", metrics.get("1", {}))
            recipe = Recipe.from_json(data["recipe"])
            features = tuple(f for step in recipe.passes for f in pass_(step.name).produces(step.options))
            candidate = Candidate(recipe, data["exact"], heavy=data["heavy"], features=features)
            readings = {int(k): m for k, m in metrics.items()}
            row = Row(candidate, data["failure"], readings, truth, shared, data["seconds"])
            tables.setdefault(data["model"], []).append(row)
    return tables


class Replay:
    """A table as a machine: trials cost what they cost when recorded, artefacts and judgements are paid for once."""

    def __init__(self, rows: Sequence[Row], goals: Goals) -> None:
        self.rows, self.goals = {row.candidate.key: row for row in rows}, goals
        self.spent = 0.0
        self._paid: set[tuple[str, str]] = set()
        self.shared: dict[str, Metrics] = {}
        for row in rows:
            if row.quality:
                self.shared.setdefault(row.candidate.numerics, row.quality)

    def _once(self, stage: str, key: str, seconds: float) -> float:
        if (stage, key) in self._paid:
            return 0.0
        self._paid.add((stage, key))
        return seconds

    def cost(self, row: Row, level: int) -> float:
        """Seconds that a trial takes now."""
        c = row.candidate
        seconds = self._once("artefact", c.recipe.chain, row.seconds.get("artefact", 0.0))
        seconds += self._once("build", c.key, row.seconds.get("build", 0.0))
        seconds += self._once("judge", c.numerics, row.seconds.get("judge", 0.0))
        if row.failure is None and not self.hopeless(row):
            seconds += row.seconds[str(level)]
        return seconds

    def hopeless(self, row: Row) -> bool:
        """Whether quality fails, which is known before anything is timed."""
        quality = self.shared.get(row.candidate.numerics, {})
        return any(METRICS[x.metric].quality and not x.holds(quality.get(x.metric)) for x in self.goals.limits)

    def metrics(self, row: Row, level: int) -> Metrics:
        """What a trial at `level` reads."""
        quality = self.shared.get(row.candidate.numerics, {})
        return dict(quality) if self.hopeless(row) else {**row.readings[level], **quality}

    def run(self, candidate: Candidate, level: int, budget: float) -> tuple[Metrics | None, float, str | None] | None:
        """One trial, or None when the budget ends before it does."""
        row = self.rows[candidate.key]
        seconds = self.cost(row, level)
        if self.spent + seconds > budget:
            self.spent = budget
            return None
        self.spent += seconds
        return (None if row.failure else self.metrics(row, level)), seconds, row.failure

    def value(self, candidate: Candidate | None) -> float:
        """The first objective of a pick, in truth; infinite when it is not feasible."""
        row = None if candidate is None else self.rows[candidate.key]
        if row is None or row.failure is not None or self.hopeless(row):
            return math.inf
        metrics = {**row.truth, **self.shared.get(row.candidate.numerics, {})}
        for limit in self.goals.limits:
            m = metrics.get(limit.metric)
            # The limit is held by the value: the pick was made from other readings of the same thing.
            if m is None or not limit.holds(Measurement(m.value, m.unit)):
                return math.inf
        return self.goals.costs(metrics)[0]


def whole(rows: Sequence[Row], goals: Goals) -> tuple[float, float]:
    """Seconds for measuring everything, and the best value there is."""
    replay = Replay(rows, goals)
    seconds = sum(replay.cost(row, 1) for row in rows)
    return seconds, min(replay.value(row.candidate) for row in rows)


# --- methods: each runs until the budget ends and answers with its pick

Method = Callable[[Replay, float, int], Candidate | None]


def portolan(replay: Replay, budget: float, seed: int, prior: Any = None) -> Candidate | None:
    """This project."""
    searcher = Searcher([row.candidate for row in replay.rows.values()], replay.goals, seed=seed, prior=prior)
    while (proposal := searcher.ask(closing=replay.spent > CLOSING * budget)) is not None:
        result = replay.run(proposal.candidate, proposal.level, budget)
        if result is None:
            break
        searcher.tell(proposal.candidate, proposal.level, result[0], result[1], result[2])
    return searcher.best()


class Picker:
    """The best of what a baseline has read."""

    def __init__(self, goals: Goals) -> None:
        self.goals = goals
        self.best: tuple[float, Candidate] | None = None

    def add(self, candidate: Candidate, metrics: Metrics | None) -> None:
        if metrics is None or any(not holds(x, metrics) for x in self.goals.limits):
            return
        cost = self.goals.costs(metrics)[0]
        if math.isfinite(cost) and (self.best is None or cost < self.best[0]):
            self.best = (cost, candidate)

    @property
    def pick(self) -> Candidate | None:
        return None if self.best is None else self.best[1]


def holds(limit: Any, metrics: Metrics) -> bool:
    m = metrics.get(limit.metric)
    return m is not None and limit.holds(Measurement(m.value, m.unit))


def random(replay: Replay, budget: float, seed: int, level: int) -> Candidate | None:
    """The baseline, then any order."""
    every = [row.candidate for row in replay.rows.values()]
    order = [0, *(1 + np.random.default_rng(seed).permutation(len(every) - 1))]
    picker = Picker(replay.goals)
    for i in order:
        result = replay.run(every[i], level, budget)
        if result is None:
            break
        picker.add(every[i], result[0])
    return picker.pick


def tpe(replay: Replay, budget: float, seed: int, level: int, startup: int = 5) -> Candidate | None:
    """Optuna's TPE over the same choices; a repeated proposal costs nothing and is told the same again."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")
    by_words = {tuple(sorted(words(row.candidate).items())): row.candidate for row in replay.rows.values()}
    ranges = choices(row.candidate for row in replay.rows.values())
    sampler = optuna.samplers.TPESampler(
        seed=seed, multivariate=True, group=True, n_startup_trials=startup,
        constraints_func=lambda trial: trial.user_attrs.get("violations", (1.0,)),
    )  # fmt: skip
    study = optuna.create_study(sampler=sampler)
    first = next(iter(replay.rows.values())).candidate
    study.enqueue_trial(words(first))
    picker, known, worst = Picker(replay.goals), {}, 1.0
    for _ in range(20 * len(replay.rows)):
        trial = study.ask()
        backend = trial.suggest_categorical("backend", ranges["backend"])
        asked = {"backend": backend}
        for name in (n for n in ranges if n.startswith(f"{backend}.")):
            asked[name] = trial.suggest_categorical(name, ranges[name])
        candidate = by_words.get(tuple(sorted(asked.items())))
        if candidate is None:
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
            continue
        if candidate.key not in known:
            result = replay.run(candidate, level, budget)
            if result is None:
                break
            known[candidate.key] = result[0]
            picker.add(candidate, result[0])
            if len(known) == len(replay.rows):
                break
        metrics = known[candidate.key]
        costs = replay.goals.costs(metrics) if metrics is not None else (math.inf,)
        trial.set_user_attr("violations", violations(replay.goals, metrics))
        if metrics is None:
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
            continue
        if math.isfinite(costs[0]):
            worst = max(worst, costs[0])
        study.tell(trial, costs[0] if math.isfinite(costs[0]) else worst)
    return picker.pick


def violations(goals: Goals, metrics: Metrics | None) -> tuple[float, ...]:
    """How far each limit is missed; not above 0 when it holds."""
    if metrics is None:
        return (1.0,) * max(1, len(goals.limits))
    return tuple(0.0 if holds(x, metrics) else 1.0 for x in goals.limits) or (0.0,)


def words(candidate: Candidate) -> dict[str, str]:
    """A recipe as categorical choices, those of a backend under its name."""
    recipe = candidate.recipe
    named = {f"{recipe.backend}.{n}": str(v) for n, v in recipe.options.items()}
    return {"backend": recipe.backend, f"{recipe.backend}.passes": str(recipe), **named}


def choices(found: Iterable[Candidate]) -> dict[str, list[str]]:
    """Every choice and its values."""
    ranges: dict[str, list[str]] = {}
    for candidate in found:
        for name, value in words(candidate).items():
            values = ranges.setdefault(name, [])
            if value not in values:
                values.append(value)
    return ranges


# --- the comparison


def cases(tables: Mapping[str, Sequence[Row]]) -> Iterable[tuple[str, str, Goals]]:
    """Every model with every goal; a limit on time is set between the untouched model's and the best."""
    for model, rows in tables.items():
        first = rows[0].readings[max(rows[0].readings)]["latency_p50"].value
        yield model, "min latency, exact", parse_goals(["min latency_p50"])
        quality = ["cosine >= 0.99"]
        yield model, "min latency, cosine >= 0.99", parse_goals([*quality, "min latency_p50"])
        yield (
            model,
            "min size, latency < 0.7 x",
            parse_goals([*quality, f"latency_p50 < {0.7 * first:.6g}ms", "min size"]),
        )


def ledger(tables: Mapping[str, Sequence[Row]], model: str) -> list[dict[str, dict[str, float]]]:
    """What the tables of the other models say of each recipe."""
    contexts = []
    for other in (name for name in tables if name != model):
        replay = Replay(tables[other], parse_goals([]))
        context = {}
        for row in tables[other]:
            if row.failure is None and row.readings:
                metrics = {**row.readings[max(row.readings)], **replay.shared.get(row.candidate.numerics, {})}
                context[row.candidate.key] = {n: m.value for n, m in metrics.items()}
        contexts.append(context)
    return contexts


def compare(
    tables: Mapping[str, Sequence[Row]], seeds: int
) -> dict[tuple[str, str], dict[tuple[str, float], list[float]]]:
    """Regrets by case, then by method and share."""
    results: dict[tuple[str, str], dict[tuple[str, float], list[float]]] = {}
    for model, goal, goals in cases(tables):
        rows = [row for row in tables[model] if goals.lossy or row.candidate.exact]
        seconds, best = whole(rows, goals)
        if not math.isfinite(best):
            continue
        contexts = ledger(tables, model)
        methods: dict[str, Method] = {
            "portolan": portolan,
            "+ ledger": lambda r, b, s, contexts=contexts: portolan(r, b, s, contexts),
            **{f"random {level}": lambda r, b, s, level=level: random(r, b, s, level) for level in (0, 1)},
            **{f"tpe {level}": lambda r, b, s, level=level: tpe(r, b, s, level) for level in (0, 1)},
        }
        found = results.setdefault((model, goal), {})
        for share in SHARES:
            for name, method in methods.items():
                for seed in range(seeds):
                    replay = Replay(rows, goals)
                    value = replay.value(method(replay, share * seconds, seed))
                    regret = min(value / best - 1, NOTHING) if math.isfinite(value) else NOTHING
                    found.setdefault((name, share), []).append(regret)
        print(f"{model}: {goal}: done", file=sys.stderr, flush=True)
    return results


def better_fidelity(
    results: Mapping[tuple[str, str], Mapping[tuple[str, float], list[float]]], method: str, share: float
) -> str:
    """Whether a baseline does better with short readings (0) or long ones (1), over all cases."""
    means = {
        name: statistics.fmean(x for case in results.values() for x in case[name, share])
        for name in (f"{method} 0", f"{method} 1")
    }
    return min(means, key=lambda name: means[name])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "tables", nargs="*", type=Path, default=sorted((Path(__file__).parent / "tables").glob("*.jsonl"))
    )
    parser.add_argument("--seeds", type=int, default=20)
    arguments = parser.parse_args()
    tables = read(arguments.tables)
    if not tables:
        print("no table to replay: record one with benchmarks/record_table.py", file=sys.stderr)
        return 2
    trials = sum(map(len, tables.values()))
    print(f"{trials} recorded trials of {len(tables)} models; {arguments.seeds} seeds; regret in %: median (mean)\n")
    results = compare(tables, arguments.seeds)
    print(f"{'model: goal':<46}{'cost':>5} {'portolan':>14} {'+ ledger':>14} {'random':>14} {'tpe':>14}")
    for (model, goal), found in results.items():
        for share in SHARES:
            names = ["portolan", "+ ledger", *(better_fidelity(results, m, share) for m in ("random", "tpe"))]
            cells = "".join(f" {cell(found[name, share]):>14}" for name in names)
            print(f"{f'{model}: {goal}':<46}{share:>5.0%}{cells}")
    return verdict(results, spreads(tables))


def cell(regrets: Sequence[float]) -> str:
    return f"{100 * statistics.median(regrets):.1f} ({100 * statistics.fmean(regrets):.1f})"


def spreads(tables: Mapping[str, Sequence[Row]]) -> dict[tuple[str, str], str]:
    """Per case, between what the process starts of the best recipe lie: closer than that nobody can tell recipes."""
    found = {}
    for model, goal, goals in cases(tables):
        replay = Replay([row for row in tables[model] if goals.lossy or row.candidate.exact], goals)
        best = min(replay.rows.values(), key=lambda row: replay.value(row.candidate))
        found[model, goal] = str(best.truth[goals.objectives[0].metric])
    return found


def verdict(
    results: Mapping[tuple[str, str], Mapping[tuple[str, float], list[float]]], spread: Mapping[tuple[str, str], str]
) -> int:
    """Prints the totals and whether the targets are met."""
    print()
    met = True
    for share in SHARES:
        names = ["portolan", "+ ledger", *(better_fidelity(results, m, share) for m in ("random", "tpe"))]
        pooled = {name: [x for case in results.values() for x in case[name, share]] for name in names}
        print(f"all at {share:>4.0%}: " + ", ".join(f"{name} {cell(regrets)}" for name, regrets in pooled.items()))
        if share == TARGET_SHARE:
            mine, *others = (pooled[n] for n in names if n != "+ ledger")
            better = all(
                statistics.fmean(mine) < statistics.fmean(o) and statistics.median(mine) <= statistics.median(o)
                for o in others
            )
            met = better and statistics.fmean(mine) <= TARGET_REGRET
            for (model, goal), found in results.items():
                if statistics.median(found["portolan", share]) > TARGET_REGRET:
                    met = False
                    known = f"the best recipe's own starts: {spread[model, goal]}"
                    print(f"above {TARGET_REGRET:.0%}: {model}: {goal} ({known})")
            if not better:
                print("missed: not better than both baselines")
    print(f"within {TARGET_REGRET:.0%} of the best at {TARGET_SHARE:.0%} of the cost: {'met' if met else 'not met'}")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
