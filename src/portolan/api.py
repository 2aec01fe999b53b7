"""The verbs as functions: same names and keywords as the command line, returning frozen objects with `to_json()`.

Nothing heavy is imported before a verb needs it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from portolan.bundle import Bundle
    from portolan.core.model import Model
    from portolan.study.study import Study

Shapes = Mapping[str, tuple[int | str, ...]]
Progress = Callable[[str], None]


def _silent(_: str) -> None:
    """Progress for callers that asked for none."""


@dataclass(frozen=True)
class Result:
    """What a verb found: the object of the contract, with its keys as attributes."""

    verb: str
    data: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """The object of the contract."""
        return dict(self.data)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name not in self.data:
            raise AttributeError(f"the result of `{self.verb}` has no `{name}`; it has {', '.join(self.data)}")
        return self.data[name]

    def __repr__(self) -> str:
        keys = ", ".join(f"{k}={v!r}" for k, v in self.data.items() if isinstance(v, (str, int, float, bool)))
        return f"{self.verb}({keys})"

    def _repr_html_(self) -> str:
        from html import escape

        rows = "".join(f"<tr><th>{escape(k)}</th><td>{escape(str(v))}</td></tr>" for k, v in self.data.items())
        return f"<table><caption>{escape(self.verb)}</caption>{rows}</table>"


def load(model: Any, *, shapes: Shapes | None = None, out: str | Path | None = None, name: str | None = None) -> Model:
    """Reads a model from an ONNX file, `.pt2`, `file.py:factory`, `demo:NAME`, or a torch `nn.Module`.

    Args:
        model: the source.
        shapes: sizes by input name, for free dimensions and for modules.
        out: folder for files that are derived; a folder named after the model by default.
        name: what to call it.

    Raises:
        ModelError: it cannot be read.
    """
    from portolan import frontends

    folder = Path(out) if out else Path(f"{name or 'model'}.loaded")
    return frontends.load(model, out=folder, shapes=shapes, name=name)


def inspect(model: str | Path | Model, *, shapes: Shapes | None = None) -> Result:
    """What a model is: signature, operators, parameters, FLOPs, bytes moved.

    Raises:
        ModelError: it cannot be read.
    """
    import tempfile

    from portolan.core.analysis import analyse
    from portolan.core.model import Model
    from portolan.study.builder import read_model
    from portolan.study.workspace import Workspace

    with tempfile.TemporaryDirectory(prefix="portolan-inspect-") as folder:
        workspace = Workspace(Path(folder))
        try:
            found = model if isinstance(model, Model) else read_model(workspace, str(model), _traced(model, shapes))
            one = {s.name: (1, *s.shape[1:]) for s in found.signature.inputs if found.signature.batch is not None}
            analysis = analyse(found, shapes or (one if isinstance(found.signature.batch, str) else None))
        finally:
            workspace.close()
    data = found.to_json()
    return Result(
        "inspect",
        {
            **{key: data[key] for key in ("name", "format", "opset", "sha256", "inputs", "outputs", "operators")},
            "parameters": analysis.parameters,
            "flops": analysis.flops,
            "bytes_moved": analysis.bytes_moved,
            "notes": list(analysis.notes),
        },
    )


def _traced(model: str | Path, shapes: Shapes | None) -> Shapes | None:
    """The shapes, where reading the model needs them; an ONNX graph is shown as it is, free dimensions and all."""
    from portolan import frontends

    return shapes if frontends.find(str(model)).distributions else None


def doctor(target: str = "local", *, bench: bool = False, progress: Progress | None = None) -> Result:
    """What a target can run, what is missing, and the command that adds it.

    Args:
        target: `local`.
        bench: also measures the machine's ceilings, and what each pass brings on each backend; later searches leave
            out what does not pay. Takes some minutes.
        progress: told what is being measured.

    Raises:
        UnknownName: no such target.
    """
    from portolan.core import registry
    from portolan.core.doctor import examine
    from portolan.measure import roofline

    found = registry.TARGETS.get(target).detect()
    data = examine(found)
    if bench:
        from portolan.study import payoffs
        from portolan.worker.environments import backends

        here = backends(found)
        data["ceilings"] = roofline.ceilings(found.cores, integers=payoffs.integer_rates(found, here))
        measured = payoffs.payoffs(found, here, progress or (lambda line: None))
        payoffs.keep(found, here, measured)
        data["payoffs"] = [payoff.to_json() for payoff in measured]
    return Result("doctor", data)


def optimize(
    model: str | Path,
    *,
    goals: Sequence[str] = (),
    data: str | Path | None = None,
    metric: str | None = None,
    shapes: Shapes | None = None,
    study: str | Path | None = None,
    backend: Sequence[str] | None = None,
    passes: Sequence[str] | None = None,
    recipe: str | Mapping[str, Any] | None = None,
    budget: str | None = None,
    jobs: int = 1,
    seed: int = 0,
    target: str = "local",
    price: str | None = None,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> Study | Result:
    """Searches for the best recipe under goals. Repeating a call resumes it, or answers from its ledger.

    Args:
        model: an ONNX file, `.pt2`, `file.py:factory` or `demo:NAME`.
        goals: limits (`latency_p95 < 8ms`) and objectives (`min size`). Without a quality limit outputs must stay
            the original's (`max_rel_error <= 0.001`); without an objective the median latency is minimised.
        data: `.npz`, a folder of them, or `file.py:function`; without it inputs are generated from the signature.
        metric: `file.py:function` taking `(outputs, labels)` and returning a float, higher is better.
        shapes: sizes by input name.
        study: folder; `study-NAME` by default.
        backend: only these backends.
        passes: only these passes.
        recipe: a recipe file or mapping that pins choices; a list is a range.
        budget: `300s`, `40 trials`, or both; five minutes by default.
        jobs: processes that build ahead of the timing.
        seed: of everything random.
        target: where it is to run.
        price: what an hour of the target costs, such as `0.10USD`; goals on `cost` need it.
        dry_run: return what would be tried, write nothing.
        progress: told one line at a time.

    Returns:
        The study; with `dry_run` its plan.

    Raises:
        UsageError: a goal, data or recipe that does not fit.
        NoResult: the untouched model does not run.
        Interrupted: Ctrl-C; everything measured is saved.
    """
    from portolan.study import optimize as search

    settings = search.Settings(
        model=str(model),
        goals=tuple(goals),
        data=None if data is None else str(data),
        metric=metric,
        shapes=shapes,
        study=None if study is None else str(study),
        backend=backend,
        passes=passes,
        recipe=recipe,
        budget=budget,
        jobs=jobs,
        seed=seed,
        target=target,
        price=price,
    )
    if dry_run:
        return Result("plan", search.plan(settings))
    return search.optimize(settings, progress or _silent)


def compress(
    model: str | Path,
    *,
    passes: Sequence[str],
    out: str | Path | None = None,
    data: str | Path | None = None,
    shapes: Shapes | None = None,
    seed: int = 0,
    force: bool = False,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> Result:
    """Applies passes in order, without a search, and writes the new model.

    Args:
        model: as for `optimize`.
        passes: such as `quantize(mode=static)`.
        out: the file to write; named after the model and its passes by default.
        data: as for `optimize`; a part of it calibrates, the rest measures the effect.
        shapes: sizes by input name.
        seed: of generated data.
        force: overwrite `out`.
        dry_run: check everything, write nothing.
        progress: told one line at a time.

    Raises:
        UsageError: a pass that is refused, or an output that exists.
    """
    from portolan import compression

    found = compression.compress(
        str(model),
        passes,
        out=None if out is None else str(out),
        data=None if data is None else str(data),
        shapes=shapes,
        seed=seed,
        force=force,
        dry_run=dry_run,
        progress=progress or _silent,
    )
    return Result("compress", found)


def bench(
    *arms: str | Path,
    data: str | Path | None = None,
    shapes: Shapes | None = None,
    backend: Sequence[str] | None = None,
    budget: str | None = None,
    seed: int = 0,
    native: bool = False,
    progress: Progress | None = None,
) -> Result:
    """Measures and compares models and bundles, with statistics; the first arm is the baseline.

    Args:
        arms: models, bundles, or `MODEL@BACKEND(option=value)`. A single model is raced on every ready backend.
        data: as for `optimize`.
        shapes: sizes by input name.
        backend: race each plain model on these backends.
        budget: seconds; five minutes by default.
        seed: of the order of blocks and of generated data.
        native: run the compiled code of bundles that hold some: it has your rights, so trust who made them.
        progress: told one line at a time.

    Raises:
        UsageError: arms that do not take the same inputs.
    """
    from portolan import comparison

    found = comparison.bench(
        [str(arm) for arm in arms],
        comparison.Inputs(None if data is None else str(data), shapes, seed),
        backend=backend,
        budget=budget,
        native=native,
        progress=progress or _silent,
    )
    return Result("bench", found)


def report(*studies: str | Path, out: str | Path = "report.html", force: bool = False) -> Path:
    """Writes the HTML report of one or more studies: one offline file.

    Raises:
        UsageError: no study there, or `out` exists.
    """
    from portolan import reports

    return reports.write([open_study(study).to_json() for study in studies], Path(out), force=force)


def pack(
    source: str | Path,
    *,
    out: str | Path | None = None,
    name: str | None = None,
    trial: int | None = None,
    backend: str | None = None,
    data: str | Path | None = None,
    shapes: Shapes | None = None,
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
        force: overwrite `out`.
        dry_run: check everything, write nothing.
        progress: told one line at a time.

    Raises:
        GoalsNotMet: the study has no best trial, and none was named.
        VerificationFailed: the bundle's outputs are not the golden ones.
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
        force=force,
        dry_run=dry_run,
        progress=progress or _silent,
    )
    return Result("pack", found)


def check(bundle: str | Path, *, native: bool = False) -> Result:
    """Verifies a bundle: its checksums, and its golden outputs by running them in a process of their own.

    Args:
        bundle: a folder or a `.portolan` file.
        native: run its compiled code, if it holds some: it has your rights, so trust who made it.

    Raises:
        VerificationFailed: something is not what the manifest says.
    """
    from portolan.bundle import check as verify

    return Result("pack", verify(Path(bundle), native=native).to_json())


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
        max_batch: rows of the largest batch; that of the recipe, else 16.
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
        to: `docker`, `kserve`, `ray-serve`, `triton`, or several.
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


def open_study(folder: str | Path) -> Study:
    """The newest finished study in a folder.

    Raises:
        UsageError: there is none.
    """
    from portolan.study.reading import read_study

    return read_study(Path(folder))


def open(path: str | Path) -> Bundle | Study:
    """A bundle or a study, whichever lies at `path`.

    Raises:
        UsageError: neither does.
    """
    from portolan.bundle import is_bundle, open_bundle

    return open_bundle(Path(path)) if is_bundle(path) else open_study(path)
