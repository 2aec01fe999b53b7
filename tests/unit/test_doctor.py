"""What `doctor` finds, also among plug-ins that are broken in every way."""

from __future__ import annotations

from typing import Any

import pytest

from portolan.core import doctor
from portolan.core.backend import Support
from portolan.core.passes import compression
from portolan.core.target import Target
from portolan.errors import PortolanError

TARGET = Target("local", "vm", "x86_64", ("avx2",), 2, 2**30)


@compression(needs=lambda p: "calibration" if p["mode"] == "static" else "nothing")
def quantize(model: Any, context: Any, *, mode: str = "static") -> Any:
    """Integer weights."""


@compression()
def bare(model: Any, context: Any) -> Any: ...


class Probed:
    def __init__(self, answer: Support | Exception, searched: bool = True) -> None:
        self.answer, self.searched = answer, searched

    def probe(self, target: Target) -> Support:
        assert target is TARGET
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


class Names:
    def __init__(self, **members: Any) -> None:
        self.members = members

    def names(self) -> list[str]:
        return sorted(self.members)

    def get(self, name: str) -> Any:
        if isinstance(self.members[name], Exception):
            raise self.members[name]
        return self.members[name]


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Any]]:
    broken = PortolanError("the backend `broken` cannot be loaded", hint="remove it")
    backends = Names(
        good=Probed(Support(True, version="1.2")),
        absent=Probed(Support(False, reason="`x` is not installed", fix="pip install x")),
        raises=Probed(ZeroDivisionError("oh")),
        hidden=Probed(Support(False, reason="it is scripted"), searched=False),
        shown=Probed(Support(True, version="0"), searched=False),
        broken=broken,
    )
    monkeypatch.setattr(doctor, "BACKENDS", backends)
    monkeypatch.setattr(doctor, "PASSES", Names(quantize=quantize, bare=bare, broken=broken))
    data = doctor.examine(TARGET)
    assert data["target"] == TARGET.to_json()
    return {key: {row["name"]: row for row in data[key]} for key in ("backends", "passes")}


def test_backends(found: dict[str, dict[str, Any]]) -> None:
    rows = found["backends"]
    assert rows["good"] == {
        "name": "good", "ready": True, "version": "1.2", "reason": None, "fix": None, "environment": None,
        "devices": {},
    }  # fmt: skip
    assert rows["absent"]["fix"] == "pip install x"
    assert rows["broken"]["reason"] == "the backend `broken` cannot be loaded"
    assert rows["broken"]["fix"] == "remove it"
    assert rows["raises"]["reason"] == "its probe failed: ZeroDivisionError: oh"
    assert [name for name, row in rows.items() if row["ready"]] == ["good", "shown"]
    assert "hidden" not in rows  # never searched and not ready: nobody misses it


def test_passes(found: dict[str, dict[str, Any]]) -> None:
    rows = found["passes"]
    assert rows["quantize"] == {"name": "quantize", "about": "Integer weights.", "needs": "calibration", "reason": None}
    assert rows["broken"]["reason"] == "the backend `broken` cannot be loaded"
    assert rows["bare"]["needs"] is None
    assert "IndexError" in rows["bare"]["reason"]  # a pass without a docstring is someone's bug, not ours to die of


def test_the_real_plug_ins_are_all_listed() -> None:
    from portolan.core.registry import BACKENDS, PASSES

    data = doctor.examine(TARGET)
    missing = set(BACKENDS.names()) - {row["name"] for row in data["backends"]}
    assert all(not BACKENDS.get(name).searched for name in missing)
    assert [row["name"] for row in data["passes"]] == PASSES.names()
