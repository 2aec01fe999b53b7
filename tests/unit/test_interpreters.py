"""Libraries of passes in environments of their own: where they are, their versions, and that the pass runs there."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

import portolan
from portolan.core import interpreters
from portolan.errors import UsageError

NNCF = """
class ModelType:
    TRANSFORMER = "transformer"

Dataset = list

def quantize(graph, data, **options):
    graph.doc_string = "seen"
    return graph
"""


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An interpreter that has an `nncf`, and leaves a mark where it is started."""
    packages = tmp_path / "packages"
    (packages / "nncf-9.8.dist-info").mkdir(parents=True)
    (packages / "nncf-9.8.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: nncf\nVersion: 9.8\n")
    (packages / "nncf.py").write_text(NNCF)
    python, mark = tmp_path / "python", tmp_path / "started"
    python.write_text(f'#!/bin/sh\ntouch "{mark}"\nPYTHONPATH="{packages}" exec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    monkeypatch.setenv("PORTOLAN_PYTHON_NNCF", str(python))
    return mark


def test_a_library_and_its_version_are_found_elsewhere(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not interpreters.missing("nncf")
    assert interpreters.version("nncf") == "9.8"
    assert elsewhere.is_file()
    monkeypatch.setenv("PORTOLAN_PYTHON_NNCF", str(elsewhere.parent / "nowhere"))
    assert interpreters.version("nncf") == "no answer: FileNotFoundError"
    monkeypatch.setenv("PORTOLAN_PYTHON_NNCF", "'half a line")
    with pytest.raises(UsageError, match="`PORTOLAN_PYTHON_NNCF` is no command line"):
        interpreters.missing("nncf")


def test_a_library_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PORTOLAN_PYTHON_NUMPY", raising=False)
    assert not interpreters.missing("numpy")
    assert interpreters.version("numpy")[0].isdigit()
    assert interpreters.missing("no_such_library")
    assert interpreters.version("no_such_library") == "missing"
    assert interpreters.variable("no-such") == "PORTOLAN_PYTHON_NO_SUCH"


def test_the_pass_runs_where_its_library_is(elsewhere: Path, tmp_path: Path) -> None:
    out = tmp_path / "digits.onnx"
    portolan.compress("demo:digits", passes=["quantize(mode=static, method=nncf)"], out=str(out))
    assert out.is_file()
    assert elsewhere.is_file()


def test_a_library_that_is_nowhere_is_refused_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PORTOLAN_PYTHON_NNCF", raising=False)
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "nncf" else find(name, *more))
    with pytest.raises(UsageError, match="is refused: the package `nncf` is not installed: `pip install nncf`"):
        portolan.compress(
            "demo:digits", passes=["quantize(mode=static, method=nncf)"], out=str(tmp_path / "digits.onnx")
        )
    assert list(tmp_path.iterdir()) == []
