"""Transports: a worker is reached through an argv prefix, and nothing else.

None starts this interpreter; another interpreter is its path; `ssh host python3`, `qemu-aarch64 -L root python3`,
`docker run -i image python` and `kubectl exec -i pod -- python` have the same shape.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from portolan.core.silence import quiet_environment

#: Finds this package, and only this package, from an interpreter that does not have it installed.
_BOOT = (
    "import sys,importlib.util as u;"
    "s=u.spec_from_file_location('portolan',sys.argv[1]+'/__init__.py',submodule_search_locations=[sys.argv[1]]);"
    "m=u.module_from_spec(s);sys.modules['portolan']=m;s.loader.exec_module(m);"
    "u=__import__('importlib').import_module(sys.argv[2]);u.main(sys.argv[3:])"
)
WORKER = "portolan.worker.agent"


def command(python: Sequence[str] | None, memory_limit: int, module: str = WORKER) -> list[str]:
    """The argv of a worker behind `python`, an interpreter's argv; None for this interpreter."""
    return started(python, module, ["--memory", str(memory_limit)])


def started(python: Sequence[str] | None, module: str, arguments: Sequence[str]) -> list[str]:
    """The argv that calls `main(arguments)` of one of this package's modules behind `python`."""
    if python is None:
        # -P: a file called onnx.py in the user's folder must not be taken for the package.
        return [sys.executable, "-P", "-m", module.removesuffix(".agent"), *arguments]
    package = Path(__file__).resolve().parent.parent
    return [*python, "-c", _BOOT, str(package), module, *arguments]


def environment(python: Sequence[str] | None, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a worker: this one, silenced. Another interpreter is not given this one's packages."""
    env = {**os.environ, **quiet_environment(), "PYTHONUNBUFFERED": "1", **(extra or {})}
    if python is None:
        source = str(Path(__file__).resolve().parents[2])
        env["PYTHONPATH"] = os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH", "")]))
    else:
        env.pop("PYTHONPATH", None)
    return env
