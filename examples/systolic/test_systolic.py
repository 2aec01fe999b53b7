"""The chip, its compiler and its backend: the contract of every backend, and what only this one has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from portolan_systolic.backend import systolic
from portolan_systolic.chip import MEMORY, Chip, Fault
from portolan_systolic.claims import Claim, claims
from portolan_systolic.parts import cut, read
from portolan_systolic.program import Layout, Printer, parse
from portolan_systolic.shared import Kernel

from portolan.core.graph import load_model
from portolan.errors import ModelError, VerificationFailed
from portolan.testing.backend import BackendContract
from portolan.testing.models import this_machine


class TestSystolic(BackendContract):
    """Models in float32: the chip takes nothing of them, the CPU everything, and all the rules hold."""

    backend = systolic


def network(path: Path, **change: Any) -> Path:
    """A quantized network of a convolution, a Relu, a pool and a product, as `quantize(mode=static)` leaves it.

    Args:
        path: where it goes.
        change: `channels`, `size`, `group`, `dtype` (of the weights), `batch`.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    channels, size, group = change.get("channels", 8), change.get("size", 9), change.get("group", 1)
    rng = np.random.default_rng(0)
    kind = change.get("dtype", np.int8)
    constants = {
        "xs": np.float32(0.02), "xz": np.uint8(120), "ws": np.full(24, 0.01, np.float32), "wz": np.zeros(24, kind),
        "w": rng.integers(-127, 128, (24, channels // group, 3, 3)).astype(kind),
        "b": rng.integers(-500, 500, 24).astype(np.int32),
        "bs": np.full(24, 0.0002, np.float32), "bz": np.zeros(24, np.int32), "ys": np.float32(0.05), "yz": np.uint8(3),
        "vs": np.float32(0.02), "vz": np.int8(0), "v": rng.integers(-127, 128, (24, 5)).astype(np.int8),
    }  # fmt: skip
    node = helper.make_node
    nodes = [
        node("QuantizeLinear", ["x", "xs", "xz"], ["xq"]), node("DequantizeLinear", ["xq", "xs", "xz"], ["xd"]),
        node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], axis=0),
        node("DequantizeLinear", ["b", "bs", "bz"], ["bd"], axis=0),
        node("Conv", ["xd", "wd", "bd"], ["c"], pads=[1, 1, 1, 1], strides=[2, 2], group=group),
        node("Relu", ["c"], ["r"]), node("QuantizeLinear", ["r", "ys", "yz"], ["rq"]),
        node("DequantizeLinear", ["rq", "ys", "yz"], ["rd"]),
        node("GlobalAveragePool", ["rd"], ["g"]), node("Flatten", ["g"], ["f"]),
        node("QuantizeLinear", ["f", "ys", "yz"], ["fq"]),
        node("DequantizeLinear", ["fq", "ys", "yz"], ["fd"]), node("DequantizeLinear", ["v", "vs", "vz"], ["vd"]),
        node("MatMul", ["fd", "vd"], ["y"]),
    ]  # fmt: skip
    shape = [change.get("batch", "batch"), channels, size, size]
    graph = helper.make_graph(
        nodes, "network", [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [shape[0], 5])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )  # fmt: skip
    opset = 21 if kind == np.int16 else 18
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10), str(path))
    return path


def compiled(path: Path) -> Any:
    """The network on the chip and the CPU."""
    return systolic.compile(load_model(path), this_machine())


def of(path: Path) -> tuple[list[Claim], list[tuple[str, str]]]:
    """What the chip takes of a network, and why not the rest."""
    return claims(read(path, "batch"))


def test_the_chip_and_the_cpu_share_a_model(tmp_path: Path) -> None:
    """Products go to the chip, the pool to the CPU, and the answers are ONNX Runtime's."""
    from portolan.backends.onnxruntime import onnxruntime

    path = network(tmp_path / "n.onnx")
    shared, whole = compiled(path), onnxruntime.compile(load_model(path), this_machine())
    facts = shared.facts()
    assert facts["claimed"] == ["Conv rq", "MatMul y"]
    assert facts["refused"] == {}
    for rows in (1, 3):
        x = np.random.default_rng(rows).standard_normal((rows, 8, 9, 9)).astype(np.float32)
        wanted, got = whole.run({"x": x})["y"], shared.run({"x": x})["y"]
        assert got.shape == wanted.shape == (rows, 5)
        np.testing.assert_allclose(got, wanted, atol=0.3)  # a step of the last activations is 0.05 * 127 * 0.02
        assert np.abs(wanted).max() > 1


def test_parts_alternate_and_come_in_order(tmp_path: Path) -> None:
    """CPU, chip, CPU, chip."""
    path = network(tmp_path / "n.onnx")
    graph = read(path, "batch")
    parts = cut(graph, claims(graph)[0])
    assert [isinstance(part, Claim) for part in parts] == [False, True, False, True]


def test_every_operator_that_is_refused_has_a_reason(tmp_path: Path) -> None:
    """Types, groups, sizes, memory."""
    assert dict(of(network(tmp_path / "wide.onnx", dtype=np.int16))[1])["Conv c"] == (
        "its numbers are int16, and the cells multiply int8"
    )
    grouped = network(tmp_path / "grouped.onnx", group=8)
    assert "8 groups would leave most of the cells idle" in dict(of(grouped)[1])["Conv c"]
    free = network(tmp_path / "free.onnx", size="size")
    assert dict(of(free)[1])["Conv c"] == "a size of its input is not known before it runs"
    large = network(tmp_path / "large.onnx", size=400)
    taken, refused = of(large)
    assert [claim.operator for claim in taken] == ["MatMul"]
    assert "of 1,048,576: 1,280,000 for its input, 960,000 for its result" in dict(refused)["Conv c"]


def test_a_model_in_float_is_the_cpu_s(tmp_path: Path) -> None:
    """Nothing is quantized behind the user's back."""
    from portolan.testing.frontend import tiny_onnx

    facts = compiled(tiny_onnx(tmp_path / "f.onnx")).facts()
    assert facts["claimed"] == []
    assert set(facts["refused"].values()) == {"it is computed in float32, not in int8"}
    assert facts["estimate"]["cycles"] == 0


@pytest.mark.parametrize(("rows", "depth", "columns"), [(1, 1, 1), (3, 16, 16), (1030, 40, 33)])
def test_programs_compute_exact_sums(rows: int, depth: int, columns: int) -> None:
    """Every tile and remainder: integer products of a program are NumPy's."""
    claim = product(rows, depth, columns)
    x = np.random.default_rng(1).integers(-128, 128, (rows, depth)).astype(np.int8)
    got = Kernel.of(claim)(x)
    wanted = (x.astype(np.int64) - 7) @ claim.weights.astype(np.int64)
    np.testing.assert_array_equal(got, wanted.astype(np.float32))


def product(rows: int, depth: int, columns: int) -> Claim:
    """A plain product with a zero point of 7, left in float32."""
    weights = np.random.default_rng(0).integers(-127, 128, (depth, columns)).astype(np.int8)
    ones = np.ones(columns, np.float32)
    stream = {"type": "int8", "zero": 7, "channels": depth, "height": 1, "width": rows,
              "kernel": (), "stride": (), "dilation": (), "pad": ()}  # fmt: skip
    return Claim(
        "MatMul", "x", "y", frozenset("y"), rows, depth, columns, weights, ones, 0 * ones, stream,
        False, False, "float32", 1.0, 0, False, (rows, columns),
    )  # fmt: skip


def test_the_cycle_model_adds_up() -> None:
    """Twice the columns take more cycles and less than twice as many: the array is busy while DMA works."""
    few, many = (Kernel.of(product(512, 64, n)).cost(np.zeros((512, 64), np.int8)) for n in (64, 128))
    assert few.busy == 512 * 4 * 4
    assert many.busy == 2 * few.busy
    assert few.busy < few.cycles < many.cycles < 2 * few.cycles
    assert Layout.of(product(512, 64, 64)).total < MEMORY


def test_the_chip_checks_addresses_and_accumulators() -> None:
    """A program is data: whatever it says, the chip stays inside its memory."""
    blobs = {"weights": np.zeros(256, np.int8), "scale": np.ones(1, np.float32), "bias": np.ones(1, np.float32)}
    for line, words in [
        (f"load source=data from=0 bytes=64 to={MEMORY - 8}", "64 bytes at"),
        ("load source=data from=0 bytes=64 to=-64", "64 bytes at"),
        ("jump to=0", "no instruction `jump`"),
    ]:
        with pytest.raises(Fault, match=words):
            Chip().run(parse(line), bytes(64), blobs, 1)
    with pytest.raises(ModelError, match="line 2 of `program` is no instruction"):
        parse("# a comment\nload to=here")


def test_a_wrong_compiler_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each program is compared with the graph before it is used."""
    honest = Printer.source
    monkeypatch.setattr(Printer, "source", lambda self, claim: honest(self, claim).replace("relu=1", "relu=0"))
    with pytest.raises(VerificationFailed, match="the program of `Conv rq` is wrong: its result differs by"):
        compiled(network(tmp_path / "n.onnx"))


def test_saved_programs_are_text_and_damaged_ones_are_refused(tmp_path: Path) -> None:
    """No pickle; a plan that names other files is no plan."""
    saved = tmp_path / "saved"
    saved.mkdir()
    compiled(network(tmp_path / "n.onnx")).save(saved)
    assert "multiply row=0" in (saved / "part1.sys").read_text()
    x = np.ones((2, 8, 9, 9), np.float32)
    assert systolic.load(saved).run({"x": x})["y"].shape == (2, 5)
    (saved / "plan.json").write_text('{"steps": [{"graph": "../n"}], "outputs": [], "about": {}}')
    with pytest.raises(ModelError, match="is no part"):
        systolic.load(saved)
