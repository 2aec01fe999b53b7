"""Measuring, comparing, and showing what was found."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from portolan.api.result import Progress, Result, Shapes, silent

if TYPE_CHECKING:
    from portolan.bundle import Bundle
    from portolan.study.study import Study


def bench(
    *arms: str | Path,
    data: str | Path | None = None,
    shapes: Shapes | None = None,
    backend: Sequence[str] | None = None,
    budget: str | None = None,
    seed: int = 0,
    native: bool = False,
    target: str = "local",
    progress: Progress | None = None,
) -> Result:
    """Measures and compares models and bundles, with statistics; the first arm is the baseline.

    Args:
        arms: models, bundles, or `MODEL@BACKEND(option=value)`. A single model is raced on every ready backend.
        data: as for `optimize`.
        shapes: sizes by input name.
        backend: race each plain model on these backends.
        budget: seconds; five minutes by default.
        seed: of the order of blocks and of generated data.
        native: run the compiled code of bundles that hold some: it has your rights, so trust who made them.
        target: where the arms run. On an emulated one nothing is timed: what is told is how far each arm's answers are
            from those that its model gives here.
        progress: told one line at a time.

    Raises:
        UsageError: arms that do not take the same inputs.
    """
    from portolan import agreement, comparison
    from portolan.targets._added import find

    place, say = find(target), progress or silent
    inputs = comparison.Inputs(None if data is None else str(data), shapes, seed)
    texts = [str(arm) for arm in arms]
    if place.timed:
        found = comparison.bench(texts, inputs, backend=backend, budget=budget, native=native, progress=say)
    else:
        found = agreement.bench(texts, inputs, place, backend=backend, progress=say)
    return Result("bench", found)


def report(*studies: str | Path, out: str | Path = "report.html", force: bool = False, dry_run: bool = False) -> Result:
    """Writes the HTML report of one or more studies: one offline file.

    Args:
        studies: their folders.
        out: the file.
        force: overwrite `out`.
        dry_run: check everything, write nothing.

    Returns:
        `report`: where it is.

    Raises:
        UsageError: no study there, or `out` exists.
    """
    from portolan import reports

    found = [open_study(study).to_json() for study in studies]
    return Result("report", {"report": str(reports.write(found, Path(out), force, dry_run=dry_run))})


def check(bundle: str | Path, *, native: bool = False, target: str = "local") -> Result:
    """Verifies a bundle: its checksums, and its golden outputs by running them in a process of their own.

    Args:
        bundle: a folder or a `.portolan` file.
        native: run its compiled code, if it holds some: it has your rights, so trust who made it.
        target: an added target on which the golden inputs are run too.

    Raises:
        VerificationFailed: something is not what the manifest says.
    """
    from portolan.bundle import check as verify
    from portolan.targets._added import find

    place = find(target)
    found = verify(Path(bundle), native=native).to_json()
    if not place.timed:
        from portolan import shipped

        there = shipped.check(Path(bundle), place, native=native)
        found |= {"elsewhere": [there], "notes": [*found["notes"], shipped.note(there)]}
    return Result("pack", found)


def open_study(folder: str | Path) -> Study:
    """The newest finished study in a folder.

    Raises:
        UsageError: there is none.
    """
    from portolan.study.reading import read_study

    return read_study(Path(folder))


def open(path: str | Path) -> Bundle | Study:
    """A bundle or a study, whichever lies at `path`.

    Raises:
        UsageError: neither does.
    """
    from portolan.bundle import is_bundle, open_bundle

    return open_bundle(Path(path)) if is_bundle(path) else open_study(path)
