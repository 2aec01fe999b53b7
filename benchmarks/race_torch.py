"""Torch as its users run it, for race_peers.py: `race_torch.py PROGRAM.pt2 eager|compile FOLDER`.

Reads a request per line, as JSON, and answers each: `{"run": i}` writes the outputs for the i-th feed of
FOLDER/feeds.npz to FOLDER/outputs.npz, `{"seconds": s}` runs for about so long and tells the milliseconds of each run.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch


def main() -> None:
    program, mode, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    answers = sys.stdout
    sys.stdout = sys.stderr
    module = torch.export.load(program).module()
    with np.load(folder / "feeds.npz") as arrays:
        named = {tuple(map(int, key.split("/"))): torch.from_numpy(arrays[key]) for key in arrays.files}
    count = 1 + max(i for i, _ in named)
    feeds = [[value for (i, _), value in sorted(named.items()) if i == feed] for feed in range(count)]
    call: Callable[..., Any] = torch.compile(module) if mode == "compile" else module
    with torch.no_grad():
        for line in sys.stdin:
            try:
                answer = reply(json.loads(line), call, feeds, folder)
            except Exception as error:  # whatever torch raises is told, and is the end of this arm
                answer = {"error": f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"}
            print(json.dumps(answer), file=answers, flush=True)


def reply(request: dict[str, Any], call: Callable[..., Any], feeds: list[list[Any]], folder: Path) -> dict[str, Any]:
    """The answer to one request."""
    if "run" in request:
        found = call(*feeds[request["run"]])
        values = found if isinstance(found, (tuple, list)) else [found]
        np.savez(folder / "outputs.npz", **{str(i): value.numpy() for i, value in enumerate(values)})
        return {}
    times: list[float] = []
    end = time.perf_counter() + request["seconds"]
    while not times or time.perf_counter() < end:
        begin = time.perf_counter_ns()
        call(*feeds[len(times) % len(feeds)])
        times.append((time.perf_counter_ns() - begin) / 1e6)
    return {"ms": times}


if __name__ == "__main__":
    main()
