"""How long `portolan --help` takes, beside Python alone: medians of interleaved runs.

    python benchmarks/startup.py [--runs 30] [--limit 150]

Exits with 1 when the median is above the limit in milliseconds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time

ARMS = {
    "python -c pass": ["-c", "pass"],
    "import click": ["-c", "import click"],
    "portolan --help": ["-c", "from portolan.cli import main; main()", "--help"],
    "portolan optimize --help": ["-c", "from portolan.cli import main; main()", "optimize", "--help"],
}


def once(args: list[str]) -> float:
    """Milliseconds from start to exit of one interpreter."""
    begin = time.perf_counter()
    subprocess.run([sys.executable, *args], stdout=subprocess.DEVNULL, check=True)
    return (time.perf_counter() - begin) * 1000


def main() -> int:
    """Measures, prints one JSON object and judges."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--limit", type=float, default=150.0)
    given = parser.parse_args()
    for args in ARMS.values():
        once(args)  # writes the byte code
    times: dict[str, list[float]] = {name: [] for name in ARMS}
    for _ in range(given.runs):
        for name, args in ARMS.items():
            times[name].append(once(args))
    medians = {name: round(statistics.median(found), 1) for name, found in times.items()}
    bare = medians["python -c pass"]
    result = {
        "unit": "ms",
        "runs": given.runs,
        "median": medians,
        "min": {name: round(min(found), 1) for name, found in times.items()},
        "ratio_to_bare_python": {name: round(value / bare, 2) for name, value in medians.items()},
        "limit": given.limit,
        "ok": medians["portolan --help"] <= given.limit,
    }
    print(json.dumps(result, indent=2))
    return 0 if result["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
