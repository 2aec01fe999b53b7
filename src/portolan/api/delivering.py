"""Bundles: making, serving and deploying them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from portolan.api.result import Progress, Result, Shapes, silent


def pack(
    source: str | Path,
    *,
    out: str | Path | None = None,
    name: str | None = None,
    trial: int | None = None,
    backend: str | None = None,
    data: str | Path | None = None,
    shapes: Shapes | None = None,
    target: str = "local",
    force: bool = False,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> Result:
    """Makes a bundle from a study's best trial, or from a model as it is, and verifies it by running it.

    Args:
        source: a study's folder, or a model.
        out: the bundle: a folder, or a file ending in `.portolan`.
        name: its name; the model's by default.
        trial: another trial of the study than the best.
        backend: for a model: the backend to pack it for.
        data: for a model: where golden inputs come from.
        shapes: for a model: sizes by input name.
        target: an added target on which the golden inputs are run too.
        force: overwrite `out`.
        dry_run: check everything, write nothing.
        progress: told one line at a time.

    Raises:
        GoalsNotMet: the study has no best trial, and none was named.
        VerificationFailed: the bundle's outputs are not the golden ones, here or on `target`.
    """
    from portolan import packing

    found = packing.pack(
        str(source),
        out=None if out is None else Path(out),
        name=name,
        trial=trial,
        backend=backend,
        data=None if data is None else str(data),
        shapes=shapes,
        target=target,
        force=force,
        dry_run=dry_run,
        progress=progress or silent,
    )
    return Result("pack", found)


def serve(
    *bundles: str | Path,
    host: str = "127.0.0.1",
    port: int = 8000,
    replicas: tuple[int, int] | None = None,
    max_batch: int | None = None,
    deadline: float | None = None,
    hang_after: float | None = None,
    drain: float = 0.0,
    grace: float = 25.0,
    model_control: bool | None = None,
    canary: float | None = None,
    native: bool = False,
    grpc_port: int | None = None,
    token_file: str | Path | None = None,
    tls_cert: str | Path | None = None,
    tls_key: str | Path | None = None,
    tls_client_ca: str | Path | None = None,
    max_request: int | None = None,
    max_rate: float | None = None,
    max_concurrent: int | None = None,
    log_file: str | Path | None = None,
    access_log: bool = False,
    otlp_endpoint: str | None = None,
    otlp_share: float = 1.0,
    told: Callable[[Mapping[str, Any]], None] | None = None,
) -> Result:
    """Serves bundles over the Open Inference Protocol v2, until SIGTERM, SIGINT or Ctrl-C.

    Args:
        bundles: folders or `.portolan` files; a bundle's name is its model's name.
        host: the address to listen on; this machine alone by default.
        port: of HTTP; 0 for any that is free.
        replicas: least and most processes for each model; those of its recipe, else one. A least of 0 ends the last
            one when nobody asks.
        max_batch: rows of the largest batch; that of the recipe, else the largest that was measured, else 16.
        deadline: seconds a call may take if it brings no `timeout`; that of the recipe, else 30.
        hang_after: seconds beyond what its batch should take after which a replica is taken for hung; 10 by default.
        drain: seconds between "not ready" and the end of listening.
        grace: seconds in all for stopping in order.
        model_control: whether clients may load and unload models; on this machine alone by default.
        canary: share of the calls that a new version gets at first when a bundle is loaded again; it takes over after
            200 calls, unless it has more errors or a longer p99 than the version before. At once by default.
        native: run the compiled code of bundles that hold some: it has your rights, so trust who made them.
        grpc_port: of gRPC; 0 for any that is free; without it there is no gRPC.
        token_file: tokens, one per line; requests have to bring one. It is read again when it changes.
        tls_cert: PEM file of the server's certificate chain; with `tls_key`, both doors speak TLS.
        tls_key: PEM file of its private key.
        tls_client_ca: PEM file of authorities; clients have to show a certificate of one of them.
        max_request: bytes of the largest request; 64 MiB.
        max_rate: requests per second of one client; any number by default.
        max_concurrent: requests at once of all clients; any number by default.
        log_file: where events go, as JSON lines; without it only what went wrong is said, on stderr.
        access_log: whether every request is a line too.
        otlp_endpoint: a collector of OpenTelemetry traces; none by default.
        otlp_share: share of the calls that are traced.
        told: called with what happens: `{"ready": ..., "url": ...}` and so on.

    Raises:
        UsageError: no bundle, a name given twice, or an address that is taken.
        VerificationFailed: a bundle is damaged.
        ModelError: a model cannot be loaded.
    """
    from portolan import hosting
    from portolan.serving.surroundings import Asked

    def absolute(path: str | Path | None) -> str | None:
        return None if path is None else str(Path(path).absolute())

    found = hosting.serve(
        [str(bundle) for bundle in bundles],
        told or (lambda data: None),
        host=host,
        port=port,
        replicas=replicas,
        max_batch=max_batch,
        deadline=deadline,
        hang_after=hang_after,
        drain=drain,
        grace=grace,
        control=model_control,
        native=native,
        doors=Asked(
            grpc_port=grpc_port,
            token_file=absolute(token_file),
            tls_cert=absolute(tls_cert),
            tls_key=absolute(tls_key),
            tls_client_ca=absolute(tls_client_ca),
            rate=max_rate,
            concurrent=max_concurrent,
            message=max_request or Asked.message,
            log_file=absolute(log_file),
            access_log=access_log,
            otlp_endpoint=otlp_endpoint,
            otlp_share=otlp_share,
        ),
        largest=max_request,
        canary=canary,
    )
    return Result("serve", found)


def deploy(
    bundle: str | Path,
    *,
    to: str | Sequence[str],
    out: str | Path | None = None,
    service: str | None = None,
    image: str | None = None,
    replicas: tuple[int, int] | None = None,
    storage_uri: str | None = None,
    scale_on: Literal["cpu", "concurrency", "qps"] | None = None,
    force: bool = False,
    dry_run: bool = False,
) -> Result:
    """Writes the files that run a bundle on a platform, filled in from what was measured. Nothing of it is run.

    Args:
        bundle: a folder or a `.portolan` file.
        to: `docker`, `kserve`, `ray-serve`, `triton`, `web`, or several.
        out: the folder that gets one folder per platform; `deploy-NAME` by default.
        service: what it is called; made from the bundle's name by default.
        image: the container image of `docker` and `kserve`; the name, tagged with the bundle's hash, by default.
        replicas: fewest and most; the recipe's by default.
        storage_uri: for `kserve`: where the cluster fetches the bundle from; without it the image holds it.
        scale_on: for `kserve`: what replicas are added for; `cpu` by default.
        force: write over files that are there.
        dry_run: check everything, write nothing.

    Raises:
        UnknownName: no such platform.
        NoBackend: the platform cannot run this bundle.
        UsageError: a choice that does not fit, or files that are there.
    """
    from portolan import deployment

    choices = deployment.Choices(service, image, replicas, storage_uri, scale_on)
    platforms = [to] if isinstance(to, str) else list(to)
    found = deployment.deploy(
        Path(bundle), platforms, choices, out=None if out is None else Path(out), force=force, dry_run=dry_run
    )
    return Result("deploy", found)
