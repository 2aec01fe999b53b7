"""Encoders of padded sentences, for tests of what cuts padding off."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper as nh

from portolan.core.graph import load_model
from portolan.core.model import Model

WORDS, WIDTH, LENGTH = 40, 16, 24
POOLS = {
    "mean": "m3 = Unsqueeze (mask, last) mf = Cast <to=1> (m3) hm = Mul (h, mf) top = ReduceSum <keepdims=0> (hm, one) "
    "count = ReduceSum <keepdims=0> (mf, one) y = Div (top, count)",
    "first": "y = Gather <axis=1> (h, zero)",
    "range": "f = Slice (h, first, one, one) y = Squeeze (f, one)",
    "everything": "y = ReduceSum <keepdims=0> (h, one)",
    "average": "y = ReduceMean <keepdims=0> (h, one)",
    "second": "y = Gather <axis=1> (h, single)",
    "hidden": "y = Identity (h)",
}
#: How the sizes of heads are written: copied from the input, filled up, or counted as the model runs.
SPLITS: dict[str, tuple[str, list[int | str], list[int | str]]] = {
    "copied": ("split = Identity (sizes)", [0, "t", 2, 8], [0, "t", 16]),
    "filled": ("split = Identity (sizes)", [-1, "t", 2, 8], [-1, "t", 16]),
    "counted": (
        "whole = Shape (ids) rows = Gather <axis=0> (whole, first) split = Concat <axis=0> (rows, sizes)",
        ["t", 2, 8],
        [0, "t", 16],
    ),
}


def encoder(
    path: Path,
    pool: str = "mean",
    *,
    length: int | str = LENGTH,
    batch: int | str = "n",
    split: str = "copied",
    mask: str = "mask",
    causal: bool = False,
    opset: int = 18,
) -> Model:
    """Words and places looked up, one attention with two heads behind a mask, a residual, and a pool."""
    made, four, three = SPLITS[split]
    fixed = isinstance(length, int)
    y = f"[{batch},{length},{WIDTH}]" if pool == "hidden" else f"[{batch},{WIDTH}]"
    inputs = f"int64[{batch},{length}] ids" + ("" if mask == "ids" else f", int64[{batch},{length}] mask")
    model = onnx.parser.parse_model(f"""
    <ir_version: 9, opset_import: ["": {opset}]>
    net ({inputs}) => (float{y} y) {{
      {"p = Equal (ids, single) np = Not (p) mask = Cast <to=7> (np)" if mask == "ids" else ""}
      e = Gather <axis=0> (table, ids)
      {"pe = Gather <axis=0> (places, order) x = Add (e, pe)" if fixed else "x = Identity (e)"}
      {made}
      q = MatMul (x, wq) q4 = Reshape (q, split) qh = Transpose <perm=[0,2,1,3]> (q4)
      k = MatMul (x, wk) k4 = Reshape (k, split) kh = Transpose <perm=[0,2,3,1]> (k4)
      v = MatMul (x, wv) v4 = Reshape (v, split) vh = Transpose <perm=[0,2,1,3]> (v4)
      m4 = Unsqueeze (mask, middle) m4f = Cast <to=1> (m4) hidden = Sub (unit, m4f) away = Mul (hidden, low)
      s = MatMul (qh, kh) {"s1 = Add (s, ahead)" if causal else "s1 = Identity (s)"} s2 = Add (s1, away)
      a = Softmax <axis=-1> (s2) c = MatMul (a, vh) ct = Transpose <perm=[0,2,1,3]> (c) cj = Reshape (ct, join)
      o = MatMul (cj, wo) r = Add (o, x) h = LayerNormalization <axis=-1> (r, scale)
      {POOLS[pool]}
    }}""")
    t = length if isinstance(length, int) else 0
    random = np.random.default_rng(0)
    shapes = {"table": (WORDS, WIDTH), "places": (64, WIDTH), "scale": (WIDTH,)}
    shapes |= dict.fromkeys(("wq", "wk", "wv", "wo"), (WIDTH, WIDTH))
    arrays = {name: random.standard_normal(size).astype("f4") for name, size in shapes.items()} | {
        "order": np.arange(t)[None],
        "ahead": np.triu(np.full((t, t), -10000.0, "f4"), 1)[None, None],
        "sizes": np.array([t if size == "t" else size for size in four]),
        "join": np.array([t if size == "t" else size for size in three]),
        "low": np.float32(-10000), "unit": np.float32(1), "zero": np.array(0), "single": np.array(1),
        "first": np.array([0]), "one": np.array([1]), "last": np.array([-1]), "middle": np.array([1, 2]),
    }  # fmt: skip
    used = {name for node in model.graph.node for name in node.input}
    model.graph.initializer.extend(nh.from_array(a, n) for n, a in arrays.items() if n in used)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)
    return load_model(path)


def sentences(lengths: list[int], size: int = LENGTH, seed: int = 0) -> dict[str, np.ndarray]:
    """Ids from 2 up, and a mask; what is under the padding is random too."""
    random = np.random.default_rng(seed)
    mask = (np.arange(size) < np.array(lengths)[:, None]).astype(np.int64)
    return {"ids": random.integers(2, WORDS, (len(lengths), size)), "mask": mask}
