"""The facts that deployment files are filled in from: what the bundle holds, what was measured, what the user chose."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from portolan.bundle import Bundle
from portolan.bundle.manifest import Manifest
from portolan.bundle.names import show
from portolan.core.measurement import Measurement
from portolan.core.serving import MOST_REPLICAS, Profile, Serving, largest_batch
from portolan.errors import UsageError

ScaleOn = Literal["cpu", "concurrency", "qps"]
_LABEL = re.compile(r"[a-z](?:[a-z0-9-]{0,51}[a-z0-9])?\Z")
_IMAGE = re.compile(r"[a-z0-9](?:[A-Za-z0-9._:@-]|/(?=[a-z0-9])){0,254}\Z")
_URI = re.compile(r"[a-z][a-z0-9+.-]*://[^\s\"'`\\{}<>]+\Z")
_PYTHON = re.compile(r"3\.\d{1,2}")


@dataclass(frozen=True)
class Choices:
    """What the user asked for; None leaves it to the bundle.

    Attributes:
        service: its name.
        image: name of the container image.
        replicas: fewest and most.
        storage: where the cluster fetches the bundle from; without one the image holds it.
        scale_on: what replicas are added for.
    """

    service: str | None = None
    image: str | None = None
    replicas: tuple[int, int] | None = None
    storage: str | None = None
    scale_on: ScaleOn | None = None

    def __post_init__(self) -> None:
        if self.service is not None and not _LABEL.match(self.service):
            raise UsageError(
                f"`{show(self.service)}` cannot be a service's name",
                hint="up to 53 lower-case letters, digits and `-`, beginning with a letter",
            )
        if self.image is not None and not _IMAGE.match(self.image):
            raise UsageError(
                f"`{show(self.image)}` is not the name of an image",
                hint="write for example `registry.example.com/team/digits:1`",
            )
        if self.storage is not None and not _URI.match(self.storage):
            raise UsageError(
                f"`{show(self.storage)}` is not a storage URI",
                hint="write for example `s3://bucket/digits` or `pvc://claim/digits`",
            )
        if self.replicas is not None:
            few, many = self.replicas
            if not 0 <= few <= many <= MOST_REPLICAS or many < 1:
                raise UsageError(
                    f"`{few}..{many}` is not a range of replicas",
                    hint=f"write for example `1..4`; the most is {MOST_REPLICAS}",
                )


@dataclass(frozen=True)
class Facts:
    """Everything an emitter may read."""

    bundle: Bundle
    choices: Choices

    @property
    def manifest(self) -> Manifest:
        """What the bundle says about itself."""
        return self.bundle.manifest

    @cached_property
    def serving(self) -> Serving:
        """Batching, replicas and deadline as the recipe holds them.

        Raises:
            UsageError: they are not what a recipe may say.
        """
        return Serving.of(self.manifest.recipe.serving, where="manifest.json: $.recipe")

    @property
    def profile(self) -> Profile | None:
        """Seconds of a batch of each measured size."""
        return self.manifest.profile

    @cached_property
    def label(self) -> str:
        """The service's name: the one asked for, or the bundle's, in letters that every platform takes.

        Raises:
            UsageError: the bundle's name has no such letter.
        """
        return self.choices.service or label(self.manifest.name)

    @property
    def image(self) -> str:
        """The image's name. Its tag is the bundle's hash, so that other contents are another image."""
        return self.choices.image or f"{self.label}:{self.bundle.sha256[:12]}"

    @property
    def replicas(self) -> tuple[int, int]:
        """Fewest and most: asked for, else the recipe's, else one."""
        return self.choices.replicas or self.serving.replicas or (1, 1)

    @property
    def batch(self) -> int | None:
        """Most rows that run together: the recipe's limit, else the largest measured; None where nothing says so."""
        return self.serving.max_batch or (self.profile.largest if self.profile else None)

    @property
    def max_batch(self) -> int:
        """The same as the server takes it, which has a limit of its own."""
        return largest_batch(self.serving.max_batch, self.profile, self.manifest.signature.batch)

    @property
    def threads(self) -> int:
        """Processors of one replica: the option of the backend, or all cores of the machine it was measured on."""
        asked = self.bundle.options.get("threads")
        return asked if type(asked) is int and asked > 0 else max(1, int(self.manifest.target["cores"]))

    @property
    def python(self) -> str:
        """The Python that it was packed with, such as `3.11`."""
        versions = self.manifest.environment.get("versions")
        said = versions.get("python") if isinstance(versions, dict) else None
        found = _PYTHON.match(said) if isinstance(said, str) else None
        return found[0] if found else f"{sys.version_info[0]}.{sys.version_info[1]}"

    def claim(self, *metrics: str) -> Measurement | None:
        """The first of these metrics that the bundle has a measured value of."""
        found = (self.manifest.claims.get(name) for name in metrics)
        return next((claim for claim in found if claim is not None and claim.kind == "measured"), None)

    def to_json(self) -> dict[str, Any]:
        """What the files were filled in from, for the answer."""
        claims = {
            "latency": self.claim("latency_p99", "latency_p95", "latency_p50"),
            "memory": self.claim("memory"),
            "cold_start": self.claim("cold_start"),
        }
        return {
            "replicas": list(self.replicas),
            "max_batch": self.max_batch,
            "deadline": self.serving.deadline,
            "cpus": self.threads,
            "profiled": self.profile is not None,
            **{key: None if claim is None else claim.to_json() for key, claim in claims.items()},
        }


def label(name: str) -> str:
    """A name for services, made from what people call the bundle.

    Raises:
        UsageError: no letter or digit is left of it.
    """
    low = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    made = (low if low[:1].isalpha() else f"m-{low}")[:53].rstrip("-")
    if not low:
        raise UsageError(
            f"no service can be named after the bundle `{show(name)}`",
            hint="name the service with `--service`, such as `--service digits`",
        )
    return made
