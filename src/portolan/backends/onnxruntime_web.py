"""ONNX Runtime Web: what a browser or Node runs, on the targets `wasm` and `webgpu`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from portolan.backends._artefact import Artefact, explained, external_files
from portolan.backends._engine import EngineLost, start, web
from portolan.core.backend import Backend, Executable, Exploit, Support, Tensors
from portolan.core.model import Model
from portolan.core.target import Target
from portolan.errors import NoBackend

if TYPE_CHECKING:
    import numpy as np

_ARCH = "wasm32"
_LACKS = (
    r"Fatal error: (\S+?)\(-?\d+\) is not a registered function/op",
    r"No Op registered for (\S+)",
    r"Could not find an implementation for (\S+?)\(",
)


class Session(Executable):
    """A session in another process: WebAssembly under Node, or WebGPU in a page."""

    def __init__(self, artefact: Artefact) -> None:
        import numpy as np

        found = web()
        if found is None:
            raise NoBackend("ONNX Runtime Web is not here", hint=OnnxRuntimeWeb.fix)
        self._artefact = artefact
        self._engine = start(found)
        try:
            with explained("onnxruntime-web", artefact.path, *_LACKS), artefact.unpacked() as path:
                files = {"model": path, **{name: path.parent / name for name in external_files(path)}}
                tensors = {name: np.fromfile(file, np.uint8) for name, file in files.items()}
                self._facts = dict(self._engine.ask("load", tensors).fields)
        except BaseException:
            self._engine.close()
            raise

    def run(self, inputs: Tensors) -> dict[str, np.ndarray]:
        """Runs once."""
        try:
            found = self._engine.ask("run", inputs).tensors
        except EngineLost as error:
            raise RuntimeError(error.message) from error
        return {name: found[name] for name in self._artefact.outputs}

    def save(self, folder: Path) -> None:
        """Writes the graph: what the runtime makes of it stays in its own memory."""
        self._artefact.save(folder)

    def facts(self) -> dict[str, Any]:
        """The device, as the runtime or the browser's adapter names it. Operators that WebGPU lacks run as WASM."""
        return {"device": self._facts["device"], "precision": "f32", "threads": 1}

    def close(self) -> None:
        """Ends the process."""
        self._engine.close()


class OnnxRuntimeWeb(Backend):
    """ONNX Runtime Web, where a target's folder of npm packages is."""

    name = "onnxruntime-web"
    distributions = ("onnxruntime-web", "engine")
    module = "onnxruntime-web"
    fix = "portolan target add wasm --emulate wasm"
    searched = False
    web = True
    # In bytes only: 8-bit products are slower than floats in WebAssembly.
    exploits = (
        Exploit("weights:int8", gain="size"),
        Exploit("float16", gain="size"),
        Exploit("length:trimmed"),
    )

    def probe(self, target: Target) -> Support:
        """Ready on a target that `portolan target add` made for the web, as long as its programs are there."""
        found = web()
        if target.arch != _ARCH or found is None:
            return Support(False, reason="it runs under Node and in browsers: on a target for them", fix=self.fix)
        version = found.version()
        again = f"portolan target add {target.id} --emulate {found.engine} --force"
        if version is None:
            return Support(False, reason="the package `onnxruntime-web` is gone from the target's folder", fix=again)
        if not Path(found.program).exists():
            return Support(False, version, f"`{found.program}` is gone", again)
        return Support(True, version)

    def versions(self) -> dict[str, str]:
        """Of the package, and of Node or the browser."""
        found = web()
        if found is None:
            return {}
        told = {"onnxruntime-web": found.version(), "engine": found.engine_version()}
        return {name: version for name, version in told.items() if version is not None}

    def compile(self, model: Model, target: Target) -> Session:
        """Loads `model` into a new process."""
        del target
        return Session(Artefact.of(model))

    def load(self, folder: Path) -> Session:
        """Loads what was saved into a new process."""
        return Session(Artefact.open(folder))


onnxruntime_web = OnnxRuntimeWeb()
