"""Mixed precision against uniform and random ones at equal bytes: `python benchmarks/compression/mixed.py MODELS`.

MODELS is a folder that `benchmarks/models.py` filled with `minilm`. For a number of stored bytes, uniform 4 bits
reach it by the size of their groups; `mixed_precision` by giving layers 8, 4 or 2 bits by sensitivity; the random
baselines give layers those bits by chance. All round with GPTQ on the same calibration data. Exits 1 where mixed
precision is not the closest to the untouched model on held-out samples.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from lowbits import Judge, line, smaller

from portolan.passes._calibration import usable
from portolan.passes._graphs import open_graph, save_graph, weight_bytes
from portolan.passes._lowbits import fitted, opened
from portolan.passes._round import Bits
from portolan.passes._weights import Layer, layers, store
from portolan.passes.mixed_precision import mixed_precision
from portolan.passes.quantize import quantize

SEEDS = (1, 2, 3)


def drawn(judge: Judge, folder: Path, seed: int, most: int, group: int) -> Path:
    """A random choice of 8, 4 and 2 bits per layer, of at most so many bytes of constants and hardly fewer."""
    original, graph = opened(judge.model)
    chosen = layers(graph)
    rng = np.random.default_rng(seed)
    room = most - (weight_bytes(graph) - sum(4 * layer.size for layer in chosen))
    plan: dict[Layer, Bits] = dict.fromkeys(chosen, 4 if sum(x.stored(4, group) for x in chosen) <= room else 2)
    used = sum(x.stored(b, group) for x, b in plan.items())
    for i in rng.permutation(4 * len(chosen)):  # each layer four times: as often more bits as fewer
        layer, up = chosen[i % len(chosen)], bool(i // len(chosen) % 2)
        bits: Bits = {8: 8, 4: 8, 2: 4}[plan[layer]] if up else {8: 4, 4: 2, 2: 2}[plan[layer]]  # type: ignore[assignment]
        after = used + layer.stored(bits, group) - layer.stored(plan[layer], group)
        if after <= room:
            plan[layer], used = bits, after
    for i in rng.permutation(len(chosen)):  # what is left is spent
        for bits in (8, 4):
            after = used + chosen[i].stored(bits, group) - chosen[i].stored(plan[chosen[i]], group)
            if plan[chosen[i]] < bits and after <= room:
                plan[chosen[i]], used = bits, after
                break
    codes = fitted(graph, plan, group, "gptq", usable(judge.model, judge.calibration), judge.model.name)
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
            ratio = weight_bytes(opened(judge.model)[1]) / most
            start = time.perf_counter()
            mixed = judge.applied(scratch / f"mixed{group}", mixed_precision, smaller=ratio, lowest=2)
            seconds = time.perf_counter() - start
            best = judge.cosines(mixed.path)
            line("mixed precision", smaller(judge.model.path, mixed.path), best, seconds)
            others = [float(cosines.mean())]
            for seed in SEEDS:
                start = time.perf_counter()
                path = drawn(judge, scratch / f"random{group}-{seed}", seed, most, 128)
                cosines = judge.cosines(path)
                line(f"random {seed}", smaller(judge.model.path, path), cosines, time.perf_counter() - start)
                others.append(float(cosines.mean()))
            lost += float(best.mean()) <= max(others)
    print("mixed precision is the closest at equal bytes" if not lost else f"not the closest in {lost} of 2")
    return int(lost > 0)


if __name__ == "__main__":
    sys.exit(main())
