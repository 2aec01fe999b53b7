"""Does the race call winners that are not there, and does it find those that are?

    python benchmarks/race.py [--runs 400] [--seed 0] [--json]

Thousands of comparisons on a simulated machine (`portolan.measure.simulate`: drift of the whole machine, an offset per
process, noise, spikes) go through the same `race()` that times real models. The last row is a check of the check: on
the same machine the usual design, all of A and then all of B, must call winners between equal arms.

Exits 1 when a bound is missed. (The file is not called statistics.py: scripts beside it would then import it in place
of the standard library's module.)
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass

import numpy as np

from portolan.measure.race import race
from portolan.measure.simulate import Conditions, Machine
from portolan.measure.stats import wilson

MS = 5.0
ONE_SPEED = Conditions()
TWO_SPEEDS = Conditions(slow_mode=0.5)


@dataclass(frozen=True)
class Case:
    """One row: a true effect, a design, and the bound on the share of runs that call the stated side."""

    name: str
    effect: float
    starts: int = 5
    blocks: int = 4
    conditions: Conditions = ONE_SPEED
    least: float = 0.0
    most: float = 1.0


@dataclass(frozen=True)
class Row:
    """What came out: the share of runs with a call (in the right direction for a real effect), with its interval."""

    case: str
    runs: int
    called: float
    lo: float
    hi: float
    wrong_way: float
    alarms: float
    starts: float
    width: float
    bound: str
    ok: bool


CASES = (
    Case("equal arms, 5 starts x 4 blocks", 0.0, most=0.06),
    Case("equal arms, 8 x 5", 0.0, 8, 5, most=0.06),
    Case("equal arms, up to 20 x 4, three looks", 0.0, 20, 4, most=0.06),
    Case("equal arms with two speeds, 5 x 4", 0.0, conditions=TWO_SPEEDS, most=0.06),
    Case("0.5 % faster, 8 x 5", 0.005, 8, 5, most=0.06),
    Case("3 % faster, 8 x 5", 0.03, 8, 5, least=0.90),
    Case("5 % faster, 5 x 4", 0.05, least=0.90),
    Case("5 % faster, up to 20 x 4", 0.05, 20, 4, least=0.90),
)


def _one(case: Case, seed: int) -> tuple[str, bool, int, float]:
    """One race: verdict on the candidate, whether the alarm rang, starts made, relative width of the interval."""
    machine = Machine(np.random.default_rng([seed, 0]), case.conditions)
    found = race(
        [machine.arm("base", MS), machine.arm("candidate", MS * (1 - case.effect))],
        baseline="base",
        starts=case.starts,
        blocks=case.blocks,
        rng=np.random.default_rng([seed, 1]),
        clock=machine.clock,
        lock=lambda wait: nullcontext(),
    )
    ratio = found.ratio("candidate", "base")
    return ratio.verdict, not found.noise.ok, found.starts, ratio.hi / ratio.lo - 1


def run_case(case: Case, runs: int, seed: int, progress: Callable[[str], None]) -> Row:
    """Runs one row."""
    results = []
    for number in range(runs):
        if number % 100 == 0:
            progress(f"{case.name}: {number} of {runs}")
        results.append(_one(case, seed * 1_000_003 + number))
    verdicts = [verdict for verdict, *_ in results]
    wrong = verdicts.count("slower")
    calls = verdicts.count("faster") + (wrong if case.effect == 0 else 0)
    share = wilson(calls, runs)
    return Row(
        case=case.name,
        runs=runs,
        called=share.value,
        lo=share.lo,
        hi=share.hi,
        wrong_way=wrong / runs if case.effect else 0.0,
        alarms=sum(alarm for _, alarm, *_ in results) / runs,
        starts=float(np.mean([starts for *_, starts, _ in results])),
        width=float(np.median([width for *_, width in results])),
        bound=f">= {case.least:.0%}" if case.least else f"<= {case.most:.0%}",
        ok=case.least <= share.value <= case.most,
    )


def all_a_then_all_b(runs: int, seed: int) -> Row:
    """The design to avoid: 200 readings of A, then 200 of B, and a bootstrap over readings."""
    calls, widths = 0, []
    for number in range(runs):
        rng = np.random.default_rng([seed * 1_000_003 + number, 2])
        machine = Machine(rng)
        a, b = (np.log(machine.read(MS, machine.offset(), 200)) for _ in range(2))
        picked = [np.median(x[rng.integers(0, 200, (500, 200))], axis=1) for x in (a, b)]
        low, high = np.quantile(picked[1] - picked[0], [0.025, 0.975])
        calls += not low <= 0 <= high
        widths.append(float(np.exp(high - low) - 1))
    share = wilson(calls, runs)
    return Row(
        "check: all of A, then all of B, must fail", runs, share.value, share.lo, share.hi,
        0.0, 0.0, 1.0, float(np.median(widths)), "> 6%", share.value > 0.06,
    )  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """Runs every row; 1 when a bound is missed."""
    parser = argparse.ArgumentParser(description="False positives and power of race() on a simulated machine.")
    parser.add_argument("--runs", type=int, default=400, help="comparisons of each row (default 400)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(argv)
    if options.runs < 1:
        parser.error("--runs must be at least 1")
    begun = time.monotonic()
    live = sys.stderr.isatty()

    def progress(text: str) -> None:
        if live:
            print(f"\r{text:<70}", end="", file=sys.stderr, flush=True)

    rows = [run_case(case, options.runs, options.seed, progress) for case in CASES]
    rows.append(all_a_then_all_b(options.runs, options.seed))
    progress("")
    ok = all(row.ok for row in rows)
    if options.json:
        print(json.dumps({"ok": ok, "seed": options.seed, "rows": [asdict(row) for row in rows]}))
        return 0 if ok else 1
    print(f"{'case':<42} {'called':>7}  {'95 %':<14} {'bound':>7} {'wrong':>6} {'alarm':>6} {'starts':>6} {'width':>6}")
    for row in rows:
        print(
            f"{row.case:<42} {row.called:>7.1%}  {row.lo:>5.1%} to {row.hi:<5.1%} {row.bound:>7} {row.wrong_way:>6.1%} "
            f"{row.alarms:>6.1%} {row.starts:>6.1f} {row.width:>6.1%}  {'ok' if row.ok else 'MISSED'}"
        )
    verdict = "all bounds hold" if ok else "a bound is missed"
    print(f"{verdict}: {options.runs} runs a row, {time.monotonic() - begun:.0f} s")
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
