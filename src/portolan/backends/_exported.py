"""The exported torch program of a model, for backends that start from one: the one beside the graph, or its import."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from portolan.backends._artefact import explained, other
from portolan.backends._convert import graph, made_up
from portolan.core.model import Model
from portolan.core.silence import environment, runtime
from portolan.errors import ModelError, UnsupportedOperator

if TYPE_CHECKING:
    import numpy as np

_LACKS = (r"failed to resolve torch\.ops\.(\w+\.\w+)",)


def read_program(path: Path, backend: str = "torch") -> Any:
    """Reads an exported program, checked first: nothing in it may run as it is loaded, pickled or not.

    Raises:
        ModelError: it cannot be read.
    """
    from portolan.frontends._pt2 import check  # a machine for bundles alone has no front ends

    check(path)
    with environment(TORCH_FORCE_WEIGHTS_ONLY_LOAD="1"), explained(backend, path, *_LACKS):
        # torch.export.load would put the reason of a failure into a log, and raise a sentence that refers to it.
        return runtime("torch.export.pt2_archive._package").load_pt2(str(path)).exported_programs["model"]


def exported(model: Model, backend: str) -> Any:
    """The model as a `torch.export.ExportedProgram` with fixed sizes, whose inputs and outputs are flat and in order.

    Raises:
        ModelError: its program cannot be read, or nothing can be made up for its inputs.
        UnsupportedOperator: the importer lacks an operator of its graph.
    """
    feeds = made_up(model)
    if feeds is None:
        raise ModelError(
            f"`{backend}` traces `{model.name}` on inputs, and none can be made up for its signature",
            hint="export the model with inputs of numbers and fixed sizes",
        )
    torch = runtime("torch")
    arguments = tuple(torch.from_numpy(feeds[spec.name].copy()) for spec in model.signature.inputs)
    with torch.no_grad():
        return torch.export.export(_module(model, backend), arguments, strict=False)


def _module(model: Model, backend: str) -> Any:
    if model.program is not None:
        return _flat(read_program(model.program, backend))
    from portolan.importers.reading import read
    from portolan.importers.torch_ import module

    with explained(backend, model.path):
        proto = graph(model)
    try:
        return _owned(module(read(proto, model.name)))
    except UnsupportedOperator as error:
        raise UnsupportedOperator(error.message, hint=other(backend), where=error.where) from error


def _flat(program: Any) -> Any:
    """A program's module, called with its inputs in order however they were given when it was exported."""
    torch, tree = runtime("torch"), runtime("torch.utils._pytree")
    inner, spec = program.module(), program.call_spec.in_spec
    base: Any = torch.nn.Module

    class Flat(base):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, *leaves: Any) -> tuple[Any, ...]:
            args, kwargs = tree.tree_unflatten(list(leaves), spec)
            return tuple(leaf for leaf in tree.tree_leaves(self.inner(*args, **kwargs)) if leaf is not None)

    return _owned(Flat())


def _owned(module: Any) -> Any:
    """A module whose outputs are no input and no weight: converters trip over those."""
    torch = runtime("torch")
    base: Any = torch.nn.Module

    class Owned(base):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.inner = module

        def forward(self, *inputs: Any) -> tuple[Any, ...]:
            held = [*inputs, *self.inner.parameters(), *self.inner.buffers()]
            return tuple(v.clone() if any(v is h for h in held) else v for v in self.inner(*inputs))

    owned = Owned()
    for part in owned.modules():
        part.training = False  # `eval()` is an error on exported modules
    return owned


def without_constants(program: Any) -> tuple[Any, dict[int, np.ndarray]]:
    """A program without those outputs that no input reaches, and their values by position.

    ExecuTorch's XNNPACK ends the process on an output that is made of weights alone.
    """
    torch = runtime("torch")
    inputs = set(program.graph_signature.user_inputs)
    outputs = next(node for node in program.graph.nodes if node.op == "output").args[0]
    kept = [i for i, node in enumerate(outputs) if not hasattr(node, "op") or _reaches(node, inputs)]
    if len(kept) in (0, len(outputs)):
        return program, {}
    inner, arguments = program.module(), program.example_inputs[0]
    base: Any = torch.nn.Module

    class Rest(base):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, *given: Any) -> tuple[Any, ...]:
            found = self.inner(*given)
            return tuple(found[i] for i in kept)

    with torch.no_grad():
        values = inner(*arguments)
        rest = torch.export.export(Rest(), arguments, strict=False)
    constants = {i: value.detach().numpy().copy() for i, value in enumerate(values) if i not in kept}
    return rest, constants


def _reaches(node: Any, inputs: set[str]) -> bool:
    """Whether a value of the graph depends on one of the inputs."""
    seen, open_ = set(), [node]
    while open_:
        one = open_.pop()
        if one.op == "placeholder" and one.name in inputs:
            return True
        if one not in seen:
            seen.add(one)
            open_ += one.all_input_nodes
    return False
