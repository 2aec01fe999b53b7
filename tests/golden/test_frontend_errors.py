"""What front ends say of sources that they cannot read: text, place, hint and exit code, word for word.

After a wanted change: `UPDATE_GOLDEN=1 pytest tests/golden/test_frontend_errors.py`, and read the diff.
"""

from __future__ import annotations

import json
import os
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from portolan.core import environments
from portolan.errors import PortolanError
from portolan.frontends import _keras_files as keras_files
from portolan.frontends import load
from portolan.frontends.jax import jax
from portolan.frontends.trees import trees

GOLDEN = Path(__file__).with_name("frontend_errors.txt")
pytest.importorskip("skl2onnx")
pytest.importorskip("onnxmltools")
OUT = Path("out")

CODE = """
import numpy as np
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.linear_model import LinearRegression

x = np.arange(12.0).reshape(6, 2)


def raw():
    return LinearRegression()


def narrow():
    return LinearRegression().fit(x, x[:, 0]), x[:, :1]


def words():
    return LinearRegression().fit(x, x[:, 0]), ["a"]


def two_names():
    return LinearRegression().fit(x, x[:, 0]), x, ["a", "b"]


def four():
    return 1, 2, 3, 4


def number():
    return 3


def categories():
    return HistGradientBoostingRegressor(max_iter=1, categorical_features=[0]).fit(x, x[:, 0])
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fit.py").write_text(CODE)
    (tmp_path / "net.py").write_text("import jax\n\n\ndef net(x):\n    return x\n")
    for folder, config in {
        "text": "[1, 2",
        "nameless": "{}",
        "bare": '{"architectures": ["BertModel"]}',
        "pickled": '{"architectures": ["BertModel"]}',
        "saved": None,
    }.items():
        (tmp_path / folder).mkdir()
        if config is not None:
            (tmp_path / folder / "config.json").write_text(config)
    (tmp_path / "pickled" / "pytorch_model.bin").write_bytes(b"")
    (tmp_path / "saved" / "saved_model.pb").write_bytes(b"")
    (tmp_path / "broken.keras").write_bytes(b"PK")
    layer = {"module": "keras.layers", "class_name": "Lambda"}
    for name, config_ in {"lambda": layer, "foreign": {"module": "os", "class_name": "Sequential"}}.items():
        with zipfile.ZipFile(tmp_path / f"{name}.keras", "w") as archive:
            archive.writestr("config.json", json.dumps({"config": {"layers": [config_]}}))
    (tmp_path / "bad.txt").write_text("no trees")
    return tmp_path


def made(folder: Path, versions: dict[str, str]) -> None:
    """What a look at an environment sees: half installed, or whole with other `versions` of packages."""
    site = folder / "lib" / "python3.11" / "site-packages"
    site.mkdir(parents=True)
    if versions:
        for pin in environments.plan(folder.name).pins:
            name = pin.name.replace("-", "_")
            (site / f"{name}-{versions.get(pin.name, pin.version)}.dist-info").mkdir()
        (folder / "bin").mkdir()
        (folder / "bin" / "python").touch()
        (folder / environments.STAMP).write_text('{"size": 1}')


def without(
    *modules: str, environment: str | None = None, **versions: str
) -> Callable[[str], Callable[[pytest.MonkeyPatch], object]]:
    """Loads a source where these modules are missing, and an environment is half installed or has other `versions`."""

    def loading(source: str) -> Callable[[pytest.MonkeyPatch], object]:
        def run(patch: pytest.MonkeyPatch) -> object:
            for module in modules:
                patch.setitem(sys.modules, module, None)
            patch.setenv("PORTOLAN_ENVS", str(Path("envs").absolute()))
            if environment is not None:
                made(Path("envs") / environment, versions)
            return load(source, out=OUT)

        return run

    return loading


def here(source: str) -> Callable[[pytest.MonkeyPatch], object]:
    return without()(source)


CASES: dict[str, Callable[[pytest.MonkeyPatch], object]] = {
    "a pickled estimator": here("gone.pkl"),
    "an old Keras file": here("gone.h5"),
    "a factory of something else": here("fit.py:number"),
    "a factory of too much": here("fit.py:four"),
    "an estimator that is not fitted": here("fit.py:raw"),
    "samples that are too narrow": here("fit.py:narrow"),
    "samples that are no table": here("fit.py:words"),
    "two names for one input": here("fit.py:two_names"),
    "splits by category": here("fit.py:categories"),
    "a skops file that is not there": here("gone.skops"),
    "trees that are not there": here("gone.ubj"),
    "a configuration that is no JSON": here("text"),
    "a configuration without an architecture": here("nameless"),
    "a folder without weights": here("bare"),
    "a folder with pickled weights": here("pickled"),
    "skl2onnx is missing": without("skl2onnx")("fit.skops"),
    "onnxmltools is missing": without("onnxmltools")("bad.txt"),
    "lightgbm is missing": without("lightgbm")("bad.txt"),
    "transformers is missing": without("transformers")("bare"),
    "TensorFlow is missing": without("tensorflow", "tf2onnx")("saved"),
    "JAX is missing": without("jax", "jax2onnx")("net.py:net"),
    "JAX is half installed": without("jax", "jax2onnx", environment="jax")("net.py:net"),
    "TensorFlow is there in other versions": without("tensorflow", "tf2onnx", environment="tensorflow", keras="3.0")(
        "saved"
    ),
    "a Keras file that is none": lambda _: keras_files.keras(Path("broken.keras")),
    "a Keras file that is not there": lambda _: keras_files.keras(Path("gone.keras")),
    "a Keras file with a Lambda": lambda _: keras_files.keras(Path("lambda.keras")),
    "a Keras file with a foreign class": lambda _: keras_files.keras(Path("foreign.keras")),
}


def told(name: str, action: Callable[[pytest.MonkeyPatch], object]) -> str:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(PortolanError) as caught:
        action(patch)
    error = caught.value
    lines = [name, f"exit {error.exit_code}: {error.message}"]
    lines += [f"  at {error.where}"] if error.where else []
    return "\n".join([*lines, f"  hint: {error.hint}"])


def test_every_error(place: Path) -> None:
    del place
    pytest.importorskip("transformers")
    text = "\n\n".join(told(name, action) for name, action in CASES.items()) + "\n"
    if os.environ.get("UPDATE_GOLDEN"):
        GOLDEN.write_text(text, encoding="utf-8")
    assert text == GOLDEN.read_text(encoding="utf-8")


def test_the_front_ends_without_their_frameworks_accept_files_only() -> None:
    assert not jax.accepts(np.zeros(3))
    assert not trees.accepts(np.zeros(3))
