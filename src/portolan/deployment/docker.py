"""Docker: a build context with a Dockerfile, the exact versions that the bundle was made with, and the bundle."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

from portolan.bundle.names import show
from portolan.deployment import _sizing as sizing
from portolan.deployment._facts import Facts
from portolan.deployment._platform import Emitted, Platform
from portolan.deployment._serve import arguments
from portolan.deployment._yaml import comment, sentence

#: The folder of the bundle in the context and, under `HOME`, in the image.
BUNDLE, HOME = "bundle", "/srv"
PORT, GRPC = 8000, 8001
#: A number, since Kubernetes' `runAsNonRoot` cannot look names up.
USER = 10001
#: Where PyTorch publishes builds that PyPI does not have, by the end of their version.
_TORCH = "https://download.pytorch.org/whl/"
_PROBE = "import urllib.request; urllib.request.urlopen('http://127.0.0.1:{port}/v2/health/ready', timeout=2)"


class Docker(Platform):
    """An image that serves the bundle with Portolan's own server. It runs every bundle, on this architecture."""

    name = "docker"
    about = "a Dockerfile and its context"

    def emit(self, facts: Facts) -> Emitted:
        """A context that `docker build` takes as it is."""
        texts = {
            "Dockerfile": "\n".join(_dockerfile(facts)) + "\n",
            ".dockerignore": _IGNORE,
            "requirements.txt": "\n".join(requirements(facts)) + "\n",
        }
        build = f"docker build -t {facts.image} {{folder}}"
        return Emitted(texts, bundle=BUNDLE, next=[build, _run(facts)], notes=notes(facts))


#: Nothing reaches the image that is not named here.
_IGNORE = f"*\n!requirements.txt\n!*.whl\n!{BUNDLE}\n"


def requirements(facts: Facts) -> Iterator[str]:
    """The lines of requirements.txt: Portolan, and the versions that the claims were measured with."""
    manifest = facts.manifest
    yield from comment("The versions that the bundle was made and measured with.")
    builds = {v.partition("+")[2] for d, v in manifest.versions.items() if d == "torch" and "+" in v}
    for build in sorted(builds):
        yield f"--extra-index-url {_TORCH}{build}"
    yield f"portolan[serve]=={manifest.portolan}"
    for name, version in sorted({**_numpy(facts), **manifest.versions}.items()):
        if name != "portolan":
            yield f"{name}=={version}"


def _numpy(facts: Facts) -> Mapping[str, str]:
    versions = facts.manifest.environment.get("versions")
    said = versions.get("numpy") if isinstance(versions, dict) else None
    plain = isinstance(said, str) and said.replace(".", "").isalnum() and said.isascii()
    return {"numpy": str(said)} if plain else {}


def _dockerfile(facts: Facts) -> Iterator[str]:
    startup, grace = sizing.startup(facts), sizing.grace(facts)
    yield from comment(f"Serves `{show(facts.manifest.name)}`, bundle sha256 {facts.bundle.sha256}.")
    if facts.manifest.needs.arch:
        needs = " ".join((facts.manifest.needs.arch, *facts.manifest.needs.features))
        yield from comment(f"Its compiled code needs a processor with {needs}.")
    yield f"FROM python:{facts.python}-slim"
    yield ""
    yield "ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1"
    yield f"WORKDIR {HOME}"
    yield f"RUN useradd --uid {USER} --user-group --no-create-home --shell /usr/sbin/nologin portolan"
    yield ""
    yield from comment("Wheels that lie beside this file are taken before those of the package index.")
    yield "COPY requirements.txt *.whl ./"
    yield "RUN pip install --no-cache-dir --find-links . --requirement requirements.txt"
    yield f"COPY {BUNDLE} {BUNDLE}"
    yield ""
    yield f"USER {USER}:{USER}"
    yield f"EXPOSE {PORT} {GRPC}"
    yield from comment(sentence(grace.why, f"give it {grace.value} s: `docker run --stop-timeout {grace.value}`"))
    yield "STOPSIGNAL SIGTERM"
    yield from comment(sentence(startup.why))
    probe = json.dumps(["python", "-c", _PROBE.format(port=PORT)])
    yield f"HEALTHCHECK --interval=10s --timeout=3s --start-period={startup.value}s --retries=3 CMD {probe}"
    words = ["portolan", *arguments(facts, f"{HOME}/{BUNDLE}", port=PORT, grpc=GRPC, replicas=facts.replicas)]
    yield f"CMD {json.dumps(words)}"


def _run(facts: Facts) -> str:
    """The command that runs the image with what was measured as its limits."""
    most = facts.replicas[1]
    words = ["docker run --rm", f"-p 127.0.0.1:{PORT}:{PORT}", f"--cpus {facts.threads * most}"]
    if (limit := sizing.memory_limit(facts)) is not None:
        words.append(f"--memory {most * limit // 2**20}m")
    words += [f"--stop-timeout {sizing.grace(facts).value}", "--cap-drop ALL", "--security-opt no-new-privileges"]
    return " ".join([*words, facts.image])


def notes(facts: Facts) -> list[str]:
    """What the files ask nothing for, since it was not measured."""
    found = sizing.memory(facts)
    return [found.why] if found.value is None else []


docker = Docker()
