"""Every benchmark whose figures the docs quote, one after another: `python benchmarks/run.py [--quick]`.

Takes hours, so run it on an idle machine; `--quick` gives each search a minute. Models are made once, in .bench. JAX is
left out, and so are the servers that ours is compared with (`serving/peers.sh` makes their environments). Exits with 1
if any claim is missed.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
WORK = HERE.parent / ".bench"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    budget = ["--budget", "1min" if parser.parse_args().quick else "5min"]
    zoo = str(WORK / "zoo")
    runs = [
        ["startup.py"],
        ["race.py"],
        ["search.py", *map(str, sorted((HERE / "tables").glob("*.jsonl")))],
        *([["models.py", zoo]] if not (WORK / "zoo" / "minilm.onnx").is_file() else []),
        ["answer.py", zoo, *budget],
        ["spine.py", zoo, *budget],
        ["spine.py", zoo, "--fidelity", *budget],
        *([f"compression/{name}.py", zoo] for name in ("int8", "lowbits", "mixed", "shapes", "recover")),
        ["compression/digits.py"],
        ["kernels/run.py", "--threads", "1,2", "--peers", "inductor,numba"],
        *([f"serving/{name}.py", str(WORK / "serving")] for name in ("stack", "throughput", "slo", "images")),
    ]
    failed = []
    for run in runs:
        print(f"\n$ python benchmarks/{' '.join(run)}", flush=True)
        if subprocess.run([sys.executable, str(HERE / run[0]), *run[1:]], check=False).returncode:
            failed.append(run[0])
    print(f"\nmissed: {', '.join(failed) or 'nothing'}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
