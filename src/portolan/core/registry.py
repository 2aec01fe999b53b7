"""Finding backends, passes, front ends and targets by name: the modules of a package here, then entry points.

A built-in is a module of `portolan.backends` (and so on) that defines an object of the module's kind; a plug-in is an
entry point of the group with the same name. Names are listed without importing anything.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import importlib.util
import pkgutil
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from portolan.core.backend import Backend
from portolan.core.frontend import FrontEnd
from portolan.core.passes import Pass
from portolan.errors import PortolanError, UnknownName

Group = Literal["backends", "passes", "frontends", "targets", "platforms", "languages"]
_TYPES: dict[Group, type] = {"backends": Backend, "passes": Pass, "frontends": FrontEnd}
_KINDS = {
    "backends": "backend",
    "passes": "pass",
    "frontends": "front end",
    "targets": "target",
    "platforms": "platform",
    "languages": "language",
}
#: Where built-ins live, if not in the package that has the group's name.
_PACKAGES: dict[Group, str] = {
    "platforms": "portolan.deployment",
    "languages": "portolan.kernels.languages",
}


#: Built-ins of a higher layer, which the package of their group cannot import.
_ELSEWHERE: dict[Group, dict[str, str]] = {
    "passes": {"fuse": "portolan.fusing:fuse", "winograd": "portolan.filtering:winograd"}
}


@dataclass(frozen=True)
class Registry:
    """The named objects of one group."""

    group: Group

    @functools.cached_property
    def built_in(self) -> dict[str, str]:
        """Where each object that comes with Portolan is, by name."""
        package = _PACKAGES.get(self.group, f"portolan.{self.group}")
        path = _path(package)
        places = dict(_ELSEWHERE.get(self.group, {}))
        places |= {
            self._named(m.name): f"{package}.{m.name}:{m.name.rstrip('_')}"
            for m in pkgutil.iter_modules(path)
            if not m.name.startswith("_")
        }
        return places

    @functools.cached_property
    def _places(self) -> dict[str, str]:
        places = dict(self.built_in)
        for entry in importlib.metadata.entry_points(group=f"portolan.{self.group}"):
            places.setdefault(entry.name, entry.value)
        return places

    def _named(self, module: str) -> str:
        """The name that people type: backends and platforms have dashes, such as `onnxruntime-web`."""
        name = module.rstrip("_")
        return name.replace("_", "-") if self.group in ("backends", "platforms") else name

    def names(self) -> list[str]:
        """Every name, built-in and plugged in."""
        return sorted(self._places)

    def get(self, name: str, where: str | None = None) -> Any:
        """The object of that name: in a module `X.py` it is called `X`.

        Raises:
            UnknownName: nothing is registered under `name`.
            PortolanError: a plug-in that cannot be imported, or is something else.
        """
        if name not in self._places:
            raise UnknownName(_KINDS[self.group], name, self._places, where=where)
        module, _, attribute = self._places[name].partition(":")
        try:
            found = functools.reduce(getattr, attribute.split("."), importlib.import_module(module))
        except Exception as error:  # someone else's code, which may fail in any way
            why = str(error) if isinstance(error, (ImportError, AttributeError)) else f"{type(error).__name__}: {error}"
            raise self._broken(name, why) from error
        kind = _TYPES.get(self.group, object)
        if not isinstance(found, kind):
            what = f"class `{found.__name__}`" if isinstance(found, type) else f"`{type(found).__name__}`"
            raise self._broken(name, f"it is a {what}, not an object of `{kind.__name__}`")
        return found

    def _broken(self, name: str, why: str) -> PortolanError:
        return PortolanError(
            f"the {_KINDS[self.group]} `{name}` cannot be loaded from `{self._places[name].partition(':')[0]}`: {why}",
            hint="reinstall the package that provides it, or remove it",
        )


BACKENDS = Registry("backends")
PASSES = Registry("passes")
FRONTENDS = Registry("frontends")
TARGETS = Registry("targets")
PLATFORMS = Registry("platforms")
LANGUAGES = Registry("languages")


def _path(package: str) -> Sequence[str]:
    """Where the modules of a package are, without importing it: `--help` lists platforms."""
    spec = importlib.util.find_spec(package)
    return list(spec.submodule_search_locations or ()) if spec else []


def backend(name: str, where: str | None = None) -> Backend:
    """The backend of that name."""
    found: Backend = BACKENDS.get(name, where)
    return found


def pass_(name: str, where: str | None = None) -> Pass:
    """The pass of that name."""
    found: Pass = PASSES.get(name, where)
    return found
