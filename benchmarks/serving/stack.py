"""What one request costs, beside other servers: `python benchmarks/serving/stack.py WORK [--peers ENVIRONMENTS]`.

The model is the identity on float32 [1, 16], so only the stack is measured: 16 connections, the same model file and
tensors for all. The number is CPU microseconds per request of the server's whole process tree. Peers (environments made
by `peers.sh`) run one after another with ours between them, and each is compared with ours before and after it. All
speak the JSON of the Open Inference Protocol, or take its body; ours is measured in the binary encoding too.

Exits 1 where a bound is missed: ours at most 50 us in both encodings; MLServer at least 4 times, LitServe at least 6
times as much; Ray Serve and KServe's server more than ours.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

from load import closed
from servers import PEERS, Server, bundle, peer, portolan, say
from workloads import Workload, make

BOUND = 50.0
TIMES = {"mlserver": 4.0, "litserve": 6.0, "ray": 1.0, "kserve": 1.0}
CONNECTIONS = 16


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--peers", type=Path, help="folder of `peers.sh`")
    parser.add_argument("--only", nargs="*", default=PEERS, choices=PEERS)
    parser.add_argument("--without-ours", action="store_true", help="only look at the peers; no verdict")
    parser.add_argument("--seconds", type=float, default=4.0, help="of load per measurement")
    parser.add_argument("--max-batch", type=int, help="rows of our largest batch; 1: calls that share none")
    given = parser.parse_args()
    work = make("identity", given.work)
    ours = None if given.without_ours else bundle(work, given.work)
    flags = ["--max-batch", str(given.max_batch)] if given.max_batch else []
    rows = measure(work, ours, flags, given.peers, given.only if given.peers else [], given.seconds)
    return 0 if given.without_ours else verdict(rows)


def measure(
    work: Workload, ours: Path | None, flags: list[str], environments: Path | None, names: list[str], seconds: float
) -> dict[str, list[float]]:
    """CPU us per request by server and encoding, in the order in which they ran."""
    rows: dict[str, list[float]] = {}

    def us() -> None:
        if ours is not None:
            with portolan(ours, work.name, "--replicas", "1..1", *flags) as server:
                for encoding in ("json", "binary"):
                    rows.setdefault(encoding, []).append(cost(server, work, encoding == "binary", seconds))

    us()
    for name in names:
        assert environments is not None
        with peer(name, environments, work.path) as server:
            rows[name] = [cost(server, work, False, seconds)]
        us()
    return rows


def cost(server: Server, work: Workload, binary: bool, seconds: float) -> float:
    """CPU us per request, after a warm-up; the first answer is checked."""
    body, headers = work.body(binary)
    check(server.ask(body, headers), work, binary)
    closed(server.url, body, headers, CONNECTIONS, min(2.0, seconds))
    before, begin = server.cpu(), time.monotonic()
    found = closed(server.url, body, headers, CONNECTIONS, seconds)
    used, passed = server.cpu() - before, time.monotonic() - begin
    if found.errors:
        raise SystemExit(f"{server.name} refused {found.errors} of {found.answered} requests:\n{server.tail()}")
    each = used / found.answered * 1e6
    encoding = "binary" if binary else "json"
    print(
        f"{server.name:10} {encoding:7} {each:8.1f} us per request  {found.rate:8.0f} requests/s  "
        f"p50 {found.p50 * 1e3:.2f} ms  p99 {found.p99 * 1e3:.2f} ms  {used / passed:.2f} cores  "
        f"{server.memory() / 2**20:.0f} MiB  {len(server.pids())} processes",
        flush=True,
    )
    return each


def check(answer: bytes, work: Workload, binary: bool) -> None:
    """That the server answered what the identity answers."""
    sent = work.inputs["x"]
    if binary:
        same = answer.endswith(sent.tobytes())
    else:
        data = json.loads(answer)["outputs"][0]["data"]
        same = len(data) == sent.size and max(abs(a - float(b)) for a, b in zip(data, sent.ravel(), strict=True)) < 1e-6
    if not same:
        raise SystemExit(f"a wrong answer: {answer[:300]!r}")


def verdict(rows: dict[str, list[float]]) -> int:
    missed = 0
    for encoding in ("json", "binary"):
        value = statistics.median(rows[encoding])
        spread = f"{min(rows[encoding]):.1f} to {max(rows[encoding]):.1f}, n={len(rows[encoding])}"
        missed += say(f"{encoding}: {value:.1f} us ({spread}), bound {BOUND:.0f}", value <= BOUND)
    for i, (name, values) in enumerate((n, v) for n, v in rows.items() if n in TIMES):
        beside = rows["json"][i : i + 2]  # ours ran before and after it
        ratio = values[0] / statistics.mean(beside)
        missed += say(
            f"{name}: {values[0]:.0f} us, {ratio:.1f} times ours beside it, bound {TIMES[name]:g}", ratio > TIMES[name]
        )
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
