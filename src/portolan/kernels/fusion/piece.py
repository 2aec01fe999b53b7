"""What can become an operator of its own: some nodes of a graph, and the kernel that computes the same."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from portolan.core.carried import Carried
from portolan.core.target import Target
from portolan.kernels.fusion.spaces import Shape
from portolan.worker.session import Worker

if TYPE_CHECKING:
    import onnx

#: Gives a name that the graph does not have yet, near the one given.
Fresh = Callable[[str], str]


class Piece(ABC):
    """Nodes and their kernel. Pieces of one name are the same kernel, and share what is compiled and raced."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Of the operator."""

    @property
    @abstractmethod
    def nodes(self) -> Sequence[onnx.NodeProto]:
        """What it replaces, in the order of the graph."""

    @property
    @abstractmethod
    def inputs(self) -> Sequence[str]:
        """Tensors from outside of the nodes, weights among them, that are no numbers written into the kernel."""

    @property
    @abstractmethod
    def outputs(self) -> Sequence[str]:
        """Tensors of the nodes that others read."""

    @property
    def sizes(self) -> Mapping[str, int]:
        """What stands for free sizes while it is raced; those not named are 1, as batches mostly are."""
        return {}

    @abstractmethod
    def moved(self) -> float:
        """About how many elements go through memory in what it replaces: what moves most is tried first."""

    @abstractmethod
    def operator(self) -> Carried:
        """What it is called, takes and gives."""

    @abstractmethod
    def code(self, target: Target, shapes: Mapping[str, Shape]) -> str:
        """The kernel in C, without a door."""

    @abstractmethod
    def check(self, path: Path, worker: Worker, target: Target, shapes: Mapping[str, Shape]) -> None:
        """Runs the compiled kernel on what only an oracle of its own can judge; it is compared with the nodes besides.

        Raises:
            PortolanError: it is wrong, or crashes.
        """

    @abstractmethod
    def calls(self, graph: onnx.GraphProto, fresh: Fresh) -> list[onnx.NodeProto]:
        """The operator's node, and those that bring its arguments and results into shape. New constants go into the
        graph.
        """

    @abstractmethod
    def function(self, imports: Sequence[onnx.OperatorSetIdProto]) -> onnx.FunctionProto:
        """The operator's body: what a runtime without the library runs."""
