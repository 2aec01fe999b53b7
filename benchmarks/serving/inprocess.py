"""The runtime alone: `inprocess.py MODEL SECONDS SAMPLES.npz COPIES BATCH...` prints what one item costs.

It runs as many inputs in turn as there are copies: one alone is in the cache each time, which no server's input is.
One process per core runs it at once, each with one thread, as replicas do: what they get is what a server could get at
most. Prints one JSON object: {"BATCH": [CPU us per item, items per second]}.
"""

from __future__ import annotations

import itertools
import json
import sys
import time

import numpy as np

from portolan.core.silence import silence


def main() -> None:
    path, seconds, samples, copies, *batches = sys.argv[1:]
    silence()
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    with np.load(samples) as archive:
        rows = {name: archive[name] for name in archive.files}
    found = {}
    for batch in map(int, batches):
        feeds = [{name: np.repeat(row, batch, axis=0) for name, row in rows.items()} for _ in range(int(copies))]
        turn = itertools.cycle(feeds)
        session.run(None, feeds[0])
        count, begin, cpu = 0, time.perf_counter(), time.process_time()
        while time.perf_counter() < begin + float(seconds):
            session.run(None, next(turn))
            count += batch
        found[batch] = [(time.process_time() - cpu) / count * 1e6, count / (time.perf_counter() - begin)]
    print(json.dumps(found))


if __name__ == "__main__":
    main()
