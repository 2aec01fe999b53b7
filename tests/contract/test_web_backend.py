"""ONNX Runtime Web passes the contract under Node and in a browser. The packages come from a target that was added:
PORTOLAN_TEST_WEB names the folder of `target add` with `wasm` and `webgpu` in it, which `make test-all` makes."""

from __future__ import annotations

import os
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from portolan.backends import _engine
from portolan.backends._engine import EngineLost
from portolan.backends.onnxruntime_web import onnxruntime_web
from portolan.core.passes import Context
from portolan.core.target import Target
from portolan.passes.trim import trim
from portolan.testing import BackendContract
from portolan.testing.models import cases, this_machine
from portolan.testing.passes import run
from support.padded import LENGTH, encoder, sentences

FOLDER = os.environ.get("PORTOLAN_TEST_WEB")


def added(name: str) -> pytest.MarkDecorator:
    there = bool(FOLDER) and (Path(FOLDER or "") / name / _engine.SETTINGS).is_file()
    return pytest.mark.skipif(not there, reason=f"needs PORTOLAN_TEST_WEB, a folder with an added target `{name}`")


def web(name: str) -> Target:
    return Target(name, "emulated", "wasm32", ("simd128",), 1, 2**30)


class OnTheWeb(BackendContract):
    backend = onnxruntime_web
    name = "wasm"

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def place(cls) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(_engine.VARIABLE, str(Path(FOLDER or "") / cls.name))
            yield

    def target(self) -> Target:
        return web(self.name)

    def test_a_length_may_depend_on_the_data(self, tmp_path: Path) -> None:
        """Models whose padding is cut off run here too."""
        model = encoder(tmp_path / "net.onnx")
        (tmp_path / "out").mkdir()
        short = trim(model, Context(tmp_path / "out", self.target(), sentences([3, 7, 2, 9, 4, 6, 5, 8])))
        assert onnxruntime_web.refuse(short, self.target()) is None
        executable = onnxruntime_web.compile(short, self.target())
        try:
            for lengths in ([1], [9, 2], [LENGTH]):
                feeds = sentences(lengths)
                np.testing.assert_allclose(executable.run(feeds)["y"], run(model, feeds)["y"], rtol=1e-4, atol=1e-5)
        finally:
            executable.close()


@pytest.mark.slow
@added("wasm")
class TestWasm(OnTheWeb):
    pass


@pytest.mark.slow
@pytest.mark.browser
@added("webgpu")
class TestWebGpu(OnTheWeb):
    name = "webgpu"


def test_it_is_not_for_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(_engine.VARIABLE, raising=False)
    for target in (this_machine(), web("wasm")):
        support = onnxruntime_web.probe(target)
        assert not support.ready
        assert support.fix == "portolan target add wasm --emulate wasm"
    assert onnxruntime_web.versions() == {}


def test_what_a_target_lost_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(_engine.VARIABLE, str(tmp_path))
    (tmp_path / _engine.SETTINGS).write_text('{"engine": "wasm", "program": "/nowhere/node"}')
    support = onnxruntime_web.probe(web("browser"))
    assert support.reason == "the package `onnxruntime-web` is gone from the target's folder"
    assert support.fix == "portolan target add browser --emulate wasm --force"
    package = tmp_path / "node_modules" / "onnxruntime-web"
    package.mkdir(parents=True)
    (package / "package.json").write_text('{"version": "1.30.0"}')
    support = onnxruntime_web.probe(web("browser"))
    assert (support.version, support.reason) == ("1.30.0", "`/nowhere/node` is gone")
    case = cases(tmp_path)[0]
    with pytest.raises(EngineLost, match="`/nowhere/node` cannot be started"):
        onnxruntime_web.compile(case.model, web("browser"))


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"engine": "wasm"}'])
def test_settings_that_cannot_be_read_are_no_web(text: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(_engine.VARIABLE, str(tmp_path))
    (tmp_path / _engine.SETTINGS).write_text(text)
    assert _engine.web() is None


@pytest.mark.slow
@added("wasm")
def test_every_element_type_that_a_frame_can_carry_comes_back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import onnx
    from onnx import helper

    from portolan.core.graph import load_model

    monkeypatch.setenv(_engine.VARIABLE, str(Path(FOLDER or "") / "wasm"))
    names = ("bool", "int8", "uint8", "int32", "int64", "float32", "float64")
    kinds = {name: helper.np_dtype_to_tensor_dtype(np.dtype(name)) for name in names}
    graph = helper.make_graph(
        [helper.make_node("Identity", [f"in_{n}"], [f"out_{n}"]) for n in names],
        "g",
        [helper.make_tensor_value_info(f"in_{n}", kinds[n], [3]) for n in names],
        [helper.make_tensor_value_info(f"out_{n}", kinds[n], [3]) for n in names],
    )
    path = tmp_path / "types.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8), path)
    found = onnxruntime_web.compile(load_model(path), web("wasm"))
    inputs = {f"in_{n}": np.array([0, 1, 2**31 - 1 if n == "int64" else 1]).astype(n) for n in names}
    try:
        outputs = found.run(inputs)
    finally:
        found.close()
    for name in names:
        assert outputs[f"out_{name}"].dtype == np.dtype(name)
        np.testing.assert_array_equal(outputs[f"out_{name}"], inputs[f"in_{name}"])


@pytest.mark.slow
@added("wasm")
def test_node_that_dies_is_told_and_not_waited_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(_engine.VARIABLE, str(Path(FOLDER or "") / "wasm"))
    case = cases(tmp_path)[0]
    found = onnxruntime_web.compile(case.model, web("wasm"))
    assert isinstance(found._engine, _engine.Node)
    found._engine._process.kill()
    with pytest.raises(RuntimeError, match="Node ended with code -9"):
        found.run(case.inputs)
    found.close()


def test_a_browser_that_shows_no_page(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(_engine, "_START", 0.2)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    program = tmp_path / "chromium"
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    program.chmod(0o755)
    with pytest.raises(EngineLost, match=r"did not start: no page within 0.2 s"):
        _engine.start(_engine.Web(tmp_path, "webgpu", str(program)))
    assert list(tmp_path.iterdir()) == [program]


def test_the_page_is_for_those_who_know_its_address(tmp_path: Path) -> None:
    """Another process of this machine gets neither a request nor a way to answer one."""
    program = tmp_path / "chromium"
    noted = tmp_path / "address"
    program.write_text(f'#!/bin/sh\nfor word in "$@"; do last=$word; done\necho "$last" > {noted}\nexec sleep 60\n')
    program.chmod(0o755)
    holder: list[_engine.Engine] = []
    starting = threading.Thread(
        target=lambda: holder.append(_engine.start(_engine.Web(tmp_path, "webgpu", str(program))))
    )
    starting.start()
    address = ""
    while not address:
        address = noted.read_text().strip() if noted.exists() else ""
    host, secret, _ = address.rsplit("/", 2)
    for place in ("page.html", "x/next", f"{'y' * len(secret)}/next", f"{secret}/dist/../../web.json"):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"{host}/{place}", timeout=20)
        assert refused.value.code == 404
    assert b"agent.mjs" in urllib.request.urlopen(address, timeout=20).read()
    waited = urllib.request.urlopen(f"{host}/{secret}/next", timeout=20)
    starting.join(30)
    assert waited.status == 204
    holder[0].close()
