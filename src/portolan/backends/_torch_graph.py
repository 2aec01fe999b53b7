"""ONNX graphs for the torch backend: exported for Inductor, or run operator by operator."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from portolan.backends import _torch_gpu
from portolan.backends._artefact import Artefact, demand, explained
from portolan.backends._torch_gpu import Device
from portolan.core.backend import CPU, Executable, Tensors
from portolan.core.model import Model
from portolan.core.silence import runtime
from portolan.errors import ModelError, PortolanError, UnsupportedOperator

if TYPE_CHECKING:
    import numpy as np

#: The size that a free dimension has while it is traced: 0 and 1 would be taken for fixed.
_TRACED = 3


class Eager(Executable):
    """A graph run by PyTorch operator by operator. Nothing is compiled, so sizes may depend on what inputs hold."""

    def __init__(self, artefact: Artefact, device: Device, threads: int) -> None:
        from portolan.importers.graphs import program
        from portolan.importers.torch_ import module

        self._torch, self._device = runtime("torch"), device
        if device != CPU:
            _torch_gpu.demand_gpu()
            _torch_gpu.compute_in(self._torch, "f32")
        self._torch.set_num_threads(threads)
        with explained("torch", artefact.path), artefact.unpacked() as path:
            self._module = module(program(path, path.stem)).train(False).to(device)
        self._artefact = artefact
        demand("torch", {"device": device, "precision": "f32", "threads": threads}, self.facts())

    def run(self, inputs: Tensors) -> dict[str, np.ndarray]:
        """Runs once; the arrays that come out are the caller's."""
        import numpy as np

        arrays = [np.array(inputs[spec.name]) for spec in self._artefact.signature.inputs]
        given = [self._torch.from_numpy(array).to(self._device) for array in arrays]
        with self._torch.inference_mode():
            found = self._module(*given)
        return {
            name: np.array(value.detach().cpu().numpy())
            for name, value in zip(self._artefact.outputs, found, strict=True)
        }

    def save(self, folder: Path) -> None:
        """Writes the graph: there is nothing else."""
        self._artefact.save(folder)

    def facts(self) -> dict[str, Any]:
        """Where it runs, in which arithmetic, and torch's thread count."""
        first = next(iter(self._module.parameters()), None) if self._module is not None else None
        device = self._device if first is None else first.device.type
        return {"device": device, "precision": "f32", "threads": self._torch.get_num_threads(), "compiler": "eager"}

    def close(self) -> None:
        """Drops the weights."""
        self._module = None


def imported(model: Model) -> Any:
    """A model's graph as a `torch.export.ExportedProgram`, whose free sizes are those of the signature.

    Raises:
        UnsupportedOperator: an operator that the importer lacks, or a size that depends on what an input holds.
        ModelError: the graph cannot be read, or a free size became fixed on the way.
    """
    from portolan.importers.graphs import program
    from portolan.importers.torch_ import module

    torch = runtime("torch")
    with explained("torch", model.path):
        read = program(model.path, model.name)
    if read.deciding:
        raise UnsupportedOperator(
            f"sizes inside `{model.name}` depend on what its input `{read.deciding[0]}` holds, and Inductor compiles "
            "before it is known",
            hint="use the option `compiler=eager`, or `--backend onnxruntime`",
        )
    args, shapes = [], []
    for spec in model.signature.inputs:
        sizes = [_TRACED if isinstance(d, str) else d for d in spec.shape]
        args.append(torch.zeros(sizes, dtype=getattr(torch, spec.dtype)))
        shapes.append({i: torch.export.Dim.AUTO for i, d in enumerate(spec.shape) if isinstance(d, str)})
    try:
        found = torch.export.export(module(read).train(False), tuple(args), dynamic_shapes=(tuple(shapes),))
    except PortolanError:
        raise
    except Exception as error:  # whatever the tracer throws
        raise ModelError(
            f"PyTorch cannot trace `{model.name}`: {str(error).splitlines()[0]}",
            hint="use the option `compiler=eager`, or `--backend onnxruntime`",
        ) from error
    if free_axes(found) != [sorted(axes) for axes in shapes]:
        raise ModelError(
            f"a free dimension of `{model.name}` became fixed as it was traced",
            hint="use the option `compiler=eager`, or give it a size: `--shapes`",
        )
    return found


def free_axes(program: Any) -> list[list[int]]:
    """For each input tensor of a program, the axes whose size is free."""
    values = {node.name: node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"}
    inputs = (values[name] for name in program.graph_signature.user_inputs if isinstance(name, str) and name in values)
    return [[axis for axis, size in enumerate(v.shape) if not isinstance(size, int)] for v in inputs]
