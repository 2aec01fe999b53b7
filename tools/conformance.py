"""ONNX's node tests through backends: `python tools/conformance.py [--backend NAME] [--only REGEX] [--update]`.

`--update` writes what is found: counts of each operator into the package, where they refuse models before time is
spent, and the exceptions with their causes into `tests/conformance`, the line behind which nothing may fall. After
that, `python tools/make_reference.py` makes the page of it. A backend that is not ready is left as it was.
"""

from __future__ import annotations

import argparse
import collections
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from portolan.core import conformance as kept
from portolan.targets.local import local
from portolan.testing.conformance import Case, Conformance, Outcome, by_onnx_runtime, cases, through
from portolan.worker.environments import backends

ROOT = Path(__file__).parents[1]
DATA = ROOT / "src" / "portolan" / "core" / kept.FILE
EXCEPTIONS = ROOT / "tests" / "conformance"
STATUSES = ("pass", "fail", "unsupported")


def counted(chosen: Sequence[Case], found: Mapping[str, Outcome]) -> dict[str, list[int]]:
    """Passed, failed, unsupported, for each operator that has cases of its own."""
    counts: dict[str, list[int]] = {}
    for case in chosen:
        if len(case.operators) == 1:
            status = found[case.name].status
            counts.setdefault(case.operators[0], [0, 0, 0])[STATUSES.index(status)] += 1
    return dict(sorted(counts.items()))


def lacking(chosen: Sequence[Case], found: Mapping[str, Outcome]) -> list[str]:
    """Operators of which every case was refused for want of the operator."""
    every: dict[str, bool] = {}
    for case in chosen:
        if len(case.operators) == 1:
            (name,) = case.operators
            wants = re.search(rf"has no operator `([\w.]+\.)?{name}`", found[case.name].reason) is not None
            every[name] = every.get(name, True) and wants
    return sorted(name for name, wants in every.items() if wants)


def totals(found: Mapping[str, Outcome]) -> list[int]:
    """Passed, failed, unsupported, over all cases."""
    each = collections.Counter(outcome.status for outcome in found.values())
    return [each["pass"], each["fail"], each["unsupported"]]


def causes(found: Mapping[str, Outcome]) -> dict[str, list[str]]:
    """The cases that did not pass, by cause, the most frequent first."""
    grouped: dict[str, list[str]] = {}
    for name, outcome in found.items():
        if outcome.status != "pass":
            word = "wrong or crashed" if outcome.status == "fail" else "refused"
            grouped.setdefault(f"{word}: {_cause(outcome.reason)}", []).append(name)
    return dict(sorted(grouped.items(), key=lambda item: (-len(item[1]), item[0])))


def _cause(reason: str) -> str:
    """A reason without the names of a case's tensors and the numbers in it."""
    reason = re.split(r"Mismatched elements|\(mismatch|\. Where|giving `", reason)[0]
    return re.sub(r"(\d+\.)?\d+([eE][-+]?\d+)?", "N", re.sub(r"(input|output|tensor) `[^`]*`", r"\1", reason))[
        :110
    ].strip()


def write(path: Path, data: Any) -> None:
    """JSON with one short list in a line."""
    text = json.dumps(data, indent=1, ensure_ascii=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(re.sub(r"\[\n\s+([^\[\]{}]*?)\n\s+\]", lambda m: f"[{' '.join(m[1].split())}]", text) + "\n")


def main() -> int:
    """Runs, prints and, if asked, keeps."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backend", action="append", help="a backend's name; all that are ready without")
    parser.add_argument("--only", default="", help="cases whose names match")
    parser.add_argument("--update", action="store_true", help="keep what is found")
    asked = parser.parse_args()
    import onnx

    target = local.detect()
    data: dict[str, Any] = json.loads(DATA.read_text())
    chosen = [case for case in cases() if re.search(asked.only, case.name)]
    passing = [case for case in chosen if by_onnx_runtime(case).status == "pass"]
    print(f"{len(chosen)} node tests of onnx {onnx.__version__}; ONNX Runtime by itself passes {len(passing)}")
    for name, backend in backends(target, asked.backend).items():
        support = backend.probe(target)
        if not support.ready or (asked.backend is None and not backend.searched):
            print(f"{name}: left out: {support.reason or 'not searched'}")
            continue
        found = through(name, passing)
        passed, failed, unsupported = totals(found)
        share = f"{passed / len(passing):.1%}" if passing else "-"
        print(f"{name}: {passed} pass ({share}), {failed} wrong or crashed, {unsupported} refused")
        for cause, names in causes(found).items():
            print(f"  {len(names):4} {cause}: {', '.join(names[:3])}{' ...' if len(names) > 3 else ''}")
        # A backend for models of another kind than any case is not in the matrix.
        if asked.update and not asked.only and passed:
            counts = counted(passing, found)
            options = dict(Conformance(name).options)
            data["backends"][name] = {
                "versions": backend.versions(), "options": options, "total": totals(found),
                "lacking": lacking(passing, found), "operators": counts,
            }  # fmt: skip
            write(EXCEPTIONS / f"{name}.json", {"versions": backend.versions(), "exceptions": causes(found)})
    if asked.update and not asked.only:
        data |= {"onnx": onnx.__version__, "cases": len(chosen), "counted": len(passing)}
        data["backends"] = dict(sorted(data["backends"].items()))
        write(DATA, data)
    return 0


if __name__ == "__main__":
    sys.exit(main())
