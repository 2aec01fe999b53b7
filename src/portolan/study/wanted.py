"""What goals need, and what is refused before anything is read: metrics, prices, loads."""

from __future__ import annotations

from collections.abc import Sequence

from portolan import units
from portolan.core.goal import Goals, parse_goals
from portolan.core.measurement import METRICS
from portolan.core.model import Model
from portolan.errors import UsageError
from portolan.measure import load

#: Metrics that nothing measures yet.
UNMEASURED = ("energy", "carbon")


def checked_goals(texts: Sequence[str]) -> Goals:
    """Reads the goals.

    Raises:
        UsageError: one cannot be read, or its metric cannot be measured here.
    """
    goals = parse_goals(texts)
    for name in goals.metrics:
        if name in UNMEASURED:
            known = ", ".join(m for m in METRICS if m not in UNMEASURED)
            raise UsageError(f"`{name}` cannot be measured on this target", hint=f"measured here: {known}")
    return goals


def checked_price(text: str | None, goals: Goals) -> float | None:
    """USD that an hour of the target costs.

    Raises:
        UsageError: a goal is about cost and there is no price, or it is no amount of money.
    """
    if text is None:
        if "cost" in goals.metrics:
            raise UsageError(
                "`cost` cannot be measured on this target: it has no price",
                hint="give what an hour of it costs: --price 0.10USD",
            )
        return None
    price = units.parse(text, "money")
    if price <= 0:
        raise UsageError(f"the price `{text}` is not above zero", hint="give what an hour costs: --price 0.10USD")
    return price


def about_serving(goals: Goals) -> bool:
    """Whether goals can ask how the model does when it is served."""
    return bool(goals.loads) or bool({"throughput", "cost"} & set(goals.metrics))


def is_served(goals: Goals, model: Model) -> bool:
    """Whether serving is searched: always for a load and for cost; for throughput where it can be, and can pay.

    Raises:
        NoBackend: a goal names a load or the cost, and LoadGen is not installed.
    """
    if goals.loads or "cost" in goals.metrics:
        load.require()
        return True
    return "throughput" in goals.metrics and isinstance(model.signature.batch, str) and load.ready()
