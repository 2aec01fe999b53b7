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


def inspect(model: str | Path | Model, *, shapes: Shapes | None = None, target: str = "local") -> Result:
    """What a model is: signature, operators, parameters, FLOPs, bytes moved.

    Args:
        model: the source, as for `load`.
        shapes: sizes by input name.
        target: an added target: then also which backends there take the model, and what may change there.

    Raises:
        ModelError: it cannot be read.
        UsageError: no such target.
    """
    from portolan.core.analysis import analyse
    from portolan.core.model import Model
    from portolan.study.builder import read_model
    from portolan.study.workspace import temporary

    with temporary() as workspace:
        found = model if isinstance(model, Model) else read_model(workspace, str(model), _traced(model, shapes))
        one = {s.name: (1, *s.shape[1:]) for s in found.signature.inputs if found.signature.batch is not None}
        analysis = analyse(found, shapes or (one if isinstance(found.signature.batch, str) else None))
        there = {} if target == "local" else _there(found, target)
    data = found.to_json()
    return Result(
        "inspect",
        {
            **{key: data[key] for key in ("name", "format", "opset", "sha256", "inputs", "outputs", "operators")},
            "parameters": analysis.parameters,
            "flops": analysis.flops,
            "bytes_moved": analysis.bytes_moved,
            "notes": [*analysis.notes, *there.pop("notes", ())],
            **there,
        },
    )


def _there(model: Model, name: str) -> dict[str, Any]:
    """What the rules say of a model on another target; nothing is run but the question which backends are ready."""
    from portolan.passes._overflow import overflow
    from portolan.passes._steps import kind_for
    from portolan.targets._added import find
    from portolan.worker.environments import backends

    target, rows = find(name), []
    for label, backend in backends(target).items():
        support = backend.probe(target)
        if support.ready or backend.searched:
            reason = backend.refuse(model, target) if support.ready else support.reason
            rows.append({"name": label, "takes": reason is None, "reason": reason})
    risk = overflow(model)
    narrow = bool(risk.wide) and kind_for(target) == "s7"
    notes = [f"{risk}; `{name}` is one: portolan bench MODEL -t {name}"] if narrow else []
    return {"target": target.to_json(), "backends": rows, "notes": notes}


def _traced(model: str | Path, shapes: Shapes | None) -> Shapes | None:
    """The shapes, where reading the model needs them; an ONNX graph is shown as it is, free dimensions and all."""
    from portolan import frontends

    return shapes if frontends.find(str(model)).distributions else None


def doctor(target: str = "local", *, bench: bool = False, progress: Progress | None = None) -> Result:
    """What a target can run, what is missing, and the command that adds it.

    Args:
        target: `local`, or one that `target` added.
        bench: also measures the machine's ceilings, and what each pass brings on each backend; later searches leave
            out what does not pay. Takes some minutes.
        progress: told what is being measured.

    Raises:
        UnknownName: no such target.
    """
    from portolan.core.doctor import examine
    from portolan.errors import UsageError
    from portolan.targets._added import find
    from portolan.worker.environments import backends, elsewhere

    found = find(target)
    if bench and not found.timed:
        hint = f"leave out --bench: portolan doctor {target}"
        raise UsageError(f"`{target}` is {found.kind}: nothing is timed there", hint=hint)
    data = examine(found, backends(found) if found.reach else elsewhere(found))
    if bench:
        from portolan.study import ceilings, payoffs

        here = backends(found)
        data["ceilings"] = ceilings.measured(found, here)
        ceilings.keep(found, data["ceilings"])
        measured = payoffs.payoffs(found, here, progress or (lambda line: None))
        payoffs.keep(found, here, measured)
        data["payoffs"] = [payoff.to_json() for payoff in measured]
    return Result("doctor", data)
