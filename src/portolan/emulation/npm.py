"""The packages of npm that ONNX Runtime Web needs, exactly those of the lock file; no script of theirs is run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from portolan.emulation.commands import need, run
from portolan.emulation.kinds import PINS

_HINT = "check the network and repeat the command"


def install(folder: Path, say: Callable[[str], None]) -> str:
    """Puts `node_modules` into `folder`; the version of ONNX Runtime Web.

    Raises:
        NoBackend: npm is missing, or the packages cannot be fetched.
    """
    npm = need("npm", "install Node.js 20 or newer with npm: apt-get install nodejs npm")
    for name in ("package.json", "package-lock.json"):
        shutil.copyfile(PINS / "web" / name, folder / name)
    say("fetching the npm packages of ONNX Runtime Web")
    argv = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--no-update-notifier", "--loglevel=error"]
    run(argv, doing="fetching npm packages", folder=folder, hint=_HINT)
    package = folder / "node_modules" / "onnxruntime-web" / "package.json"
    return str(json.loads(package.read_text(encoding="utf-8"))["version"])
