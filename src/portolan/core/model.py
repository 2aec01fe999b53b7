"""Model: an ONNX graph on disk with a signature and a content hash. Immutable; a Pass gives a new one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from portolan.core.plain import html_table
from portolan.core.signature import Signature, TensorSpec


@dataclass(frozen=True)
class Model:
    """A trained model as an ONNX file.

    Attributes:
        name: what people call it; the file's stem unless a front end knows better.
        path: the ONNX file. External data, if any, lies beside it.
        sha256: hash of the file and of its external data.
        signature: inputs and outputs.
        format: what it came from: onnx, torch, ...
        opset: version of the default ONNX operator set.
        operators: how often each operator occurs, functions and subgraphs included.
        features: what passes produced, such as `weights:int8`; backends say which of these they exploit.
        program: the exported torch program beside the graph, for backends that start from one; None without.
        kernels: a folder of compiled kernels for functions of the graph (`core.carried`); None without. It is made of
            the user's own Python: no front end sets it.
    """

    name: str
    path: Path
    sha256: str
    signature: Signature
    format: str = "onnx"
    opset: int = 0
    operators: dict[str, int] = field(default_factory=dict)
    features: tuple[str, ...] = ()
    program: Path | None = None
    kernels: Path | None = None

    def to_json(self) -> dict[str, Any]:
        """The model as plain data: it crosses to workers and lies beside artefacts."""
        return {
            "name": self.name,
            "path": str(self.path),
            "sha256": self.sha256,
            "inputs": [spec.to_json() for spec in self.signature.inputs],
            "outputs": [spec.to_json() for spec in self.signature.outputs],
            "format": self.format,
            "opset": self.opset,
            "operators": dict(self.operators),
            "features": list(self.features),
            "program": None if self.program is None else str(self.program),
            "kernels": None if self.kernels is None else str(self.kernels),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Model:
        """Reads what `to_json` wrote."""
        specs = {
            side: tuple(TensorSpec(s["name"], s["dtype"], tuple(s["shape"])) for s in data[side])
            for side in ("inputs", "outputs")
        }
        return cls(
            name=data["name"],
            path=Path(data["path"]),
            sha256=data["sha256"],
            signature=Signature(**specs),
            format=data["format"],
            opset=data["opset"],
            operators=dict(data["operators"]),
            features=tuple(data["features"]),
            program=None if data["program"] is None else Path(data["program"]),
            kernels=Path(data["kernels"]) if data.get("kernels") else None,
        )

    def _repr_html_(self) -> str:
        return html_table(f"Model {self.name}", self.to_json())

    def __repr__(self) -> str:
        inputs = ", ".join(map(str, self.signature.inputs))
        return f"Model({self.name!r}, {inputs}, sha256={self.sha256[:12]})"
