"""Nothing in the package unpickles or runs text as code, and the process that plans never imports a runtime."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import portolan
from portolan.testing.frontend import tiny_onnx

ROOT = Path(portolan.__file__).parent
RUNTIMES = ("onnxruntime", "openvino", "torch")
#: Modules whose reading of data runs code.
UNSAFE = ("pickle", "_pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "yaml", "runpy", "code")
#: Calls by name, and what makes them safe: keywords that must be there with these values.
CALLS: dict[str, dict[str, object] | None] = {
    "eval": None,
    "exec": None,
    "compile": None,
    "__import__": None,
    "os.system": None,
    "os.popen": None,
    "torch.load": {"weights_only": True},
    "torch.jit.load": None,
    "torch.package.PackageImporter": None,
    "torch.export.load": None,
    "importlib.import_module": None,
}
#: Calls of a method by its last name, whatever the object.
METHODS = ("exec_module", "load_module", "run_path", "run_module", "unsafe_load")
#: The places where something of the above is right, and why.
ALLOWED = {
    ("__init__.py", "importlib.import_module"): "a public name of this package, one of a fixed list",
    ("bundle/__init__.py", "importlib.import_module"): "a public name of this package, one of a fixed list",
    ("worker/__init__.py", "importlib.import_module"): "a public name of this package, one of a fixed list",
    ("testing/__init__.py", "importlib.import_module"): "a public name of this package, one of a fixed list",
    ("cli/app.py", "importlib.import_module"): "a command of this package, one of a fixed list",
    ("core/registry.py", "importlib.import_module"): "a module here, or a plug-in that the user installed",
    ("core/silence.py", "importlib.import_module"): "a runtime, by a name that stands in the code",
    ("core/userfile.py", "exec_module"): "`file.py:function`: the file that the user names, to be run",
    ("backends/tvm.py", "load_module"): "what this backend compiled and saved; native code is asked for by bundles",
    ("frontends/huggingface.py", "importlib.import_module"): "torchvision, to see whether it is whole",
    ("kernels/languages/triton.py", "exec_module"): "code that its printer made of the user's own kernel",
    ("frontends/_pt2.py", "torch.export.load"): "after the archive was checked to hold nothing that runs",
}


def dotted(node: ast.expr) -> str:
    """`a.b.c` of a name or attribute; empty for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        inside = dotted(node.value)
        return f"{inside}.{node.attr}" if inside else node.attr
    return ""


def values(call: ast.Call) -> dict[str | None, object]:
    """Keywords with constant values."""
    return {k.arg: k.value.value if isinstance(k.value, ast.Constant) else ast.dump(k.value) for k in call.keywords}


def imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def unsafe(source: str) -> set[str]:
    """What a file does that reading data must not do."""
    tree = ast.parse(source)
    found = {name.split(".")[0] for name in imported(tree) if name.split(".")[0] in UNSAFE}
    found |= {name for name in imported(tree) if name in CALLS and name != "importlib.import_module"}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name, given = dotted(node.func), values(node)
        if name in CALLS and (CALLS[name] is None or not CALLS[name].items() <= given.items()):  # type: ignore[union-attr]
            found.add(name)
        if name.rpartition(".")[2] in METHODS:
            found.add(name.rpartition(".")[2])
        if given.get("allow_pickle", False) is not False:
            found.add("allow_pickle")
        if given.get("shell", False) is not False:
            found.add("shell")
        if given.get("weights_only", True) is not True:
            found.add("weights_only")
    return found


def eager(tree: ast.AST) -> Iterator[str]:
    """Modules that are imported as soon as the file is: not in functions, not for types alone."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        if isinstance(node, ast.If) and dotted(node.test).endswith("TYPE_CHECKING"):
            yield from (name for other in node.orelse for name in imported(other))
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
        else:
            yield from eager(node)


def sources() -> Iterator[tuple[str, str]]:
    for path in sorted(ROOT.rglob("*.py")):
        yield path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")


def test_nothing_unpickles_or_runs_text() -> None:
    """Where it must be, it is listed with its reason; a place that is listed in vain is an error too."""
    assert {(file, what) for file, source in sources() for what in unsafe(source)} == ALLOWED.keys()


@pytest.mark.parametrize(
    ("source", "what"),
    [
        ("import pickle", {"pickle"}),
        ("def f():\n    from marshal import loads", {"marshal"}),
        ("import shelve as s", {"shelve"}),
        ("eval('1')", {"eval"}),
        ("exec(text, {})", {"exec"}),
        ("compile(text, 'x', 'exec')", {"compile"}),
        ("__import__(name)", {"__import__"}),
        ("np.load(path, allow_pickle=True)", {"allow_pickle"}),
        ("np.load(path, allow_pickle=trusted)", {"allow_pickle"}),
        ("torch.load(path)", {"torch.load"}),
        ("torch.load(path, weights_only=False)", {"torch.load", "weights_only"}),
        ("from torch import load", {"torch.load"}),
        ("spec.loader.exec_module(module)", {"exec_module"}),
        ("subprocess.run(text, shell=True)", {"shell"}),
        ("importlib.import_module(data['module'])", {"importlib.import_module"}),
        ("np.load(path)", set()),
        ("np.load(path, allow_pickle=False)", set()),
        ("torch.load(path, weights_only=True)", set()),
        ("re.compile('x'); backend.compile(model); module.eval()", set()),
    ],
)
def test_the_search_finds_what_it_is_for(source: str, what: set[str]) -> None:
    assert unsafe(source) == what


def test_no_file_imports_a_runtime_when_it_is_imported() -> None:
    found = {
        (file, name)
        for file, source in sources()
        for name in eager(ast.parse(source))
        if name.split(".")[0] in RUNTIMES
    }
    assert found == set()


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("import torch", ["torch"]),
        ("try:\n    from openvino import Core\nexcept ImportError:\n    pass", ["openvino"]),
        ("class A:\n    import onnxruntime as ort", ["onnxruntime"]),
        ("def f():\n    import torch", []),
        ("if TYPE_CHECKING:\n    import torch", []),
        ("if typing.TYPE_CHECKING:\n    import torch\nelse:\n    import openvino", ["openvino"]),
    ],
)
def test_the_search_for_imports_finds_what_it_is_for(source: str, names: list[str]) -> None:
    assert list(eager(ast.parse(source))) == names


_CONTROLLER = """
import json, sys
from importlib.machinery import PathFinder
class Guard:  # that a runtime is there may be asked; it may not be loaded
    def find_spec(self, name, path=None, target=None):
        spec = PathFinder.find_spec(name, path) if name.split(".")[0] in RUNTIMES else None
        if spec is not None:
            spec.loader = self
        return spec
    def create_module(self, spec):
        raise AssertionError(f"the controller imports {spec.name}")
    def exec_module(self, module):
        raise AssertionError(f"the controller imports {module.__name__}")
sys.meta_path.insert(0, Guard())
from portolan.cli import main
arguments = json.loads(sys.argv[1])
sys.argv = ["portolan", *arguments]
try:
    main()
except SystemExit as end:
    code = end.code or 0
assert not [name for name in sys.modules if name.split(".")[0] in RUNTIMES]
sys.exit(code)
"""
CONTROLLER = f"RUNTIMES = {RUNTIMES!r}\n{_CONTROLLER}"


def controller(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A command in a process that cannot import a runtime; its workers can."""
    env = {key: value for key, value in os.environ.items() if not key.startswith(("PORTOLAN_", "XDG_"))}
    env |= {
        "HOME": str(folder),
        "PORTOLAN_CACHE": str(folder / "cache"),
        "PORTOLAN_FAKE": str(folder / "script.toml"),
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    return subprocess.run(
        [sys.executable, "-c", CONTROLLER, json.dumps(arguments)],
        env=env, cwd=folder, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def optimized(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A folder with a tiny model and a study of it, made by a controller without runtimes."""
    folder = tmp_path_factory.mktemp("controller")
    tiny_onnx(folder / "m.onnx", 1)
    (folder / "script.toml").write_text("[variants.default]\nlatency_ms = 0.5\n")
    flags = ("--backend", "fake,reference", "--passes", "simplify", "--budget", "4s", "--json")
    return folder, controller(folder, "optimize", "m.onnx", "-g", "cosine >= 0.9", *flags)


def test_optimize_imports_no_runtime(optimized: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    _, ran = optimized
    assert ran.returncode == 0, ran.stderr
    baseline = json.loads(ran.stdout)["baseline"]
    assert (baseline["status"], baseline["recipe"]["backend"]) == ("ok", "onnxruntime")


@pytest.mark.parametrize(
    "arguments",
    [
        ("inspect", "m.onnx"),
        ("doctor",),
        ("report", "study-m"),
        ("bench", "m.onnx", "--backend", "fake,reference", "--budget", "2s"),
        ("compress", "m.onnx", "--pass", "simplify"),
        ("pack", "study-m"),
        ("pack", "--check", "m.portolan"),
        ("optimize", "m.onnx", "--dry-run"),
    ],
    ids=lambda arguments: "-".join(arguments[:2]),
)
def test_no_other_command_imports_one(
    optimized: tuple[Path, subprocess.CompletedProcess[str]], arguments: tuple[str, ...]
) -> None:
    folder, _ = optimized
    ran = controller(folder, *arguments)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_the_guard_guards(tmp_path: Path) -> None:
    """A metric of the user's own may import what it likes, and here it does: in the controller, where metrics run."""
    (tmp_path / "script.toml").write_text("[variants.default]\nlatency_ms = 0.5\n")
    (tmp_path / "mine.py").write_text("import onnxruntime\ndef inputs():\n    yield {}, 0\n")
    tiny_onnx(tmp_path / "m.onnx", 1)
    ran = controller(tmp_path, "optimize", "m.onnx", "--data", "mine.py:inputs", "--budget", "2s")
    assert ran.returncode != 0
    assert "the controller imports onnxruntime" in ran.stderr
