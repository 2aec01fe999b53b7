"""`serve`: bundles as models of a server. Opens them in a process of their own, and starts the supervisor.

`python -m portolan.hosting` is that process: it reads {"bundle", "into", "native"} and writes {"source"}, or
{"name"} where `into` is null, or {"error"}.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from portolan.core.serving import largest_batch
from portolan.errors import PortolanError, UsageError, rebuilt
from portolan.serving.settings import Settings
from portolan.serving.source import Limits, Source

if TYPE_CHECKING:
    from portolan.bundle.manifest import Manifest
    from portolan.serving.gateway import Gateway
    from portolan.serving.surroundings import Asked

_NEEDED = ("httptools", "msgspec", "uvloop")
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
#: The command that opens a bundle, in a process of its own.
_OPENER = (sys.executable, "-P", "-m", "portolan.hosting")
Told = Callable[[dict[str, Any]], None]


def serve(
    bundles: Sequence[str],
    told: Told,
    *,
    host: str,
    port: int,
    replicas: tuple[int, int] | None,
    max_batch: int | None,
    deadline: float | None,
    hang_after: float | None,
    drain: float,
    grace: float,
    control: bool | None,
    native: bool,
    doors: Asked | None = None,
    largest: int | None = None,
    canary: float | None = None,
) -> dict[str, Any]:
    """Serves until it is told to stop. See `portolan.api.serve`."""
    from portolan.serving.supervisor import Supervisor, listen

    _check_extra()
    from portolan.serving.surroundings import Asked

    asked = doors or Asked()
    asked.check()
    if asked.grpc_port is not None:
        # It is opened by the front, and again by its successors: the port has to be the same each time.
        with listen(host, asked.grpc_port) as probe:
            asked = replace(asked, grpc_port=probe.getsockname()[1])
    named = _named(bundles, _OPENER)
    sock = listen(host, port)
    settings = Settings(
        bundles=named,
        opener=_OPENER,
        native=native,
        host=host,
        port=sock.getsockname()[1],
        limits={"replicas": replicas, "max_batch": max_batch, "deadline": deadline, "hang_after": hang_after},
        control=host in _LOOPBACK if control is None else control,
        drain=drain,
        grace=grace,
        doors=asked.to_json(),
        bounds={} if largest is None else {"body": largest, "inflated": largest},
        terms={} if canary is None else {"canary": canary},
    )
    name = f"[{host}]" if ":" in host else host
    about = {
        "url": f"http{'' if asked.tls_cert is None else 's'}://{name}:{settings.port}",
        "grpc": None if asked.grpc_port is None else f"{name}:{asked.grpc_port}",
        "models": list(named),
        "replicas": replicas and list(replicas),
    }
    for warning in _warnings(host, asked):
        told({"warning": warning})
    Supervisor(settings, [sock], lambda data: told({**data, **about})).run()
    return about


def _warnings(host: str, asked: Asked) -> Iterator[str]:
    """What whoever lets others in should know."""
    if host in _LOOPBACK:
        return
    if asked.token_file is None and asked.tls_client_ca is None:
        yield f"whoever reaches `{host}` may ask this server: --token-file or --tls-client-ca limits that"
    elif asked.token_file is not None and asked.tls_cert is None:
        yield "tokens travel as plain text: --tls-cert and --tls-key hide them"


async def gateway(
    bundle: str | Path, *, replicas: tuple[int, int] | None = None, native: bool = False, max_batch: int | None = None
) -> Gateway:
    """One bundle for a platform that brings its own HTTP, loaded and warm; to be called on the loop that answers.

    Args:
        bundle: a folder or a `.portolan` file.
        replicas: fewest and most processes; those of the recipe, else one.
        native: run its compiled code.
        max_batch: rows of the largest batch; None: see `portolan.core.serving.largest_batch`.

    Raises:
        PortolanError: the bundle is damaged, or cannot run here.
    """
    from portolan.serving.gateway import Gateway
    from portolan.serving.models import Models
    from portolan.serving.opening import Opener

    _check_extra()
    named = await asyncio.to_thread(_named, [str(bundle)], _OPENER)
    limits = {"replicas": replicas, "max_batch": max_batch}
    opener = Opener(Settings(bundles=named, opener=_OPENER, native=native, limits=limits))
    models = Models()
    try:
        for name in named:
            await models.add(await opener(name))
    except BaseException:
        models.close()
        raise
    return Gateway(models)


def _check_extra() -> None:
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(
            f"serving needs the package `{missing[0]}`, which is not installed", hint="pip install 'portolan[serve]'"
        )


def _named(bundles: Sequence[str], opener: Sequence[str]) -> dict[str, str]:
    """The bundles' paths by the names in their manifests. Another process reads them: this one stays small."""
    given: dict[str, str] = {}
    for path in bundles:
        asked = json.dumps({"bundle": path, "into": None, "native": True})
        done = subprocess.run(opener, input=asked, capture_output=True, text=True, check=False)
        try:
            answer = json.loads(done.stdout)
        except ValueError:
            raise PortolanError(f"the process that opens bundles failed: {done.stderr.strip()[-300:]}") from None
        if (problem := answer.get("error")) is not None:
            raise rebuilt(problem)
        name = answer["name"]
        if name in given:
            raise UsageError(
                f"two bundles are called `{name}`: `{given[name]}` and `{path}`",
                hint="pack one of them again with `--name`",
            )
        given[name] = path
    return {name: str(Path(path).resolve()) for name, path in given.items()}


def bundle_name(path: str) -> str:
    """The name in a bundle's manifest; all of the bundle is checked."""
    from portolan.bundle import open_bundle

    with open_bundle(path) as bundle:
        return bundle.manifest.name


def open_source(path: str | Path, into: Path, *, native: bool = False) -> Source:
    """What a replica loads: a private copy of the bundle's compiled files, verified as it is written.

    Args:
        path: the bundle.
        into: an empty folder.
        native: whether it may bring compiled code.

    Raises:
        PortolanError: the bundle is damaged, or cannot run here.
    """
    import numpy as np

    from portolan.bundle import open_bundle
    from portolan.core.interpreters import python_for

    with open_bundle(path, native=native) as bundle:
        bundle.extract(into)
        samples = into / "warm.npz"
        np.savez(samples, **{name: _plain(array) for name, array in bundle.feeds(0).items()})
        manifest = bundle.manifest
        python = python_for(manifest.recipe.backend)
        return Source(
            name=manifest.name,
            folder=str(into / "compiled"),
            signature=manifest.signature,
            platform=manifest.recipe.backend,
            python=None if python is None else tuple(python),
            limits=_limits(manifest),
            profile={} if manifest.profile is None else manifest.profile.seconds,
            sha256=bundle.sha256,
            private=True,
            samples=str(samples),
        )


def _plain(array: Any) -> Any:
    return array.astype(str) if array.dtype.kind == "O" else array


def _limits(manifest: Manifest) -> Limits:
    """What the recipe chose; what it left open is the server's default."""
    serving = manifest.recipe.served
    batch = largest_batch(serving.max_batch, manifest.profile, manifest.signature.batch)
    chosen = {"max_batch": batch, "replicas": serving.replicas, "deadline": serving.deadline}
    return Limits(**{name: value for name, value in chosen.items() if value is not None})  # type: ignore[arg-type]


def main() -> None:
    """Opens one bundle for the front."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    asked = json.loads(sys.stdin.read())
    answer: dict[str, Any]
    try:
        if asked["into"] is None:
            answer = {"name": bundle_name(asked["bundle"])}
        else:
            answer = {"source": open_source(asked["bundle"], Path(asked["into"]), native=asked["native"]).to_json()}
    except PortolanError as error:
        answer = error.to_json()
    except OSError as error:
        answer = PortolanError(f"`{asked['bundle']}` cannot be opened: {error.strerror or error}").to_json()
    out.write(json.dumps(answer))
    out.flush()


if __name__ == "__main__":
    main()
