"""OpenVINO's CPU plug-in: often the fastest on x86, and bf16 where the processor has it."""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from portolan.backends._artefact import KERNELS, Artefact, all_cores, demand, explained, external_files, other
from portolan.backends._openvino_door import Door
from portolan.backends._openvino_kernels import extend
from portolan.core import protos
from portolan.core.backend import Backend, Executable, Exploit, Tensors
from portolan.core.extensions import FEATURE
from portolan.core.model import Model
from portolan.core.schema import Knob, cores
from portolan.core.silence import runtime
from portolan.core.target import Target
from portolan.errors import ModelError, UnsupportedOperator

if TYPE_CHECKING:
    import numpy as np
    import onnx

Precision = Literal["f32", "bf16"]
Hint = Literal["latency", "throughput"]
#: Instructions for 8-bit products; compressed weights meet activations that are quantized as they come.
_DOT = ("avx512_vnni", "avx_vnni", "asimddp", "i8mm")
_NAMES = {"f32": "f32", "float32": "f32", "bf16": "bf16", "bfloat16": "bf16", "f16": "f16", "float16": "f16"}
#: The operators of the domain `ai.onnx.ml`, none of which OpenVINO has.
_CLASSICAL = frozenset(
    (
        "ArrayFeatureExtractor",
        "Binarizer",
        "CastMap",
        "CategoryMapper",
        "DictVectorizer",
        "FeatureVectorizer",
        "Imputer",
        "LabelEncoder",
        "LinearClassifier",
        "LinearRegressor",
        "Normalizer",
        "OneHotEncoder",
        "SVMClassifier",
        "SVMRegressor",
        "Scaler",
        "TreeEnsemble",
        "TreeEnsembleClassifier",
        "TreeEnsembleRegressor",
        "ZipMap",
    )
)
#: Operators that its front end could not read, in what it says of them.
_UNREAD = (r"-- (\w+)-\d+ with a message", r"No conversion rule found for operations: (\w+)")
#: Attributes that its front end passes over without a word, and the values at which that is right.
_PASSED_OVER: Mapping[str, Mapping[str, object]] = {
    "Attention": {"left_window_size": -1, "right_window_size": -1},
    "Resize": {"antialias": 0, "exclude_outside": 0, "keep_aspect_ratio_policy": b"stretch"},
    "SpaceToDepth": {"mode": b"DCR"},
}
_LACKS = (r"No conversion rule found for operations: ([\w.]+)", r"Unsupported operator: ([\w.]+)")


class Compiled(Executable):
    """A compiled model. A request serves one thread, so every caller has its own."""

    def __init__(self, artefact: Artefact, precision: Precision, threads: int, hint: Hint, cores: int) -> None:
        settings = {
            "PERFORMANCE_HINT": hint.upper(),
            "INFERENCE_PRECISION_HINT": precision,  # left alone, it takes bf16 wherever the processor has it
            "INFERENCE_NUM_THREADS": threads or cores,
        }
        with explained("openvino", artefact.path, *_LACKS), artefact.unpacked() as path:
            core = runtime("openvino").Core()
            self._extended = extend(core, artefact.operators(path), artefact.kernels, threads or cores)
            with _flat(path, self._extended.names) as flat:
                self._compiled = _compiled(core, flat, settings)
        self._artefact = artefact
        self._ports = _ports(self._compiled.inputs, artefact)
        self._names = artefact.outputs
        asked = {"device": "cpu", "precision": precision, "hint": hint, "outputs": len(self._names)}
        # "All cores" is for the plug-in to read: it leaves out hyper-threads. A number is a request.
        demand("openvino", asked | ({"threads": threads} if threads else {}), self.facts())
        self._run = self.caller()

    def run(self, inputs: Tensors) -> dict[str, np.ndarray]:
        """Runs once, from one thread at a time."""
        return self._run(inputs)

    def caller(self) -> Callable[[Tensors], dict[str, np.ndarray]]:
        """A function with an inference request of its own, for one thread."""
        request = self._compiled.create_infer_request()
        names, ports = self._names, self._ports

        def run(inputs: Tensors) -> dict[str, np.ndarray]:
            result = request.infer({i: inputs[name] for i, name in ports}, share_inputs=True, share_outputs=True)
            # Shared outputs are views that the request's next inference overwrites.
            return {name: result[i].copy() for i, name in enumerate(names)}

        return run

    def save(self, folder: Path) -> None:
        """Writes the graph: a compiled blob would hold the weights again and be tied to this machine."""
        self._artefact.save(folder, self._extended.operators)
        if isinstance(self._extended.door, Door):
            self._extended.door.save(folder / KERNELS)

    def facts(self) -> dict[str, Any]:
        """What the compiled model answers when asked for its properties."""
        ask = self._compiled.get_property
        precision = ask("INFERENCE_PRECISION_HINT").get_type_name()
        return {
            "device": ",".join(ask("EXECUTION_DEVICES")).lower(),
            "precision": _NAMES.get(precision, precision),
            "threads": ask("INFERENCE_NUM_THREADS"),
            "hint": str(ask("PERFORMANCE_HINT")).rpartition(".")[2].lower(),
            "streams": ask("NUM_STREAMS"),
            "outputs": len(self._compiled.outputs),
            **({"kernels": self._extended.way} if self._extended.operators else {}),
        }

    def close(self) -> None:
        """Drops the compiled model and its threads."""
        self._run = _closed
        self._compiled = None


@contextlib.contextmanager
def _flat(path: Path, kept: Sequence[tuple[str, str]] = ()) -> Iterator[Path]:
    """The file, or one in which calls of functions are their bodies: OpenVINO's reader does not expand them.

    Those in `kept` (domain and name) stay: there is an extension for them.
    """
    if path.suffix != ".onnx" or protos.FUNCTIONS not in protos.fields(path):
        yield path  # also on a machine for bundles alone, which has no onnx
        return
    import onnx
    from onnx import inliner

    with tempfile.TemporaryDirectory() as scratch:
        flat = Path(scratch) / path.name
        model = inliner.inline_selected_functions(onnx.load(str(path)), list(kept), exclude=True)
        onnx.save(model, str(flat))
        yield flat


def _ports(ports: Any, artefact: Artefact) -> list[tuple[int, str]]:
    """Which input feeds which port: one that nothing reads has none, and one that is also an output may lose its name.

    Raises:
        ModelError: a port's input cannot be told.
    """
    ranks = {spec.name: len(spec.shape) for spec in artefact.signature.inputs}
    known = [[n for n in (*port.names, port.get_node().get_friendly_name()) if n in ranks] for port in ports]
    found, taken = [], {names[0] for names in known if names}
    for i, (port, names) in enumerate(zip(ports, known, strict=True)):
        fits = names[:1] or [n for n, rank in ranks.items() if n not in taken and rank == len(port.partial_shape)]
        if len(fits) != 1:
            raise ModelError(
                f"`openvino` renamed the inputs of `{artefact.path.name}`, and which is which cannot be told",
                hint="`--backend onnxruntime` runs it as it is",
            )
        found.append((i, fits[0]))
    return found


def _compiled(core: Any, path: Path, settings: dict[str, Any]) -> Any:
    """The compiled model; what its front end cannot read, or reads wrongly, is first written out as ONNX defines it.

    Raises:
        UnsupportedOperator: it would pass over something that decides the answers.
    """
    plain = None
    if wrong := _passed_over(path):
        plain = _plain(path, set(wrong))
        wrong = wrong if plain is None else _unread(plain)
    if wrong:
        operator, attribute = next(iter(wrong.items()))
        raise UnsupportedOperator(
            f"`openvino` passes over `{attribute}` of `{operator}`", hint=other("openvino"), where=str(path)
        )
    while True:
        try:
            return core.compile_model(
                str(path) if plain is None else core.read_model(plain.SerializeToString()), "CPU", settings
            )
        except RuntimeError as error:
            names = {name for pattern in _UNREAD for name in re.findall(pattern, str(error))}
            # A machine for bundles alone has no onnx, and is to say what was wrong.
            helps = names or b"Scan" in protos.nodes(path)
            plain = _plain(path, names, plain) if helps else None
            if plain is None:
                raise


def _passed_over(path: Path) -> dict[str, str]:
    """Operators of a file with an attribute that decides answers and is not read, each with one of them."""
    # A machine for bundles alone has no onnx: it is asked only where there may be something.
    nodes = protos.nodes(path)
    names = ((name, word) for name, words in _PASSED_OVER.items() for word in words)
    if not any(name.encode() in nodes and word.encode() in nodes for name, word in names):
        return {}
    import onnx

    return _unread(onnx.load(str(path), load_external_data=False))


def _unread(proto: onnx.ModelProto) -> dict[str, str]:
    import onnx

    found = {}
    for node in protos.walk(proto.graph.node):
        right = _PASSED_OVER.get(node.op_type, {}) if node.domain in protos.STANDARD else {}
        for attribute in node.attribute:
            value = onnx.helper.get_attribute_value(attribute)
            if attribute.name in right and value != right[attribute.name]:
                found[node.op_type] = attribute.name
    return found


def _plain(path: Path, names: set[str], before: onnx.ModelProto | None = None) -> onnx.ModelProto | None:
    """The graph (as it was written before) with those operators written out, and scans that hand over all they use.

    None where that changes nothing: there is no definition, or the weights lie elsewhere.
    """
    import onnx

    from portolan.importers.definitions import expanded
    from portolan.importers.scans import closed

    if external_files(path):
        return None
    proto = onnx.load(str(path)) if before is None else before
    written = closed(expanded(proto, frozenset(names)))
    return None if written is proto else written


def _closed(inputs: Tensors) -> dict[str, np.ndarray]:
    raise RuntimeError("this executable is closed")


class OpenVino(Backend):
    """OpenVINO on the CPU. 8-bit weights with activations quantized at run time are slower than f32 here."""

    name = "openvino"
    distributions = ("openvino",)
    module = "openvino"
    fix = "pip install openvino"
    exploits = (
        Exploit("int8:static", _DOT),
        # Products with compressed weights. Its ONNX front end knows no type of 2 bits.
        Exploit("weights:int8", _DOT),
        Exploit("weights:int4", _DOT),
        Exploit("float16", gain="size"),
        Exploit("bfloat16", gain="size"),
        Exploit("length:trimmed"),
        Exploit(FEATURE),
    )

    def refuse(self, model: Model, target: Target) -> str | None:
        """Besides the features: classical machine learning has no operators here."""
        foreign = next((name for name in model.operators if name in _CLASSICAL), None)
        return f"`openvino` has no operator `{foreign}`" if foreign else super().refuse(model, target)

    def compile(
        self,
        model: Model,
        target: Target,
        *,
        precision: Annotated[
            Precision,
            Knob(needs={"bf16": ("avx512_bf16", "amx_bf16", "bf16")}, help="The arithmetic; bf16 is not exact."),
        ] = "f32",
        threads: Annotated[int, Knob(values=cores, help="Threads over all streams; 0 means all cores.")] = 0,
        hint: Annotated[
            Hint, Knob(help="One inference as fast as possible, or several at once as many as possible.")
        ] = "latency",
    ) -> Compiled:
        """Compiles `model` for `target`'s cores."""
        return Compiled(Artefact.of(model), precision, threads, hint, target.cores)

    def load(self, folder: Path, *, precision: Precision = "f32", threads: int = 0, hint: Hint = "latency") -> Compiled:
        """Compiles what was saved, for this machine's cores."""
        return Compiled(Artefact.open(folder), precision, threads, hint, all_cores())


openvino = OpenVino()
