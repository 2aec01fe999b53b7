"""Running the golden inputs: here, or in a process of its own."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from portolan import errors
from portolan.bundle import golden
from portolan.bundle.names import show
from portolan.bundle.read import Bundle
from portolan.errors import PortolanError, VerificationFailed

#: How a failure crosses from the process that met it: by exit code.
_CLASSES: dict[int, type[PortolanError]] = {
    1: PortolanError,
    2: errors.UsageError,
    4: errors.NoBackend,
    5: errors.ModelError,
    6: VerificationFailed,
}


@dataclass(frozen=True)
class Verification:
    """A bundle that answered as it did when it was made.

    Attributes:
        bundle: the folder or file.
        sha256: its hash.
        rows: number of golden calls.
        differences: the worst element of each output.
        notes: what is not as it was, such as another version of the runtime.
    """

    bundle: str
    sha256: str
    rows: int
    differences: tuple[golden.Difference, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "bundle": self.bundle,
            "sha256": self.sha256,
            "verified": True,
            "rows": self.rows,
            "differences": [difference.to_json() for difference in self.differences],
            "notes": list(self.notes),
        }


def verify(bundle: Bundle) -> Verification:
    """Runs the golden inputs of `bundle` in this process; see `Bundle.verify`."""
    manifest = bundle.manifest
    notes = tuple(version_notes(bundle))
    calls = [_call(bundle, row) for row in range(manifest.rows)]
    got = golden.join(calls, manifest.signature)
    differences = []
    for spec in manifest.signature.outputs:
        want = bundle.golden_outputs[spec.name]
        difference = golden.compare(spec.name, want, got[spec.name], manifest.tolerance[spec.name])
        if not difference.ok:
            raise VerificationFailed(_off(difference), hint=_hint(notes))
        differences.append(difference)
    return Verification(str(bundle.path), bundle.sha256, manifest.rows, tuple(differences), notes)


def _call(bundle: Bundle, row: int) -> dict[str, np.ndarray]:
    feeds = golden.feeds(bundle.manifest.signature, bundle.golden_inputs, row)
    try:
        return bundle.run(feeds)
    except PortolanError:
        raise
    except Exception as error:
        raise VerificationFailed(
            f"`{bundle.manifest.recipe.backend}` failed on the golden inputs: {show(str(error), 300)}",
            hint="pack the model again on this machine",
        ) from error


def version_notes(bundle: Bundle) -> list[str]:
    """Where the runtime here has another version than the recorded one. Not an error: the golden outputs decide."""
    here = bundle.backend().versions()
    recorded = bundle.manifest.versions
    return [
        f"made with `{name}` {version}, here it is {here.get(name, 'missing')}"
        for name, version in sorted(recorded.items())
        if here.get(name) != version
    ]


def verify_isolated(
    path: str | Path, *, sha256: str | None = None, native: bool = False, timeout: float = 600.0
) -> Verification:
    """Verifies in a fresh process, so that this one loads no runtime and survives whatever the bundle does.

    Raises:
        VerificationFailed: as `Bundle.verify`; also when that process dies or takes longer than `timeout` seconds.
        UsageError, NoBackend: as `open_bundle` and `Bundle.run`.
    """
    argv = [sys.executable, "-m", "portolan.bundle", str(path), "--verify", "--json"]
    argv += ["--native"] if native else []
    argv += ["--sha256", sha256] if sha256 is not None else []
    try:
        # A session of its own: Ctrl-C reaches this process alone, which then ends the other.
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout, check=False, start_new_session=True
        )
    except subprocess.TimeoutExpired as error:
        raise VerificationFailed(
            f"the bundle `{path}` did not answer its golden inputs within {timeout:g} s",
            hint=f"run it yourself: `python -m portolan.bundle {path} --verify`",
        ) from error
    return _answer(path, done)


def _answer(path: str | Path, done: subprocess.CompletedProcess[bytes]) -> Verification:
    try:
        data = json.loads(done.stdout)
    except ValueError:
        data = None
    if isinstance(data, dict) and "error" in data and done.returncode in _CLASSES:
        error = data["error"]
        raise _CLASSES[done.returncode](error["message"], hint=error["hint"], where=error["where"])
    if isinstance(data, dict) and done.returncode == 0:
        differences = tuple(
            golden.Difference(
                d["output"], float("inf") if d["worst"] is None else d["worst"], d["allowed"], tuple(d["at"]), d["ok"]
            )
            for d in data["differences"]
        )
        return Verification(data["bundle"], data["sha256"], data["rows"], differences, tuple(data["notes"]))
    last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
    raise VerificationFailed(
        f"the process that ran the golden inputs of `{path}` ended with {_end(done.returncode)}"
        + (f": {last[0]}" if last else ""),
        hint=f"run it yourself: `python -m portolan.bundle {path} --verify`",
    )


def _end(code: int) -> str:
    try:
        return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    except ValueError:
        return f"signal {-code}"


def _off(difference: golden.Difference) -> str:
    at = ", ".join(map(str, difference.at))
    return (
        f"output `{difference.output}` is off by {difference.worst:.3g} at [{at}], "
        f"where {difference.allowed:.3g} is allowed"
    )


def _hint(notes: tuple[str, ...]) -> str:
    if notes:
        return f"{'; '.join(notes)}: install that version, or pack the model again here"
    return "this machine computes otherwise than the one it was made on: pack the model again here"
