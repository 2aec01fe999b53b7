"""Environments of their own: made, found, repaired, removed, and every way in which one is not whole."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import portolan
from portolan.core import environments, interpreters
from portolan.core.backend import Backend, Executable
from portolan.core.data import generate
from portolan.core.model import Model
from portolan.core.recipe import Recipe
from portolan.core.target import Target
from portolan.errors import EnvironmentGone, NoBackend, PortolanError, UnknownName, UsageError
from portolan.study.builder import Builder, Samples, lasting
from portolan.study.workspace import Workspace
from portolan.testing.models import cases, this_machine
from portolan.worker import Worker
from support.wheels import Shop, wheel

PLAN = "# A runtime for tests.\nrunner==1.0  # MIT\nhelper==2.5  # Apache-2.0\n"
NUMPY = Path(np.__file__).parents[1]


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shop:
    shop = Shop(tmp_path, monkeypatch)
    shop.plan("runner", PLAN)
    wheel(shop.wheels, "runner", "1.0")
    wheel(shop.wheels, "helper", "2.5")
    monkeypatch.delenv("PORTOLAN_PYTHON_RUNNER", raising=False)
    return shop


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One environment as `env add` makes it; tests get copies, since making takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        shop = Shop(tmp_path_factory.mktemp("template"), patch)
        shop.plan("runner", PLAN)
        wheel(shop.wheels, "runner", "1.0")
        wheel(shop.wheels, "helper", "2.5")
        portolan.env("add", "runner")
        return shop.root / "runner"


@pytest.fixture
def made(shop: Shop, template: Path) -> environments.Found:
    shutil.copytree(template, shop.root / "runner", symlinks=True)
    return found()


def found() -> environments.Found:
    here = environments.find("runner")
    assert here is not None
    return here


class Runner(Backend):
    """Only its probe and its versions are asked."""

    name = "runner"
    distributions = ("runner", "helper")
    module = "runner"
    fix = "portolan env add runner"

    def compile(self, model: Model, target: Target) -> Executable:
        raise NotImplementedError

    def load(self, folder: Path) -> Executable:
        raise NotImplementedError


def test_it_is_made_from_its_pins_and_found_without_a_variable(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    assert interpreters.python_for("runner") is None
    row = portolan.env("add", "runner", progress=said.append).environments[0]
    assert (row["state"], row["version"], row["reason"]) == ("ready", "1.0", None)
    assert row["size"] > 1000
    assert [(p["name"], p["licence"]) for p in row["packages"]] == [("runner", "MIT"), ("helper", "Apache-2.0")]
    assert any("making the environment `runner`" in line for line in said)
    assert interpreters.python_for("runner") == [str(shop.root / "runner" / "bin" / "python")]
    assert Runner().probe(this_machine()).version == "1.0"
    assert Runner().versions() == {"runner": "1.0", "helper": "2.5"}
    monkeypatch.setenv("PORTOLAN_PYTHON_RUNNER", sys.executable)
    assert interpreters.python_for("runner") == [sys.executable]
    assert Runner().versions() == {}


def test_a_search_leaves_out_what_nobody_has_made(made: environments.Found) -> None:
    """Half of one is another matter: whoever began it wants to know."""
    assert Runner().offered
    (made.folder / environments.STAMP).unlink()
    assert Runner().offered
    assert not Runner().probe(this_machine()).ready
    shutil.rmtree(made.folder)
    assert not Runner().offered


@pytest.mark.slow
def test_without_a_pip_here_the_environment_gets_its_own(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    from portolan.environments import install

    monkeypatch.setattr(install, "_lends_pip", lambda: False)
    portolan.env("add", "runner")
    assert found().state == "ready"
    assert "pip" in environments.installed(found().site)


def test_adding_again_is_nothing_to_do(made: environments.Found) -> None:
    before = (made.folder / environments.STAMP).stat().st_mtime_ns
    portolan.env("add", "runner")
    assert (made.folder / environments.STAMP).stat().st_mtime_ns == before


def test_a_dry_run_writes_nothing(shop: Shop) -> None:
    assert portolan.env("add", "runner", dry_run=True).environments[0]["state"] == "absent"
    assert not shop.root.exists()


def test_killed_while_it_installs_it_never_looks_whole(shop: Shop) -> None:
    """At moments over the whole installation; afterwards `repair`, repeated, and `add` make it whole."""
    code = (
        "import sys, portolan; from pathlib import Path; from portolan.core import environments as e;"
        "e.PLANS = Path(sys.argv[1]); portolan.env('add', 'runner')"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(portolan.__file__).parents[1])}
    for steps in ("bin/python", "lib/python3*/site-packages/runner.py"):
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(shop.plans)], env=environment, start_new_session=True
        )
        end = time.monotonic() + 60
        while not any((shop.root / "runner").glob(steps)) and process.poll() is None and time.monotonic() < end:
            time.sleep(0.002)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        here = found()
        if here.state == "ready":  # the kill came too late, which a busy machine may do
            assert (here.site / "helper.py").is_file()
            portolan.env("remove", "runner")
            continue
        assert here.state == "half installed"
        assert interpreters.python_for("runner") is None
        support = Runner().probe(this_machine())
        assert (support.ready, support.fix) == (False, "portolan env repair runner")
        assert support.reason == "the environment `runner` is half installed"
        portolan.env("remove", "runner")
    shutil.copytree(NUMPY / "numpy" / "random", shop.root / "runner" / "lib")  # what a kill may leave behind
    for action in ("repair", "repair", "add"):
        portolan.env(action, "runner")
        assert found().state == "ready"


def test_what_cannot_be_installed_says_why_and_stays_unfinished(shop: Shop) -> None:
    (shop.wheels / "helper-2.5-py3-none-any.whl").unlink()
    with pytest.raises(NoBackend, match=r"`runner` could not be installed: .*helper==2\.5") as caught:
        portolan.env("add", "runner")
    assert caught.value.hint == "portolan env repair runner"
    assert found().state == "half installed"
    wheel(shop.wheels, "helper", "2.5")
    portolan.env("add", "runner")
    assert found().state == "ready"


def test_only_wheels_are_installed(shop: Shop, tmp_path: Path) -> None:
    """A source distribution would run code of its own."""
    (shop.wheels / "helper-2.5-py3-none-any.whl").unlink()
    source = tmp_path / "helper-2.5"
    source.mkdir()
    (source / "setup.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    shutil.make_archive(str(shop.wheels / "helper-2.5"), "gztar", tmp_path, "helper-2.5")
    with pytest.raises(NoBackend):
        portolan.env("add", "runner")
    assert not (tmp_path / "ran").exists()


def test_dependencies_that_are_not_pinned_do_not_come_along(shop: Shop) -> None:
    info = "runner-1.0.dist-info"
    needy = {"runner.py": "", f"{info}/x": ""}
    wheel(shop.wheels, "runner", "1.0", needy)
    wheel(shop.wheels, "stowaway", "9.0")
    portolan.env("add", "runner")
    assert "stowaway" not in environments.installed(found().site)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda here: next(here.site.glob("helper-*")).rename(here.site / "helper-2.6.dist-info"), "has `helper` 2.6"),
        (lambda here: shutil.rmtree(next(here.site.glob("helper-*"))), "lacks `helper`"),
        (lambda here: here.python.unlink(), "the interpreter of the environment `runner` is gone"),
        (lambda here: (here.folder / environments.STAMP).write_text("{"), "is half installed"),
    ],
)
def test_one_that_was_changed_is_not_used_and_can_be_repaired(
    made: environments.Found, change: object, reason: str
) -> None:
    assert callable(change)
    change(made)
    support = Runner().probe(this_machine())
    assert not support.ready
    assert reason in (support.reason or "")
    assert support.fix == "portolan env repair runner"
    assert interpreters.python_for("runner") is None
    portolan.env("repair", "runner")
    assert found().state == "ready"


def test_a_newer_portolan_wants_other_versions(made: environments.Found, shop: Shop) -> None:
    shop.plan("runner", PLAN.replace("1.0", "1.1"))
    wheel(shop.wheels, "runner", "1.1")
    support = Runner().probe(this_machine())
    assert support.reason == "the environment `runner` has `runner` 1.0 where 1.1 is wanted"
    portolan.env("add", "runner")
    assert Runner().versions()["runner"] == "1.1"


def test_a_build_for_this_machine_is_the_pinned_version(shop: Shop) -> None:
    """PyTorch's own index calls it 2.13.0+cpu."""
    (shop.wheels / "runner-1.0-py3-none-any.whl").unlink()
    wheel(shop.wheels, "runner", "1.0+cpu")
    portolan.env("add", "runner")
    assert (found().state, found().version) == ("ready", "1.0+cpu")


def start(here: environments.Found) -> Worker:
    # The environment of the test has no NumPy, which every worker needs: this one's is lent to it.
    (here.site / "lent.pth").write_text(f"{NUMPY}\n")
    return Worker(python=[str(here.python)])


def test_one_in_use_is_not_removed(made: environments.Found) -> None:
    with start(made) as worker:
        worker.ask("hello", timeout=60)
        for action in ("remove", "repair"):
            with pytest.raises(UsageError, match="the environment `runner` is in use") as caught:
                portolan.env(action, "runner")
            assert "--force" in (caught.value.hint or "")
        assert found().state == "ready"
    portolan.env("remove", "runner")
    assert found().state == "absent"
    with pytest.raises(UsageError, match="there is no environment `runner`"):
        portolan.env("remove", "runner")


def test_one_that_is_removed_while_in_use_is_named_in_the_error(made: environments.Found) -> None:
    with start(made) as worker:
        worker.ask("hello", timeout=60)
        portolan.env("remove", "runner", force=True)
        with pytest.raises(EnvironmentGone, match="`runner` was removed while it was in use") as caught:
            worker.ask("probe", timeout=60, backend="reference", target={})
    assert caught.value.hint == "portolan env add runner"
    assert not lasting(caught.value)
    with pytest.raises(EnvironmentGone):
        Worker(python=[str(made.python)])


def test_two_commands_do_not_meet(made: environments.Found) -> None:
    import fcntl

    with (environments.root() / ".runner.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UsageError, match="another command is working on the environment `runner`"):
            portolan.env("add", "runner")


def test_names_and_actions_are_checked_first(shop: Shop) -> None:
    with pytest.raises(UnknownName, match="`runer`") as caught:
        portolan.env("add", "runner", "runer")
    assert "`runner`" in (caught.value.hint or "")
    assert not shop.root.exists()
    with pytest.raises(UnknownName, match="action of `env` named `ad`"):
        portolan.env("ad", "runner")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="`env add` needs a name"):
        portolan.env("add")
    with pytest.raises(UsageError, match="no environment `runner` to repair"):
        portolan.env("repair", "runner")


def test_a_line_that_pins_nothing_is_refused(shop: Shop) -> None:
    shop.plan("runner", PLAN + "loose>=1  # MIT\n")
    with pytest.raises(PortolanError, match="`loose>=1  # MIT` is no pinned requirement") as caught:
        portolan.env("add", "runner")
    assert caught.value.where == "runner.txt:4"


def test_doctor_shows_them(made: environments.Found) -> None:
    from portolan.core import doctor

    class Names:
        def names(self) -> list[str]:
            return ["runner"]

        def get(self, name: str) -> Backend:
            return Runner()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(doctor, "BACKENDS", Names())
        row = doctor.examine(this_machine())["backends"][0]
        assert (row["ready"], row["version"], row["environment"]["size"]) == (True, "1.0", made.size)
        (made.folder / environments.STAMP).unlink()
        row = doctor.examine(this_machine())["backends"][0]
        assert (row["ready"], row["fix"]) == (False, "portolan env repair runner")


#: Families of licences under which a package may be used beside Apache-2.0 code, as SPDX writes them.
ALLOWED = re.compile(r"(Apache|BSD|MIT|PSF|Python|ISC|Zlib|MPL|Unlicense|CC0|HPND|BSL|0BSD|NCSA)[\w.-]*", re.IGNORECASE)


@pytest.mark.parametrize("name", environments.names())
def test_the_plans_pin_everything_and_name_licences(name: str) -> None:
    plan = environments.plan(name)
    assert plan.about
    assert plan.pins
    assert len({environments.normal(pin.name) for pin in plan.pins}) == len(plan.pins)
    for pin in plan.pins:
        parts = re.split(r" (?:AND|OR) ", re.sub(r" WITH [\w-]+", "", pin.licence))
        assert all(ALLOWED.match(part.strip("() ")) for part in parts), f"{pin.name}: {pin.licence}"
    assert plan.options == () or all(re.match(r"--(extra-)?index-url https://", o) for o in plan.options)


def test_compiled_artefacts_are_missed_when_a_version_changes(
    made: environments.Found, shop: Shop, tmp_path: Path
) -> None:
    """The key of what is compiled holds the versions of the environment that compiles."""
    case = cases(tmp_path / "models")[0]
    data = generate(case.model.signature, 4, 0)
    samples = Samples(data, tmp_path / "data.npz", (0, 1), (2, 3), True)

    def key() -> str:
        workspace = Workspace(tmp_path / "study")
        try:
            builder = Builder(workspace, case.model, this_machine(), {"runner": Runner()}, samples)
            return builder.compiled_key(Recipe((), "runner"), case.model)
        finally:
            workspace.close()

    before = key()
    assert key() == before
    shop.plan("runner", PLAN.replace("2.5", "2.6"))
    wheel(shop.wheels, "helper", "2.6")
    portolan.env("repair", "runner")
    assert Runner().versions() == {"runner": "1.0", "helper": "2.6"}
    assert key() != before


def test_the_stamp_says_what_is_there(made: environments.Found) -> None:
    stamp = json.loads((made.folder / environments.STAMP).read_text())
    assert stamp["packages"]["runner"] == "1.0"
    assert stamp["size"] == made.size
