"""A target that is not this machine, without an emulator: this interpreter with another script of the fake's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import portolan
import portolan.api
from portolan.errors import NoBackend, UsageError, VerificationFailed
from portolan.targets import _added
from portolan.testing.models import this_machine
from support.studies import Lab


@pytest.fixture
def there(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Writes the script of the target `there`, which has the fake's variant `default` alone."""
    monkeypatch.setenv(_added.VARIABLE, str(lab.folder / "targets"))
    folder = lab.folder / "targets" / "there"
    folder.mkdir(parents=True)
    script = folder / "script.json"
    target = {**this_machine().to_json(), "id": "there", "kind": "emulated"}
    target["reach"] = ["/usr/bin/env", f"PORTOLAN_FAKE={script}", "{python}"]
    record = {
        "format": _added.FORMAT, "name": "there", "emulate": "haswell", "made": "2026-01-01T00:00:00+00:00", "size": 1,
        "packages": {}, "target": target,
    }  # fmt: skip
    (folder / _added.RECORD).write_text(json.dumps(record))

    def write(**behaviour: Any) -> None:
        script.write_text(json.dumps({"variants": {"default": {"latency_ms": 0.1, **behaviour}}}))

    write()
    return write


def test_arms_that_fail_there_are_rows_with_their_reasons(lab: Lab, there: Any) -> None:
    there(behaviour="segfault")
    crashed, absent = portolan.bench(f"{lab.model}@fake", f"{lab.model}@iree", target="there").arms
    assert (crashed["metrics"], crashed["reason"]) == ({}, "crashed with SIGSEGV during `evaluate`")
    assert absent["metrics"] == {}
    assert "`iree` is not ready on `there`: " in absent["reason"]
    there()
    (same,) = portolan.bench(f"{lab.model}@fake", target="there").arms
    assert same["same"] is True
    assert same["metrics"]["latency_p50"]["value"] is None


def test_bundles_are_checked_there_and_not_raced(lab: Lab, there: Any) -> None:
    portolan.pack(lab.model, backend="fake", out="b.portolan")
    with pytest.raises(UsageError, match=r"`b.portolan` is a bundle, and bundles are checked, not raced") as caught:
        portolan.bench("b.portolan", target="there")
    assert caught.value.hint == "portolan pack --check b.portolan -t there"
    found = portolan.api.check("b.portolan", target="there")
    assert found.elsewhere[0]["same"]
    assert found.notes[-1] == "answers on `there` as here"


@pytest.mark.parametrize(
    ("behaviour", "error", "says"),
    [
        ("wrong", VerificationFailed, "on `there` the output `y` is off by"),
        ("segfault", VerificationFailed, "what is shipped does not run on `there`: crashed with SIGSEGV during `run`"),
        (None, NoBackend, "`fake` is not ready on `there`: `PORTOLAN_FAKE` names no script"),
    ],
)
def test_what_does_not_hold_there_is_not_shipped(
    lab: Lab, there: Any, behaviour: str | None, error: type[Exception], says: str
) -> None:
    if behaviour is None:
        record = lab.folder / "targets" / "there" / _added.RECORD
        script = f"PORTOLAN_FAKE={record.with_name('script.json')}"
        record.write_text(record.read_text().replace(script, "--unset=PORTOLAN_FAKE"))
    else:
        there(behaviour=behaviour)
    with pytest.raises(error, match=says) as caught:
        portolan.pack(lab.model, backend="fake", out="b.portolan", target="there")
    assert caught.value.hint  # type: ignore[attr-defined]
    assert not Path("b.portolan").exists()
