"""FrontEnd: how a framework's saved models become a Model. One file each, tested by FrontendContract."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from portolan.core.model import Model
from portolan.core.signature import Dim

Shapes = Mapping[str, Sequence[Dim]]


class FrontEnd(ABC):
    """Turns sources of one kind into a Model. Importing its module must import nothing heavy."""

    name: ClassVar[str]
    #: What its sources look like, for messages: "an `.onnx` file".
    forms: ClassVar[str]
    #: PyPI distributions that it imports to read a source, and whose versions decide the result. With any, it runs in
    #: a worker.
    distributions: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def accepts(self, source: object) -> bool:
        """Whether `source` is of its kind, judged by form alone: nothing is opened, nothing heavy imported."""

    @abstractmethod
    def load(self, source: object, out: Path, shapes: Shapes | None = None, name: str | None = None) -> Model:
        """Makes the Model.

        Args:
            source: something it accepts.
            out: a folder for derived files; the source itself is never changed.
            shapes: a shape per input, `{"x": (1, 3, 224, 224)}`; a name in place of a size leaves that axis free.
            name: what to call the model; a front end has its own idea without one.

        Raises:
            UsageError: no such source, or shapes that do not fit.
            ModelError: it cannot be read or exported.
            VerificationFailed: the exported graph does not compute what the source does.
        """
