"""Makes an environment so that one that was cut off at any moment never looks whole: its stamp is written last."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from portolan.core import environments, registry
from portolan.core.environments import STAMP, Found, Plan
from portolan.core.locks import lock
from portolan.core.silence import quiet_environment
from portolan.errors import NoBackend, PortolanError, UsageError

Progress = Callable[[str], None]
_ERROR = "ERROR:"
_TAIL = 12
#: The first version of pip with `--python`.
_LENDING_PIP = (22, 3)
#: What pip is told besides the requirements: nothing but what is pinned, and no package's own build.
_PIP = ("install", "--no-deps", "--only-binary=:all:", "--no-input", "--disable-pip-version-check")
_IMPORT = "import importlib, sys; importlib.import_module(sys.argv[1])"


def add(name: str, progress: Progress) -> Found:
    """Makes the environment `name`; one that is whole stays as it is, one that is not is made anew.

    Raises:
        UnknownName: there is no such environment.
        UsageError: another process is at it.
        NoBackend: pip could not install it, or what it installed does not start.
    """
    plan = environments.plan(name)
    with _alone(name):
        found = _found(name)
        return found if found.state == "ready" else _make(plan, found, progress)


def repair(name: str, progress: Progress) -> Found:
    """Makes the environment `name` anew, in whatever state it is.

    Raises:
        UsageError: there is none, or it is in use.
        NoBackend: as for `add`.
    """
    plan = environments.plan(name)
    with _alone(name):
        found = _found(name)
        if found.state == "absent":
            raise UsageError(f"there is no environment `{name}` to repair", hint=f"portolan env add {name}")
        _unused(found)
        return _make(plan, found, progress)


def remove(name: str, *, force: bool = False) -> Found:
    """Removes the environment `name`, as it was.

    Args:
        name: of the environment.
        force: also while a process runs in it, which will then fail.

    Raises:
        UsageError: there is none, or it is in use.
    """
    environments.plan(name)
    with _alone(name):
        found = _found(name)
        if found.state == "absent":
            raise UsageError(f"there is no environment `{name}`", hint="`portolan env list` says which there are")
        if not force:
            _unused(found)
        _delete(found.folder)
        return found


def _found(name: str) -> Found:
    found = environments.find(name)
    if found is None:
        raise LookupError(name)  # `plan` has refused it
    return found


def _make(plan: Plan, found: Found, progress: Progress) -> Found:
    _delete(found.folder)
    progress(f"making the environment `{plan.name}` in {found.folder}")
    lent = _lends_pip()
    venv = [sys.executable, "-m", "venv", *(["--without-pip"] if lent else []), str(found.folder)]
    _run(venv, plan.name, "no environment could be made", progress)
    pip = [sys.executable, "-m", "pip", "--python", str(found.python)] if lent else [str(found.python), "-m", "pip"]
    _run(
        [*pip, *_PIP, "-r", str(plan.path)],
        plan.name,
        f"the environment `{plan.name}` could not be installed",
        progress,
    )
    here = environments.installed(found.site)
    if wrong := environments.differences(plan, here):
        raise NoBackend(
            f"the new environment `{plan.name}` {', '.join(wrong)}", hint=f"portolan env repair {plan.name}"
        )
    for module in _modules(plan.name):
        progress(f"importing {module}")
        start = [str(found.python), "-P", "-c", _IMPORT, module]
        _run(start, plan.name, f"`{module}` does not start in the new environment", progress)
    _stamp(found, here)
    return _found(plan.name)


def _lends_pip() -> bool:
    """Whether this interpreter's pip can install into another one: else the environment gets a pip of its own."""
    try:
        major, minor, *_ = importlib.metadata.version("pip").split(".")
        return (int(major), int(minor)) >= _LENDING_PIP
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return False


def _modules(name: str) -> Sequence[str]:
    """What the backend or the front end of that name imports; an environment may also be a pass's library's."""
    try:
        return [registry.backend(name).module]
    except PortolanError:
        return registry.FRONTENDS.get(name).modules if name in registry.FRONTENDS.names() else ()


def _stamp(found: Found, here: dict[str, str]) -> None:
    size = sum(path.lstat().st_size for path in found.folder.rglob("*") if not path.is_dir())
    data = {"name": found.name, "python": platform.python_version(), "size": size, "packages": here}
    draft = found.folder / f"{STAMP}.new"
    with draft.open("w", encoding="utf-8") as file:
        json.dump(data, file, indent=1, sort_keys=True)
        file.flush()
        os.fsync(file.fileno())
    draft.rename(found.folder / STAMP)


def _delete(folder: Path) -> None:
    """The stamp first: what is left of a removal that was cut off must not look whole."""
    (folder / STAMP).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _alone(name: str) -> Iterator[None]:
    """Keeps two commands from working at one environment."""
    root = environments.root()
    root.mkdir(parents=True, exist_ok=True)
    with (root / f".{name}.lock").open("w") as file:
        if not lock(file.fileno()):
            raise UsageError(f"another command is working on the environment `{name}`", hint="wait for its end")
        yield


def _unused(found: Found) -> None:
    """Refuses while a process runs in the environment: it would lose what it has not imported yet.

    Raises:
        UsageError: one does.
    """
    with contextlib.suppress(FileNotFoundError), (found.folder / STAMP).open() as stamp:
        if not lock(stamp.fileno()):
            raise UsageError(
                f"the environment `{found.name}` is in use",
                hint=f"wait for what runs in it to end, or `portolan env remove {found.name} --force`",
            )


def _run(command: Sequence[str], name: str, failure: str, progress: Progress) -> None:
    """Runs a step of the installation, its lines as progress.

    Raises:
        NoBackend: it failed; the message ends with what it said.
    """
    # Another environment's settings must not reach into this one; pip's own (PIP_*) are the user's and do.
    env = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, text=True,
        env=env | quiet_environment(),
    ) as process:  # fmt: skip
        lines: list[str] = []
        for line in process.stdout or ():
            lines = [*lines[-_TAIL:], line.strip()]
            if line.startswith(("Collecting", "Downloading", "Installing")):
                progress(line.strip()[:100])
    if process.returncode:
        said = [line for line in lines if line]
        reason = next((line for line in reversed(said) if line.startswith(_ERROR)), said[-1] if said else "no word")
        raise NoBackend(f"{failure}: {reason.removeprefix(_ERROR).strip()}", hint=f"portolan env repair {name}")
