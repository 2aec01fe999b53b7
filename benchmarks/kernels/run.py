"""Kernels against eager PyTorch, Inductor, XLA and numba, in one interleaved run; exits 1 when a bound is not met.

    python benchmarks/kernels/run.py [--threads 1,2] [--only tropical] [--shapes 0,1] [--peers inductor,numba]
                                     [--jax PYTHON] [--out FILE.jsonl]
    python benchmarks/kernels/run.py --join FILE.jsonl...

A run may be cut in pieces by kernel, shape and threads: with the same `--out`, what is there is not measured again, and
`--join` prints the rows of all pieces, the mean over the best of the compilers, and the verdict.

XLA runs in the environment of `--jax` (`python -m venv ENV && ENV/bin/pip install jax`), in a process of its own that
takes its turn in the same rounds. Where other work disturbs the machine, `--cpu` compares the time that one thread ran.

Each shape is tuned first (at most 10 s, compiling included, or it counts as not met). Then every contender runs a block
of calls in each round, in random order, with the same threads; a ratio is the median of the rounds.
Results are compared with eager PyTorch's before anything is timed. glibc's allocator is told not to return memory: page
faults make eager PyTorch two to ten times slower, and without that the ratios would be larger.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import eager
import numpy as np
import operators
import torch
from xla_kernels import block

from portolan.kernels.arrays import taken
from portolan.kernels.compiler import find
from portolan.kernels.tune import recalled, tune
from portolan.kernels.verify import difference
from portolan.measure.environment import environment
from portolan.measure.lock import measuring
from portolan.targets.local import local

#: The least ratio against eager PyTorch (of time there to time here), and the shapes.
BOUNDS: Mapping[str, tuple[float, list[tuple[int, ...]]]] = {
    "window_attention": (20, [(4, 1024, 64, 128), (2, 1000, 48, 100)]),
    "deformable": (20, [(1,), (4,), (8,)]),
    "tropical": (10, [(384, 384, 384), (383, 381, 379)]),
    "selective_scan": (12, [(512, 512, 16), (509, 500, 16)]),
    "nearest": (8, [(1024, 4096, 8), (1000, 4001, 16)]),
    "butterfly": (8, [(256, 10), (250, 9)]),
    "product": (0.9, [(512, 512, 512), (1024, 1024, 1024), (2048, 2048, 2048), (1023, 1021, 1019), (517, 523, 541)]),
}
TUNING_SECONDS = 10.0
_MEAN = 1.5
_SECONDS = 2.5
_BLOCK_SECONDS = 0.02
_ROUNDS = (7, 40)
_MOST_DIFFERENT = 1e-4
#: What Inductor leaves to libraries.
_NOT_FOR_INDUCTOR = ("product",)
_COMPILERS = ("inductor", "numba", "xla")
_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD = -3, -1


@dataclass
class Contender:
    """One way to compute: how a block of calls is timed, what they give, and how long each round took."""

    name: str
    block: Callable[[], float]
    result: Callable[[], Any]
    ms: list[float] = field(default_factory=list)


def here(name: str, call: Callable[[], Any], *, cpu: bool) -> Contender:
    """A contender in this process, timed by the wall clock or by the thread's own."""
    clock = time.thread_time if cpu else time.perf_counter
    return Contender(name, lambda: block(call, _BLOCK_SECONDS, clock), lambda: np.asarray(call()))


def elsewhere(name: str, arrays: list[Any], threads: int, python: str, opened: ExitStack) -> Contender:
    """XLA in its own process."""
    folder = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="xla-")))
    for number, array in enumerate(arrays):
        np.save(folder / f"{number}.npy", array)
    script = Path(__file__).with_name("xla_kernels.py")
    argv = [python, str(script), str(folder), name, str(threads)]
    process = opened.enter_context(subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
    given, said = process.stdin, process.stdout
    if given is None or said is None or said.readline() != "ready\n":
        raise SystemExit(f"{' '.join(argv)} did not start")
    opened.callback(given.close)

    def asked() -> float:
        given.write(f"{_BLOCK_SECONDS}\n")
        given.flush()
        return float(said.readline())

    return Contender("xla", asked, lambda: np.load(folder / "out.npy"))


def keep_memory() -> None:
    """Tells glibc to map nothing and to give nothing back."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        libc.mallopt(_M_TRIM_THRESHOLD, 1 << 30)


def contenders(name: str, arrays: list[Any], threads: int, given: Any, opened: ExitStack) -> Iterator[Contender]:
    """Ours, eager PyTorch, and the peers that there are."""
    kernel = getattr(operators, name)
    function = getattr(eager, name)
    tensors = [torch.from_numpy(a) for a in arrays]
    timed = partial(here, cpu=given.cpu)
    if name == "product":
        turned = tensors[1].t().contiguous()
        linear = torch.ops.mkldnn._linear_pointwise
        yield timed("eager", lambda: linear(tensors[0], turned, None, "none", [], ""))
        yield timed("mkl", lambda: tensors[0] @ tensors[1])
    else:
        yield timed("eager", lambda: function(*tensors))
    yield timed("portolan", lambda: kernel(*arrays, threads=threads))
    if name == "window_attention":
        yield timed("sdpa", lambda: eager.sdpa(*tensors))
    if "inductor" in given.peers and name not in _NOT_FOR_INDUCTOR:
        torch.compiler.reset()
        own = eager.FOR_INDUCTOR.get(name)
        compiled = torch.compile(own or function, fullgraph=own is not None)  # torch's scan compiles only whole
        yield timed("inductor", lambda: compiled(*tensors))
    if "numba" in given.peers:
        import numba_kernels

        if (made := numba_kernels.kernel(name, threads)) is not None:
            yield timed("numba", lambda: made(*arrays))
    if given.jax:
        yield elsewhere(name, arrays, threads, given.jax, opened)


def race(arms: list[Contender], threads: int, rng: np.random.Generator) -> float:
    """Rounds in random order until the time is over: in each, a block of calls of every contender, its first apart.

    So each finds its own data in the caches, as in a loop of its own and as in the project's races. It gives the
    difference between the kernel's result and eager PyTorch's.
    """
    torch.set_num_threads(threads)
    with torch.inference_mode(), measuring():
        results = {arm.name: arm.result() for arm in arms}
        end, rounds = time.perf_counter() + _SECONDS, 0
        while rounds < _ROUNDS[0] or (rounds < _ROUNDS[1] and time.perf_counter() < end):
            for number in rng.permutation(len(arms)):
                arms[number].ms.append(arms[number].block())
            rounds += 1
    for name, result in results.items():
        if (off := difference(result, results["eager"])) > _MOST_DIFFERENT:
            raise SystemExit(f"{name} differs from eager PyTorch by {off:.1e}")
    return difference(results["portolan"], results["eager"])


def ratio(slow: Contender, fast: Contender) -> tuple[float, float, float]:
    """The median of the rounds' ratios, and an interval of it (bootstrap, 95 %)."""
    each = np.log(np.asarray(slow.ms) / np.asarray(fast.ms))
    rng = np.random.default_rng(0)
    drawn = np.median(rng.choice(each, (1000, len(each))), axis=1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return tuple(float(np.exp(v)) for v in (np.median(each), low, high))  # type: ignore[return-value]


def ready(name: str, arrays: list[Any], row: dict[str, Any]) -> None:
    """Tunes for these sizes."""
    kernel = getattr(operators, name)
    _, sizes = taken(kernel.program, arrays)
    target, compiler = local.detect(), find()
    tuned = recalled(kernel.program, sizes, target, compiler) or tune(kernel.program, sizes, target, compiler)
    row["tuning_seconds"] = tuned.seconds
    row["schedule"] = [s.to_json() for s in tuned.schedules]


def one(name: str, sizes: tuple[int, ...], threads: int, given: Any) -> dict[str, Any]:
    """The row of one shape."""
    rng = np.random.default_rng(0)
    arrays = eager.arrays(name, sizes, rng)
    row: dict[str, Any] = {"kernel": name, "sizes": sizes, "threads": threads}
    ready(name, arrays, row)
    with ExitStack() as opened:
        arms = list(contenders(name, arrays, threads, given, opened))
        row["error"] = race(arms, threads, rng)
    by_name = {arm.name: arm for arm in arms}
    row["ms"] = {arm.name: float(np.median(arm.ms)) for arm in arms}
    row["n"] = len(arms[0].ms)
    row["ratios"] = {n: ratio(a, by_name["portolan"]) for n, a in by_name.items() if n != "portolan"}
    bound = BOUNDS[name][0]
    row["bound"] = bound
    row["met"] = row["ratios"]["eager"][0] >= bound and row["tuning_seconds"] <= TUNING_SECONDS
    return row


def line(row: Mapping[str, Any]) -> str:
    """A row for people."""
    sizes = "x".join(map(str, row["sizes"]))
    ratios = "  ".join(f"{n} {r:.2f}x ({lo:.2f} to {hi:.2f})" for n, (r, lo, hi) in row["ratios"].items())
    met = "met" if row["met"] else "NOT MET"
    return (
        f"{row['kernel']:17} {sizes:15} {row['threads']} thr  {row['ms']['portolan']:8.3f} ms (n={row['n']})  {ratios}"
        f"  bound {row['bound']} {met}  tuned in {row['tuning_seconds']:.1f} s  error {row['error']:.1e}"
    )


def pieces(given: Any) -> Iterator[tuple[str, tuple[int, ...], int]]:
    """What is to be measured: kernel, sizes and threads."""
    numbers = [0] if given.first else given.shapes and list(map(int, given.shapes.split(",")))
    for threads in map(int, given.threads.split(",")):
        for name in given.only.split(","):
            for number, sizes in enumerate(BOUNDS[name][1]):
                if not numbers or number in numbers:
                    yield name, sizes, threads


def read(files: Sequence[Path]) -> list[dict[str, Any]]:
    """Rows of earlier runs; the last of each kernel, sizes and threads."""
    rows = {}
    for file in files:
        for text in file.read_text(encoding="utf-8").splitlines() if file.is_file() else ():
            row = json.loads(text)
            rows[row["kernel"], tuple(row["sizes"]), row["threads"]] = row
    return list(rows.values())


def verdict(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Says whether all bounds are met, those of the rows and that of the mean over the best of the compilers."""
    met, best = all(row["met"] for row in rows), []
    for row in rows:
        others = [r[0] for n, r in row["ratios"].items() if n in _COMPILERS]
        best += [min(others)] if others and row["kernel"] != "product" else []
    if best:
        mean = float(np.exp(np.mean(np.log(best))))
        met &= mean >= _MEAN
        print(f"over the best of {', '.join(_COMPILERS)}: {mean:.2f}x (geometric mean of {len(best)}, bound {_MEAN})")
    print("all bounds met" if met else "some bounds are not met")
    return met


def main() -> int:
    """Runs what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", default="1")
    parser.add_argument("--only", default=",".join(BOUNDS))
    parser.add_argument("--shapes", default="", help="numbers of shapes, from 0; all without it")
    parser.add_argument("--peers", default="", help="of inductor and numba")
    parser.add_argument("--jax", default="", metavar="PYTHON", help="the Python of an environment with JAX")
    parser.add_argument("--cpu", action="store_true", help="time of the thread's own clock: one thread, no --jax")
    parser.add_argument("--first", action="store_true", help="only the first shape of each")
    parser.add_argument("--out", type=Path, help="rows are added to it, and those in it are not measured again")
    parser.add_argument("--join", type=Path, nargs="+", metavar="FILE", help="print rows that were measured in pieces")
    given = parser.parse_args()
    if given.join:
        rows = read(given.join)
        print("\n".join(map(line, rows)))
        return 0 if verdict(rows) else 1
    if given.cpu and (given.jax or given.threads != "1"):
        parser.error("--cpu is the clock of one thread of this process: neither --jax nor --threads")
    keep_memory()
    known = {(r["kernel"], tuple(r["sizes"]), r["threads"]) for r in read([given.out] if given.out else [])}
    rows = []
    for name, sizes, threads in pieces(given):
        if (name, sizes, threads) in known:
            continue
        rows.append(one(name, sizes, threads, given))
        print(line(rows[-1]), flush=True)
        if given.out:
            with given.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(rows[-1]) + "\n")
    print(f"environment: {json.dumps(environment())}")
    return 0 if verdict(rows) else 1


if __name__ == "__main__":
    sys.exit(main())
