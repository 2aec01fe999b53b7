"""Every refusal and every reason that the search over serving can give, word for word.

After a wanted change: `PORTOLAN_UPDATE_GOLDEN=1 pytest tests/golden/test_serving_errors.py`, and read the diff.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from portolan.core.goal import parse_goals
from portolan.errors import WorkerError
from portolan.measure import load
from portolan.measure.load import Loaded
from portolan.search.serving import check_pinned
from portolan.serving.trial import LoadResult
from portolan.study.loads import unsustained
from portolan.study.wanted import checked_goals, checked_price, is_served
from support import errors

GOLDEN = Path(__file__).with_name("serving_errors.txt")


def pinned(**serving: Any) -> Callable[[], Any]:
    return lambda: check_pinned(serving, "fast.toml")


def unanswered(reason: str, share: float, lost: int = 0, scenario: Any = "Server") -> Callable[[], Any]:
    def case() -> None:
        times = np.full(1000, 0.01)
        times[: round(1000 * share)] = math.inf
        asked = 200.0 if scenario == "Server" else None
        run = Loaded(scenario, times, 5.0, True, asked, failures={reason: round(1000 * share)})
        said = unsustained([LoadResult((run,), 1, lost, 0.1)], parse_goals(["latency_p99 < 50ms at 200 qps"]))
        raise WorkerError(str(said))

    return case


WRONG: dict[str, Callable[[], Any]] = {
    "cost without a price": lambda: checked_price(None, parse_goals(["min cost"])),
    "a price that is no money": lambda: checked_price("3h", parse_goals(["min cost"])),
    "a price of nothing": lambda: checked_price("0USD", parse_goals(["min cost"])),
    "a metric that nothing measures": lambda: checked_goals(["energy < 1J"]),
    "a load without LoadGen": lambda: is_served(parse_goals(["min latency_p99 at 200 qps"]), None),  # type: ignore[arg-type]
    "an unknown key of serving": pinned(max_bach=8),
    "a batch of nothing": pinned(max_batch=0),
    "a range with a wrong end": pinned(max_batch=[8, "x"]),
    "replicas upside down": pinned(replicas=[3, 1]),
    "a deadline with a unit": pinned(deadline="50ms"),
    "a load that was not held": unanswered("too late to be answered in time", 0.2),
    "replicas that crashed": unanswered("the model failed", 0.01, lost=1),
    "an offline run that failed": unanswered("the model failed", 0.5, scenario="Offline"),
}


def test_errors_are_those_of_the_snapshot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "ready", lambda: False)
    written = "\n".join(errors.told(name, case) for name, case in WRONG.items())
    if os.environ.get("PORTOLAN_UPDATE_GOLDEN"):
        GOLDEN.write_text(written, encoding="utf-8")
    assert written == GOLDEN.read_text(encoding="utf-8")
