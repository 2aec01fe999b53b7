"""The profile of a compiled model: how long one instance takes for a batch of each size.

Sizes are powers of two, measured in rounds of one block each, so that a machine that drifts does so for all of them.
They end where a larger batch is no longer worth it, takes longer than anybody would wait, or does not run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np

from portolan.core.measurement import Measurement
from portolan.core.serving import QUANTILE, Profile, sizes_up_to
from portolan.errors import PortolanError
from portolan.measure.stats import Floats, percentile_intervals

#: Rounds, and the fewest readings of one block where a batch is quick: together what a 95th percentile takes.
ROUNDS, READINGS = 3, 7
#: Seconds of one block.
SECONDS = 0.05
#: A batch twice as large has to bring this much more per second; the growth ends when it did not twice in a row.
_WORTH, _IDLE = 1.03, 2
#: Above this a block of a slow model is cut to three readings: their largest stands for the percentile.
_SLOW = 0.2
#: The size that is tried last where nothing ends the growth before.
LIMIT: Final = 64

#: Milliseconds of each run of a block: of batches of the given size, for so many seconds, at least so often.
Block = Callable[[int, float, int], Floats]


def profile(block: Block, limit: int = LIMIT, longest: float = 1.0) -> tuple[Profile, str | None]:
    """Measures batches of 1, 2, 4 and so on.

    Args:
        block: times one block.
        limit: the largest size to try; 1 where the model has no free batch axis.
        longest: seconds above which no larger batch is tried.

    Returns:
        The profile, and why it ends below the limit where a batch did not run.

    Raises:
        PortolanError: not even one call ran.
    """
    blocks: dict[int, list[Floats]] = {}
    idle, best, note = 0, 0.0, None
    for size in sizes_up_to(limit):
        try:
            block(size, 0.0, 1)  # the first run of a shape may compile, and counts for nothing
            first = block(size, SECONDS, READINGS if not blocks or _quick(blocks) else 3)
        except PortolanError as error:
            if size == 1:
                raise
            note = f"a batch of {size} does not run: {error.message}"
            break
        blocks[size] = [first]
        rate = size / float(np.median(first))
        idle = 0 if rate > best * _WORTH else idle + 1
        best = max(best, rate)
        if idle >= _IDLE or float(np.median(first)) > longest * 1e3:
            break
    if note is None:
        for _ in range(ROUNDS - 1):
            for size, found in blocks.items():
                quick = float(np.median(found[0])) < _SLOW * 1e3
                found.append(block(size, SECONDS, READINGS if quick else 3))
    return Profile({size: _percentile(found) for size, found in blocks.items()}), note


def _quick(blocks: dict[int, list[Floats]]) -> bool:
    return max(float(np.median(found[0])) for found in blocks.values()) < _SLOW * 1e3 / 2


def _percentile(blocks: list[Floats]) -> Measurement:
    found = percentile_intervals([blocks], [QUANTILE])[0]
    readings = sum(len(block) for block in blocks)
    return Measurement(found.value / 1e3, "s", found.lo / 1e3, found.hi / 1e3, readings)
