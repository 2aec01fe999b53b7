"""`demo:NAME`: small trained models with labelled data that come with the package."""

from __future__ import annotations

import importlib.resources
from pathlib import Path

from portolan.core.frontend import FrontEnd, Shapes
from portolan.core.model import Model
from portolan.errors import UnknownName

_PREFIX = "demo:"


def folder() -> Path:
    """Where the package keeps them."""
    return Path(str(importlib.resources.files("portolan"))) / "demo"


def names() -> list[str]:
    """The demos there are."""
    return sorted(path.stem for path in folder().glob("*.onnx"))


def is_demo(source: object) -> bool:
    """Whether `source` has the form `demo:NAME`."""
    return isinstance(source, (str, Path)) and str(source).startswith(_PREFIX)


def demo_data(source: str) -> Path:
    """The `.npz` with the labelled data of `demo:NAME` (or of NAME): images or the like, and `labels`.

    Raises:
        UnknownName: there is no such demo.
    """
    return folder() / f"{_known(source)}.npz"


def _known(source: str) -> str:
    name = source.removeprefix(_PREFIX)
    if name not in names():
        raise UnknownName("demo", name, names())
    return name


class Demo(FrontEnd):
    """The demos."""

    name = "demo"
    forms = "`demo:NAME`"

    def accepts(self, source: object) -> bool:
        """By the prefix."""
        return is_demo(source)

    def load(self, source: object, out: Path, shapes: Shapes | None = None, name: str | None = None) -> Model:
        """See FrontEnd."""
        from portolan.core.graph import freeze_shapes, load_model

        known = _known(str(source))
        model = load_model(folder() / f"{known}.onnx", name=name or known)
        return freeze_shapes(model, shapes, out) if shapes else model


demo = Demo()
