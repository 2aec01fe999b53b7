"""New operators in index notation: read, checked against NumPy, laid out as loops, tuned and compiled.

    from portolan import kernel

    @kernel
    def tropical(A: "i k", B: "k j") -> "i j":
        return max(A[i, k] + B[k, j] for k in K)

    tropical(a, b)

The tree (`tree`) is what a kernel means; the oracle and every program come from it. `lower` makes loops (`ir`) of it
under a schedule, `printers` print them, `tune` finds the schedule.
"""

from __future__ import annotations

from portolan.kernels.build import build, emitted
from portolan.kernels.decorated import Kernel, kernel, shapes
from portolan.kernels.embed.export import export
from portolan.kernels.trouble import KernelError

__all__ = ["Kernel", "KernelError", "build", "emitted", "export", "kernel", "shapes"]
