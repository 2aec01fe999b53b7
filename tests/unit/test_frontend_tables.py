"""Front ends for tables: what becomes of fitted estimators and of boosted trees, and what is refused."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from portolan.errors import ModelError, NoBackend, UnsupportedOperator, UsageError, VerificationFailed
from portolan.frontends import _tabular, _verify, load

pytest.importorskip("skl2onnx")
pytest.importorskip("onnxmltools")


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((200, 4)).astype(np.float32)


@pytest.fixture(scope="module")
def labels(rows: np.ndarray) -> np.ndarray:
    return (rows[:, 0] + rows[:, 1] * rows[:, 2] > 0).astype(int)


def outputs(model: Any) -> list[str]:
    return [str(spec) for spec in model.signature.outputs]


def test_a_classifier_gives_labels_and_probabilities(tmp_path: Path, rows: np.ndarray, labels: np.ndarray) -> None:
    from sklearn.ensemble import GradientBoostingClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    fitted = make_pipeline(StandardScaler(), GradientBoostingClassifier(n_estimators=5)).fit(rows, labels)
    model = load(fitted, out=tmp_path, name="boosted")
    assert (model.format, model.name) == ("sklearn", "boosted")
    assert [str(spec) for spec in model.signature.inputs] == ["X:batchx4 float32"]
    assert outputs(model) == ["label:batch int64", "probabilities:batchx2 float32"]
    label, probabilities = _verify.run(model.path, {"X": rows})
    np.testing.assert_array_equal(label, fitted.predict(rows))
    np.testing.assert_allclose(probabilities, fitted.predict_proba(rows), atol=1e-5)


def test_histogram_trees_with_missing_values(tmp_path: Path, rows: np.ndarray, labels: np.ndarray) -> None:
    from sklearn.ensemble import HistGradientBoostingClassifier

    holed = rows.copy()
    holed[::3, 1] = np.nan
    fitted = HistGradientBoostingClassifier(max_iter=5).fit(holed, labels)
    model = load(fitted, out=tmp_path)
    np.testing.assert_allclose(_verify.run(model.path, {"X": holed})[1], fitted.predict_proba(holed), atol=1e-5)


def test_splits_by_category_are_refused_and_not_written_as_comparisons(tmp_path: Path) -> None:
    from sklearn.ensemble import HistGradientBoostingRegressor

    codes = np.random.default_rng(0).integers(0, 4, (300, 1)).astype(float)
    fitted = HistGradientBoostingRegressor(max_iter=3, categorical_features=[0]).fit(codes, codes[:, 0] % 2)
    with pytest.raises(UnsupportedOperator) as caught:
        load(fitted, out=tmp_path)
    assert "categorical features of HistGradientBoostingRegressor" in caught.value.message
    assert "OneHotEncoder" in (caught.value.hint or "")


@pytest.mark.parametrize("kind", ["regressor", "clusters", "components", "forest"])
def test_other_kinds_of_estimators(kind: str, tmp_path: Path, rows: np.ndarray, labels: np.ndarray) -> None:
    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.linear_model import Ridge

    made: dict[str, tuple[Any, list[str]]] = {
        "regressor": (Ridge(), ["variable:batchx1 float32"]),
        "clusters": (KMeans(3, n_init=1), ["label:batch int64", "scores:batchx3 float32"]),
        "components": (PCA(2), ["variable:batchx2 float32"]),
        "forest": (RandomForestRegressor(5), ["variable:batchx1 float32"]),
    }
    estimator, wanted = made[kind]
    assert outputs(load(estimator.fit(rows, labels), out=tmp_path)) == wanted


def test_columns_of_a_frame_are_inputs_strings_too(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    from sklearn.compose import ColumnTransformer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    frame = pandas.DataFrame({"age": np.linspace(1, 80, 60), "town": ["Lisboa", "Faro", "Porto"] * 20})
    steps = [("numbers", StandardScaler(), ["age"]), ("words", OneHotEncoder(), ["town"])]
    fitted = make_pipeline(ColumnTransformer(steps), LogisticRegression()).fit(frame, frame["town"] == "Faro")
    from portolan.core.frontend import Made
    from portolan.frontends.sklearn_ import sklearn

    model = sklearn.convert(Made(fitted, frame), tmp_path / "out")
    assert [str(spec) for spec in model.signature.inputs] == ["age:batchx1 float32", "town:batchx1 string"]
    holed = frame.copy()
    holed.loc[3, "town"] = None
    with pytest.raises(UsageError, match="neither numbers nor strings only"):
        sklearn.convert(Made(fitted, holed), tmp_path / "out")


def test_factories_of_estimators(tmp_path: Path) -> None:
    (tmp_path / "fit.py").write_text(
        "import numpy as np\n"
        "from sklearn.linear_model import LinearRegression\n"
        "x = np.arange(12.0).reshape(6, 2)\n"
        "def fitted():\n    return LinearRegression().fit(x, x[:, 0]), x, ['features']\n"
        "def raw():\n    return LinearRegression()\n"
        "def narrow():\n    return LinearRegression().fit(x, x[:, 0]), x[:, :1]\n"
        "def words():\n    return LinearRegression().fit(x, x[:, 0]), ['a']\n"
        "def four():\n    return 1, 2, 3, 4\n"
    )
    source = f"{tmp_path / 'fit.py'}:"
    model = load(source + "fitted", out=tmp_path / "out", shapes={"features": (3, 2)})
    assert [str(spec) for spec in model.signature.inputs] == ["features:3x2 float32"]
    for name, words in [
        ("raw", "is not fitted"),
        ("narrow", "have 1 features, it was fitted on 2"),
        ("words", "expected rows of numbers"),
        ("four", "gives a tuple of 4"),
    ]:
        with pytest.raises(UsageError, match=words):
            load(source + name, out=tmp_path / "out")


def test_a_step_that_onnx_lacks(tmp_path: Path, rows: np.ndarray) -> None:
    from sklearn.manifold import Isomap

    with pytest.raises(UnsupportedOperator, match="no ONNX for a step"):
        load(Isomap(n_neighbors=5).fit(rows), out=tmp_path)


def test_a_wrong_converter_is_caught(
    tmp_path: Path, rows: np.ndarray, labels: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sklearn.linear_model import Ridge

    honest = _verify.run
    monkeypatch.setattr(_verify, "run", lambda path, feeds: [a + 1 for a in honest(path, feeds)])
    with pytest.raises(VerificationFailed, match="does not compute what scikit-learn does: output `variable` differs"):
        load(Ridge().fit(rows, labels), out=tmp_path)


def test_few_rows_may_take_the_other_branch_and_no_more() -> None:
    wanted = np.linspace(0, 1, 400, dtype=np.float32).reshape(200, 2)
    got = wanted.copy()
    got[0] += 0.5
    assert _verify.disagreement(wanted, got) is not None
    assert _verify.disagreement(wanted, got, flips=0.01) is None
    got[:5] += 0.5
    assert _verify.disagreement(wanted, got, flips=0.01) is not None


def test_types_that_skops_does_not_know_are_not_built(tmp_path: Path) -> None:
    skops = pytest.importorskip("skops.io")
    from sklearn.preprocessing import FunctionTransformer

    path = tmp_path / "own.skops"
    skops.dump(FunctionTransformer(hostile), path)
    with pytest.raises(ModelError, match="holds types that are not known to be safe") as caught:
        load(path, out=tmp_path / "out")
    assert "file.py:factory" in (caught.value.hint or "")
    with pytest.raises(UsageError, match="there is no file"):
        load(tmp_path / "none.skops", out=tmp_path / "out")


def hostile(x: Any) -> Any:
    """A function of a test's own, which no reader can know."""
    return x


@pytest.mark.parametrize("classes", [2, 3])
def test_lightgbm_boosters(classes: int, tmp_path: Path, rows: np.ndarray) -> None:
    lightgbm = pytest.importorskip("lightgbm")
    goal = {"objective": "binary"} if classes == 2 else {"objective": "multiclass", "num_class": 3}
    settings = {**goal, "verbose": -1, "num_leaves": 5, "num_threads": 1}
    booster = lightgbm.train(settings, lightgbm.Dataset(rows, np.arange(200) % classes), num_boost_round=3)
    model = load(booster, out=tmp_path)
    assert model.format == "lightgbm"
    assert outputs(model) == ["label:batch int64", f"probabilities:batchx{classes} float32"]


def test_lightgbm_inside_a_pipeline(tmp_path: Path, rows: np.ndarray, labels: np.ndarray) -> None:
    lightgbm = pytest.importorskip("lightgbm")
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    booster = lightgbm.LGBMRegressor(n_estimators=3, verbose=-1, n_jobs=1)
    model = load(make_pipeline(StandardScaler(), booster).fit(rows, labels), out=tmp_path)
    assert outputs(model) == ["variable:batchx1 float32"]


def test_xgboost_in_its_own_format(tmp_path: Path, rows: np.ndarray, labels: np.ndarray) -> None:
    xgboost = pytest.importorskip("xgboost")
    settings = {"objective": "binary:logistic", "nthread": 1, "max_depth": 3}
    booster = xgboost.train(settings, xgboost.DMatrix(rows, labels), num_boost_round=4)
    booster.save_model(str(tmp_path / "small.ubj"))
    model = load(tmp_path / "small.ubj", out=tmp_path / "out")
    assert (model.name, model.format) == ("small", "xgboost")
    assert outputs(model) == ["label:batch int64", "probabilities:batchx2 float32"]
    (tmp_path / "bad.ubj").write_bytes((tmp_path / "small.ubj").read_bytes()[:100])
    with pytest.raises(ModelError, match="cannot be read by xgboost"):
        load(tmp_path / "bad.ubj", out=tmp_path / "out")


def test_trees_too_large_for_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, rows: np.ndarray) -> None:
    from sklearn.linear_model import Ridge

    monkeypatch.setattr(_tabular, "LARGEST", 50)
    with pytest.raises(ModelError, match="an ONNX file holds at most 2 GB of them"):
        load(Ridge().fit(rows, rows[:, 0]), out=tmp_path)


def test_without_the_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxmltools", None)
    with pytest.raises(NoBackend, match="needs onnxmltools, which is not installed") as caught:
        load(tmp_path / "m.txt", out=tmp_path)
    assert caught.value.hint == "pip install 'portolan[trees]'"
    monkeypatch.setitem(sys.modules, "skl2onnx", None)
    with pytest.raises(NoBackend, match="needs skl2onnx, which is not installed") as caught:
        load(tmp_path / "m.skops", out=tmp_path)
    assert caught.value.hint == "pip install 'portolan[sklearn]'"
