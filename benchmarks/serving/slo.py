"""Whether promises hold under load: `python benchmarks/serving/slo.py WORK [minilm|mlp] [--goal MILLISECONDS]`.

An open loop of Poisson arrivals (the generator runs on the same cores), each request with its goal as its `timeout`.
Capacity is what MLPerf's Server scenario reports: the largest rate at which 99 % of all requests are answered within
the goal, found by halving between nothing and what a closed loop of 64 connections gets, which is printed beside it;
with `--closed` it is the closed loop's itself, which is harder: that load leaves the generator little to do.

- at 80 % of capacity, at least 99 % of the admitted requests are answered within the goal;
- at 120 %, the goodput (answered within the goal) is at least 75 % of capacity;
- a burst of one second at ten times the rate before it (`--base`, half of capacity): the goodput of that second is at
  least 75 % of capacity, and requests due later than 2 s after it are served as before it. Of several bursts
  (`--bursts`) the median counts; what comes after has to be served after each.

Exits 1 where one of these is missed. A run in which the generator itself was late is void.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

import numpy as np
from load import Open, arrivals, poisson
from runtime import CORES
from servers import Server, bundle, during, portolan, say
from workloads import Workload, make

GOALS = {"minilm": 0.25, "mlp": 0.05}
BEFORE, BURST, RECOVERY, AFTER = 5.0, 1.0, 2.0, 8.0
#: Rates that are tried for the capacity: it is known to a 64th of the closed loop's.
HALVINGS = 6


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("name", nargs="?", default="minilm", choices=GOALS)
    parser.add_argument("--goal", type=float, help="of the p99, in milliseconds")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each steady load")
    parser.add_argument("--base", type=float, default=0.5, help="load before the burst, as a share of capacity")
    parser.add_argument("--bursts", type=int, default=5, help="how many are sent")
    parser.add_argument("--closed", action="store_true", help="take the closed loop's rate for the capacity")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    goal = given.goal / 1e3 if given.goal else GOALS[given.name]
    work = make(given.name, given.work)
    with portolan(bundle(work, given.work), work.name, "--replicas", f"{CORES}..{CORES}") as server:
        most = closed_loop(server, work)
        capacity = most if given.closed else sustained(server, work, most, goal, given.seconds, given.seed + 10)
        told = f"{work.name}: capacity {capacity:.0f}/s within {goal * 1e3:.0f} ms"
        print(f"{told}, {capacity / most:.0%} of a closed loop's {most:.0f}/s", flush=True)
        missed = steady(server, work, capacity, goal, given.seconds, given.seed)
        missed += overload(server, work, capacity, goal, given.seconds, given.seed + 1)
        seeds = range(given.seed + 2, given.seed + 2 + given.bursts)
        missed += bursts(server, work, capacity * given.base, capacity, goal, seeds)
    return int(missed > 0)


def closed_loop(server: Server, work: Workload) -> float:
    """Requests answered per second in a closed loop without deadlines."""
    body, headers = work.body(binary=True)
    return during(server, body, headers, 64, 10.0).rate


def sustained(server: Server, work: Workload, most: float, goal: float, seconds: float, seed: int) -> float:
    """The largest rate below `most` at which 99 % of what is sent is answered within the goal."""
    low, high = 0.0, most
    for step in range(HALVINGS):
        rate = (low + high) / 2
        found, behind = outcome(server, work, goal, arrivals(rate, seconds, seed + step))
        held = behind <= goal / 4 and found.good(goal) >= 0.99 * len(found.due)
        low, high = (rate, high) if held else (low, rate)
    if not low:
        raise SystemExit("void: no rate that was tried can be held")
    return low


def steady(server: Server, work: Workload, capacity: float, goal: float, seconds: float, seed: int) -> int:
    found = send(server, work, goal, arrivals(0.8 * capacity, seconds, seed))
    admitted, sent = found.admitted(), len(found.due)
    share = found.good(goal) / max(admitted, 1)
    refused = 1 - admitted / sent
    line = f"80 %: {share:.2%} of {admitted} admitted within the goal, p99 {found.p99() * 1e3:.0f} ms"
    return say(f"{line}, {refused:.1%} refused; bound 99 %", share >= 0.99)


def overload(server: Server, work: Workload, capacity: float, goal: float, seconds: float, seed: int) -> int:
    found = send(server, work, goal, arrivals(1.2 * capacity, seconds, seed))
    rate = found.good(goal) / seconds
    late = found.admitted() - found.good(goal)
    line = f"120 %: goodput {rate:.0f}/s, {rate / capacity:.1%} of capacity, p99 {found.p99() * 1e3:.0f} ms"
    return say(f"{line}, {late} answered late; bound 75 %", rate >= 0.75 * capacity)


def bursts(server: Server, work: Workload, base: float, capacity: float, goal: float, seeds: range) -> int:
    end = BEFORE + BURST
    found = [burst(server, work, base, goal, seed) for seed in seeds]
    during = [one.window(BEFORE, end) for one in found]
    rates = sorted(one.good(goal) / BURST / capacity for one in during)
    late = sum(one.admitted() - one.good(goal) for one in during)
    line = f"10x burst: goodput {np.median(rates):.1%} of capacity ({rates[0]:.1%} to {rates[-1]:.1%}, n={len(rates)})"
    missed = say(f"{line}, {late} answered late; bound 75 %", float(np.median(rates)) >= 0.75)
    was = [share(one.window(0, BEFORE), goal) for one in found]
    now = [share(one.window(end + RECOVERY, end + RECOVERY + AFTER), goal) for one in found]
    held = all(after >= min(before, 0.99) for before, after in zip(was, now, strict=True))
    return missed + say(f"2 s after it: {min(now):.2%} within the goal at the least, {min(was):.2%} before it", held)


def burst(server: Server, work: Workload, base: float, goal: float, seed: int) -> Open:
    parts, begin = [], 0.0
    for i, (seconds, rate) in enumerate(((BEFORE, base), (BURST, 10 * base), (RECOVERY + AFTER, base))):
        parts.append(begin + arrivals(rate, seconds, 10 * seed + i))
        begin += seconds
    return send(server, work, goal, np.concatenate(parts))


def share(part: Open, goal: float) -> float:
    """What was answered within the goal, of all that was sent."""
    return part.good(goal) / max(len(part.due), 1)


def send(server: Server, work: Workload, goal: float, due: np.ndarray) -> Open:
    found, behind = outcome(server, work, goal, due)
    if behind > goal / 4:
        raise SystemExit("void: the load generator could not keep up")
    return found


def outcome(server: Server, work: Workload, goal: float, due: np.ndarray) -> tuple[Open, float]:
    """What became of requests with their goal as their deadline, and by how many seconds the generator was late."""
    body, headers = work.body(binary=True, timeout_us=int(goal * 1e6))
    path = server.url.partition(str(server.port))[2]
    found = poisson("127.0.0.1", server.port, path, body, headers, due)
    behind = float(np.quantile(found.late, 0.99))
    statuses = dict(Counter(found.status.tolist()))
    print(f"  {len(due)} requests, statuses {statuses}, generator late {behind * 1e3:.1f} ms", flush=True)
    return found, behind


if __name__ == "__main__":
    sys.exit(main())
