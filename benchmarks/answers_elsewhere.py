"""Do real models answer alike on other processors? `python benchmarks/answers_elsewhere.py ZOO [TARGET...] [--write]`.

ZOO is the folder that `python benchmarks/models.py ZOO` fills; targets are those that `portolan target add` made, all
by default. MobileNetV2 and MiniLM run there on each backend that is ready and takes them, in f32 and in int8 that was
quantized for this machine, and are compared with the same file on ONNX Runtime here. Nothing is timed. Results go to
ZOO/elsewhere.json as they come, and what is there is not run again; `--write` puts the table into
docs/reference/answers-elsewhere.md. Exits 1 where f32 answers differ.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

import portolan
from portolan.core.target import Target
from portolan.errors import PortolanError
from portolan.targets import _added
from portolan.worker.environments import backends

MODELS = ("mobilenetv2", "minilm")
VARIANTS = ("f32", "int8")
#: Samples: an emulated processor takes up to a minute for one.
ROWS = 16
PAGE = Path(__file__).parents[1] / "docs" / "reference" / "answers-elsewhere.md"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("zoo", type=Path)
    parser.add_argument("targets", nargs="*", metavar="TARGET")
    parser.add_argument("--backend", action="append", help="only this backend; all that are ready without")
    parser.add_argument("--model", action="append", choices=MODELS, help="only this model")
    parser.add_argument("--numbers", action="append", choices=VARIANTS, help="only these")
    parser.add_argument(
        "--rows", type=int, default=ROWS, help=f"samples, of which some three quarters are compared; {ROWS}"
    )
    parser.add_argument("--write", action="store_true", help="write the table into the docs")
    given = parser.parse_args()
    kept = given.zoo / "elsewhere.json"
    rows: dict[str, Any] = json.loads(kept.read_text()) if kept.is_file() else {}
    for name in given.targets or ([] if given.write else _added.names()):
        target = _added.find(name)
        for backend in given.backend or ready(target):
            for model in given.model or MODELS:
                for variant in given.numbers or VARIANTS:
                    key = f"{name} {backend} {model} {variant}"
                    if key not in rows:
                        rows[key] = asked(given.zoo, model, variant, target, backend, given.rows)
                        kept.write_text(json.dumps(rows, indent=1))
                    print(key, rows[key].get("reason") or f"{rows[key]['error']:.2g}", flush=True)
    if given.write:
        PAGE.write_text(page([rows[key] for key in sorted(rows)]), encoding="utf-8")
    return int(any(row["variant"] == "f32" and not row["same"] for row in rows.values() if not row.get("reason")))


def ready(target: Target) -> list[str]:
    """The backends that run there."""
    return [n for n, b in backends(target, None).items() if b.probe(target).ready and n not in ("reference", "fake")]


def asked(zoo: Path, model: str, variant: str, target: Target, backend: str, count: int = ROWS) -> dict[str, Any]:
    """One model on one backend there, on `count` samples: how far its answers are from those here."""
    data = zoo / f"elsewhere-{model}-{count}.npz"
    if not data.is_file():
        with np.load(zoo / f"{model}.npz") as arrays:
            np.savez(data, **{key: arrays[key][:count] for key in arrays.files})
    path = zoo / f"{model}.onnx"
    if variant == "int8":
        path = zoo / f"elsewhere-{model}-int8.onnx"
        if not path.is_file():
            quantize = "quantize(mode=static, weight_type=s8)"
            portolan.compress(zoo / f"{model}.onnx", passes=[quantize], data=zoo / f"{model}.npz", out=path)
    row = {
        "target": target.id, "display": target.display or target.id, "model": model, "variant": variant,
        "backend": backend, "version": backends(target, [backend])[backend].probe(target).version,
        "date": datetime.now(UTC).date().isoformat(),
    }  # fmt: skip
    try:
        (arm,) = portolan.bench(path, data=data, target=target.id, backend=[backend]).arms
    except PortolanError as error:
        return row | {"reason": error.message}
    if arm.get("reason"):
        return row | {"reason": arm["reason"]}
    metrics: Mapping[str, Any] = arm["metrics"]
    found = {name: metrics[name]["value"] for name in ("agreement", "cosine") if name in metrics}
    found["n"] = metrics["max_rel_error"].get("n") or metrics.get("agreement", {}).get("n")
    return row | {"same": arm["same"], "error": metrics["max_rel_error"]["value"], **found}


def page(rows: list[dict[str, Any]]) -> str:
    """The reference page."""
    dates = sorted({row["date"] for row in rows})
    lines = [
        "<!-- Written by benchmarks/answers_elsewhere.py: run it with --write. -->", "",
        "# Answers on other processors", "",
        "The same file on an emulated processor and on ONNX Runtime here: the largest difference of an output over the",
        "outputs' root mean square, on MobileNetV2 (images, random weights) and MiniLM (sentences, trained). int8 is",
        "static, quantized for a processor with VNNI: a step of it is 4e-3, and where sums of products overflow the",
        "answers are others, which `portolan pack -t NAME` finds before it ships. What is in no table was not asked",
        "to the end: an emulated processor takes minutes for a sentence of MiniLM. Nothing is timed: see",
        "[targets that are not this machine](../guides/emulated-targets.md).", "",
        f"Found on {' and '.join(dates)} by `python benchmarks/answers_elsewhere.py ZOO --write`, with the targets of",
        "`portolan target add NAME --emulate KIND`; ZOO is made by `python benchmarks/models.py ZOO`.", "",
        "| target | backend | model | numbers | samples | largest difference | answers |",
        "|---|---|---|---|---|---|---|",
        *(_line(row) for row in rows if not row.get("reason")),
    ]  # fmt: skip
    if refused := [_refusal(row) for row in rows if row.get("reason")]:
        lines += [
            "",
            "## Not run",
            "",
            "| target | backend | model | numbers | why |",
            "|---|---|---|---|---|",
            *refused,
        ]
    return "\n".join(lines) + "\n"


def _line(row: Mapping[str, Any]) -> str:
    word = "as here" if row["same"] else "**change**"
    place = f"{row['display']} | {row['backend']} {row['version']} | {row['model']} | {row['variant']}"
    return f"| {place} | {row.get('n') or '8 or more'} | {row['error']:.1e} | {word} |"


def _refusal(row: Mapping[str, Any]) -> str:
    why = row["reason"].replace("|", "/").splitlines()[0][:200]
    return f"| {row['display']} | {row['backend']} | {row['model']} | {row['variant']} | {why} |"


if __name__ == "__main__":
    try:
        sys.exit(main())
    except PortolanError as error:
        sys.exit(f"{error.message}\nhint: {error.hint}")
