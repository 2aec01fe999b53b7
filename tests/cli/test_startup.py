"""Help, completion and usage errors load nothing heavy. How long that takes is benchmarks/startup.py's question."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

HEAVY = {
    "numpy", "onnx", "onnxruntime", "openvino", "torch", "scipy", "msgspec", "rich", "tomli_w", "asyncio", "sqlite3",
    "importlib.metadata", "portolan.api", "portolan.core.registry",
}  # fmt: skip
CODE = """
import sys
try:
    from portolan.cli import main
    sys.argv = ["portolan", *sys.argv[1:]]
    main()
except SystemExit as end:
    files = [m.__name__ for m in list(sys.modules.values()) if getattr(m, "__file__", None)]
    print("\\n".join(sorted(sys.modules)), file=sys.stderr)
    print(f"FILES {len(files)} CODE {end.code}", file=sys.stderr)
"""


def modules(*args: str, **env: str) -> tuple[set[str], str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PORTOLAN", "_PORTOLAN", "COV"))}
    clean |= {"PYTHONPATH": os.pathsep.join(sys.path), **env}
    ran = subprocess.run(
        [sys.executable, "-c", CODE, *args], capture_output=True, text=True, env=clean, check=True, timeout=60
    )
    return set(ran.stderr.splitlines()), ran.stdout


def bare() -> set[str]:
    ran = subprocess.run(
        [sys.executable, "-c", "import sys; print('\\n'.join(sys.modules))"],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    return set(ran.stdout.split())


@pytest.mark.parametrize("args", [("--help",), ("--version",), ("optimize", "--help"), ("bench",)])
def test_nothing_heavy_is_loaded(args: tuple[str, ...]) -> None:
    found, _ = modules(*args)
    assert any(line.startswith("FILES") for line in found)
    assert not (found - bare()) & HEAVY


def test_help_loads_few_files_and_no_verb() -> None:
    found, out = modules("--help")
    assert "optimize" in out
    ours = {m for m in found if m == "portolan" or m.startswith("portolan.")}
    assert ours == {"portolan", "portolan.cli", "portolan.cli.app", "portolan.cli.console", "portolan.errors"}
    count = int(next(line for line in found if line.startswith("FILES")).split()[1])
    assert count <= 110


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("portolan opt", "optimize"),
        ("portolan optimize m.onnx --back", "--backend"),
        ("portolan optimize m.onnx --backend onnxruntime,fa", None),
        ("portolan optimize m.onnx -g latency_p9", "latency_p95"),
    ],
)
def test_completion_loads_nothing_heavy(words: str, expected: str | None) -> None:
    env = {"_PORTOLAN_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
    found, out = modules(**env)
    assert not (found - bare()) & (HEAVY - {"importlib.metadata", "portolan.core.registry"})
    if expected:
        assert f"plain,{expected}" in out.splitlines()
