"""Every error a user can meet, as a tree; each carries its exit code and, where there is one, a hint.

PortolanError                 1  a bug, or an error nobody classified
├── UsageError                2  a flag, a goal, a file or data that does not fit
│   ├── CannotHelp            2  a pass that has nothing to do in this model
│   └── UnknownName           2  a mistyped name, with the nearest real one
├── GoalsNotMet               3  carries `.closest`
├── NoBackend                 4  no backend or target can do it
├── ModelError                5  the model cannot be read
│   └── UnsupportedOperator   5  a backend lacks an operator
├── VerificationFailed        6  outputs, checksums or a bundle's contents do not agree
├── NoResult                  7  no valid result in the budget
├── WorkerError               1  a worker process failed; its trial is recorded as failed with this reason
│   ├── WorkerCrashed
│   ├── WorkerTimeout
│   ├── EnvironmentGone       1  what it ran in was removed; nobody's fault but the remover's
│   └── OutOfMemory
├── DiskFull                  1  no space left; what was done before is kept
└── Interrupted             130  Ctrl-C; what was done is saved
"""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable, Mapping
from typing import Any


class PortolanError(Exception):
    """Base of all errors that Portolan raises on purpose.

    Args:
        message: what happened, with the thing in backticks.
        hint: the command or change that fixes it.
        where: the place, such as `portolan.toml:3` or `$.inputs[0].shape`.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None, where: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.where = where

    def to_json(self) -> dict[str, Any]:
        """The failure object of the contract."""
        return {"error": {"code": self.exit_code, "message": self.message, "where": self.where, "hint": self.hint}}


class UsageError(PortolanError):
    """A flag, a goal, a file or data that does not fit."""

    exit_code = 2


class CannotHelp(UsageError):
    """A pass found nothing in the model that it could change, or data that it cannot use: one recipe's failure."""


class UnknownName(UsageError):
    """A name that does not exist; the hint is the nearest one that does."""

    def __init__(self, kind: str, name: str, known: Iterable[str], *, where: str | None = None) -> None:
        super().__init__(f"no {kind} named `{name}`", hint=nearest(name, known), where=where)
        self.name = name


def nearest(name: str, known: Iterable[str]) -> str:
    """The hint for a mistyped name: the nearest one that exists, else all of them."""
    names = sorted(known)
    # Case is no difference: `Latency_P95` is as near to `latency_p95` as can be.
    near = difflib.get_close_matches(name.lower(), [n.lower() for n in names], n=1, cutoff=0.5)
    if not near:
        return f"known: {', '.join(names) or 'none'}"
    twins = [n for n in names if n.lower() == near[0]]
    return f"did you mean `{max(twins, key=lambda n: difflib.SequenceMatcher(None, name, n).ratio())}`?"


class GoalsNotMet(PortolanError):
    """A study ended and no trial met every limit; `closest` is the nearest one."""

    exit_code = 3

    def __init__(self, message: str, *, closest: Any = None, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.closest = closest


class NoBackend(PortolanError):
    """No backend or target can do what was asked."""

    exit_code = 4


class ModelError(PortolanError):
    """The model cannot be read, or is not what its signature says."""

    exit_code = 5


class UnsupportedOperator(ModelError):
    """A backend lacks an operator that the model needs."""


class VerificationFailed(PortolanError):
    """Outputs, checksums or contents do not agree with what was promised."""

    exit_code = 6


class NoResult(PortolanError):
    """Not one trial gave a valid result within the budget."""

    exit_code = 7


class WorkerError(PortolanError):
    """A worker process failed. It costs one trial; `stderr` is the end of what it printed."""

    def __init__(self, message: str, *, hint: str | None = None, stderr: str = "") -> None:
        super().__init__(message, hint=hint)
        self.stderr = stderr


class WorkerCrashed(WorkerError):
    """The worker ended without an answer (a signal, an abort, an exit).

    Attributes:
        killed: by SIGKILL, which comes from outside: the kernel when memory runs out, or a person.
    """

    def __init__(self, message: str, *, hint: str | None = None, stderr: str = "", killed: bool = False) -> None:
        super().__init__(message, hint=hint, stderr=stderr)
        self.killed = killed


class WorkerTimeout(WorkerError):
    """The worker did not answer in time and was killed."""


class EnvironmentGone(WorkerError):
    """The environment that the worker ran in was removed under it. Not the recipe's fault: nothing is kept of it."""


class OutOfMemory(WorkerError):
    """The worker reached its memory limit."""


class DiskFull(PortolanError):
    """No space is left where something has to be written. What was written before is kept."""

    def __init__(self, message: str, *, hint: str | None = None, where: str | None = None) -> None:
        usual = "free some space and repeat the command: what was measured before is kept"
        super().__init__(message, hint=hint or usual, where=where)


def no_space(error: BaseException) -> bool:
    """Whether the system says that a disk, or a quota of it, is full."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


class Interrupted(PortolanError):
    """Ctrl-C or SIGTERM. Everything measured so far is saved."""

    exit_code = 130


def rebuilt(failure: Mapping[str, Any]) -> PortolanError:
    """The error whose `to_json` is `failure`, from another process; of the class that its exit code names."""
    kinds = (UsageError, NoBackend, ModelError, VerificationFailed, NoResult)
    kind = next((kind for kind in kinds if kind.exit_code == failure["code"]), PortolanError)
    return kind(failure["message"], hint=failure["hint"], where=failure["where"])
