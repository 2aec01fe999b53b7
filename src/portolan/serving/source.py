"""What a server is given to serve: a compiled folder, its signature, and how it wants to be served. Plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from portolan.core.serving import DEFAULT_BATCH
from portolan.core.signature import Signature, TensorSpec

DEFAULT_DEADLINE = 30.0


@dataclass(frozen=True)
class Limits:
    """How one model is served.

    Attributes:
        max_batch: rows of the largest batch.
        replicas: least and most processes; a least of 0 lets the last one go when nobody asks.
        deadline: seconds a call may take when it brings no timeout of its own.
        queue: calls that may wait.
        queue_bytes: bytes of inputs that may wait.
        idle_after: seconds without a call after which the last replica may go.
        hang_after: seconds without an answer, beyond what its batch is expected to take, after which a replica is
            taken for hung.
        start_within: seconds a replica has for loading its model and warming up.
        memory: bytes a replica may allocate; None for the default of workers.
    """

    max_batch: int = DEFAULT_BATCH
    replicas: tuple[int, int] = (1, 1)
    deadline: float = DEFAULT_DEADLINE
    queue: int = 1024
    queue_bytes: int = 512 * 2**20
    idle_after: float = 60.0
    hang_after: float = 10.0
    start_within: float = 600.0
    memory: int | None = None


@dataclass(frozen=True)
class Source:
    """One version of a model, ready to be loaded by a replica.

    Attributes:
        name: the model's name.
        folder: what the worker's operation `load` takes: a folder with compiled.json.
        signature: inputs and outputs.
        platform: the backend's name.
        python: argv of the interpreter the backend lives in; None for this one.
        limits: how it is served.
        profile: measured seconds of a batch by its rows; empty to let the first replica measure.
        sha256: hash of the bundle it came from.
        private: whether the folder belongs to the server, which removes it when the version is gone.
        samples: path of an .npz file of golden inputs to warm up with; None to make some from the signature.
    """

    name: str
    folder: str
    signature: Signature
    platform: str = ""
    python: tuple[str, ...] | None = None
    limits: Limits = field(default_factory=Limits)
    profile: Mapping[int, float] = field(default_factory=dict)
    sha256: str = ""
    private: bool = False
    samples: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain data, for another process."""
        limits = {key: getattr(self.limits, key) for key in Limits.__dataclass_fields__}
        return {
            "name": self.name,
            "folder": self.folder,
            "inputs": [spec.to_json() for spec in self.signature.inputs],
            "outputs": [spec.to_json() for spec in self.signature.outputs],
            "platform": self.platform,
            "python": None if self.python is None else list(self.python),
            "limits": {**limits, "replicas": list(self.limits.replicas)},
            "profile": {str(rows): seconds for rows, seconds in self.profile.items()},
            "sha256": self.sha256,
            "private": self.private,
            "samples": self.samples,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Source:
        """Reads what `to_json` wrote."""
        limits = {**data["limits"], "replicas": tuple(data["limits"]["replicas"])}
        return cls(
            name=data["name"],
            folder=data["folder"],
            signature=Signature(_specs(data["inputs"]), _specs(data["outputs"])),
            platform=data["platform"],
            python=None if data["python"] is None else tuple(data["python"]),
            limits=Limits(**limits),
            profile={int(rows): float(seconds) for rows, seconds in data["profile"].items()},
            sha256=data["sha256"],
            private=data["private"],
            samples=data["samples"],
        )

    def limited(self, **changes: Any) -> Source:
        """The same with other limits; a change that is None changes nothing."""
        known = {key: value for key, value in changes.items() if value is not None}
        return replace(self, limits=replace(self.limits, **known))


def _specs(items: Sequence[Mapping[str, Any]]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(item["name"], item["dtype"], tuple(item["shape"])) for item in items)
