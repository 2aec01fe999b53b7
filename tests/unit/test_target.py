"""Targets: what keys measurements is what decides speed, and nothing else."""

from __future__ import annotations

import ast
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import portolan
from portolan.core.target import Target

TARGET = Target(
    id="local",
    kind="vm",
    arch="x86_64",
    features=("avx2", "avx512_bf16", "fma"),
    cores=2,
    ram=8 * 2**30,
    caches={"L2": 2**21, "L3": 2**25},
    accelerators=("NVIDIA H200, 139 GiB",),
    runtimes={"onnxruntime": "1.23.0"},
    display="Some processor",
    reach=("ssh", "box", "python3"),
)


def test_json_comes_back() -> None:
    assert Target.from_json(json.loads(json.dumps(TARGET.to_json()))) == TARGET


def test_json_holds_the_contracts_keys() -> None:
    assert TARGET.to_json().keys() >= {"id", "fingerprint", "kind", "arch", "features", "cores", "ram", "accelerators"}
    assert TARGET.to_json()["fingerprint"] == TARGET.fingerprint


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "physical"},
        {"arch": "aarch64"},
        {"features": ("avx2", "fma")},
        {"cores": 4},
        {"ram": 16 * 2**30},
        {"caches": {"L2": 2**20, "L3": 2**25}},
        {"accelerators": ()},
    ],
)
def test_what_decides_speed_is_in_the_fingerprint(change: dict[str, Any]) -> None:
    assert replace(TARGET, **change).fingerprint != TARGET.fingerprint


@pytest.mark.parametrize(
    "change",
    [
        {"id": "other"},
        {"display": "Another name of the same processor"},
        {"reach": ()},
        {"runtimes": {"onnxruntime": "1.24.0"}},
        {"ram": 8 * 2**30 - 2**25},
        {"caches": {"L3": 2**25, "L2": 2**21}},
    ],
)
def test_names_and_versions_are_not(change: dict[str, Any]) -> None:
    """Versions are in the keys of what they decide; the firmware takes another few MiB of memory at each boot."""
    assert replace(TARGET, **change).fingerprint == TARGET.fingerprint


def test_the_fingerprint_is_the_same_in_every_version() -> None:
    assert TARGET.fingerprint == "2a2dd1803503a16e"


def test_has_any_of() -> None:
    assert TARGET.has()
    assert TARGET.has("amx_bf16", "avx512_bf16")
    assert not TARGET.has("amx_bf16")
    assert not TARGET.has("avx")


def test_no_rule_reads_a_name_of_a_processor() -> None:
    """What decides reads features: the name for people is read by nobody, and no text that code holds is one."""
    names = re.compile(
        r"xeon|epyc|ryzen|graviton|\bcore i\d|\bzen ?\d|skylake|haswell|icelake|sapphire|\bm[1-4]\b|h100|a100|rtx"
    )
    source = Path(portolan.__file__).parent
    deciding = [
        f for part in ("core", "passes", "backends", "search", "measure") for f in (source / part).rglob("*.py")
    ]
    assert len(deciding) > 100
    for file in deciding:
        tree = ast.parse(file.read_text())
        documented = (n for n in ast.walk(tree) if isinstance(n, ast.Module | ast.FunctionDef | ast.ClassDef))
        about = {ast.get_docstring(node, clean=False) for node in documented}
        for found in ast.walk(tree):
            if isinstance(found, ast.Attribute) and found.attr == "display":
                assert (file.name, found.value.id if isinstance(found.value, ast.Name) else "") == ("target.py", "self")
            if isinstance(found, ast.Constant) and isinstance(found.value, str) and found.value not in about:
                assert not names.search(found.value.lower()), f"{file}: {found.value}"
