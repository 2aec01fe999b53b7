"""Example inputs of a torch module: given, resized to the wanted shapes, or made from the shapes alone."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from portolan.core.frontend import Shapes
from portolan.core.signature import Dim
from portolan.errors import UnknownName, UsageError


@dataclass(frozen=True)
class Example:
    """One call's inputs.

    Attributes:
        args: positional inputs.
        kwargs: inputs by name.
        dynamic: per parameter of `forward`, the free axes, as `torch.export.export` takes them; None if all are fixed.
        names: what the ONNX inputs are called, in order; None for the names of forward's parameters.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    dynamic: dict[str, Any] | None = None
    names: list[str] | None = None

    def leaves(self) -> list[Any]:
        """The tensors, in the order of the graph's inputs."""
        import torch

        found = torch.utils._pytree.tree_leaves((self.args, self.kwargs))
        return [leaf for leaf in found if leaf is not None]


def example(module: Any, given: Any, names: list[str] | None, shapes: Shapes, source: str) -> Example:
    """Example inputs for `module`.

    Args:
        module: an nn.Module.
        given: a tensor, a tuple of positional or a dict of named inputs; None makes them from `shapes`.
        names: what to call the inputs.
        shapes: a shape per input; a name in place of a size frees that axis.
        source: for messages.

    Raises:
        UsageError: no inputs and no shapes, inputs that are not tensors, or shapes that do not fit.
    """
    parameters = inspect.signature(module.forward)
    if given is None:
        given = _made_up(parameters, shapes, source)
    args, kwargs = _call_form(given)
    try:
        bound = parameters.bind(*args, **kwargs)
    except TypeError as error:
        raise UsageError(
            f"the example inputs of `{source}` do not fit its forward: {error}", hint=f"it is forward{parameters}"
        ) from None
    slots = _slots(bound, parameters)
    _check_tensors([value for _, value in slots], source)
    called = names or [name for name, _ in slots]
    if len(called) != len(slots) or len(set(called)) != len(called):
        raise UsageError(
            f"`{source}` names {len(called)} inputs and has {len(slots)}", hint="give one distinct name per input"
        )
    for name in shapes:
        if name not in called:
            raise UnknownName("input", name, called)
    resized = [_resized(value, shapes.get(name), name) for name, (_, value) in zip(called, slots, strict=True)]
    return _rebuilt(bound, parameters, resized, [shapes.get(name) for name in called], names)


def of_program(program: Any, source: str) -> Example:
    """The example inputs that an exported program carries."""
    args, kwargs = program.example_inputs
    made = Example(tuple(args), dict(kwargs))
    _check_tensors(made.leaves(), source)
    return made


def _call_form(given: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(given, Mapping):
        return (), dict(given)
    return (tuple(given), {}) if isinstance(given, (tuple, list)) else ((given,), {})


def _made_up(parameters: inspect.Signature, shapes: Shapes, source: str) -> dict[str, Any]:
    import torch

    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    required = [p.name for p in parameters.parameters.values() if p.default is p.empty and p.kind in kinds]
    missing = [name for name in required if name not in shapes]
    if missing or not shapes:
        wanted = missing[0] if missing else "x"
        raise UsageError(
            f"`{source}` has no example inputs, and no shape for `{wanted}`",
            hint=f"give `--shapes {wanted}:1x3x224x224`, or set the module's `example_inputs` to a tuple of tensors",
        )
    for name in shapes:
        if name not in parameters.parameters:
            raise UnknownName("input", name, parameters.parameters)
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(_sizes(shape), generator=generator) for name, shape in shapes.items()}


def _sizes(shape: Sequence[Dim]) -> list[int]:
    """A free axis is exported with two: one would be taken for a constant."""
    return [2 if isinstance(size, str) else size for size in shape]


def _slots(bound: inspect.BoundArguments, parameters: inspect.Signature) -> list[tuple[str, Any]]:
    """The inputs in order; those behind `*args` are called by their place."""
    found: list[tuple[str, Any]] = []
    for name, value in bound.arguments.items():
        kind = parameters.parameters[name].kind
        if kind is inspect.Parameter.VAR_POSITIONAL:
            found += [(f"{name}_{i}", item) for i, item in enumerate(value)]
        elif kind is inspect.Parameter.VAR_KEYWORD:
            found += list(value.items())
        elif value is not None:
            found.append((name, value))
    return found


def _check_tensors(values: Sequence[Any], source: str) -> None:
    import torch

    for value in values:
        if not isinstance(value, torch.Tensor):
            raise UsageError(
                f"an example input of `{source}` is a {type(value).__name__}, expected a tensor",
                hint="wrap the module so that its forward takes tensors only, and set the rest inside",
            )


def _resized(value: Any, shape: Sequence[Dim] | None, name: str) -> Any:
    """`value` cut or repeated to `shape`; free axes get at least two."""
    import torch

    if shape is None:
        return value
    if len(shape) != value.dim():
        text, have = "x".join(map(str, shape)), "x".join(map(str, value.shape))
        raise UsageError(f"the shape {text} does not fit the input `{name}`", hint=f"its example has shape {have}")
    for axis, size in enumerate(shape):
        wanted = max(2, value.shape[axis]) if isinstance(size, str) else size
        if wanted != value.shape[axis]:
            value = value.index_select(axis, torch.arange(wanted) % value.shape[axis])
    return value


def _rebuilt(
    bound: inspect.BoundArguments,
    parameters: inspect.Signature,
    values: list[Any],
    shapes: list[Sequence[Dim] | None],
    names: list[str] | None,
) -> Example:
    """The call again with the resized values, and its free axes in the same form."""
    import torch

    left = list(zip(values, shapes, strict=True))
    dims: dict[str, Any] = {}

    def take() -> tuple[Any, Any]:
        value, shape = left.pop(0)
        free = [(axis, size) for axis, size in enumerate(shape or ()) if isinstance(size, str)]
        return value, {axis: dims.setdefault(name, torch.export.Dim(name)) for axis, name in free} or None

    dynamic: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        kind = parameters.parameters[name].kind
        if kind is inspect.Parameter.VAR_POSITIONAL:
            taken = [take() for _ in value]
            bound.arguments[name], dynamic[name] = tuple(v for v, _ in taken), tuple(d for _, d in taken)
        elif kind is inspect.Parameter.VAR_KEYWORD:
            pairs = {key: take() for key in value}
            bound.arguments[name] = {key: v for key, (v, _) in pairs.items()}
            dynamic[name] = {key: d for key, (_, d) in pairs.items()}
        elif value is not None:
            bound.arguments[name], dynamic[name] = take()
        else:
            dynamic[name] = None
    return Example(bound.args, bound.kwargs, dynamic if dims else None, names)


@contextlib.contextmanager
def evaluating(module: Any) -> Iterator[None]:
    """The module in evaluation mode, and afterwards each part as it was: it is the user's object."""
    import torch

    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part, mode in modes:
            part.training = mode
