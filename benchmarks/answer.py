"""How soon `optimize` answers: `python benchmarks/answer.py ZOO [--budget 5min]`.

Runs the command on MiniLM (`python benchmarks/models.py ZOO minilm`) in an empty folder, as a user would, with
`cosine >= 0.99`: the time to the first usable answer (at most 20 s), the time of the whole (at most the budget and one
race round), and the time of the repeated command, which answers from the ledger (median of 5, at most 1.5 s).
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("zoo", type=Path)
    parser.add_argument("--budget", default="5min")
    given = parser.parse_args()
    zoo = given.zoo.resolve()
    command = [
        *(sys.executable, "-m", "portolan", "optimize", str(zoo / "minilm.pt2"), "--data", str(zoo / "minilm.npz")),
        *("-g", "cosine >= 0.99", "-g", "min latency_p50", "--budget", given.budget, "--json", "--quiet"),
    ]
    with tempfile.TemporaryDirectory() as folder:
        whole, answer = timed(command, Path(folder))
        again = [timed(command, Path(folder)) for _ in range(5)]
    repeated = statistics.median(seconds for seconds, _ in again)
    same = all(found == answer for _, found in again)
    print(f"first usable answer {answer['first_seconds']:.1f} s (at most 20)")
    print(f"final answer {whole:.1f} s with a budget of {given.budget}: {answer['best']['label']}")
    print(f"repeated command {repeated:.2f} s (median of 5, at most 1.5), the same answer: {same}")
    return int(not (answer["first_seconds"] <= 20 and repeated <= 1.5 and same))


def timed(command: list[str], folder: Path) -> tuple[float, dict[str, object]]:
    """Seconds of one run of the whole process, and the object it printed."""
    begin = time.perf_counter()
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    return time.perf_counter() - begin, json.loads(done.stdout)


if __name__ == "__main__":
    sys.exit(main())
