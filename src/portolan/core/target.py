"""Target: where a model runs. Decisions read its observed features, never a marketing name."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

#: What only a device brings: the compute capability from which NVIDIA's GPUs have it.
DEVICE_FEATURES = {"cuda": (0, 0), "cuda_f16": (5, 3), "cuda_bf16": (8, 0), "cuda_tf32": (8, 0)}


@dataclass(frozen=True)
class Device:
    """A device beside the processor that programs on the target can compute on.

    Attributes:
        kind: `cuda`.
        index: how CUDA's runtimes count it among those that they see.
        name: for people to read; no decision may read it.
        memory: bytes.
        capability: compute capability, such as `9.0`.
        driver: version of the kernel's part of the driver, such as `580.65.06`; empty where it is not told.
        runtime: the newest CUDA that the driver runs, such as `13.0`.
    """

    kind: Literal["cuda"]
    index: int
    name: str
    memory: int
    capability: str
    driver: str = ""
    runtime: str = ""

    @property
    def features(self) -> tuple[str, ...]:
        """What backends' options may need of it."""
        major, _, minor = self.capability.partition(".")
        here = (int(major), int(minor or 0))
        return tuple(name for name, least in DEVICE_FEATURES.items() if here >= least)

    def __str__(self) -> str:
        return f"{self.name}, {self.memory / 2**30:.0f} GiB"


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
        accelerators: names and memory of other devices, for people to read.
        devices: those of them that programs can compute on. Backends use the first.
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
    devices: tuple[Device, ...] = ()

    @property
    def fingerprint(self) -> str:
        """Hash of what decides speed and results: kind, arch, features, cores, caches, memory size, accelerators.

        Of devices also the driver, which compiles what runs on them.
        """
        keys = ("kind", "arch", "features", "cores", "caches", "accelerators")
        facts = {key: getattr(self, key) for key in keys} | {"ram_gib": round(self.ram / 2**30)}
        if self.devices:
            facts["devices"] = [[d.kind, d.capability, round(d.memory / 2**30), d.driver] for d in self.devices]
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
        """Whether any of `features` was observed, of the processor or the first device; true when none is named."""
        here = {*self.features, *(self.devices[0].features if self.devices else ())}
        return not features or any(f in here for f in features)

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
            "devices": [asdict(device) for device in self.devices],
            "runtimes": dict(self.runtimes),
            "display": self.display,
            "reach": list(self.reach),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Target:
        """Reads what `to_json` wrote."""
        lists: dict[str, Any] = {key: tuple(data[key]) for key in ("features", "accelerators", "reach")}
        rest = {key: data[key] for key in ("id", "kind", "arch", "cores", "ram", "caches", "runtimes", "display")}
        devices = tuple(Device(**device) for device in data.get("devices", ()))
        return cls(**rest, **lists, devices=devices)
