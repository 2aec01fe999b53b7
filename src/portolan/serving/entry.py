"""One name of the repository: the version that serves, the one on trial, and those that finish what they have."""

from __future__ import annotations

import asyncio
import random

from portolan.serving.agreement import Pair
from portolan.serving.calls import Answer, Call, Refusal, Tensor
from portolan.serving.rollout import Tally, Terms, Verdict, judge
from portolan.serving.ticket import Done, Ticket
from portolan.serving.version import Version


class Trial:
    """A new version that is tried beside the old one.

    Args:
        version: the new one.
        old: the one that serves.
        terms: how it is tried.
        now: on the loop's clock.
    """

    def __init__(self, version: Version, old: Version, terms: Terms, now: float) -> None:
        self.version = version
        self.terms = terms
        self._tallies = Tally(old.counters), Tally(version.counters)
        self._began = now

    def verdict(self, now: float) -> Verdict:
        """What is to become of it."""
        return judge(*self._tallies, self.terms, now - self._began)


class Entry:
    """One name.

    Attributes:
        current: the version that serves, if any.
        trial: the one that is tried beside it.
        old: versions that finish what they have.
        reason: why it does not serve.
        lock: held by who changes any of this.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.current: Version | None = None
        self.trial: Trial | None = None
        self.old: list[Version] = []
        self.reason = ""
        self.number = 0
        self.lock = asyncio.Lock()
        self._random = random.Random(0)

    @property
    def serving(self) -> list[Version]:
        """The versions that take calls."""
        tried = [] if self.trial is None else [self.trial.version]
        return [*([] if self.current is None else [self.current]), *tried]

    @property
    def all(self) -> list[Version]:
        """Every version that still has something to do."""
        return [*self.serving, *self.old]

    def find(self, number: str | None) -> Version:
        """The version of that number, or the one that serves.

        Raises:
            Refusal: `not_found`, or `not_ready` where none serves.
        """
        if self.current is None:
            why = f": {self.reason}" if self.reason else ""
            raise Refusal("not_ready", f"the model `{self.name}` is not ready{why}")
        if number is None:
            return self.current
        for version in self.serving:
            if version.number == number:
                return version
        there = ", ".join(f"`{version.number}`" for version in self.serving)
        raise Refusal("not_found", f"the model `{self.name}` has no version `{number}`; it serves {there}")

    def submit(self, call: Call, done: Done) -> tuple[Version, Ticket]:
        """Gives `call` to the version that is to answer it; `done` may be told before this returns.

        Raises:
            Refusal: invalid, not found, or not ready.
        """
        version = self.find(call.version)
        trial = self.trial
        if trial is not None and call.version is None and self._random.random() < trial.terms.share:
            if trial.terms.mode == "canary":
                version = trial.version
            else:
                done = _copied(trial.version, call, done)
        return version, version.submit(call, done)


def _copied(version: Version, call: Call, done: Done) -> Done:
    """Has a version run a copy of `call`; nobody sees what it answers, and it can refuse what it likes.

    Returns:
        What is to be told of the answer that counts: both are compared.
    """
    inputs = [Tensor(t.name, t.datatype, t.shape, bytes(t.data)) for t in call.inputs]
    copy = Call(call.model, None, inputs, call.outputs, call.id, call.timeout, call.priority, call.parameters)

    pair = Pair(version.counters.compare)

    def both(result: Answer | Refusal) -> None:
        pair(result)
        done(result)

    try:
        version.submit(copy, pair)
    except Refusal:  # counted where it was refused
        return done
    return both
