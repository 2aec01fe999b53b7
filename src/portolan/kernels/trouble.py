"""The error of a kernel that does not mean anything: where, what, and what to write."""

from __future__ import annotations

import ast
from dataclasses import dataclass

from portolan.errors import UnsupportedOperator, UsageError


class KernelError(UsageError):
    """A kernel that cannot be read, or that would read outside of its arrays."""


def unprinted(what: str, language: str) -> UnsupportedOperator:
    """The error of loops that hold what a language has no words for."""
    return UnsupportedOperator(f"{language} has no words for {what}", hint="`--emit c` prints every kernel")


@dataclass(frozen=True)
class Place:
    """Where a kernel stands, so that an error can name the user's own line."""

    path: str
    name: str

    def fault(self, node: ast.AST | int, message: str, hint: str | None = None) -> KernelError:
        """The error at the line of `node`."""
        line = node if isinstance(node, int) else getattr(node, "lineno", 0)
        return KernelError(f"kernel `{self.name}`: {message}", hint=hint, where=f"{self.path}:{line}")
