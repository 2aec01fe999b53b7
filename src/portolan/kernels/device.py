"""Kernels on devices with memory of their own: arrays are copied in, functions started in order, results copied out."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from portolan.errors import UsageError
from portolan.kernels.language import Loaded
from portolan.kernels.plan import Plan

Array = np.ndarray[Any, Any]
_MOST = 2**31 - 1


class OnDevice(Loaded):
    """A kernel on a device: four steps that every driver has, and `start`."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    @abstractmethod
    def allocate(self, size: int) -> Any:
        """Memory of the device, in bytes."""

    @abstractmethod
    def copy_in(self, buffer: Any, array: Array) -> None:
        """Copies an array to the device."""

    @abstractmethod
    def copy_out(self, array: Array, buffer: Any) -> None:
        """Copies an array back; all work before it is done then."""

    @abstractmethod
    def start(self, entry: str, tasks: int, buffers: Sequence[Any], numbers: Sequence[int]) -> None:
        """Starts a function in as many threads as there are tasks.

        Args:
            entry: its name.
            tasks: at least 1.
            buffers: arguments, results and scratch.
            numbers: sizes, and at the end the number of tasks.
        """

    @abstractmethod
    def wait(self) -> None:
        """Waits until all that was started is done."""

    def free(self, buffer: Any) -> None:
        """Gives memory back."""

    def __call__(self, arrays: Sequence[Array], sizes: Mapping[str, int], pool: Any = None) -> None:
        """Copies, runs, copies back."""
        buffers, run = self._prepared(arrays, sizes)
        try:
            run()
            for array, buffer in list(zip(arrays, buffers, strict=False))[len(self.plan.inputs) :]:
                self.copy_out(array, buffer)
        finally:
            for buffer in buffers:
                self.free(buffer)

    def held(self, arrays: Sequence[Array], sizes: Mapping[str, int], pool: Any = None) -> Callable[[], None]:
        """Runs on what lies on the device; nothing is copied between calls."""
        buffers, run = self._prepared(arrays, sizes)

        def call() -> None:
            run()
            self.wait()

        call()
        # The buffers live as long as the function does.
        call.__dict__["buffers"] = buffers
        return call

    def _prepared(self, arrays: Sequence[Array], sizes: Mapping[str, int]) -> tuple[list[Any], Callable[[], None]]:
        for array in arrays:
            if array.size > _MOST:
                raise UsageError(
                    f"kernel `{self.plan.kernel}`: an array of {array.size} elements is more than 32 bits can count",
                    hint="call it on parts of the arrays, or on the CPU",
                )
        starts, numbers = self.plan.starts(sizes), self.plan.numbers(sizes)
        buffers = [self.allocate(max(4, array.nbytes)) for array in arrays]
        for array, buffer in zip(arrays[: len(self.plan.inputs)], buffers, strict=False):
            self.copy_in(buffer, array)
        buffers.append(self.allocate(max(4, 4 * max(words for _, _, words in starts))))

        def run() -> None:
            for entry, tasks, _ in starts:
                if tasks:
                    self.start(entry, tasks, buffers, [*numbers, tasks])

        return buffers, run
