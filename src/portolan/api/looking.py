"""What a model is, and what a machine can run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from portolan.api.result import Progress, Result, Shapes

if TYPE_CHECKING:
    from portolan.core.model import Model


def load(model: Any, *, shapes: Shapes | None = None, out: str | Path | None = None, name: str | None = None) -> Model:
    """Reads a model of any framework: a file or folder, `file.py:factory`, `demo:NAME`, or an object at hand.

    A source whose packages live in another interpreter is read there.

    Args:
        model: the source; `docs/reference/front-ends.md` lists the kinds.
        shapes: sizes by input name, for free dimensions and for modules.
        out: folder for files that are derived; a folder named after the model by default.
        name: what to call it.

    Raises:
        ModelError: it cannot be read.
    """
    from portolan import frontends

    folder = Path(out) if out else Path(f"{name or 'model'}.loaded")
    python = frontends.interpreter(model) if isinstance(model, (str, Path)) else None
    if python is None:
        return frontends.load(model, out=folder, shapes=shapes, name=name)
    from portolan.study.builder import converted

    folder.mkdir(parents=True, exist_ok=True)
    return converted(python, str(Path(model).resolve()), folder.resolve(), shapes, name)


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
    from portolan.worker.environments import backends, elsewhere

    found = registry.TARGETS.get(target).detect()
    data = examine(found, elsewhere(found))
    if bench:
        from portolan.study import payoffs

        here = backends(found)
        data["ceilings"] = roofline.ceilings(found.cores, integers=payoffs.integer_rates(found, here))
        measured = payoffs.payoffs(found, here, progress or (lambda line: None))
        payoffs.keep(found, here, measured)
        data["payoffs"] = [payoff.to_json() for payoff in measured]
    return Result("doctor", data)
