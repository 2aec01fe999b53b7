"""What the runtime alone needs for a workload, on all cores at once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from workloads import Workload

CORES = len(os.sched_getaffinity(0))


@dataclass(frozen=True)
class Alone:
    """The runtime without a server.

    Attributes:
        batch: of this size.
        us: CPU microseconds per item.
        rate: items per second, all cores together.
    """

    batch: int
    us: float
    rate: float


def alone(
    work: Workload, batches: tuple[int, ...], seconds: float, processes: int = CORES, copies: int = 1
) -> list[Alone]:
    """Measures each batch size in `processes` processes at once, on `copies` of the inputs in turn."""
    with tempfile.TemporaryDirectory(prefix="portolan-runtime-") as folder:
        samples = Path(folder) / "rows.npz"
        np.savez(samples, **work.inputs)  # type: ignore[arg-type]
        script = Path(__file__).with_name("inprocess.py")
        argv = [
            sys.executable,
            str(script),
            str(work.path),
            str(seconds),
            str(samples),
            str(copies),
            *map(str, batches),
        ]
        running = [subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) for _ in range(processes)]
        said = [json.loads(process.communicate()[0]) for process in running]
    return [
        Alone(
            batch,
            sum(found[str(batch)][0] for found in said) / processes,
            sum(found[str(batch)][1] for found in said),
        )
        for batch in batches
    ]
