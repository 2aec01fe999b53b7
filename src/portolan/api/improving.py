"""Searching for the best recipe, or applying passes without a search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from portolan.api.result import Progress, Result, Shapes, silent

if TYPE_CHECKING:
    from portolan.study.study import Study


def optimize(
    model: str | Path,
    *,
    goals: Sequence[str] = (),
    data: str | Path | None = None,
    metric: str | None = None,
    shapes: Shapes | None = None,
    study: str | Path | None = None,
    backend: Sequence[str] | None = None,
    passes: Sequence[str] | None = None,
    recipe: str | Mapping[str, Any] | None = None,
    budget: str | None = None,
    jobs: int = 1,
    seed: int = 0,
    target: str = "local",
    price: str | None = None,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> Study | Result:
    """Searches for the best recipe under goals. Repeating a call resumes it, or answers from its ledger.

    Args:
        model: an ONNX file, a file or folder of another framework, `file.py:factory` or `demo:NAME`.
        goals: limits (`latency_p95 < 8ms`) and objectives (`min size`). Without a quality limit outputs must stay
            the original's (`max_rel_error <= 0.001`); without an objective the median latency is minimised.
        data: `.npz`, a folder of them, or `file.py:function`; without it inputs are generated from the signature.
        metric: `file.py:function` taking `(outputs, labels)` and returning a float, higher is better.
        shapes: sizes by input name.
        study: folder; `study-NAME` by default.
        backend: only these backends.
        passes: only these passes.
        recipe: a recipe file or mapping that pins choices; a list is a range.
        budget: `300s`, `40 trials`, or both; five minutes by default.
        jobs: processes that build ahead of the timing.
        seed: of everything random.
        target: where it is to run.
        price: what an hour of the target costs, such as `0.10USD`; goals on `cost` need it.
        dry_run: return what would be tried, write nothing.
        progress: told one line at a time.

    Returns:
        The study; with `dry_run` its plan.

    Raises:
        UsageError: a goal, data or recipe that does not fit.
        NoResult: the untouched model does not run.
        Interrupted: Ctrl-C; everything measured is saved.
    """
    from portolan.study import optimize as search

    settings = search.Settings(
        model=str(model),
        goals=tuple(goals),
        data=None if data is None else str(data),
        metric=metric,
        shapes=shapes,
        study=None if study is None else str(study),
        backend=backend,
        passes=passes,
        recipe=recipe,
        budget=budget,
        jobs=jobs,
        seed=seed,
        target=target,
        price=price,
    )
    if dry_run:
        return Result("plan", search.plan(settings))
    return search.optimize(settings, progress or silent)


def compress(
    model: str | Path,
    *,
    passes: Sequence[str],
    out: str | Path | None = None,
    data: str | Path | None = None,
    shapes: Shapes | None = None,
    seed: int = 0,
    force: bool = False,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> Result:
    """Applies passes in order, without a search, and writes the new model.

    Args:
        model: as for `optimize`.
        passes: such as `quantize(mode=static)`.
        out: the file to write; named after the model and its passes by default.
        data: as for `optimize`; a part of it calibrates, the rest measures the effect.
        shapes: sizes by input name.
        seed: of generated data.
        force: overwrite `out`.
        dry_run: check everything, write nothing.
        progress: told one line at a time.

    Raises:
        UsageError: a pass that is refused, or an output that exists.
    """
    from portolan import compression

    found = compression.compress(
        str(model),
        passes,
        out=None if out is None else str(out),
        data=None if data is None else str(data),
        shapes=shapes,
        seed=seed,
        force=force,
        dry_run=dry_run,
        progress=progress or silent,
    )
    return Result("compress", found)
