"""Kernels as functions of JAX: behind XLA's foreign function interface, jitted, on XLA's threads, with derivatives."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

from portolan.core.files import write_whole
from portolan.core.running import compiled, plus
from portolan.core.silence import runtime
from portolan.kernels.compiler import find
from portolan.kernels.decorated import Kernel
from portolan.kernels.derive.gradient import Gradient
from portolan.kernels.embed.carry import about
from portolan.kernels.embed.tables import tables
from portolan.kernels.place import digest, folder
from portolan.kernels.tree import Program, extents_of
from portolan.kernels.trouble import KernelError
from portolan.kernels.tune import source

#: Element types by XLA's numbers (`ffi.h`: S8, S32, F16, F32, BF16).
_TYPES = {"f32": 11, "f16": 10, "bf16": 16, "i8": 2, "i32": 4}
_NAMES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16", "i8": "int8", "i32": "int32"}
_SECONDS = 300.0


def operator(kernel: Kernel) -> Callable[..., Any]:
    """A function on JAX's arrays that calls the kernel; it may be jitted, and differentiated where the kernel can.

    The door is compiled once, with g++ or clang++ against the headers in the `jaxlib` wheel.

    Raises:
        NoBackend: there is no C++ compiler.
        CompilerError: the door could not be compiled.
    """
    jax = runtime("jax")
    call = _registered(jax, kernel)
    try:
        gradient = kernel.grad()
    except KernelError:
        return call
    return _differentiable(jax, call, gradient)


def _registered(jax: Any, kernel: Kernel) -> Callable[..., Any]:
    program = kernel.program
    path = built(program, kernel, jax.ffi.include_dir())
    target = f"portolan_{program.name}_{path.stem}"
    handler = ctypes.CDLL(str(path))[_handler(program)]
    jax.ffi.register_ffi_target(target, jax.ffi.pycapsule(handler), platform="cpu")
    extents = extents_of(program)

    def call(*arrays: Any) -> Any:
        sizes = {
            axis: size
            for t, a in zip(program.inputs, arrays, strict=True)
            for axis, size in zip(t.axes, a.shape, strict=True)
        }
        results = []
        for output in program.outputs:
            shape = [sizes[e] if isinstance(e := extents[str(a)], str) else e for a in output.axes]
            results.append(jax.ShapeDtypeStruct(tuple(shape), _NAMES[output.dtype]))
        return jax.ffi.ffi_call(target, results[0] if len(results) == 1 else results)(*arrays)

    return call


def _differentiable(jax: Any, call: Callable[..., Any], gradient: Gradient) -> Callable[..., Any]:
    program = gradient.program
    steps = [(k.program, _registered(jax, k)) for k in gradient.kernels]
    function = jax.custom_vjp(call)

    def forward(*arrays: Any) -> tuple[Any, Any]:
        return call(*arrays), arrays

    def backward(arrays: Any, seeds: Any) -> Any:
        given = seeds if isinstance(seeds, (tuple, list)) else (seeds,)
        found = gradient.through(steps, (*arrays, *given))
        # Integers have derivatives of a type of their own, which holds nothing.
        nothing = jax.dtypes.float0
        made = []
        for tensor, array, by in zip(program.inputs, arrays, found, strict=True):
            integer = tensor.dtype.startswith("i")
            zeros = jax.numpy.zeros(array.shape, nothing if integer else array.dtype)
            made.append(zeros if integer or by is None else by)
        return tuple(made)

    function.defvjp(forward, backward)
    return function  # type: ignore[no-any-return]


def _handler(program: Program) -> str:
    return f"PortolanCall_{program.name}"


def built(program: Program, kernel: Kernel, include: str) -> Path:
    """The library: the kernel by the C compiler, its door by the C++ compiler, linked.

    Raises:
        NoBackend, CompilerError: as `operator`.
    """
    compiler, argv = find(), plus("XLA's interface")
    code = source(program, kernel.schedules(kernel.usual()))
    head = tables(about(program), _TYPES, {"NAME": program.name}) + f"#define HANDLER {_handler(program)}\n"
    door = "#include <cstdint>\n" + head + (Path(__file__).parent / "xla_door.cc").read_text(encoding="utf-8")
    path = folder() / "lib" / f"{digest(code, door, argv, compiler.version, include)}.so"
    if not path.is_file():
        kernel_library = compiler.build(code)
        flags = ["-std=c++17", "-O2", "-shared", "-fPIC", "-w", f"-I{include}"]
        linked = [str(kernel_library), f"-Wl,-rpath,{kernel_library.parent}"]
        write_whole(path, compiled([*argv, *flags, *linked], door, ".cc", _SECONDS))
    return path
