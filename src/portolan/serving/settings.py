"""What a server is told when it starts: plain data, which the supervisor hands to the front through a descriptor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Settings:
    """One server.

    Attributes:
        bundles: path of each model's bundle, by the model's name.
        opener: argv of the command that opens a bundle; it reads one JSON object and writes one.
        native: whether bundles may bring compiled code.
        host: the address listened on.
        port: of HTTP; 0 for any that is free.
        limits: what replaces the recipes' own limits of every model; see portolan.serving.source.Limits.
        bounds: what replaces the HTTP door's bounds; see portolan.serving.bounds.Bounds.
        control: whether clients may load and unload models.
        drain: seconds between "not ready" and the end of listening, for balancers to notice.
        grace: seconds in all that may pass between the order to stop and the end.
        terms: how new versions take over; see portolan.serving.rollout.Terms.read.
        arena: bytes of memory shared with replicas.
        doors: settings of further doors and of what watches them, by their names.
    """

    bundles: Mapping[str, str]
    opener: tuple[str, ...]
    native: bool = False
    host: str = "127.0.0.1"
    port: int = 8000
    limits: Mapping[str, Any] = field(default_factory=dict)
    bounds: Mapping[str, Any] = field(default_factory=dict)
    control: bool = True
    drain: float = 0.0
    grace: float = 25.0
    terms: Mapping[str, Any] = field(default_factory=dict)
    arena: int = 2**30
    doors: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Settings:
        """Reads what `to_json` wrote."""
        limits = dict(data["limits"])
        if limits.get("replicas") is not None:
            limits["replicas"] = tuple(limits["replicas"])
        return cls(**{**data, "limits": limits, "opener": tuple(data["opener"])})
