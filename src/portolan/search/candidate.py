"""Candidate: a recipe that a search may try, or that was refused; and what the rules that make them share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from portolan.core import registry
from portolan.core.backend import Backend, on_processor
from portolan.core.passes import Pass
from portolan.core.recipe import Recipe, digest
from portolan.errors import PortolanError, UnknownName

#: Stands for "every backend" in the recipe of a refusal.
ANY = "*"
#: Why something that is not exact is refused.
CHANGES = "changes outputs, and no goal allows it: add -g 'cosine >= 0.99'"

Fixed = Mapping[str, Any]
Named = TypeVar("Named", Backend, Pass)


@dataclass(frozen=True)
class Candidate:
    """A recipe that may be tried, or was refused.

    Attributes:
        recipe: what would be built. A refusal names only what it is about: backend `*` means all of them, and options
            that do not matter to the reason are left out.
        exact: whether it keeps the arithmetic of the original model.
        refused: why it is not tried; None when it may be.
        heavy: whether its backend or a pass compiles native code, which takes tens of seconds where others take one.
        features: what its passes put into the model.
    """

    recipe: Recipe
    exact: bool = True
    refused: str | None = None
    heavy: bool = False
    features: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """The recipe's hash."""
        return self.recipe.key

    @property
    def numerics(self) -> str:
        """Hash of what decides the outputs. Candidates that share it share one judgement of quality."""
        recipe = self.recipe
        device = () if on_processor(recipe.options) else (recipe.options["device"],)
        return digest([recipe.chain, recipe.backend, recipe.options.get("precision"), self.exact, *device])


def named(
    given: Mapping[str, Named] | Sequence[str] | None, wanted: Sequence[str] | None, group: registry.Registry, kind: str
) -> dict[str, Named | PortolanError]:
    """The objects to use by name; one of the registry that cannot be loaded is its error unless it was asked for."""
    if isinstance(given, Mapping):
        for name in wanted or ():
            if name not in given:
                raise UnknownName(kind, name, given)
        return {name: given[name] for name in wanted or given}
    names = wanted if wanted is not None else given
    if names is not None:
        return {name: group.get(name) for name in names}
    found: dict[str, Named | PortolanError] = {}
    for name in group.names():
        try:
            found[name] = group.get(name)
        except PortolanError as error:
            found[name] = error
    return found


def what_differs(some: Sequence[Mapping[str, Any]], all_: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The options that `some` have in common and that not all have: what a refusal of `some` is about."""
    if not some:
        return {}
    shared = {n: v for n, v in some[0].items() if all(o.get(n) == v for o in some)}
    return {n: v for n, v in shared.items() if any(o.get(n) != v for o in all_)}
