"""Bundles as a user meets them: written, opened, run, verified, converted."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import platform
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

import portolan.bundle
from portolan.bundle import (
    Needs,
    Tolerance,
    check,
    export,
    open_bundle,
    pack_parts,
    unpack,
    verify_isolated,
    write_bundle,
)
from portolan.bundle.__main__ import main
from portolan.bundle.here import check_needs, local_target
from portolan.core.recipe import Recipe
from portolan.errors import NoBackend, PortolanError, UsageError, VerificationFailed
from support.bundles import (
    CREATED,
    SIGNATURE,
    TARGET,
    bundle_sha256,
    install_tiny,
    make_bundle,
    make_parts,
    use_site,
    weights,
)

FORMS = ("product", "product.portolan")
X = np.ones((2, 4), np.float32)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = install_tiny(tmp_path / "site")
    use_site(monkeypatch, place)
    return place


@pytest.mark.parametrize("form", FORMS)
def test_written_opened_and_run(tmp_path: Path, site: Path, form: str) -> None:
    with open_bundle(make_bundle(tmp_path, form)) as bundle:
        outputs = bundle.run({"x": X})
        assert outputs["y"] == pytest.approx(X @ weights()["w"] + weights()["b"])
        assert outputs["label"].tolist() == outputs["y"].argmax(axis=1).tolist()
        result = bundle.verify()
        assert (result.rows, result.notes, [d.ok for d in result.differences]) == (5, (), [True, True])
        assert result.to_json()["verified"] is True
        assert bundle.golden_outputs["label"].shape == (5,)


def test_the_manifest_says_what_was_given(tmp_path: Path) -> None:
    with open_bundle(make_bundle(tmp_path, licence="CC-BY-4.0\nby nobody")) as bundle:
        manifest = bundle.manifest
    assert (manifest.name, manifest.created, manifest.model) == ("product", CREATED, "product")
    assert manifest.signature == SIGNATURE
    assert manifest.recipe == make_parts(tmp_path / "built").recipe
    assert manifest.claims["latency_p95"].hi == 7.0
    assert manifest.environment == {"load": 0.1, "governor": None}
    assert manifest.versions == {"tiny-runtime": "1.2"}
    assert manifest.licence == "CC-BY-4.0\nby nobody"
    assert manifest.portolan == portolan.__version__
    assert manifest.needs == Needs()
    assert manifest.target["fingerprint"] == TARGET.fingerprint


def test_nothing_that_names_or_reaches_the_machine_is_shipped(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path)
    everything = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    assert b"lab-7" not in everything
    assert str(tmp_path).encode() not in everything


def test_one_hash_for_both_forms_and_the_same_bytes_twice(tmp_path: Path) -> None:
    folder, first, second = (make_bundle(tmp_path, out) for out in ("a", "b.portolan", "c.portolan"))
    assert first.read_bytes() == second.read_bytes()
    assert bundle_sha256(folder) == bundle_sha256(first)
    again = make_bundle(tmp_path, "d", created="2026-11-20T12:00:01Z")
    assert bundle_sha256(folder) != bundle_sha256(again)


def test_the_hash_is_that_of_the_manifest_less_itself(tmp_path: Path) -> None:
    data = json.loads((make_bundle(tmp_path) / "manifest.json").read_text())
    stated = data.pop("sha256")
    text = json.dumps(data, indent=1, sort_keys=True) + "\n"
    assert hashlib.sha256(text.encode()).hexdigest() == stated


def test_a_zip_that_other_tools_made_of_the_folder_is_a_bundle(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path)
    path = tmp_path / "by-hand.portolan"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*"), reverse=True):
            if file.is_file():
                archive.write(file, file.relative_to(folder))
    assert bundle_sha256(path) == bundle_sha256(folder)


def test_export_goes_there_and_back(tmp_path: Path) -> None:
    original = make_bundle(tmp_path, "a.portolan")
    folder = unpack(original, tmp_path / "b")
    assert bundle_sha256(folder) == bundle_sha256(original)
    assert export(folder, tmp_path / "c.portolan").read_bytes() == original.read_bytes()
    assert (export(original, tmp_path / "d") / "recipe.toml").is_file()
    with pytest.raises(UsageError, match="exists"):
        export(original, folder)


def test_one_line_and_html(tmp_path: Path) -> None:
    with open_bundle(make_bundle(tmp_path, name="<b>bold</b>")) as bundle:
        assert repr(bundle) == f"Bundle('<b>bold</b>', tiny, 1.56 KiB, sha256={bundle.sha256[:12]})"
        page = bundle._repr_html_()
        assert "<b>" not in page
        assert "&lt;b&gt;bold" in page
        assert "6.9 ms ±0.1 (n=312) measured" in page
        data = bundle.to_json()
    assert data["files"] == [
        "compiled/compiled.json", "compiled/weights.npz", "golden/inputs.npz", "golden/outputs.npz", "manifest.json",
        "recipe.toml",
    ]  # fmt: skip
    assert data["manifest"]["sha256"] == data["sha256"] == bundle.sha256
    assert json.loads(json.dumps(data)) == data


def test_inputs_are_checked_before_the_runtime_sees_them(tmp_path: Path, site: Path) -> None:
    with open_bundle(make_bundle(tmp_path)) as bundle:
        for feeds, words in (
            ({"z": X}, "the data lacks `x` and has unknown `z`"),
            ({"x": X.astype(int)}, "input `x` has type int64, expected float32"),
            ({"x": X[:, :3]}, "input `x` has shape 2x3, expected Nx4"),
        ):
            with pytest.raises(UsageError, match=words):
                bundle.run(feeds)
        assert bundle.run({"x": X})["y"].shape == (2, 3)


def test_a_closed_bundle_tells_and_does_not_run(tmp_path: Path, site: Path) -> None:
    bundle = open_bundle(make_bundle(tmp_path, "p.portolan"))
    bundle.run({"x": X})
    bundle.close()
    bundle.close()
    assert bundle.manifest.name == "product"
    with pytest.raises(UsageError, match="the bundle is closed"):
        bundle.run({"x": X})


def test_reading_a_file_of_it(tmp_path: Path) -> None:
    with open_bundle(make_bundle(tmp_path, "p.portolan")) as bundle:
        assert bundle.read("recipe.toml").startswith(b"passes = [")
        with pytest.raises(UsageError, match=r"the bundle has no file `README\.md`"):
            bundle.read("README.md")


@pytest.mark.parametrize("mood", ["", "print"])
def test_verified_in_a_process_of_its_own(
    tmp_path: Path, site: Path, monkeypatch: pytest.MonkeyPatch, mood: str
) -> None:
    """Also when the runtime prints where the answer should go."""
    monkeypatch.setenv("PORTOLAN_TINY", mood)
    result = verify_isolated(make_bundle(tmp_path, "p.portolan"))
    assert result.rows == 5
    assert result.differences[0].output == "y"
    assert "tiny_runtime" not in sys.modules, "the controller imports no runtime"


@pytest.mark.parametrize(
    ("mood", "words"),
    [
        ("wrong", r"output `y` is off by 0.5 at \[\d, \d\], where 0.\d+ is allowed"),
        ("nan", "output `y` is off by inf at"),
        ("shape", "output `y` has shape 5x1, and the golden one 5x3"), ("less", "the model gave no output `label`"),
        ("type", "output `y` has type float64, and the golden one float32"),
        ("raise", "`tiny` failed on the golden inputs: kernel launch failed"), ("crash", "ended with signal SIGSEGV"),
    ],
)  # fmt: skip
def test_wrong_answers_fail(tmp_path: Path, site: Path, monkeypatch: pytest.MonkeyPatch, mood: str, words: str) -> None:
    path = make_bundle(tmp_path)
    monkeypatch.setenv("PORTOLAN_TINY", mood)
    with pytest.raises(VerificationFailed, match=words) as caught:
        verify_isolated(path)
    assert caught.value.exit_code == 6
    assert caught.value.hint


def test_a_runtime_that_hangs_is_given_up(tmp_path: Path, site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_bundle(tmp_path)
    monkeypatch.setenv("PORTOLAN_TINY", "hang")
    with pytest.raises(VerificationFailed, match="did not answer its golden inputs within 2 s"):
        verify_isolated(path, timeout=2)


def test_a_process_that_answers_nothing(tmp_path: Path, site: Path) -> None:
    path = make_bundle(tmp_path)
    (site / "numpy.py").write_text("raise ImportError('numpy is broken here')")
    with pytest.raises(VerificationFailed, match="ended with exit code 1: ImportError: numpy is broken here"):
        verify_isolated(path)


def test_another_version_is_a_note_and_a_hint(tmp_path: Path, site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_bundle(tmp_path, backend_versions={"tiny-runtime": "1.3", "gone": "2"})
    result = verify_isolated(path)
    assert result.notes == ("made with `gone` 2, here it is missing", "made with `tiny-runtime` 1.3, here it is 1.2")
    monkeypatch.setenv("PORTOLAN_TINY", "wrong")
    with pytest.raises(VerificationFailed) as caught:
        verify_isolated(path)
    assert "made with `tiny-runtime` 1.3, here it is 1.2: install that version" in str(caught.value.hint)


def test_pack_verifies_before_anything_is_there(tmp_path: Path, site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts, out = make_parts(tmp_path / "built"), tmp_path / "p.portolan"
    monkeypatch.setenv("PORTOLAN_TINY", "wrong")
    before = _there(tmp_path)
    with pytest.raises(VerificationFailed, match="output `y` is off"):
        pack_parts(parts, out)
    assert _there(tmp_path) == before
    monkeypatch.setenv("PORTOLAN_TINY", "")
    packed = pack_parts(parts, out)
    assert packed.verification is not None
    assert packed.verification.bundle == str(out)
    assert packed.to_json() == {
        "bundle": str(out), "sha256": bundle_sha256(out), "files": list(packed.files), "verified": True, "notes": [],
    }  # fmt: skip
    assert repr(packed).startswith(f"Packed('{out}', 6 files, verified, sha256=")
    with pytest.raises(UsageError, match="exists"):
        pack_parts(parts, out)
    assert not pack_parts(parts, out, force=True, verify=False).verified


def _there(folder: Path) -> set[Path]:
    """What lies there, but for what Python keeps of the modules it imported."""
    return {path for path in folder.rglob("*") if "__pycache__" not in path.parts}


def test_pack_runs_the_code_it_has_just_made(tmp_path: Path, site: Path) -> None:
    """The hash is known, so no permission is asked; a stranger's copy of the same bundle would need it."""
    parts = make_parts(tmp_path / "built", needs=Needs())
    (tmp_path / "built" / "lib.so").write_bytes(b"\x7fELF")
    packed = pack_parts(parts, tmp_path / "p.portolan")
    assert packed.verified
    with pytest.raises(UsageError, match="compiled code"):
        check(packed.bundle)
    assert check(packed.bundle, sha256=packed.sha256).verified
    assert not check(packed.bundle, run=False).verified


def test_code_needs_the_processor_it_was_made_for(tmp_path: Path, site: Path) -> None:
    parts = make_parts(tmp_path / "built")
    (tmp_path / "built" / "lib.so").write_bytes(b"\x7fELF")
    with open_bundle(write_bundle(tmp_path / "p", parts)) as bundle:
        assert bundle.manifest.needs == Needs("x86_64", ("avx2", "avx512f", "sme"))


def test_needs_are_checked_before_anything_is_loaded(tmp_path: Path, site: Path) -> None:
    here = local_target()
    for needs, words in (
        (Needs("vax", ()), f"compiled for `vax`, and this machine is `{here.arch}`"),
        (Needs(None, ("warp_drive",)), "a processor with `warp_drive`, which this one lacks"),
    ):
        with pytest.raises(NoBackend, match=words):
            verify_isolated(make_bundle(tmp_path, f"p-{needs.arch}", needs=needs))
    check_needs(Needs(here.arch, here.features[:1]), here)


def test_this_machine_is_seen() -> None:
    here = local_target()
    assert here.arch == {"arm64": "aarch64", "amd64": "x86_64"}.get(platform.machine().lower(), platform.machine())
    assert here.features == tuple(sorted(here.features))
    assert here.features, "no feature was read from /proc/cpuinfo"
    assert here.cores > 0
    assert here.ram > 2**26


@pytest.mark.parametrize("static", [1, 2])
def test_calls_of_a_static_batch(tmp_path: Path, site: Path, static: int) -> None:
    inputs, outputs = SIGNATURE.inputs[0], SIGNATURE.outputs
    fixed = dataclasses.replace(SIGNATURE, inputs=(dataclasses.replace(inputs, shape=(static, 4)),), outputs=outputs)
    parts = make_parts(tmp_path / "built")
    y = np.concatenate([parts.golden_outputs["y"][:4]])
    changed: dict[str, Any] = {
        "model": dataclasses.replace(parts.model, signature=fixed),
        "golden_inputs": {"x": parts.golden_inputs["x"][:4]},
        "golden_outputs": {"y": y, "label": y.argmax(axis=1)},
    }
    packed = pack_parts(dataclasses.replace(parts, **changed), tmp_path / "p")
    assert packed.verification is not None
    assert packed.verification.rows == 4 // static


def test_tolerances_as_given(tmp_path: Path) -> None:
    one, tight = Tolerance(0.5, 0.25), Tolerance(0, 0)
    with open_bundle(make_bundle(tmp_path, "a", tolerance=one)) as bundle:
        assert dict(bundle.manifest.tolerance) == {"y": one, "label": one}
    with open_bundle(make_bundle(tmp_path, "b", tolerance={"y": tight})) as bundle:
        assert dict(bundle.manifest.tolerance) == {"y": tight, "label": Tolerance(0.0, 0.0)}


def test_an_exact_recipe_has_a_tight_gate(tmp_path: Path, site: Path) -> None:
    with open_bundle(make_bundle(tmp_path, "a", recipe=Recipe((), "tiny", {}))) as bundle:
        exact = bundle.manifest.tolerance["y"]
    with open_bundle(make_bundle(tmp_path, "b", recipe=Recipe((), "tiny", {"precision": "bf16"}))) as bundle:
        reduced = bundle.manifest.tolerance["y"]
    assert exact.atol * 999 < reduced.atol < exact.atol * 1001
    assert exact.rtol == 1e-5


# The entry module


def test_the_module_checks_and_verifies(
    tmp_path: Path, site: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(make_bundle(tmp_path, "p.portolan", backend_versions={"tiny-runtime": "9"}))
    assert main([path]) == 0
    assert capfd.readouterr().out.splitlines()[-1] == "intact: 6 files match their checksums; nothing was run"
    monkeypatch.setenv("PORTOLAN_TINY", "print")
    assert main([path, "--verify"]) == 0
    shown = capfd.readouterr()
    assert shown.out.splitlines()[-1] == "verified: 5 golden calls agree"
    assert "noise" not in shown.out
    assert "noise of a runtime" in shown.err
    assert "note: made with `tiny-runtime` 9, here it is 1.2" in shown.err
    assert main([path, "--verify", "--json", "--sha256", bundle_sha256(Path(path))]) == 0
    assert json.loads(capfd.readouterr().out)["verified"] is True
    assert main([path, "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["manifest"]["name"] == "product"


def test_the_module_tells_what_is_wrong(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "none")]) == 2
    shown = capfd.readouterr()
    assert shown.out == ""
    assert shown.err.splitlines() == [
        f"error: there is no bundle at `{tmp_path / 'none'}`", "hint: `portolan pack` makes one",
    ]  # fmt: skip
    folder = make_bundle(tmp_path)
    (folder / "manifest.json").write_text('{"format": "portolan-bundle", "format_version": 3}')
    assert main([str(folder)]) == 2
    assert "  at manifest.json: $.format_version" in capfd.readouterr().err
    assert main([str(folder), "--json"]) == 2
    assert json.loads(capfd.readouterr().out)["error"]["code"] == 2


def test_exported_names() -> None:
    for name in portolan.bundle.__all__:
        assert getattr(portolan.bundle, name) is not None
    assert sorted(portolan.bundle._PLACES) == portolan.bundle.__all__
    with pytest.raises(AttributeError, match="has no attribute `opne`"):
        _ = portolan.bundle.opne
    assert issubclass(VerificationFailed, PortolanError)
