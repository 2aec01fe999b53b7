"""Where an int8 model spends its time on OpenVINO, Portolan's and NNCF's: `python benchmarks/compression/shares.py ZOO
[NAME...]`.

ZOO is the folder that `python benchmarks/models.py ZOO` fills. Both artefacts are made as `int8.py` makes them and run
in turns, with OpenVINO's own counters on, which slow both a little. Per kind of node: microseconds of one inference in
the median, and its share. Both quantizers end in the same products of int8; what one can be ahead by lies in the rest.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openvino
from int8 import NAMES, Maker

from portolan.core.data import feeds
from portolan.core.graph import load_model
from portolan.core.model import Model
from portolan.core.silence import silence
from portolan.study.optimize import read_samples
from portolan.study.workspace import Workspace

ROUNDS = 60
MAKERS: dict[str, Callable[[Maker], Model]] = {"portolan": Maker.portolan, "nncf": Maker.nncf}
#: How OpenVINO's words for products begin.
PRODUCTS = ("FullyConnected", "Convolution", "MatMul")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("zoo", type=Path)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(NAMES)}; all by default")
    parser.add_argument("--precision", default="bf16", choices=("f32", "bf16"), help="of what is not int8")
    given = parser.parse_args()
    silence()
    for name in given.names or NAMES:
        with tempfile.TemporaryDirectory() as scratch:
            show(name, profiled(given.zoo / f"{name}.onnx", Path(scratch), given.precision))
    return 0


def profiled(path: Path, scratch: Path, precision: str) -> dict[str, Counter[str]]:
    """Microseconds per kind of node of both artefacts, run in turns."""
    model, workspace = load_model(path), Workspace(scratch / "work")
    samples = read_samples(str(path.with_suffix(".npz")), model, scratch, 0, None, str(path))
    maker = Maker(model, samples, scratch, workspace)
    inputs = next(iter(feeds(samples.data, samples.evaluation[:1], model.signature)))[0]
    runs = {name: compiled(make(maker), precision) for name, make in MAKERS.items()}
    seen: dict[str, list[Counter[str]]] = {name: [] for name in runs}
    for _ in range(ROUNDS):
        for name, request in runs.items():
            request.infer(inputs)
            request.infer(inputs)
            seen[name].append(kinds(request))
    workspace.close()
    return {name: medians(found) for name, found in seen.items()}


def compiled(model: Model, precision: str) -> Any:
    """A request of the model, with counters on."""
    options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": precision, "PERF_COUNT": "YES"}
    return openvino.Core().compile_model(str(model.path), "CPU", options).create_infer_request()


def kinds(request: Any) -> Counter[str]:
    """Microseconds of the last inference by kind of node; products by their precision."""
    found: Counter[str] = Counter()
    for node in request.get_profiling_info():
        kind = node.node_type
        if product := next((word for word in PRODUCTS if kind.startswith(word)), None):
            kind = f"{product} ({node.exec_type.rpartition('_')[2].lower()})"
        found[kind] += node.real_time.total_seconds() * 1e6
    return found


def medians(rounds: list[Counter[str]]) -> Counter[str]:
    """Each kind's median over the rounds."""
    return Counter({kind: statistics.median(found[kind] for found in rounds) for kind in set().union(*rounds)})


def show(name: str, found: dict[str, Counter[str]]) -> None:
    """One line per kind that takes a hundredth of the time somewhere."""
    totals = {who: sum(times.values()) for who, times in found.items()}
    print(f"{name}: " + ", ".join(f"{who} {total / 1e3:.2f} ms in nodes" for who, total in totals.items()))
    order = sorted(set().union(*found.values()), key=lambda kind: -max(times[kind] for times in found.values()))
    for kind in order:
        shares = [times[kind] / totals[who] for who, times in found.items()]
        if max(shares) >= 0.01:
            cells = (f"{found[who][kind]:8.0f} us {share:6.1%}" for who, share in zip(found, shares, strict=True))
            print(f"  {kind:28}" + "   ".join(cells), flush=True)


if __name__ == "__main__":
    sys.exit(main())
