"""Models of more than 2 GiB through JAX and TensorFlow: their weights go into a file beside the graph. Mostly zeros."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from portolan.core.frontend import FrontEnd
from portolan.errors import ModelError
from portolan.frontends.jax import jax
from portolan.frontends.tensorflow_ import tensorflow
from support import elsewhere

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.usefixtures("tested_environments")]

#: Five matrices of half a GiB; the first row of each is there.
JAX = """
import jax
import numpy as np

def layer(seed, rows, columns):
    weights = np.zeros((rows, columns), np.float32)
    weights[0] = np.random.default_rng(seed).standard_normal(columns)
    return weights

WEIGHTS = [layer(i, *((8192, 16384) if i % 2 == 0 else (16384, 8192))) for i in range(5)]

def net(x):
    for weights in WEIGHTS:
        x = x @ weights
    return x

def make():
    return net, np.ones((1, 8192), np.float32), ["x"]
"""
KERAS = """
import keras
import tensorflow as tf

class Mostly(keras.initializers.Initializer):
    def __call__(self, shape, dtype=None):
        first = tf.random.stateless_normal((1, shape[1]), seed=(1, 2))
        return tf.concat([first, tf.zeros((shape[0] - 1, shape[1]))], 0)

def dense(units):
    return keras.layers.Dense(units, use_bias=False, kernel_initializer=Mostly())

def make():
    return keras.Sequential([keras.Input((8192,), name="x"), *map(dense, (16384, 8192, 16384, 8192, 16384))])
"""
SAVED = """
import tensorflow as tf

class Net(tf.Module):
    def __init__(self):
        self.parts = [tf.Variable(tf.zeros((8192, 16384))) for _ in range(5)]

    @tf.function(input_signature=[tf.TensorSpec([1, 8192], tf.float32, name="x")])
    def run(self, x):
        return {"y": tf.add_n([x @ part for part in self.parts])}

net = Net()
tf.saved_model.save(net, "saved", signatures=net.run)
"""


@pytest.mark.parametrize(("front_end", "code"), [(jax, JAX), (tensorflow, KERAS)], ids=["jax", "tensorflow"])
def test_weights_beyond_what_one_message_holds(front_end: FrontEnd, code: str, tmp_path: Path) -> None:
    """Reading compares the graph with the framework, so a model that comes back computes what its source does."""
    (tmp_path / "net.py").write_text(code)
    model = elsewhere.load(front_end, f"{tmp_path / 'net.py'}:make", tmp_path / "out")
    assert [spec.name for spec in model.signature.inputs] == ["x"]
    beside = model.path.with_name(f"{model.path.name}.data")
    assert beside.stat().st_size >= 5 * 4 * 8192 * 16384
    assert model.path.stat().st_size < 1_000_000
    onnx.checker.check_model(str(model.path))


def test_a_saved_model_beyond_it_is_refused_before_it_is_converted(tmp_path: Path) -> None:
    elsewhere.written(tensorflow, SAVED, tmp_path)
    with pytest.raises(ModelError, match=r"has 2\.5 GiB of weights, and tf2onnx writes at most 2 GiB of a SavedModel"):
        elsewhere.load(tensorflow, tmp_path / "saved", tmp_path / "out")
