"""Guessing what was not measured yet: one small linear model per metric, and a memory of what crashed and what it cost.

The logarithm of a metric is modelled as a sum over a recipe's choices and pairs of choices, plus columns that say what
to expect before anything is measured: a rule of thumb, and what the same recipes gave in other contexts (another
model, another target). Every weight has a prior, so the model speaks sensibly from the first reading on, and the
columns' weights are learned: expectations that turn out wrong are dropped after a few readings.

The spread of the predictions comes from an ensemble (randomise, then optimise: each member fits disturbed readings
from its own draw of the prior), which also spreads where nothing was measured, unlike resampled readings alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from portolan.search.space import Candidate

Floats = npt.NDArray[np.float64]

#: Prior standard deviations, in log units: of one choice, of a pair of choices, of a column's slope.
CHOICE, PAIR, SLOPE = 0.25, 0.12, 0.5
#: Choices that change much, and how much an option counts beside them.
LARGE = ("pass ", "chain ", "backend ", "precision=", "threads=")
OPTION = 0.6
#: Milliseconds of an inference at which half of what threads could gain is lost to waking them.
WAKING = 0.5
#: Rules of thumb by the beginning of a feature's name: the log of its effect on time, the same on size, and the chance
#: that outputs stay close. Measurements of published tables and of this project's own; see rule_of_thumb.
THUMB: Mapping[str, tuple[float, float, float]] = {
    "int8:static": (-0.9, -1.2, 0.8),  # it keeps the closeness that it is asked for
    "int8:": (-0.9, -1.2, 0.6),
    "weights:int8": (-0.05, -1.2, 0.9),
    "weights:int4": (0.0, -1.7, 0.45),
    "weights:int2": (0.1, -2.2, 0.1),
    "weights:": (0.0, -1.5, 0.6),
    "float16": (0.05, -0.69, 0.95),
    "bfloat16": (0.0, -0.69, 0.9),
    "sparsity:": (0.0, -0.5, 0.15),
    "shape:": (-0.4, -0.4, 0.15),
    "length:": (-0.7, 0.0, 0.95),  # as much as there is padding
    "kernels": (-0.1, 0.0, 0.95),
    "convolutions:": (-0.1, 0.0, 0.95),
}
#: Time saved by integer arithmetic, in log units: from here on a reduced precision of the rest adds little.
INTEGER = 0.6
#: Size of the ensemble.
MEMBERS = 24
#: Noise levels tried; leave-one-out decides once there are enough readings.
NOISES = (0.03, 0.1, 0.3)
#: Readings below which the noise is not estimated.
FEW = 10


def tokens(candidate: Candidate) -> list[str]:
    """A recipe's choices as words: passes with their options, the backend, and each option's value."""
    recipe = candidate.recipe
    words = [f"pass {step.name}" for step in recipe.passes]
    words += [f"{step.name}.{name}={value}" for step in recipe.passes for name, value in step.options.items()]
    words += [f"chain {recipe.chain}", f"backend {recipe.backend}"]
    return words + [f"{name}={value}" for name, value in recipe.options.items()]


def rule_of_thumb(
    candidate: Candidate, defaults: Mapping[str, object], most_threads: int, milliseconds: float = math.inf
) -> dict[str, float]:
    """What to expect of a recipe before anything is measured: log of the ratio to the untouched model's defaults.

    Reduced precision halves the time; int8 nearly thirds it, gains little more from reduced precision, and quarters
    the size; fewer threads cost time; a default is better than what differs from it. What else passes produce is in
    THUMB. What a device brings depends on the model: nothing is said of it. These are rough on purpose: their slope is
    learned.

    Args:
        candidate: the recipe.
        defaults: its backend's default options.
        most_threads: the largest number of threads in the space.
        milliseconds: what the untouched model takes: below about one, waking a second thread costs what it gains.
    """
    recipe = candidate.recipe
    reduced = recipe.options.get("precision", "f32") not in ("f32", "fp32")
    threads = recipe.options.get("threads")
    fewer = 0.0
    if isinstance(threads, int) and 0 < threads < most_threads:  # 0 stands for all
        fewer = math.log(most_threads / threads) / (1 + WAKING / milliseconds)
    odd = sum(recipe.options.get(n) != v for n, v in defaults.items() if n not in ("device", "precision", "threads"))
    passes, size = (sum(expected(feature)[i] for feature in candidate.features) for i in range(2))
    time = passes - (0.1 if passes < -INTEGER else 0.7) * reduced + 0.7 * fewer + 0.15 * odd
    return {"time": time, "size": size, "rate": -time}


def expected(feature: str) -> tuple[float, float, float]:
    """Of a feature that a pass produced: log of its effect on time and on size, and the chance that quality holds."""
    return next((found for start, found in THUMB.items() if feature.startswith(start)), (0.0, 0.0, 0.5))


class Features:
    """The design matrix of a list of candidates: their choices, with how much each may matter."""

    def __init__(self, candidates: Sequence[Candidate]) -> None:
        words = [tokens(c) for c in candidates]
        names: dict[str, int] = {}
        for word in (w for row in words for w in row):
            names.setdefault(word, len(names))
        matrix = np.zeros((len(words), len(names)))
        for i, row in enumerate(words):
            for word in row:
                matrix[i, names[word]] = 1.0 if word.startswith(LARGE) else OPTION
        #: Columns that are not the same everywhere, shape (candidates, choices).
        self.choices: Floats = matrix[:, matrix.min(0) < matrix.max(0)] if words else matrix

    def kernel(self, rows: npt.NDArray[np.intp], columns: npt.NDArray[np.intp]) -> Floats:
        """Prior covariance between candidates, shape (rows, columns).

        A pair of choices is present when both are, so the kernel of all pairs is a function of the choices', and
        their many columns never have to be written down.
        """
        x, y = self.choices[rows], self.choices[columns]
        shared: Floats = x @ y.T
        covariance: Floats = CHOICE**2 * shared + PAIR**2 * (shared**2 - x**2 @ (y**2).T) / 2
        return covariance


@dataclass(frozen=True)
class Prediction:
    """An ensemble's guesses of the log of one metric: shape (members, candidates)."""

    members: Floats

    @property
    def mean(self) -> Floats:
        """Shape (candidates,)."""
        mean: Floats = self.members.mean(0)
        return mean

    @property
    def spread(self) -> Floats:
        """Standard deviation over the members, shape (candidates,)."""
        spread: Floats = self.members.std(0)
        return spread


class Surrogate:
    """Predicts the log of one metric for every candidate from readings of some.

    Args:
        features: of all candidates.
        columns: expectations, shape (candidates, k), on a log scale; the first is the rule of thumb.
        slopes: what each column's slope is expected to be.
        members: size of the ensemble.
    """

    def __init__(self, features: Features, columns: Floats, slopes: Floats, members: int = MEMBERS) -> None:
        self.features = features
        self.columns = columns - columns.mean(0) if len(columns) else columns
        self.slopes = slopes
        self.members = members

    def fit(
        self,
        seen: Sequence[int],
        y: Sequence[float],
        rng: np.random.Generator,
        at: Sequence[int] | npt.NDArray[np.intp] | None = None,
    ) -> Prediction:
        """Predicts from readings.

        Args:
            seen: places of the measured candidates; may be empty.
            y: log of the metric there.
            rng: draws the ensemble.
            at: places to predict; all of them by default.
        """
        wanted = np.arange(len(self.columns)) if at is None else np.asarray(at, dtype=np.intp)
        known = np.asarray(seen, dtype=np.intp)
        expected = self.columns @ self.slopes
        if not len(known):
            draws = rng.standard_normal((self.members, len(self.slopes))) * SLOPE
            return Prediction(expected[wanted] + draws @ self.columns[wanted].T)
        residual = np.asarray(y, float) - expected[known]
        noise, weight = self._noise(self._prior(known, known), residual)
        offset = float((weight @ residual).sum() / weight.sum())
        # Matheron's rule: a draw of the prior, moved by what it gets wrong at the readings.
        draws = self._draws(np.concatenate([known, wanted]), rng)
        disturbed = residual - offset + noise * rng.standard_normal((self.members, len(known)))
        moved = (disturbed - draws[:, : len(known)]) @ weight @ self._prior(known, wanted)
        return Prediction(expected[wanted] + offset + draws[:, len(known) :] + moved)

    def _prior(self, rows: npt.NDArray[np.intp], columns: npt.NDArray[np.intp]) -> Floats:
        slopes: Floats = SLOPE**2 * (self.columns[rows] @ self.columns[columns].T)
        return self.features.kernel(rows, columns) + slopes

    def _draws(self, rows: npt.NDArray[np.intp], rng: np.random.Generator) -> Floats:
        choices = self.features.choices[rows]
        single = rng.standard_normal((self.members, choices.shape[1])) * CHOICE
        # The sum over all pairs of independent weights, as a quadratic form with a triangular matrix per member.
        pairs = np.triu(rng.standard_normal((self.members, choices.shape[1], choices.shape[1])) * PAIR, 1)
        both: Floats = ((choices @ pairs) * choices).sum(2)
        slopes = rng.standard_normal((self.members, self.columns.shape[1])) * SLOPE
        drawn: Floats = single @ choices.T + both + slopes @ self.columns[rows].T
        return drawn

    def _noise(self, prior: Floats, residual: Floats) -> tuple[float, Floats]:
        """The noise level under which left-out readings are likeliest, and the inverse covariance of the readings."""
        tried = NOISES if len(residual) >= FEW else NOISES[:1]
        fits = []
        for noise in tried:
            weight: Floats = np.asarray(np.linalg.inv(prior + noise**2 * np.eye(len(residual))), dtype=np.float64)
            left_out = weight @ (residual - (weight @ residual).sum() / weight.sum())  # over its variance
            error = float(np.mean(left_out**2 / np.diag(weight) - np.log(np.diag(weight))))
            fits.append((error, noise, weight))
        return min(fits, key=lambda fit: fit[0])[1:]


def prior_column(features: Features, known: Mapping[int, float]) -> Floats:
    """What one other context says about every candidate: its own log readings, and guesses in between.

    Args:
        features: of all candidates.
        known: log of the metric there, by place.

    Returns:
        Shape (candidates,), centred on zero.
    """
    at = np.array(sorted(known), dtype=np.intp)
    y = np.array([known[i] for i in at])
    weight = np.linalg.inv(features.kernel(at, at) + 0.05**2 * np.eye(len(at)))
    offset = (weight @ y).sum() / weight.sum()
    column = offset + features.kernel(np.arange(len(features.choices)), at) @ (weight @ (y - offset))
    column[at] = y
    centred: Floats = column - column.mean()
    return centred


class Crashes:
    """Whether a recipe will run, from which of its choices failed so far.

    A crash is a matter of a backend, of a pass on a backend, of a chain or of an option: each of these groups has its
    own record, and a candidate is as doubtful as the worst of its groups. Any success in a group clears most of it.
    """

    #: Chance that an untried group runs, and how many trials that belief weighs in wide and in narrow groups.
    RUNS, WIDE, NARROW = 0.95, 1.0, 0.5

    def __init__(self, candidates: Sequence[Candidate]) -> None:
        rows = [_groups(c) for c in candidates]
        names: dict[str, int] = {}
        for name in (n for row in rows for n in row):
            names.setdefault(name, len(names))
        self._member = np.zeros((len(rows), len(names)), dtype=bool)
        for i, row in enumerate(rows):
            self._member[i, [names[n] for n in row]] = True
        self._weight = np.array([self.NARROW if n.startswith("chain on") else self.WIDE for n in names])

    def chance(self, tried: Sequence[int], ran: Sequence[bool]) -> Floats:
        """The chance that each candidate runs, shape (candidates,)."""
        at, good = np.asarray(tried, dtype=np.intp), np.asarray(ran, dtype=float)
        count = self._member[at].sum(0)
        fine = good @ self._member[at]
        group = (fine + self.RUNS * self._weight) / (count + self._weight)
        chance: Floats = np.where(self._member, group, 1.0).min(1, initial=1.0)
        return chance


def _groups(candidate: Candidate) -> list[str]:
    recipe = candidate.recipe
    names = [f"backend {recipe.backend}", f"chain on {recipe.backend} {recipe.chain}"]
    for step in recipe.passes:
        names += [f"step {step}", f"step on {recipe.backend} {step}"]
    return names + [f"option of {recipe.backend} {n}={v}" for n, v in recipe.options.items()]


class Neighbours:
    """Weighted votes of similar recipes: what one will cost. The backend says most, then the chain, then options."""

    CHAIN, BACKEND, OPTION = 0.2, 0.05, 0.6

    def __init__(self, candidates: Sequence[Candidate]) -> None:
        recipes = [c.recipe for c in candidates]
        self._chain = np.array([r.chain for r in recipes])
        self._backend = np.array([r.backend for r in recipes])
        names = sorted({n for r in recipes for n in r.options})
        self._options = np.array([[str(r.options.get(n, "")) for n in names] for r in recipes])
        self._options = self._options.reshape(len(recipes), len(names))

    def likeness(self, place: int) -> Floats:
        """How much one candidate says about each, 1 for itself; shape (candidates,)."""
        differ = (self._options != self._options[place]).sum(1)
        like: Floats = (
            np.where(self._chain == self._chain[place], 1.0, self.CHAIN)
            * np.where(self._backend == self._backend[place], 1.0, self.BACKEND)
            * self.OPTION**differ
        )
        return like

    def vote(self, seen: Sequence[int], values: Sequence[float], prior: float, weight: float) -> Floats:
        """Mean of `values` weighted by likeness, with `prior` counting as `weight` readings; shape (candidates,)."""
        total = np.full(len(self._chain), weight)
        summed = total * prior
        for place, value in zip(seen, values, strict=True):
            like = self.likeness(place)
            total += like
            summed += like * value
        mean: Floats = summed / total
        return mean
