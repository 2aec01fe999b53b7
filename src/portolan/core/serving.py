"""How a compiled model is served: batching, replicas and deadline as a recipe holds them, and the profile behind them.

    Recipe.serving    {"max_batch": 16, "replicas": [1, 2], "deadline": 0.05}
    profile           {"quantile": 0.95, "unit": "s", "batches": {"1": METRIC, "2": METRIC, "4": METRIC}}

Threads per replica are no part of it: they are an option of the backend.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from portolan.core.measurement import Measurement
from portolan.core.signature import Dim
from portolan.errors import UsageError, nearest

KEYS = ("max_batch", "replicas", "deadline")
#: What a server takes without being asked twice: calls in one batch, processes of one model, seconds of patience.
MOST_BATCH, MOST_REPLICAS, MOST_DEADLINE = 4096, 256, 3600.0
#: A first axis that is free, whatever its name.
FREE = "batch"
#: Rows of the largest batch where nobody chose one and nothing was measured.
DEFAULT_BATCH = 16
#: The share of readings of a batch size that a profile's time covers.
QUANTILE = 0.95


@dataclass(frozen=True)
class Serving:
    """The orchestration layer of a recipe. None leaves a choice to the server.

    Attributes:
        max_batch: most calls that are run together; see `largest_batch`.
        replicas: fewest and most processes.
        deadline: seconds after which a call that names no timeout of its own is given up.
    """

    max_batch: int | None = None
    replicas: tuple[int, int] | None = None
    deadline: float | None = None

    @classmethod
    def of(cls, data: Mapping[str, Any], where: str | None = None) -> Serving:
        """Reads the `serving` of a recipe.

        Raises:
            UsageError: a key that does not exist, or a value of the wrong type or out of range, with its path.
        """
        if unknown := next((key for key in data if key not in KEYS), None):
            raise UsageError(
                f"`serving` of a recipe has no key `{unknown}`", hint=nearest(str(unknown), KEYS), where=where
            )
        place = f"{where or 'recipe'}: $.serving"
        batch, deadline, replicas = (data.get(key) for key in ("max_batch", "deadline", "replicas"))
        if batch is not None and not _whole(batch, 1, MOST_BATCH):
            raise _wrong("max_batch", f"a whole number from 1 to {MOST_BATCH:,}", batch, place)
        if deadline is not None and not _seconds(deadline):
            raise _wrong("deadline", f"a number of seconds above 0 and up to {MOST_DEADLINE:,.0f}", deadline, place)
        return cls(batch, _replicas(replicas, place), None if deadline is None else float(deadline))

    def to_json(self) -> dict[str, Any]:
        """The `serving` of a recipe: what was chosen, without what was left to the server."""
        data: dict[str, Any] = {"max_batch": self.max_batch, "deadline": self.deadline}
        data["replicas"] = None if self.replicas is None else list(self.replicas)
        return {key: data[key] for key in KEYS if data[key] is not None}

    def __str__(self) -> str:
        words = [] if self.max_batch is None else [f"batch {self.max_batch}"]
        if self.replicas is not None:
            few, many = self.replicas
            words.append(f"{few if few == many else f'{few} to {many}'} replica{'s' if many > 1 else ''}")
        if self.deadline is not None:
            words.append(f"deadline {self.deadline * 1e3:.4g} ms")
        return ", ".join(words) or "defaults"


def _replicas(value: Any, place: str) -> tuple[int, int] | None:
    if value is None:
        return None
    pair = [value, value] if _whole(value, 1, MOST_REPLICAS) else value
    fits = isinstance(pair, (list, tuple)) and len(pair) == 2 and all(_whole(n, 0, MOST_REPLICAS) for n in pair)
    if not fits or pair[0] > pair[1] or pair[1] < 1:
        raise _wrong("replicas", "a whole number, or the fewest and the most such as `[1, 2]`", value, place)
    return pair[0], pair[1]


def _whole(value: Any, least: int, most: int) -> bool:
    return type(value) is int and least <= value <= most


def _seconds(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and 0 < value <= MOST_DEADLINE


def _wrong(key: str, expected: str, value: Any, place: str) -> UsageError:
    return UsageError(f"`{key}` of a recipe's serving must be {expected}, got `{value!r}`", where=f"{place}.{key}")


@dataclass(frozen=True)
class Profile:
    """Seconds that a batch of each measured size takes in one instance: the QUANTILE of its readings.

    Attributes:
        batches: by batch size, in seconds.
    """

    batches: Mapping[int, Measurement]

    def __post_init__(self) -> None:
        if 1 not in self.batches:
            raise ValueError("a profile starts with the batch of one")

    @property
    def sizes(self) -> list[int]:
        """The sizes measured, rising."""
        return sorted(self.batches)

    @property
    def largest(self) -> int:
        """The largest size measured."""
        return self.sizes[-1]

    @property
    def seconds(self) -> dict[int, float]:
        """Seconds by size, as the scheduler reads them."""
        return {size: self.batches[size].value for size in self.sizes}

    def rate(self, cap: int) -> float:
        """Calls per second of one instance that runs nothing but its best measured batch of at most `cap`."""
        return max(size / seconds for size, seconds in self.seconds.items() if size <= max(cap, 1))

    def to_json(self) -> dict[str, Any]:
        """The profile as bundles and studies hold it."""
        batches = {str(size): asdict(self.batches[size]) for size in self.sizes}
        return {"quantile": QUANTILE, "unit": "s", "batches": batches}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Profile:
        """Reads what `to_json` wrote."""
        return cls({int(size): Measurement(**metric) for size, metric in data["batches"].items()})


@dataclass(frozen=True)
class Overhead:
    """What serving adds to a batch's time in the runtime: the way to the replica and back, and the work for each call.

    Attributes:
        batch: seconds of a batch of one call.
        call: seconds that each further call adds.
    """

    batch: float = 0.0
    call: float = 0.0

    def on(self, seconds: Mapping[int, float]) -> dict[int, float]:
        """Seconds by size, with the overhead."""
        return {size: value + self.batch + (size - 1) * self.call for size, value in seconds.items()}


def largest_batch(chosen: int | None, profile: Profile | None, axis: Dim | None = FREE) -> int:
    """Rows of the largest batch that a model is served with, wherever that is asked: the one rule.

    A fixed first axis is the batch, since it has no other: 8 serves up to 8 rows together. Where it is free, what the
    recipe chose holds, else the largest batch that was measured, else DEFAULT_BATCH. Whoever serves may set another.

    Args:
        chosen: `max_batch` of the recipe.
        profile: what was measured.
        axis: `Signature.batch` of the model; left out, calls are joined one by one, as in a profile.
    """
    if not isinstance(axis, str):
        return axis or 1
    return chosen or (profile.largest if profile else DEFAULT_BATCH)


def sizes_up_to(limit: int) -> Sequence[int]:
    """The batch sizes that are profiled: powers of two up to `limit`."""
    return [1 << power for power in range(max(1, limit).bit_length())]
