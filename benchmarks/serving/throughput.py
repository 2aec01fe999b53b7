"""What a server leaves of the runtime: `python benchmarks/serving/throughput.py WORK [minilm] [mlp] [--rounds 2]`.

MiniLM (128 tokens) and a 256-1024-1024-256 MLP on ONNX Runtime, one thread per instance and one instance per core.
First the runtime alone, one process per core, at each batch size, which says which is best. Then in turns: the runtime
at that batch, the server under a closed loop of 64 connections with binary tensors, and the runtime once more. The best
of several noisy readings is better than it will be again, so what says which is best is not what is compared with.
The share is the runtime's CPU per item over the server's CPU per request (its whole process tree), since the load
generator runs on the same cores; for MiniLM, whose load costs nothing beside it, also the share of items per second.

Exits 1 where a bound is missed: MiniLM 90 % in both, the MLP 50 % of the CPU.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path

from runtime import CORES, Alone, alone
from servers import During, Server, bundle, during, portolan, say
from workloads import Workload, make

BOUNDS = {"minilm": 0.9, "mlp": 0.5}
BATCHES = {"minilm": (1, 2, 4, 8, 16), "mlp": (1, 8, 16, 32, 64)}
CONNECTIONS = 64


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("names", nargs="*", choices=[*BOUNDS, []])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=5.0, help="of load per round")
    given = parser.parse_args()
    missed = 0
    for name in given.names or BOUNDS:
        work = make(name, given.work)
        found = told(work, alone(work, BATCHES[name], given.seconds / len(BATCHES[name])))
        best = tuple({min(found, key=lambda a: a.us).batch, max(found, key=lambda a: a.rate).batch})
        shares = [measure(work, bundle(work, given.work), best, given.seconds) for _ in range(given.rounds)]
        cpu, rate = (statistics.median(column) for column in zip(*shares, strict=True))
        bound = BOUNDS[name]
        each = ", ".join(f"{c:.0%}" for c, _ in shares)
        missed += say(f"{name}: {cpu:.1%} of the runtime's CPU ({each}), bound {bound:.0%}", cpu >= bound)
        if name == "minilm":
            missed += say(f"{name}: {rate:.1%} of its items per second, bound {bound:.0%}", rate >= bound)
    return int(missed > 0)


def measure(work: Workload, packed: Path, batches: tuple[int, ...], seconds: float) -> tuple[float, float]:
    """One round: the server's share of the best batch, in CPU and in items per second."""
    before = told(work, alone(work, batches, seconds / 2))
    with portolan(packed, work.name, "--replicas", f"{CORES}..{CORES}") as server:
        served = serve(server, work, seconds)
    after = told(work, alone(work, batches, seconds / 2))
    pairs = list(zip(before, after, strict=True))
    us = min(statistics.mean((a.us, b.us)) for a, b in pairs)
    rate = max(statistics.mean((a.rate, b.rate)) for a, b in pairs)
    return us / served.us, served.rate / rate


def told(work: Workload, found: list[Alone]) -> list[Alone]:
    """Prints what the runtime needs alone."""
    for a in found:
        print(f"{work.name:8} alone, batch {a.batch:3}  {a.us:9.1f} us per item     {a.rate:8.0f} items/s", flush=True)
    return found


def serve(server: Server, work: Workload, seconds: float) -> During:
    """What the server does with one request after another."""
    body, headers = work.body(binary=True)
    server.ask(body, headers)
    found = during(server, body, headers, CONNECTIONS, seconds)
    print(
        f"{work.name:8} served            {found.us:9.1f} us per request  {found.rate:8.0f} items/s  "
        f"the front {found.front:.1f} us, {found.batch:.1f} rows in a batch",
        flush=True,
    )
    return found


if __name__ == "__main__":
    sys.exit(main())
