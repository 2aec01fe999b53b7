"""Attempts to break a bundle through its recipe, its arrays and what it holds of code.

`reseal` makes every digest right again, so that what is refused here is refused for what it is, not for a checksum.
"""

from __future__ import annotations

import io
import os
import pickle  # noqa: TID251 - an attacker's tool
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from portolan.bundle import open_bundle, verify_isolated, write_bundle
from portolan.errors import NoBackend, PortolanError, UnknownName, UsageError, VerificationFailed
from support.bundles import make_bundle, make_parts, opened_or_refused, refused, reseal
from support.rawzip import Raw, raw_zip

# The other files


def test_a_recipe_file_that_differs_from_the_manifest(folder: Path) -> None:
    path = folder / "recipe.toml"
    good = path.read_text()
    for raw, words in (
        (good.replace("bits = 8", "bits = 4"), "is not the recipe of the manifest"),
        (good + "\n[evil]\n", "cannot be read: a recipe has no key `evil`"),
        ("= broken", "cannot be read"),
    ):
        path.write_text(raw)
        refused(reseal(folder), words)
    path.write_bytes(b"\xff\xfe")
    refused(reseal(folder), "cannot be read")


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b'{"backend": "openvino", "options": {}}', "expected the recipe's backend `tiny`, got `openvino`"),
        (b'{"backend": "tiny", "options": []}', "expected an object, got a list"),
        (b'{"backend": "tiny"}', "expected an object, got null"),
        (b"[]", "expected an object"),
        (b"{", "not valid JSON"),
    ],
)
def test_a_compiled_json_that_differs(folder: Path, raw: bytes, words: str) -> None:
    (folder / "compiled/compiled.json").write_bytes(raw)
    refused(reseal(folder), words)


def test_options_that_the_backend_does_not_have(folder: Path, site: Path) -> None:
    """Nobody's options reach `Backend.load` unchecked."""
    raw = b'{"backend": "tiny", "options": {"allow_pickle": true}}'
    (folder / "compiled/compiled.json").write_bytes(raw)
    with open_bundle(reseal(folder)) as bundle, pytest.raises(UnknownName, match="no option of `tiny` named") as caught:
        bundle.verify()
    assert caught.value.where == "compiled/compiled.json: $.options"


# The golden arrays


def npz(**arrays: Any) -> bytes:
    out = io.BytesIO()
    np.savez(out, **arrays)
    return out.getvalue()


def npy(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


X = np.zeros((5, 4), np.float32)


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, ("touch PWNED",))


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (npz(x=X.astype(np.float64)), "has type float64, expected float32"),
        (npz(x=X.astype(">f4")), "has type >f4, expected float32"),
        (npz(x=X[:, :3]), "has shape 5x3, expected samplesx4"),
        (npz(x=X[0]), "has shape 4, expected"),
        (npz(x=X[:0]), "holds nothing"),
        (npz(x=X[:2]), "make 2 calls, and the manifest says 5"),
        (npz(z=X), "holds the arrays `z.npy`, expected `x.npy`"),
        (npz(x=X, z=X), "holds the arrays"),
        (npz(), "does not end|holds the arrays none"),
        (b"", "does not end as a zip file does"),
        (npy(X), "does not end as a zip file does"),
        (npz(x=X)[:-1], "does not end as a zip file does"),
        (raw_zip([Raw(b"x.npy", b"\x93NUMPY")]), "no readable header"),
        (raw_zip([Raw(b"x.npy", npy(X)[:-1])]), "the wrong number of bytes"),
        (raw_zip([Raw(b"x.npy", npy(X) + b"!")]), "the wrong number of bytes"),
        (raw_zip([Raw(b"x.npy", npy(X)), Raw(b"x.npy", npy(X))]), "one name twice"),
        (raw_zip([Raw(b"x.npy", bytes(2**24), method=8)]), "zip bomb"),
        (raw_zip([Raw(b"x.npy", pickle.dumps(X))]), "no readable header"),
        (npz(x=X.view([("a", "f4", 4)])), "no readable header"),
        (npz(x=np.zeros((5, 4), "V4")), "is pickled"),
    ],
)
def test_golden_arrays_that_are_not_as_they_should(folder: Path, raw: bytes, words: str) -> None:
    (folder / "golden/inputs.npz").write_bytes(raw)
    refused(reseal(folder), words)


def test_golden_arrays_that_would_run_code(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    objects = np.empty((5, 4), object)
    objects[:] = Evil()
    (folder / "golden/inputs.npz").write_bytes(npz(x=objects))
    refused(reseal(folder), "is pickled, and a bundle holds no pickle")
    assert not (folder.parent / "PWNED").exists()


@pytest.mark.parametrize(
    "header",
    [
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000, 4), }",
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 4), }",
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (5, 4.0), }",
        b"{'descr': '|O', 'fortran_order': False, 'shape': (5, 4), }",
        b"{'descr': __import__('os').system('touch PWNED'), 'fortran_order': False, 'shape': (5, 4), }",
        b"{'descr': '<f4', 'shape': (5, 4), }",
        b"(" * 5000,
        b"{" * 60_000,
        b"\xff" * 64,
        b"{'descr': '<U999999999', ",
    ],
)
def test_array_headers_that_lie(folder: Path, header: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    raw = b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little") + header + X.tobytes()
    (folder / "golden/inputs.npz").write_bytes(raw_zip([Raw(b"x.npy", raw)]))
    refused(reseal(folder), "readable header|wrong number of bytes|is pickled|expected")
    assert not (folder.parent / "PWNED").exists()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_array_headers_at_random(tmp_path: Path, data: st.DataObject) -> None:
    """Whatever the bytes: the same shape and type as before, or refused."""
    folder = tmp_path / "product"
    if not folder.exists():
        make_bundle(tmp_path)
    path = folder / "golden/inputs.npz"
    with zipfile.ZipFile(make_golden(tmp_path)) as archive:
        raw = bytearray(archive.read("x.npy"))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, 127))] = data.draw(st.integers(0, 255))
    path.write_bytes(raw_zip([Raw(b"x.npy", bytes(raw))]))
    bundle = opened_or_refused(reseal(folder))
    if bundle is None:
        return
    with bundle:
        assert bundle.golden_inputs["x"].dtype == np.float32
        assert bundle.golden_inputs["x"].shape == (5, 4)


def make_golden(tmp_path: Path) -> io.BytesIO:
    assume(tmp_path.exists())
    return io.BytesIO(npz(x=X))


def test_golden_outputs_of_nan_verify_nothing(folder: Path, site: Path) -> None:
    y = np.full((5, 3), np.nan, np.float32)
    (folder / "golden/outputs.npz").write_bytes(npz(y=y, label=np.zeros(5, np.int64)))
    with open_bundle(reseal(folder)) as bundle, pytest.raises(VerificationFailed, match="`y` is off by inf"):
        bundle.verify()


# Code, and what opening does


def test_opening_runs_and_imports_nothing(tmp_path: Path, site: Path) -> None:
    """A bundle full of code is opened in a fresh process: no backend, no runtime, no file of it is loaded."""
    parts = make_parts(tmp_path / "built")
    for name in ("evil.py", "sitecustomize.py", "model.so", "tiny_backend.py"):
        (tmp_path / "built" / name).write_text("open('PWNED', 'w')")
    folder = write_bundle(tmp_path / "code", parts)
    code = (
        "import sys; from portolan.bundle import open_bundle; b = open_bundle(sys.argv[1]); print(b); "
        "print(sorted(m for m in sys.modules if 'tiny' in m or m in ('onnxruntime', 'torch', 'openvino')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], cwd=folder / "compiled", capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"
    assert not list(tmp_path.rglob("PWNED"))


@pytest.mark.parametrize(
    ("name", "start"),
    [
        ("model.pt2", b"PK\3\4"),
        ("lib.so", b"\x7fELF"),
        ("lib.so.1", b"x"),
        ("weights.bin", b"\x7fELF\2"),
        ("Model.PT2", b""),
        ("plain", b"PK\3\4renamed"),
        ("tool.exe", b"MZ"),
        ("data", b"MZ\x90\0"),
        ("helper.py", b"import os"),
        ("w.pkl", b"\x80\4"),
        ("w.pt", b""),
        ("mac", b"\xcf\xfa\xed\xfe"),
    ],
)
def test_code_runs_only_for_who_names_the_bundle(tmp_path: Path, site: Path, name: str, start: bytes) -> None:
    parts = make_parts(tmp_path / "built")
    (tmp_path / "built" / name).write_bytes(start + b"x")
    features = ("sse",)  # a needed vector feature would stop it first, on some machines
    folder = write_bundle(tmp_path / "code.portolan", replace_features(parts, features))
    with open_bundle(folder) as bundle:
        assert bundle.code == (f"compiled/{name}",)
        sha256 = bundle.sha256
        with pytest.raises(UsageError, match=f"compiled code \\(`compiled/{name}`\\)") as caught:
            bundle.run({"x": X})
    assert "--sha256" in str(caught.value.hint)
    with pytest.raises(UsageError, match="compiled code"):
        verify_isolated(folder)
    with pytest.raises(VerificationFailed, match="was asked for"):
        open_bundle(folder, sha256="0" * 64)
    with open_bundle(folder, sha256=sha256.upper()) as bundle:
        assert bundle.run({"x": X})["y"].shape == (5, 3)
    assert verify_isolated(folder, native=True).rows == 5


def replace_features(parts: Any, features: tuple[str, ...]) -> Any:
    import dataclasses
    import platform

    arch = {"arm64": "aarch64", "amd64": "x86_64"}.get(platform.machine().lower(), platform.machine())
    return dataclasses.replace(parts, target=dataclasses.replace(parts.target, features=features, arch=arch))


def test_a_backend_that_says_its_files_are_code(tmp_path: Path, site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_bundle(tmp_path)
    import tiny_backend  # type: ignore[import-not-found]

    monkeypatch.setattr(tiny_backend.Tiny, "native_code", True, raising=False)
    with open_bundle(folder) as bundle, pytest.raises(UsageError, match="holds compiled code, which"):
        bundle.run({"x": X})


# Backends


def test_a_backend_that_does_not_exist(tmp_path: Path, site: Path) -> None:
    with open_bundle(make_bundle(tmp_path, backend="tinny")) as bundle, pytest.raises(UnknownName) as caught:
        bundle.run({"x": X})
    assert (caught.value.hint, caught.value.exit_code) == ("did you mean `tiny`?", 2)


def test_a_backend_that_is_not_ready(tmp_path: Path, site: Path) -> None:
    with open_bundle(make_bundle(tmp_path, backend="absent")) as bundle, pytest.raises(NoBackend) as caught:
        bundle.run({"x": X})
    assert (caught.value.hint, caught.value.exit_code) == ("pip install absent-runtime", 4)


def test_a_backend_whose_plug_in_is_gone(tmp_path: Path, site: Path) -> None:
    lost = "the backend `lost` cannot be loaded"
    with open_bundle(make_bundle(tmp_path, backend="lost")) as bundle, pytest.raises(PortolanError, match=lost):
        bundle.run({"x": X})
    with pytest.raises(PortolanError, match=lost) as caught:
        verify_isolated(tmp_path / "product")
    assert caught.value.exit_code == 1


def test_an_artefact_that_the_runtime_cannot_load(folder: Path, site: Path) -> None:
    (folder / "compiled/weights.npz").write_bytes(npz(w=np.array([Evil()], object), b=X))
    with open_bundle(reseal(folder)) as bundle, pytest.raises(VerificationFailed, match="`tiny` cannot load") as caught:
        bundle.run({"x": X})
    assert caught.value.hint == "install the runtime it was made with: `pip install tiny-runtime==1.2`"
