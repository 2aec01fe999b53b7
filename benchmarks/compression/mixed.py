"""Mixed precision against uniform and random ones at equal bytes: `python benchmarks/compression/mixed.py MODELS`.

MODELS is a folder that `benchmarks/models.py` filled with `minilm`. For a number of stored bytes, uniform 4 bits
reach it by the size of their groups; `mixed_precision` by giving layers 8 bits or 4, in small or large groups, as
sensitive as they are; the random baselines by chance, from the same candidates. All round with GPTQ on the same
calibration data. Exits 1 where mixed precision is not the closest to the untouched model on held-out samples.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from lowbits import Judge, line, smaller

from portolan.core.protos import weight_bytes
from portolan.passes._calibration import usable
from portolan.passes._graphs import open_graph, save_graph
from portolan.passes._lowbits import fitted, opened_for_layers
from portolan.passes._round import Bits
from portolan.passes._weights import layers, store
from portolan.passes.mixed_precision import mixed_precision
from portolan.passes.quantize import quantize

SEEDS = (1, 2, 3)
#: Bits and groups, the fewest bytes first: what `mixed_precision` chooses from.
CANDIDATES: tuple[tuple[Bits, int], ...] = ((4, 128), (4, 32), (8, 128))


def drawn(judge: Judge, folder: Path, seed: int, most: int) -> Path:
    """A random one of the candidates per layer, of at most so many bytes of constants and hardly fewer."""
    original, graph = opened_for_layers(judge.model)
    chosen = layers(graph)
    rng = np.random.default_rng(seed)
    room = most - (weight_bytes(graph) - sum(4 * layer.size for layer in chosen))
    plan = dict.fromkeys(chosen, CANDIDATES[0])
    used = sum(layer.stored(*plan[layer]) for layer in chosen)
    for fill in (False, True):  # first what chance says, then what is left is spent
        for i in rng.permutation(len(chosen)):
            layer = chosen[i]
            wanted = CANDIDATES[::-1] if fill else [CANDIDATES[rng.integers(len(CANDIDATES))]]
            for candidate in wanted:
                after = used + layer.stored(*candidate) - layer.stored(*plan[layer])
                if used < after <= room:
                    plan[layer], used = candidate, after
    runs = usable(judge.model, judge.calibration)
    codes = []
    for group in {group: None for _, group in CANDIDATES}:
        part = {layer: bits for layer, (bits, size) in plan.items() if size == group}
        codes += fitted(graph, part, group, "gptq", runs, judge.model.name)
    folder.mkdir()
    return save_graph(store(graph, codes, "random"), original, judge.model, folder).path


def main() -> int:
    """Prints the table; 1 where mixed precision is not the best at equal bytes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", type=Path)
    parser.add_argument("--samples", type=int, default=256, help="held-out samples to judge on")
    given = parser.parse_args()
    judge, lost = Judge.of(given.models, "minilm", given.samples), 0
    print(f"{'':44s} smaller   cosine   lowest        made in")
    with tempfile.TemporaryDirectory() as text:
        scratch = Path(text)
        for group in (64, 32):
            start = time.perf_counter()
            uniform = judge.applied(scratch / f"uniform{group}", quantize, mode="weights", bits=4, group=group)
            cosines = judge.cosines(uniform.path)
            line(
                f"uniform 4 bits, group {group}",
                smaller(judge.model.path, uniform.path),
                cosines,
                time.perf_counter() - start,
            )
            most = weight_bytes(open_graph(uniform))
            ratio = weight_bytes(opened_for_layers(judge.model)[1]) / most
            start = time.perf_counter()
            mixed = judge.applied(scratch / f"mixed{group}", mixed_precision, smaller=ratio)
            seconds = time.perf_counter() - start
            best = judge.cosines(mixed.path)
            line("mixed precision", smaller(judge.model.path, mixed.path), best, seconds)
            others = [float(cosines.mean())]
            for seed in SEEDS:
                start = time.perf_counter()
                path = drawn(judge, scratch / f"random{group}-{seed}", seed, most)
                cosines = judge.cosines(path)
                line(f"random {seed}", smaller(judge.model.path, path), cosines, time.perf_counter() - start)
                others.append(float(cosines.mean()))
            lost += float(best.mean()) <= max(others)
    print("mixed precision is the closest at equal bytes" if not lost else f"not the closest in {lost} of 2")
    return int(lost > 0)


if __name__ == "__main__":
    sys.exit(main())
