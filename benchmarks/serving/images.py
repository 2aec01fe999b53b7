"""What carrying an image costs: `python benchmarks/serving/images.py WORK [--rounds 3]`.

Images of 224x224x3 in float32 (602,112 bytes) as binary tensors, 8 connections, a model that does next to nothing
with them. The server's CPU per request (its whole process tree) less what the runtime alone needs for one, in turns;
alone, it has 8 images in turn too, since a server never finds the same one in its cache again.
Exits 1 if it is more than 100 us.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path

from load import closed
from runtime import alone
from servers import bundle, portolan, say
from workloads import make

BOUND = 100.0
CONNECTIONS = 8


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    work = make("image", given.work)
    packed, (body, headers), above = bundle(work, given.work), work.body(binary=True), []
    for _ in range(given.rounds):
        (own,) = alone(work, (1,), 2.0, processes=1, copies=CONNECTIONS)
        with portolan(packed, work.name, "--replicas", "1..1") as server:
            server.ask(body, headers)
            closed(server.url, body, headers, CONNECTIONS, 1.0)
            before = server.cpu()
            found = closed(server.url, body, headers, CONNECTIONS, 4.0)
            us = (server.cpu() - before) / found.answered * 1e6
        if found.errors:
            raise SystemExit(f"{found.errors} of {found.answered} requests were refused")
        above.append(us - own.us)
        print(f"alone {own.us:.1f} us, served {us:.1f} us ({found.rate:.0f}/s): {above[-1]:.1f} us above", flush=True)
    spread = f"{min(above):.0f} to {max(above):.0f}, n={len(above)}"
    middle = statistics.median(above)
    return say(f"{middle:.0f} us above the runtime ({spread}), bound {BOUND:.0f}", middle <= BOUND)


if __name__ == "__main__":
    sys.exit(main())
