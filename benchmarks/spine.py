"""The spine's claims about speed: `python benchmarks/spine.py ZOO [NAME...] [--fidelity] [--budget 5min]`.

ZOO is the folder that `python benchmarks/models.py ZOO` fills. For each model, in one interleaved race over fresh
processes: what `optimize` chose, against ONNX Runtime's defaults, OpenVINO's in f32, and torch's AOTInductor where
there is a torch program. The exact recipe (outputs within 1e-3 of the original's RMS) must not be slower than the best.
With --fidelity the limit is `cosine >= 0.99`, and the geometric mean of the speed-ups over ONNX Runtime's defaults on
MiniLM, ResNet-50 and BERT must be at least 2.2. Exits 1 where a claim fails. Results go to ZOO/spine.json as they come.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import portolan

RIVALS = ("onnxruntime", "openvino", "torch")
FIDELITY = ("minilm", "resnet50", "bert")
GOAL = 2.2


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("zoo", type=Path)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--fidelity", action="store_true", help="allow cosine >= 0.99 instead of exact outputs")
    parser.add_argument("--budget", default="5min", help="of each search and each race")
    given = parser.parse_args()
    found = {path.stem: path for path in sorted([*given.zoo.glob("*.onnx"), *given.zoo.glob("light/*.onnx")])}
    names = given.names or ([*FIDELITY] if given.fidelity else ["digits", *found])
    rows = []
    for name in names:
        begin = time.monotonic()
        rows.append(measure(name, given.zoo, found.get(name), given.fidelity, given.budget))
        show(rows[-1], time.monotonic() - begin)
        keep(given.zoo / "spine.json", rows[-1])
    return verdict(rows, given.fidelity)


def measure(name: str, zoo: Path, path: Path | None, fidelity: bool, budget: str) -> dict[str, Any]:
    """One model: the search, a bundle of what it chose, and the race against the rivals."""
    mode = "fidelity" if fidelity else "exact"
    program, data = zoo / f"{name}.pt2", zoo / f"{name}.npz"
    source = "demo:digits" if name == "digits" else str(program if program.is_file() else path)
    samples = str(data) if data.is_file() else None
    goals = ["min latency_p50", "cosine >= 0.99" if fidelity else "max_rel_error <= 0.001"]
    folder = zoo / f"study-{mode}-{name}"
    study = portolan.optimize(source, goals=goals, data=samples, study=folder, budget=budget)
    bundle = zoo / f"{mode}-{name}.portolan"
    portolan.pack(folder, out=bundle, force=True)
    asked = [f"{source}@{rival}" for rival in RIVALS if rival != "torch" or source.endswith(".pt2")]
    # The bundle first: it is what the others are compared with, on its golden inputs.
    raced = portolan.bench(bundle, *asked, budget=budget, native=True)
    ours = raced.arms[0]["metrics"]["latency_p50"]
    rivals = {arm["name"].rpartition("@")[2]: arm for arm in raced.arms[1:]}
    times = {rival: arm["metrics"]["latency_p50"]["value"] for rival, arm in rivals.items() if arm["metrics"]}
    best = min(times, key=lambda rival: times[rival])
    against = {r["a"].rpartition("@")[2]: r for r in raced.ratios}
    quality = study.best.to_json()["metrics"]
    return {
        "name": name,
        "mode": mode,
        "chosen": study.best.to_json()["label"],
        "quality": {name: quality[name]["value"] for name in ("cosine", "max_rel_error") if name in quality},
        "ms": ours["value"],
        "rivals": times,
        "failed": {rival: arm["reason"] for rival, arm in rivals.items() if not arm["metrics"]},
        "best_rival": best,
        "ratio": against[best],
        "over_onnxruntime": against["onnxruntime"]["ratio"],
        "noise": raced.noise,
        "first": study.to_json()["first_seconds"],
        "seconds": study.to_json()["seconds"],
    }


def show(row: dict[str, Any], seconds: float) -> None:
    """One line per model, as it comes."""
    rivals = "  ".join(f"{name} {ms:.3g} ms" for name, ms in row["rivals"].items())
    ratio, noise = row["ratio"], row["noise"]
    interval = f"{ratio['ratio']:.3f} [{ratio['lo']:.3f}, {ratio['hi']:.3f}], {ratio['verdict']}"
    print(f"{row['name']:22} {row['ms']:8.3g} ms  {row['chosen']['passes']} on {row['chosen']['backend']}")
    for rival, reason in row["failed"].items():
        print(f"{'':22} {rival} has no answer that counts: {reason}")
    print(f"{'':22} rivals: {rivals}; A/A {noise['aa_ratio']:.3f} [{noise['lo']:.3f}, {noise['hi']:.3f}]")
    print(f"{'':22} {row['best_rival']} takes {interval}; {row['over_onnxruntime']:.2f}x over onnxruntime", end="; ")
    print(f"first answer {row['first']} s, search {row['seconds']} s, all {seconds:.0f} s", flush=True)


def keep(path: Path, row: dict[str, Any]) -> None:
    """Adds the row to the file of all results, in place of an older one of the same model and mode."""
    rows = json.loads(path.read_text()) if path.is_file() else []
    rows = [r for r in rows if (r["name"], r["mode"]) != (row["name"], row["mode"])]
    path.write_text(json.dumps([*rows, row], indent=1))


def verdict(rows: list[dict[str, Any]], fidelity: bool) -> int:
    """The claim, and whether it holds."""
    slower = [row["name"] for row in rows if row["ratio"]["verdict"] == "faster"]
    print(f"slower than the best rival beyond the noise: {', '.join(slower) or 'none'} of {len(rows)}")
    failed = bool(slower)
    if fidelity:
        gains = {row["name"]: row["over_onnxruntime"] for row in rows if row["name"] in FIDELITY}
        mean = math.exp(sum(map(math.log, gains.values())) / len(gains)) if gains else math.nan
        print(f"geometric mean over onnxruntime on {', '.join(gains)}: {mean:.2f}x (at least {GOAL})")
        failed |= not mean >= GOAL
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
