"""What backends that translate a model share: what they refuse, a place to work in, the proof that nothing was lost.

A converter's exit status proves nothing: some drop operators and end with 0. So what a conversion gave is loaded, run
on the model's golden inputs and compared with the original graph before anybody times it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from portolan.backends._artefact import Artefact, external_files
from portolan.core.backend import Executable, Tensors
from portolan.core.data import generate, sample
from portolan.core.model import Model
from portolan.core.silence import runtime
from portolan.errors import ModelError, PortolanError, VerificationFailed

if TYPE_CHECKING:
    import numpy as np
    import onnx

#: Largest error of a converted model, as a share of an output's standard deviation: float32 stays below 3e-5 of it.
EXACT, REDUCED = 1e-3, 0.2
_FREE = 4
#: Protobuf's messages end here.
_LARGEST = 2**31 - 1
_IDS = (100, 20, 2)


def free_axis(backend: str, model: Model) -> str | None:
    """Why a backend that compiles for fixed sizes refuses `model`; None where all sizes are fixed."""
    for spec in model.signature.inputs:
        for dim in spec.shape:
            if isinstance(dim, str):
                shape = "x".join(map(str, spec.shape))
                return f"`{backend}` compiles for fixed sizes, and `{dim}` of `{spec.name}:{shape}` is free: `--shapes`"
    return None


def foreign_type(backend: str, model: Model, *known: str) -> str | None:
    """Why a backend refuses `model` for the element type of an input or output; None where it knows all of them."""
    for spec in (*model.signature.inputs, *model.signature.outputs):
        if spec.dtype not in known:
            return f"`{backend}` has no tensors of {spec.dtype}, which `{spec.name}` is"
    return None


def graph(model: Model) -> onnx.ModelProto:
    """The model's graph in memory, external data and all, with its functions inlined.

    Raises:
        ModelError: it is larger than a graph in memory can be.
    """
    import onnx
    import onnx.inliner

    size = sum(
        path.stat().st_size for path in (model.path, *map(model.path.parent.joinpath, external_files(model.path)))
    )
    if size > _LARGEST:
        raise ModelError(
            f"`{model.name}` has {size / 2**30:.1f} GiB, and converters take graphs of up to 2 GiB",
            hint="`--backend onnxruntime` runs larger ones as they are",
            where=str(model.path),
        )
    proto = onnx.load(str(model.path))
    return onnx.inliner.inline_local_functions(proto) if proto.functions else proto


class Workplace:
    """A temporary folder that lives as long as the executable whose files are in it."""

    def __init__(self, backend: str) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix=f"portolan-{backend}-")

    @property
    def path(self) -> Path:
        """The folder."""
        return Path(self._folder.name)

    def close(self) -> None:
        """Removes it, once or more often."""
        self._folder.cleanup()


class Native(Executable):
    """An executable made from one compiled file; subclasses set `_artefact` and load it.

    Args:
        artefact: the compiled file and the signature.
        place: where it was compiled; None for one that was saved.
    """

    def __init__(self, artefact: Artefact, place: Workplace | None) -> None:
        self._artefact, self._place = artefact, place
        self._inputs = tuple(artefact.signature.inputs)
        self._outputs = tuple(artefact.signature.outputs)

    def save(self, folder: Path) -> None:
        """Writes the compiled file and the signature."""
        self._artefact.save(folder)

    def close(self) -> None:
        """Drops what was loaded and the folder it was compiled in."""
        if self._place is not None:
            self._place.close()

    def named(self, values: Any) -> dict[str, np.ndarray]:
        """Outputs in the signature's order under their names, with its types, in memory of their own."""
        import numpy as np

        return {
            spec.name: np.array(value, dtype=spec.dtype, order="C")
            for spec, value in zip(self._outputs, values, strict=True)
        }


def compiled(backend: str, model: Model, make: Callable[[Workplace], Native], *, exact: bool = True) -> Native:
    """What `make` compiles in a fresh folder, once it has proved itself on golden inputs.

    Raises:
        VerificationFailed: its outputs are not the model's.
        PortolanError: what `make` raises.
    """
    place = Workplace(backend)
    try:
        executable = make(place)
        verify(backend, model, executable, EXACT if exact else REDUCED)
    except BaseException:
        place.close()
        raise
    return executable


def verify(backend: str, model: Model, executable: Executable, tolerance: float) -> None:
    """Compares a converted model with the original graph on golden inputs, made up from the signature.

    Raises:
        VerificationFailed: an output is another one than the original's.
        ModelError: the original does not run.
    """
    found = golden(model)
    if found is None:
        return
    feeds, expected = found
    got = executable.run(feeds)
    for name, want in expected.items():
        if (fault := difference(want, got[name], tolerance)) is not None:
            raise VerificationFailed(
                f"the conversion to `{backend}` changed the model `{model.name}`: output `{name}` {fault}",
                hint="leave this backend out: its converter does not understand the model",
            )


def golden(model: Model) -> tuple[dict[str, np.ndarray], Mapping[str, np.ndarray]] | None:
    """One inference's inputs and the original graph's outputs; None where no inputs can be made up (strings).

    Made-up ids that a table of the model does not have are made smaller until the original takes them.
    """
    feeds = made_up(model)
    if feeds is None:
        return None
    for largest in _IDS:
        kept = {name: value % largest if value.dtype.kind == "i" else value for name, value in feeds.items()}
        try:
            return kept, right(model, kept)
        except Exception as error:  # whatever a runtime raises about an index
            if largest == _IDS[-1]:
                reason = " ".join(str(error).split())[:200]
                raise ModelError(
                    f"`{model.name}` does not run on made-up inputs, so no conversion can be checked: {reason}",
                    hint="`--backend onnxruntime` runs the graph as it is",
                ) from error
    return None


def made_up(model: Model) -> dict[str, np.ndarray] | None:
    """One inference's inputs; None where none can be made up (strings)."""
    free = {dim for spec in model.signature.inputs for dim in spec.shape if isinstance(dim, str)}
    shapes = {spec.name: tuple(_FREE if dim in free else dim for dim in spec.shape) for spec in model.signature.inputs}
    try:
        return sample(generate(model.signature, _FREE, 0, shapes), 0, model.signature)
    except PortolanError:
        return None


def right(model: Model, feeds: Tensors) -> Mapping[str, np.ndarray]:
    """The original graph's outputs, by ONNX Runtime where this environment has it, else by ONNX's own evaluator."""
    names = [spec.name for spec in model.signature.outputs]
    try:
        ort = runtime("onnxruntime")
    except ImportError:
        evaluator = runtime("onnx.reference").ReferenceEvaluator(str(model.path))
        return dict(zip(names, evaluator.run(names, dict(feeds)), strict=True))
    settings = ort.SessionOptions()
    settings.log_severity_level = 4
    settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    session = ort.InferenceSession(str(model.path), settings, providers=["CPUExecutionProvider"])
    return dict(zip(names, session.run(names, dict(feeds)), strict=True))


def difference(want: np.ndarray, got: np.ndarray, tolerance: float) -> str | None:
    """How an output differs beyond `tolerance` of its standard deviation, in words; None where it does not."""
    import numpy as np

    if want.shape != got.shape:
        return f"has the shape {got.shape} in place of {want.shape}"
    if want.dtype.kind != "f":
        share = float(np.mean(want != got)) if want.size else 0.0
        return f"differs in {share:.1%} of its values" if share > tolerance else None
    places = np.isfinite(want)
    if not np.array_equal(places, np.isfinite(got)):
        return "has NaN or infinity in other places"
    if not places.any():
        return None
    exact = want[places].astype(np.float64)
    scale = max(float(exact.std()), float(np.abs(exact).max()) * 1e-3)
    error = float(np.abs(exact - got[places]).max())
    return f"is off by {error:.3g} at a spread of {scale:.3g}" if error > tolerance * scale + 1e-6 else None
