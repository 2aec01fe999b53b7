"""Kernels as operators of PyTorch: eager, under `torch.compile` and `torch.export`, differentiable, and out to ONNX."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from portolan.core.silence import runtime
from portolan.errors import UsageError
from portolan.kernels.decorated import Kernel
from portolan.kernels.derive.gradient import Gradient
from portolan.kernels.embed.function import DOMAIN, OPSET, function, output_names
from portolan.kernels.tree import Program, Tensor, extents_of
from portolan.kernels.trouble import KernelError

NAMESPACE = "portolan_kernels"
_TYPES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16", "i8": "int8", "i32": "int32"}
_ONNX = {"f32": "float", "f16": "float16", "bf16": "bfloat16", "i8": "int8", "i32": "int32"}


def operator(kernel: Kernel, namespace: str = NAMESPACE) -> Any:
    """Registers a kernel as an operator of PyTorch, and gives it: `op(a, b)` on tensors of the CPU.

    The work is shared among as many threads as PyTorch has. Sizes may be symbols. Registering again replaces it.

    Raises:
        UsageError: the kernel cannot be given what it is called with (when it is called).
    """
    torch = runtime("torch")
    program = kernel.program
    made = _defined(torch, namespace, program, _forward(torch, kernel))
    try:
        gradient: Gradient | None = kernel.grad()
    except KernelError:
        gradient = None
    if gradient is not None:
        _differentiable(torch, namespace, made, gradient)
    return made


def _defined(torch: Any, namespace: str, program: Program, call: Callable[..., Any]) -> Any:
    schema = _schema([t.name for t in program.inputs], len(program.outputs))
    made = torch.library.custom_op(
        f"{namespace}::{program.name}", call, mutates_args=(), device_types="cpu", schema=schema
    )
    made.register_fake(_fake(torch, program))
    return made


def _schema(names: Sequence[str], results: int) -> str:
    given = ", ".join(f"Tensor {n}" for n in names)
    return f"({given}) -> " + ("Tensor" if results == 1 else f"({', '.join(['Tensor'] * results)})")


def _forward(torch: Any, kernel: Kernel) -> Callable[..., Any]:
    def call(*tensors: Any) -> Any:
        arrays = [_array(torch, t, x) for t, x in zip(kernel.program.inputs, tensors, strict=True)]
        found = kernel(*arrays, threads=torch.get_num_threads())
        several = found if isinstance(found, tuple) else (found,)
        made = tuple(_tensor(torch, o, f) for o, f in zip(kernel.program.outputs, several, strict=True))
        return made if isinstance(found, tuple) else made[0]

    return call


def _array(torch: Any, tensor: Tensor, value: Any) -> Any:
    wanted = getattr(torch, _TYPES[tensor.dtype])
    if value.dtype != wanted:
        raise UsageError(
            f"`{tensor.name}` is {tensor.dtype} and was given {value.dtype}",
            hint=f"{tensor.name}.to({wanted})",
        )
    value = value.detach().contiguous()
    return (value.view(torch.uint16) if tensor.dtype == "bf16" else value).numpy()


def _tensor(torch: Any, tensor: Tensor, array: Any) -> Any:
    made = torch.from_numpy(np.asarray(array))
    return made.view(torch.bfloat16) if tensor.dtype == "bf16" else made


def _fake(torch: Any, program: Program) -> Callable[..., Any]:
    """The shapes alone: sizes may be symbols, so they are taken and never compared."""
    extents = extents_of(program)

    def call(*tensors: Any) -> Any:
        sizes: dict[str, Any] = {}
        for tensor, value in zip(program.inputs, tensors, strict=True):
            for place, axis in enumerate(tensor.axes):
                if isinstance(axis, str):
                    sizes.setdefault(axis, value.shape[place])
        made = []
        for output in program.outputs:
            shape = [sizes[e] if isinstance(e := extents[str(a)], str) else e for a in output.axes]
            made.append(tensors[0].new_empty(shape, dtype=getattr(torch, _TYPES[output.dtype])))
        return made[0] if len(made) == 1 else tuple(made)

    return call


def _differentiable(torch: Any, namespace: str, made: Any, gradient: Gradient) -> None:
    """The gradient as an operator of its own, so that compilers see shapes and not what it does."""
    program = gradient.program
    wanted = [n for n, t in enumerate(program.inputs) if t.name in gradient.wanted]

    def call(*tensors: Any) -> Any:
        given = [_array(torch, t, x) for t, x in zip(program.inputs, tensors[: len(program.inputs)], strict=True)]
        seeds = [s.detach().to(torch.float32).contiguous().numpy() for s in tensors[len(program.inputs) :]]
        found = gradient(*given, *seeds, threads=torch.get_num_threads())
        several = tuple(_tensor(torch, program.inputs[n], found[n]) for n in wanted)
        return several if len(several) > 1 else several[0]

    def fake(*tensors: Any) -> Any:
        several = tuple(torch.empty_like(tensors[n]) for n in wanted)
        return several if len(several) > 1 else several[0]

    names = [*(t.name for t in program.inputs), *(f"d_{n}" for n in output_names(program))]
    schema = _schema(names, len(wanted))
    name = f"{namespace}::{program.name}_gradient"
    backward = torch.library.custom_op(name, call, mutates_args=(), device_types="cpu", schema=schema)
    backward.register_fake(fake)

    def setup(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*inputs)
        ctx.results = [(o.shape, o.dtype) for o in (output if isinstance(output, tuple) else (output,))]

    def propagate(ctx: Any, *seeds: Any) -> Any:
        whole = [
            torch.zeros(shape) if seed is None or not dtype.is_floating_point else seed
            for seed, (shape, dtype) in zip(seeds, ctx.results, strict=True)
        ]
        found = backward(*ctx.saved_tensors, *whole)
        several = list(found) if isinstance(found, tuple) else [found]
        return tuple(several.pop(0) if n in wanted else None for n in range(len(program.inputs)))

    made.register_autograd(propagate, setup_context=setup)


def to_onnx(net: Any, args: tuple[Any, ...], kernels: Sequence[tuple[Kernel, Any]], **options: Any) -> Any:
    """A module that calls kernels' operators as an ONNX model that holds them as functions.

    Args:
        net: the module.
        args: what it is traced with.
        kernels: each kernel, with the operator that `operator` gave.
        options: further ones of `torch.onnx.export`, such as `dynamic_shapes`.

    Returns:
        An `onnx.ModelProto`: every runtime runs it, and faster with the kernels (`portolan kernel OPS.py --for`).
    """
    torch, values = runtime("torch"), runtime("onnxscript.values")
    table = {op._opoverload: _translated(values, kernel.program) for kernel, op in kernels}
    exported = torch.onnx.export(
        net, args, dynamo=True, custom_translation_table=table, verbose=False, opset_version=OPSET, **options
    )
    proto = exported.model_proto
    called = {n.op_type for n in proto.graph.node if n.domain == DOMAIN}
    opset = next(o.version for o in proto.opset_import if o.domain == "")
    for kernel, _ in kernels:
        if kernel.name in called:
            proto.functions.append(function(kernel.program, opset=opset))
    if called and all(o.domain != DOMAIN for o in proto.opset_import):
        proto.opset_import.add(domain=DOMAIN, version=1)
    return proto


def _translated(values: Any, program: Program) -> Any:
    """How the exporter writes a call: an operator with a schema of its own, without which it knows no types."""
    from onnx.defs import OpSchema

    parameter = OpSchema.FormalParameter
    inputs = [parameter(t.name, f"tensor({_ONNX[t.dtype]})") for t in program.inputs]
    names = output_names(program)
    outputs = [parameter(n, f"tensor({_ONNX[t.dtype]})") for n, t in zip(names, program.outputs, strict=True)]
    schema = OpSchema(program.name, DOMAIN, 1, inputs=inputs, outputs=outputs)
    call = values.Op(values.Opset(DOMAIN, 1), program.name, schema)

    def translate(*tensors: Any) -> Any:
        return call(*tensors)

    return translate
