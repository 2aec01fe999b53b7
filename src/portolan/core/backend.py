"""Backend and Executable: how a runtime is plugged in. One file each, about 100 lines, tested by BackendContract."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from portolan.core import conformance, interpreters
from portolan.core.model import Model
from portolan.core.schema import Schema
from portolan.core.target import Target

if TYPE_CHECKING:
    import numpy as np

Tensors = Mapping[str, "np.ndarray"]
#: What a produced feature can bring: faster inference, or only a smaller file.
Gain = Literal["speed", "size"]
#: Smaller operators of the ordinary kinds (fewer channels, two thin products for one): fast wherever those are.
_ANYWHERE = "shape:"
#: The value of an option `device` that every target has.
CPU = "cpu"
#: Zeros where they fall. Portolan's own storage packs them; whether anything multiplies less is for a backend to say.
_STORED = "sparsity:"


def on_processor(options: Mapping[str, Any]) -> bool:
    """Whether a backend with these options runs on the target's processor: what is known of that then holds."""
    return bool(options.get("device", CPU) == CPU)


@dataclass(frozen=True)
class Support:
    """Whether a backend can run on a target: if not, why, and the command that changes it.

    Attributes:
        devices: the same for each device of the target, besides the processor, that the backend has code for.
    """

    ready: bool
    version: str | None = None
    reason: str | None = None
    fix: str | None = None
    devices: Mapping[str, Support] = field(default_factory=dict)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Support:
        """Reads what `dataclasses.asdict` made."""
        return cls(**{**data, "devices": {name: cls.from_json(one) for name, one in data.get("devices", {}).items()}})


@dataclass(frozen=True)
class Exploit:
    """A produced feature that a backend turns into speed or size.

    Attributes:
        feature: what a pass produces.
        needs: target features, of which it needs one.
        gain: what it becomes.
        options: the values of the backend's options with which alone it becomes that.
    """

    feature: str
    needs: tuple[str, ...] = ()
    gain: Gain = "speed"
    options: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)


class Executable(ABC):
    """A model, compiled and loaded."""

    @abstractmethod
    def run(self, inputs: Tensors) -> dict[str, np.ndarray]:
        """Runs once. Arrays keyed by the signature's names; the outputs belong to the caller."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Writes what `Backend.load` needs into an existing empty folder. Never pickle."""

    def caller(self) -> Callable[[Tensors], dict[str, np.ndarray]]:
        """A function for one thread of its own, for concurrent load; `run` itself where that is safe."""
        return self.run

    def facts(self) -> dict[str, Any]:
        """What the runtime says it really does (device, precision, threads), asked after the load."""
        return {}

    def close(self) -> None:  # noqa: B027 - most runtimes free everything when the object goes
        """Frees what the runtime holds."""


class Backend(ABC):
    """A compiler or runtime. Importing its module must import nothing heavy: runtimes load inside methods.

    `compile`'s keyword-only parameters are the backend's options: their annotations are its search space
    (see portolan.core.schema). A subclass narrows that signature.
    """

    name: ClassVar[str]
    #: PyPI distributions whose versions decide the results; the first one's version is shown as the backend's.
    distributions: ClassVar[tuple[str, ...]]
    #: The module to find before the backend can be ready.
    module: ClassVar[str]
    #: The command that installs it.
    fix: ClassVar[str]
    #: Produced features that this backend turns into speed or size.
    exploits: ClassVar[tuple[Exploit, ...]] = ()
    #: Whether it starts from the exported torch program instead of the ONNX graph.
    needs_program: ClassVar[bool] = False
    #: Whether compiling takes tens of seconds where others take one: a search tries it after the others.
    heavy: ClassVar[bool] = False
    #: False keeps it out of searches unless it is named with `--backend`.
    searched: ClassVar[bool] = True
    #: Whether its hardware is simulated: answers are real, and nothing is timed. `Executable.facts` then says under
    #: `estimate` what the simulation makes of one sample: `{"seconds": ..., "of": ...}`.
    simulated: ClassVar[bool] = False
    #: Whether it is for targets of WebAssembly: no other backend runs there, and it is searched there.
    web: ClassVar[bool] = False
    #: Whether what it compiles runs on every processor: a target with an interpreter of its own is then given what was
    #: compiled here, since converters exist for few processors.
    portable: ClassVar[bool] = False

    def probe(self, target: Target) -> Support:
        """Whether this backend can run on `target`, without importing the runtime."""
        own = interpreters.environment(self.name)
        if own is not None and own.reason is not None:
            return Support(False, reason=own.reason, fix=own.fix)
        if not interpreters.has(self.name, self.module):
            return Support(False, reason=f"the package `{self.distributions[0]}` is not installed", fix=self.fix)
        return Support(True, version=self.versions().get(self.distributions[0]), devices=self.devices(target))

    def devices(self, target: Target) -> Mapping[str, Support]:
        """Whether the devices of `target` can be used, by the values of the option `device`; without its processor.

        Empty where the target has none that this backend has code for. Like `probe`, it imports no runtime.
        """
        del target
        return {}

    def lacks(self, options: Mapping[str, Any], target: Target) -> Support | None:
        """What `target` lacks for these options; None where nothing is missing."""
        for name, value in options.items():
            needs = self.schema.parameters[name].knob.needs.get(value, ())
            if target.has(*needs):
                continue
            if name == "device":
                return Support(False, reason=f"this target has no device `{value}`")
            return Support(False, reason=f"needs one of {', '.join(needs)}, which this target lacks")
        if on_processor(options):
            return None
        device = options["device"]
        found = self.devices(target).get(device) or Support(False, reason=f"this target has no device `{device}`")
        return None if found.ready else found

    def space(self, target: Target, pinned: Mapping[str, Any] | None = None) -> Iterator[dict[str, Any]]:
        """Every combination of options that `target` can run and a search may try, the defaults first.

        Raises:
            UnknownName, UsageError: what `pinned` says does not fit, see Schema.space.
        """
        return (options for options in self.schema.space(target, pinned) if self.lacks(options, target) is None)

    @property
    def offered(self) -> bool:
        """Whether a search takes it unasked: one whose environment nobody has made is no news in every table."""
        own = interpreters.environment(self.name)
        made = own is None or own.state != "absent" or interpreters.has(self.name, self.module)
        return self.searched and made

    def versions(self) -> dict[str, str]:
        """Version of each distribution that is installed where the backend lives, without importing it."""
        found = {name: interpreters.distribution(self.name, name) for name in self.distributions}
        return {name: version for name, version in found.items() if version is not None}

    def unasked(self, model: Model) -> str | None:
        """Why a search tries this backend on `model` only where it is named; None if it need not be."""
        del model
        return None

    def refuse(self, model: Model, target: Target) -> str | None:
        """Why this backend cannot run `model` or would gain nothing from what passes did to it; None if it can."""
        if lacking := conformance.refusal(self.name, model.operators, self.versions):
            return lacking
        if self.needs_program and model.program is None:
            return f"`{self.name}` starts from a torch program, and the model is a plain ONNX graph"
        for feature in model.features:
            if self.gain(feature, target) is None:
                needs = next((e.needs for e in self.exploits if e.feature == feature), ())
                only = f" only with one of {', '.join(needs)}" if needs else ""
                return f"{feature} is {'' if needs else 'not '}exploited by `{self.name}`{only}"
        return None

    def gain(self, feature: str, target: Target) -> Gain | None:
        """What this backend makes of a produced feature on `target`; None if nothing."""
        for exploit in self.exploits:
            if exploit.feature == feature and target.has(*exploit.needs):
                return exploit.gain
        if feature.startswith(_ANYWHERE):
            return "speed"
        return "size" if feature.startswith(_STORED) else None

    def ignores(self, features: Sequence[str], options: Mapping[str, Any]) -> bool:
        """Whether one of the features does nothing with these options."""
        asked = [exploit.options for exploit in self.exploits if exploit.feature in features]
        return any(options.get(name) not in values for one in asked for name, values in one.items())

    def exact(self, options: Mapping[str, Any]) -> bool:
        """Whether these options keep the model's own arithmetic; False for reduced precision."""
        return bool(options.get("precision", "f32") == "f32")

    @property
    def schema(self) -> Schema:
        """The options, read from the signature of `compile`."""
        return Schema.of(type(self).compile, self.name)

    # `*_: Any` beside `**options: Any` lets a subclass narrow the keywords in mypy's eyes; nobody passes positions.
    @abstractmethod
    def compile(self, model: Model, target: Target, *_: Any, **options: Any) -> Executable:
        """Compiles and loads `model`.

        Raises:
            UnsupportedOperator: the runtime lacks an operator.
        """

    @abstractmethod
    def load(self, folder: Path, *_: Any, **options: Any) -> Executable:
        """Loads what `Executable.save` wrote, with the options it was compiled with."""
