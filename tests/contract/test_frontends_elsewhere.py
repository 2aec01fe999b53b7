"""The heavy front ends, through a worker in whichever interpreter has their packages.

`PORTOLAN_PYTHON_JAX` and `PORTOLAN_PYTHON_TENSORFLOW` name it, or `portolan env add` made it in the folder that
`PORTOLAN_TEST_ENVS` names; without, these skip.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from portolan.core.model import Model
from portolan.errors import ModelError, UsageError
from portolan.frontends.factory import factory
from portolan.frontends.jax import jax
from portolan.frontends.tensorflow_ import tensorflow
from portolan.testing.frontend import FrontendContract
from support import elsewhere

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600), pytest.mark.usefixtures("tested_environments")]

JAX = """
import jax, jax.numpy as jnp
import numpy as np
weights = np.random.default_rng(0).standard_normal((6, 3)).astype(np.float32)

def net(x):
    return {"scores": jax.nn.softmax(jnp.tanh(x) @ weights), "best": jnp.argmax(x @ weights, axis=-1)}

def make():
    return net, jnp.ones((2, 6)), ["features"]

def branch(x):
    return x if x.sum() > 0 else -x

def branching():
    return branch, jnp.ones((2, 6))

def words():
    return net, np.array(["a"])

def broken():
    return lambda x: undefined, jnp.ones(2)
"""
KERAS = """
import keras
import tensorflow as tf
keras.utils.set_random_seed(0)
model = keras.Sequential([keras.Input((8, 8, 3), name="image"), keras.layers.Conv2D(4, 3, activation="relu"),
                          keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(2)])
"""
WRITES = """
class Writes(tf.Module):
    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32)])
    def run(self, a):
        tf.io.write_file("ran", "x")
        return {"y": a}
writes = Writes()
tf.saved_model.save(writes, "writes", signatures=writes.run)
"""
WORDS = """
class Words(tf.Module):
    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
    def run(self, a):
        return {"y": tf.strings.length(a)}
words = Words()
tf.saved_model.save(words, "words", signatures=words.run)
"""


class TestJaxFactory(FrontendContract):
    front_end = factory

    def source(self, folder: Path) -> str:
        (folder / "net.py").write_text(JAX)
        return f"{folder / 'net.py'}:make"

    def damaged(self, folder: Path) -> str:
        (folder / "net.py").write_text(JAX)
        return f"{folder / 'net.py'}:branching"

    def load(self, source: Any, out: Path, name: str | None = None) -> Model:
        return elsewhere.load(jax, source, out, name=name)


class TestKerasFile(FrontendContract):
    front_end = tensorflow

    def source(self, folder: Path) -> Path:
        elsewhere.written(tensorflow, KERAS + "model.save('net.keras')", folder)
        return folder / "net.keras"

    def damaged(self, folder: Path) -> Path:
        path = folder / "bad.keras"
        path.write_bytes(b"PK\x03\x04")
        return path

    def load(self, source: Any, out: Path, name: str | None = None) -> Model:
        return elsewhere.load(tensorflow, source, out, name=name)


def test_a_jax_function_is_itself_the_model_where_it_takes_inputs(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(JAX)
    model = elsewhere.load(jax, f"{tmp_path / 'net.py'}:net", tmp_path / "out", {"x": ("batch", 6)})
    assert [str(spec) for spec in model.signature.inputs] == ["x:batchx6 float32"]
    assert [str(spec) for spec in model.signature.outputs] == ["best:batch int32", "scores:batchx3 float32"]


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("branching", ModelError, "cannot be written as ONNX by jax2onnx"),
        ("words", UsageError, "holds strings"),
        ("broken", UsageError, "raised NameError on its example inputs"),
        ("net", UsageError, "has no example inputs, and no shape for `x`"),
    ],
)
def test_jax_functions_refused(name: str, kind: type[Exception], words: str, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(JAX)
    with pytest.raises(kind, match=words):
        elsewhere.load(jax, f"{tmp_path / 'net.py'}:{name}", tmp_path / "out")


def test_saved_models(tmp_path: Path) -> None:
    lambdas = "keras.Sequential([keras.Input((2,)), keras.layers.Lambda(lambda x: x + 1)]).save('own.keras')\n"
    elsewhere.written(tensorflow, KERAS + "model.export('saved', verbose=False)\n" + lambdas + WRITES + WORDS, tmp_path)
    model = elsewhere.load(tensorflow, tmp_path / "saved", tmp_path / "out")
    assert [str(spec) for spec in model.signature.inputs] == ["image:batchx8x8x3 float32"]
    assert (model.name, model.format) == ("saved", "tensorflow")
    sized = elsewhere.load(tensorflow, tmp_path / "saved", tmp_path / "out", {"image": (4, 8, 8, 3)})
    assert sized.signature.batch == 4
    with pytest.raises(UsageError, match="no input named `picture`"):
        elsewhere.load(tensorflow, tmp_path / "saved", tmp_path / "out", {"picture": (4, 8, 8, 3)})
    with pytest.raises(ModelError, match="reaches outside itself: `WriteFile`"):
        elsewhere.load(tensorflow, tmp_path / "writes", tmp_path / "out")
    assert not (tmp_path / "ran").exists()
    with pytest.raises(UsageError, match="holds strings"):
        elsewhere.load(tensorflow, tmp_path / "words", tmp_path / "out")
    with pytest.raises(ModelError, match="code that is not Keras's: `Lambda`"):
        elsewhere.load(tensorflow, tmp_path / "own.keras", tmp_path / "out")
    (tmp_path / "saved" / "saved_model.pb").write_bytes(b"\xff\xff")
    with pytest.raises(ModelError, match="is not a SavedModel, or is truncated"):
        elsewhere.load(tensorflow, tmp_path / "saved", tmp_path / "out")
