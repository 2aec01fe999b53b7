"""Trying a new version on a share of the calls, or beside the old one, before it serves: terms, counts, verdict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from portolan.serving.calls import Refusal
from portolan.serving.counters import Counters

Mode = Literal["swap", "canary", "shadow"]
#: Calls after which errors are judged without waiting for the rest.
_EARLY = 20
_KEYS = ("canary", "shadow", "calls", "seconds", "errors", "p99", "agreement")


@dataclass(frozen=True)
class Terms:
    """How a new version takes over.

    Attributes:
        mode: at once; on a share of the calls first; or on copies of calls whose answers nobody sees.
        share: of the calls that the new version gets.
        calls: that it has to answer before it takes over.
        seconds: after which it takes over with fewer, if there is nothing against it.
        errors: by how much its share of errors may be above the old one's.
        p99: times the old version's p99 that its own may be.
        agreement: of a shadow, the least share of answers that agree with those given.
    """

    mode: Mode = "swap"
    share: float = 1.0
    calls: int = 200
    seconds: float = 300.0
    errors: float = 0.01
    p99: float = 1.5
    agreement: float = 0.0

    @classmethod
    def read(cls, parameters: Mapping[str, Any]) -> Terms:
        """The terms in the parameters of a request to load: `canary` or `shadow` with a share, and the rest by name.

        Raises:
            Refusal: `invalid`: both, or a number that makes no sense. Other parameters are not for here.
        """
        given = {key: parameters[key] for key in _KEYS if key in parameters}
        numbers = {key: _number(key, value) for key, value in given.items()}
        if "canary" in numbers and "shadow" in numbers:
            raise Refusal("invalid", "a version is tried as `canary` or as `shadow`, not as both")
        mode: Mode = "canary" if "canary" in numbers else "shadow" if "shadow" in numbers else "swap"
        share = numbers.get(mode, 1.0)
        if not 0 < share <= 1:
            raise Refusal("invalid", f"`{mode}` is a share of the calls, above 0 and at most 1")
        if numbers.get("agreement", 0.0) > 1 or ("agreement" in numbers and mode != "shadow"):
            raise Refusal("invalid", "`agreement` is a share of a shadow's answers, at most 1")
        rest = {key: numbers[key] for key in ("seconds", "errors", "p99", "agreement") if key in numbers}
        return cls(mode, share, int(numbers.get("calls", cls.calls)), **rest)


def _number(key: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise Refusal("invalid", f"`{key}` is a number") from None
    if not 0 <= number < 1e9:
        raise Refusal("invalid", f"`{key}` is a number from 0 up")
    return number


class Tally:
    """What a version did since the trial began."""

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        self._good, self._bad = counters.request_success, _failures(counters)
        self._since = list(counters.request_seconds.counts)
        self._compared, self._agreed = counters.compared, counters.agreed

    @property
    def calls(self) -> int:
        """Calls that ended."""
        return self._counters.request_success - self._good + self.failures

    @property
    def failures(self) -> int:
        """Calls that it refused or failed although they were right."""
        return _failures(self._counters) - self._bad

    @property
    def agreement(self) -> float | None:
        """Share of its answers as a shadow that agreed with those given; None where none was compared."""
        compared = self._counters.compared - self._compared
        return (self._counters.agreed - self._agreed) / compared if compared else None

    @property
    def p99(self) -> float | None:
        """Of the calls answered, in seconds."""
        return self._counters.request_seconds.quantile(0.99, self._since)


def _failures(counters: Counters) -> int:
    return counters.request_failure["BACKEND"] + counters.request_failure["REJECTED"]


@dataclass(frozen=True)
class Verdict:
    """Whether the new version takes over, stays on trial, or goes; and why it goes."""

    what: Literal["wait", "promote", "roll back"]
    why: str = ""


def judge(old: Tally, new: Tally, terms: Terms, seconds: float) -> Verdict:
    """Compares the new version with the old one over the same time.

    Args:
        old, new: what they did.
        terms: what is allowed.
        seconds: that the trial has lasted.
    """
    calls, failed = new.calls, new.failures
    ended = calls >= terms.calls or seconds >= terms.seconds
    if calls >= min(_EARLY, terms.calls) or (ended and calls):
        before = old.failures / old.calls if old.calls else 0.0
        if failed / calls > before + terms.errors:
            return Verdict("roll back", f"{failed} of {calls} calls failed, {before:.1%} with the version before")
    if not ended:
        return Verdict("wait")
    agreed = new.agreement
    if agreed is not None and agreed < terms.agreement:
        return Verdict("roll back", f"{agreed:.1%} of its answers agree with those of the version before")
    slow, fast = new.p99, old.p99
    # They are bounds of a histogram, 25 % apart: one step alone is no difference.
    if slow is not None and fast is not None and slow > fast * max(terms.p99, 1.26):
        return Verdict("roll back", f"p99 is {slow * 1e3:.4g} ms, {fast * 1e3:.4g} ms with the version before")
    return Verdict("promote")
