"""Every error of environments of their own, word for word.

After a wanted change: `PORTOLAN_UPDATE_GOLDEN=1 pytest tests/golden/test_env_errors.py`, and read the diff.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

import portolan
from portolan.core import environments
from portolan.errors import NoBackend
from portolan.worker import Worker
from support import errors
from support.wheels import Shop

GOLDEN = Path(__file__).with_name("env_errors.txt")
PLAN = "# A runtime.\nrunner==1.0  # MIT\nhelper==2.5  # MIT\n"


def whole(shop: Shop, version: str = "2.5") -> environments.Found:
    """An environment as `env add` leaves it, without the time that takes."""
    folder = shop.root / "runner"
    site = folder / "lib" / "python3.11" / "site-packages"
    for name in "runner-1.0", f"helper-{version}":
        (site / f"{name}.dist-info").mkdir(parents=True)
    (folder / "bin").mkdir()
    (folder / "bin" / "python").symlink_to(sys.executable)
    (folder / environments.STAMP).write_text('{"size": 7}')
    found = environments.find("runner")
    assert found is not None
    return found


def probed(shop: Shop, change: Callable[[environments.Found], Any], version: str = "2.5") -> None:
    change(whole(shop, version))
    found = environments.find("runner")
    assert found is not None
    raise NoBackend(f"`runner` is not ready: {found.reason}", hint=found.fix)


def busy(shop: Shop, action: Any, file: str) -> None:
    found = whole(shop)
    with (shop.root / file.format(found.name)).open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        portolan.env(action, "runner")


def removed(shop: Shop) -> None:
    found = whole(shop)
    with Worker(python=[str(found.python)]) as worker:
        shutil.rmtree(found.folder)
        worker.ask("probe", timeout=60, backend="nobody", target={})


def uninstallable(shop: Shop) -> None:
    portolan.env("add", "runner")


def loose(shop: Shop) -> None:
    shop.plan("runner", PLAN + "loose>=1  # MIT\n")
    portolan.env("list", "runner")


WRONG: dict[str, Callable[[Shop], Any]] = {
    "an environment that nobody knows": lambda shop: portolan.env("add", "runer"),
    "an action that nobody knows": lambda shop: portolan.env("instal", "runner"),  # type: ignore[arg-type]
    "no name": lambda shop: portolan.env("add"),
    "removing what is not there": lambda shop: portolan.env("remove", "runner"),
    "repairing what is not there": lambda shop: portolan.env("repair", "runner"),
    "a package that cannot be had": uninstallable,
    "a line without a pin": loose,
    "half installed": lambda shop: probed(shop, lambda found: (found.folder / environments.STAMP).unlink()),
    "another version": lambda shop: probed(shop, lambda found: None, "2.6"),
    "a package is gone": lambda shop: probed(shop, lambda found: shutil.rmtree(found.site / "helper-2.5.dist-info")),
    "no interpreter": lambda shop: probed(shop, lambda found: found.python.unlink()),
    "in use": lambda shop: busy(shop, "remove", "{}/portolan-env.json"),
    "another command is at it": lambda shop: busy(shop, "add", ".{}.lock"),
    "removed while in use": removed,
}


def told(name: str, shop: Shop) -> str:
    return errors.told(name, lambda: WRONG[name](shop), shop.root, "ENVS")


def test_every_error_word_for_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = []
    for i, name in enumerate(WRONG):
        (tmp_path / str(i)).mkdir()
        with monkeypatch.context() as patch:
            shop = Shop(tmp_path / str(i), patch)
            shop.plan("runner", PLAN)
            said.append(told(name, shop))
    text = "\n".join(said)
    if os.environ.get("PORTOLAN_UPDATE_GOLDEN"):
        GOLDEN.write_text(text, encoding="utf-8")
    assert text == GOLDEN.read_text(encoding="utf-8")
