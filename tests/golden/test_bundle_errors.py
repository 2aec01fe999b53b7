"""Every error that a bundle can show its user: class, exit code, text, place and hint, word for word.

After a wanted change: `PORTOLAN_UPDATE_GOLDEN=1 pytest tests/golden/test_bundle_errors.py`, and read the diff.
"""

from __future__ import annotations

import ast
import errno
import io
import os
import re
import shutil
import stat
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

import portolan.bundle
from portolan.bundle import Needs, golden, open_bundle, unpack, verify_isolated, write_bundle
from portolan.bundle.manifest import FileEntry
from portolan.bundle.write import Source, write_sources
from portolan.core.signature import Signature, TensorSpec
from portolan.errors import PortolanError
from support.bundles import install_tiny, make_bundle, make_parts, reseal, use_site
from support.rawzip import Raw, raw_zip

GOLDEN = Path(__file__).with_name("bundle_errors.txt")
X = np.zeros((5, 4), np.float32)
RAISED = ("broken", "_differs", "UsageError", "DiskFull", "VerificationFailed", "NoBackend")
Case = Callable[[Path], Any]


def at_open(change: Callable[[Path], Any], seal: bool = True) -> Case:
    """Opens a good folder after `change`."""

    def case(tmp: Path) -> None:
        folder = make_bundle(tmp)
        change(folder)
        open_bundle(reseal(folder) if seal else folder)

    return case


def sealed(**changes: Any) -> Case:
    """Opens a good folder with other values in its manifest, sealed again; a key's dots are written `__`."""

    def change(data: dict[str, Any]) -> None:
        for path, value in changes.items():
            *parents, last = path.split("__")
            place = data
            for key in parents:
                place = place[key]
            place.pop(last) if value is ... else place.__setitem__(last, value)

    return at_open(lambda folder: reseal(folder, change, rehash=False), seal=False)


def zipped(entries: list[Raw] | bytes, **options: Any) -> Case:
    """Opens a zip made by hand."""

    def case(tmp: Path) -> None:
        path = tmp / "p.portolan"
        path.write_bytes(entries if isinstance(entries, bytes) else raw_zip(entries, **options))
        open_bundle(path)

    return case


def on_run(mood: str = "", **changes: Any) -> Case:
    """Verifies a bundle whose runtime is in this mood."""

    def case(tmp: Path) -> None:
        os.environ["PORTOLAN_TINY"] = mood
        verify_isolated(make_bundle(tmp, **changes), timeout=2 if mood == "hang" else 100)

    return case


def inputs(raw: bytes) -> Case:
    return at_open(lambda folder: (folder / "golden/inputs.npz").write_bytes(raw))


def npz(**arrays: Any) -> bytes:
    out = io.BytesIO()
    np.savez(out, **arrays)
    return out.getvalue()


def npy(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


def one(**changes: Any) -> list[Raw]:
    return [Raw(**{"name": b"manifest.json", "data": b"{}", **changes})]


def exists(tmp: Path, force: bool, thing: str) -> None:
    make_bundle(tmp, "there") if thing == "bundle" else (tmp / "there" / "thesis").mkdir(parents=True)
    write_bundle(tmp / "there", make_parts(tmp / "built"), force=force)


def disk(number: int) -> Case:
    def case(tmp: Path) -> None:
        def chunks() -> Any:
            raise OSError(number, os.strerror(number))

        write_sources(tmp / "p.portolan", [Source(FileEntry("a", 1, ""), chunks)], force=False)

    return case


def closed(tmp: Path) -> None:
    bundle = open_bundle(make_bundle(tmp))
    bundle.close()
    bundle.run({"x": X})


def with_code(tmp: Path) -> None:
    parts = make_parts(tmp / "built", needs=Needs())
    (tmp / "built" / "model.pt2").write_bytes(b"PK\3\4")
    open_bundle(write_bundle(tmp / "p", parts)).run({"x": X})


def changed_underneath(tmp: Path) -> None:
    bundle = open_bundle(make_bundle(tmp))
    (tmp / "product" / "recipe.toml").write_bytes(b"x")
    bundle.read("recipe.toml")


def gone_underneath(tmp: Path) -> None:
    bundle = open_bundle(make_bundle(tmp))
    (tmp / "product" / "recipe.toml").unlink()
    bundle.read("recipe.toml")


def swapped_underneath(tmp: Path) -> None:
    (tmp / "built").mkdir()
    (tmp / "built" / "blob").write_bytes(b"good" * 2**18)
    path = make_bundle(tmp, "p.portolan")
    with open_bundle(path) as bundle:
        with path.open("r+b") as file:
            file.write(path.read_bytes().replace(b"goodgoodgoodgood", b"evilevilevilevil"))
        bundle._unpacked()


def forged_underneath(tmp: Path) -> None:
    """Other bytes with the same size and CRC-32."""
    with open_bundle(make_bundle(tmp, "p.portolan")) as bundle:
        bundle._contents.chunks = lambda name: iter([b"forged"])  # type: ignore[method-assign]
        bundle._unpacked()


def unknown_option(tmp: Path) -> None:
    folder = make_bundle(tmp)
    (folder / "compiled/compiled.json").write_text('{"backend": "tiny", "options": {"thread": 1}}')
    open_bundle(reseal(folder)).verify()


def no_room(tmp: Path) -> None:
    before = shutil.disk_usage
    with open_bundle(make_bundle(tmp, "p.portolan")) as bundle:
        shutil.disk_usage = lambda path: before(path)._replace(free=0)  # type: ignore[assignment]
        try:
            bundle._unpacked()
        except PortolanError as error:
            error.message = error.message.replace(str(Path(os.environ.get("TMPDIR", "/tmp"))), "TMP")
            raise
        finally:
            shutil.disk_usage = before


def unknown_file(tmp: Path) -> None:
    open_bundle(make_bundle(tmp)).read("model.onnx")


def unloadable(folder: Path) -> Any:
    (folder / "compiled/weights.npz").write_bytes(b"no npz")
    with open_bundle(reseal(folder)) as bundle:
        bundle.verify()


def many_files(tmp: Path) -> None:
    folder = make_bundle(tmp)
    for i in range(20_001):
        os.close(os.open(folder / f"compiled/{i}", os.O_CREAT))
    open_bundle(folder)


def packed_oddly(**changes: Any) -> Case:
    return lambda tmp: make_bundle(tmp, **changes)


SIGNATURE = Signature((TensorSpec("a", "float32", (4,)),), (TensorSpec("y", "float32", ("N",)),))
CASES: dict[str, Case] = {
    # opening
    "nothing there": lambda tmp: open_bundle(tmp / "none"),
    "a fifo": lambda tmp: (os.mkfifo(tmp / "pipe"), open_bundle(tmp / "pipe")),
    "below a file": lambda tmp: ((tmp / "a").write_text(""), open_bundle(tmp / "a" / "b")),
    "another file": zipped(b"hello"),
    "a folder without manifest": lambda tmp: open_bundle(tmp),
    "another bundle than asked for": lambda tmp: open_bundle(make_bundle(tmp), sha256="0" * 64),
    # folders
    "a symbolic link": at_open(lambda f: (f / "compiled/link").symlink_to("/etc/passwd")),
    "a device": at_open(lambda f: os.mkfifo(f / "compiled/pipe")),
    "a hard link": at_open(lambda f: os.link(f / "recipe.toml", f.parent / "twin"), seal=False),
    "too deep": at_open(lambda f: (f / "a/b/c/d/e/f/g/h/i").mkdir(parents=True)),
    "too many files": many_files,
    "an empty folder": at_open(lambda f: (f / "compiled/empty").mkdir()),
    "a hidden file": at_open(lambda f: (f / ".DS_Store").write_text("")),
    "changed underneath": changed_underneath,
    "gone underneath": gone_underneath,
    "swapped underneath": swapped_underneath,
    "forged underneath": forged_underneath,
    # files against the manifest
    "a missing file": at_open(lambda f: (f / "recipe.toml").unlink(), seal=False),
    "a file too many": at_open(lambda f: (f / "notes.txt").write_text("")),
    "another size": at_open(lambda f: (f / "recipe.toml").write_text("x"), seal=False),
    "a bad checksum": at_open(lambda f: (f / "recipe.toml").write_bytes(b"#" * 118), seal=False),
    "an oversized manifest": at_open(lambda f: (f / "manifest.json").write_bytes(b" " * 2**21), seal=False),
    # names
    "a name with two dots": zipped(one(name=b"../evil")),
    "an absolute name": zipped(one(name=b"/etc/evil")),
    "a name of Windows": zipped(one(name=b"compiled/nul.txt")),
    "a backslash": zipped(one(name=b"compiled\\evil")),
    "a name that is too long": zipped(one(name=b"a/" * 60 + b"a")),
    "two cases": zipped([Raw(b"manifest.json", b"{}"), Raw(b"Manifest.json", b"")]),
    "file and folder": zipped([Raw(b"manifest.json", b"{}"), Raw(b"manifest.json/x", b"")]),
    # zips
    "truncated": zipped(raw_zip(one())[:-30]),
    "several disks": zipped(raw_zip(one())[:-18] + b"\1\0" + raw_zip(one())[-16:]),
    "many entries": zipped(one(), count=60_000),
    "a wrong count": zipped(one(), count=3),
    "hidden before the directory": zipped(one(), gap=b"evil"),
    "hidden before an entry": zipped([Raw(b"manifest.json", b"{}"), Raw(b"x", b"", before=b"evil")]),
    "a damaged zip64 record": zipped(one(), count=0xFFFF),
    "a directory that is none": zipped(
        b"PK\3\4" + bytes(46) + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1, 1, 46, 4, 0)
    ),
    "one name twice in a zip": zipped([Raw(b"manifest.json", b"{}"), Raw(b"manifest.json", b"{}")]),
    "overlapping entries": zipped([Raw(b"manifest.json", b"{}"), Raw(b"x", b"{}", at=0, body=b"", packed=2)]),
    "no local header": zipped(
        raw_zip([Raw(b"manifest.json", b"{}"), Raw(b"x", b"", flags=6)]).replace(b"PK\3\4\x14\0\6", b"PX\3\4\x14\0\6")
    ),
    "two headers": zipped(one(local={"crc": 1})),
    "a folder entry": zipped(one(name=b"compiled/")),
    "a link entry": zipped(one(attributes=(stat.S_IFLNK | 0o777) << 16)),
    "a device entry": zipped(one(attributes=(stat.S_IFCHR | 0o777) << 16)),
    "a name with a nul": zipped(one(name=b"manifest.json\0x")),
    "an encrypted entry": zipped(one(flags=1)),
    "a streamed entry": zipped(one(flags=8)),
    "an extra field": zipped(one(extra=b"\x75\x70\1\0x")),
    "another compression": zipped(one(method=14)),
    "stored with two sizes": zipped(one(size=9)),
    "a bomb": zipped(one(data=bytes(2**22), method=8)),
    "a damaged entry": zipped(one(crc=1)),
    "an entry that ends early": zipped(one(data=b"x" * 9, method=8, body=b"\3\0", crc=0)),
    # the manifest
    "no json": at_open(lambda f: (f / "manifest.json").write_text("{"), seal=False),
    "deep json": at_open(lambda f: (f / "manifest.json").write_text("[" * 200_000), seal=False),
    "another manifest": at_open(lambda f: (f / "manifest.json").write_text("{}"), seal=False),
    "a newer format": sealed(format_version=2),
    "a changed manifest": at_open(
        lambda f: (f / "manifest.json").write_text((f / "manifest.json").read_text().replace("6.9", "0.9")), seal=False
    ),
    "an unknown key": sealed(model__input=[]),
    "a missing key": sealed(golden=...),
    "a wrong type": sealed(files={}),
    "a wrong text": sealed(name="\x1b[31m"),
    "a wrong number": sealed(golden__rows=-1),
    "a wrong choice": sealed(target__kind="cloud"),
    "a wrong hash": sealed(model__sha256="abc"),
    "a wrong time": sealed(created="2026-99-01T00:00:00Z"),
    "control characters": sealed(licence="\x07"),
    "no outputs": sealed(model__outputs=[]),
    "one tensor twice": sealed(model__inputs=[{"name": "x", "dtype": "bool", "shape": []}] * 2),
    "another backend": sealed(recipe__backend="openvino"),
    "no files": sealed(files=[]),
    "a profile without the batch of one": sealed(profile__batches={}),
    "serving that does not fit": sealed(recipe__serving={"max_batch": 0}),
    "a file of no place": at_open(
        lambda f: (
            (f / "x.py").write_text(""), reseal(f, lambda d: d["files"].append(dict(d["files"][0], path="x.py")))
        )
    ),
    "unsorted files": at_open(lambda f: reseal(f, lambda d: d["files"].reverse()), seal=False),
    "too large": at_open(lambda f: reseal(f, lambda d: d["files"][0].update(bytes=2**41), rehash=False), seal=False),
    # recipe and options
    "another recipe": at_open(lambda f: (f / "recipe.toml").write_text('backend = "x"')),
    "no toml": at_open(lambda f: (f / "recipe.toml").write_text("=")),
    "compiled for another": at_open(lambda f: (f / "compiled/compiled.json").write_text('{"backend": "x"}')),
    "an unknown option": unknown_option,
    # golden arrays
    "other arrays": inputs(npz(z=X)),
    "pickled": inputs(npz(x=np.array([[None] * 4] * 5))),
    "another type": inputs(npz(x=X.astype("f8"))),
    "another shape": inputs(npz(x=X[:, :2])),
    "empty": inputs(npz(x=X[:0])),
    "too few bytes": inputs(raw_zip([Raw(b"x.npy", npy(X)[:-1])])),
    "too many bytes": inputs(raw_zip([Raw(b"x.npy", b"", method=8, size=2**29, body=bytes(3 * 2**20))])),
    "no header": inputs(raw_zip([Raw(b"x.npy", b"hello")])),
    "fewer rows": inputs(npz(x=X[:2])),
    # running
    "an unknown backend": lambda tmp: open_bundle(make_bundle(tmp, backend="tinny")).verify(),
    "a backend that is not ready": lambda tmp: open_bundle(make_bundle(tmp, backend="absent")).verify(),
    "a lost plug-in": lambda tmp: open_bundle(make_bundle(tmp, backend="lost")).verify(),
    "another architecture": lambda tmp: open_bundle(make_bundle(tmp, needs=Needs("vax"))).verify(),
    "a missing feature": lambda tmp: open_bundle(make_bundle(tmp, needs=Needs(None, ("warp",)))).verify(),
    "code": with_code,
    "closed": closed,
    "no room": no_room,
    "no such file in it": unknown_file,
    "an artefact that does not load": lambda tmp: unloadable(make_bundle(tmp)),
    "wrong inputs": lambda tmp: open_bundle(make_bundle(tmp)).run({"z": X}),
    "wrong outputs": on_run("wrong"),
    "wrong outputs of another version": on_run("wrong", backend_versions={"tiny-runtime": "1.3"}),
    "outputs of another shape": on_run("shape"),
    "outputs of another type": on_run("type"),
    "an output too few": on_run("less"),
    "a runtime that raises": on_run("raise"),
    "a runtime that crashes": on_run("crash"),
    "a runtime that hangs": on_run("hang"),
    "calls that do not fit": lambda tmp: golden.join([{"y": np.zeros((1, 2))}, {"y": np.zeros((1, 3))}], SIGNATURE),
    # writing
    "there already": lambda tmp: exists(tmp, False, "bundle"),
    "force over work": lambda tmp: exists(tmp, True, "work"),
    "no folder": lambda tmp: write_bundle(tmp / "none" / "p", make_parts(tmp / "built")),
    "a full disk": disk(errno.ENOSPC),
    "a read-only disk": disk(errno.EROFS),
    "unpacked onto something": lambda tmp: unpack(make_bundle(tmp, "p.portolan"), tmp),
    "a changed source": lambda tmp: write_sources(
        tmp / "p", [Source(FileEntry("compiled/m", 1, ""), lambda: [b"y"])], force=False
    ),
    "a link to pack": lambda tmp: (
        (tmp / "built").mkdir(), (tmp / "built/link").symlink_to("/etc"), make_bundle(tmp)
    ),
    "nothing compiled": lambda tmp: ((tmp / "e").mkdir(), make_bundle(tmp, compiled=tmp / "e")),
    "parts that are not valid": packed_oddly(created="today"),
    "outputs missing": packed_oddly(golden_outputs={}),
    "inputs of other names": packed_oddly(golden_inputs={"z": X}),
    "no samples": packed_oddly(golden_inputs={"x": X[:0]}),
    "nan": packed_oddly(golden_inputs={"x": X * np.nan}),
    "objects": packed_oddly(golden_inputs={"x": np.array([[None] * 4])}),
    "unequal samples": lambda tmp: golden.count_rows(
        Signature((TensorSpec("a", "bool", ("N",)), TensorSpec("b", "bool", ("N",))), ()), {"a": X[0], "b": X[:, 0]}
    ),
    "calls of several shapes": lambda tmp: golden.stack([{"x": X}, {"x": X[:2]}]),
    "too large to ship": lambda tmp: golden.dump({"x": np.zeros(2**25 + 1)}, "golden input"),
}  # fmt: skip


def shown(name: str, tmp: Path) -> str:
    """What a user would read, without what differs from run to run."""
    with pytest.raises(PortolanError) as caught:
        CASES[name](tmp)
    error = caught.value
    lines = [f"[{name}] {type(error).__name__} {error.exit_code}", f"error: {error.message}"]
    lines += [f"  at {error.where}"] if error.where else []
    lines += [f"hint: {error.hint}"] if error.hint else []
    # What comes behind these words is another library's, and changes with its version.
    lines[1] = re.sub(
        r"(is not valid JSON: (?!too deep)|\.toml` cannot be read: |cannot load the bundle: ).*", r"\1...", lines[1]
    )
    text = "\n".join(lines).replace(str(tmp), "DIR").replace(tmp.name, "NAME")
    return re.sub(r"`[0-9a-f]{64}`", "`SHA256`", re.sub(r"machine is `\w+`", "machine is `ARCH`", text))


def test_every_error_word_for_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_site(monkeypatch, install_tiny(tmp_path / "site"))
    monkeypatch.setenv("PORTOLAN_TINY", "")
    texts = []
    for i, name in enumerate(CASES):
        folder = tmp_path / f"case{i:03}"
        folder.mkdir()
        monkeypatch.setenv("PORTOLAN_TINY", "")
        texts.append(shown(name, folder))
    found = "\n\n".join(texts) + "\n"
    if os.environ.get("PORTOLAN_UPDATE_GOLDEN"):
        GOLDEN.write_text(found)
    assert found == GOLDEN.read_text()


def test_no_error_is_left_out() -> None:
    """The fixed words of each message in the source occur in the golden file."""
    golden_text = GOLDEN.read_text()
    missing = []
    for path in sorted(Path(portolan.bundle.__file__).parent.glob("*.py")):
        for call in ast.walk(ast.parse(path.read_text())):
            if isinstance(call, ast.Call) and getattr(call.func, "id", "") in RAISED:
                message = call.args[0] if call.args else None
                parts = message.values if isinstance(message, ast.JoinedStr) else [message]
                words = [p.value for p in parts if isinstance(p, ast.Constant) and len(str(p.value)) > 6]
                missing += [f"{path.name}:{call.lineno}: {w}" for w in words if w not in golden_text]
    assert missing == []
