"""`.pt2` archives that would run code when torch loads them. Each would leave a file behind if it did."""

from __future__ import annotations

import contextlib
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from portolan.errors import ModelError
from portolan.frontends._pt2 import _is_arithmetic, _known_operator, check, load_program

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program with a free axis, a weight and a constant, as `torch.export.save` writes it."""
    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 2)
            self.table = torch.arange(8.0)

        def forward(self, x: Any) -> Any:
            return self.linear(x) + self.table.sum() * (x.shape[0] * 2)

    path = tmp_path_factory.mktemp("pt2") / "good.pt2"
    free = ({0: torch.export.Dim("batch", min=2, max=16)},)
    torch.export.save(torch.export.export(Net(), (torch.randn(4, 4),), dynamic_shapes=free), str(path))
    return path


def rewritten(good: Path, path: Path, change: Callable[[str, bytes], bytes | None]) -> Path:
    """The good archive with each record run through `change`; None keeps it."""
    with zipfile.ZipFile(good) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as new:
        for name in old.namelist():
            content = old.read(name)
            changed = change(name.split("/", 1)[1], content)
            new.writestr(name, content if changed is None else changed)
    return path


def in_json(good: Path, path: Path, record: str, edit: Callable[[Any], None]) -> Path:
    def change(name: str, content: bytes) -> bytes | None:
        if name != record:
            return None
        value = json.loads(content)
        edit(value)
        return json.dumps(value).encode()

    return rewritten(good, path, change)


def added(good: Path, path: Path, name: str, content: bytes, *, root: bool = True) -> Path:
    rewritten(good, path, lambda *_: None)
    with zipfile.ZipFile(good) as old, zipfile.ZipFile(path, "a") as archive:
        archive.writestr(f"{old.namelist()[0].split('/')[0]}/{name}" if root else name, content)
    return path


class Payload:
    """Pickles to a call that creates a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


def pickled(marker: Path) -> bytes:
    import torch

    buffer = io.BytesIO()
    torch.save((Payload(marker),), buffer)
    return buffer.getvalue()


def refused(path: Path, marker: Path, words: str) -> None:
    with pytest.raises(ModelError) as caught:
        load_program(path)
    assert words in caught.value.message
    assert "is refused, since loading it would run code" in caught.value.message
    assert caught.value.exit_code == 5
    assert caught.value.hint
    assert not marker.exists()


MODEL, WEIGHTS, CONSTANTS = (
    "models/model.json",
    "data/weights/model_weights_config.json",
    ("data/constants/model_constants_config.json"),
)


def test_the_good_one_loads(good: Path) -> None:
    import torch

    program = load_program(good)
    assert program.module()(torch.zeros(6, 4)).shape == (6, 2)


def test_torch_itself_would_run_the_payload(good: Path, tmp_path: Path) -> None:
    """If this fails, torch has become safer and the guard may be able to shrink."""
    import torch

    marker = tmp_path / "ran"
    payload = pickled(marker)
    path = rewritten(good, tmp_path / "m.pt2", lambda n, _: payload if n == "data/sample_inputs/model.pt" else None)
    with contextlib.suppress(Exception):
        torch.export.load(str(path))
    assert marker.exists()


def test_pickled_sample_inputs(good: Path, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    payload = pickled(marker)
    path = rewritten(good, tmp_path / "m.pt2", lambda n, _: payload if n == "data/sample_inputs/model.pt" else None)
    refused(path, marker, "`data/sample_inputs/model.pt` is a pickle of more than tensors")


@pytest.mark.parametrize("record", ["data/weights/model.pt", "data/constants/model.pt"])
def test_pickled_weights_of_the_older_format(good: Path, tmp_path: Path, record: str) -> None:
    marker = tmp_path / "ran"
    refused(added(good, tmp_path / "m.pt2", record, pickled(marker)), marker, f"`{record}` is a pickle")


def test_pickled_weight(good: Path, tmp_path: Path) -> None:
    def edit(config: Any) -> None:
        config["config"]["linear.weight"]["use_pickle"] = True

    refused(in_json(good, tmp_path / "m.pt2", WEIGHTS, edit), tmp_path / "ran", "is a pickle")


@pytest.mark.parametrize("name", ["custom_obj_0", "opaque_obj_0", "../weights/weight_0"])
def test_pickled_constant(good: Path, tmp_path: Path, name: str) -> None:
    def edit(config: Any) -> None:
        config["config"]["table"]["path_name"] = name

    path = in_json(good, tmp_path / "m.pt2", CONSTANTS, edit)
    refused(path, tmp_path / "ran", f"`{name}` in `{CONSTANTS}` is a custom object, not a tensor")


def test_the_whole_format_of_before(good: Path, tmp_path: Path) -> None:
    refused(added(good, tmp_path / "m.pt2", "version", b"1.0", root=False), tmp_path / "ran", "before 2.8")


def test_native_code(good: Path, tmp_path: Path) -> None:
    path = added(good, tmp_path / "m.pt2", "data/aotinductor/model/x.so", b"\x7fELF")
    refused(path, tmp_path / "ran", "native code compiled by AOTInductor")


def test_an_expression_that_is_code(good: Path, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    code = f"__import__('pathlib').Path({str(marker)!r}).touch() or 4"
    done = []

    def edit(value: Any) -> None:
        if isinstance(value, dict):
            if "expr_str" in value:
                value["expr_str"] = code
                done.append(value)
            for item in value.values():
                edit(item)
        elif isinstance(value, list):
            for item in value:
                edit(item)

    path = in_json(good, tmp_path / "m.pt2", MODEL, edit)
    assert done
    refused(path, marker, "is not arithmetic")


@pytest.mark.parametrize("target", ["torch.os.system", "torch.ops.load_library", "torch.ops.aten.from_file.default"])
def test_a_node_that_calls_something_else(good: Path, tmp_path: Path, target: str) -> None:
    def edit(model: Any) -> None:
        model["graph_module"]["graph"]["nodes"][0]["target"] = target

    path = in_json(good, tmp_path / "m.pt2", MODEL, edit)
    refused(path, tmp_path / "ran", f"`{target}` in `{MODEL}` is not an operator of torch")


@pytest.mark.parametrize(
    "context", [{"__enum__": True, "fqn": "antigravity:x", "name": "y"}, {"default_factory_module": "antigravity"}]
)
def test_a_tree_description_that_imports(good: Path, tmp_path: Path, context: dict[str, Any]) -> None:
    def edit(model: Any) -> None:
        signature = model["graph_module"]["module_call_graph"][0]["signature"]
        tree = json.loads(signature["in_spec"])
        tree[1]["context"] = json.dumps(context)
        signature["in_spec"] = json.dumps(tree).replace("enum", "\\u0065num")

    refused(in_json(good, tmp_path / "m.pt2", MODEL, edit), tmp_path / "ran", "imports a module")


def test_plain_pickles_with_the_extension(tmp_path: Path) -> None:
    marker, path = tmp_path / "ran", tmp_path / "m.pt2"
    path.write_bytes(pickled(marker))
    refused(path, marker, "it was written by `torch.save` or `torch.jit.save`: it is a pickle")


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"", "is not a `.pt2` archive, or is truncated"), (b"PK\x03\x04 and so on", "is not a `.pt2` archive")],
)
def test_not_an_archive(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "m.pt2"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=words):
        check(path)


def test_other_archives(good: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.pt2"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/b.txt", "hello")
    with pytest.raises(ModelError, match=r"is not a `\.pt2` archive, or is damaged"):
        check(path)
    with zipfile.ZipFile(good) as old, zipfile.ZipFile(path, "w") as archive:
        for name in old.namelist():
            if "/models/" not in name:
                archive.writestr(name, old.read(name))
    with pytest.raises(ModelError, match="holds no exported program"):
        check(path)
    for content in (b"{", b"[" * 100_000):
        rewritten(good, path, lambda n, _, c=content: c if n == MODEL else None)  # type: ignore[misc]
        with pytest.raises(ModelError, match=f"`{MODEL}` in .* is damaged"):
            check(path)
    deep = "0"
    for _ in range(3):
        deep = json.dumps(deep)
    nested: Any = deep
    for _ in range(900):
        nested = [nested]
    rewritten(good, path, lambda n, _: json.dumps(nested).encode() if n == MODEL else None)
    with pytest.raises(ModelError):
        load_program(path)


def test_a_program_that_torch_cannot_read_any_more(good: Path, tmp_path: Path) -> None:
    path = in_json(good, tmp_path / "m.pt2", MODEL, lambda model: model.pop("schema_version"))
    with pytest.raises(ModelError, match="cannot be loaded") as caught:
        load_program(path)
    assert "another torch" in (caught.value.hint or "")


@pytest.mark.parametrize(
    "expression",
    [
        "s77 + 1",
        "2*s0",
        "Symbol('s77', positive=True, integer=True)",
        "Add(Mul(Integer(2), Symbol('s0', integer=True)), Integer(-1))",
        "Pow(Symbol('s0'), Integer(2))",
        "Max(1, s0) // 2",
        "Float('2.0', precision=53)",
        "s0 >= 2 and s1 < 4",
        "s0**-1",
    ],
)
def test_arithmetic(expression: str) -> None:
    assert _is_arithmetic(expression)


@pytest.mark.parametrize(
    "expression",
    [
        "__import__('os').system('x')",
        "Symbol('__import__(\"os\")')",
        "Symbol(name='x')",
        "Symbol('s', cls=s0)",
        "Max('exit()')",
        "Integer('exit()')",
        "9**9**9",
        "Pow(9, Pow(9, 9))",
        "9**Integer(99)",
        "LShift(1, 10**9)",
        "(lambda: 1)()",
        "s.x",
        "s0[0]",
        "[1]",
        "f'{1}'",
        "exit()",
        "open(1)",
        "Max(*s)",
        "x := 1",
        "",
        "1" + "+1" * 2000,
        7,
        None,
        "(" * 300,
    ],
)
def test_no_arithmetic(expression: object) -> None:
    assert not _is_arithmetic(expression)


@pytest.mark.parametrize(
    ("target", "known"),
    [
        ("torch.ops.aten.add.Tensor", True),
        ("torch.ops.aten.__and__.Tensor", True),
        ("torch.ops.higher_order.cond", True),
        ("_operator.mul", True),
        ("math.ceil", True),
        ("torch.sym_max", True),
        ("_operator.call", False),
        ("_operator.attrgetter", False),
        ("_operator.mul.__call__", False),
        ("math.__loader__", False),
        ("torch.load", False),
        ("torch.os.system", False),
        ("torch.ops.aten.add", False),
        ("torch.ops.aten.add.__class__", False),
        ("torch.ops.aten.nothing.default", False),
        ("torch.ops.aten.save.default", False),
        ("torch.ops.prim.Print.default", False),
        ("torch.ops.higher_order.call_torchbind", False),
        ("torch.ops.aten.add.Tensor.__globals__", False),
        ("#extension", False),
        ("os.system", False),
    ],
)
def test_operators(target: str, known: bool) -> None:
    assert _known_operator(target) == known
