"""This machine, as far as running a bundle needs to know it."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

from portolan.bundle.manifest import Needs
from portolan.core.target import Target
from portolan.errors import NoBackend

_FLAGS = re.compile(r"^(?:flags|Features|isa)\s*:\s*(.*)$", re.MULTILINE)
_ARCHES = {"amd64": "x86_64", "arm64": "aarch64"}


def local_target() -> Target:
    """The target that `Backend.probe` is asked about: architecture, observed features, cores, memory."""
    arch = platform.machine().lower()
    return Target(
        id="local",
        kind="physical",
        arch=_ARCHES.get(arch, arch),
        features=_features(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        ram=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
    )


def check_needs(needs: Needs, target: Target) -> None:
    """Refuses compiled files that `target` cannot run, before a wrong instruction kills the process.

    Raises:
        NoBackend: another architecture, or a feature that was not observed.
    """
    hint = "pack the model again on this machine, or on one like it"
    if needs.arch is not None and needs.arch != target.arch:
        raise NoBackend(f"the bundle was compiled for `{needs.arch}`, and this machine is `{target.arch}`", hint=hint)
    missing = [feature for feature in needs.features if feature not in target.features]
    if missing:
        listed = ", ".join(f"`{feature}`" for feature in missing)
        raise NoBackend(f"the bundle was compiled for a processor with {listed}, which this one lacks", hint=hint)


def _features() -> tuple[str, ...]:
    try:
        found = _FLAGS.search(Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return ()
    return tuple(sorted(set(found[1].split()))) if found else ()
