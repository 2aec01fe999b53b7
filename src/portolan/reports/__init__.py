"""The HTML report: one offline file that shows one study or several."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from portolan.errors import DiskFull, UsageError, no_space

__all__ = ["render", "write"]


def render(studies: Sequence[Mapping[str, Any]]) -> str:
    """The report as one self-contained HTML text: no network, no other file.

    Args:
        studies: objects as `portolan.optimize(...).to_json()` or `portolan optimize --json` give them.

    Raises:
        UsageError: there is no study, or one is not what the contract says; `where` is the path.
    """
    from portolan.reports.page import page
    from portolan.reports.reading import read

    if not studies:
        raise UsageError("there is no study to report", hint="run `portolan optimize` first")
    return page([read(study, f"$[{i}]") for i, study in enumerate(studies)], studies)


def write(
    studies: Sequence[Mapping[str, Any]], path: str | Path, force: bool = False, *, dry_run: bool = False
) -> Path:
    """Writes the report to `path`, whole or not at all, and returns the path. `dry_run` checks all and writes nothing.

    Raises:
        UsageError: the file exists and `force` is false, it cannot be written, or a study does not fit.
        DiskFull: there is no space for it.
    """
    path = Path(path)
    if path.is_dir():
        raise UsageError(f"`{path}` is a folder", hint="name a file, such as `report.html`")
    if path.exists() and not force:
        raise UsageError(f"`{path}` exists", hint="add `--force` to overwrite it, or name another file with `-o`")
    text = render(studies)
    if dry_run:
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _replace(path, text)
    except OSError as error:
        if no_space(error):
            raise DiskFull(f"the disk is full: `{path}` could not be written") from error
        raise UsageError(f"`{path}` cannot be written: {error.strerror}", hint="name another file with `-o`") from error
    return path


def _replace(path: Path, text: str) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        part.write_text(text, encoding="utf-8", newline="\n")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
