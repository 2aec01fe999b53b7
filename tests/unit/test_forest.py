"""Ensembles of trees answer as ONNX Runtime does, or are refused in words."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from portolan.backends import forest as module
from portolan.backends._forest.ensemble import Unreadable, read
from portolan.backends.forest import forest
from portolan.core import registry
from portolan.core.model import Model
from portolan.errors import ModelError, NoBackend, UnsupportedOperator, UsageError, VerificationFailed
from portolan.testing.models import perceptron, this_machine
from support.ensembles import MODES, Grown, boosted, reference, rows, voting

#: Kinds of votes: how many classes or sums there are, and which of them the n-th tree votes for.
KINDS: dict[str, tuple[int, Callable[[int], tuple[int, ...]]]] = {
    "one sum": (1, lambda n: (0,)),
    "two sums": (2, lambda n: (0, 1)),
    "two classes": (2, lambda n: (0,)),
    "a tree for each class": (3, lambda n: (n % 3,)),
    "a share for each class": (3, lambda n: (0, 1, 2)),
}


def loaded(proto: onnx.ModelProto, folder: Path) -> Model:
    onnx.save(proto, folder / "ensemble.onnx")
    return registry.FRONTENDS.get("onnx").load(str(folder / "ensemble.onnx"), folder)  # type: ignore[no-any-return]


def answers(proto: onnx.ModelProto, x: np.ndarray, folder: Path, threads: int = 1) -> dict[str, np.ndarray]:
    executable = forest.compile(loaded(proto, folder), this_machine(), threads=threads)
    try:
        return executable.run({"x": x})
    finally:
        executable.close()


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    kind=st.sampled_from(sorted(KINDS)),
    modes=st.lists(st.sampled_from(MODES), min_size=1, unique=True),
    transform=st.sampled_from(["NONE", "LOGISTIC", "SOFTMAX"]),
    trees=st.integers(3, 30),
    missing=st.booleans(),
    positive=st.booleans(),
    based=st.booleans(),
    how=st.sampled_from(["SUM", "AVERAGE"]),
)
def test_answers_are_those_of_onnx_runtime(
    tmp_path_factory: pytest.TempPathFactory, seed: int, kind: str, modes: list[str], transform: str, trees: int,
    missing: bool, positive: bool, based: bool, how: str,
) -> None:  # fmt: skip
    """On, above and below every threshold, at infinities and where values are missing; labels are the same."""
    random = np.random.default_rng(seed)
    grown = Grown(random, int(random.integers(1, 6)), tuple(modes), missing)
    count, targets = KINDS[kind]
    for number in range(trees):
        grown.tree(number, int(random.integers(0, 7)), targets(number), positive)
    attributes: dict[str, Any] = {"post_transform": transform}
    if based:
        attributes["base_values"] = random.normal(size=1 if kind == "two classes" else count).tolist()
    if "sum" in kind:
        proto = grown.regressor(count, aggregate_function=how, **attributes)
    else:
        proto = grown.classifier(count, **attributes)
    x = rows(random, 40, grown.features)
    if transform != "NONE" and (kind == "one sum" or (kind == "two classes" and _positive(grown))):
        with pytest.raises(UnsupportedOperator, match="which runtimes read differently"):
            answers(proto, x, tmp_path_factory.mktemp("refused"))
        return
    got, right = answers(proto, x, tmp_path_factory.mktemp("ensemble")), reference(proto, x)
    assert list(got) == list(right)
    for name, value in right.items():
        assert got[name].dtype == value.dtype
        if value.dtype.kind == "f":
            np.testing.assert_allclose(got[name], value, rtol=1e-4, atol=1e-5, err_msg=name)
        else:
            # A sum that is zero but for rounding has no side.
            close = np.abs(right["scores"] - right["scores"].max(axis=1, keepdims=True)) < 1e-5
            sure = close.sum(axis=1) == 1
            np.testing.assert_array_equal(got[name][sure], value[sure], err_msg=name)


def _positive(grown: Grown) -> bool:
    return min(grown.votes["weights"]) >= 0


def test_rows_are_answered_alike_alone_in_blocks_and_by_threads(tmp_path: Path) -> None:
    """To the last bit: a server batches, and its clients must not see it."""
    random = np.random.default_rng(1)
    for proto in (boosted(random), voting(random)):
        executable = forest.compile(loaded(proto, tmp_path), this_machine(), threads=2)
        x = rows(random, 1000, int(executable._graph.features))
        together = executable.run({"x": x})
        for part in (1, 7, 16, 17, 255, 511, 512):
            for begin in range(0, 400, max(part, 41)):
                for name, value in executable.run({"x": x[begin : begin + part]}).items():
                    assert value.tobytes() == together[name][begin : begin + part].tobytes()
        assert executable.run({"x": x[:0]})["scores"].shape == (0, together["scores"].shape[1])
        executable.close()


def test_wide_sums_find_memory(tmp_path: Path) -> None:
    """More sums than fit on the stack."""
    grown = Grown(np.random.default_rng(2), 3)
    count = 700
    grown.tree(0, 3, tuple(range(count)))
    proto = grown.classifier(count, post_transform="SOFTMAX")
    x = rows(np.random.default_rng(3), 20, 3)
    got, right = answers(proto, x, tmp_path), reference(proto, x)
    np.testing.assert_allclose(got["scores"], right["scores"], rtol=1e-4)
    np.testing.assert_array_equal(got["label"], right["label"])


def test_a_tree_may_be_deep_and_leaves_may_have_no_trees(tmp_path: Path) -> None:
    """A chain of 2,000 nodes beside a leaf that is all of its tree."""
    grown = Grown(np.random.default_rng(4), 1)
    grown.tree(0, 0, (0,))
    depth = 2000
    for place in range(2 * depth + 1):
        inner = place % 2 == 0 and place < 2 * depth
        row = {
            "treeids": 1, "nodeids": place, "featureids": 0, "values": float(place), "hitrates": 1.0,
            "modes": "BRANCH_LEQ" if inner else "LEAF", "truenodeids": place + 1 if inner else 0,
            "falsenodeids": place + 2 if inner else 0, "missing_value_tracks_true": 0,
        }  # fmt: skip
        for name, value in row.items():
            grown.nodes[name].append(value)
        if not inner:
            for name, value in (("treeids", 1), ("nodeids", place), ("ids", 0), ("weights", float(place))):
                grown.votes[name].append(value)
    proto = grown.regressor(1)
    x = np.array([[-1.0], [0.0], [777.5], [3998.0], [5000.0], [np.nan]], np.float32)
    np.testing.assert_allclose(answers(proto, x, tmp_path)["sums"], reference(proto, x)["sums"], rtol=1e-6)


BREAKS: dict[str, Callable[[dict[str, Any]], object]] = {
    "leads nowhere": lambda a: a["nodes_truenodeids"].ints.__setitem__(0, 999),
    "make no tree": lambda a: a["nodes_truenodeids"].ints.__setitem__(0, 0),
    "of the mode BRANCH_NEQ": lambda a: a["nodes_modes"].strings.__setitem__(0, b"BRANCH_NEQ"),
    "different lengths": lambda a: a["nodes_values"].floats.pop(),
    "below zero": lambda a: a["nodes_featureids"].ints.__setitem__(0, -1),
    "votes of a node that is no leaf": lambda a: a["class_nodeids"].ints.__setitem__(0, 0),
    "both of two classes": lambda a: a["class_ids"].ints.__setitem__(0, 1),
    "class_\\* of different lengths": lambda a: a["class_weights"].floats.pop(),
    "2 base_values for 1 sums": lambda a: a["base_values"].floats.append(1.0),
    "post_transform PROBIT": lambda a: setattr(a["post_transform"], "s", b"PROBIT"),
    "no nodes_modes": lambda a: setattr(a["nodes_modes"], "name", "modes"),
    "labels that are no integers": lambda a: setattr(a["classlabels_int64s"], "name", "classlabels_strings"),
    "in float64": lambda a: setattr(a["nodes_values"], "name", "nodes_values_as_tensor"),
}


@pytest.mark.parametrize("said", BREAKS)
def test_what_is_broken_or_of_another_kind_is_refused(said: str) -> None:
    """Before the kernel walks it: it would read what is not there."""
    node = boosted(np.random.default_rng(5)).graph.node[0]
    assert node.attribute
    BREAKS[said]({a.name: a for a in node.attribute})
    with pytest.raises(Unreadable, match=said):
        read(node)


@pytest.mark.parametrize("targets", [0, -1, 2**62, 2**19])
def test_sums_that_would_fill_the_memory_are_refused(targets: int) -> None:
    """Before memory is asked for."""
    grown = Grown(np.random.default_rng(14), 2)
    for number in range(40):
        grown.tree(number, 4, (0, 1))
    with pytest.raises(Unreadable, match="sums"):
        read(grown.regressor(targets).graph.node[0])


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_no_number_of_a_node_makes_it_read_elsewhere(data: st.DataObject) -> None:
    """Whatever is written over whatever: refused, or a tree whose nodes, features and targets are there."""
    node = voting(np.random.default_rng(6)).graph.node[0]
    values = {a.name: a for a in node.attribute if a.ints}
    for _ in range(data.draw(st.integers(1, 3))):
        ints = values[data.draw(st.sampled_from(sorted(values)))].ints
        ints[data.draw(st.integers(0, len(ints) - 1))] = data.draw(st.sampled_from([-1, 0, 1, 2, 5, 2**31, 2**62]))
    try:
        found = read(node)
    except Unreadable:
        return
    features = found.nodes["feature"] & np.uint32(2**31 - 1)
    assert features.max() < found.features
    inner = found.nodes["child"] != np.arange(len(found.nodes))
    assert (found.nodes["child"][inner] + 1 < len(found.nodes)).all()
    assert np.isnan(found.nodes["at"][~inner]).all()
    assert found.trees["target"].max() < len(found.base)
    assert found.votes is None or found.nodes["vote"][~inner].view(np.uint32).max() < len(found.votes)


def test_more_features_than_the_rows_have_are_refused(tmp_path: Path) -> None:
    """The kernel would read past the end of a row."""
    proto = boosted(np.random.default_rng(7))
    next(a for a in proto.graph.node[0].attribute if a.name == "nodes_featureids").ints[0] = 5
    with pytest.raises(UnsupportedOperator, match="more than 5 features"):
        forest.compile(loaded(proto, tmp_path), this_machine())


def test_nets_and_other_rows_are_refused_in_words(tmp_path: Path) -> None:
    """In tables of a search, and where it is compiled all the same."""
    net = perceptron(tmp_path).model
    assert forest.refuse(net, this_machine()) == "`forest` has no operator `Gemm`"
    proto = boosted(np.random.default_rng(8))
    proto.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "features"
    free = loaded(proto, tmp_path)
    assert "fixed number of features" in (forest.refuse(free, this_machine()) or "")
    with pytest.raises(ModelError, match="fixed number of features"):
        forest.compile(free, this_machine())


def test_whatever_of_label_and_scores_is_asked_for_is_given(tmp_path: Path) -> None:
    """A graph may name them anew, leave one out, or give both in another order."""
    x = rows(np.random.default_rng(13), 20, 5)
    proto = boosted(np.random.default_rng(13))
    right = reference(proto, x)
    node, outputs = proto.graph.node[0], list(proto.graph.output)
    node.output[1] = "inside"
    proto.graph.node.append(onnx.helper.make_node("Cast", ["inside"], ["scores"], to=onnx.TensorProto.FLOAT))
    del proto.graph.output[:]
    proto.graph.output.extend(reversed(outputs))
    got = answers(proto, x, tmp_path)
    assert list(got) == ["scores", "label"]
    np.testing.assert_allclose(got["scores"], right["scores"], rtol=1e-4, atol=1e-6)
    proto = boosted(np.random.default_rng(13))
    proto.graph.output.pop()
    alone = answers(proto, x, tmp_path)
    assert list(alone) == ["label"]
    np.testing.assert_array_equal(alone["label"], right["label"])
    proto = boosted(np.random.default_rng(13))
    proto.graph.node.append(onnx.helper.make_node("Cast", ["label"], ["as_float"], to=onnx.TensorProto.FLOAT))
    proto.graph.output.append(onnx.helper.make_tensor_value_info("as_float", onnx.TensorProto.FLOAT, ["n"]))
    with pytest.raises(UnsupportedOperator, match="no operator `Cast` of label"):
        answers(proto, x, tmp_path)


def test_other_arrays_are_refused(tmp_path: Path) -> None:
    """Rows of another width would be read past their end."""
    executable = forest.compile(loaded(boosted(np.random.default_rng(9)), tmp_path), this_machine())
    for wrong in (np.zeros((2, 4), np.float32), np.zeros((2, 5)), np.zeros(5, np.float32)):
        with pytest.raises(UsageError, match="input `x` has"):
            executable.run({"x": wrong})
    executable.close()


def test_what_was_saved_needs_no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers have none. With another processor's kernel it is compiled, and says what is missing for that."""
    proto = boosted(np.random.default_rng(10))
    executable = forest.compile(loaded(proto, tmp_path), this_machine())
    saved = tmp_path / "saved"
    saved.mkdir()
    executable.save(saved)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("PORTOLAN_CACHE", str(tmp_path / "cache"))
    x = rows(np.random.default_rng(11), 5, 5)
    assert forest.load(saved).run({"x": x})["label"].tolist() == reference(proto, x)["label"].tolist()
    support = forest.probe(this_machine())
    assert not support.ready
    assert support.fix is not None
    assert "apt install gcc" in support.fix
    about = json.loads((saved / "forest.json").read_text())
    (saved / "forest.json").write_text(json.dumps(about | {"kernel": "another"}))
    with pytest.raises(NoBackend, match="no C compiler was found, which `forest` needs"):
        forest.load(saved)


def test_a_kernel_that_does_not_load_here_is_compiled_anew(tmp_path: Path) -> None:
    """It is what was written, and for another C library."""
    proto = boosted(np.random.default_rng(16))
    executable = forest.compile(loaded(proto, tmp_path), this_machine())
    saved = tmp_path / "saved"
    saved.mkdir()
    executable.save(saved)
    (saved / "forest.so").write_bytes(b"no library of this system")
    about = json.loads((saved / "forest.json").read_text())
    about["sha256"] = hashlib.sha256(b"no library of this system").hexdigest()
    (saved / "forest.json").write_text(json.dumps(about))
    x = rows(np.random.default_rng(17), 5, 5)
    assert forest.load(saved).run({"x": x})["label"].tolist() == reference(proto, x)["label"].tolist()


def test_an_altered_kernel_is_not_loaded(tmp_path: Path) -> None:
    """It would run in this process."""
    executable = forest.compile(loaded(boosted(np.random.default_rng(12)), tmp_path), this_machine())
    saved = tmp_path / "saved"
    saved.mkdir()
    executable.save(saved)
    library = saved / "forest.so"
    library.chmod(library.stat().st_mode | stat.S_IWUSR)
    library.write_bytes(library.read_bytes() + b"\0")
    with pytest.raises(VerificationFailed, match="is not what was compiled"):
        forest.load(saved)


def test_the_kernel_knows_the_sizes_of_what_it_is_handed() -> None:
    """Its structures and those here are the same, field by field."""
    from portolan.backends._forest.ensemble import NODE, TREE

    source = module._SOURCE.read_text(encoding="utf-8")
    assert "typedef struct { float at; uint32_t feature, child; float vote; } Node;" in source
    assert NODE.names == ("at", "feature", "child", "vote")
    assert "typedef struct { uint32_t root, depth, target, none; } Tree;" in source
    assert TREE.names == ("root", "depth", "target", "none")
    assert (NODE.itemsize, TREE.itemsize) == (16, 16)


SANITIZED = """
import dataclasses, sys
from pathlib import Path
import numpy as np
import onnx
from portolan.backends.forest import forest
from portolan.core import registry
from portolan.testing.models import this_machine
path, more = sys.argv[1:]
model = registry.FRONTENDS.get("onnx").load(path, Path(path).parent)
executable = forest.compile(model, this_machine(), threads=2)
executable._fixed.features += int(more)
features = executable._graph.features
for count in (1, 7, 16, 17, 600):
    x = np.random.default_rng(count).normal(size=(count, features)).astype(np.float32)
    executable.run({"x": x})
"""


@pytest.mark.parametrize("more", [0, 1])
def test_the_kernel_reads_and_writes_what_is_there(tmp_path: Path, more: int) -> None:
    """Under the address sanitizer, which sees one feature too many."""
    gcc = shutil.which("gcc")
    runtime = gcc and subprocess.run(
        [gcc, "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
    ).stdout.strip()  # fmt: skip
    if not runtime or not Path(runtime).is_file():
        pytest.skip("needs the address sanitizer of gcc")
    for name, proto in (("b", boosted(np.random.default_rng(15))), ("v", voting(np.random.default_rng(15)))):
        onnx.save(proto, tmp_path / f"{name}.onnx")
        env = {
            **os.environ, "PORTOLAN_CC": f"{gcc} -fsanitize=address -g", "PORTOLAN_CACHE": str(tmp_path / "cache"),
            "LD_PRELOAD": runtime, "PYTHONMALLOC": "malloc", "ASAN_OPTIONS": "detect_leaks=0",
            "PYTHONPATH": os.pathsep.join(sys.path),
        }  # fmt: skip
        command = [sys.executable, "-c", SANITIZED, str(tmp_path / f"{name}.onnx"), str(more)]
        ran = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
        assert (ran.returncode == 0) == (not more), ran.stderr[-3000:]
        assert ("heap-buffer-overflow" in ran.stderr) == bool(more)
