"""Built-ins are found without being imported; plug-ins are found by their entry points, broken ones are named."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from portolan.core import registry
from portolan.core.registry import BACKENDS, FRONTENDS, PASSES, TARGETS, Group, Registry
from portolan.errors import PortolanError, UnknownName

GOOD = """
from portolan.core.backend import Backend, Executable
class Plugged(Backend):
    name = "plugged"
    distributions = ("portolan-plugged",)
    module = "plugged_code"
    fix = "pip install portolan-plugged"
    def compile(self, model, target): raise NotImplementedError
    def load(self, folder): raise NotImplementedError
plugged = Plugged()
class place:
    inner = plugged
"""


def install(site: Path, module: str, code: str | None, **groups: dict[str, str]) -> None:
    """A distribution as pip would leave it in `site`."""
    if code is not None:
        (site / f"{module}.py").write_text(code)
    info = site / f"portolan_{module}-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: portolan-{module}\nVersion: 1.2\n")
    lines = []
    for group, entries in groups.items():
        lines += [f"[portolan.{group}]", *(f"{name} = {value}" for name, value in entries.items()), ""]
    (info / "entry_points.txt").write_text("\n".join(lines))


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_the_built_ins_are_there() -> None:
    assert set(BACKENDS.names()) >= {"reference", "fake", "onnxruntime", "openvino", "torch"}
    assert set(PASSES.names()) >= {"simplify", "quantize"}
    assert set(FRONTENDS.names()) >= {"onnx", "torch", "demo"}
    assert TARGETS.names() == sorted(TARGETS.names())


def test_no_name_is_that_of_a_helper() -> None:
    for found in (BACKENDS, PASSES, FRONTENDS, TARGETS):
        assert not [name for name in found.names() if name.startswith("_")]


def test_every_built_in_can_be_had_under_its_name() -> None:
    for name in registry.BACKENDS.names():
        assert registry.backend(name).name == name
    for name in registry.PASSES.names():
        assert registry.pass_(name).name == name
    for name in registry.FRONTENDS.names():
        assert registry.FRONTENDS.get(name).name == name


def test_listing_names_imports_no_built_in() -> None:
    code = (
        "import json, sys; from portolan.core.registry import BACKENDS, PASSES, FRONTENDS\n"
        "names = [f'portolan.{g.group}.{n}' for g in (BACKENDS, PASSES, FRONTENDS) for n in g.names()]\n"
        "print(json.dumps([len(names), [m for m in sys.modules if m.rstrip('_') in names or m in ('numpy', 'onnx')]]))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    count, imported = json.loads(ran.stdout)
    assert count > 8
    assert imported == []


@pytest.mark.parametrize(
    ("group", "name", "message", "hint"),
    [
        ("backends", "opnvino", "no backend named `opnvino`", "did you mean `openvino`?"),
        ("passes", "quantise", "no pass named `quantise`", "did you mean `quantize`?"),
        ("frontends", "onx", "no front end named `onx`", "did you mean `onnx`?"),
    ],
)
def test_did_you_mean(group: Group, name: str, message: str, hint: str) -> None:
    with pytest.raises(UnknownName) as caught:
        Registry(group).get(name, where="r.toml")
    assert (caught.value.message, caught.value.hint, caught.value.where) == (message, hint, "r.toml")


def test_a_plug_in_is_found_by_its_entry_point(site: Path) -> None:
    install(
        site, "plugged_code", GOOD, backends={"plugged": "plugged_code:plugged", "nested": "plugged_code:place.inner"}
    )
    found = Registry("backends")
    assert {"plugged", "nested", "openvino"} <= set(found.names())
    assert "plugged_code" not in sys.modules
    assert found.get("plugged").fix == "pip install portolan-plugged"
    assert found.get("nested") is found.get("plugged")
    assert "plugged" not in Registry("passes").names()


def test_a_plug_in_does_not_replace_a_built_in(site: Path) -> None:
    install(site, "taking", GOOD, backends={"openvino": "taking:plugged"})
    assert type(Registry("backends").get("openvino")).__module__ == "portolan.backends.openvino"


@pytest.mark.parametrize(
    ("module", "code", "value", "why"),
    [
        ("broken_a", None, "broken_a:thing", "No module named 'broken_a'"),
        ("broken_b", "import no_such_runtime", "broken_b:thing", "No module named 'no_such_runtime'"),
        ("broken_c", "other = 1", "broken_c:thing", "module 'broken_c' has no attribute 'thing'"),
        ("broken_d", "1 / 0", "broken_d:thing", "ZeroDivisionError: division by zero"),
        ("broken_e", "def (", "broken_e:thing", "SyntaxError: "),
        ("broken_f", "thing = 'text'", "broken_f:thing", "it is a `str`, not an object of `Backend`"),
        ("broken_g", GOOD, "broken_g:Plugged", "it is a class `Plugged`, not an object of `Backend`"),
    ],
)
def test_a_broken_plug_in_is_named(site: Path, module: str, code: str | None, value: str, why: str) -> None:
    install(site, module, code, backends={"broken": value})
    found = Registry("backends")
    assert "broken" in found.names()
    with pytest.raises(PortolanError) as caught:
        found.get("broken")
    assert caught.value.message.startswith(f"the backend `broken` cannot be loaded from `{module}`: {why}")
    assert caught.value.hint == "reinstall the package that provides it, or remove it"
    assert caught.value.exit_code == 1


def test_passes_and_front_ends_are_checked_too(site: Path) -> None:
    install(
        site,
        "odd",
        "thing = 3",
        passes={"odd": "odd:thing"},
        frontends={"odd": "odd:thing"},
        targets={"odd": "odd:thing"},
    )
    for group, kind in (("passes", "Pass"), ("frontends", "FrontEnd")):
        with pytest.raises(PortolanError, match=f"it is a `int`, not an object of `{kind}`"):
            Registry(group).get("odd")  # type: ignore[arg-type]
    assert Registry("targets").get("odd") == 3
