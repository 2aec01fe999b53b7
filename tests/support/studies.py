"""Studies on the scripted backend: a tiny model, a search cut short, and a place to run it in."""

from __future__ import annotations

import functools
import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from portolan.study.served import Level

SRC = Path(__file__).parents[2] / "src"
DRIVER = Path(__file__).with_name("driver.py")
CEILINGS = {"flops_fp32": 1e11, "flops_int8": None, "bandwidth": 1e10, "cores": 2, "detail": {}}


def matmul(
    path: Path, *, seed: int = 0, inner: int = 8, nodes: tuple[str, ...] = ("MatMul",), batch: int | str = "n"
) -> Path:
    """`y = x @ w`, 4 classes from 8 numbers; further nodes such as `Log` after it."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weights = np.random.default_rng(seed).standard_normal((inner, 4)).astype(np.float32)
    made, last = [], "x"
    for i, op in enumerate(nodes):
        out = "y" if i == len(nodes) - 1 else f"h{i}"
        made.append(helper.make_node(op, [last, "w"] if op == "MatMul" else [last], [out]))
        last = out
    graph = helper.make_graph(
        made, "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, inner])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 4])],
        [numpy_helper.from_array(weights, "w")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 9
    onnx.save(model, str(path))
    return path


def labelled(path: Path, model_seed: int = 0, rows: int = 64, right: float = 1.0) -> Path:
    """Data with labels that the model of `matmul` gets right, for a share of the rows."""
    rng = np.random.default_rng(7)
    x = rng.standard_normal((rows, 8)).astype(np.float32)
    weights = np.random.default_rng(model_seed).standard_normal((8, 4)).astype(np.float32)
    labels = (x @ weights).argmax(1)
    wrong = rng.random(rows) >= right
    np.savez(path, x=x, labels=np.where(wrong, (labels + 1) % 4, labels))
    return path


def shorten(setattr_: Callable[..., None], starts: int = 5) -> None:
    """Cuts every measurement to a few hundredths of a second, and the race to `starts` starts.

    Below five starts a race claims nothing, so the untouched model wins where only speed counts. The baseline is the
    fake's: nothing scripted would ever be faster than a real runtime on a tiny model.
    """
    from portolan.measure import lock, profile, roofline
    from portolan.search import space
    from portolan.study import finals, optimize, probe, runner, served

    setattr_(runner, "LEVELS", ((0.03, 1), (0.06, 1)))
    setattr_(profile, "SECONDS", 0.01)
    setattr_(profile, "LIMIT", 8)
    setattr_(served, "LEVELS", LOADS)
    setattr_(served, "TRIED", 2)
    setattr_(served, "CLAIMED", 1)
    setattr_(probe, "SHORTEST", 0.05)
    setattr_(probe, "LONGEST", 0.05)
    setattr_(finals, "WARM_UP", 0.02)
    setattr_(finals, "STARTS", starts)
    setattr_(finals, "MOST_STARTS", starts)
    setattr_(finals, "LOADED", float("inf"))
    setattr_(finals, "race", functools.partial(finals.race, blocks=3))
    setattr_(finals, "_block_seconds", lambda chosen, trials: 0.02)
    setattr_(roofline, "ceilings", lambda cores: CEILINGS)
    # A lock of its own: these timings disturb nobody, and nobody's measuring should hold up the tests.
    setattr_(lock, "lock_path", lambda folder=None: Path(os.environ["PORTOLAN_CACHE"]).with_name("lock"))
    for module in (space, optimize):
        setattr_(module, "DEFAULT_BACKEND", "fake")


#: Loads of a fraction of a second, for 95th percentiles: a 99th takes 459 calls.
LOADS = (Level(60, 0.2, None, 1, "tried"), Level(60, 0.2, None, 1, "loaded"))


class Lab:
    """A folder with a model and a script, in which studies are made."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model = matmul(folder / "tiny.onnx")
        self.script()

    def script(self, **variants: Mapping[str, Any]) -> None:
        """Writes the script: `default` at 4 ms unless it is given."""
        self.speeds({}, **variants)

    def speeds(self, speed: Mapping[str, float], **variants: Mapping[str, Any]) -> None:
        everything = {"default": {"latency_ms": 4.0}, **variants}
        (self.folder / "script.json").write_text(json.dumps({"variants": everything, "speed": speed}))

    @property
    def env(self) -> dict[str, str]:
        """What a process needs to find the script, a cache of its own, and this Portolan."""
        return {
            "PORTOLAN_FAKE": str(self.folder / "script.json"),
            "PORTOLAN_CACHE": str(self.folder / "cache"),
            "PYTHONPATH": str(SRC),
            "HOME": str(self.folder),
        }

    def optimize(self, *, starts: int = 5, **options: Any) -> Any:
        """`portolan.optimize` on the fake alone, without passes, in this process."""
        import portolan

        with pytest.MonkeyPatch.context() as patch:
            shorten(patch.setattr, starts)
            defaults = {
                "study": self.folder / "study", "backend": ["fake"], "recipe": {"passes": []}, "budget": "40 trials",
            }  # fmt: skip
            return portolan.optimize(options.pop("model", self.model), **{**defaults, **options})

    def command(self, *words: object, starts: int = 5) -> list[str]:
        """The argv of `portolan` with short measurements."""
        return [sys.executable, str(DRIVER), str(starts), *map(str, words)]

    def start(self, *words: object, starts: int = 5, env: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
        """`portolan` with short measurements, in a process (group) of its own."""
        return subprocess.Popen(
            self.command(*words, starts=starts), env={**os.environ, **self.env, **(env or {})}, cwd=self.folder,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip

    def run(
        self, *words: object, starts: int = 5, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """The same, to its end."""
        with self.start(*words, starts=starts, env=env) as process:
            out, err = process.communicate(timeout=240)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def optimize_words(self, *more: object, study: str = "study") -> list[object]:
        """The words of the usual `optimize` command."""
        (self.folder / "plain.toml").write_text("passes = []")
        return [
            "optimize", self.model, "--backend", "fake", "--recipe", "plain.toml", "--study", study, "--budget",
            "40 trials", *more,
        ]  # fmt: skip


def events(study: Path, kind: str) -> list[tuple[str, dict[str, Any]]]:
    """The ledger's events of a kind, read past Portolan."""
    with sqlite3.connect(study / "ledger.sqlite") as db:
        rows = db.execute("SELECT key, data FROM events WHERE kind = ? ORDER BY id", (kind,)).fetchall()
    db.close()
    return [(key, json.loads(data)) for key, data in rows]


def sound(study: Path) -> None:
    """Asserts that the ledger is whole, numbers are unique, and every built folder is complete."""
    with sqlite3.connect(study / "ledger.sqlite") as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        keys = [row[0] for row in db.execute("SELECT key FROM events WHERE kind = 'trial'")]
    db.close()
    assert len(keys) == len(set(keys))
    for kind in ("models", "artefact", "compiled"):
        for folder in (study / kind).glob("*"):
            assert json.loads((folder / "facts.json").read_text())
            assert (folder / "files").is_dir()


def named(study: Any, variant: str) -> Any:
    """The trial of that variant."""
    return next(t for t in study.trials if t.recipe.options.get("variant", "default") == variant)
