"""From an exported torch program to an ONNX file that computes the same: exported, named, checked, compared."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from portolan.core import protos
from portolan.core.model import Model
from portolan.errors import ModelError, UnsupportedOperator
from portolan.frontends._graphs import LARGEST, rename
from portolan.frontends._torch_inputs import Example
from portolan.frontends._verify import agree, first_line

if TYPE_CHECKING:
    import onnx

OPSET = 18
_REPORT = "the exporter is wrong for this model: try another torch version, and report it to PyTorch"


def program(module: Any, example: Example, source: str) -> Any:
    """`torch.export.export`, with its failure in one line.

    A free axis gets the limits that the module itself has: 512 tokens where there are 512 positions.

    Raises:
        ModelError: the module cannot be exported.
    """
    import torch

    dynamic: Any = example.dynamic
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                return torch.export.export(module, example.args, example.kwargs, dynamic_shapes=dynamic)
            except torch._dynamo.exc.UserError as error:
                if dynamic is None or "Suggested fixes" not in str(error):
                    raise
                dynamic = _limited(str(error), dynamic)
            return torch.export.export(module, example.args, example.kwargs, dynamic_shapes=dynamic)
    except ModelError:
        raise
    except Exception as error:  # tracing runs the user's own code: anything can come out
        raise ModelError(
            f"`{source}` cannot be exported by torch: {first_line(error)}",
            hint="torch.export needs a forward without branches on values: try it on its own for the whole message",
        ) from error


def _limited(message: str, dynamic: Any) -> Any:
    """The free axes with the limits that torch suggests; its own reader trips over the text behind them."""
    import torch

    lines = [line for line in message.partition("Suggested fixes:")[2].splitlines() if " = " in line]
    for line in lines:
        name, _, size = line.strip().partition(" = ")
        if size.isdecimal():
            raise ModelError(
                f"the axis `{name}` cannot be free: the module computes with a size of {size} there",
                hint=f"give `{name}` a size in `--shapes`, or change the module",
            )
    fixes = "Suggested fixes:\n" + "\n".join(lines)
    return torch.export.dynamic_shapes.refine_dynamic_shapes_from_suggested_fixes(fixes, dynamic)


def to_onnx(program: Any, example: Example | None, out: Path, name: str, source: str) -> Model:
    """Writes `out/NAME.onnx` and `out/NAME.pt2` and makes sure that the first computes what the second does.

    Raises:
        UnsupportedOperator: torch's exporter has no ONNX for an operator.
        ModelError: the exporter failed, or wrote an invalid graph.
        VerificationFailed: the graph's outputs differ from the program's.
    """
    import torch

    from portolan.core.graph import load_model

    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{name}.onnx"
    exported = _exported(program, example, source)
    size = sum(t.nelement() * t.element_size() for t in (*program.state_dict.values(), *program.constants.values())
               if isinstance(t, torch.Tensor))  # fmt: skip
    exported.save(str(path), external_data=size > LARGEST)
    names = example.names if example else None
    _finish(path, names or [str(name) for name in program.graph_signature.user_inputs], _output_names(program))
    model = load_model(path, name=name, format="torch")
    _verify(model, program, example)
    kept = out / f"{name}.pt2"
    if kept.exists() and Path(source).exists() and kept.samefile(source):
        return dataclasses.replace(model, program=kept)  # the source itself is never written
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of the machine it was exported on are nobody's business
    torch.export.save(program, str(kept))
    return dataclasses.replace(model, program=kept)


def _exported(program: Any, example: Example | None, source: str) -> Any:
    import torch

    dynamic = example.dynamic if example else None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.onnx.export(
                program, dynamo=True, opset_version=OPSET, verbose=False, external_data=False, dynamic_shapes=dynamic
            )
    except Exception as error:  # the exporter wraps whatever its translations raise
        text = _chain(error)
        operator = re.search(r"No (?:ONNX function|decompositions registered)[^\n]*?OpOverload\(op='([\w.:]+)'", text)
        if operator is not None:
            raise UnsupportedOperator(
                f"torch's exporter has no ONNX for the operator `{operator[1]}` in `{source}`",
                hint="replace it in the module by operators that ONNX has",
            ) from error
        raise ModelError(
            f"`{source}` cannot be written as ONNX: {first_line(error)}",
            hint="try `torch.onnx.export(..., dynamo=True, report=True)` for the whole story",
        ) from error


def _chain(error: BaseException | None) -> str:
    parts = []
    while error is not None:
        parts.append(str(error))
        error = error.__cause__ or error.__context__
    return "\n".join(parts)


def _output_names(program: Any) -> list[str]:
    """What a user would call the outputs: a dict's keys, `output`, or `output_0` and so on."""
    spec = program.call_spec.out_spec
    count = len(program.graph_signature.user_outputs)
    if spec is not None and spec.type is dict and len(spec.context) == count:
        return [str(key) for key in spec.context]
    return ["output"] if count == 1 else [f"output_{i}" for i in range(count)]


def _finish(path: Path, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Names inputs and outputs, and takes the exporter's notes out of the file: source lines and absolute paths."""
    import onnx

    model = onnx.load(str(path), load_external_data=False)
    rename(model, inputs, outputs)
    for graph in protos.graphs(model):
        values = (*graph.input, *graph.output, *graph.value_info, *graph.initializer, *graph.node)
        for thing in (graph, *values):
            thing.ClearField("metadata_props")
    for function in model.functions:
        for thing in (function, *function.node, *function.value_info):
            thing.ClearField("metadata_props")
    model.ClearField("metadata_props")
    _name_batch(model)
    path.write_bytes(model.SerializeToString())


def _name_batch(model: onnx.ModelProto) -> None:
    """A free first axis that a program left as `s77` is called `batch`."""
    graph = model.graph
    firsts = {v.type.tensor_type.shape.dim[0].dim_param for v in graph.input if v.type.tensor_type.shape.dim}
    symbols = [name for name in firsts if re.fullmatch(r"s\d+", name)]
    if len(symbols) != 1:
        return
    for one in protos.graphs(model):
        for value in (*one.input, *one.output, *one.value_info):
            for dim in value.type.tensor_type.shape.dim:
                if dim.dim_param and "batch" not in dim.dim_param:
                    dim.dim_param = re.sub(rf"\b{symbols[0]}\b", "batch", dim.dim_param)


def _verify(model: Model, program: Any, example: Example | None) -> None:
    """On the example inputs; where axes are free, on inputs of other sizes too."""
    import torch

    leaves = example.leaves() if example else _made_up(model)
    args, kwargs = (example.args, example.kwargs) if example else (tuple(leaves), {})
    module = program.module()
    _compare(model, module, args, kwargs)
    if model.signature.free:
        others = iter(_resized(model, leaves))
        args, kwargs = torch.utils._pytree.tree_map(lambda leaf: None if leaf is None else next(others), (args, kwargs))
        with contextlib.suppress(_Limits):
            _compare(model, module, args, kwargs, within_limits=True)


class _Limits(Exception):
    """Sizes that the program itself does not take."""


def _compare(model: Model, module: Any, args: Any, kwargs: Any, within_limits: bool = False) -> None:
    import torch

    leaves = [leaf for leaf in torch.utils._pytree.tree_leaves((args, kwargs)) if leaf is not None]
    feeds = {spec.name: leaf.detach().cpu().numpy() for spec, leaf in zip(model.signature.inputs, leaves, strict=True)}
    try:
        with torch.no_grad():
            answer = module(*args, **kwargs)
    except (RuntimeError, AssertionError) as error:
        if within_limits:  # one size more than the example's may be beyond what the module has positions for
            raise _Limits from error
        raise
    wanted = [leaf.detach().cpu().numpy() for leaf in torch.utils._pytree.tree_leaves(answer) if leaf is not None]
    agree(model, feeds, wanted, "torch", hint=_REPORT)


def _resized(model: Model, leaves: Sequence[Any]) -> list[Any]:
    """The example inputs with one row more along each free axis."""
    import torch

    found = []
    for spec, leaf in zip(model.signature.inputs, leaves, strict=True):
        for axis, size in enumerate(spec.shape):
            if isinstance(size, str):
                leaf = leaf.index_select(axis, torch.arange(leaf.shape[axis] + 1) % leaf.shape[axis])
        found.append(leaf)
    return found


def _made_up(model: Model) -> list[Any]:
    """Inputs for a program that carries none."""
    import torch

    from portolan.core.data import generate, sample

    shapes = {spec.name: [2 if isinstance(dim, str) else dim for dim in spec.shape] for spec in model.signature.inputs}
    made = sample(generate(model.signature, 1, 0, shapes), 0, model.signature)
    return [torch.from_numpy(made[spec.name]) for spec in model.signature.inputs]
