"""Target: where a model runs. Decisions read its observed features, never a marketing name."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Target:
    """A place to run models.

    Attributes:
        id: what the user calls it; `local` for this machine.
        kind: physical, vm, emulated or simulated; see `timed`.
        arch: x86_64, aarch64, riscv64, wasm32.
        features: observed ISA features in /proc/cpuinfo's spelling, sorted.
        cores: cores this process may use.
        caches: bytes of each level, such as {"L2": 2097152}.
        ram: bytes.
        accelerators: names and memory of other devices.
        runtimes: version of each installed runtime distribution.
        display: family and model for people to read; no decision may read it.
        reach: the argv prefix that starts a process there.
    """

    id: str
    kind: Literal["physical", "vm", "emulated", "simulated"]
    arch: str
    features: tuple[str, ...]
    cores: int
    ram: int
    caches: dict[str, int] = field(default_factory=dict)
    accelerators: tuple[str, ...] = ()
    runtimes: dict[str, str] = field(default_factory=dict)
    display: str = ""
    reach: tuple[str, ...] = ()

    @property
    def fingerprint(self) -> str:
        """Hash of what decides speed and results: kind, arch, features, cores, caches, memory size, accelerators."""
        keys = ("kind", "arch", "features", "cores", "caches", "accelerators")
        facts = {key: getattr(self, key) for key in keys} | {"ram_gib": round(self.ram / 2**30)}
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def timed(self) -> bool:
        """Whether time, energy and cost mean anything here. Emulated and simulated machines only say what is right."""
        return self.kind in ("physical", "vm")

    @property
    def instructions(self) -> str:
        """What `-march=native` stands for: what was compiled for it runs on no other."""
        return f"{self.arch} {' '.join(self.features)}"

    def has(self, *features: str) -> bool:
        """Whether any of `features` was observed; true when none is named."""
        return not features or any(f in self.features for f in features)

    def to_json(self) -> dict[str, Any]:
        """The target object of the contract."""
        return {
            "id": self.id,
            "fingerprint": self.fingerprint,
            "kind": self.kind,
            "arch": self.arch,
            "features": list(self.features),
            "cores": self.cores,
            "ram": self.ram,
            "caches": dict(self.caches),
            "accelerators": list(self.accelerators),
            "runtimes": dict(self.runtimes),
            "display": self.display,
            "reach": list(self.reach),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Target:
        """Reads what `to_json` wrote."""
        lists: dict[str, Any] = {key: tuple(data[key]) for key in ("features", "accelerators", "reach")}
        rest = {key: data[key] for key in ("id", "kind", "arch", "cores", "ram", "caches", "runtimes", "display")}
        return cls(**rest, **lists)
