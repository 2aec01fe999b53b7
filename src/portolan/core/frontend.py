"""FrontEnd: how a framework's saved models become a Model. One file each, tested by FrontendContract."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from portolan.core.model import Model
from portolan.core.signature import Dim
from portolan.errors import UsageError

Shapes = Mapping[str, Sequence[Dim]]


@dataclass(frozen=True)
class Made:
    """A framework's model as an object, with what is known of its inputs: what a factory returns, or a user has.

    Attributes:
        thing: the model.
        inputs: example inputs in the framework's or NumPy's arrays: one, a tuple by position or a dict by name.
        names: what to call the inputs, in order.
        source: what the user gave, for messages.
        called: what to call the model where nobody says.
    """

    thing: Any
    inputs: Any = None
    names: list[str] | None = None
    source: str = "the model"
    called: str = "model"


class FrontEnd(ABC):
    """Turns sources of one kind into a Model. Importing its module must import nothing heavy."""

    name: ClassVar[str]
    #: What its sources look like, for messages: "an `.onnx` file".
    forms: ClassVar[str]
    #: PyPI distributions that it imports to read a source, and whose versions decide the result. With any, it runs in
    #: a worker: in this interpreter if it has all `modules`, else in the environment of the front end's name.
    distributions: ClassVar[tuple[str, ...]] = ()
    #: The modules to find before it can read anything.
    modules: ClassVar[tuple[str, ...]] = ()
    #: Modules by whose import a Python file shows that its models are for this front end.
    frameworks: ClassVar[tuple[str, ...]] = ()
    #: The command that installs what it needs.
    fix: ClassVar[str] = ""

    @abstractmethod
    def accepts(self, source: object) -> bool:
        """Whether `source` is of its kind, judged by form alone: nothing is opened, nothing heavy imported.

        An object of a framework can only exist where the framework is loaded: look into `sys.modules`.
        """

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

    def convert(self, made: Made, out: Path, shapes: Shapes | None = None, name: str | None = None) -> Model:
        """Makes the Model of an object that it accepts; as `load`. A front end of files only has no such objects."""
        del out, shapes, name
        raise UsageError(
            f"`{made.source}` gives a {type(made.thing).__name__}, which `{self.name}` reads from files only",
            hint=f"give {self.forms}",
        )

    def home(self, source: object) -> FrontEnd:
        """The front end whose packages reading `source` needs: itself, but for one that hands sources on."""
        del source
        return self
